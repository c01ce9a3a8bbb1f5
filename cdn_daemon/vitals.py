"""Processes as the operating system sees them.

Beside a busy main thread every call that lets go of the interpreter lock may
cost one switch interval (5 ms), so each reading here is one such call or none:
files of /proc are kept open. psutil would read them anew each time, look through
all processes of the machine for children, and cost every start 7 ms.

A process counts with its descendants. Their memory is their PSS, as RSS would
count forked pages twice.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections import deque
from dataclasses import dataclass
from heapq import nlargest
from itertools import chain

from bus.messages import Vitals

_WINDOW_TICKS = 600
_RANKED_EVERY = 10
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_CLOCK_HZ = os.sysconf("SC_CLK_TCK")
_CPU_WINDOW_S = 0.5
_PEAK_SLACK = 1.1
"""The kernel sums up the peak from what CPUs have told so far, and the present exactly, so the one may be below."""
_LOOKED_AT_OFTEN = 4
"""Descendants, the largest, whose growth is seen within a fifth of a second; that of others, within a second."""
_LISTING_EVERY = 10
"""Where the kernel does not tell how many descriptors are open, they are listed at every tenth reading."""


class TickTimes:
    """How late ticks began and how long they took, over the last minute of them."""

    def __init__(self) -> None:
        self._ticks: deque[tuple[float, float]] = deque(maxlen=_WINDOW_TICKS)
        self.add = self._ticks.append
        """One tick: late_s, body_s. Ten times a second, so nothing more is called."""
        self._ranked: tuple[float | None, float | None] = (None, None)
        self._asked = 0

    def p99(self) -> tuple[float | None, float | None]:
        """99th percentiles (nearest rank) of lateness and body; of every tenth asking. None before the first tick."""
        if self._ticks:
            if self._asked % _RANKED_EVERY == 0:
                self._ranked = self.percentile(0.99)
            self._asked += 1
        return self._ranked

    def percentile(self, part: float) -> tuple[float, float]:
        """Of lateness and body (nearest rank), of at least one tick."""
        rank = math.ceil(part * len(self._ticks)) - 1
        return sorted(late_s for late_s, _ in self._ticks)[rank], sorted(body_s for _, body_s in self._ticks)[rank]


class VitalsSampler:
    """Reads this process and its descendants; what the system does not tell is None.

    The readings are separate, so that they need not be made in the same tick.
    """

    def __init__(self, now_s: float) -> None:
        self._statm = _open("/proc/self/statm")
        self._task = _open("/proc/self/task")
        self._fd = _open("/proc/self/fd")
        self._tree = _NO_TREE
        self._cpu_s = _own_cpu_s()
        self._cpu_at_s = now_s
        self._fds_asked = 0
        self._own_bytes = 0
        self.rss_bytes: int | None = None
        self.cpu_cores: float | None = None
        self.threads: int | None = None
        self.fds: int | None = None
        self.children: int | None = None

    def read_memory(self) -> int | None:
        """rss_bytes: resident memory now, with the descendants', of which the largest are looked at anew."""
        if self._statm >= 0:
            self._own_bytes = int(os.pread(self._statm, 64, 0).split()[1]) * _PAGE_BYTES
            self.rss_bytes = self._own_bytes + self._tree.pss_bytes + self._tree.grown_bytes()
        return self.rss_bytes

    def peak_bytes(self) -> float:
        """What memory has not exceeded so far; infinite if unknown. Costs half of reading it, and keeps the lock.

        What descendants use has no such mark.
        """
        if self._tree.count:
            return math.inf
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * _PEAK_SLACK
        return peak_bytes if peak_bytes >= self._own_bytes else math.inf

    def read_cpu(self, now_s: float) -> None:
        """cpu_cores: the mean since the last reading, if that was a while ago; a start is no measure of use."""
        cpu_s, elapsed_s = _own_cpu_s() + self._tree.cpu_s, now_s - self._cpu_at_s
        if elapsed_s >= _CPU_WINDOW_S:
            self.cpu_cores = max(0.0, cpu_s - self._cpu_s) / elapsed_s
        self._cpu_s, self._cpu_at_s = cpu_s, now_s

    def read_threads(self) -> None:
        """As many as /proc/self/task has directories; its links are those, and two of its own."""
        if self._task >= 0:
            self.threads = os.fstat(self._task).st_nlink - 2 + self._tree.threads

    def read_fds(self) -> None:
        """Since Linux 6.2 the size of /proc/self/fd is their number; before, they are listed, but rarely."""
        if self._fd < 0:
            return
        count = os.fstat(self._fd).st_size
        if count == 0 and self._fds_asked % _LISTING_EVERY == 0:
            count = len(os.listdir("/proc/self/fd"))
        self._fds_asked += 1
        if count:
            self.fds = count + self._tree.fds

    def read_children(self) -> None:
        """How many descendants there are, and what they use; without any it costs one waitid(2)."""
        self._tree = _Tree.of_self() if _has_children() else _NO_TREE
        self.children = self._tree.count

    def vitals(self, *, loop_lag_s: float | None, ticks: TickTimes) -> Vitals:
        """What was last read, as one value."""
        tick_late_s, tick_body_s = ticks.p99()
        return Vitals(
            rss_bytes=self.rss_bytes,
            cpu_cores=self.cpu_cores,
            fds=self.fds,
            threads=self.threads,
            children=self.children,
            loop_lag_s=loop_lag_s,
            tick_late_s=tick_late_s,
            tick_body_s=tick_body_s,
        )


