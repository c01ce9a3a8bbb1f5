"""Quantiles of a stream in bounded memory, to a relative error that is known and guaranteed. Pure.

A logarithmic histogram (DDSketch, Masson, Rim and Lee, VLDB 2019) whose bins are joined in pairs
when there are too many (UDDSketch, Epicoco et al., 2020): at level k every quantile is within
``relative_error(k)`` of the true one, whatever the distribution. Sketches of any levels merge without
further error, and in any order. The first few values are kept as they are, and their quantiles are exact.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence

from msgspec import Struct

FINEST_ERROR = 0.001
"""Relative error of level 0; it about doubles with each level."""
LEVELS = 14
"""At the coarsest all positive values are a handful of bins."""
EXACT = 32
"""Values kept as they are."""
BINS_MIN = 32
BINS_MAX = 2048
"""One series' share, at most: seven powers of e at 0.2 %, and more is of no use."""
SMALLEST = 1e-9
"""What is closer to zero counts as zero."""
LARGEST = 1e15
BIN_BYTES = 8

_LN_GAMMA = 2 * math.atanh(FINEST_ERROR)


def relative_error(level: int) -> float:
    """The most that a quantile may be off at this level, as part of the true value."""
    return math.tanh(math.ldexp(_LN_GAMMA, level) / 2)


def bins_at(level: int, nats: float) -> int:
    """How many bins values that span so many powers of e take up."""
    return math.ceil(math.ldexp(nats / _LN_GAMMA, -level)) + 1


def rounded(value: float, level: int) -> float:
    """What a positive value is taken for at this level."""
    width = math.ldexp(_LN_GAMMA, level)
    return math.exp(math.ceil(math.log(value) / width) * width) * 2 / (1 + math.exp(width))


