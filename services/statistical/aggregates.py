"""What is kept of a series for a stretch of time: one aggregate for each kind. All of them merge.

A sample is taken with a weight, the inverse of the probability with which it was (Horvitz and
Thompson): totals and counts are unbiased however few of the samples were looked at.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import msgspec
from msgspec import Struct

from services.statistical.sets import Distinct
from services.statistical.sketch import Sketch, State
from services.statistical.statsd import GarbageError, Kind, number

SERVICE_BINS = 4096
"""A merge of many stretches is coarsened only beyond this; each by itself was within its share."""
PACKED_FROM_BYTES = 256
UNPACKED_BYTES = 1 << 20
RECEIVED_MOST = 1 << 53
"""No more is counted: an hour of such slots still fits into the 64 bits there are on disk."""
SENT_MOST = 1e100
"""A sum of another instance is at most so large; it takes more of them than can ever be sent to add up to infinity."""


class CounterState(Struct, frozen=True, kw_only=True, tag="counter", omit_defaults=True):
    """A counter at rest."""

    received: int = 0
    total: float = 0.0
    variance: float = 0.0


class GaugeState(Struct, frozen=True, kw_only=True, tag="gauge", omit_defaults=True):
    """A gauge at rest."""

    received: int = 0
    count: float = 0.0
    total: float = 0.0
    last: float = 0.0
    last_s: float = 0.0
    low: float = 0.0
    high: float = 0.0


class DistributionState(Struct, frozen=True, kw_only=True, tag="distribution", omit_defaults=True):
    """A distribution at rest."""

    received: int = 0
    sketch: State


class SetState(Struct, frozen=True, kw_only=True, tag="set", omit_defaults=True):
    """A set at rest."""

    received: int = 0
    count: float = 0.0
    hll: bytes = b""
    frequent: bytes = b""


AnyState = CounterState | GaugeState | DistributionState | SetState


class Counter:
    """A sum of increments."""

    __slots__ = ("received", "total", "variance")
    kind = Kind.COUNTER

    def __init__(self, state: CounterState | None = None) -> None:
        state = state or CounterState()
        self.received, self.total, self.variance = state.received, state.total, state.variance

    def add(self, text: bytes, weight: float) -> None:
        """``1``, ``-2.5``. Raises GarbageError."""
        value = number(text)
        self.received += 1
        self.total += value * weight
        if weight != 1.0:
            # Of Poisson sampling; what the sender has sampled itself is no different.
            self.variance += value * value * (weight * weight - weight)

    def merge(self, other: Counter) -> None:
        """Add the other's."""
        self.received = min(self.received + other.received, RECEIVED_MOST)
        self.total += other.total
        self.variance += other.variance

    def state(self) -> CounterState:
        """At rest."""
        return CounterState(received=self.received, total=self.total, variance=self.variance)

    @property
    def bytes(self) -> int:
        """Of the numbers."""
        return 24


class Gauge:
    """A value that is as it was set last."""

    __slots__ = ("count", "high", "last", "last_s", "low", "received", "total")
    kind = Kind.GAUGE

    def __init__(self, state: GaugeState | None = None, last: float = 0.0) -> None:
        state = state or GaugeState(last=last)
        self.received, self.count, self.total = state.received, state.count, state.total
        self.last, self.last_s, self.low, self.high = state.last, state.last_s, state.low, state.high

    def add(self, text: bytes, weight: float, now_s: float) -> None:
        """``7`` sets, ``+7`` and ``-7`` move. Raises GarbageError.

        A move is weighted, as a counter's increment is: others like it were not looked at.
        """
        value = number(text)
        if text[:1] in (b"+", b"-"):
            value = number(b"%r" % (self.last + value * weight))
        if not self.count:
            self.low = self.high = value
        self.received += 1
        self.count += weight
        self.total += value * weight
        self.last, self.last_s = value, now_s
        self.low, self.high = min(self.low, value), max(self.high, value)

    def merge(self, other: Gauge) -> None:
        """What was set later holds."""
        if not other.count:
            return
        self.low = min(self.low, other.low) if self.count else other.low
        self.high = max(self.high, other.high) if self.count else other.high
        self.received = min(self.received + other.received, RECEIVED_MOST)
        self.count += other.count
        self.total += other.total
        if other.last_s >= self.last_s:
            self.last, self.last_s = other.last, other.last_s

    def state(self) -> GaugeState:
        """At rest."""
        return GaugeState(
            received=self.received,
            count=self.count,
            total=self.total,
            last=self.last,
            last_s=self.last_s,
            low=self.low,
            high=self.high,
        )

    @property
    def bytes(self) -> int:
        """Of the numbers."""
        return 56


