"""Pattern queries: which nodes and relationships stand to each other as a pattern says.

A relationship is used once at most in one match, as in Cypher. An edge with hops stands for the shortest way between
its two nodes, if that has as many relationships as it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from cdn_daemon.api import RefusedError
from services.graph.api import PatternEdge, PatternNode, QueryRequest
from services.graph.limits import Limits
from services.graph.views import View
from services.graph.walk import Spend, adjacent, distance_layers

Match = dict[str, int | tuple[int, ...]]
"""Keys of nodes, and ways of relationships, by name."""
Properties = Callable[[int], dict[str, Any]]
MANY = 1 << 60


def _text(test: Callable[[str, str], bool]) -> Callable[[Any, Any], bool]:
    return lambda has, wanted: isinstance(has, str) and isinstance(wanted, str) and test(has, wanted)


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(has: Any, wanted: Any) -> bool:
        number = (int, float)
        both = (isinstance(has, number) and isinstance(wanted, number)) or (
            isinstance(has, str) and isinstance(wanted, str)
        )
        return both and not isinstance(has, bool) and not isinstance(wanted, bool) and test(has, wanted)

    return compare


def _same(has: Any, wanted: Any) -> bool:
    """As in JSON: true is not 1."""
    return bool(has == wanted) and isinstance(has, bool) == isinstance(wanted, bool)


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": _same,
    "ne": lambda has, wanted: not _same(has, wanted),
    "lt": _ordered(lambda has, wanted: bool(has < wanted)),
    "le": _ordered(lambda has, wanted: bool(has <= wanted)),
    "gt": _ordered(lambda has, wanted: bool(has > wanted)),
    "ge": _ordered(lambda has, wanted: bool(has >= wanted)),
    "in": lambda has, wanted: isinstance(wanted, list) and any(_same(has, one) for one in wanted),
    "has": lambda has, wanted: isinstance(has, list) and any(_same(one, wanted) for one in has),
    "contains": _text(lambda has, wanted: wanted.lower() in has.lower()),
    "starts_with": _text(lambda has, wanted: has.startswith(wanted)),
    "exists": lambda has, wanted: (has is not None) is bool(wanted),
}


def holds(where: dict[str, Any], properties: dict[str, Any]) -> bool:
    """Whether the properties are so: ``{"name": "x", "score": {"ge": 5, "lt": 9}}``."""
    for name, wanted in where.items():
        tests = wanted if isinstance(wanted, dict) else {"eq": wanted}
        has = properties.get(name)
        if not all(OPERATORS[operator](has, value) for operator, value in tests.items()):
            return False
    return True


def check(asked: QueryRequest, limits: Limits) -> None:
    """Raises RefusedError for a pattern that cannot be looked for."""

    def refuse(what: str, value: object, next: str | None = None, limit: object = None) -> RefusedError:
        return RefusedError(422, f"cannot look for this pattern: {what}", value=value, limit=limit, next=next)

    if not asked.nodes:
        raise refuse("it has no nodes", None)
    if len(asked.nodes) > limits.pattern_nodes:
        raise refuse("it has too many nodes", len(asked.nodes), limit=limits.pattern_nodes)
    if len(asked.edges) > limits.pattern_edges:
        raise refuse("it has too many edges", len(asked.edges), limit=limits.pattern_edges)
    for where in (*(one.where for one in asked.nodes.values()), *(one.where for one in asked.edges)):
        for name, wanted in where.items():
            for operator in wanted if isinstance(wanted, dict) else ():
                if operator not in OPERATORS:
                    raise refuse("there is no such comparison", f"{name}: {operator}", limit=", ".join(OPERATORS))
    names = list(asked.nodes)
    for edge in asked.edges:
        for end in (edge.source, edge.target):
            if end not in asked.nodes:
                raise refuse("an edge names a node that is not in it", end)
        if edge.hops is not None:
            if not edge.hops[0] <= edge.hops[1] <= limits.hops:
                raise refuse("hops must be [least, most]", list(edge.hops), limit=f"1 to {limits.hops}")
            if edge.where:
                raise refuse("an edge with hops has no properties", edge.name)
        if edge.name is not None:
            names.append(edge.name)
    if len(set(names)) < len(names):
        raise refuse("a name is there twice", ", ".join(sorted(names)))
    reached = {next(iter(asked.nodes))}
    for _ in asked.edges:
        for edge in asked.edges:
            if edge.source in reached or edge.target in reached:
                reached |= {edge.source, edge.target}
    if reached != set(asked.nodes):
        raise refuse("it falls into parts", ", ".join(set(asked.nodes) - reached), next="ask for each part by itself")
    for name in asked.returned or ():
        if name not in names:
            raise refuse("it has nothing of this name to return", name)


class Matcher:
    """Looks for one pattern in one view."""

    def __init__(
        self,
        view: View,
        asked: QueryRequest,
        node_properties: Properties,
        relationship_properties: Properties,
        spend: Spend,
    ) -> None:
        self._view = view
        self._asked = asked
        self._node_properties = node_properties
        self._relationship_properties = relationship_properties
        self._spend = spend
        self._fits: dict[tuple[str, int], bool] = {}
        self.visited = 0

    def matches(self, start: str, candidates: Iterable[int]) -> Iterator[Match]:
        """Every match, beginning with those nodes for the one that is named ``start``."""
        order = self._order(start)
        for key in candidates:
            self.visited += 1
            self._spend(1)
            if self._is(start, key):
                yield from self._extend({start: key}, order, 0, set())

    def _order(self, start: str) -> list[PatternEdge]:
        """Edges such that each has an end that is known by then; those with both ends known as early as can be."""
        known, left, order = {start}, list(self._asked.edges), []
        while left:
            left.sort(
                key=lambda edge: (
                    -((edge.source in known) + (edge.target in known)),
                    edge.hops[1] if edge.hops is not None else 0,
                )
            )
            edge = left.pop(0)
            known |= {edge.source, edge.target}
            order.append(edge)
        return order

    def _is(self, name: str, key: int) -> bool:
        fits = self._fits.get((name, key))
        if fits is None:
            if len(self._fits) > 100_000:
                self._fits.clear()
            fits = self._fits[name, key] = self._satisfies(self._asked.nodes[name], key)
        return fits

    def _satisfies(self, wanted: PatternNode, key: int) -> bool:
        node = self._view.node(key)
        if node is None or (wanted.id is not None and node.id != wanted.id):
            return False
        if any(label not in node.labels for label in wanted.labels):
            return False
        return not wanted.where or holds(wanted.where, self._node_properties(key))

    def _extend(self, match: Match, order: list[PatternEdge], at: int, used: set[int]) -> Iterator[Match]:
        if at == len(order):
            yield match
            return
        edge = order[at]
        forward = edge.source in match
        here, there = (edge.source, edge.target) if forward else (edge.target, edge.source)
        key = match[here]
        assert isinstance(key, int)
        bound = match.get(there)
        for other, way in self._steps(key, edge, forward=forward):
            self.visited += 1
            if bound is not None:
                if other != bound:
                    continue
            elif not self._is(there, other):
                continue
            if edge.hops is None and way[0] in used:
                continue
            found = {**match, there: other}
            if edge.name is not None:
                found[edge.name] = way if forward else way[::-1]
            yield from self._extend(found, order, at + 1, used if edge.hops is not None else used | {way[0]})

    def _steps(self, key: int, edge: PatternEdge, *, forward: bool) -> Iterator[tuple[int, tuple[int, ...]]]:
        direction = edge.direction if forward else {"out": "in", "in": "out", "both": "both"}[edge.direction]
        types = frozenset(edge.types)
        if edge.hops is not None:
            yield from distance_layers(self._view, key, *edge.hops, direction, types, self._spend)  # type: ignore[arg-type]
            return
        looked = 0
        for other, _, by in adjacent(self._view, key, direction, types):  # type: ignore[arg-type]
            looked += 1
            if looked % 256 == 0:
                self._spend(256)
            if not edge.where or holds(edge.where, self._relationship_properties(by)):
                yield other, (by,)
        self._spend(looked % 256)


def start_of(asked: QueryRequest, count: Callable[[str], int]) -> str:
    """The name of the node to begin with: the one that the fewest can be. count tells how many have a label."""

    def candidates(name: str) -> tuple[int, bool]:
        wanted = asked.nodes[name]
        if wanted.id is not None:
            return 1, False
        return min((count(label) for label in wanted.labels), default=MANY), not wanted.where

    return min(asked.nodes, key=candidates)
