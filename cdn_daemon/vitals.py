"""Processes as the operating system sees them: the only psutil of the embedded daemon.

Sampled once a second and not at every tick: beside a busy main thread every
system call may cost an interpreter switch interval (5 ms), and a tick is 100 ms.
Only the resident memory, which can run away within a second, is one pread(2).

A process counts with its descendants. Their memory is their PSS, as RSS would
count forked pages twice.
"""

from __future__ import annotations

import glob
import math
import os
import resource
from collections import deque
from dataclasses import dataclass

import psutil

from bus.messages import Vitals

_WINDOW_TICKS = 600
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class TickTimes:
    """How late ticks began and how long they took, over the last minute of them."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=_WINDOW_TICKS)
        self._body_s: deque[float] = deque(maxlen=_WINDOW_TICKS)

    def add(self, late_s: float, body_s: float) -> None:
        """One tick."""
        self._late_s.append(late_s)
        self._body_s.append(body_s)

    def p99(self) -> tuple[float | None, float | None]:
        """99th percentiles (nearest rank) of lateness and body; None before the first tick."""
        return _p99(self._late_s), _p99(self._body_s)


def _p99(values: deque[float]) -> float | None:
    if not values:
        return None
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


class VitalsSampler:
    """Samples this process and its descendants; what the system does not tell is None."""

    def __init__(self, now_s: float) -> None:
        self._process = psutil.Process()
        self._tree = _Tree()
        self._cpu_s = self._read_cpu_s()
        self._at_s = now_s
        try:
            self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._statm = -1

    def rss_bytes(self) -> int | None:
        """Resident memory now, with the descendants' as it was at the last sample; one system call."""
        if self._statm < 0:
            return None
        return int(os.pread(self._statm, 64, 0).split()[1]) * _PAGE_BYTES + self._tree.pss_bytes

    def _read_cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system + self._tree.cpu_s

    def sample(self, now_s: float, *, loop_lag_s: float | None, ticks: TickTimes) -> Vitals:
        """The vitals now; cpu_cores is the mean since the last call."""
        children = _count_children()
        self._tree = _Tree.of(self._process) if children else _Tree()
        with self._process.oneshot():
            cpu_s = self._read_cpu_s()
            rss_bytes = self._process.memory_info().rss
            threads = self._process.num_threads()
        elapsed_s = now_s - self._at_s
        cpu_cores = max(0.0, cpu_s - self._cpu_s) / elapsed_s if elapsed_s > 0 else None
        self._cpu_s, self._at_s = cpu_s, now_s
        tick_late_s, tick_body_s = ticks.p99()
        return Vitals(
            rss_bytes=rss_bytes + self._tree.pss_bytes,
            cpu_cores=cpu_cores,
            fds=self._process.num_fds() + self._tree.fds,
            threads=threads + self._tree.threads,
            children=children if children is None else max(children, self._tree.count),
            loop_lag_s=loop_lag_s,
            tick_late_s=tick_late_s,
            tick_body_s=tick_body_s,
        )


@dataclass(frozen=True)
class _Tree:
    """What the descendants use together."""

    count: int = 0
    pss_bytes: int = 0
    cpu_s: float = 0.0
    fds: int = 0
    threads: int = 0

    @classmethod
    def of(cls, process: psutil.Process) -> _Tree:
        """Of all its descendants that can be read; those that end meanwhile, or are another user's, count less."""
        count, pss_bytes, cpu_s, fds, threads = 0, 0, 0.0, 0, 0
        for child in process.children(recursive=True):
            count += 1
            try:
                pss_bytes += _pss_bytes(child)
                times = child.cpu_times()
                cpu_s += times.user + times.system
                threads += child.num_threads()
                fds += child.num_fds()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return cls(count=count, pss_bytes=pss_bytes, cpu_s=cpu_s, fds=fds, threads=threads)


def _pss_bytes(process: psutil.Process) -> int:
    """Its share of memory by smaps_rollup, proc(5); its RSS where that may not be read."""
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return int(process.memory_info().rss)
    return int(process.memory_info().rss)


def machine() -> dict[str, float]:
    """What there is at most of what can be limited: memory, cores, descriptors."""
    soft_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most: dict[str, float] = {"rss_bytes": psutil.virtual_memory().total, "cpu_cores": os.cpu_count() or 1}
    if soft_fds != resource.RLIM_INFINITY:
        most["fds"] = soft_fds
    return most


def _count_children() -> int | None:
    """Direct children by proc(5); psutil would scan every process of the machine for them."""
    count, found = 0, False
    for path in glob.iglob("/proc/self/task/*/children"):
        try:
            with open(path, "rb") as file:
                count += len(file.read().split())
            found = True
        except FileNotFoundError:  # the thread ended meanwhile
            continue
    return count if found else None


def parent_of(pid: int) -> int | None:
    """Pid of a process's parent; None if there is no such process."""
    try:
        return psutil.Process(pid).ppid()
    except psutil.NoSuchProcess:
        return None


def start_time_s(pid: int) -> float | None:
    """Unix time at which a process began, which with its pid names it for good; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
