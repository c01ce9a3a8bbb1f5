"""All indexes find the same, whatever has changed; the loop chooses among them, and leaves well alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import OodaMode
from services.geospatial import costs
from services.geospatial.costs import KeepAnswers, Load, UseIndex
from services.geospatial.indexes import KINDS
from services.geospatial.layer import Change, Layer
from services.geospatial.limits import Limits
from services.geospatial.ooda import IndexChooser
from services.geospatial.places import Places
from services.geospatial.table import Table
from tests.geospatial.support import point, serving

COORDINATE = st.integers(-8, 8).map(float)
STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 12), COORDINATE, COORDINATE, st.sampled_from([0.0, 0.1, 3.0])),
    st.tuples(st.just("drop"), st.integers(1, 12)),
    st.tuples(st.just("use"), st.sampled_from(KINDS)),
    st.tuples(st.just("ask"), COORDINATE, COORDINATE, st.sampled_from([0.0, 1.0, 5.0])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_every_index_finds_what_a_dictionary_would(steps: list[tuple[object, ...]]) -> None:
    """Any history of changes, switches and questions."""
    layer = Layer("c", Limits())
    known: dict[int, tuple[float, float, float, float]] = {}
    numbers: dict[int, int] = {}
    for step in steps:
        match step:
            case ("put", int(key), float(x), float(y), float(size)):
                number = numbers.setdefault(key, len(numbers) + 1 + max([0, *numbers.values()]))
                known[number] = (x, y, x + size, y + size)
                layer.apply([Change(number, known[number], None, size == 0.0)])
            case ("drop", int(key)):
                number = numbers.pop(key, 0)
                known.pop(number, None)
                layer.apply((), (number,))
                if number:
                    numbers[-number] = number  # a number is never given twice
            case ("use", str(kind)):
                layer.use(kind)  # type: ignore[arg-type]
            case ("ask", float(x), float(y), float(size)):
                window = (x, y, x + size, y + size)
                wanted = [
                    number
                    for number, (west, south, east, north) in sorted(known.items())
                    if west <= window[2] and east >= window[0] and south <= window[3] and north >= window[1]
                ]
                assert layer.select([window], None).tolist() == wanted
    assert layer.select(None, None).tolist() == sorted(known)


def filled(count: int) -> Layer:
    """A layer of so many points."""
    drawn = np.random.default_rng(1)
    x, y = drawn.uniform(-180, 180, count), drawn.uniform(-90, 90, count)
    layer = Layer("c", Limits())
    never = np.full((2, count), np.nan)
    layer.replace(Table.of(np.arange(1, count + 1), np.array([x, y, x, y]), never, np.ones(count, np.bool_)), {})
    return layer


def test_a_tree_is_packed_anew_when_its_delta_has_grown() -> None:
    """And what changes while that is done is in it."""
    layer = filled(5_000)
    layer.use("tree", 100)
    for number in range(1, 101):
        layer.apply([Change(number, (1.0, 1.0, 1.0, 1.0), None, True)])
    assert layer.is_due()
    layer.pack()
    assert layer.index.delta() == 0
    assert set(range(1, 101)) <= set(layer.select([(0.9, 0.9, 1.1, 1.1)], None).tolist())


def load(**more: object) -> Load:
    """200,000 features that are scanned, and asked for a hundred times a second."""
    usual: dict[str, object] = {
        "collection": "c", "features": 200_000, "index": "scan", "rebuild_at": 4_096, "index_age_s": 9.0, "delta": 0,
        "reads_per_s": 100.0, "read_us": 466.0, "hits": 10.0, "candidates_per_hit": 1.0, "area": 1.0, "p95_ms": 1.0,
        "writes_per_s": 0.0, "write_us": None, "batch": 1.0, "rebuilds_per_s": 0.0, "requests_per_s": 100.0,
        "request_ms": 1.0, "repeats": 0.0, "is_cached": False,
    }  # fmt: skip
    return Load(**{**usual, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "index"),
    [
        ({}, {"tree", "rtree"}),
        ({"hits": 5_000.0, "read_us": 476.0}, {"tree"}),
        ({"reads_per_s": 1.0}, None),
        ({"features": 500, "read_us": 8.0}, None),
        ({"index": "tree", "read_us": 13.0}, None),
        ({"index": "tree", "read_us": 30.0, "reads_per_s": 1.0, "writes_per_s": 20_000.0, "write_us": 10.0}, {"scan"}),
        ({"reads_per_s": 0.0, "read_us": None, "writes_per_s": 50_000.0, "write_us": 0.3}, None),
    ],
)
def test_what_is_chosen(more: dict[str, object], index: set[str] | None) -> None:
    """By reads, writes, size and hits; nothing where little can be saved."""
    decision = costs.decide((costs.weigh(load(**more)),), frozenset())
    if index is None:
        assert decision is None
    else:
        assert isinstance(decision, UseIndex)
        assert decision.index in index
        assert costs.decide((costs.weigh(load(**more)),), frozenset({decision})) != decision


def test_answers_are_kept_where_they_are_asked_for_again() -> None:
    """And let go where they are not; nobody decides from a handful."""
    tree: dict[str, object] = {"index": "tree", "read_us": 13.0}
    assert costs.decide((costs.weigh(load(**tree, repeats=0.6)),), frozenset()) == KeepAnswers("c", True)
    assert costs.decide((costs.weigh(load(**tree, repeats=0.6, requests_per_s=1.0)),), frozenset()) is None
    assert costs.decide((costs.weigh(load(**tree, is_cached=True)),), frozenset()) == KeepAnswers("c", False)
    assert costs.decide((costs.weigh(load(**tree, is_cached=True, repeats=0.2)),), frozenset()) is None


def looped(places: Places, mode: OodaMode, use: object, seconds: int = 30) -> IndexChooser:
    """The loop, stepped by a clock of the test's own, with the same use in each of its seconds."""
    assert callable(use)
    now = [0.0]
    loop = IndexChooser(places.store, lambda: now[0])
    loop.mode = mode
    for second in range(seconds):
        use()
        for step in range(5):
            now[0] = second + step / 10
            work = loop.step(now[0])
            if work is not None:
                work.run()
                loop.finished(now[0], None)
    return loop


