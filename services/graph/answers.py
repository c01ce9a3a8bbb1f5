"""From a question to its answer, on one view of the graph. Runs on the engine's threads."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from cdn_daemon.api import RefusedError
from services.graph.algorithms import Job, Outcome
from services.graph.api import (
    AlgorithmAnswer,
    AlgorithmRequest,
    GroupAnswer,
    KhopAnswer,
    KhopQuestion,
    NodeAnswer,
    PathAnswer,
    PathsAnswer,
    PathsQuestion,
    QueryAnswer,
    QueryRequest,
    RelationshipAnswer,
    ScoreAnswer,
)
from services.graph.engine import Engine, Reading
from services.graph.limits import Limits
from services.graph.patterns import Match, Matcher, start_of
from services.graph.views import Snapshot, View
from services.graph.walk import Path, Route, khop, paths
from services.json_path import member


def node_answer(reading: Reading, key: int, *, properties: bool, distance: int | None = None) -> NodeAnswer | None:
    """A node; None if it has gone since the view was made, and its properties with it."""
    node = reading.view.node(key)
    if node is None:
        return None
    held: Any = UNSET
    if properties:
        found = reading.db.execute("SELECT properties FROM nodes WHERE key = ?", (key,)).get
        if found is None:
            return None
        held = Raw(found.encode())
    return NodeAnswer(id=node.id, labels=list(node.labels), distance=distance, properties=held)


RELATIONSHIP = (
    "SELECT r.id, r.type, s.id, t.id, r.properties FROM relationships r JOIN nodes s ON s.key = r.source "
    "JOIN nodes t ON t.key = r.target WHERE r.{} = ?"
)


def relationship_answer(reading: Reading, key: int, *, properties: bool) -> RelationshipAnswer | None:
    """Likewise."""
    found = reading.db.execute(RELATIONSHIP.format("key"), (key,)).fetchone()
    if found is None:
        return None
    id, type, source, target, held = found
    return RelationshipAnswer(
        id=id, type=type, source=source, target=target, properties=Raw(held.encode()) if properties else UNSET
    )


def neighbourhood(reading: Reading, asked: KhopQuestion) -> KhopAnswer:
    """``GET /nodes/ID/khop``."""
    found = khop(
        reading.view, reading.key(asked.id), asked.k, asked.direction, frozenset(asked.types), reading.budget.spend
    )
    reading.depth = asked.k
    by_distance = [len(layer) for layer in found.layers]
    reached = ((key, at) for at, layer in enumerate(found.layers, 1) for key in layer)
    answers = (
        node_answer(reading, key, properties=asked.properties, distance=at) for key, at in islice(reached, asked.limit)
    )
    nodes = [one for one in answers if one is not None]
    reading.returned = len(nodes)
    return KhopAnswer(
        id=asked.id,
        k=asked.k,
        reached=sum(by_distance),
        by_distance=by_distance,
        nodes=nodes,
        more=sum(by_distance) > asked.limit,
    )


def shortest_paths(engine: Engine, reading: Reading, asked: PathsQuestion) -> PathsAnswer:
    """``GET /paths``."""
    route = Route(
        direction=asked.direction,
        types=frozenset(asked.types),
        max_hops=asked.max_hops,
        weights=engine.weights(reading, asked.weight) if asked.weight is not None else None,
    )
    start, end = reading.key(asked.source), reading.key(asked.target)
    found = [
        told
        for path in paths(reading.view, start, end, asked.k, route, reading.budget.spend)
        if (told := _path(reading, path)) is not None
    ]
    reading.returned = len(found)
    reading.depth = max((one.hops for one in found), default=asked.max_hops)
    return PathsAnswer(paths=found)


def _path(reading: Reading, path: Path) -> PathAnswer | None:
    nodes = [node_answer(reading, key, properties=False) for key in path.nodes]
    steps = [relationship_answer(reading, key, properties=False) for key in path.relationships]
    if None in nodes or None in steps:  # of a relationship that has gone since the view was made
        return None
    return PathAnswer(
        cost=path.cost,
        hops=len(steps),
        nodes=[one for one in nodes if one],
        relationships=[one for one in steps if one],
    )


def matches(reading: Reading, asked: QueryRequest) -> QueryAnswer:
    """``POST /query``."""
    db = reading.db
    known: dict[tuple[str, int], dict[str, Any]] = {}

    def properties(table: str, key: int) -> dict[str, Any]:
        held = known.get((table, key))
        if held is None:
            found = db.execute(f"SELECT properties FROM {table} WHERE key = ?", (key,)).get
            if len(known) > 10_000:
                known.clear()
            held = known[table, key] = {} if found is None else msgspec.json.decode(found)
        return held

    def count(label: str) -> int:
        return int(db.execute("SELECT count(*) FROM (SELECT 1 FROM labels WHERE label = ? LIMIT 10000)", (label,)).get)

    start = start_of(asked, count)
    matcher = Matcher(
        reading.view,
        asked,
        lambda key: properties("nodes", key),
        lambda key: properties("relationships", key),
        reading.budget.spend,
    )
    names = asked.returned
    if names is None:
        names = [*asked.nodes, *(edge.name for edge in asked.edges if edge.name is not None)]
    told: list[dict[str, Any]] = []
    seen: set[tuple[object, ...]] = set()
    more = False
    for match in matcher.matches(start, _candidates(reading, asked, start)):
        if asked.distinct:
            key = tuple(match[name] for name in names)
            if key in seen:
                continue
            seen.add(key)
        if len(told) == asked.limit:
            more = True
            break
        row = _row(reading, asked, names, match)
        if row is not None:
            told.append(row)
    reading.returned = len(told)
    reading.depth = sum(edge.hops[1] if edge.hops is not None else 1 for edge in asked.edges)
    return QueryAnswer(matches=told, more=more)


def _candidates(reading: Reading, asked: QueryRequest, start: str) -> Iterator[int]:
    """Keys of what the node may be: by its id, else by the rarest of its labels, else all."""
    wanted = asked.nodes[start]
    db = reading.db
    # The first equality is looked at by SQLite, which need not decode all properties for it; the rest by the matcher.
    equal = next(((name, value) for name, value in wanted.where.items() if isinstance(value, str)), None)
    tests, values = "", []
    if equal is not None:
        tests, values = " AND json_extract(n.properties, ?) = ?", [member(equal[0]), equal[1]]
        if equal[0] == "attack_id":  # it has an index
            tests, values = " AND json_extract(n.properties, '$.attack_id') = ?", [equal[1]]
    if wanted.id is not None:
        rows: Iterable[Any] = db.execute("SELECT key FROM nodes WHERE id = ?", (wanted.id,))
    elif wanted.labels:
        rows = db.execute(
            f"SELECT n.key FROM labels l CROSS JOIN nodes n ON n.key = l.node WHERE l.label = ?{tests}",
            (wanted.labels[0], *values),
        )
    else:
        rows = db.execute(f"SELECT key FROM nodes n WHERE 1{tests}", values)
    for (key,) in rows:
        yield key


def _row(reading: Reading, asked: QueryRequest, names: Sequence[str], match: Match) -> dict[str, Any] | None:
    row: dict[str, Any] = {}
    for name in names:
        held = match[name]
        if isinstance(held, int):
            row[name] = node_answer(reading, held, properties=asked.properties)
        else:
            way = [relationship_answer(reading, key, properties=asked.properties) for key in held]
            is_one = any(edge.name == name and edge.hops is None for edge in asked.edges)
            row[name] = None if None in way else way[0] if is_one else way
        if row[name] is None:  # it has gone since the view was made
            return None
    return row


# -- algorithms -------------------------------------------------------------------------------------------

WEIGHTED = frozenset({"pagerank", "communities", "matroid-rank"})
ALGORITHMS = ("pagerank", "betweenness", "communities", "components", "matroid-rank", "hawkes")


class Selected(msgspec.Struct):
    """What an algorithm is to work on, and who its nodes and relationships are."""

    job: Job
    keys: list[int] = []
    relationships: list[int] = []


def select(engine: Engine, reading: Reading, name: str, asked: AlgorithmRequest, limits: Limits) -> Selected:
    """The part of the graph that is asked for, as numbers."""
    job = Job(
        name=name,
        damping=asked.damping,
        strong=asked.strong,
        resolution=asked.resolution,
        limit=asked.limit,
        now_s=asked.now_s,
        memory_bytes=limits.computing_bytes,
    )
    if asked.weight is not None and name not in WEIGHTED:
        raise RefusedError(422, f"cannot weigh relationships for {name}", value=asked.weight, limit=", ".join(WEIGHTED))
    if name == "hawkes":
        job.times = _times(reading, asked, limits)
        return Selected(job)
    if asked.relationships and name != "matroid-rank":
        raise RefusedError(422, f"cannot take single relationships for {name}", next="types selects some")
    snapshot = reading.view
    if not isinstance(snapshot, Snapshot):
        snapshot = Snapshot.of(reading.db, reading.budget.breathe)
    labels, types = set(asked.labels), set(asked.types)
    keys = [key for key, node in snapshot.nodes.items() if not labels or not labels.isdisjoint(node.labels)]
    numbers = {key: at for at, key in enumerate(keys)}
    only = _named(reading, asked.relationships) if asked.relationships else None
    sources, targets, found = array("i"), array("i"), []
    for source, here in numbers.items():
        for other, type, by in zip(*snapshot.out(source), strict=True):
            there = numbers.get(other)
            if there is not None and (not types or type in types) and (only is None or by in only):
                sources.append(here)
                targets.append(there)
                found.append(by)
        if here % 500 == 0:
            reading.budget.spend(500)
    job.nodes, job.sources, job.targets = len(keys), sources.tobytes(), targets.tobytes()
    if asked.weight is not None:
        weights = engine.weights(reading, asked.weight)
        job.weights = array("d", [weights.get(by, 1.0) for by in found]).tobytes()
    return Selected(job, keys, found)


def _named(reading: Reading, ids: Sequence[str]) -> set[int]:
    found = set()
    for id in ids:
        key = reading.db.execute("SELECT key FROM relationships WHERE id = ?", (id,)).get
        if key is None:
            raise RefusedError(404, "cannot find this relationship", value=id)
        found.add(int(key))
    return found


def _times(reading: Reading, asked: AlgorithmRequest, limits: Limits) -> list[float]:
    """Those that are given, or those of a node's relationships, each event once."""
    times = asked.times
    if asked.node is not None:
        key = reading.key(asked.node)
        found: dict[object, float] = {}
        for table in (reading.view.out(key), reading.view.into(key)):
            for type, by in zip(table[1], table[2], strict=True):
                if asked.types and type not in asked.types:
                    continue
                held = reading.db.execute("SELECT properties FROM relationships WHERE key = ?", (by,)).get
                properties = msgspec.json.decode(held) if held is not None else {}
                at_s = properties.get(asked.property)
                if isinstance(at_s, int | float) and not isinstance(at_s, bool):
                    found[properties.get("event", by)] = float(at_s)
            reading.budget.spend(len(table[0]))
        times = [*found.values()]
    if len(times) > limits.events:
        raise RefusedError(413, "cannot fit so long a series", value=len(times), limit=f"{limits.events} times")
    return times


def told(reading: Reading, name: str, selected: Selected, outcome: Outcome, elapsed_ms: float) -> AlgorithmAnswer:
    """The outcome, with who its numbers are; what has gone meanwhile is left out."""
    view: View = reading.view

    def who(at: int) -> tuple[str, list[str]] | None:
        node = view.node(selected.keys[at])
        return None if node is None else (node.id, list(node.labels))

    scores = [
        ScoreAnswer(id=found[0], labels=found[1], score=score) for at, score in outcome.scores if (found := who(at))
    ]
    groups = [
        GroupAnswer(size=size, members=[found[0] for at in group if (found := who(at))])
        for group, size in zip(outcome.groups, outcome.sizes, strict=True)
    ]
    basis = [
        one
        for at in outcome.chosen
        if (one := relationship_answer(reading, selected.relationships[at], properties=False)) is not None
    ]
    reading.returned = len(scores) + len(groups) + len(basis)
    return AlgorithmAnswer(
        algorithm=name,
        figures=outcome.figures,
        scores=scores,
        groups=groups,
        basis=basis,
        elapsed_ms=round(elapsed_ms, 1),
    )
