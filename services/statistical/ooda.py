"""The budget loop: shares the memory for quantiles out, so that a byte is where it lowers the error most.

The arithmetic is in budget.py; the measurements are the store's. A decision is a whole allocation, as what one series
gains others give. It holds from each series' next slot on.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from msgspec import Struct

from cdn_daemon.ooda import OodaLoop
from services.statistical import budget
from services.statistical.budget import Demand
from services.statistical.intake import Intake
from services.statistical.sketch import BINS_MIN
from services.statistical.store import Measured, Store

WORTH = 0.8
"""An allocation has to promise to bring the mean error below this part of what it is."""
STEADY = 3
T = TypeVar("T")
ENOUGH = 0.002
"""Nobody needs quantiles any better: two of a thousand."""


class Kept(Generic[T]):
    """What only the last look needs: thousands of values, which the cycles do not keep and GET /ooda does not show."""

    def __init__(self, values: tuple[T, ...]) -> None:
        self.values = values
        self._count = len(values)

    def __repr__(self) -> str:
        return f"{self._count} of them"


class Observation(Struct, frozen=True, kw_only=True):
    """One look."""

    samples_per_s: float
    queue_bytes: int
    sampled_ratio: float
    series: int
    bytes_per_series: float
    distributions: Kept[Measured]
    bins: int
    reserve: int
    """Bins of those distributions that are known and had no values lately."""
    steady: int = 0
    """For so many looks there have been about as many distributions: only then there is something to compare with."""


class Picture(Struct, frozen=True, kw_only=True):
    """What it means."""

    measured_error: float | None
    """The mean over the panel, of the upper quantiles; None if there is no panel."""
    bound: float
    """The mean of what is guaranteed."""
    promised: float
    """What the bound would be with the best allocation."""
    error_per_kib: float
    """Of the bound, in the memory that is used."""
    drift: float
    """The part of the distributions that span 1.5 times more or less than when the bins were shared out."""
    bins_used: int
    is_steady: bool
    best: Kept[tuple[str, int]]
    """(name, bins) of those that would have more than the least."""


class Allocation:
    """Bins of each distribution; every other one has the least.

    All are the same change to the framework: where one did not help, another does not either for a while.
    """

    def __init__(self, bins: tuple[tuple[str, int], ...]) -> None:
        self.bins = bins

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allocation)

    def __hash__(self) -> int:
        return hash(Allocation)

    def __repr__(self) -> str:
        """For the log, and for GET /ooda."""
        return f"{sum(bins for _, bins in self.bins)} bins for {len(self.bins)} series, the least for the others"


class BudgetLoop(OodaLoop[Observation, Picture, Allocation]):
    """Observes how wide and how far off each distribution is, and shares the bins out anew where that is worth it."""

    min_gain = 0.1
    hold_off_s = 600.0

    def __init__(self, store: Store, intake: Intake) -> None:
        self._store = store
        self._intake = intake
        self.period_s = float(store.limits.slot_s)
        self.settle_s = 3.5 * store.limits.slot_s
        self._samples = 0
        self._steady = self._as_many = 0
        self._before: dict[str, int] | None = None
        self._spans: dict[str, float] = {}

    def observe(self) -> Observation | None:
        """The last slots; None while there are no distributions in them."""
        store = self._store
        if self.cycles:
            self.cycles[-1].observation.distributions.values = ()
            self.cycles[-1].picture.best.values = ()
        with store.lock:
            distributions = tuple(store.measured(store.clock.slot()))
            samples, series, size = store.samples, len(store.series), store.bytes()
            known = store.distributions
        store.bytes_seen = size
        came, self._samples = samples - self._samples, samples
        if not distributions:
            return None
        is_steady = abs(len(distributions) - self._as_many) <= 0.1 * self._as_many
        self._steady, self._as_many = (self._steady + 1 if is_steady else 0), len(distributions)
        return Observation(
            samples_per_s=came / self.period_s,
            queue_bytes=self._intake.queue_bytes,
            sampled_ratio=self._intake.throttle.probability,
            series=series,
            bytes_per_series=size / max(1, series),
            distributions=Kept(distributions),
            bins=store.bins,
            reserve=BINS_MIN * max(0, known - len(distributions)),
            steady=self._steady,
        )

    def orient(self, observation: Observation) -> Picture:
        """How good the quantiles are, and how good they could be."""
        seen = observation.distributions.values
        demands = [Demand(name=one.name, nats=one.nats, count=one.count) for one in seen]
        shares = budget.allocate(demands, observation.bins - observation.reserve)
        bounds = [budget.expected_error(demand, one.bins) for demand, one in zip(demands, seen, strict=True)]
        promised = [budget.expected_error(demand, shares[demand.name]) for demand in demands]
        errors = [one.error for one in seen if one.error is not None]
        used = sum(one.bins for one in seen)
        drifted = [one for one in seen if (then := self._spans.get(one.name)) and not 2 / 3 <= one.nats / then <= 1.5]
        bound = sum(bounds) / len(seen)
        return Picture(
            measured_error=sum(errors) / len(errors) if errors else None,
            bound=bound,
            promised=sum(promised) / len(seen),
            error_per_kib=bound / max(used * 8 / 1024, 1e-9),
            drift=len(drifted) / len(seen),
            bins_used=used,
            is_steady=observation.steady >= STEADY,
            best=Kept(tuple((name, bins) for name, bins in shares.items() if bins > BINS_MIN)),
        )

    def decide(self, picture: Picture) -> Allocation | None:
        """Another allocation, if it promises enough; else, and mostly, nothing."""
        if not picture.is_steady or picture.bound <= ENOUGH or picture.promised > WORTH * picture.bound:
            return None
        return Allocation(picture.best.values)

    def cost(self, picture: Picture, decision: Allocation) -> float | None:
        """The error of the upper quantiles, as measured."""
        return picture.measured_error

    def act(self, decision: Allocation) -> None:
        """From each series' next slot on."""
        store = self._store
        with store.lock:
            self._before, store.shares = store.shares, dict(decision.bins)
            self._spans = {one.name: one.nats for one in store.measured(store.clock.slot())}

    def undo(self, decision: Allocation) -> None:
        """As it was before."""
        with self._store.lock:
            self._store.shares = self._before
