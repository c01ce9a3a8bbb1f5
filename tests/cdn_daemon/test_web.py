"""The exposition: what a service measures, as Prometheus reads it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from bus.messages import DaemonStatus, OodaMode, ServiceMetrics
from cdn_daemon.exposition import exposition
from cdn_daemon.ooda import Cycle, OodaLoop
from cdn_daemon.service import ASGIApp
from cdn_daemon.web import ServiceApp, Traffic, error_body, nothing_here
from tests.bus.samples import STATUS


def lines(values: dict[str, float]) -> list[str]:
    """Of the service's own metrics with these values."""
    text = exposition(replace(STATUS, metrics=ServiceMetrics(values=values)))
    assert text.endswith("\n")
    return [line for line in text.splitlines() if "cdn_service" not in line]


def test_own_metrics() -> None:
    """A name with or without labels; each name is described once, whatever labels it comes with."""
    labels = 'service="cdn-data-fabric",instance_id="cdn-data-fabric"'
    assert lines({"rows_total": 2.0, 'up{to="a",by="x-1"}': 1.0, 'up{to="b"}': 0.0}) == [
        "# HELP rows_total See the service's documentation.",
        "# TYPE rows_total counter",
        f"rows_total{{{labels}}} 2.0",
        "# HELP up See the service's documentation.",
        "# TYPE up gauge",
        f'up{{{labels},to="a",by="x-1"}} 1.0',
        f'up{{{labels},to="b"}} 0.0',
    ]


def test_what_would_break_the_format_is_left_out() -> None:
    """Names and labels that are none, injected lines among them."""
    assert lines({"Rows": 1, "a b": 1, 'a{b="\n"}': 1, 'a{b="""}': 1, "a{b}": 1, "a\nb 1": 1, "9a": 1}) == []


class Someone:
    """Whom a service's answers are about."""

    ooda: OodaLoop[Any, Any, Any] = OodaLoop()

    def status(self) -> DaemonStatus:
        return STATUS


def asked(app: ASGIApp, path: str = "/", method: str = "GET") -> tuple[int, bytes]:
    """Status and body of what the service answers."""
    served = app if isinstance(app, ServiceApp) else ServiceApp(app, Traffic())
    served.subject = Someone()
    sent: list[Any] = []
    given = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not given:
            await asyncio.Event().wait()  # the client stays
        return given.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "raw_path": path.encode(), "method": method, "headers": [],
             "query_string": b"", "root_path": "", "scheme": "http", "server": ("x", 1)}  # fmt: skip
    asyncio.run(served(scope, receive, send))
    assert [message["type"] for message in sent].count("http.response.start") == 1
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


class Nameless:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("picture", [{"\udc80": 1}, Nameless(), 1 << 80, {"a": [Nameless()]}])
def test_whatever_a_loop_keeps_is_shown(picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What JSON cannot have is a text, and the rest is as it is."""
    loop: OodaLoop[Any, Any, Any] = OodaLoop()
    loop.cycles.append(Cycle(at_s=1.0, mode=OodaMode.ON, observation={"a": 1}, picture=picture))
    monkeypatch.setattr(Someone, "ooda", loop)
    code, body = asked(nothing_here, "/ooda")
    assert code == 200
    (cycle,) = msgspec.json.decode(body)["cycles"]
    assert cycle["observation"] == {"a": 1}
    assert isinstance(cycle["picture"], str | int)


def test_a_label_that_is_no_text() -> None:
    """Costs itself, not the other metrics."""
    served = ServiceApp(nothing_here, Traffic(), lambda _: 'a{b="\udc80"} 1\n')
    assert asked(served, "/metrics") == (200, b'a{b="?"} 1\n')


@pytest.mark.parametrize("app", [nothing_here, Starlette()], ids=["no application", "Starlette"])
def test_the_root_of_who_has_none(app: ASGIApp) -> None:
    """Who it is and where to look, so that a link to a service's address leads somewhere."""
    code, body = asked(app)
    root = msgspec.json.decode(body)
    assert (code, root["instance"], root["incarnation"], root["health"]) == (
        200,
        STATUS.instance,
        STATUS.incarnation,
        STATUS.health,
    )
    for path in root["paths"]:
        assert asked(app, path)[0] == 200
    assert asked(app, method="HEAD") == (200, b"")
    assert asked(app, "/other")[0] == 404
    assert asked(app, method="DELETE")[0] == 404


def test_the_root_of_who_has_one() -> None:
    """It is never ours: neither a page, nor a 404 that says where to look, nor one that is a page itself."""

    def only(answer: Any) -> Starlette:
        async def root(_: object) -> Any:
            return answer()

        return Starlette(routes=[Route("/", root)])

    own = error_body(404, "cannot route to nothing", next="known services: web")
    assert asked(only(lambda: PlainTextResponse("mine"))) == (200, b"mine")
    assert asked(only(lambda: PlainTextResponse(own, 404))) == (404, own)
    assert asked(only(lambda: PlainTextResponse("x" * 5000, 404))) == (404, b"x" * 5000)
    assert asked(only(lambda: JSONResponse({}, 410))) == (410, b"{}")
    parts = [b"y" * 3000] * 3
    assert asked(only(lambda: StreamingResponse(iter(parts), 404))) == (404, b"y" * 9000)
