"""Quantiles: within their error for any values, any order of merging, and any budget."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.statistical.sketch import BINS_MIN, EXACT, LARGEST, LEVELS, Sketch, State, bins_at, relative_error

QS = (0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0)
VALUES = st.one_of(
    st.floats(-LARGEST, LARGEST),
    st.floats(1e-3, 1e3),
    st.integers(-5, 5).map(float),
    st.floats(1e-9, 1e-6),
)
LISTS = st.lists(VALUES, min_size=1, max_size=300)


def of(values: list[float], bins: int = 256) -> Sketch:
    """The sketch of some values."""
    sketch = Sketch(bins)
    for value in values:
        sketch.add(value)
    return sketch


def holds(sketch: Sketch, values: list[float]) -> None:
    """Every quantile is within the error that the sketch tells."""
    ordered = sorted(values)
    for q, guess in zip(QS, sketch.quantiles(QS), strict=True):
        true = ordered[max(0, math.ceil(q * len(ordered) - 1e-9) - 1)]
        assert abs(guess - true) <= sketch.error * abs(true) * (1 + 1e-9) + 1e-9, (q, guess, true, sketch.level)


@given(LISTS, st.sampled_from([BINS_MIN, 64, 500]))
@settings(max_examples=200, deadline=None)
def test_every_quantile_is_within_the_error(values: list[float], bins: int) -> None:
    """Whatever the values, and within the budget."""
    sketch = of(values, bins)
    holds(sketch, values)
    assert sketch.bytes <= max(bins, EXACT) * 8
    assert sketch.count == len(values)


@given(st.lists(st.tuples(LISTS, st.sampled_from([BINS_MIN, 100, 1000])), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_merging_costs_no_error(parts: list[tuple[list[float], int]]) -> None:
    """Of sketches of any budget: the whole is within the error of the coarsest, or of its own."""
    merged, values = Sketch(256), []
    for part, bins in parts:
        merged.merge(of(part, bins))
        values += part
    holds(merged, values)
    assert merged.count == len(values)
    assert (merged.low, merged.high) == (min(values), max(values))


@given(LISTS, LISTS)
@settings(max_examples=100, deadline=None)
def test_the_order_of_merging_does_not_matter(first: list[float], second: list[float]) -> None:
    """Nor does it matter whether there are two sketches or one."""
    one, other, both = of(first), of(second), of(first + second)
    a, b = of(first), of(second)
    a.merge(other)
    b.merge(one)
    assert a.quantiles(QS) == b.quantiles(QS) == both.quantiles(QS)


@given(LISTS, st.sampled_from([BINS_MIN, 300]))
@settings(max_examples=100, deadline=None)
def test_at_rest_and_back(values: list[float], bins: int) -> None:
    """The same answers, and further values go on as they would have."""
    sketch = of(values, bins)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(sketch.state()), type=State)
    again = Sketch.of(state, bins)
    for one in (sketch, again):
        one.add(3.0)
    assert again.quantiles(QS) == sketch.quantiles(QS)
    assert again.state() == sketch.state()


def test_weights_count_as_so_many_values() -> None:
    """Nine of 1 and a 2 of weight 90: the median is 2, and fewer are known than are stood for."""
    sketch = of([1.0] * 9)
    sketch.add(2.0, 90.0)
    assert sketch.count == 99
    assert sketch.quantiles([0.05, 0.5]) == pytest.approx([1.0, 2.0], rel=2e-3)
    assert 1 < sketch.effective < 2


def test_the_error_doubles_with_the_level_and_the_bins_halve() -> None:
    """That is what the budget loop counts on."""
    for level in range(1, 7):
        assert relative_error(level) == pytest.approx(2 * relative_error(level - 1), rel=0.02)
        assert bins_at(level, 9.0) <= bins_at(level - 1, 9.0) / 2 + 2
    assert of([math.exp(n / 100) for n in range(900)], 4096).nats == pytest.approx(8.99, rel=0.01)
    assert of([math.exp(n / 100) for n in range(900)], 64).nats == pytest.approx(8.99, rel=0.01)


BLURRED = of([float(n) for n in range(1, 200)]).state()
BROKEN: dict[str, dict[str, Any]] = {
    "odd bytes": {"positive": b"123"},
    "negative weight": {"positive": b"\x00" * 7 + b"\xbf"},
    "not finite": {"total": math.inf},
    "another count": {"count": 7.0},
    "more than a double holds": {"positive": struct.pack("2d", 1.7e308, 1.7e308)},
    "no such level": {"level": LEVELS + 1},
    "far away": {"positive_low": 2**60},
    "no range": {"low": None},
    "range upside down": {"low": 300.0, "high": 1.0},
    "both exact and not": {"exact": b"\x00" * 8},
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_state_that_no_sketch_has_is_refused(how: str) -> None:
    """From another instance comes anything."""
    with pytest.raises(ValueError):
        Sketch.of(msgspec.structs.replace(BLURRED, **BROKEN[how]), 256)
