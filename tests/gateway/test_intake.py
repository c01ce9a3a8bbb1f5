"""Heads without end and heads that never come: refused before they cost anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import psutil
import pytest
import uvicorn

from cdn_daemon.intake import HEAD_MAX_BYTES, HEADERS_MAX, BoundedHttp
from tests.gateway.sockets import Client, Peer, echoing_heads
from tests.gateway.support import Fleet
from tests.support import free_port, until

MUCH_BYTES = 100 << 20


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /x/ HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 65536),
        (b"GET /x/ HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n" * 10_000),
        (b"GET /x/", b"a" * 65536),
        (b"GET /x/ HTTP/1.1\r\nHost: x\r\n", b"a" * 65536),
        (b"POST /x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
        (b"POST /x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65536),
        (b"POST /x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 10_000),
    ],
)
def test_endless_heads_are_not_gathered(fleet: Fleet, start: bytes, more: bytes) -> None:
    """The connection is closed early on, and the gateway has not grown by what was sent."""
    process = psutil.Process(fleet.gateway.pid)
    before_bytes, sent = process.memory_info().rss, 0
    with fleet.connect() as client:
        client.send(start)
        with pytest.raises(ConnectionError):
            while sent < MUCH_BYTES:
                sent += client.socket.send(more)
    assert sent < MUCH_BYTES
    assert process.memory_info().rss - before_bytes < MUCH_BYTES // 4
    assert fleet.ask("GET", "/nobody/").status == 404


def test_head_over_the_limit_is_told(fleet: Fleet) -> None:
    """431 with the limit, if the client listens."""
    with fleet.connect() as client:
        client.send(b"GET /x/ HTTP/1.1\r\nHost: x\r\nX: " + b"a" * HEAD_MAX_BYTES)
        answer = client.answer()
        assert (answer.status, answer.error["limit"]) == (431, HEAD_MAX_BYTES)


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"POST /x/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 12000000\r\n\r\n", 413),
        (b"POST /x/ HTTP/1.0\r\nContent-Length: 12000000\r\n\r\n", 413),
        (b"POST /a/../b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb71b00\r\n", 400),
        (b"POST /x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST /x/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"GET /x/ HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * (HEADERS_MAX + 1), 431),
    ],
)
def test_who_sends_all_before_reading_can_still_read_the_refusal(fleet: Fleet, start: bytes, status: int) -> None:
    """The connection is not reset under it: what it sends is thrown away, until it has closed or had its time."""
    with fleet.connect() as client:
        client.send(start)
        client.send(b"x" * 12_000_000)
        answer = client.answer()
        assert (answer.status, answer.error["status"]) == (status, status)
        assert client.rest() == b""
    assert fleet.ask("GET", "/nobody/").status == 404


def test_what_the_parser_refuses_is_told_in_its_words(fleet: Fleet) -> None:
    """JSON, as every refusal; also where the application had begun to take the request."""
    head = b"POST /parsed/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    with fleet.instance("parsed", lambda peer: peer.closed()):
        for request, said in (
            (head + b"Content-Length: 4\r\n\r\n", "Content-Length"),
            (head + b"\r\nxyz\r\n", "chunk size"),
            (b"nonsense\r\n\r\n", "method"),
        ):
            with fleet.connect() as client:
                client.send(request)
                assert said in client.answer().error["what"]
                assert client.rest() == b""


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"POST /x/ HTTP/1.1\r\nContent-Length: 3\r\n", "body"),
        (b"GET /x/ HTTP/1.1\r\nCookie: " + b"a" * 10_000 + b"\r\n", "8192 bytes"),
        (b"GET /x/ HTTP/1.1\r\n" + b"a: b\r\n" * 200, "128 headers"),
    ],
)
def test_a_websocket_that_cannot_be_one_is_told(fleet: Fleet, start: bytes, said: str) -> None:
    """Where the server's WebSocket side reads less than its HTTP side, nobody is left without an answer."""
    rest = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with fleet.connect() as client:
        client.send(start + rest + b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n")
        answer = client.answer()
        assert answer.error["status"] == 400
        assert said in answer.error["what"]
        assert client.rest() == b""


def test_nonsense_behind_a_request_is_no_answer_to_it(fleet: Fleet) -> None:
    """The connection ends without one: a refusal would be taken for the instance's word."""
    asked, go = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        asked.set()
        go.wait(30)

    with fleet.instance("behind", script), fleet.connect() as client:
        client.send(b"GET /behind/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert asked.wait(30)
        client.send(b"nonsense\r\n\r\n")
        assert client.rest() == b""
        go.set()


def test_large_bodies_are_not_heads(fleet: Fleet) -> None:
    """What is parsed as a body counts towards no head."""
    with fleet.instance("bulky", echoing_heads), fleet.connect() as client:
        for _ in range(3):
            client.send(b"POST /bulky/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000)
            assert client.answer().status == 200


class Hasty(BoundedHttp):
    """Waits a fraction of a second."""

    head_s = 0.3


@pytest.fixture
def hasty_port() -> Iterator[int]:
    """A server on Hasty that answers 204 to everything."""

    async def app(scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    port = free_port()
    config = uvicorn.Config(app, port=port, http=Hasty, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    until(lambda: server.started)
    yield port
    server.should_exit = True
    thread.join()


def test_head_that_does_not_come(hasty_port: int) -> None:
    """408, for a connection that says nothing and for one that stops in the middle; an idle one is left alone."""
    for start in (b"", b"GET / HTTP/1.1\r\nHo"):
        with Client(hasty_port) as client:
            client.send(start)
            answer = client.answer()
            assert (answer.status, answer.error["limit"]) == (408, "0.3 s")
            assert client.rest() == b""
    with Client(hasty_port) as client:
        for _ in range(3):
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.answer().status == 204
            threading.Event().wait(0.4)
