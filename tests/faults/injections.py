"""Faults, as they are done to a running service or a host: one function each, for tests/faults and benchmarks/soak.

A service is one of faulty.py's. None of them waits for what comes of it, and none raises for a service
that goes down meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ASKING_S = 10.0
"""How long a request may take to be accepted or answered on a loaded machine."""

HOG = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Uses a core for as long as its parent lives, and no longer."""

PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
"""ptrace(2), linux/ptrace.h."""


@dataclass(frozen=True)
class Victim:
    """One process of a service."""

    name: str
    """Its instance, which is its program's name."""
    pid: int
    address: str
    """Base URL, such as ``http://127.0.0.1:40001``."""
    run_dir: Path


Injection = Callable[[Victim], object]

# -- by signals -------------------------------------------------------------------------------------------------


def crash(victim: Victim) -> None:
    """SIGKILL."""
    _signal(victim.pid, signal.SIGKILL)


def freeze(victim: Victim) -> None:
    """SIGSTOP."""
    _signal(victim.pid, signal.SIGSTOP)


def thaw(victim: Victim) -> None:
    """SIGCONT."""
    _signal(victim.pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def debugged(pid: int) -> Iterator[None]:
    """All threads of a process in a ptrace stop, as under a debugger at its prompt; let go afterwards.

    Raises PermissionError where that is not allowed, as by Yama or without CAP_SYS_PTRACE in a container.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int, thread: int) -> None:
        if libc.ptrace(ctypes.c_long(request), ctypes.c_long(thread), None, None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot trace thread {thread} of pid {pid}: {os.strerror(error)}")

    threads = [int(entry) for entry in os.listdir(f"/proc/{pid}/task")]
    seized: list[int] = []
    try:
        for thread in threads:
            ptrace(PTRACE_SEIZE, thread)
            seized.append(thread)
            ptrace(PTRACE_INTERRUPT, thread)
        for thread in seized:
            os.waitpid(thread, 0x40000000)  # __WALL: a thread that is not the first one is waited for, too
        yield
    finally:
        for thread in seized:
            with suppress(OSError):  # it may have been killed
                ptrace(PTRACE_DETACH, thread)


# -- by requests --------------------------------------------------------------------------------------------------


def ask(victim: Victim, path: str, *, waits: bool = True) -> bytes:
    """The body of its answer to a GET; empty if nobody waits for it, or it breaks off. Raises OSError if it refuses."""
    url = urlsplit(victim.address)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=ASKING_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
        if not waits:
            return b""  # what was sent is read before the connection is found closed
        with suppress(OSError):
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            return answer.partition(b"\r\n\r\n")[2]
    return b""


def _does(path: str) -> Injection:
    def inject(victim: Victim) -> None:
        with suppress(OSError):
            ask(victim, f"/fault/{path}", waits=False)

    return inject


hold_by_regex = _does("hold-by-regex")
hold_by_sleep = _does("hold-by-sleep?s=1000")
keep_busy = _does("busy")
block_loop = _does("block?s=1000")
deadlock = _does("deadlock?s=1")
end_daemon = _does("end-daemon")
ignore_sigterm = _does("ignore-sigterm")
leak_files = _does("files?n=300")
leak_threads = _does("threads?n=80")
leave_heir = _does("heir")


def declared_call(victim: Victim, *, for_s: float = 2.0) -> None:
    """A call in C that holds the interpreter, declared by ``long_call``."""
    _does(f"hold-by-sleep?s={for_s}&may={10 * for_s + 20}")(victim)


def leak(victim: Victim, *, mb: int = 5, every_s: float = 0.1, times: int = 400) -> None:
    """50 MB/s, if not told otherwise."""
    _does(f"leak?mb={mb}&every={every_s}&times={times}")(victim)


def burst(victim: Victim, *, mb: int = 1024, pieces: int = 1) -> None:
    """A gigabyte at once; as one piece, the system may take longer over it than a service may be silent."""
    _does(f"leak?mb={mb // pieces}&every=0&times={pieces}")(victim)


def fork_storm(victim: Victim, *, many: int = 200) -> None:
    """So many descendants, every other one in a session of its own."""
    _does(f"storm?n={many}")(victim)


def crash_loop(victim: Victim, *, after_s: float = 0.05) -> None:
    """Ends now, and with 3 so long after every start, until ``end_crash_loop``."""
    _exits(victim).write_text(str(after_s))
    crash(victim)


def end_crash_loop(victim: Victim) -> None:
    """Starts of it last again; one that was given up has to be started."""
    _exits(victim).unlink(missing_ok=True)


def _exits(victim: Victim) -> Path:
    return victim.run_dir / f"{victim.name}.exits"


KILLED: dict[str, Injection] = {
    "crash": crash,
    "frozen": freeze,
    "held GIL, burning": hold_by_regex,
    "held GIL, sleeping": hold_by_sleep,
    "blocked loop": block_loop,
    "deadlock": deadlock,
    "daemon thread dies": end_daemon,
}
"""After any of these the process ends and is replaced, with the default limits; after a blocked loop in 10 s."""


# -- the host -------------------------------------------------------------------------------------------------------


@contextmanager
def overload(times_cores: int = 8) -> Iterator[int]:
    """So many busy processes for each core, and how many that are; they end with their parent at the latest."""
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(times_cores * (os.cpu_count() or 2)):
            hogs.append(subprocess.Popen([sys.executable, "-S", "-E", "-c", HOG], stderr=subprocess.DEVNULL))
        yield len(hogs)
    finally:
        for hog in hogs:
            hog.kill()
        for hog in hogs:
            hog.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """Of a process, as they are now."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []
