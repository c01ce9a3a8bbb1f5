"""Neighbourhoods and shortest paths, on any view. Pure, but for the budget that it is given."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from services.graph.api import Direction
from services.graph.views import Adjacent, View

Spend = Callable[[int], None]
"""Says how many relationships were looked at; raises TimeIsUp."""
CHUNK = 500


class Reached(NamedTuple):
    """What a walk from one node has found."""

    layers: list[list[int]]
    """Keys by distance, from 1 on, in order."""
    visited: int
    """Nodes whose relationships were looked at."""


def adjacent(view: View, key: int, direction: Direction, types: frozenset[str]) -> Iterator[tuple[int, str, int]]:
    """(other node, type, relationship) for what leads from a node in that direction; each once, a loop too."""
    sides: Iterable[Adjacent] = (
        (view.out(key),)
        if direction == "out"
        else (view.into(key),)
        if direction == "in"
        else (view.out(key), view.into(key))
    )
    for at, (others, kinds, relationships) in enumerate(sides):
        for step in zip(others, kinds, relationships, strict=True):
            if (not types or step[1] in types) and not (at and step[0] == key):
                yield step


def khop(view: View, start: int, hops: int, direction: Direction, types: frozenset[str], spend: Spend) -> Reached:
    """All nodes within so many hops, by their distance; not the start itself."""
    seen = {start}
    frontier = [start]
    layers: list[list[int]] = []
    visited = 0
    for _ in range(hops):
        found: set[int] = set()
        keys = iter(frontier)
        while chunk := list(islice(keys, CHUNK)):
            if types:
                found.update(other for key in chunk for other, _, _ in adjacent(view, key, direction, types))
            else:
                found |= view.neighbours(chunk, direction)
            visited += len(chunk)
            spend(len(chunk))
        found -= seen
        if not found:
            break
        seen |= found
        frontier = sorted(found)
        layers.append(frontier)
    return Reached(layers, visited)


class Path(NamedTuple):
    """A way without a node twice."""

    cost: float
    nodes: tuple[int, ...]
    relationships: tuple[int, ...]


class Route(NamedTuple):
    """What ways are asked for."""

    direction: Direction = "out"
    types: frozenset[str] = frozenset()
    max_hops: int = 8
    weights: dict[int, float] | None = None
    """Of relationships, at least 0; one that is not in it weighs 1. None: hops are counted."""


def _shortest(
    view: View,
    start: int,
    end: int,
    route: Route,
    spend: Spend,
    without_nodes: frozenset[int] = frozenset(),
    without_steps: frozenset[tuple[int, int]] = frozenset(),
    hops_gone: int = 0,
) -> Path | None:
    """Dijkstra over (cost, hops): a node is looked at again only with fewer hops than before.

    With weights of at least 0 the cheapest walk of a bounded number of hops is one without a node twice.
    """
    weights = route.weights
    queue: list[tuple[float, int, int, int]] = [(0.0, 0, start, 0)]
    came: list[tuple[int, int, int]] = [(start, -1, -1)]
    """(node, where it was come from in this list, by which relationship)"""
    fewest: dict[int, int] = {}
    most = route.max_hops - hops_gone
    while queue:
        cost, hops, node, at = heapq.heappop(queue)
        if fewest.get(node, most + 1) <= hops:
            continue
        fewest[node] = hops
        if node == end:
            nodes, relationships = [], []
            while at >= 0:
                here, at, by = came[at]
                nodes.append(here)
                relationships.append(by)
            return Path(cost, tuple(reversed(nodes)), tuple(reversed(relationships[:-1])))
        if hops == most:
            continue
        looked = 0
        for other, _, by in adjacent(view, node, route.direction, route.types):
            looked += 1
            if other in without_nodes or fewest.get(other, most + 1) <= hops + 1 or (node, other) in without_steps:
                continue
            came.append((other, at, by))
            weight = 1.0 if weights is None else weights.get(by, 1.0)
            heapq.heappush(queue, (cost + weight, hops + 1, other, len(came) - 1))
        spend(looked)
    return None


def paths(view: View, start: int, end: int, count: int, route: Route, spend: Spend) -> Iterator[Path]:
    """The cheapest ways, each through other nodes, cheapest first.

    Jin Y. Yen, Finding the K Shortest Loopless Paths in a Network, Management Science 17 (1971).
    """
    first = _shortest(view, start, end, route, spend)
    if first is None:
        return
    found = [first]
    yield first
    candidates: list[Path] = []
    known = {first.nodes}
    while len(found) < count:
        last = found[-1]
        for at in range(len(last.nodes) - 1):
            root = last.nodes[: at + 1]
            steps = frozenset(
                (path.nodes[at], path.nodes[at + 1])
                for path in found
                if path.nodes[: at + 1] == root and len(path.nodes) > at + 1
            )
            spur = _shortest(view, root[-1], end, route, spend, frozenset(root[:-1]), steps, at)
            if spur is None:
                continue
            nodes = root[:-1] + spur.nodes
            if nodes in known:
                continue
            known.add(nodes)
            led = last.relationships[:at]
            weights = route.weights
            cost = spur.cost + sum(1.0 if weights is None else weights.get(by, 1.0) for by in led)
            heapq.heappush(candidates, Path(cost, nodes, led + spur.relationships))
        if not candidates:
            return
        found.append(heapq.heappop(candidates))
        yield found[-1]


def distance_layers(
    view: View, start: int, low: int, high: int, direction: Direction, types: frozenset[str], spend: Spend
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(node, way of relationships to it) for every node whose distance is low to high hops; the nearest first."""
    ways: dict[int, tuple[int, ...]] = {start: ()}
    frontier = [start]
    for hops in range(1, high + 1):
        following: list[int] = []
        for key in frontier:
            looked = 0
            for other, _, by in adjacent(view, key, direction, types):
                looked += 1
                if other not in ways:
                    ways[other] = (*ways[key], by)
                    following.append(other)
                    if hops >= low:
                        yield other, ways[other]
            spend(looked)
        frontier = following
