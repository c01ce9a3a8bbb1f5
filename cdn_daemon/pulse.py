"""Whether the service's own loop still turns.

A daemon thread that ticks proves nothing about the event loop beside it, so the
loop has to show a pulse: a beat twice a second, by a timer of its own. How late a
beat comes, or is by now, is the loop's lag. What its thread was kept waiting for a CPU
meanwhile is no fault of it: its own lag, by which it is judged, is without that.

It is not asked for each beat: to wake a loop from another thread costs both of them
more than all the rest of a tick.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time

EVERY_S = 0.5


class Pulse:
    """Made, and beating, on the loop; all else is the daemon's. Each attribute has one writer, but for the last lag."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._schedstat = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        self.due_s = math.inf
        """When the next beat is to come; the loop's."""
        self._excused_s = -math.inf
        """Nothing before this is held against the loop; the daemon's."""
        self._waited_s = self._excused_waited_s = 0.0
        """How long its thread had waited for a CPU by then, in all its life; the loop's, the daemon's."""
        self._last_lag_s: float | None = None
        self._last_own_lag_s: float | None = None
        loop.call_soon(self._beat)

    def _beat(self) -> None:
        now_s = time.monotonic()
        waited_s = self._read_waited_s()
        if self.due_s != math.inf:
            late_s = max(0.0, now_s - max(self.due_s, self._excused_s))
            self._last_lag_s, self._last_own_lag_s = late_s, self._own(late_s, waited_s)
        self._waited_s, self.due_s = waited_s, now_s + EVERY_S
        self._loop.call_later(EVERY_S, self._beat)

    def lag_s(self, now_s: float) -> float | None:
        """How late the last beat came, or how late the next one is, if that is more; None before the second beat."""
        late_s, last_s = now_s - max(self.due_s, self._excused_s), self._last_lag_s
        return last_s if late_s <= 0 else max(late_s, last_s or 0.0)

    def own_lag_s(self, now_s: float) -> float | None:
        """The same without what its thread has waited for a CPU since the last beat."""
        late_s, last_s = now_s - max(self.due_s, self._excused_s), self._last_own_lag_s
        return last_s if late_s <= 0 else max(self._own(late_s, self._read_waited_s()), last_s or 0.0)

    def restart_window(self, now_s: float) -> None:
        """The observer itself was away, or the loop is excused: what is late gets its full time again."""
        self._excused_s, self._excused_waited_s = now_s, self._read_waited_s()
        self._last_lag_s = self._last_own_lag_s = None

    def _own(self, late_s: float, waited_s: float) -> float:
        return max(0.0, late_s - (waited_s - max(self._waited_s, self._excused_waited_s)))

    def _read_waited_s(self) -> float:
        """Its second number, see sched-stats of Linux: runnable without running. Nobody knows: no more than before."""
        try:
            with open(self._schedstat, "rb") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return max(self._waited_s, self._excused_waited_s)
