"""How the memory for quantiles is shared out: where a byte lowers the error most. Pure.

A series whose values span S powers of e needs S / w bins for a relative error of w / 2. So to halve the error
costs twice the bins, and more of them the wider the series: bytes are worth most where many series are narrow
and coarse, and nothing where a series has so few values that they are kept as they are.
"""

from __future__ import annotations

import heapq
import math

from msgspec import Struct

from services.statistical.sketch import BINS_MAX, BINS_MIN, EXACT, LEVELS, bins_at, relative_error

SPARE = 1.15
"""The next values may span a little more than the last."""


class Demand(Struct, frozen=True, kw_only=True):
    """What one series needs, by its last stretch."""

    name: str
    nats: float
    """Powers of e that its values span."""
    count: float
    """Of values in a stretch."""


def equal(names: list[str], bins: int) -> dict[str, int]:
    """The same for everybody."""
    return dict.fromkeys(names, min(BINS_MAX, max(BINS_MIN, bins // max(1, len(names)))))


def allocate(demands: list[Demand], bins: int) -> dict[str, int]:
    """Bins for each series, in all at most so many, with the least sum of relative errors.

    Greedy, and so optimal up to the last step: each step that halves a series' error costs more for less than the
    one before. Each has BINS_MIN at least; if not even that is there for everybody, that is what everybody has.
    """
    shares = {demand.name: BINS_MIN for demand in demands}
    left = bins - BINS_MIN * len(demands)
    steps: list[tuple[float, str, int, float]] = []

    def offer(name: str, nats: float, level: int) -> None:
        finer = _bins(nats, level - 1)
        cost = finer - shares[name]
        gain = relative_error(level) - relative_error(level - 1)
        heapq.heappush(steps, (-gain / max(cost, 1e-6), name, level - 1, nats))

    for demand in demands:
        if demand.count > EXACT:
            level = next((level for level in range(LEVELS + 1) if _bins(demand.nats, level) <= BINS_MIN), LEVELS)
            if level:
                offer(demand.name, demand.nats, level)
    while steps:
        _, name, level, nats = heapq.heappop(steps)
        cost = _bins(nats, level) - shares[name]
        if cost > left or shares[name] + cost > BINS_MAX:
            continue  # a narrower one may still fit
        left -= cost
        shares[name] += cost
        if level:
            offer(name, nats, level)
    return shares


def expected_error(demand: Demand, bins: int) -> float:
    """The error that a series has with so many bins."""
    if demand.count <= EXACT:
        return 0.0
    return next(
        (relative_error(level) for level in range(LEVELS + 1) if bins_at(level, demand.nats) <= bins),
        relative_error(LEVELS),
    )


def _bins(nats: float, level: int) -> int:
    return math.ceil(bins_at(level, nats) * SPARE)
