"""Heads without end and heads that never come: refused before they cost anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

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


class Narrow(BoundedHttp):
    """Has room for three."""

    @staticmethod
    def connections_max() -> int:
        return 3


BEGUN = threading.Semaphore(0)
"""Released for each request that keeps the server busy, once it has it."""


async def answer_by_path(scope: Any, receive: Any, send: Any) -> None:
    """204; once its body is there; after half a minute; or more than its client takes."""
    body = b""
    match scope["path"]:
        case "/body":
            while (await receive()).get("more_body"):
                continue
        case "/busy":
            BEGUN.release()
            await asyncio.sleep(30)
        case "/much":
            body = b"x" * (64 << 20)
    headers = [(b"content-length", b"%d" % len(body))] if body else []
    await send({"type": "http.response.start", "status": 200 if body else 204, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def served_by(protocol: type[BoundedHttp]) -> Iterator[int]:
    """The port of a server on it."""
    port = free_port()
    config = uvicorn.Config(
        answer_by_path,
        port=port,
        http=protocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    until(lambda: server.started)
    yield port
    server.should_exit = True
    thread.join()


@pytest.fixture
def hasty_port() -> Iterator[int]:
    """Of a server with little patience."""
    with served_by(Hasty) as port:
        yield port


@pytest.fixture
def narrow_port() -> Iterator[int]:
    """Of a server with little room."""
    with served_by(Narrow) as port:
        yield port


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


def test_an_empty_line_does_not_stop_the_clock(hasty_port: int) -> None:
    """Behind an answer it begins no request, and the connection is not idle for ever."""
    with Client(hasty_port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.answer().status == 204
        client.send(b"\r\n")
        assert client.answer().status == 408
        assert client.rest() == b""


WAITING = {
    "nothing": b"",
    "part of a head": b"GET / HTTP/1.1\r\nHo",
    "an answered request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "part of a body": b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1",
    "a request whose answer it does not take": b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n",
}
BUSY = b"GET /busy HTTP/1.1\r\nHost: x\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def busy_connections(port: int, many: int) -> Iterator[list[Client]]:
    """So many whose requests are being answered."""
    clients = [Client(port) for _ in range(many)]
    try:
        for client in clients:
            client.send(BUSY)
        for _ in clients:
            assert BEGUN.acquire(timeout=30)
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("said", WAITING.values(), ids=WAITING.keys())
def test_who_keeps_it_waiting_makes_room(narrow_port: int, said: bytes) -> None:
    """Not those whose requests are being answered, though they have been there for longer."""
    with busy_connections(narrow_port, 2) as busy, Client(narrow_port) as waiting:
        waiting.send(said)
        until(lambda: is_served(narrow_port))
        with suppress(ConnectionError):
            waiting.rest()  # until it is closed
        for client in busy:
            client.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):  # neither answered nor closed
                client.socket.recv(1)


def is_served(port: int) -> bool:
    """Whether one more is."""
    with Client(port) as client:
        client.send(GET)
        return client.answer().status == 204


def test_where_all_are_busy_one_more_is_told(narrow_port: int) -> None:
    """503 with the limit; and there is room again once one of them has gone."""
    with busy_connections(narrow_port, 3) as busy:
        with Client(narrow_port) as client:
            client.send(GET)
            answer = client.answer()
        assert (answer.status, answer.error["limit"]) == (503, 3)
        busy[0].close()
        until(lambda: is_served(narrow_port))
