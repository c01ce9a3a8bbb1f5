"""Whether two samples come from one distribution, and by how much they differ; from sketches. Pure.

A sketch knows values to its relative error. Both are brought to the coarser of the two levels, so that
what lies in one bin counts as equal: a difference smaller than that error is not seen, and none is made up.
"""

from __future__ import annotations

import math

from msgspec import Struct

from services.statistical.sketch import Sketch

EFFECTIVE_MIN = 8


class Verdict(Struct, frozen=True, kw_only=True):
    """Of one test."""

    test: str
    statistic: float
    p_value: float
    effect: float
    """Cliff's delta: how much more often a value of the second is the larger one; -1 to 1."""
    second_is_larger: float
    """With that probability; half of the ties counted."""


Steps = list[tuple[float, float, float]]
"""(value, weight in the first, weight in the second), by value."""


def steps(first: Sketch, second: Sketch) -> Steps:
    """Both on one scale."""
    first, second = _copy(first), _copy(second)
    if first.exact is None or second.exact is None:
        level = max(first.level, second.level)
        for sketch in (first, second):
            sketch.blur()
            sketch.coarsen(level)
            sketch.low, sketch.high = -math.inf, math.inf  # else the ends of one bin would differ
    table: dict[float, list[float]] = {}
    for which, sketch in enumerate((first, second)):
        for value, weight in sketch.ascending():
            table.setdefault(value, [0.0, 0.0])[which] += weight
    return [(value, *table[value]) for value in sorted(table)]  # type: ignore[misc]


def _copy(sketch: Sketch) -> Sketch:
    return Sketch.of(sketch.state(), sketch.bins_max)


def kolmogorov_smirnov(first: Sketch, second: Sketch) -> Verdict:
    """The largest difference of the distribution functions; sees any difference of shape."""
    n, m = first.effective, second.effective
    a = b = largest = 0.0
    both = steps(first, second)
    for _, in_first, in_second in both:
        a += in_first / first.count
        b += in_second / second.count
        largest = max(largest, abs(a - b))
    root = math.sqrt(n * m / (n + m))
    # Stephens' correction makes the asymptotic law good from a handful of values on.
    p_value = kolmogorov(largest * (root + 0.12 + 0.11 / root))
    return _verdict("ks", largest, p_value, both, first, second)


def mann_whitney(first: Sketch, second: Sketch) -> Verdict:
    """Whether values of one tend to be larger; normal approximation, corrected for ties."""
    n, m = first.effective, second.effective
    both = steps(first, second)
    larger = _second_is_larger(both, first, second)
    total = n + m
    ties = 0.0
    for _, in_first, in_second in both:
        tied = in_first / first.count * n + in_second / second.count * m
        ties += max(0.0, tied**3 - tied)
    variance = n * m / 12 * ((total + 1) - ties / (total * (total - 1)))
    away = max(0.0, abs(larger - 0.5) * n * m - 0.5)
    z = away / math.sqrt(variance) if variance > 0 else 0.0
    return _verdict("mann-whitney", larger * n * m, math.erfc(z / math.sqrt(2)), both, first, second)


TESTS = {"ks": kolmogorov_smirnov, "mann-whitney": mann_whitney}


def kolmogorov(x: float) -> float:
    """P(K > x) of Kolmogorov's distribution."""
    if x < 0.2:
        return 1.0
    if x < 1.18:  # the other series converges slowly here
        base = math.pi**2 / (8 * x * x)
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(math.exp(-((2 * k - 1) ** 2) * base) for k in range(1, 6))
    return min(1.0, 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 6)))


def _second_is_larger(both: Steps, first: Sketch, second: Sketch) -> float:
    below = larger = 0.0
    for _, in_first, in_second in both:
        larger += in_second / second.count * (below + in_first / 2)
        below += in_first
    return larger / first.count


def _verdict(test: str, statistic: float, p_value: float, both: Steps, first: Sketch, second: Sketch) -> Verdict:
    larger = _second_is_larger(both, first, second)
    return Verdict(
        test=test,
        statistic=statistic,
        p_value=min(1.0, max(0.0, p_value)),
        effect=2 * larger - 1,
        second_is_larger=larger,
    )
