"""Three ways to find what lies in a window: look at all, a packed tree, or a tree that follows each change.

    scan    compares all bounds, as arrays. Nothing to keep up.
    tree    shapely's STRtree, packed at once and then fixed; what has changed since is in a delta that is scanned.
    rtree   SQLite's R*Tree in memory, changed with each write.

All find exactly the slots whose bounds touch the window, in no order. Each is used under its collection's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from services.geospatial.geojson import Bounds
from services.geospatial.table import Floats, Slots, Table

Kind = Literal["scan", "tree", "rtree"]
KINDS: tuple[Kind, ...] = ("scan", "tree", "rtree")
SLICE = 16_384
"""Packed at once, in about 15 ms, during which no other thread of Python runs."""
CHUNK = 500
Breath = Callable[[], None]


def breathe() -> None:
    """Let others run; a mere sleep(0) would often not."""
    time.sleep(0.0005)


class Index(Protocol):
    """Finds; is told of what has changed."""

    kind: Kind

    def find(self, table: Table, window: Bounds) -> Slots:
        """Slots whose bounds touch the window."""
        ...

    def changed(self, table: Table, slots: Slots) -> None:
        """These are no more what they were, or are new."""
        ...

    def delta(self) -> int:
        """How many have changed since it was built, as far as that slows it."""
        ...


def touching(bounds: Floats, window: Bounds) -> Slots:
    """Which of the bounds touch the window."""
    west, south, east, north = window
    hit = bounds[0] <= east
    hit &= bounds[2] >= west
    hit &= bounds[1] <= north
    hit &= bounds[3] >= south
    return np.flatnonzero(hit)


class Scan:
    """Compares all."""

    kind: Kind = "scan"

    def find(self, table: Table, window: Bounds) -> Slots:
        """Slots whose bounds touch the window."""
        return touching(table.bounds[:, : table.size], window)

    def changed(self, table: Table, slots: Slots) -> None:
        """Nothing to do."""

    def delta(self) -> int:
        """None."""
        return 0


class Tree:
    """STRtrees, each of a slice of the world from west to east; and what has changed since they were packed."""

    kind: Kind = "tree"

    def __init__(self, bounds: Floats, breath: Breath = breathe) -> None:
        import shapely

        self._box = shapely.box
        self._trees: list[tuple[Any, Slots]] = []
        self._extents: Floats = np.empty((4, 0))
        placed = np.flatnonzero(~np.isnan(bounds[0]))
        order = placed[np.argsort(bounds[0, placed], kind="stable")]
        extents = []
        for start in range(0, len(order), SLICE):
            breath()
            slots = order[start : start + SLICE]
            west, south, east, north = bounds[:, slots]
            if np.array_equal(west, east) and np.array_equal(south, north):
                boxes = shapely.points(west, south)
            else:
                boxes = shapely.box(west, south, east, north)
            tree = shapely.STRtree(boxes)
            tree.query(boxes[0])  # it is packed by the first query
            self._trees.append((tree, slots))
            extents.append((west.min(), south.min(), east.max(), north.max()))
        if extents:
            self._extents = np.array(extents).T
        self._place: NDArray[np.int32] = np.full(bounds.shape[1], -1, np.int32)
        """Where a slot is in the delta; -1 if it is not."""
        self._delta_slots: Slots = np.zeros(64, np.int64)
        self._delta_bounds: Floats = np.full((4, 64), np.nan)
        self._delta = 0

    def find(self, table: Table, window: Bounds) -> Slots:
        """Slots whose bounds touch the window."""
        found: list[Slots] = []
        near = range(len(self._trees)) if len(self._trees) < 2 else touching(self._extents, window)
        if len(near):
            box = self._box(*window)
            for number in near:
                tree, slots = self._trees[number]
                found.append(slots[tree.query(box)])
        hits = found[0] if len(found) == 1 else np.concatenate(found) if found else np.empty(0, np.int64)
        if self._delta:
            hits = hits[self._place[hits] < 0]
            late = touching(self._delta_bounds[:, : self._delta], window)
            if len(late):
                hits = np.concatenate((hits, self._delta_slots[late]))
        return hits

    def changed(self, table: Table, slots: Slots) -> None:
        """Have them in the delta."""
        if table.size > len(self._place):
            place = np.full(len(table.numbers), -1, np.int32)
            place[: len(self._place)] = self._place
            self._place = place
        new = slots[self._place[slots] < 0]
        if len(new):
            if len(new) > 1:
                new = np.unique(new)
            end = self._delta + len(new)
            if end > len(self._delta_slots):
                room = 2 * end
                delta_slots, delta_bounds = np.zeros(room, np.int64), np.full((4, room), np.nan)
                delta_slots[: self._delta] = self._delta_slots[: self._delta]
                delta_bounds[:, : self._delta] = self._delta_bounds[:, : self._delta]
                self._delta_slots, self._delta_bounds = delta_slots, delta_bounds
            self._place[new] = np.arange(self._delta, end)
            self._delta_slots[self._delta : end] = new
            self._delta = end
        self._delta_bounds[:, self._place[slots]] = table.bounds[:, slots]

    def delta(self) -> int:
        """Slots in it."""
        return self._delta


class RTree:
    """An R*Tree in a database in memory. It rounds outwards to 32 bits, so what it finds is looked at once more."""

    kind: Kind = "rtree"

    def __init__(self, bounds: Floats, breath: Breath = breathe) -> None:
        import apsw

        self._db = apsw.Connection(":memory:")
        self._db.execute("CREATE VIRTUAL TABLE boxes USING rtree(slot, west, east, south, north)")
        placed = np.flatnonzero(~np.isnan(bounds[0]))
        self._db.execute("BEGIN")
        for start in range(0, len(placed), CHUNK):
            breath()
            self._db.executemany(
                "INSERT INTO boxes VALUES (?, ?, ?, ?, ?)", _rows(bounds, placed[start : start + CHUNK])
            )
        self._db.execute("COMMIT")

    def find(self, table: Table, window: Bounds) -> Slots:
        """Slots whose bounds touch the window."""
        west, south, east, north = window
        cursor = self._db.execute(
            "SELECT slot FROM boxes WHERE west <= ? AND east >= ? AND south <= ? AND north >= ?",
            (east, west, north, south),
        )
        hits = np.fromiter((slot for (slot,) in cursor), np.int64)
        return hits[touching(table.bounds[:, hits], window)] if len(hits) else hits

    def changed(self, table: Table, slots: Slots) -> None:
        """Move them in the tree."""
        gone = np.isnan(table.bounds[0, slots])
        with self._db:
            if gone.any():
                self._db.executemany("DELETE FROM boxes WHERE slot = ?", ((int(slot),) for slot in slots[gone]))
                slots = slots[~gone]
            self._db.executemany("INSERT OR REPLACE INTO boxes VALUES (?, ?, ?, ?, ?)", _rows(table.bounds, slots))

    def delta(self) -> int:
        """None."""
        return 0


def _rows(bounds: Floats, slots: Slots) -> Iterator[tuple[Any, ...]]:
    west, south, east, north = bounds[:, slots].tolist()
    return zip(slots.tolist(), west, east, south, north, strict=True)


def built(kind: Kind, bounds: Floats, breath: Breath = breathe) -> Index:
    """An index of that kind over bounds that nobody changes meanwhile."""
    match kind:
        case "scan":
            return Scan()
        case "tree":
            return Tree(bounds, breath)
        case "rtree":
            return RTree(bounds, breath)
