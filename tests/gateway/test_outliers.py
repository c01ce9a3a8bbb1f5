"""Who is left out, for how long, and how many at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.outliers import (
    BASE_S,
    CONSECUTIVE,
    FORGIVE_S,
    LONGEST_S,
    PANIC_SHARE,
    SHARE_MAX,
    Standing,
    choosable,
    eject,
    reason_to_eject,
)


def standing(good: int, bad: int, *, in_a_row: bool = False, out_until_s: float = 0.0) -> Standing:
    """As it stands at 0 s."""
    return Standing(
        good=good, bad=bad, consecutive=bad if in_a_row else min(bad, 1), counted_s=0.0, out_until_s=out_until_s
    )


GOOD = (100, 0)


@pytest.mark.parametrize(
    ("mine", "peers", "reason"),
    [
        (standing(0, CONSECUTIVE, in_a_row=True), [standing(*GOOD)], "consecutive"),
        (standing(0, CONSECUTIVE, in_a_row=True), [standing(0, 0)], "consecutive"),
        (standing(0, CONSECUTIVE - 1, in_a_row=True), [standing(*GOOD)], None),
        (standing(80, 20), [standing(*GOOD), standing(*GOOD)], "ratio"),
        (standing(95, 5), [standing(*GOOD), standing(*GOOD)], None),
        (standing(8, 2), [standing(*GOOD), standing(*GOOD)], None),
        (standing(80, 20), [standing(80, 20), standing(80, 20)], None),
        (standing(80, 20), [standing(93, 7), standing(92, 8)], "ratio"),
        (standing(0, 9, in_a_row=True), [standing(0, 9, in_a_row=True)] * 2, None),
        (standing(0, 9, in_a_row=True), [], None),
        (standing(0, 9, in_a_row=True), [standing(0, 0, out_until_s=1)], None),
        (standing(0, 9, in_a_row=True), [standing(0, 0, out_until_s=1), standing(*GOOD)], None),
        (standing(0, 9, in_a_row=True), [standing(0, 0, out_until_s=1), *[standing(*GOOD)] * 2], "consecutive"),
        (standing(0, 9, in_a_row=True, out_until_s=1), [standing(*GOOD)] * 3, None),
        (standing(*GOOD), [standing(*GOOD)], None),
    ],
)
def test_reasons(mine: Standing, peers: list[Standing], reason: str | None) -> None:
    """Many in a row or a ratio well over that of the peers; never what all share, nor too many at once."""
    assert reason_to_eject(mine, peers, 0.0) == reason


def test_old_failures_fade() -> None:
    """Twenty failures of a minute ago are no reason."""
    mine = standing(80, 20)
    assert reason_to_eject(mine, [standing(*GOOD)], 0.0) == "ratio"
    assert reason_to_eject(mine, [standing(*GOOD)], 60.0) is None


def test_longer_each_time_and_forgiven() -> None:
    """5, 10, 20 s …, at most 300; after five minutes of good behaviour it begins again."""
    mine, now_s, times = Standing(), 0.0, []
    for _ in range(9):
        times.append(eject(mine, now_s))
        now_s = mine.out_until_s
        assert not mine.is_out(now_s)
        assert mine.is_out(now_s - 0.001)
    assert times == [min(BASE_S * 2**n, LONGEST_S) for n in range(9)]
    assert eject(mine, now_s + FORGIVE_S + 1) == BASE_S


def test_panic() -> None:
    """When fewer than half are in, those that are out get traffic as well."""
    out, inside = standing(0, 0, out_until_s=9), standing(*GOOD)
    assert choosable("abcd", [out, out, inside, inside], 0.0) == ["c", "d"]
    assert choosable("abc", [out, out, inside], 0.0) == "abc"
    assert choosable("ab", [out, out], 0.0) == "ab"
    assert choosable("ab", [inside, inside], 0.0) == "ab"


events = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.floats(0.0, 3.0)), max_size=200)


@given(st.integers(1, 5), events)
def test_any_history(count: int, history: list[tuple[int, bool, float]]) -> None:
    """Whatever happens: no more than SHARE_MAX are out, and there is always somebody to choose."""
    standings, now_s = [Standing() for _ in range(count)], 0.0
    for which, is_good, wait_s in history:
        now_s += wait_s
        mine = standings[which % count]
        mine.record(is_good, now_s)
        if reason_to_eject(mine, [peer for peer in standings if peer is not mine], now_s):
            assert not is_good
            eject(mine, now_s)
        assert sum(one.is_out(now_s) for one in standings) <= SHARE_MAX * count
        assert len(choosable(range(count), standings, now_s)) >= PANIC_SHARE * count
