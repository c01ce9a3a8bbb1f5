"""Which instances are left out for a while because they fail more than their peers. Pure: time comes in as now_s.

What every instance of a service fails at is nobody's outlier, and never are so
many left out that the rest would have to do more than twice their work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

MEMORY_S = 10.0
"""Counts of good and bad answers fade with this time constant."""
CONSECUTIVE = 5
"""Failures in a row that are enough by themselves; Envoy's default."""
ACCIDENT = 1e-6
"""A run of failures that its peers' share of them would bring about less often than this is the instance's own."""
SIGMAS = 4.0
"""By so many standard deviations a ratio must be over that of the peers."""
VOLUME_MIN = 20.0
"""Answers, faded, below which a ratio says nothing."""
RATIO = 0.1
"""Of failures, from which an instance may be an outlier."""
TIMES_PEERS = 2.0
"""An outlier's ratio is this many times that of its peers."""
SHARE_MAX = 0.5
"""Of a service's instances that are out at once; never the only one."""
PANIC_SHARE = 0.5
"""If fewer than this part of them is in, as others have gone, those that are out get traffic too: some is better
than none, and what is left must not fall over."""
BASE_S = 5.0
LONGEST_S = 300.0
FORGIVE_S = 300.0
"""After this long back in, the next time out is a first one again."""

T = TypeVar("T")


@dataclass
class Standing:
    """What one incarnation of an instance has been worth lately."""

    good: float = 0.0
    bad: float = 0.0
    consecutive: int = 0
    counted_s: float = -math.inf
    out_until_s: float = -math.inf
    times_out: int = 0

    def record(self, is_good: bool, now_s: float) -> None:
        """Count one answer, or its lack."""
        self.good, self.bad = self.counts(now_s)
        self.counted_s = now_s
        if is_good:
            self.good += 1
            self.consecutive = 0
        else:
            self.bad += 1
            self.consecutive += 1

    def counts(self, now_s: float) -> tuple[float, float]:
        """Good and bad answers, faded."""
        fade = math.exp(-max(now_s - self.counted_s, 0.0) / MEMORY_S)
        return self.good * fade, self.bad * fade

    def is_out(self, now_s: float) -> bool:
        """Whether it is left out now."""
        return now_s < self.out_until_s


def reason_to_eject(mine: Standing, peers: Iterable[Standing], now_s: float) -> str | None:
    """``consecutive`` or ``ratio`` if the instance is to be left out, None if not; ``peers`` are the others."""
    if mine.is_out(now_s):
        return None
    peers = list(peers)
    out = 1 + sum(peer.is_out(now_s) for peer in peers)
    if out > SHARE_MAX * (len(peers) + 1):
        return None
    counts = [peer.counts(now_s) for peer in peers if not peer.is_out(now_s)]
    their_bad, their_all = sum(bad for _, bad in counts), sum(good + bad for good, bad in counts)
    usual = their_bad / their_all if their_all else 0.0
    if mine.consecutive >= _run(usual):
        return "consecutive"
    good, bad = mine.counts(now_s)
    volume = good + bad
    chance = SIGMAS * math.sqrt(volume * usual * (1 - usual))
    often = volume >= VOLUME_MIN and bad >= max(RATIO, TIMES_PEERS * usual) * volume and bad > usual * volume + chance
    return "ratio" if often else None


def _run(usual: float) -> float:
    """Failures in a row that are no accident where this share of answers fails anyway."""
    if usual <= 0:
        return CONSECUTIVE
    return max(CONSECUTIVE, math.log(ACCIDENT) / math.log(usual)) if usual < 1 else math.inf


def eject(standing: Standing, now_s: float) -> float:
    """Leave it out, for longer each time; return for how many seconds. It comes back with a clean sheet."""
    if now_s - standing.out_until_s > FORGIVE_S:
        standing.times_out = 0
    out_s = min(BASE_S * 2.0**standing.times_out, LONGEST_S)
    standing.times_out = min(standing.times_out + 1, 30)
    standing.out_until_s = now_s + out_s
    standing.good = standing.bad = 0.0
    standing.consecutive = 0
    return out_s


def choosable(of: Sequence[T], standings: Sequence[Standing], now_s: float) -> Sequence[T]:
    """Those that are in; all of them if those are too few."""
    inside = [one for one, standing in zip(of, standings, strict=True) if not standing.is_out(now_s)]
    if len(inside) == len(of) or len(inside) < PANIC_SHARE * len(of):
        return of
    return inside
