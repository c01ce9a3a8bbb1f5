"""What an index is worth, by table and by property: made when it pays, left alone when it does not."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.data_fabric.benefit import (
    IDLE_S,
    INDEX_WRITE_S,
    MAX_OWN_PER_TABLE,
    MAX_TABLE_ROWS,
    MIN_CALLS,
    SCAN_ROW_S,
    CreateIndex,
    DropIndex,
    IndexRow,
    Observation,
    ShapeRow,
    TableRow,
    cost,
    decide,
    orient,
    saving_s,
)
from services.data_fabric.candidates import IndexSpec

SPEC = IndexSpec("t", (("a", False),))
SCAN = ShapeRow(
    shape="select * from t where a = ?", calls=100, calls_per_s=10.0, cpu_s=0.002, wall_s=0.003, rows=10,
    vm_steps=150_000, fullscan_steps=28_000, sorts=0, autoindexes=0, latest_cpu_s=0.002, latest_calls=10,
    candidates=(SPEC,),
)  # fmt: skip


def seen(*shapes: ShapeRow, writes_per_s: float = 0.0, rows: int = 28_000, **more: object) -> Observation:
    """An observation of one table."""
    observation = Observation(
        window_s=10.0, shapes=shapes, tables=(TableRow(table="t", rows=rows, writes_per_s=writes_per_s),)
    )
    return msgspec.structs.replace(observation, **more)


def row(**changes: object) -> ShapeRow:
    """The scan, but for the changes."""
    return msgspec.structs.replace(SCAN, **changes)


def there(idle_s: float = 0.0) -> tuple[IndexRow, ...]:
    """The index exists."""
    return (IndexRow(name="cdn_auto_x", spec=SPEC, idle_s=idle_s),)


@pytest.mark.parametrize(
    ("observation", "decision"),
    [
        (seen(), None),
        (seen(SCAN), CreateIndex(SPEC)),
        # benefit 10 calls/s × 2 ms = 20 ms/s; upkeep 10 µs a row
        (seen(SCAN, writes_per_s=900), CreateIndex(SPEC)),
        (seen(SCAN, writes_per_s=1_100), None),
        (seen(SCAN, writes_per_s=100_000), None),
        (seen(row(calls_per_s=1.0)), None),
        (seen(row(calls=MIN_CALLS - 1)), None),
        (seen(row(candidates=())), None),
        (seen(row(fullscan_steps=0)), None),
        (seen(row(fullscan_steps=0, sorts=1)), CreateIndex(SPEC)),
        (seen(row(fullscan_steps=0, autoindexes=1)), CreateIndex(SPEC)),
        (seen(row(rows=28_000, vm_steps=280_000)), None),
        (seen(SCAN, indexes=there()), None),
        (seen(SCAN, rows=MAX_TABLE_ROWS + 1), None),
        (seen(indexes=there(IDLE_S + 1)), DropIndex(SPEC)),
        (seen(indexes=there(IDLE_S - 1)), None),
        # in use: worth 10 calls/s × 28,000 rows × 50 ns = 14 ms/s
        (seen(row(uses=("cdn_auto_x",)), indexes=there(), writes_per_s=2_700), None),
        (seen(row(uses=("cdn_auto_x",)), indexes=there(), writes_per_s=2_900), DropIndex(SPEC)),
        (seen(indexes=there(), writes_per_s=100), None),
    ],
)
def test_decide(observation: Observation, decision: object) -> None:
    """One change, or none."""
    assert decide(orient(observation)) == decision


def test_what_is_held_gives_way_to_the_next_best() -> None:
    """Indexes that did not help or could not be made, and drops that were missed."""
    other = IndexSpec("t", (("b", False),))
    wanted = seen(row(calls_per_s=20.0), row(candidates=(other,)))
    assert decide(orient(wanted)) == CreateIndex(SPEC)
    assert decide(orient(wanted), held={CreateIndex(SPEC)}) == CreateIndex(other)
    assert decide(orient(wanted), held={CreateIndex(SPEC), CreateIndex(other)}) is None
    unused = seen(row(candidates=(other,)), indexes=there(IDLE_S + 1))
    assert decide(orient(unused), held={DropIndex(SPEC)}) == CreateIndex(other)


def test_the_best_prospect_is_chosen() -> None:
    """By benefit less upkeep, summed over the shapes that want the same index."""
    other = IndexSpec("t", (("b", False),))
    shapes = (row(calls_per_s=15.0), row(candidates=(other,)), row(candidates=(other,)))
    assert decide(orient(seen(*shapes))) == CreateIndex(other)


def test_an_index_that_another_contains_is_not_made() -> None:
    """What (a, b) serves, (a) need not."""
    wide = IndexRow(name="cdn_auto_y", spec=IndexSpec("t", (("a", False), ("b", False))), idle_s=0)
    assert decide(orient(seen(SCAN, indexes=(wide,)))) is None


def test_a_table_has_so_many_indexes_at_most() -> None:
    """However much another would save."""
    many = tuple(
        IndexRow(name=f"cdn_auto_{at}", spec=IndexSpec("t", ((f"c{at}", False),)), idle_s=0)
        for at in range(MAX_OWN_PER_TABLE)
    )
    assert decide(orient(seen(SCAN, indexes=many))) is None


@given(
    calls=st.floats(0, 1e4), writes=st.floats(0, 1e6), steps=st.floats(0, 1e9), rows=st.floats(0, 1e6)
)  # fmt: skip
def test_what_was_just_made_is_not_dropped_at_once(calls: float, writes: float, steps: float, rows: float) -> None:
    """Hysteresis: with the same writes and calls, an index that pays by its scan is one that is kept."""
    shape = row(calls_per_s=calls, cpu_s=28_000 * SCAN_ROW_S, vm_steps=steps, rows=rows)
    if decide(orient(seen(shape, writes_per_s=writes))) == CreateIndex(SPEC):
        after = msgspec.structs.replace(shape, uses=("cdn_auto_x",))
        assert decide(orient(seen(after, writes_per_s=writes, indexes=there()))) is None


@given(wall_s=st.floats(0, 1e3))
def test_the_wall_clock_decides_nothing(wall_s: float) -> None:
    """A busy machine makes every query slow on the wall; no index mends that."""
    assert orient(seen(row(wall_s=wall_s))) == orient(seen(SCAN))


@given(rows=st.floats(0, 1e6), steps=st.floats(0, 1e9), cpu_s=st.floats(0, 100))
def test_a_saving_is_never_more_than_all(rows: float, steps: float, cpu_s: float) -> None:
    """Nor less than nothing."""
    assert 0.0 <= saving_s(row(rows=rows, vm_steps=steps, cpu_s=cpu_s)) <= cpu_s


def test_the_cost_of_an_index_is_what_its_queries_take_with_its_upkeep() -> None:
    """Before: CPU per call. After: that, and each call's part of the writers' cost."""
    before, after = orient(seen(SCAN, writes_per_s=500)), orient(seen(SCAN, writes_per_s=500, indexes=there()))
    assert cost(before, CreateIndex(SPEC)) == pytest.approx(0.002)
    assert cost(after, CreateIndex(SPEC)) == pytest.approx(0.002 + 500 * INDEX_WRITE_S / 10)
    assert cost(orient(seen(row(latest_calls=0, latest_cpu_s=None))), CreateIndex(SPEC)) is None
    assert cost(orient(seen()), CreateIndex(SPEC)) is None


def test_the_cost_of_a_drop_is_how_much_the_index_is_missed() -> None:
    """1 while it is there, 0 when nobody wants it, 2 when somebody does."""
    drop = DropIndex(SPEC)
    assert cost(orient(seen(indexes=there())), drop) == 1
    assert cost(orient(seen()), drop) == 0
    assert cost(orient(seen(SCAN)), drop) == 2


def test_what_the_loop_shows_can_be_written_as_json() -> None:
    """GET /ooda does."""
    observation = seen(SCAN, indexes=there())
    assert msgspec.json.encode([observation, orient(observation), CreateIndex(SPEC), DropIndex(SPEC)])
