"""Areas with a border, and which moving objects are in which. Crossings are found at positions, not between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from msgspec import Struct


class Position(Struct, frozen=True):
    """Where an object was."""

    object: str
    lon: float
    lat: float
    at_s: float


class Crossing(Struct, frozen=True, kw_only=True):
    """An object has entered or left a fence."""

    number: int
    id: str
    """Of the event that tells of it."""
    object: str
    fence: str
    crossing: Literal["enter", "exit"]
    lon: float
    lat: float
    at_s: float


class Fences:
    """The shapes; never changed, but replaced."""

    def __init__(self, shapes: Mapping[str, Any]) -> None:
        self.shapes = dict(shapes)
        self._ids = list(self.shapes)
        self._tree: Any = None
        if self._ids:
            import shapely

            areas = np.array(list(self.shapes.values()), dtype=object)
            shapely.prepare(areas)
            self._tree = shapely.STRtree(areas)

    def within(self, positions: Sequence[Position]) -> list[frozenset[str]]:
        """Of each position, the fences that it is in or on the border of."""
        found: list[set[str]] = [set() for _ in positions]
        if self._tree is not None and positions:
            import shapely

            points = shapely.points([one.lon for one in positions], [one.lat for one in positions])
            for at, fence in zip(*self._tree.query(points, predicate="intersects").tolist(), strict=True):
                found[at].add(self._ids[fence])
        return [frozenset(each) for each in found]


def crossed(
    positions: Sequence[Position], within: Sequence[frozenset[str]], inside: Mapping[str, frozenset[str]]
) -> list[tuple[Position, str, Literal["enter", "exit"]]]:
    """What was crossed, in order. Pure.

    ``within`` is of each position, ``inside`` of each object before; positions of one object are in the order of time.
    """
    crossings: list[tuple[Position, str, Literal["enter", "exit"]]] = []
    now: dict[str, frozenset[str]] = {}
    for position, fences in zip(positions, within, strict=True):
        before = now.get(position.object, inside.get(position.object, frozenset()))
        crossings += [(position, fence, "exit") for fence in sorted(before - fences)]
        crossings += [(position, fence, "enter") for fence in sorted(fences - before)]
        now[position.object] = fences
    return crossings
