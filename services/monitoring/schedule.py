"""When each target is scraped next: a fixed budget of samples, spent where something is likely to be found. Pure.

A sample that is unlike what was expected is looked at again at once, some times, as an anomaly is told from a slip by
what comes after it. The rest of the budget is shared out so that the expected time in which an anomaly goes unseen, the
sum of rate × interval / 2, is least: intervals in proportion to sqrt(samples / rate).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SHORTEST_S = 1.0
LONGEST_S = 60.0
TRACKED = 32
"""Series of a target that are forecast."""
SURPRISE = 6.0
"""Errors of the usual size that are no chance any more."""
RARE = 0.02
"""The part of a target's samples that may be looked at again, in the long run."""
LOOKS = 3
"""So many further looks, SHORTEST_S apart."""
FOR_LOOKS = 0.2
"""The part of the budget that they may take."""
SAVED_S = 120.0
"""So much of that may be saved up."""
MEMORY_S = 3_600.0
"""Surprises count half after 0.7 of this."""
PRIOR_S = 3_600.0
"""Before anything is known a surprise is expected this often."""
WARM = 8
"""Samples before a forecast means anything."""


class Forecast:
    """One series: a level and a slope (Holt), and the usual size of its errors. A counter's slope is its rate."""

    __slots__ = ("_at_s", "_error", "_level", "_seen", "_slope", "_step_s")

    def __init__(self) -> None:
        self._level = self._slope = self._error = self._step_s = self._at_s = 0.0
        self._seen = 0

    def error(self, now_s: float, value: float) -> float:
        """How far off the value is, in errors of the usual size; and learn it."""
        if not math.isfinite(value):
            return 0.0
        passed_s = now_s - self._at_s
        if not self._seen or passed_s <= 0:
            self._level, self._at_s, self._seen = value, now_s, max(1, self._seen)
            return 0.0
        expected = self._level + self._slope * passed_s
        # After a longer time than usual more may have happened; after a shorter one it may all the same.
        wider = math.sqrt(max(1.0, passed_s / self._step_s)) if self._step_s else 1.0
        usual = (self._error + 1e-3 * abs(expected) + 1e-9) * wider
        miss = value - expected
        score = abs(miss) / usual if self._seen >= WARM else 0.0
        share = max(0.1, 1 / self._seen)
        if score > SURPRISE:  # what is unlike all before is learnt slowly
            miss = math.copysign(SURPRISE * usual, miss)
        self._error += share * (abs(miss) / wider - self._error)
        self._slope += min(share, 0.5) * 0.3 * miss / passed_s
        self._level = expected + max(0.3, share) * miss
        self._step_s += share * (passed_s - self._step_s)
        self._at_s = now_s
        self._seen = min(self._seen + 1, 1_000)
        return score


class Target:
    """What is known of one target."""

    __slots__ = ("bar", "error", "forecasts", "gaps", "last_s", "learnt_s", "looks", "samples", "surprises")

    def __init__(self, now_s: float) -> None:
        self.forecasts: dict[int, Forecast] = {}
        self.samples = 1
        self.looks = 0
        """Further looks that are still to come."""
        self.bar = SURPRISE
        """What is to be surprising here; it rises where too much is."""
        self.surprises = 0.0
        self.learnt_s = now_s
        self.last_s: float | None = None
        self.error = 0.0
        """The mean of the largest errors."""
        self.gaps: list[float] = []

    def rate(self, now_s: float) -> float:
        """Surprises a second."""
        decayed = self.surprises * math.exp((self.learnt_s - now_s) / MEMORY_S)
        return (decayed + MEMORY_S / PRIOR_S) / (2 * MEMORY_S)


class Demand(NamedTuple):
    """What one target would have."""

    name: str
    samples: int
    rate: float


Plan = Mapping[str, float]
"""Intervals in s, by target."""


