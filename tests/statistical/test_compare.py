"""Two samples, from their sketches: as a library has it, and no difference made up by the sketching."""

from __future__ import annotations

import random

import pytest

from services.statistical.compare import kolmogorov, kolmogorov_smirnov, mann_whitney
from services.statistical.sketch import Sketch
from tests.statistical.test_sketch import of

A = [3.1, 4.7, 5.2, 6.0, 6.8, 7.7, 8.1, 9.4, 10.2, 11.5]
B = [5.9, 7.1, 8.8, 9.9, 10.4, 11.8, 12.6, 13.3, 14.9, 15.2, 16.1]


def test_small_samples_as_scipy_has_them() -> None:
    """scipy 1.16; for KS only the statistic, as ours corrects the p value for small samples."""
    ks, mw = kolmogorov_smirnov(of(A), of(B)), mann_whitney(of(A), of(B))
    assert ks.statistic == pytest.approx(0.5454545454545454)
    assert 0.03 < ks.p_value < 0.07
    assert mw.p_value == pytest.approx(0.010162438913637686)
    assert mw.second_is_larger == pytest.approx(92 / 110)
    assert mw.effect == pytest.approx(2 * 92 / 110 - 1)


@pytest.mark.parametrize(
    ("x", "p"),
    [(0.3, 0.9999906941986655), (0.8, 0.5441424115741981), (1.36, 0.04948587675537788), (3, 3.045995948942526e-08)],
)
def test_kolmogorovs_distribution(x: float, p: float) -> None:
    """scipy.special.kolmogorov."""
    assert kolmogorov(x) == pytest.approx(p)


def test_the_level_makes_no_difference_up() -> None:
    """The same values at two levels are the same; others of the same distribution are no further off than before."""
    rng = random.Random(4)
    values = [rng.lognormvariate(0, 1) for _ in range(3000)]
    assert kolmogorov_smirnov(of(values, 2000), of(values, 64)).statistic == pytest.approx(0, abs=1e-12)
    others = [rng.lognormvariate(0, 1) for _ in range(3000)]
    fine = kolmogorov_smirnov(of(values, 2000), of(others, 2000))
    coarse = kolmogorov_smirnov(of(values, 64), of(others, 64))
    assert coarse.statistic <= fine.statistic + 1e-12


def test_under_the_null_p_values_are_no_smaller_than_they_should_be() -> None:
    """300 pairs of one distribution: below 0.05 are 15 of them, and with six deviations at most 38."""
    rng = random.Random(9)
    for test in (kolmogorov_smirnov, mann_whitney):
        small = 0
        for _ in range(300):
            pair = [of([rng.expovariate(1) for _ in range(100)], 128) for _ in range(2)]
            small += test(*pair).p_value < 0.05
        assert small <= 38


def test_weights_make_no_evidence() -> None:
    """What was sampled one in a hundred is a hundredth of the evidence."""
    rng = random.Random(2)
    first, second = Sketch(200), Sketch(200)
    for _ in range(50):
        first.add(rng.gauss(10, 1), 100.0)
        second.add(rng.gauss(10.2, 1), 100.0)
    assert first.effective == pytest.approx(50)
    assert mann_whitney(first, second).p_value > 1e-3
