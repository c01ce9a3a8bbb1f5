"""A real fleet: the gateway finds the instances that scaling makes, and loses no request when they go."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections import Counter
from pathlib import Path
from xmlrpc.client import ServerProxy

from supervisor.xmlrpc import SupervisorTransport

from tests.support import Supervisord, until

FABRIC = "cdn-data-fabric"
ASKS = (
    ("GET", f"/{FABRIC}/ooda", None),
    ("POST", f"/{FABRIC}/sql", json.dumps({"sql": "SELECT 1"}).encode()),
)


class Clients:
    """Some that ask and ask, each on a connection that it keeps, or each time on a new one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        """By instance, of those answers that name it."""
        self._threads = [
            threading.Thread(target=self._ask, args=(*ask, keep)) for ask in ASKS for keep in (True, False)
        ]

    def _ask(self, method: str, path: str, body: bytes | None, keep: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop.wait(0.005):
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                self.wrong.append(f"{method} {answer.status} {content.decode()}")
            elif body is None:
                self.answers[json.loads(content)["instance"]] += 1
            if not keep:
                connection.close()
        connection.close()

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def port_of(fleet: Supervisord, name: str) -> int:
    """Where it listens, as it logs it."""
    found = until(lambda: re.findall(r"listens on 127\.0\.0\.1 port (\d+)", fleet.log(name)), what=f"{name} listens")
    return int(found[-1])


def scale(fleet: Supervisord, instances: int) -> None:
    """Scale it, by supervisord's XML-RPC."""
    transport = SupervisorTransport(None, None, f"unix://{fleet.run_dir}/supervisor.sock")
    with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
        proxy.cdn.scaleProcess(FABRIC, instances)


def test_no_request_fails_while_a_service_is_scaled_up_and_down(run_path: Path) -> None:
    services = {"atlas": "services.atlas", "gateway-primary": "services.gateway", FABRIC: "services.data_fabric"}
    programs = {
        name: {"command": f"python -m {module}", "environment": 'CDN_PORT="0"'} for name, module in services.items()
    }
    three = {FABRIC, f"{FABRIC}-2", f"{FABRIC}-3"}
    with Supervisord(run_path, programs) as fleet:
        until(lambda: set(fleet.states().values()) == {"RUNNING"}, what="the fleet is up", within_s=60)
        port = port_of(fleet, "gateway-primary")

        def asked() -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", f"/{FABRIC}/ooda")
            status = connection.getresponse().status
            connection.close()
            return status

        until(lambda: asked() == 200, what="the gateway routes to it")
        with Clients(port) as clients:
            scale(fleet, 3)
            until(lambda: set(clients.answers) == three, what="all three answer", within_s=60)
            scale(fleet, 1)
            until(lambda: f"{FABRIC}-2" not in fleet.states(), what="two are gone", within_s=60)
            until(lambda: set(fleet.states()) == set(services), what="both are gone")
            before = clients.answers[FABRIC]
            until(lambda: clients.answers[FABRIC] > before + 5, what="the one answers on")
        assert clients.wrong == []