def _open(path: str) -> int:
    """A descriptor to be kept; -1 where there is no such file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _own_cpu_s() -> float:
    """Of this process, and of its children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def _has_children() -> bool:
    """Whether there is a child, alive or waiting to be reaped; reaps none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@dataclass(frozen=True)
class _Tree:
    """What the descendants use together."""

    count: int = 0
    pss_bytes: int = 0
    cpu_s: float = 0.0
    fds: int = 0
    threads: int = 0
    largest: tuple[tuple[int, int], ...] = ()
    """Pid and RSS of those that use most memory."""

    @classmethod
    def of_self(cls) -> _Tree:
        """Of all descendants of this process that can be read; one that ends meanwhile counts less."""
        pids = _descendants(os.getpid())
        pss_bytes, cpu_ticks, fds, threads = 0, 0, 0, 0
        resident: list[tuple[int, int]] = []
        for pid in pids:
            stat = _stat_of(pid)
            if stat is None:
                continue
            rss_bytes = int(stat[21]) * _PAGE_BYTES
            resident.append((rss_bytes, pid))
            pss_bytes += _pss_bytes(pid) or rss_bytes  # where the better may not be read
            cpu_ticks += int(stat[11]) + int(stat[12])
            threads += int(stat[17])
            fds += _fds(pid)
        return cls(
            count=len(pids),
            pss_bytes=pss_bytes,
            cpu_s=cpu_ticks / _CLOCK_HZ,
            fds=fds,
            threads=threads,
            largest=tuple((pid, rss_bytes) for rss_bytes, pid in nlargest(_LOOKED_AT_OFTEN, resident)),
        )

    def grown_bytes(self) -> int:
        """How much larger the largest are by now; what has ended has not grown."""
        grown_bytes = 0
        for pid, before_bytes in self.largest:
            stat = _stat_of(pid)
            if stat is not None:
                grown_bytes += int(stat[21]) * _PAGE_BYTES - before_bytes
        return grown_bytes


_NO_TREE = _Tree()


def _descendants(pid: int) -> list[int]:
    """Pids of all that lives below a process, asked of it and of those: the rest of the machine costs nothing."""
    if not os.path.exists("/proc/thread-self/children"):  # a kernel without CONFIG_PROC_CHILDREN
        from cdn_daemon.keeper import descendants

        return descendants(pid)
    found: list[int] = []
    for parent in chain((pid,), found):  # which grows while it is walked
        try:
            for tid in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{tid}/children", "rb") as file:
                    found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return found


def _pss_bytes(pid: int) -> int:
    """A process's share of memory by smaps_rollup, proc(5); 0 where that is not to be had."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def _fds(pid: int) -> int:
    """How many descriptors a process has open; 0 where that may not be known."""
    try:
        return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def machine() -> dict[str, float]:
    """What there is at most of what can be limited: memory, cores, descriptors."""
    soft_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    most: dict[str, float] = {"rss_bytes": memory_bytes, "cpu_cores": os.cpu_count() or 1}
    if soft_fds != resource.RLIM_INFINITY:
        most["fds"] = soft_fds
    return most


def age_s(pid: int) -> float | None:
    """How long a process has lived, to a hundredth of a second; None if there is none."""
    ticks = start_ticks(pid)
    return None if ticks is None else time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _CLOCK_HZ


def parent_of(pid: int) -> int | None:
    """Pid of a process's parent; None if there is no such process."""
    stat = _stat_of(pid)
    return int(stat[1]) if stat is not None else None


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: with its pid a name for good. None if there is none."""
    stat = _stat_of(pid)
    return int(stat[19]) if stat is not None else None


def _stat_of(pid: int) -> list[bytes] | None:
    """Fields 3 and on of proc_pid_stat(5); None for what has ended, though it may still wait to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else fields
