"""Bands, hysteresis and the ladder, as tables; and what any series of readings keeps to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Band, Limits
from cdn_daemon.limits import (
    CLEAR,
    GiB,
    LimitError,
    LimitKeeper,
    MiB,
    Rung,
    check_limits,
    merge,
    parse_band,
    show,
)

SOFT, HARD, FOR_S = 100.0, 200.0, 10.0


def keeper(dimension: str = "fds", **changes: Any) -> LimitKeeper:
    """One band, soft 100, hard 200, for 10 s."""
    band = Band(**{"soft": SOFT, "hard": HARD, "for_s": FOR_S, **changes})
    return LimitKeeper(Limits(**{dimension: band}))


def rungs(keeper: LimitKeeper, series: list[tuple[float, float]], dimension: str = "fds") -> list[tuple[float, Rung]]:
    """When a series of (now_s, value) made which step."""
    steps = [(now_s, keeper.look(now_s, dimension, value)) for now_s, value in series]
    return [(now_s, step.rung) for now_s, step in steps if step is not None]


@pytest.mark.parametrize(
    ("dimension", "series", "expected"),
    [
        ("fds", [(0, 100), (60, 100)], []),
        ("fds", [(0, 101), (9.9, 101)], []),
        ("fds", [(0, 101), (10, 101)], [(10, Rung.SOFT)]),
        ("fds", [(0, 101), (9, 99), (10, 101), (19, 101)], []),
        ("fds", [(0, 201)], [(0, Rung.HARD)]),
        ("fds", [(0, 101), (10, 101), (20, 95), (60, 95)], [(10, Rung.SOFT)]),
        ("fds", [(0, 101), (10, 101), (20, 89), (30, 89)], [(10, Rung.SOFT), (30, Rung.FINE)]),
        ("fds", [(0, 201), (1, 240)], [(0, Rung.HARD)]),
        ("fds", [(0, 201), (1, 251)], [(0, Rung.HARD), (1, Rung.BEYOND)]),
        ("fds", [(0, 1000)], [(0, Rung.HARD)]),
        ("fds", [(0, 201), (1, 1), (60, 1)], [(0, Rung.HARD)]),
        ("cpu_cores", [(0, 201), (9.9, 201)], []),
        ("cpu_cores", [(0, 201), (10, 201)], [(10, Rung.HARD)]),
        ("cpu_cores", [(0, 201), (10, 201), (11, 1000), (60, 1000)], [(10, Rung.HARD)]),
    ],
)
def test_the_ladder(dimension: str, series: list[tuple[float, float]], expected: list[tuple[float, Rung]]) -> None:
    """Which readings, for how long, lead to which rung."""
    assert rungs(keeper(dimension), series, dimension) == expected


def test_without_a_hard_limit() -> None:
    """Reported, shed, and never restarted."""
    assert rungs(keeper(hard=None, for_s=0.0), [(0, 1e9), (1, 1e12)]) == [(0, Rung.SOFT)]


def test_unknown_readings_change_nothing() -> None:
    """None is not zero."""
    limited = keeper(for_s=0.0)
    limited.look(0, "fds", 150)
    assert limited.look(1, "fds", None) is None
    assert limited.look(1, "threads", 5) is None
    assert "fds" in limited.findings(1)


def test_an_observer_that_was_away() -> None:
    """What was being waited out begins anew."""
    limited = keeper()
    limited.look(0, "fds", 150)
    limited.restart_windows(60)
    assert limited.look(69, "fds", 150) is None
    assert limited.look(70, "fds", 150) is not None


def test_change_live() -> None:
    """A new band counts from the next reading; the others stay."""
    limited = LimitKeeper(Limits(fds=Band(soft=10), threads=Band(soft=10)))
    limited.change(Limits(fds=Band(soft=1000)))
    assert limited.look(0, "fds", 500) is None
    assert limited.look(0, "threads", 500) is not None
    assert limited.limits == merge(Limits(threads=Band(soft=10)), Limits(fds=Band(soft=1000)))


def test_a_trend_warns_before_the_breach() -> None:
    """1 MiB/s towards a hard limit 120 MiB away: said after a quarter of a minute, in the time that is left."""
    limited = LimitKeeper(Limits(rss_bytes=Band(soft=1 * GiB, hard=1 * GiB)))
    for second in range(30):
        limited.look(float(second), "rss_bytes", 1 * GiB - (150 - second) * MiB)
    assert limited.findings(30.0) == {"rss_bytes": "rss_bytes hard limit in 2 min"}


@pytest.mark.parametrize(
    "shape", [lambda s: 500, lambda s: 500 - s, lambda s: 500 + 40 * (s % 2), lambda s: 500 + s // 100]
)
def test_no_trend_no_warning(shape: Any) -> None:
    """Steady, falling and jittering use warns of nothing."""
    limited = LimitKeeper(Limits(rss_bytes=Band(soft=900 * MiB, hard=900 * MiB)))
    for second in range(120):
        limited.look(float(second), "rss_bytes", shape(second) * MiB)
        assert limited.findings(float(second)) == {}


@pytest.mark.parametrize(
    ("band", "text"),
    [
        (Band(soft=0), "soft=0: it must be over 0"),
        (Band(soft=-5), "soft=-5"),
        (Band(soft=float("nan")), "soft=nan"),
        (Band(soft=5, hard=float("inf")), "hard=inf"),
        (Band(soft=10, hard=5), "soft=10 is over hard=5"),
        (Band(soft=5, for_s=-1), "for_s=-1: it must be 0 to 86400"),
    ],
)
def test_contradictions_are_refused(band: Band, text: str) -> None:
    """The band, the value and the limit."""
    with pytest.raises(LimitError, match=text):
        check_limits(Limits(fds=band))


@pytest.mark.parametrize(
    ("text", "band"),
    [
        ("5", Band(soft=5)),
        ("512m:768m:10", Band(soft=512 * MiB, hard=768 * MiB, for_s=10)),
        ("1G", Band(soft=GiB)),
        ("0.5::3", Band(soft=0.5, for_s=3)),
    ],
)
def test_parse(text: str, band: Band) -> None:
    """As written in supervisord.conf."""
    assert parse_band(text) == band


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "1:b", "12q", ":5", "m"])
def test_parse_refuses(text: str) -> None:
    """What is no band, naming it."""
    with pytest.raises(LimitError, match="cannot read"):
        parse_band(text)


def test_show() -> None:
    """For people, with units."""
    assert [show("rss_bytes", 512 * MiB), show("loop_lag_s", 0.35), show("cpu_cores", 1.5), show("fds", 7.0)] == [
        "512 MiB",
        "0.35 s",
        "1.50 cores",
        "7",
    ]


@given(st.lists(st.tuples(st.floats(0.05, 20.0), st.floats(0.0, 400.0)), max_size=60))
def test_any_series(series: list[tuple[float, float]]) -> None:
    """Soft only after for_s above it, fine only after for_s below CLEAR of it; from hard there is no way back."""
    limited, now_s, rung = keeper(), 0.0, Rung.FINE
    history: list[tuple[float, float]] = []
    for after_s, value in series:
        now_s += after_s
        history.append((now_s, value))
        step = limited.look(now_s, "fds", value)
        if step is None:
            continue
        assert step.rung is not rung
        recent = [v for at_s, v in history if at_s > now_s - FOR_S]
        if step.rung is Rung.SOFT:
            assert rung is Rung.FINE
            assert all(v > SOFT for v in recent)
        elif step.rung is Rung.FINE:
            assert rung is Rung.SOFT
            assert all(v < CLEAR * SOFT for v in recent)
        else:
            assert value > HARD
        assert not (rung in (Rung.HARD, Rung.BEYOND) and step.rung in (Rung.FINE, Rung.SOFT))
        rung = step.rung
