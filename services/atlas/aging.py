"""How far the wall clock has jumped ahead of what was written, so that nothing is taken for older than it is. Pure."""

from __future__ import annotations

from collections import deque

STEP_S = 2.0
"""A clock that is slewed (500 ppm at most) moves by a thousandth of it between two looks."""
LONGEST_S = 366 * 86400.0
_STEPS_KEPT = 1000


class Aging:
    """Steps of the wall clock against CLOCK_BOOTTIME.

    What was written before a clock jumped ahead (NTP at boot, by an hour or by a year) looks old by that much.
    What is kept for so long is therefore judged by the time before the jump, until it has truly been
    there for so long: then it is due by any clock. A beginning after a while without us
    counts as a jump, as nobody can tell whether the time has passed or the clock is wrong.
    """

    def __init__(self, newest_s: float | None, wall_s: float, boot_s: float) -> None:
        """newest_s: the newest time on record; None: there is none."""
        self._boot_s, self._ahead_s = boot_s, wall_s - boot_s
        self._steps: deque[tuple[float, float]] = deque(maxlen=_STEPS_KEPT)
        """When, by CLOCK_BOOTTIME, and by how much."""
        if newest_s is not None and abs(wall_s - newest_s) > STEP_S:
            self._steps.append((boot_s, wall_s - newest_s))

    def look(self, wall_s: float, boot_s: float) -> None:
        """What both clocks say now; call it every second or so."""
        ahead_s = wall_s - boot_s
        if abs(ahead_s - self._ahead_s) > STEP_S:
            self._steps.append((boot_s, ahead_s - self._ahead_s))
        self._boot_s, self._ahead_s = boot_s, ahead_s
        while self._steps and boot_s - self._steps[0][0] > LONGEST_S:
            self._steps.popleft()

    def lag_s(self, kept_s: float) -> float:
        """How much earlier than by the wall clock the time is for what is kept for so long; never negative."""
        return max(0.0, sum(by_s for at_s, by_s in self._steps if self._boot_s - at_s <= kept_s))