class State(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sketch at rest: on disk, and between instances. The arrays are of little-endian doubles."""

    level: int = 0
    positive: bytes = b""
    positive_low: int = 0
    negative: bytes = b""
    negative_low: int = 0
    zeros: float = 0.0
    exact: bytes | None = None
    count: float = 0.0
    squares: float = 0.0
    total: float = 0.0
    low: float | None = None
    high: float | None = None


class Sketch:
    """Values, each with a weight: how many it stands for."""

    __slots__ = (
        "_negative",
        "_negative_low",
        "_positive",
        "_positive_low",
        "_scale",
        "_zeros",
        "bins_max",
        "count",
        "exact",
        "high",
        "level",
        "low",
        "squares",
        "total",
    )

    def __init__(self, bins_max: int) -> None:
        self.bins_max = bins_max
        self.level = 0
        self._scale = 1 / _LN_GAMMA
        self._positive = array("d")
        self._positive_low = 0
        self._negative = array("d")
        self._negative_low = 0
        self._zeros = 0.0
        self.exact: array[float] | None = array("d")
        self.count = 0.0
        """Sum of the weights."""
        self.squares = 0.0
        """Sum of the squared weights: with weights that differ, fewer values are known than are stood for."""
        self.total = 0.0
        self.low = math.inf
        self.high = -math.inf

    def add(self, value: float, weight: float = 1.0) -> None:
        """One value, between -LARGEST and LARGEST."""
        self.count += weight
        self.squares += weight * weight
        self.total += value * weight
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value
        if self.exact is not None:
            if weight == 1.0 and len(self.exact) < EXACT:
                self.exact.append(value)
                return
            self.blur()
        self._put(value, weight)

    def blur(self) -> None:
        """Keep no value exactly any more."""
        exact, self.exact = self.exact, None
        for value in exact or ():
            self._put(value, 1.0)

    def _put(self, value: float, weight: float) -> None:
        if value >= SMALLEST:
            at = math.ceil(math.log(value) * self._scale)
            index = at - self._positive_low
            if 0 <= index < len(self._positive):
                self._positive[index] += weight
            else:
                self._positive, self._positive_low = _grown(self._positive, self._positive_low, at, weight)
                self._fit()
        elif value <= -SMALLEST:
            at = math.ceil(math.log(-value) * self._scale)
            self._negative, self._negative_low = _grown(self._negative, self._negative_low, at, weight)
            self._fit()
        else:
            self._zeros += weight

    def _fit(self) -> None:
        while len(self._positive) + len(self._negative) > self.bins_max and self.level < LEVELS:
            self.coarsen(self.level + 1)

    def fit(self, bins_max: int) -> None:
        """Have no more bins than so many from now on."""
        self.bins_max = bins_max
        self._fit()

    def coarsen(self, level: int) -> None:
        """Join bins until the level is reached; a sketch that is as coarse already stays as it is."""
        while self.level < level:
            self._positive, self._positive_low = _halved(self._positive, self._positive_low)
            self._negative, self._negative_low = _halved(self._negative, self._negative_low)
            self.level += 1
        self._scale = math.ldexp(1 / _LN_GAMMA, -self.level)

    def merge(self, other: Sketch) -> None:
        """Take in another, which stays as it is."""
        self.count += other.count
        self.squares += other.squares
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        if other.exact is not None:
            if self.exact is not None and len(self.exact) + len(other.exact) <= EXACT:
                self.exact.extend(other.exact)
                return
            if self.exact is not None:
                self.blur()
            for value in other.exact:
                self._put(value, 1.0)
            return
        if self.exact is not None:
            self.blur()
        self.coarsen(other.level)
        shift = self.level - other.level
        self._zeros += other._zeros
        for index, weight in enumerate(other._positive, other._positive_low):
            if weight:
                at = -(-index >> shift)
                self._positive, self._positive_low = _grown(self._positive, self._positive_low, at, weight)
        for index, weight in enumerate(other._negative, other._negative_low):
            if weight:
                at = -(-index >> shift)
                self._negative, self._negative_low = _grown(self._negative, self._negative_low, at, weight)
        self._fit()

    # -- questions --------------------------------------------------------------------------------------

    @property
    def error(self) -> float:
        """The most that a quantile may be off, as part of the true value."""
        return 0.0 if self.exact is not None else relative_error(self.level)

    @property
    def effective(self) -> float:
        """How many equally weighted values would tell as much (Kish)."""
        return self.count * self.count / self.squares if self.squares else 0.0

    @property
    def bytes(self) -> int:
        """What the values take up."""
        kept = len(self._positive) + len(self._negative) + (len(self.exact) if self.exact is not None else 0)
        return kept * BIN_BYTES

    @property
    def nats(self) -> float:
        """How many powers of e the positive and the negative values span."""
        span = 0.0
        if self.high >= SMALLEST:
            span += math.log(self.high / max(self.low, self._smallest_positive()))
        if self.low <= -SMALLEST:
            span += math.ldexp(len(self._negative) * _LN_GAMMA, self.level)
        return span

    def _smallest_positive(self) -> float:
        if self.low >= SMALLEST:
            return self.low
        if self.exact is not None:
            return min(value for value in self.exact if value >= SMALLEST)
        return min(self.high, math.exp(math.ldexp((self._positive_low - 1) * _LN_GAMMA, self.level)))

    def ascending(self) -> Iterator[tuple[float, float]]:
        """(value, weight), by value."""
        if self.exact is not None:
            for value in sorted(self.exact):
                yield value, 1.0
            return
        width = math.ldexp(_LN_GAMMA, self.level)
        middle = 2 / (1 + math.exp(width))
        for index in range(len(self._negative) - 1, -1, -1):
            if weight := self._negative[index]:
                value = -math.exp((self._negative_low + index) * width) * middle
                yield min(max(value, self.low), self.high), weight
        if self._zeros:
            yield min(max(0.0, self.low), self.high), self._zeros
        for index, weight in enumerate(self._positive, self._positive_low):
            if weight:
                yield min(max(math.exp(index * width) * middle, self.low), self.high), weight

    def quantiles(self, of: Sequence[float]) -> list[float]:
        """For each q the smallest value that a part q of all do not exceed; NaN while there is none."""
        answers = dict.fromkeys(of, math.nan)
        wanted = sorted(answers)
        below, at = 0.0, 0
        slack = self.count * 1e-12  # weights are added up in different orders
        for value, weight in self.ascending():
            below += weight
            while at < len(wanted) and below >= wanted[at] * self.count - slack:
                answers[wanted[at]] = value
                at += 1
        for q in wanted[at:]:
            answers[q] = self.high if self.count else math.nan
        return [answers[q] for q in of]

    # -- at rest ----------------------------------------------------------------------------------------

    def state(self) -> State:
        """All of it, as a value."""
        return State(
            level=self.level,
            positive=self._positive.tobytes(),
            positive_low=self._positive_low,
            negative=self._negative.tobytes(),
            negative_low=self._negative_low,
            zeros=self._zeros,
            exact=None if self.exact is None else self.exact.tobytes(),
            count=self.count,
            squares=self.squares,
            total=self.total,
            low=self.low if self.count else None,
            high=self.high if self.count else None,
        )

    @classmethod
    def of(cls, state: State, bins_max: int) -> Sketch:
        """The sketch of a state, in so many bins at most; raises ValueError for what no sketch can have been."""
        sketch = cls(bins_max)
        sketch._positive = _floats(state.positive)
        sketch._negative = _floats(state.negative)
        sketch._positive_low, sketch._negative_low = state.positive_low, state.negative_low
        sketch._zeros = state.zeros
        sketch.exact = None if state.exact is None else _floats(state.exact)
        sketch.count, sketch.squares, sketch.total = state.count, state.squares, state.total
        sketch.low = math.inf if state.low is None else state.low
        sketch.high = -math.inf if state.high is None else state.high
        if not 0 <= state.level <= LEVELS:
            raise ValueError(f"level {state.level} is not 0 to {LEVELS}")
        sketch.level = state.level
        sketch._scale = math.ldexp(1 / _LN_GAMMA, -state.level)
        sketch._check()
        sketch._fit()
        return sketch

    def _check(self) -> None:
        bins = (*self._positive, *self._negative, self._zeros)
        numbers = (self.count, self.squares, self.total, *bins, *(self.exact or ()))
        if not all(math.isfinite(number) for number in numbers) or min(self.count, self.squares, *bins) < 0:
            raise ValueError("a weight is negative or not finite")
        if self.exact is not None and (any(bins) or len(self.exact) > EXACT):
            raise ValueError(f"exact values are at most {EXACT}, and without bins")
        held = sum(bins) + (len(self.exact) if self.exact is not None else 0)  # fsum raises where this is infinite
        if not math.isclose(held, self.count, rel_tol=1e-6, abs_tol=1e-6):
            raise ValueError(f"the weights add up to {held:g}, not to the count of {self.count:g}")
        if self.count and not -LARGEST <= self.low <= self.high <= LARGEST:
            raise ValueError("there is no range of the values")
        if self.exact and not (self.low == min(self.exact) and self.high == max(self.exact)):
            raise ValueError("the exact values are not within their range")
        furthest = bins_at(self.level, math.log(LARGEST)) + 1
        nearest = -bins_at(self.level, -math.log(SMALLEST)) - 1
        for counts, low in ((self._positive, self._positive_low), (self._negative, self._negative_low)):
            if not nearest <= low <= low + max(len(counts) - 1, 0) <= furthest:
                raise ValueError("a bin is beyond the largest or the smallest value")


def _floats(raw: bytes) -> array[float]:
    if len(raw) % BIN_BYTES:
        raise ValueError(f"{len(raw)} bytes are no doubles")
    return array("d", raw)


def _grown(counts: array[float], low: int, at: int, weight: float) -> tuple[array[float], int]:
    """The bins with the weight added at an index, where they may have to grow to."""
    if not counts:
        return array("d", (weight,)), at
    if at < low:
        counts = array("d", bytes(BIN_BYTES * (low - at))) + counts
        low = at
    elif at >= low + len(counts):
        counts.frombytes(bytes(BIN_BYTES * (at - low - len(counts) + 1)))
    counts[at - low] += weight
    return counts, low


def _halved(counts: array[float], low: int) -> tuple[array[float], int]:
    """Bins 2j-1 and 2j become bin j."""
    if not counts:
        return counts, 0
    first = (low + 1) >> 1
    last = (low + len(counts)) >> 1
    joined = array("d", bytes(BIN_BYTES * (last - first + 1)))
    for index, weight in enumerate(counts, low):
        joined[((index + 1) >> 1) - first] += weight
    return joined, first
