"""One series as it is now: its open slot, how it did in the last one, and whether it changes."""

from __future__ import annotations

import random

from services.statistical import sketch
from services.statistical.aggregates import Aggregate, Counter, Distribution, Gauge, Set, merged
from services.statistical.changes import Detector
from services.statistical.statsd import MEMBER_BYTES, GarbageError, Kind

RESERVOIR = 200
TAIL = 0.1
"""The part of a reservoir's values that stand for the upper quantiles: from p90 on."""


class Reservoir:
    """Some of a slot's values, each with the same probability (Vitter's algorithm R), to compare the sketch with."""

    __slots__ = ("seen", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self.seen = 0

    def hear(self, value: float) -> None:
        """One more."""
        self.seen += 1
        if len(self.values) < RESERVOIR:
            self.values.append(value)
        elif (at := int(random.random() * self.seen)) < RESERVOIR:
            self.values[at] = value

    def error(self, of: sketch.Sketch) -> float | None:
        """How far the sketch is off at the upper quantiles, as part of the true values; None if there are none.

        The values are known exactly, and what the sketch takes each for follows from its level alone. So this
        is its error, and no sampling noise.
        """
        top = sorted(self.values)[-max(1, round(len(self.values) * TAIL)) :]
        top = [value for value in top if value >= sketch.SMALLEST]
        if not top:
            return None
        if of.exact is not None:
            return 0.0
        # The largest of all is known, and in small slots it is the p99.9 itself.
        taken = [value if value == of.high else sketch.rounded(value, of.level) for value in top]
        return sum(abs(guess / value - 1) for guess, value in zip(taken, top, strict=True)) / len(top)


class Series:
    """A name of one kind, and what came in since its slot began."""

    __slots__ = (
        "_carried",
        "_carried_count",
        "aggregate",
        "bins_max",
        "count_before",
        "detector",
        "dirty",
        "error",
        "gauge",
        "id",
        "kind",
        "name",
        "nats",
        "reservoir",
        "seen_s",
        "slot",
        "slot_count",
        "total_before",
    )

    def __init__(self, id: int, kind: Kind, name: str, bins_max: int) -> None:
        self.id = id
        self.kind = kind
        self.name = name
        self.bins_max = bins_max
        self.slot = 0
        self.aggregate: Aggregate | None = None
        self.dirty = False
        self.gauge = 0.0
        self.seen_s = 0.0
        self.detector: Detector | None = None
        self.reservoir: Reservoir | None = None
        self._carried = self._carried_count = 0.0
        self.total_before = self.count_before = 0.0
        self.nats = 0.0
        """Powers of e that a distribution's values spanned in the last slot."""
        self.slot_count = 0.0
        self.error: float | None = None
        """Of the upper quantiles, as measured in the last slot; None where it was not."""

    def add(self, text: bytes, weight: float, now_s: float) -> None:
        """One sample, of the slot that is open. Raises GarbageError."""
        self.dirty = True
        self.seen_s = now_s
        match self.aggregate:
            case Counter() as counter:
                counter.add(text, weight)
            case Distribution() as distribution:
                value = distribution.add(text, weight)
                if self.reservoir is not None:
                    self.reservoir.hear(value)
            case Gauge() as gauge:
                gauge.add(text, weight, now_s)
                self.gauge = gauge.last
            case Set() as members:
                if len(text) > MEMBER_BYTES:
                    raise GarbageError("long", f"the member has more than {MEMBER_BYTES} bytes")
                members.add(text, weight)

    def merge(self, other: Aggregate, now_s: float) -> None:
        """What another instance has taken, into the slot that is open; raises ValueError for another kind."""
        assert self.aggregate is not None
        merged(self.aggregate, other)
        self.dirty = True
        self.seen_s = now_s
        if isinstance(self.aggregate, Gauge):
            self.gauge = self.aggregate.last

    def turn(self, slot: int) -> Closed | None:
        """Begin with another slot; what was held of the one before."""
        closed = None
        if self.aggregate is not None:
            closed = Closed(self, self.slot, self.aggregate)
            match self.aggregate:
                case Counter():
                    self._carried += self.aggregate.total
                case Distribution(sketch=of):
                    self._carried += of.total
                    self._carried_count += of.count
                    self.nats, self.slot_count = of.nats, of.count
                    if self.reservoir is not None:
                        self.error = self.reservoir.error(of)
                        self.reservoir = Reservoir()
        self.slot = slot
        self.aggregate = self.fresh()
        return closed

    def fresh(self) -> Aggregate:
        """An aggregate of its kind with nothing in it."""
        match self.kind:
            case Kind.COUNTER:
                return Counter()
            case Kind.GAUGE:
                return Gauge(last=self.gauge)
            case Kind.DISTRIBUTION:
                return Distribution(self.bins_max)
            case Kind.SET:
                return Set()

    def since_last_time(self, elapsed_s: float) -> float | None:
        """The rate of a counter, or the mean of a distribution, since the last call; None if there is none."""
        match self.aggregate:
            case Counter(total=total):
                total += self._carried
                rate = (total - self.total_before) / elapsed_s
                self.total_before = total
                return rate
            case Distribution(sketch=of):
                total, count = self._carried + of.total, self._carried_count + of.count
                came = count - self.count_before
                mean = (total - self.total_before) / came if came else None
                self.total_before, self.count_before = total, count
                return mean
        return None

    @property
    def bytes(self) -> int:
        """What its open slot takes."""
        return self.aggregate.bytes if self.aggregate is not None else 0


class Closed:
    """A slot that is over, until it is on disk."""

    __slots__ = ("aggregate", "series", "slot")

    def __init__(self, series: Series, slot: int, aggregate: Aggregate) -> None:
        self.series = series
        self.slot = slot
        self.aggregate = aggregate