class Distribution:
    """Values, and their quantiles."""

    __slots__ = ("received", "sketch")
    kind = Kind.DISTRIBUTION

    def __init__(self, bins_max: int, state: DistributionState | None = None) -> None:
        self.received = state.received if state else 0
        self.sketch = Sketch.of(state.sketch, bins_max) if state else Sketch(bins_max)

    def add(self, text: bytes, weight: float) -> float:
        """``0.25``, which is returned as a number. Raises GarbageError."""
        value = number(text)
        self.sketch.add(value, weight)
        self.received += 1
        return value

    def merge(self, other: Distribution) -> None:
        """Take in the other's."""
        self.received = min(self.received + other.received, RECEIVED_MOST)
        self.sketch.merge(other.sketch)

    def state(self) -> DistributionState:
        """At rest."""
        return DistributionState(received=self.received, sketch=self.sketch.state())

    @property
    def bytes(self) -> int:
        """Of the values."""
        return 64 + self.sketch.bytes


class Set:
    """Members, how many different ones, and which most often."""

    __slots__ = ("count", "distinct", "received")
    kind = Kind.SET

    def __init__(self, state: SetState | None = None) -> None:
        self.received = state.received if state else 0
        self.count = state.count if state else 0.0
        self.distinct = Distinct(state.hll, state.frequent) if state else Distinct()

    def add(self, text: bytes, weight: float) -> None:
        """A member. Raises GarbageError."""
        try:
            self.distinct.add(text.decode(), weight)
        except UnicodeDecodeError:
            raise GarbageError("utf8", "the member is not UTF-8") from None
        self.received += 1
        self.count += weight

    def merge(self, other: Set) -> None:
        """Take in the other's."""
        self.received = min(self.received + other.received, RECEIVED_MOST)
        self.count += other.count
        self.distinct.merge(other.distinct)

    def state(self) -> SetState:
        """At rest."""
        hll, frequent = self.distinct.state()
        return SetState(received=self.received, count=self.count, hll=hll, frequent=frequent)

    @property
    def bytes(self) -> int:
        """Of the sketches."""
        return self.distinct.bytes


Aggregate = Counter | Gauge | Distribution | Set


def of(state: AnyState, bins_max: int = SERVICE_BINS) -> Aggregate:
    """The aggregate of a state; raises ValueError for what none can have been."""
    match state:
        case CounterState():
            _check(state.received, state.variance, total=state.total)
            return Counter(state)
        case GaugeState():
            _check(state.received, state.count, total=state.total + state.last + state.low + state.high + state.last_s)
            return Gauge(state)
        case DistributionState():
            _check(state.received)
            return Distribution(bins_max, state)
        case SetState():
            _check(state.received, state.count)
            return Set(state)


def _check(received: int, *counts: float, total: float = 0.0) -> None:
    if not math.isfinite(total) or not all(math.isfinite(count) and count >= 0 for count in (received, *counts)):
        raise ValueError("a number is negative or not finite")
    if received > RECEIVED_MOST:
        raise ValueError(f"more samples are said to have been received than {RECEIVED_MOST}")


def sent(state: AnyState) -> Aggregate:
    """The aggregate of another instance's state; raises ValueError also for what is too large to be added up."""
    of_sketch = msgspec.structs.asdict(state.sketch) if isinstance(state, DistributionState) else {}
    for one in (*msgspec.structs.asdict(state).values(), *of_sketch.values()):
        if isinstance(one, float) and abs(one) > SENT_MOST:
            raise ValueError(f"a number is beyond {SENT_MOST:g}")
    return of(state)


def merged(first: Aggregate, second: Any) -> None:
    """Take the second into the first; both must be of the same kind."""
    if first.kind is not second.kind:
        raise ValueError(f"cannot merge a {second.kind} into a {first.kind}")
    first.merge(second)


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyState] = msgspec.msgpack.Decoder(AnyState)


def packed(aggregate: Aggregate) -> bytes:
    """For the disk."""
    return packed_state(aggregate.state())


def packed_state(state: AnyState) -> bytes:
    """For the disk."""
    raw = _encoder.encode(state)
    return b"z" + zlib.compress(raw, 1) if len(raw) > PACKED_FROM_BYTES else b"-" + raw


def unpacked(blob: bytes, bins_max: int = SERVICE_BINS) -> Aggregate:
    """From the disk; raises ValueError."""
    try:
        raw = zlib.decompressobj().decompress(blob[1:], UNPACKED_BYTES) if blob[:1] == b"z" else blob[1:]
        return of(_decoder.decode(raw), bins_max)
    except (msgspec.MsgspecError, zlib.error) as error:
        raise ValueError(f"cannot read an aggregate: {error}") from error
