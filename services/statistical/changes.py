"""Change points, on-line, at a false-alarm rate that does not depend on the distribution. Pure.

Each value is replaced by its rank among the last ones, and that by a normal score; two one-sided CUSUMs
add the scores up (sequential ranks: McDonald 1990, Gordon and Pollak 1995). As long as the values of
successive seconds come from one distribution in any order, the ranks are the same whatever that
distribution is, so the run length between false alarms is, too. What trends, swings with the day, or remembers
its last value is not of that kind, and is told about more often.

By Siegmund's approximation, a threshold of 8 at a reference of 1 is one false alarm a series in 2.3e7 values,
265 days of seconds; ``python -m benchmarks.statistical --only changes`` measures it at lower thresholds. A shift
by two deviations is told after 13 seconds, one by three or more after 8 or 7; one by less than one, never.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from functools import cache

from msgspec import Struct

HISTORY = 120
HISTORY_MIN = 30
"""Nothing is said before so many values are known."""
REFERENCE = 1.0
"""Half of the shift that is to be found soonest, in standard deviations."""
THRESHOLD = 8.0


class Change(Struct, frozen=True, kw_only=True):
    """The values are from some moment on unlike the earlier ones."""

    direction: str
    """up or down."""
    before: float
    after: float
    """Medians."""
    ago: int
    """So many values ago it began."""
    p_value: float
    """Of a Mann-Whitney test between the values before and after."""


class Detector:
    """Of one series; ``hear`` is called with each value in turn."""

    __slots__ = ("_down", "_down_since", "_in_order", "_sorted", "_up", "_up_since", "threshold")

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._in_order: deque[float] = deque(maxlen=HISTORY)
        self._sorted: list[float] = []
        self._up = self._down = 0.0
        self._up_since = self._down_since = 0

    def hear(self, value: float) -> Change | None:
        """A change, if this value is what makes it certain. Everything before it is forgotten then."""
        known = len(self._sorted)
        change = None
        if known >= HISTORY_MIN:
            # Ties count half: a value that is always the same scores 0. Where ties are many, scores are
            # smaller than of continuous values, and false alarms rarer.
            below = bisect_left(self._sorted, value)
            rank = below + bisect_right(self._sorted, value, below) + 2  # twice the rank, ties count half
            score = _scores(known)[rank]
            self._up = max(0.0, self._up + score - REFERENCE)
            self._down = max(0.0, self._down - score - REFERENCE)
            self._up_since = self._up_since + 1 if self._up else 0
            self._down_since = self._down_since + 1 if self._down else 0
            if max(self._up, self._down) > self.threshold:
                change = self._changed(value)
        if change is not None:
            self._forget()
            return change
        if known == HISTORY:
            del self._sorted[bisect_left(self._sorted, self._in_order[0])]
        self._in_order.append(value)
        insort(self._sorted, value)
        return None

    def _changed(self, value: float) -> Change:
        direction, ago = ("up", self._up_since) if self._up > self._down else ("down", self._down_since)
        values = [*self._in_order, value]
        ago = min(ago, len(values) - 1)
        before, after = sorted(values[:-ago]), sorted(values[-ago:])
        return Change(
            direction=direction,
            before=before[len(before) // 2],
            after=after[len(after) // 2],
            ago=ago,
            p_value=mann_whitney(before, after),
        )

    def _forget(self) -> None:
        """Learn anew from the next value on: those that led to an alarm were chosen for being unlike the others."""
        self._in_order.clear()
        self._sorted.clear()
        self._up = self._down = 0.0
        self._up_since = self._down_since = 0


def mann_whitney(first: list[float], second: list[float]) -> float:
    """Two-sided p value by the normal approximation, corrected for ties; both sorted."""
    n, m = len(first), len(second)
    if not n or not m:
        return 1.0
    above = sum((bisect_left(first, value) + bisect_right(first, value)) / 2 for value in second)
    everything = sorted([*first, *second])
    ties, at = 0, 0
    while at < len(everything):
        end = bisect_right(everything, everything[at], at)
        ties += (end - at) ** 3 - (end - at)
        at = end
    total = n + m
    variance = n * m / 12 * ((total + 1) - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(above - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


@cache
def _scores(known: int) -> list[float]:
    """[twice the rank among so many and itself] → normal score, of variance 1 over the ranks."""
    from statistics import NormalDist  # takes 20 ms to load, and no series has a history at the start

    normal, ranks = NormalDist(), known + 1
    halves = [normal.inv_cdf(min(max((half - 1) / 2, 0.25), ranks - 0.25) / ranks) for half in range(2 * ranks + 1)]
    deviation = math.sqrt(sum(score * score for score in halves[2::2]) / ranks)
    return [score / deviation for score in halves]
