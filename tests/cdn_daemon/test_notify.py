"""The notify plane, sender's side, as systemd or any other supervisor sees it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdn_daemon.notify import Notifier
from tests.support import ServiceProcess, until


@pytest.fixture
def supervisor(run_path: Path) -> Iterator[socket.socket]:
    """A datagram socket such as systemd has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(run_path / "systemd.sock"))
        listener.settimeout(30)
        yield listener


def receive_until(listener: socket.socket, wanted: str) -> list[str]:
    """All lines, up to the first datagram that has the wanted one."""
    lines: list[str] = []
    while wanted not in lines:
        lines += listener.recv(4096).decode().splitlines()
    return lines


def test_under_systemd(run_path: Path, supervisor: socket.socket) -> None:
    """READY once it serves and not before, WATCHDOG=1 from then on, STOPPING when it drains."""
    env = {"NOTIFY_SOCKET": str(run_path / "systemd.sock"), "WATCHDOG_USEC": "1000000"}
    with ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", **env) as tiny:
        lines = receive_until(supervisor, "READY=1")
        assert "WATCHDOG=1" not in lines[: lines.index("READY=1")]
        assert tiny.get("/")[0] == 200
        receive_until(supervisor, "WATCHDOG=1")
        os.kill(tiny.pid, signal.SIGTERM)
        assert "STATUS=draining" in receive_until(supervisor, "STOPPING=1")
        assert tiny.wait() == 0


def test_a_configuration_error_is_told(run_path: Path, supervisor: socket.socket) -> None:
    """The supervisor hears why, not only that."""
    env = {"NOTIFY_SOCKET": str(run_path / "systemd.sock"), "CDN_PORT": "http"}
    with ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", **env) as tiny:
        assert tiny.wait() == 78
    assert receive_until(supervisor, "ERRNO=78")[0].startswith("STATUS=cannot use CDN_PORT=http")


def test_a_stall_is_told(run_path: Path, supervisor: socket.socket) -> None:
    """WATCHDOG=trigger with the reason; and when nobody acts on it, the process ends itself."""
    env = {"NOTIFY_SOCKET": str(run_path / "systemd.sock"), "CDN_LIMIT_LOOP_LAG_S": "0.2:0.5"}
    with ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", **env) as tiny:
        receive_until(supervisor, "READY=1")
        with pytest.raises(OSError):
            tiny.get("/block?s=3600")
        lines = receive_until(supervisor, "WATCHDOG=trigger")
        assert any(line.startswith("STATUS=blocked loop: loop_lag_s") for line in lines)
        assert tiny.wait() == 70


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "600000"}, 0.6),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "0"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "²"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "600000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "600000", "WATCHDOG_PID": str(os.getpid())}, 0.6),
    ],
)
def test_watchdog_settings(environ: dict[str, str], watchdog_s: float | None) -> None:
    """WATCHDOG_USEC as sd_watchdog_enabled(3) reads it: meant for this pid, and a number."""
    assert Notifier(environ).watchdog_s == watchdog_s


def test_abstract_sockets_and_newlines() -> None:
    """An address that begins with @ is abstract; a text cannot add lines of its own."""
    name = f"cdn-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + name})
        assert notifier.send(STATUS="well\nREADY=1")
        assert listener.recv(4096) == b"STATUS=well READY=1"


def test_a_text_without_end(run_path: Path, supervisor: socket.socket) -> None:
    """It is cut: a datagram that nobody takes whole would take what is said with it, and after it, along."""
    notifier = Notifier({"NOTIFY_SOCKET": str(run_path / "systemd.sock")})
    for length in (5_000, 5_000_000):
        assert notifier.send(STATUS="\U0001f600" * length, ERRNO=78)
        assert supervisor.recv(4097).decode() == "STATUS=" + "\U0001f600" * 500 + "\nERRNO=78"


def test_nobody_listens() -> None:
    """Without a socket nothing is sent; a dead one is counted, and harms nothing."""
    assert not Notifier({}).send(READY=1)
    notifier = Notifier({"NOTIFY_SOCKET": "/nonexistent/notify"})
    assert not notifier.send(READY=1)
    assert notifier.failed == 1


def test_a_supervisor_that_does_not_read(run_path: Path, supervisor: socket.socket) -> None:
    """A full queue never blocks the sender."""
    notifier = Notifier({"NOTIFY_SOCKET": str(run_path / "systemd.sock")})
    until(lambda: not notifier.send(WATCHDOG=1), every_s=0)
    assert notifier.failed == 1


def test_what_found_a_full_queue_goes_with_the_next(run_path: Path, supervisor: socket.socket) -> None:
    """READY is not lost, nor the last status; a beat of then is, and an extension."""
    notifier = Notifier({"NOTIFY_SOCKET": str(run_path / "systemd.sock")})
    until(lambda: not notifier.send(WATCHDOG=1), every_s=0)
    assert not notifier.owes
    assert not notifier.send(STATUS="standing by", EXTEND_TIMEOUT_USEC=5)
    assert not notifier.send(READY=1, STATUS="serving", MAINPID=7)
    assert not notifier.send(WATCHDOG=1)
    assert notifier.owes
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            assert supervisor.recv(4096) == b"WATCHDOG=1"
    assert notifier.send(WATCHDOG=1)
    assert not notifier.owes
    assert sorted(supervisor.recv(4096).decode().split("\n")) == [
        "MAINPID=7",
        "READY=1",
        "STATUS=serving",
        "WATCHDOG=1",
    ]


def test_who_is_ending_is_not_ready_any_more(run_path: Path, supervisor: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(run_path / "systemd.sock")})
    until(lambda: not notifier.send(WATCHDOG=1), every_s=0)
    notifier.send(READY=1, STATUS="serving")
    notifier.send(STOPPING=1, STATUS="draining")
    supervisor.recv(4096)
    assert notifier.send()
    while (told := supervisor.recv(4096)) == b"WATCHDOG=1":
        continue
    assert sorted(told.decode().split("\n")) == ["STATUS=draining", "STOPPING=1"]
