"""Large bodies through a real gateway process: whole, in bounded memory, at the pace of the slower side."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import psutil
import pytest

from tests.gateway.echo import BLOCK
from tests.gateway.sockets import Peer, ok
from tests.gateway.support import Fleet, Process, a_fleet
from tests.support import short_dir, until

BODY_BYTES = 1 << 30
GROWTH_MAX_BYTES = BODY_BYTES // 16
"""The gateway itself is some 40 MB; a body held in memory would be a gigabyte."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """A gateway and a service that takes and gives."""
    with short_dir() as path, a_fleet(path) as fleet, Process(path, "tests.gateway.echo"):
        fleet.routed("echo")
        yield fleet


class Peak:
    """The most memory that a process has held while this is watched."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before_bytes = self.most_bytes = self._process.memory_info().rss

    def look(self) -> None:
        """Now."""
        self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)

    @property
    def growth_bytes(self) -> int:
        """Since the beginning."""
        return self.most_bytes - self.before_bytes


def test_a_gigabyte_down(fleet: Fleet) -> None:
    """Byte for byte, without the gateway growing."""
    expected, got = hashlib.blake2b(), hashlib.blake2b()
    peak, left, turns = Peak(fleet.gateway.pid), BODY_BYTES, 0
    with fleet.connect() as client:
        client.send(f"GET /echo/down/{BODY_BYTES} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while b"\r\n\r\n" not in client.pending:
            client.more()
        chunk = client.pending.partition(b"\r\n\r\n")[2]
        while True:
            got.update(chunk)
            left -= len(chunk)
            turns += 1
            if turns % 500 == 0:
                peak.look()
            if left <= 0:
                break
            chunk = client.socket.recv(1 << 18)
            assert chunk
    for _ in range(BODY_BYTES // len(BLOCK)):
        expected.update(BLOCK)
    assert got.digest() == expected.digest()
    assert peak.growth_bytes < GROWTH_MAX_BYTES


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_gigabyte_up(fleet: Fleet, framing: str) -> None:
    """Whole, without the gateway growing."""
    peak = Peak(fleet.gateway.pid)
    block = bytes(1 << 20)
    head = f"Content-Length: {BODY_BYTES}" if framing == "length" else "Transfer-Encoding: chunked"
    piece = block if framing == "length" else b"%x\r\n%b\r\n" % (len(block), block)
    with fleet.connect() as client:
        client.socket.settimeout(60)
        client.send(f"POST /echo/up HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        for _ in range(BODY_BYTES // len(block)):
            client.send(piece)
            peak.look()
        if framing == "chunked":
            client.send(b"0\r\n\r\n")
        assert client.answer().body == b"%d" % BODY_BYTES
    assert peak.growth_bytes < GROWTH_MAX_BYTES


def test_slow_reader_holds_the_instance_back(fleet: Fleet) -> None:
    """What a client does not read is not fetched from the instance, beyond what buffers hold."""
    sent = [0]
    stuck = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES)
        peer.socket.settimeout(2)
        try:
            while True:
                sent[0] += peer.socket.send(BLOCK)
        except TimeoutError:
            stuck.set()

    with fleet.instance("fast", script), fleet.connect() as client:
        peak = Peak(fleet.gateway.pid)
        client.send(b"GET /fast/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stuck.wait(60)
        peak.look()
        assert sent[0] < BODY_BYTES // 16
        assert peak.growth_bytes < GROWTH_MAX_BYTES


def test_slow_instance_holds_the_client_back(fleet: Fleet) -> None:
    """What an instance does not read is not fetched from the client, beyond what buffers hold."""
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        assert release.wait(60)

    with fleet.instance("lazy", script), fleet.connect() as client:
        peak = Peak(fleet.gateway.pid)
        client.send(b"POST /lazy/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES)
        client.socket.settimeout(2)
        sent = 0
        try:
            while sent < BODY_BYTES // 16:
                sent += client.socket.send(BLOCK)
        except TimeoutError:
            peak.look()
        finally:
            release.set()
        assert sent < BODY_BYTES // 16
        assert peak.growth_bytes < GROWTH_MAX_BYTES


def test_many_at_once(fleet: Fleet) -> None:
    """A hundred clients at a time, and nobody gets another's answer."""

    def script(peer: Peer) -> None:
        while head := peer.head():
            peer.send(ok(head.split()[1]))

    failures: list[object] = []

    def one(number: int) -> None:
        try:
            with fleet.connect() as client:
                for turn in range(20):
                    client.send(b"GET /many/%d/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (number, turn))
                    assert client.answer().body == b"/%d/%d" % (number, turn)
        except (AssertionError, OSError) as error:
            failures.append(error)

    with fleet.instance("many", script):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        until(lambda: fleet.metrics()["gateway_upstream_in_flight"] == 0)
