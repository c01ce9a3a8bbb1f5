"""What Linux says of another process: a few reads of /proc, proc(5). None where there is no such process."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cdn_daemon.warden.judge import Sample, ThreadSample

_MAX_THREADS = 64
"""Threads looked at: the oldest, main thread and daemon among them."""

_MAX_GENERATIONS = 64
"""How far up a chain of parents is followed; a chain this long is no honest child's."""


def belongs_to(pid: int, root_pid: int) -> bool:
    """Whether pid is root_pid, in its process group or session, or one of its descendants."""
    if pid == root_pid:
        return True
    try:
        if os.getpgid(pid) == root_pid or os.getsid(pid) == root_pid:
            return True
    except (ProcessLookupError, PermissionError):
        return False
    return root_pid in ancestors(pid)


def ancestors(pid: int) -> Iterator[int]:
    """Its parent, that one's parent, and so on, without init."""
    for _ in range(_MAX_GENERATIONS):
        ancestor = parent(pid)
        if ancestor is None or ancestor <= 1:
            return
        yield ancestor
        pid = ancestor


def parent(pid: int) -> int | None:
    """Its parent's pid."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int, tid: int | None = None) -> list[bytes] | None:
    """Its (or one thread's) stat from the third field, the state, on; the second, the name, may hold anything."""
    try:
        with open(f"/proc/{pid}/stat" if tid is None else f"/proc/{pid}/task/{tid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def sample(pid: int, at_s: float) -> Sample | None:
    """What the kernel says of a process and its threads at this moment; None if it is gone."""
    main = _stat(pid)
    if main is None:
        return None
    threads: dict[int, ThreadSample] = {}
    try:
        for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task")))[:_MAX_THREADS]:
            fields = _stat(pid, tid)
            if fields is not None:
                cpu_s, waited_s = _schedstat(pid, tid)
                threads[tid] = ThreadSample(fields[0].decode(), cpu_s, waited_s)
    except OSError:
        return None
    # It may have been let go since its state was read.
    is_traced = main[0] == b"t" or _is_traced(pid)
    return Sample(at_s=at_s, state=main[0].decode(), traced=is_traced, threads=threads)


def waited_s(pid: int) -> float:
    """How long its main thread has been runnable without running, in all its life; 0.0 where nobody knows."""
    return _schedstat(pid, pid)[1] or 0.0


def _schedstat(pid: int, tid: int) -> tuple[float, float | None]:
    """CPU time and time runnable without running, in seconds; a kernel without CONFIG_SCHED_INFO knows neither."""
    try:
        with open(f"/proc/{pid}/task/{tid}/schedstat", "rb") as file:
            cpu_ns, waited_ns, _ = file.read().split()
    except (OSError, ValueError):
        return 0.0, None
    return int(cpu_ns) / 1e9, int(waited_ns) / 1e9


def _is_traced(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"TracerPid:"):
                    return line.split()[1] != b"0"
    except OSError:
        return False
    return False


def everyone() -> list[int]:
    """All processes of the host that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Its children, of all its threads."""
    found: list[int] = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
    except OSError:
        return found
    return found


def descendants(pid: int) -> list[int]:
    """Its children, their children, and so on; at most 10,000."""
    found: list[int] = []
    waiting = [pid]
    while waiting and len(found) < 10_000:
        below = children(waiting.pop())
        found.extend(below)
        waiting.extend(below)
    return found


def environment(pid: int, key: str) -> str:
    """One variable of the environment that it was started with; empty if there is none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            content = file.read()
    except OSError:
        return ""
    prefix = key.encode() + b"="
    for entry in content.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return ""
