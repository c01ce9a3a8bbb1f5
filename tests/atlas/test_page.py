"""ATLAS's page and what it is made of: files, the live feed, orders by HTTP, and who is kept out."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import re
import shutil
import socket
import stat
import subprocess
import urllib.parse
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from bus.endpoints import RunDir
from bus.messages import CommandView, Event, HealthStatus, ServiceView, Verb
from cdn_daemon.origins import is_own_name
from services.atlas import live
from services.atlas.access import FAILURES_MAX, OperatorToken
from services.atlas.changes import Told
from services.atlas.page_files import FOLDER
from services.atlas.switchboard import Switchboard
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


COLOURS = ("healthy", "degraded", "failing", "changing", "stopped", "unknown")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_their_ground(scheme: str) -> None:
    """Every text has the contrast of WCAG AA, 4.5 to 1, on every ground that it stands on."""
    light, _, dark = (FOLDER / "css" / "base.css").read_text().partition("prefers-color-scheme: dark")
    colour = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{3,6});", light if scheme == "light" else dark))
    pairs = [(text, ground) for text in ("ink", "ink-2", "ink-3", *COLOURS) for ground in ("ground", "surface")]
    pairs += [(name, f"{name}-wash") for name in COLOURS]
    pairs += [("ink", "changing-wash"), ("ink-2", "changing-wash"), ("ink-2", "sunken"), ("accent", "surface")]
    pairs += [("accent-ink", "accent"), ("surface", "failing")]
    for text, ground in pairs:
        assert _contrast(colour[text], colour[ground]) >= 4.5, f"{text} on {ground}"


def _contrast(one: str, other: str) -> float:
    """https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio"""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


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
    for path in ("/", "/api/v1/fleet", "/api/v1/commands/1", "/metrics", "/ooda"):
        code, headers, body = ask(atlas, "GET", path, Host="evil.example.com")
        assert (code, json.loads(body)["error"]["value"]) == (421, "evil.example.com")
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
    with connect(live_url(atlas), origin=Origin(atlas.url())) as feed:
        assert json.loads(feed.recv(timeout=30))["type"] == "snapshot"


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
    code, headers, _ = ask(atlas, "PUT", path, order, Authorization=right)
    assert (code, headers["allow"]) == (405, "GET, HEAD, POST")
    assert ask(atlas, "GET", f"{path}/nope")[0] == 404
    for _ in range(FAILURES_MAX + 5):
        code, headers, _ = ask(atlas, "POST", path, order, Authorization="Bearer wrong")
    assert (code, int(headers["retry-after"]) > 0) == (429, True)
    assert "restart" not in atlas.log()


def test_who_leaves_in_the_middle_is_no_fault_of_atlas(spawn: Spawn, run_dir: RunDir) -> None:  # noqa: F811
    """An order whose body does not come is nothing to be told of with a stack for each."""
    atlas = spawn(*ATLAS)
    address = urllib.parse.urlsplit(atlas.url())
    token = OperatorToken(run_dir).read()
    lines = (f"Host: {address.netloc}", f"Authorization: Bearer {token}", "Content-Type: application/json")
    head = "\r\n".join(("POST /api/v1/commands HTTP/1.1", *lines, "Content-Length: 100", "", "{"))
    for _ in range(20):
        with socket.create_connection((address.hostname or "", address.port or 0)) as client:
            client.sendall(head.encode())
    for _ in range(20):
        assert ask(atlas, "GET", "/api/v1/fleet")[0] == 200
    assert "Traceback" not in atlas.log()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_order_of_the_document_is_taken(spawn: Spawn, run_dir: RunDir) -> None:  # noqa: F811
    """docs/page.md's curl gives it, and its command can be asked for; the same key twice is one order."""
    found = re.search(r"```sh\n(curl .*?)```", (ROOT / "docs" / "page.md").read_text(), re.DOTALL)
    assert found
    atlas = spawn(*ATLAS)
    command = found[1].replace("http://127.0.0.1:18500", atlas.url()).replace("run/", f"{run_dir.path}/")
    answer = subprocess.run(
        command.replace("curl ", "curl -sS -H 'Idempotency-Key: 12345678' ", 1),
        shell=True,
        check=True,
        capture_output=True,
        timeout=60,
    )
    given = json.loads(answer.stdout)
    assert list(given["commands"]) == ["cdn-data-fabric"]
    token = f"Bearer {OperatorToken(run_dir).read()}"
    order = {"verb": "restart", "names": ["cdn-data-fabric"]}
    code, _, body = ask(atlas, "POST", "/api/v1/commands", order, Authorization=token, Idempotency_Key="12345678")
    assert (code, json.loads(body)) == (202, given)
    code, _, body = ask(atlas, "GET", f"/api/v1/commands/{given['commands']['cdn-data-fabric']}")
    assert (code, json.loads(body)["asked_by"]) == (200, "http@127.0.0.1")


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
    with connect(live_url(atlas)) as feed:
        first = json.loads(feed.recv(timeout=30))
        assert first["type"] == "snapshot"
        fleet = {row["instance"]: row for row in first["services"]}
        seq = first["seq"]
        tiny = spawn(*TINY)

        def hears_tiny() -> bool:
            nonlocal seq
            delta = json.loads(feed.recv(timeout=30))
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
        with connect(live_url(atlas)) as other:
            other.send("x" * 2000)
            until(lambda: _is_closed(other))
            assert other.close_code == 1009, "what is long is not even gathered"
        until(hears_tiny)


