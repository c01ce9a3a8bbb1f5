"""Whether the service's own loop still turns.

A daemon thread that ticks proves nothing about the event loop beside it, so the
loop has to show a pulse: a beat twice a second, by a timer of its own. How late a
beat comes, or is by now, is the loop's lag. What its thread was kept waiting for a CPU
meanwhile is no fault of it: its own lag, by which it is judged, is without that. Linux
tells of such a wait only when it is over; until then a thread that is runnable and
uses no CPU from one look to the next is given the benefit of the doubt.

It is not asked for each beat: to wake a loop from another thread costs both of them
more than all the rest of a tick.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import NamedTuple

EVERY_S = 0.5


class _Beat(NamedTuple):
    at_s: float
    late_s: float
    own_s: float


class _Look(NamedTuple):
    due_s: float
    """Of the beat that was late."""
    cpu_s: float
    """What the loop's thread had used."""
    own_s: float
    """What was found."""


class Pulse:
    """Made, and beating, on the loop; all else is the daemon's. Each attribute has one writer, but for the last lag."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task = f"/proc/self/task/{threading.get_native_id()}"
        self.due_s = math.inf
        """When the next beat is to come; the loop's."""
        self._excused_s = -math.inf
        """Nothing before this is held against the loop; the daemon's."""
        self._waited_s = self._excused_waited_s = 0.0
        """How long its thread had waited for a CPU by then, in all its life; the loop's, the daemon's."""
        self._last: _Beat | None = None
        self._look = _Look(self.due_s, 0.0, 0.0)
        """The daemon's last one at a beat that is late."""
        loop.call_soon(self._beat)

    def _beat(self) -> None:
        now_s = time.monotonic()
        _, waited_s = self._read_cpu_and_waited_s()
        if self.due_s != math.inf:
            late_s = max(0.0, now_s - max(self.due_s, self._excused_s))
            self._last = _Beat(now_s, late_s, self._own(late_s, waited_s))
        self._waited_s, self.due_s = waited_s, now_s + EVERY_S
        self._loop.call_later(EVERY_S, self._beat)

    def lag_s(self, now_s: float) -> float | None:
        """How late the last beat came, or how late the next one is, if that is more; None before the second beat."""
        late_s, last = now_s - max(self.due_s, self._excused_s), self._last_by(now_s)
        last_s = last.late_s if last is not None else None
        return last_s if late_s <= 0 else max(late_s, last_s or 0.0)

    def own_lag_s(self, now_s: float) -> float | None:
        """The same without what its thread has waited for a CPU since the last beat; asked for again and again."""
        late_s, last, due_s = now_s - max(self.due_s, self._excused_s), self._last_by(now_s), self.due_s
        last_s = last.own_s if last is not None else None
        if late_s <= 0:
            return last_s
        cpu_s, waited_s = self._read_cpu_and_waited_s()
        before, own_s = self._look, self._own(late_s, waited_s)
        if self._is_runnable() and (before.due_s != due_s or before.cpu_s == cpu_s):
            own_s = before.own_s if before.due_s == due_s else 0.0
        self._look = _Look(due_s, cpu_s, own_s)
        return max(own_s, last_s or 0.0)

    def restart_window(self, now_s: float) -> None:
        """The observer itself was away, or the loop is excused: what is late gets its full time again."""
        self._excused_s, (_, self._excused_waited_s) = now_s, self._read_cpu_and_waited_s()
        self._last = None
        self._look = _Look(math.inf, 0.0, 0.0)

    def _last_by(self, now_s: float) -> _Beat | None:
        """The last beat, unless it has come since the observer's tick began.

        A process that is stopped in the middle of a tick, or a declared call that begins there, ends with a beat that
        is late through no fault of the loop. The next tick tells: it is late too, and excuses.
        """
        last = self._last
        return last if last is not None and last.at_s <= now_s else None

    def _own(self, late_s: float, waited_s: float) -> float:
        return max(0.0, late_s - (waited_s - max(self._waited_s, self._excused_waited_s)))

    def _read_cpu_and_waited_s(self) -> tuple[float, float]:
        """On a CPU, and runnable without one; see sched-stats of Linux. Where nobody knows: no more than before."""
        try:
            with open(f"{self._task}/schedstat", "rb") as file:
                cpu_ns, waited_ns, _ = file.read().split()
            return int(cpu_ns) / 1e9, int(waited_ns) / 1e9
        except (OSError, ValueError):
            return math.nan, max(self._waited_s, self._excused_waited_s)

    def _is_runnable(self) -> bool:
        """State R of proc_pid_stat(5)."""
        try:
            with open(f"{self._task}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2].startswith(b"R")
        except OSError:
            return False
