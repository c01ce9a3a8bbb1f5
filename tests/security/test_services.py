"""Every service's port, as whoever reaches it may use it: pages of other sites, oversized and crooked requests."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import ROOT, ServiceProcess

SERVICES = sorted(path.parent.name for path in (ROOT / "services").glob("*/__main__.py"))
EVIL = "evil.example"
ORDERS = {
    "atlas": [("POST", "/api/v1/commands")],
    "gateway": [("POST", "/.well-known/openc2")],
    "geospatial": [("PUT", "/collections/x"), ("POST", "/collections/x/items"), ("DELETE", "/collections/x")],
    "isolated_monitoring": [("POST", "/api/maintenance"), ("POST", "/api/v3/checks/")],
    "threat_intel": [("PUT", "/feeds/x"), ("DELETE", "/feeds/x")],
    "threat_reaction": [("PUT", "/playbooks/x"), ("DELETE", "/playbooks/x"), ("POST", "/bans")],
}
"""Of each service that has a token: what cannot be had without it."""
OUTSIDE = (
    "/../../../../../../etc/passwd",
    "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/page/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/page//etc/passwd",
    "/api/v1/services/..%2f..%2f..%2fetc%2fpasswd/log",
    "/api/v1/services/atlas/incarnations/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/sources/..%2f..%2f..%2fetc%2fpasswd",
    "/collections/..%2f..%2fetc%2fpasswd",
    "/static/%00/etc/passwd",
)


class Door:
    """One service's port."""

    def __init__(self, url: str) -> None:
        self.port = urlsplit(url).port or 0

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body; whatever headers say, none is a secret."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            assert not [name for name, _ in answer.getheaders() if name.lower() == "access-control-allow-origin"]
            return answer.status, answer.read()
        finally:
            connection.close()

    def raw(self, content: bytes) -> int:
        """Status of the answer to these bytes; 0 if it closed without one."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            answer = b""
            try:
                connection.sendall(content)
                while b"\r\n" not in answer and (part := connection.recv(4096)):
                    answer += part
            except ConnectionError:  # it has said no, and does not listen any longer
                return 0
        return int(answer.split(b" ")[1]) if answer else 0


def other_sites(door: Door) -> None:
    """Refused: to read under a name made to point here, to change anything from elsewhere."""
    for path in ("/", "/metrics", "/ooda", "/api/status", "/api/v1/fleet", "/sql"):
        status, body = door.ask("GET", path, Host=EVIL)
        assert (status, json.loads(body)["error"]["status"]) == (421, 421), path
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for origin in (f"https://{EVIL}", "null", f"http://127.0.0.1:{door.port}.{EVIL}"):
            for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
                status, _ = door.ask(method, "/ooda/mode", b'{"mode": "off"}', Origin=origin, Content_Type=kind)
                assert status in (403, 405), (method, origin)
    status, body = door.ask("GET", "/ooda")
    assert (status, json.loads(body)["mode"]) == (200, "on")


def oversized(door: Door) -> None:
    """Refused before it is held: heads, URLs, queries, bodies."""
    line = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    assert door.raw(b"GET /" + b"a" * 1_000_000 + line + b"\r\n") in (0, 400, 414, 431)
    assert door.raw(b"GET /" + line + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n") in (0, 400, 431)
    assert door.raw(b"GET /" + line + b"X: a\r\n" * 20_000 + b"\r\n") in (0, 400, 431)
    query = "&".join(f"a{number}=1" for number in range(900))
    assert door.ask("GET", f"/metrics?{query}")[0] < 500
    assert door.raw(b"POST /ooda/mode" + line + b"Content-Length: 99999999999\r\n\r\n" + b"a" * 100_000) in (0, 413)
    assert door.raw(b"POST /ooda/mode" + line + b"Content-Length: -1\r\n\r\n") in (0, 400)
    assert door.ask("POST", "/ooda/mode", b"[" * 1000)[0] == 400
    assert door.ask("POST", "/ooda/mode", b"[" * 100_000)[0] == 413


def crooked(door: Door) -> None:
    """No path leads to a file, no method to a fault."""
    for path in OUTSIDE:
        status, body = door.ask("GET", path)
        assert 400 <= status < 500, path
        assert b"root:" not in body
    for method in ("TRACE", "PROPFIND", "DELETE", "PUT", "PATCH", "OPTIONS"):
        for path in ("/", "/livez", "/ooda", "/no/such/path"):
            assert door.ask(method, path)[0] < 500, (method, path)
    for content in (b"\0" * 100 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        assert door.raw(content) in (0, 400, 505)


@pytest.mark.parametrize("name", SERVICES)
def test_many_connections_cost_the_others_nothing(name: str, run_path: Path) -> None:
    """More than it may open files, and none of them says a word: who asks is answered, and it is not short of any."""
    with ServiceProcess(run_path, "-m", f"services.{name}", CDN_RLIMIT_NOFILE="256") as service, ExitStack() as held:
        door = Door(service.url())
        for _ in range(300):
            held.enter_context(socket.create_connection(("127.0.0.1", door.port), timeout=60))
        for _ in range(20):
            assert door.ask("GET", "/livez")[0] == 200
        assert "over the hard limit" not in service.log()


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_is_no_way_in(name: str, run_path: Path) -> None:
    """And after all of it the service lives, and is as ready as before."""
    with ServiceProcess(run_path, "-m", f"services.{name}", CDN_OODA="on") as service:
        door = Door(service.url())
        ready = door.ask("GET", "/readyz")[0]
        for method, path in ORDERS.get(name, ()):
            assert door.ask(method, path, b"{}", Content_Type="application/json")[0] == 401, path
            wrong = {"Authorization": "Bearer " + "x" * 43, "X_Api_Key": "x" * 43}
            assert door.ask(method, path, b"{}", Content_Type="application/json", **wrong)[0] == 401, path
        other_sites(door)
        oversized(door)
        crooked(door)
        assert door.ask("GET", "/livez")[0] == 200
        assert door.ask("GET", "/readyz")[0] == ready
        assert service.process.poll() is None
        assert "Traceback" not in service.log()
