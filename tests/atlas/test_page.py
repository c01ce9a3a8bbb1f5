"""ATLAS's page and what it is made of: files, the live feed, orders by HTTP, and who is kept out."""

from __future__ import annotations

import http.client
import json
import re
import stat
import urllib.parse
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from bus.endpoints import RunDir
from bus.messages import CommandView, Event, HealthStatus, ServiceView, Verb
from services.atlas.access import FAILURES_MAX, OperatorToken, is_own_name
from services.atlas.changes import Told
from services.atlas.page_files import FOLDER
from tests.atlas.test_atlas import ATLAS, TINY, spawn  # noqa: F401
from tests.bus.samples import EVENT, VIEW
from tests.support import ROOT, ServiceProcess, until

Spawn = Callable[..., ServiceProcess]
PAGE_FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())


def ask(
    atlas: ServiceProcess, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request with exactly these headers; ``_`` in a name stands for ``-``."""
    address = urllib.parse.urlsplit(atlas.url())
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 0, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, body=content, headers={"Content-Type": "application/json"} | sent)
    answer = connection.getresponse()
    result = answer.status, answer.headers, answer.read()
    connection.close()
    return result


def live_url(atlas: ServiceProcess) -> str:
    """Of the live feed."""
    return atlas.url().replace("http://", "ws://") + "/api/v1/live"


# -- the files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGE_FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    """No file names another host, makes HTML or code of text, or has scripts and styles that the CSP would refuse."""
    text = path.read_text()
    urls = [url for url in re.findall(r"(?:https?:)?//[a-z0-9][a-z0-9.-]+", text) if "www.w3.org/" not in url + "/"]
    assert not [url for url in urls if url.startswith("http")]
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "srcdoc",
        "@import",
        "localStorage",
    ):
        assert forbidden not in text
    if path.suffix in (".html", ".svg"):
        assert not re.search(r"\s(on\w+|style)=|javascript:", text)
        assert not re.search(r"<script(?![^>]*\ssrc=)", text)


def test_an_installed_wheel_has_the_page() -> None:
    """setup.cfg names every file of it as data of the package."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["services.atlas"].split()
    packed = {path for pattern in patterns for path in (ROOT / "services" / "atlas").glob(pattern)}
    assert packed == set(PAGE_FILES)


def test_the_page_is_served(spawn: Spawn) -> None:  # noqa: F811
    """With a type, a tag, and headers that let nothing in; no path leads out of its folder."""
    atlas = spawn(*ATLAS)
    code, headers, body = ask(atlas, "GET", "/")
    assert (code, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert "access-control-allow-origin" not in headers
    assert ask(atlas, "GET", "/", If_None_Match=headers["etag"])[0] == 304
    linked = re.findall(r'(?:src|href)="(page/[^"]+)"', body.decode())
    assert len(linked) >= 3
    for path in linked:
        assert ask(atlas, "GET", f"/{path}")[0] == 200
    for path in ("/page/nope.js", "/page/../server.py", "/page/%2e%2e/server.py", "/page//etc/passwd", "/page/"):
        code, headers, body = ask(atlas, "GET", path)
        assert (code, json.loads(body)["error"]["status"]) == (404, 404)
        assert "content-security-policy" in headers


# -- who is kept out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1:18500", True),
        ("127.0.0.1", True),
        ("localhost:9000", True),
        ("LocalHost", True),
        ("[::1]:18500", True),
        ("atlas.example.org", True),
        ("10.0.0.7:18500", True),
        ("evil.example.com:18500", False),
        ("localhost.evil.example.com", False),
        ("127.0.0.1.evil.example.com", False),
        ("localhost@evil.example.com", False),
        ("10.0.0.8", False),
        ("[::2]", False),
        ("", False),
        ("localhost:1:2", False),
        ("local host", False),
    ],
)
def test_names_that_are_its_own(host: str, is_own: bool) -> None:
    """Loopback, what was connected to, and what was configured; nothing that only looks like it."""
    assert is_own_name(host, {"atlas.example.org", "10.0.0.7"}) is is_own


