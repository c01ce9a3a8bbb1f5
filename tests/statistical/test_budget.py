"""How memory is shared out, what a window is made of, how much is sampled: the pure parts."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.statistical.budget import Demand, allocate, equal, expected_error
from services.statistical.sampling import PROBABILITY_MIN, Seen, Throttle
from services.statistical.sketch import BINS_MIN
from services.statistical.windows import KEPT, REACH, WIDTHS, cover

DEMANDS = st.lists(st.tuples(st.floats(0, 60), st.sampled_from([1.0, 100.0, 1e6])), min_size=1, max_size=30).map(
    lambda pairs: [Demand(name=f"s{n}", nats=nats, count=count) for n, (nats, count) in enumerate(pairs)]
)


@given(DEMANDS, st.integers(0, 20_000))
def test_no_more_is_given_than_there_is(demands: list[Demand], bins: int) -> None:
    """Beyond the least that everybody has."""
    shares = allocate(demands, bins)
    assert set(shares) == {demand.name for demand in demands}
    assert min(shares.values()) >= BINS_MIN
    assert sum(shares.values()) <= max(bins, BINS_MIN * len(demands))


def test_memory_goes_where_it_lowers_the_error() -> None:
    """Two wide series among many that are constant or rare: eight times better than an equal split."""
    demands = [Demand(name=f"rare{n}", nats=5, count=3) for n in range(40)]
    demands += [Demand(name=f"constant{n}", nats=0, count=1000) for n in range(40)]
    demands += [Demand(name=f"wide{n}", nats=12, count=1000) for n in range(20)]
    bins = 64 * len(demands)

    def error(shares: dict[str, int]) -> float:
        return sum(expected_error(demand, shares[demand.name]) for demand in demands)

    before = error(equal([demand.name for demand in demands], bins))
    assert error(allocate(demands, bins)) < before / 3


def test_alike_series_get_alike_shares() -> None:
    """Within the last step that there was no room for."""
    demands = [Demand(name=f"s{n}", nats=6, count=500) for n in range(10)]
    shares = allocate(demands, 3000)
    assert max(shares.values()) <= 2.1 * min(shares.values())


@given(
    st.integers(0, 9000), st.integers(1, 9000), st.integers(100_000, 200_000), st.integers(0, 12), st.integers(0, 18)
)
def test_the_stretches_of_a_window_follow_each_other(ago: int, length: int, now: int, late1: int, late2: int) -> None:
    """Without a gap or an overlap, from no later than asked for, out of what is kept."""
    begin, end = now - ago - length, now - ago + 1
    joined1 = (now - late1) // WIDTHS[1] * WIDTHS[1]
    joined = (0, joined1, (joined1 - late2) // WIDTHS[2] * WIDTHS[2])
    stretches = cover(begin, end, now, joined)
    assert stretches[0].begin <= begin
    assert stretches[-1].end >= end
    for one, other in itertools.pairwise(stretches):
        assert one.end == other.begin
    for stretch in stretches:
        assert stretch.begin % WIDTHS[stretch.tier] == 0
        if now - begin <= REACH[-1]:
            assert now - stretch.begin <= KEPT[stretch.tier]


def seen(**more: float) -> Seen:
    """A tenth of a second at 10 µs a datagram."""
    values = {"period_s": 0.1, "arrived": 1000.0, "folded": 1000, "busy_s": 0.01, "filled": 0.0}
    return Seen(**{**values, **more})  # type: ignore[arg-type]


def test_all_is_looked_at_while_there_is_time() -> None:
    """Nothing is changed by a load that fits."""
    throttle = Throttle(0.6)
    assert [throttle.tell(seen()) for _ in range(20)] == [False] * 20
    assert throttle.probability == 1.0


def test_ten_times_the_capacity_is_sampled_one_in_ten_and_then_no_more() -> None:
    """6,000 datagrams fit in a tenth of a second; once the flood is over all is looked at again."""
    throttle = Throttle(0.6)
    assert throttle.tell(seen(arrived=60_000, folded=6000, busy_s=0.06))
    assert 0.09 <= throttle.probability <= 0.11
    assert not throttle.tell(seen(arrived=61_000, folded=6100, busy_s=0.06))
    assert throttle.tell(seen(arrived=500, folded=50, busy_s=0.0005))
    assert throttle.probability == 1.0


def test_a_starved_thread_takes_less_than_its_cpu_time_would_let_it() -> None:
    """The queue fills: others have the processor."""
    throttle = Throttle(0.6)
    throttle.tell(seen(folded=200, busy_s=0.002, arrived=1000, filled=1.0))
    assert throttle.probability <= 0.11
    assert throttle.probability >= PROBABILITY_MIN
