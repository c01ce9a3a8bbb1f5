"""Processes as the operating system sees them: the only psutil of the embedded daemon.

Sampled once a second and not at every tick: beside a busy main thread every
system call may cost an interpreter switch interval (5 ms), and a tick is 100 ms.
"""

from __future__ import annotations

import glob
import math
from collections import deque

import psutil

from bus.messages import Vitals

_WINDOW_TICKS = 600


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
    """Samples this process; what the system does not tell is None."""

    def __init__(self, now_s: float) -> None:
        self._process = psutil.Process()
        self._cpu_s = self._read_cpu_s()
        self._at_s = now_s

    def _read_cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def sample(self, now_s: float, *, loop_lag_s: float | None, ticks: TickTimes) -> Vitals:
        """The vitals now; cpu_cores is the mean since the last call."""
        with self._process.oneshot():
            cpu_s = self._read_cpu_s()
            rss_bytes = self._process.memory_info().rss
            threads = self._process.num_threads()
        elapsed_s = now_s - self._at_s
        cpu_cores = max(0.0, cpu_s - self._cpu_s) / elapsed_s if elapsed_s > 0 else None
        self._cpu_s, self._at_s = cpu_s, now_s
        tick_late_s, tick_body_s = ticks.p99()
        return Vitals(
            rss_bytes=rss_bytes,
            cpu_cores=cpu_cores,
            fds=self._process.num_fds(),
            threads=threads,
            children=_count_children(),
            loop_lag_s=loop_lag_s,
            tick_late_s=tick_late_s,
            tick_body_s=tick_body_s,
        )


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