@pytest.mark.parametrize("mode", [OodaMode.ON, OodaMode.OFF, OodaMode.SHADOW])
def test_the_loop_gives_a_large_collection_a_tree_if_it_may(tmp_path: Path, mode: OodaMode) -> None:
    """Measured, kept; off and shadow change nothing."""
    with serving(tmp_path) as (_, places):
        big = filled(150_000)
        found = places.store.collections["tracks"]
        places.store.collections = {"c": found._replace(layer=big)}

        def use() -> None:
            for n in range(60):
                big.select([(n, n / 2, n + 1.0, n / 2 + 1.0)], None)

        loop = looped(places, mode, use)
        if mode is OodaMode.ON:
            assert big.index.kind in ("tree", "rtree")
            assert (loop.kept, loop.undone) == (1, 0)
        else:
            assert big.index.kind == "scan"
            assert loop.kept == 0


def test_a_shift_of_the_load_is_followed_soon(tmp_path: Path) -> None:
    """In the loop's own time: within a second to a tree for reads, in some more to none for what moves; by no other."""
    with serving(tmp_path) as (_, places):
        big = filled(150_000)
        places.store.collections = {"c": places.store.collections["tracks"]._replace(layer=big)}
        now, used = [0.0], []
        loop = IndexChooser(places.store, lambda: now[0])
        for tick in range(130):  # ten in a second
            for n in range(30 if tick < 65 else 1):
                big.select([(n, n / 2, n + 20.0, n / 2 + 20.0)], None)
            for n in range(0 if tick < 65 else 3):
                box = (n, n / 2, n + 0.1, n / 2 + 0.1)
                big.apply([Change(1 + 300 * tick + 100 * n + at, box, None, True) for at in range(100)])
            big.pack()
            now[0] = tick / 10
            work = loop.step(now[0])
            if work is not None:
                work.run()
                loop.finished(now[0], None)
            used.append(big.index.kind)
        assert used[10:65] == ["tree"] * 55
        assert used[90:105] == ["scan"] * 15
        assert set(used[65:90]) == {"tree", "scan"}


def test_the_loop_does_nothing_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    """A small collection, asked and written without pause; and none at all."""
    with serving(tmp_path) as (client, places):
        client.load("c", *(point(f"p{n}", n / 10, n / 10) for n in range(200)))
        layer = places.store.collection("c").layer
        number = int(layer.select(None, None)[0])

        def use() -> None:
            for n in range(60):
                layer.select([(n, n, n + 1.0, n + 1.0)], None)
                layer.apply([Change(number, (n, n, n, n), None, True)])

        assert not looped(places, OodaMode.ON, use).actions
        idle = looped(places, OodaMode.ON, lambda: None)
        assert not idle.cycles
        assert (layer.index.kind, layer.answers.is_on) == ("scan", False)


def test_kept_answers_are_never_old(tmp_path: Path) -> None:
    """The next question after a write has the new answer."""
    with serving(tmp_path) as (client, places):
        client.load("c", point("a", 1, 1))
        layer = places.store.collection("c").layer
        layer.answers.switch(is_on=True)
        for n in range(5):
            assert len(client.get("/collections/c/items").ids) == n + 1
            assert client.get("/collections/c/items").json["numberMatched"] == n + 1
            client.call("PUT", f"/collections/c/items/b{n}", point(None, 2, 2))
        assert layer.answers.asked.hits == 5
