"""Change points: found soon, seldom where there is none, and both whatever the distribution."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from services.statistical.changes import HISTORY_MIN, Change, Detector, mann_whitney


def alarms(values: list[float], threshold: float = 8.0) -> list[tuple[int, Change]]:
    """(at, change) of each."""
    detector = Detector(threshold)
    return [(at, change) for at, value in enumerate(values) if (change := detector.hear(value)) is not None]


@pytest.mark.parametrize("shape", [math.exp, math.atan, lambda x: x**3, lambda x: 1e6 * x + 7])
def test_the_distribution_does_not_matter(shape: Callable[[float], float]) -> None:
    """Any monotone change of scale leaves every alarm where it was: so the false-alarm rate is the same for all."""
    rng = random.Random(7)
    values = [rng.gauss(0, 1) + 2 * (n % 400 > 300) for n in range(4000)]
    assert [at for at, _ in alarms([shape(value) for value in values])] == [at for at, _ in alarms(values)]


def test_false_alarms_are_as_rare_as_is_said() -> None:
    """At a threshold of 4 Siegmund's approximation is one in 7,672; 400,000 values give 52, were it exact.

    The bound is six deviations above: the seed makes the outcome the same each time, and the bound makes it no
    matter of the seed.
    """
    rng = random.Random(11)
    found = len(alarms([rng.random() for _ in range(400_000)], threshold=4.0))
    assert 5 <= found <= 52 + 6 * math.sqrt(52)


def test_constants_counts_and_silence_are_no_change() -> None:
    """Nor is a single outlier, however far."""
    rng = random.Random(3)
    assert alarms([5.0] * 1000) == []
    assert alarms([float(rng.random() < 0.2) for _ in range(5000)]) == []
    assert alarms([0.0] * 100 + [1e9] + [0.0] * 100) == []


@pytest.mark.parametrize(("shift", "within"), [(2.5, 30), (4, 15), (1000, 12)])
def test_a_shift_is_found_soon(shift: float, within: int) -> None:
    """Up and down, with when it began and what it was before and after."""
    rng = random.Random(5)
    for sign in (1, -1):
        values = [10 + rng.gauss(0, 1) for _ in range(100)] + [10 + sign * shift + rng.gauss(0, 1) for _ in range(60)]
        at, change = alarms(values)[0]
        assert 100 <= at < 100 + within
        assert change.direction == ("up" if sign > 0 else "down")
        assert change.before == pytest.approx(10, abs=0.5)
        assert change.after == pytest.approx(10 + sign * shift, abs=1.5)
        assert abs((at - change.ago + 1) - 100) <= 4
        assert change.p_value < 1e-4


def test_after_a_change_it_learns_anew() -> None:
    """So the way back is another change, and the level that has become usual is none."""
    values = (
        [float(n % 7) for n in range(100)] + [50.0 + n % 7 for n in range(100)] + [float(n % 7) for n in range(100)]
    )
    found = alarms(values)
    assert [change.direction for _, change in found] == ["up", "down"]
    assert found[1][0] - found[0][0] > HISTORY_MIN


def test_mann_whitney_as_scipy_has_it() -> None:
    """scipy 1.16: mannwhitneyu(…, method="asymptotic")."""
    a = [3.1, 4.7, 5.2, 6.0, 6.8, 7.7, 8.1, 9.4, 10.2, 11.5]
    b = [5.9, 7.1, 8.8, 9.9, 10.4, 11.8, 12.6, 13.3, 14.9, 15.2, 16.1]
    assert mann_whitney(a, b) == pytest.approx(0.010162438913637686)
    ties = [1.0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert mann_whitney(ties, [value + 1 for value in ties]) == pytest.approx(0.17886068602453664)
