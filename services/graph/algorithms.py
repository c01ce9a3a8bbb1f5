"""Algorithms on a whole graph of nodes 0 … n-1. Pure; they run in a process of their own, see compute.py."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from services.graph import hawkes


class Job(Struct, kw_only=True):
    """What is to be computed."""

    name: str
    nodes: int = 0
    sources: bytes = b""
    """Of each relationship, as array("i"); likewise targets, and weights as array("d"), or nothing."""
    targets: bytes = b""
    weights: bytes = b""
    damping: float = 0.85
    strong: bool = False
    resolution: float = 1.0
    limit: int = 100
    times: list[float] = []
    now_s: float | None = None
    deadline_s: float = 30.0
    memory_bytes: int = 2 << 30


class Outcome(Struct, kw_only=True):
    """What came of it."""

    figures: dict[str, Any] = {}
    scores: list[tuple[int, float]] = []
    """Of nodes, the highest first."""
    groups: list[list[int]] = []
    """Of nodes, the largest first; no more members each than the limit."""
    sizes: list[int] = []
    """Of the groups."""
    chosen: list[int] = []
    """Numbers of relationships."""
    error: str = ""


PRECISION = 1e-9
"""PageRank is done when a round has changed all scores, which add up to 1, by no more than this together."""


def run(job: Job, sources: Sequence[int], targets: Sequence[int], weights: Sequence[float]) -> Outcome:
    """Compute it."""
    match job.name:
        case "pagerank":
            return _scored(pagerank(job.nodes, sources, targets, weights, job.damping), job.limit)
        case "betweenness":
            return _scored(betweenness(job.nodes, sources, targets), job.limit)
        case "components":
            return _grouped(components(job.nodes, sources, targets, strong=job.strong), job.limit)
        case "communities":
            found, modularity = louvain(job.nodes, sources, targets, weights, job.resolution)
            outcome = _grouped(found, job.limit)
            outcome.figures["modularity"] = round(modularity, 6)
            return outcome
        case "matroid-rank":
            return matroid_rank(job.nodes, sources, targets, weights, job.limit)
        case "hawkes":
            try:
                fitted = hawkes.fit(job.times, job.now_s)
            except ValueError as error:
                return Outcome(error=f"cannot fit this series: {error}")
            return Outcome(figures={name: getattr(fitted, name) for name in fitted.__struct_fields__})
    return Outcome(error=f"cannot compute {job.name}: there is no such algorithm")


def _scored(scores: dict[int, float], limit: int) -> Outcome:
    ranked = sorted(scores.items(), key=lambda found: (-found[1], found[0]))
    return Outcome(scores=ranked[:limit], figures={"nodes": len(ranked)})


def _grouped(groups: list[list[int]], limit: int) -> Outcome:
    ranked = sorted((sorted(group) for group in groups), key=lambda group: (-len(group), group[:1]))
    return Outcome(
        groups=[group[:limit] for group in ranked[:limit]],
        sizes=[len(group) for group in ranked[:limit]],
        figures={"groups": len(ranked)},
    )


def _graph(nodes: int, sources: Sequence[int], targets: Sequence[int], weights: Sequence[float] = ()) -> Any:
    from rustworkx import PyDiGraph

    graph = PyDiGraph(multigraph=True)
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(list(zip(sources, targets, weights or [1.0] * len(sources), strict=True)))
    return graph


def pagerank(
    nodes: int, sources: Sequence[int], targets: Sequence[int], weights: Sequence[float], damping: float
) -> dict[int, float]:
    """L. Page, S. Brin, R. Motwani, T. Winograd (1999); the scores add up to 1."""
    from rustworkx import pagerank as ranked

    # rustworkx counts of parallel relationships only one.
    total: dict[tuple[int, int], float] = {}
    for at, step in enumerate(zip(sources, targets, strict=True)):
        total[step] = total.get(step, 0.0) + (weights[at] if weights else 1.0)
    steps = list(total)
    graph = _graph(nodes, [step[0] for step in steps], [step[1] for step in steps], list(total.values()))
    if not nodes:
        return {}
    # rustworkx multiplies the tolerance by the number of nodes, and its default is coarser than most scores then. How
    # many rounds there may be is for the deadline to say.
    return dict(ranked(graph, alpha=damping, weight_fn=float, tol=PRECISION / nodes, max_iter=1_000_000).items())


def betweenness(nodes: int, sources: Sequence[int], targets: Sequence[int]) -> dict[int, float]:
    """Through which part of all shortest ways a node is passed; parallel relationships are one."""
    from rustworkx import betweenness_centrality

    steps = sorted(set(zip(sources, targets, strict=True)))
    return dict(betweenness_centrality(_graph(nodes, [s for s, _ in steps], [t for _, t in steps])).items())


def components(nodes: int, sources: Sequence[int], targets: Sequence[int], *, strong: bool) -> list[list[int]]:
    """What hangs together, whichever way the relationships lead, or with ``strong`` there and back."""
    from rustworkx import strongly_connected_components, weakly_connected_components

    find = strongly_connected_components if strong else weakly_connected_components
    return [list(one) for one in find(_graph(nodes, sources, targets))]


def matroid_rank(
    nodes: int, sources: Sequence[int], targets: Sequence[int], weights: Sequence[float], limit: int
) -> Outcome:
    """Rank of these relationships in the graphic matroid, and a basis: a spanning forest, the heaviest by weight.

    The independent sets are the forests (H. Whitney, On the Abstract Properties of Linear Dependence, 1935); that
    taking the heaviest first leads to the heaviest basis is what makes it a matroid (J. Edmonds, 1971).
    """
    parent = list(range(nodes))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    order = sorted(range(len(sources)), key=lambda at: -weights[at]) if weights else range(len(sources))
    basis = []
    for at in order:
        source, target = root(sources[at]), root(targets[at])
        if source != target:
            parent[source] = target
            basis.append(at)
    rank, touched = len(basis), len(set(sources) | set(targets))
    figures: dict[str, Any] = {
        "rank": rank,
        "relationships": len(sources),
        "nullity": len(sources) - rank,
        "is_independent": rank == len(sources),
        "nodes": touched,
        "components": touched - rank,
    }
    if weights:
        figures["basis_weight"] = sum(weights[at] for at in basis)
    return Outcome(figures=figures, chosen=basis[:limit])


def louvain(
    nodes: int,
    sources: Sequence[int],
    targets: Sequence[int],
    weights: Sequence[float] = (),
    resolution: float = 1.0,
) -> tuple[list[list[int]], float]:
    """Communities, and their modularity; directions do not count.

    V. Blondel, J.-L. Guillaume, R. Lambiotte, E. Lefebvre, Fast unfolding of communities in large networks (2008). The
    order of nodes is drawn, by the same seed each time.
    """
    links: list[dict[int, float]] = [{} for _ in range(nodes)]
    for at, (source, target) in enumerate(zip(sources, targets, strict=True)):
        weight = weights[at] if weights else 1.0
        links[source][target] = links[source].get(target, 0.0) + weight
        if source != target:
            links[target][source] = links[target].get(source, 0.0) + weight
    drawn = random.Random(1)
    members = [[node] for node in range(nodes)]
    total = sum(_strength(links[node], node) for node in range(nodes))
    if total <= 0:
        return members, 0.0
    while True:
        of, has_moved = _moved(links, total, resolution, drawn)
        names = {name: at for at, name in enumerate(sorted(set(of)))}
        of = [names[name] for name in of]
        if not has_moved or len(names) == len(links):
            break
        joined: list[list[int]] = [[] for _ in names]
        merged: list[dict[int, float]] = [{} for _ in names]
        for node, held in enumerate(members):
            joined[of[node]] += held
        for node, around in enumerate(links):
            here = of[node]
            for other, weight in around.items():
                there = of[other]
                # inside a community each link is met from both its ends, a loop once
                part = weight / 2 if here == there and other != node else weight
                merged[here][there] = merged[here].get(there, 0.0) + part
        members, links = joined, merged
    inside = sum(2 * around.get(node, 0.0) for node, around in enumerate(links))
    expected = sum((_strength(around, node) / total) ** 2 for node, around in enumerate(links))
    return members, inside / total - resolution * expected


def _strength(around: dict[int, float], node: int) -> float:
    """A loop has two ends."""
    return sum(around.values()) + around.get(node, 0.0)


def _moved(
    links: list[dict[int, float]], total: float, resolution: float, drawn: random.Random
) -> tuple[list[int], bool]:
    """Each node where it gains most, until none moves."""
    of = list(range(len(links)))
    strength = [_strength(around, node) for node, around in enumerate(links)]
    held = strength.copy()
    order = list(range(len(links)))
    drawn.shuffle(order)
    has_moved, moves = False, 1
    while moves:
        moves = 0
        for node in order:
            here, own = of[node], strength[node]
            towards: dict[int, float] = {}
            for other, weight in links[node].items():
                if other != node:
                    towards[of[other]] = towards.get(of[other], 0.0) + weight
            held[here] -= own
            best, gain = here, towards.get(here, 0.0) - resolution * own * held[here] / total
            for there, weight in towards.items():
                gained = weight - resolution * own * held[there] / total
                if gained > gain + 1e-12 * total:
                    best, gain = there, gained
            held[best] += own
            if best != here:
                of[node] = best
                moves += 1
                has_moved = True
    return of, has_moved
