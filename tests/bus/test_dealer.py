"""The DEALER without ZeroMQ's library, before a real ROUTER and before those who are none."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bus.codec import MAX_REPLY_BYTES
from bus.dealer import Dealer, NotThere
from bus.messages import FleetRequest
from bus.operators import AtlasSilent, OperatorLink

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x06\x05READY"


def soon() -> float:
    """A deadline that no honest answer misses."""
    return time.monotonic() + 30


@contextmanager
def saying(path: Path, content: bytes) -> Iterator[None]:
    """Somebody who listens there, says that to the first who comes, and leaves."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # closing at once would tell by an error what is to be told by the end
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()
        path.unlink()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, MAX_REPLY_BYTES])
def test_a_router_takes_it_for_one_of_its_own(run_path: Path, size: int) -> None:
    """Frames of every length go there and back."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(f"ipc://{run_path}/r.sock")
    dealer = Dealer(f"{run_path}/r.sock")
    try:
        dealer.connect(soon())
        dealer.send(b"x" * size, soon())
        assert router.poll(30_000)
        name, frame = router.recv_multipart()
        assert frame == b"x" * size
        for answer in (frame, b"", b"more"):
            router.send_multipart([name, answer])
        assert [dealer.receive(soon()) for _ in range(3)] == [frame, b"", b"more"]
        with pytest.raises(TimeoutError):
            dealer.receive(time.monotonic() + 0.05)
        assert dealer.is_connected
    finally:
        dealer.close()
        router.close(linger=0)
        context.term()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100,
        GREETING[:30],
        GREETING,
        GREETING.replace(b"\x03\x00NULL", b"\x01\x00NULL"),
        GREETING + b"\x04\x06\x05ERROR",
        GREETING + b"\x00\x05hello",
        GREETING + b"\x06" + (1 << 40).to_bytes(8, "big"),
    ],
)
def test_who_is_no_router_is_found_out(run_path: Path, content: bytes) -> None:
    """Before anything is sent to it."""
    with saying(run_path / "r.sock", content):
        dealer = Dealer(str(run_path / "r.sock"))
        with pytest.raises(NotThere):
            dealer.connect(soon())
        assert not dealer.is_connected
        with pytest.raises(NotThere):
            dealer.send(b"x", soon())


def test_a_frame_over_the_limit_ends_the_connection(run_path: Path) -> None:
    """Its length is enough: nothing of that size is waited for."""
    too_long = b"\x02" + (MAX_REPLY_BYTES + 1).to_bytes(8, "big")
    with saying(run_path / "r.sock", GREETING + READY + too_long):
        dealer = Dealer(str(run_path / "r.sock"))
        dealer.connect(soon())
        with pytest.raises(NotThere, match="the limit is"):
            dealer.receive(soon())
        assert not dealer.is_connected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_no_answer(run_path: Path, noise: bytes) -> None:
    """After a handshake as it should be, nothing but an OSError or what is a frame by chance."""
    with saying(run_path / "r.sock", GREETING + READY + noise):
        dealer = Dealer(str(run_path / "r.sock"))
        dealer.connect(soon())
        try:
            while True:
                assert len(dealer.receive(soon())) <= len(noise)
        except OSError:
            assert not dealer.is_connected
        dealer.close()


def test_an_atlas_that_stops_listening_is_silent(run_path: Path) -> None:
    """Whether it is stopped before the handshake or ends after it."""
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(run_path / "r.sock"))
        stopped.listen()
        link = OperatorLink(f"ipc://{run_path}/r.sock")
        with pytest.raises(AtlasSilent, match="does not listen"):
            link.request(FleetRequest(id="1"), timeout_s=0.1)
    (run_path / "r.sock").unlink()
    with saying(run_path / "r.sock", GREETING + READY):
        link.request(FleetRequest(id="1"), timeout_s=30)
        with pytest.raises(AtlasSilent, match="no answer"):
            next(link.replies("1", timeout_s=0.1))
        link.close()
