"""WebSockets through a real gateway to a real service."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from tests.gateway.sockets import Peer, dead_address, ok
from tests.gateway.support import Fleet, Process, status_of
from tests.support import until


@pytest.fixture(scope="module", autouse=True)
def echo(fleet: Fleet) -> Iterator[Process]:
    """The service behind."""
    with Process(fleet.run_dir.path, "tests.gateway.echo") as process:
        fleet.routed("echo")
        yield process


def dial(fleet: Fleet, path: str, **options: Any) -> ClientConnection:
    """A WebSocket to the gateway."""
    ws: ClientConnection = connect(f"ws://127.0.0.1:{fleet.port}{path}", proxy=None, **options)
    return ws


def test_messages_pass_both_ways(fleet: Fleet) -> None:
    """Text and binary, empty and large, in order."""
    with dial(fleet, "/echo/x", max_size=None) as ws:
        for message in ("hello", "", "é\U0001f600", b"", b"\x00\xff", "x" * (1 << 20), bytes(3 << 20)):
            ws.send(message)
            assert ws.recv(timeout=30) == message
        for number in range(200):
            ws.send(str(number))
        assert [ws.recv(timeout=30) for _ in range(200)] == [str(number) for number in range(200)]
        ws.send(iter(["in ", "three ", "parts"]))
        assert ws.recv(timeout=30) == "in three parts"


def test_handshake_passes(fleet: Fleet) -> None:
    """Path, query, subprotocols, cookies and origin arrive as they are; what is said of forwarding does not."""
    offered = [Subprotocol("one"), Subprotocol("two")]
    headers = {"Cookie": "c=1", "X-Forwarded-For": "6.6.6.6"}
    target = "/echo/a%2Fb;p//c?q=%20"
    page = f"http://127.0.0.1:{fleet.port}"
    with pytest.raises(InvalidStatus, match="403"):  # another site's: the instance says so, the gateway passes it on
        dial(fleet, target, origin=Origin("http://evil.example"))
    with dial(fleet, target, subprotocols=offered, additional_headers=headers, origin=Origin(page)) as ws:
        assert ws.subprotocol == "two"
        assert ws.response is not None
        assert ws.response.headers["Set-Cookie"] == "a=1"
        ws.send("head")
        lines = str(ws.recv(timeout=30)).split("\n")
        assert lines[0] == "/a%2Fb;p//c?q=%20"
        wanted = {"cookie: c=1", f"origin: {page}", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"}
        assert wanted | {"x-forwarded-prefix: /echo", "via: 1.1 gateway-primary"} <= set(lines)
        assert "6.6.6.6" not in "".join(lines)


def test_ping_is_answered(fleet: Fleet) -> None:
    """By the gateway, hop by hop."""
    with dial(fleet, "/echo/") as ws:
        assert ws.ping().wait(timeout=30)


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, "away"), (4321, "own code"), (1011, "broken")])
def test_close_of_the_instance_reaches_the_client(fleet: Fleet, code: int, reason: str) -> None:
    """After everything that was said before it."""
    with dial(fleet, "/echo/") as ws:
        ws.send(f"close {code} {reason}")
        assert ws.recv(timeout=30) == "last words"
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)


def test_close_of_the_client_reaches_the_instance(fleet: Fleet) -> None:
    """With its code and reason; a client that just vanishes is no code at all."""

    def told(code: str) -> bool:
        with dial(fleet, "/echo/") as ws:
            ws.send("closed")
            return code in str(ws.recv(timeout=30)).split("\n")

    with dial(fleet, "/echo/") as ws:
        ws.close(4999, "enough")
    until(lambda: told("4999 enough"))
    assert not told("1005")
    ws = dial(fleet, "/echo/")
    ws.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: told("1005"))


def test_answers_that_are_no_websocket_are_passed_on(fleet: Fleet) -> None:
    """The instance's own refusal, with its status, headers and body."""
    with pytest.raises(InvalidStatus) as refused, dial(fleet, "/echo/refused"):
        pass
    response = refused.value.response
    assert (response.status_code, response.headers["X-Why"], response.body) == (401, "because", b"who are you?")

    def script(peer: Peer) -> None:
        while peer.head():
            peer.send(ok(b"just HTTP"))

    with fleet.instance("plain", script), pytest.raises(InvalidStatus) as plain, dial(fleet, "/plain/x"):
        pass
    assert (plain.value.response.status_code, plain.value.response.body) == (200, b"just HTTP")


def test_errors_before_the_handshake_is_done(fleet: Fleet) -> None:
    """The same statuses and reasons as for HTTP; in the log none is called an error of the gateway's own."""
    fleet.bus.say(status_of("ws-gone", address=dead_address()))
    fleet.known("ws-gone")

    def garbage(peer: Peer) -> None:
        peer.head()
        peer.send(b"SSH-2.0\r\n\r\n")

    with fleet.instance("ws-garbage", garbage):
        for path, status in (("/ws-gone/", 502), ("/nobody/", 404), ("/echo/../x", 400), ("/ws-garbage/", 502)):
            with pytest.raises(InvalidStatus) as refused, dial(fleet, path):
                pass
            assert refused.value.response.status_code == status
            assert b'{"error":{"status":%d' % status in refused.value.response.body
    assert "completing handshake" not in fleet.gateway.log()


def test_instance_that_dies_is_bad_gateway(fleet: Fleet, echo: Process) -> None:
    """Close code 1014, after what it had said. Last, as it takes the service with it."""
    with dial(fleet, "/echo/") as ws:
        ws.send("one")
        assert ws.recv(timeout=30) == "one"
        ws.send("die")
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1014
    lost = 'gateway_upstream_failures_total{upstream="echo",kind="truncated"}'
    until(lambda: fleet.metrics().get(lost) == 1.0)
