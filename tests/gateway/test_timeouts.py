"""A gateway with little patience: what does not come in time is 504 or 408, and said so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.gateway.sockets import Peer, ok
from tests.gateway.support import Fleet, a_fleet, status_of
from tests.support import short_dir, until


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """It waits a fraction of a second where others wait a minute."""
    settings = {"CDN_GATEWAY_CONNECT_S": "0.3", "CDN_GATEWAY_ANSWER_S": "0.5", "CDN_GATEWAY_STALL_S": "0.7"}
    with short_dir() as path, a_fleet(path, **settings) as fleet:
        yield fleet


@contextmanager
def deaf_address() -> Iterator[str]:
    """Where connections are neither made nor refused: the backlog is full, and nobody accepts."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for one in waiting:
            one.close()


def test_connection_that_is_not_made(fleet: Fleet) -> None:
    """504 connect_timeout, for HTTP and WebSocket."""
    with deaf_address() as address:
        fleet.bus.say(status_of("deaf", address=address))
        fleet.known("deaf")
        answer = fleet.ask("GET", "/deaf/")
        assert (answer.status, answer.error["value"]) == (504, "connect_timeout")
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{fleet.port}/deaf/", proxy=None):
            pass
        assert refused.value.response.status_code == 504
        assert b"connect_timeout" in (refused.value.response.body or b"")


def test_answer_that_does_not_come(fleet: Fleet) -> None:
    """504 answer_timeout once the whole request is there; the instance's connection is given up."""
    closed = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.head()
        peer.closed()
        closed.release()

    with fleet.instance("mute", script):
        for method, headers, body in (("GET", (), b""), ("POST", ("Content-Length: 3",), b"abc")):
            answer = fleet.ask(method, "/mute/", *headers, body=body)
            assert (answer.status, answer.error["value"]) == (504, "answer_timeout")
            assert closed.acquire(timeout=30)
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{fleet.port}/mute/", proxy=None):
            pass
        assert refused.value.response.status_code == 504


def test_waiting_for_a_body_is_not_waiting_for_an_answer(fleet: Fleet) -> None:
    """A slow but steady upload may take longer than an answer may."""

    def script(peer: Peer) -> None:
        while head := peer.head():
            assert head
            peer.send(ok(peer.body(8)))

    with fleet.instance("steady", script), fleet.connect() as client:
        client.send(b"POST /steady/ HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
        for number in range(8):
            client.send(b"%d" % number)
            threading.Event().wait(0.1)
        assert client.answer().body == b"01234567"


def test_body_that_stops(fleet: Fleet) -> None:
    """408 for the client's; for the instance's the connection ends."""

    def script(peer: Peer) -> None:
        if b"POST" not in peer.head():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
        peer.closed()

    with fleet.instance("stopping", script):
        answer = fleet.ask("POST", "/stopping/", "Content-Length: 10", body=b"12345")
        assert answer.status == 408
        assert answer.error["limit"] == "0.7 s"
        with fleet.connect() as client:
            client.send(b"GET /stopping/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.rest().endswith(b"12345")


def test_client_that_takes_nothing() -> None:
    """The instance is not held up for it, nor blamed for it."""
    closed = threading.Event()
    payload = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + bytes(100 << 20)

    def script(peer: Peer) -> None:
        peer.head()
        try:
            peer.send(payload)
        except ConnectionError:
            closed.set()

    # With more patience than the others here: on a busy machine the instance may take a while, too.
    with (
        short_dir() as path,
        a_fleet(path, CDN_GATEWAY_STALL_S="3") as fleet,
        fleet.instance("blameless", script),
        fleet.connect() as client,
    ):
        client.send(b"GET /blameless/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert closed.wait(60)
        until(lambda: fleet.metrics()["gateway_clients_gone_total"] > 0)
        assert not any("blameless" in name and "failures" in name for name in fleet.metrics())