class Schedule:
    """Every target. ``plan`` None: the fixed interval for all, and no further looks."""

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.targets: dict[str, Target] = {}
        self.plan: Plan | None = None
        self._saved = 0.0
        self._saved_at_s: float | None = None
        self.surprises = self.further_looks = 0
        self.gap_sum_s = 0.0
        self.gap_count = 0

    def forget(self, name: str) -> None:
        """A target is no more."""
        self.targets.pop(name, None)

    def budget(self) -> float:
        """Samples a second: as many as at the fixed interval."""
        return sum(target.samples for target in self.targets.values()) / self.interval_s

    def interval(self, name: str) -> float:
        """From one scrape of it to the next, if nothing surprises."""
        if self.plan is None:
            return self.interval_s
        return self.plan.get(name, self.interval_s)

    def heard(self, name: str, now_s: float, values: Sequence[tuple[int, float]], samples: int) -> float:
        """A scrape has brought these (series, value); in how many seconds the next one is due."""
        target = self.targets.get(name)
        if target is None:
            target = self.targets[name] = Target(now_s)
        target.samples = max(1, samples)
        worst = 0.0
        for series, value in values:
            forecast = target.forecasts.get(series)
            if forecast is None:
                if len(target.forecasts) >= TRACKED:
                    continue
                forecast = target.forecasts[series] = Forecast()
            worst = max(worst, forecast.error(now_s, value))
        target.error += 0.1 * (min(worst, 100.0) - target.error)
        is_surprise = worst > target.bar
        # So that in the long run RARE of the samples are above it.
        target.bar = max(SURPRISE, target.bar * math.exp(0.2 * (is_surprise - RARE)))
        if target.looks:
            target.looks -= 1
        elif is_surprise:
            self._surprised(target, now_s)
        target.last_s = now_s
        return SHORTEST_S if target.looks and self._pay(target, now_s) else self.interval(name)

    def _surprised(self, target: Target, now_s: float) -> None:
        target.surprises = target.surprises * math.exp((target.learnt_s - now_s) / MEMORY_S) + 1
        target.learnt_s = now_s
        self.surprises += 1
        if target.last_s is not None:
            self.gap_sum_s += now_s - target.last_s
            self.gap_count += 1
        if self.plan is not None:
            target.looks = LOOKS

    def _pay(self, target: Target, now_s: float) -> bool:
        """For one further look, of what was saved up for them."""
        income = self.budget() * FOR_LOOKS
        if self._saved_at_s is not None:
            self._saved += income * (now_s - self._saved_at_s)
        else:
            self._saved = max(income * SAVED_S / 2, float(LOOKS * target.samples))
        self._saved = min(self._saved, max(income * SAVED_S, 2.0 * LOOKS * target.samples))
        self._saved_at_s = now_s
        if self._saved < target.samples:
            target.looks = 0
            return False
        self._saved -= target.samples
        self.further_looks += 1
        return True

    def demands(self, now_s: float) -> list[Demand]:
        """Of every target."""
        return [Demand(name, one.samples, one.rate(now_s)) for name, one in self.targets.items()]


def unseen_s(demands: Sequence[Demand], plan: Plan | None, interval_s: float) -> float:
    """How long an anomaly goes unseen in the mean, if they come as they did."""
    rates = sum(demand.rate for demand in demands)
    if not rates:
        return 0.0
    if plan is None:
        return interval_s / 2
    return sum(demand.rate * plan.get(demand.name, interval_s) / 2 for demand in demands) / rates


def shared(demands: Sequence[Demand], samples_per_s: float) -> dict[str, float]:
    """Intervals that spend the budget, less what is for further looks, where the rates are."""
    spendable = samples_per_s * (1 - FOR_LOOKS)
    wanted = [(demand, math.sqrt(demand.samples / demand.rate)) for demand in demands]

    def intervals(scale: float) -> dict[str, float]:
        return {demand.name: min(LONGEST_S, max(SHORTEST_S, scale * root)) for demand, root in wanted}

    def spent(scale: float) -> float:
        plan = intervals(scale)
        return sum(demand.samples / plan[demand.name] for demand in demands)

    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = math.sqrt(low * high)
        if spent(middle) > spendable:
            low = middle
        else:
            high = middle
    return intervals(high)