def test_another_sites_page_gets_nothing(spawn: Spawn, run_dir: RunDir) -> None:  # noqa: F811
    """A name rebound to this host, a foreign Origin, a preflight: refused, whether they read, watch or order."""
    atlas = spawn(*ATLAS, CDN_ATLAS_HOSTS="atlas.example.org")
    atlas.url()
    bearer = f"Bearer {OperatorToken(run_dir).read()}"
    order = {"verb": "restart", "names": ["atlas"]}
    for path in ("/", "/api/v1/fleet", "/api/v1/commands/1"):
        code, headers, body = ask(atlas, "GET", path, Host="evil.example.com")
        assert (code, json.loads(body)["error"]["value"]) == (421, "evil.example.com")
        assert "content-security-policy" in headers
    assert ask(atlas, "GET", "/api/v1/fleet", Host="atlas.example.org")[0] == 200
    host = urllib.parse.urlsplit(atlas.url()).netloc
    for origin in ("http://evil.example.com", "null", f"http://{host}.evil.example.com", "http://localhost:1"):
        code, headers, _ = ask(atlas, "POST", "/api/v1/commands", order, Authorization=bearer, Origin=origin)
        assert code == 403
        with pytest.raises(InvalidStatus) as refused:
            connect(live_url(atlas), origin=Origin(origin)).close()
        assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        connect(live_url(atlas), additional_headers={"Host": "evil.example.com"}).close()
    assert refused.value.response.status_code in (403, 421)
    code, headers, _ = ask(atlas, "OPTIONS", "/api/v1/commands", Origin="http://evil.example.com")
    assert code == 403
    assert not [name for name in headers if name.lower().startswith("access-control")]
    with connect(live_url(atlas), origin=Origin(atlas.url())) as live:
        assert json.loads(live.recv(timeout=30))["type"] == "snapshot"


def test_the_token_is_private_and_kept(spawn: Spawn, run_dir: RunDir) -> None:  # noqa: F811
    """0600, long, the same after a restart of ATLAS; another once somebody removes the file."""
    with spawn(*ATLAS) as atlas:
        atlas.url()
        first = run_dir.operator_token.read_text()
    assert stat.S_IMODE(run_dir.operator_token.stat().st_mode) == 0o600
    assert len(first.strip()) >= 40
    token = OperatorToken(run_dir)
    assert token.read() == first.strip()
    run_dir.operator_token.unlink()
    assert token.read() not in ("", first.strip())
    assert stat.S_IMODE(run_dir.operator_token.stat().st_mode) == 0o600
    assert [path.name for path in run_dir.path.glob("operator.token*")] == ["operator.token"]


def test_guessing_is_slowed_and_locks_nobody_out(run_dir: RunDir) -> None:
    """After ten wrong tokens the eleventh waits; the right one is taken at any time, and time forgives."""
    token = OperatorToken(run_dir)
    right = f"Bearer {token.read()}"
    for _ in range(FAILURES_MAX):
        assert not token.is_right("Bearer wrong", 100.0)
    assert token.wait_s(100.0) == 0
    assert not token.is_right(right.replace("Bearer", "Basic"), 100.0)
    assert token.wait_s(100.0) == pytest.approx(5.0)
    assert token.wait_s(105.0) == pytest.approx(0.0)
    assert not token.is_right("", 100.0)
    assert not token.is_right("Bearer \u00e9", 100.0)
    assert token.is_right(right, 100.0)
    assert token.wait_s(100.0) == 0


def test_orders_that_are_not_taken(spawn: Spawn, run_dir: RunDir) -> None:  # noqa: F811
    """No token, a wrong one, no JSON, nonsense, too much: each is told what to do, and nothing happens."""
    atlas = spawn(*ATLAS)
    atlas.url()
    right = f"Bearer {OperatorToken(run_dir).read()}"
    order = {"verb": "restart", "names": ["atlas"]}
    path = "/api/v1/commands"
    code, headers, body = ask(atlas, "POST", path, order)
    assert (code, headers["www-authenticate"]) == (401, "Bearer")
    assert str(run_dir.operator_token) in json.loads(body)["error"]["next"]
    assert ask(atlas, "POST", path, order, Authorization="Bearer wrong")[0] == 401
    assert ask(atlas, "POST", path, order, Authorization=right, Content_Type="text/plain")[0] == 415
    assert ask(atlas, "POST", path, b"x" * 70_000, Authorization=right)[0] == 413
    for nonsense in (
        b"",
        b"[" * 50_000,
        b"\xff",
        {"verb": "restart"},
        {**order, "verb": "explode"},
        {**order, "names": []},
        {**order, "names": ["x"] * 1001},
        {**order, "id": "mine"},
        {**order, "timeout_s": "long"},
    ):
        code, _, body = ask(atlas, "POST", path, nonsense, Authorization=right)
        assert (code, json.loads(body)["error"]["status"]) == (400, 400)
    assert ask(atlas, "POST", path, order, Authorization=right, Idempotency_Key="no spaces")[0] == 400
    assert ask(atlas, "PUT", path, order, Authorization=right)[0] == 405
    assert ask(atlas, "GET", f"{path}/nope")[0] == 404
    for _ in range(FAILURES_MAX + 5):
        code, headers, _ = ask(atlas, "POST", path, order, Authorization="Bearer wrong")
    assert (code, int(headers["retry-after"]) > 0) == (429, True)
    assert "restart" not in atlas.log()


