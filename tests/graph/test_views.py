"""Both views see the same graph, whatever was written; neighbourhoods and paths are those that networkx finds."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import networkx as nx
import pytest

from services.graph.api import Direction, NodeRequest, RelationshipRequest
from services.graph.store import Commits, Store, Transaction
from services.graph.views import Snapshot, SqlView, View, rows
from services.graph.walk import Route, khop, paths


def nothing(_: int = 0) -> None:
    """There is time enough."""


def change(drawn: random.Random, to: Transaction) -> None:
    """One of whatever can be done."""
    ids = [f"n{n}" for n in range(30)]
    one, other = drawn.choice(ids), drawn.choice(ids)
    what = drawn.random()
    if what < 0.25:
        labels = drawn.sample(["A", "B", "C"], drawn.randrange(4))
        to.put_node(NodeRequest(id=one, labels=labels, properties={"x": drawn.randrange(3)}), merge=what < 0.1)
    elif what < 0.75:
        id = f"r{drawn.randrange(40)}" if what < 0.5 else None
        to.put_relationship(
            RelationshipRequest(id=id, source=one, target=other, type=drawn.choice("xy")), create_nodes=True
        )
    elif what < 0.9:
        to.delete_relationship(f"r{drawn.randrange(40)}")
    else:
        to.delete_node(one, detach=True)


def changes(drawn: random.Random, count: int, to: Transaction) -> None:
    """So many."""
    for _ in range(count):
        change(drawn, to)


@pytest.mark.parametrize("seed", range(5))
def test_a_snapshot_that_caught_up_is_as_if_made_anew(tmp_path: Path, seed: int) -> None:
    """After every kind of write, one by one and many at once; and as SQLite has it."""
    drawn = random.Random(seed)
    store = Store(tmp_path)
    store.open()
    try:
        with store.reading() as db:
            snapshot = Snapshot.of(db, nothing)
        for _ in range(40):
            count = drawn.choice([1, 1, 2, 10])
            store.write(partial(changes, drawn, count)).result()
            before = (dict(snapshot.nodes), {key: snapshot.out(key) for key in snapshot.nodes})
            with store.reading() as db:
                following = snapshot.caught_up(db, nothing)
                fresh, by_row = Snapshot.of(db, nothing), SqlView(db)
                assert following.version == fresh.version == by_row.version == store.commits.newest
                assert following.nodes == fresh.nodes
                assert following.relationships == fresh.relationships
                for key in range(1, 60):
                    for side in ("out", "into"):
                        held = [
                            sorted(zip(*getattr(view, side)(key), strict=True)) for view in (following, fresh, by_row)
                        ]
                        assert held[0] == held[1] == held[2]
                    assert by_row.node(key) == fresh.node(key)
            assert before == (snapshot.nodes, {key: snapshot.out(key) for key in snapshot.nodes})
            snapshot = following
    finally:
        store.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[nx.DiGraph, Store]:
    """A random graph; key n+1 is node n."""
    graph = nx.gnm_random_graph(40, 120, seed=9, directed=True)
    drawn = random.Random(1)
    for source, target in graph.edges:
        graph[source][target]["weight"] = drawn.randrange(10) / 2
    store = Store(tmp_path_factory.mktemp("graph"))
    store.open()

    def fill(to: Transaction) -> None:
        for node in range(40):
            to.put_node(NodeRequest(id=str(node)))
        for source, target in graph.edges:
            to.put_relationship(
                RelationshipRequest(
                    source=str(source),
                    target=str(target),
                    type="x",
                    properties={"weight": graph[source][target]["weight"]},
                )
            )

    store.write(fill).result()
    return graph, store


@pytest.mark.parametrize("engine", ["sql", "snapshot"])
def test_neighbourhoods_and_paths(both: tuple[nx.DiGraph, Store], engine: str) -> None:
    """In every direction, with types and without, with weights and without; the k cheapest in order."""
    graph, store = both
    directions: tuple[tuple[Direction, nx.Graph], ...] = (
        ("out", graph), ("in", graph.reverse()), ("both", graph.to_undirected())
    )  # fmt: skip
    with store.reading() as db:
        view: View = SqlView(db) if engine == "sql" else Snapshot.of(db, nothing)
        weights: dict[int, float] = dict(
            rows(db, "SELECT key, json_extract(properties, '$.weight') FROM relationships")
        )
        for direction, seen in directions:
            for start in range(0, 40, 7):
                far = nx.single_source_shortest_path_length(seen, start, cutoff=3)
                wanted = [sorted(node + 1 for node, at in far.items() if at == hops) for hops in (1, 2, 3)]
                for types in (frozenset[str](), frozenset({"x"})):
                    found = khop(view, start + 1, 3, direction, types, nothing)
                    assert found.layers == [layer for layer in wanted if layer]
                assert khop(view, start + 1, 3, direction, frozenset({"y"}), nothing).layers == []
        for source, target in ((0, 39), (5, 20), (7, 31)):
            for weight, held in ((None, None), ("weight", weights)):
                route = Route(max_hops=39, weights=held)
                ways = list(paths(view, source + 1, target + 1, 8, route, nothing))
                shortest = list(islice(nx.shortest_simple_paths(graph, source, target, weight=weight), 8))
                costs = [
                    float(sum(graph[a][b]["weight"] if weight else 1 for a, b in pairwise(path))) for path in shortest
                ]
                assert [path.cost for path in ways] == pytest.approx(costs)
                assert len({path.nodes for path in ways}) == len(ways)
                for path in ways:
                    assert all(graph.has_edge(a - 1, b - 1) for a, b in pairwise(path.nodes))
                    assert len(path.relationships) == len(path.nodes) - 1
            hops = nx.shortest_path_length(graph, source, target)
            assert list(paths(view, source + 1, target + 1, 3, Route(max_hops=hops - 1), nothing)) == []
            bounded = list(paths(view, source + 1, target + 1, 20, Route(max_hops=hops + 1, weights=weights), nothing))
            assert all(len(path.relationships) <= hops + 1 for path in bounded)
            every = list(nx.all_simple_paths(graph, source, target, cutoff=hops + 1))
            cheapest = min(sum(graph[a][b]["weight"] for a, b in pairwise(path)) for path in every)
            assert bounded[0].cost == pytest.approx(cheapest)


def test_how_old_a_version_is() -> None:
    """Since the first change that it is without; when that is no longer known, at least as old as what is."""
    commits = Commits(10)
    assert commits.age_s(10, 5.0) == 0
    commits.add(12, 6.0)
    commits.add(12, 7.0)
    commits.add(15, 8.0)
    assert [commits.age_s(version, 10.0) for version in (15, 14, 12, 11, 10, 3)] == [0, 2, 2, 4, 4, 4]
    for n in range(5000):
        commits.add(16 + n, 20.0 + n)
    assert commits.age_s(10, 6000.0) == 6000.0 - (20.0 + 904)
    assert commits.newest == 5015