class _Switchboard:
    """As much of one as the live feed asks."""

    def __init__(self) -> None:
        self.seen = 0

    def views(self) -> list[ServiceView]:
        self.seen += 1
        return [view("a", restarts=self.seen)]

    def notes(self) -> tuple[str, ...]:
        return ()

    def events(self, limit: int) -> list[Event]:
        return []

    def commands(self, limit: int) -> list[CommandView]:
        return []


class _Client:
    """A WebSocket whose other end reads when it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.heard: list[Any] = []
        self.refused: int | None = None

    async def accept(self) -> None:
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("it never says anything")

    async def send_text(self, text: str) -> None:
        await self.reads.wait()
        self.heard.append(json.loads(text))

    async def send_denial_response(self, response: Any) -> None:
        self.refused = response.status_code

    async def hears(self, number: int) -> None:
        while len(self.heard) < number:
            await asyncio.sleep(0.005)


def test_who_does_not_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stalls costs the others nothing, and continues with a snapshot; one for good is dropped; one too many
    is refused."""
    monkeypatch.setattr(live, "PERIOD_S", 0.005)
    monkeypatch.setattr(live, "SHARE", 1000.0)
    monkeypatch.setattr(live, "CLIENTS_MAX", 2)

    async def play() -> None:
        feed = live.Live(cast(Switchboard, _Switchboard()))
        quick, slow, third = _Client(), _Client(), _Client()
        serving = [asyncio.create_task(feed.serve(cast(WebSocket, client))) for client in (quick, slow)]
        await slow.hears(3)
        await feed.serve(cast(WebSocket, third))
        assert (third.refused, third.heard) == (503, [])
        slow.reads.clear()
        at = len(quick.heard)
        await quick.hears(at + 2 * live.DELTAS_KEPT)
        stalled_at = len(slow.heard)
        slow.reads.set()
        await slow.hears(stalled_at + 3)
        for client in (quick, slow):
            assert [message["type"] for message in client.heard].count("snapshot") == (1 if client is quick else 2)
            for before, after in itertools.pairwise(client.heard):
                assert after["type"] == "snapshot" or after["seq"] == before["seq"] + 1
        monkeypatch.setattr(live, "SEND_S", 0.05)
        slow.reads.clear()
        await asyncio.wait_for(serving[1], 60)
        await quick.hears(len(quick.heard) + 2)
        serving[0].cancel()

    asyncio.run(asyncio.wait_for(play(), 90))


def _is_closed(socket: ClientConnection) -> bool:
    try:
        socket.recv(timeout=10)
    except ConnectionClosed:
        return True
    return False