# -- what is told ------------------------------------------------------------------------------------


def view(name: str, **more: Any) -> ServiceView:
    """A service that is well."""
    return msgspec.structs.replace(VIEW, service=name, instance=name, **more)


def test_only_what_changed_is_told() -> None:
    """Nothing while time passes; the changed fields of those that changed; who is new, and who is gone."""
    told = Told()
    changed, gone = told.services([view("a", uptime_s=5.0, seen_s=0.2), view("b", uptime_s=5.0)], 1000.0)
    assert ([row["instance"] for row in changed], gone) == (["a", "b"], [])
    assert changed[0]["began_s"] == 995.0
    later = [view("a", uptime_s=65.3, seen_s=0.9), view("b", uptime_s=65.0, health=HealthStatus.DEGRADED)]
    assert told.services(later, 1060.0) == ([{"instance": "b", "health": HealthStatus.DEGRADED}], [])
    restarted = [view("a", uptime_s=0.5, seen_s=8.0), view("c")]
    changed, gone = told.services(restarted, 1070.0)
    assert changed[0] == {"instance": "a", "began_s": 1069.5, "silent_since_s": 1062.0}
    assert changed[1]["instance"] == "c"
    assert set(changed[1]) == set(told.rows["c"])
    assert gone == ["b"]


def test_events_and_commands_are_told_once() -> None:
    """Each event once, though the list moves on; a command again when it stands differently."""
    told = Told()
    events = [_event(number) for number in range(5)]
    assert told.events(events[:3]) == events[:3]
    assert told.events(events[:3]) == []
    assert told.events(events[1:5]) == events[3:5]
    assert told.events([]) == []
    assert told.events([_event(9)]) == [_event(9)]
    asked = CommandView(id="1", order="o", verb=Verb.RESTART, name="a", asked_by="t", asked_at_s=1.0, stage="asked")
    assert told.commands([asked]) == [asked]
    assert told.commands([asked]) == []
    ended = CommandView(id="1", order="o", verb=Verb.RESTART, name="a", asked_by="t", asked_at_s=1.0, stage="ended")
    assert told.commands([ended]) == [ended]


def _event(number: int) -> Event:
    return msgspec.structs.replace(EVENT, id=f"e{number}")


def test_live(spawn: Spawn) -> None:  # noqa: F811
    """A snapshot, then deltas without a gap that lead to what a later snapshot says; who speaks is sent off."""
    atlas = spawn(*ATLAS)
    with connect(live_url(atlas)) as live:
        first = json.loads(live.recv(timeout=30))
        assert first["type"] == "snapshot"
        fleet = {row["instance"]: row for row in first["services"]}
        seq = first["seq"]
        tiny = spawn(*TINY)

        def hears_tiny() -> bool:
            nonlocal seq
            delta = json.loads(live.recv(timeout=30))
            assert (delta["type"], delta["seq"]) == ("delta", seq + 1)
            seq += 1
            for row in delta.get("services", ()):
                fleet[row["instance"]] = fleet.get(row["instance"], {}) | row
            return bool(fleet.get("tiny", {}).get("health") == "healthy")

        until(hears_tiny)
        assert fleet["tiny"]["pid"] == tiny.pid
        with connect(live_url(atlas)) as other:
            second = json.loads(other.recv(timeout=30))
            row = next(row for row in second["services"] if row["instance"] == "tiny")
            assert set(row) == set(fleet["tiny"])
            assert row["began_s"] == fleet["tiny"]["began_s"]
            other.send("hello?")
            until(lambda: _is_closed(other))
            assert other.close_code == 1008
        until(hears_tiny)


def _is_closed(socket: ClientConnection) -> bool:
    try:
        socket.recv(timeout=10)
    except ConnectionClosed:
        return True
    return False
