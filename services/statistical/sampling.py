"""How many of the datagrams are looked at, when there are more than can be. Pure.

The capacity is what the folding thread may take of a core, divided by what a datagram costs it. What is
beyond is dropped at random, by the kernel, before it costs anything; see intake.py.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE_CORES = 0.6
"""What folding may take of a core: the rest is for queries, flushes and the daemon."""
PROBABILITY_MIN = 1e-4
SLACK = 0.9
"""One that would have to change by less than this stays as it is."""
FULL = 0.5
"""Of the socket's buffer: beyond it the capacity is taken for smaller than it seems."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One period of the intake."""

    period_s: float
    arrived: float
    """Datagrams, those included that were dropped."""
    folded: int
    busy_s: float
    """CPU time of the folding thread."""
    filled: float
    """Part of the socket's buffer that is in use."""


class Throttle:
    """The probability with which a datagram is taken; ``tell`` is called with each period in turn."""

    def __init__(self, share_cores: float = SHARE_CORES) -> None:
        self.share_cores = share_cores
        self.probability = 1.0
        self.cost_s = 0.0
        """CPU time of one datagram, smoothed; 0 while none was seen."""

    def tell(self, seen: Seen) -> bool:
        """Whether the probability is another one now."""
        if seen.folded >= 20:
            cost_s = seen.busy_s / seen.folded
            self.cost_s = cost_s if not self.cost_s else 0.7 * self.cost_s + 0.3 * cost_s
        wanted = self._wanted(seen)
        if wanted == self.probability or (wanted < 1 and SLACK <= wanted / self.probability <= 1 / SLACK):
            return False
        self.probability = wanted
        return True

    def _wanted(self, seen: Seen) -> float:
        if not self.cost_s or not seen.arrived:
            return 1.0 if not seen.filled else self.probability
        capacity = self.share_cores * seen.period_s / self.cost_s
        if seen.filled > FULL:  # others keep the thread from its share
            capacity = min(capacity, max(seen.folded, 1) * (1.5 - seen.filled))
        wanted = capacity / seen.arrived
        if wanted > 1 and self.probability < 1 and seen.arrived > SLACK * capacity:
            return self.probability  # not off and on again at the border
        return min(1.0, max(PROBABILITY_MIN, wanted))
