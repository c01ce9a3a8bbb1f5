"""A collection as it is in memory: its table, the index in use, the shapes that are no points, what its use costs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from services.geospatial import sphere
from services.geospatial.cache import Answers
from services.geospatial.geojson import Bounds
from services.geospatial.indexes import Index, Kind, Scan, Tree, breathe, built
from services.geospatial.limits import Limits
from services.geospatial.table import Floats, Slots, Table
from services.geospatial.times import Interval

REBUILD_AT = 4_096
"""A tree's delta that is packed into a new tree, until the loop knows better."""
LAST = 256
NEAR_ALL = 2_000
"""Of so few the distances are simply all taken."""


class Change(Struct, frozen=True):
    """A feature as it is now."""

    number: int
    bounds: Bounds | None
    time: Interval | None
    is_point: bool
    shape: Any = None
    """A shapely geometry, if it is no point."""


class Tally(Struct):
    """What was done since the beginning; nanoseconds are the index's own, of a processor, not of the clock."""

    reads: int = 0
    read_ns: int = 0
    hits: int = 0
    """What was found, before shapes were looked at."""
    kept: int = 0
    """What was left of it after that."""
    area: float = 0.0
    """Square degrees, of all windows."""
    writes: int = 0
    """Features that were changed."""
    batches: int = 0
    write_ns: int = 0
    rebuilds: int = 0
    rebuild_ns: int = 0
    delta: int = 0
    """Of each read, added up."""


class Layer:
    """For any thread."""

    def __init__(self, name: str, limits: Limits, table: Table | None = None) -> None:
        self.name = name
        self.table = table if table is not None else Table()
        self.index: Index = Scan()
        self.rebuild_at = REBUILD_AT
        self.built_s = time.monotonic()
        self.tally = Tally()
        self.version = 0
        """Of the content; counts changes."""
        self.took_ms: deque[float] = deque(maxlen=LAST)
        self.answers = Answers(limits.cached, limits.cached_bytes)
        self._shapes: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._building = threading.Lock()
        """One index is built at a time."""
        self._late: list[Slots] | None = None
        """What has changed while an index is built; None while none is."""
        self._reach_m = 50_000.0
        self._extent: tuple[int, Bounds | None, Interval | None] | None = None

    # -- changes ------------------------------------------------------------------------------------------

    def apply(self, changes: Iterable[Change], gone: Iterable[int] = ()) -> None:
        """Features are so now, and those numbers are no more."""
        with self._lock:
            table, shapes, slots = self.table, self._shapes, []
            for one in changes:
                slot = table.put(one.number, one.bounds, one.time, is_point=one.is_point)
                if one.shape is not None:
                    shapes[slot] = one.shape
                elif shapes:
                    shapes.pop(slot, None)
                slots.append(slot)
            for number in gone:
                if (left := table.drop(number)) is not None:
                    shapes.pop(left, None)
                    slots.append(left)
            if not slots:
                return
            changed = np.array(slots, np.int64)
            begun_ns = time.thread_time_ns()
            self.index.changed(table, changed)
            self.tally.write_ns += time.thread_time_ns() - begun_ns
            self.tally.writes += len(slots)
            self.tally.batches += 1
            self.version += 1
            if self._late is not None:
                self._late.append(changed)

    def replace(self, table: Table, shapes: dict[int, Any]) -> None:
        """All of it is another now; its index begins anew, with the kind that it had."""
        index = built(self.index.kind, table.bounds[:, : table.size])
        with self._lock:
            self.table, self._shapes, self.index = table, shapes, index
            self._late = None  # whatever is being built, it is of what is no more
            self.version += 1
            self.tally.writes += table.size
            self.built_s = time.monotonic()

    def use(self, kind: Kind, rebuild_at: int = REBUILD_AT) -> None:
        """Have it use an index of this kind, built beside the one in use. Blocks the caller, and nobody else."""
        with self._building:
            self.rebuild_at = rebuild_at
            with self._lock:
                table = self.table
                bounds = table.bounds[:, : table.size].copy()
                late: list[Slots] = []
                self._late = late
            begun_ns = time.thread_time_ns()
            try:
                index = built(kind, bounds, breathe)
            except BaseException:
                with self._lock:
                    self._late = None
                raise
            with self._lock:
                if self._late is not late:
                    return
                self._late = None
                for slots in late:
                    index.changed(table, slots)
                self.index = index
                self.built_s = time.monotonic()
                self.tally.rebuilds += 1
                self.tally.rebuild_ns += time.thread_time_ns() - begun_ns

    def is_due(self) -> bool:
        """Whether its tree is to be packed anew."""
        return isinstance(self.index, Tree) and self.index.delta() >= self.rebuild_at

    def pack(self) -> None:
        """Pack its tree anew, if that is due."""
        if self.is_due():
            self.use("tree", self.rebuild_at)

    # -- questions ----------------------------------------------------------------------------------------

    def _find(self, window: Bounds) -> Slots:
        """Under the lock."""
        begun_ns = time.thread_time_ns()
        slots = self.index.find(self.table, window)
        tally = self.tally
        tally.read_ns += time.thread_time_ns() - begun_ns
        tally.reads += 1
        tally.hits += len(slots)
        tally.delta += self.index.delta()
        tally.area += (window[2] - window[0]) * (window[3] - window[1])
        return slots

    def select(self, windows: Sequence[Bounds] | None, during: Interval | None) -> Slots:
        """Numbers, ascending, of what touches one of the windows and the time."""
        begun_s = time.perf_counter()
        doubtful: list[tuple[int, Any]] = []
        with self._lock:
            table = self.table
            if windows is None:
                slots = np.flatnonzero(table.is_live[: table.size])
            else:
                parts = [self._find(window) for window in windows]
                slots = np.unique(np.concatenate(parts)) if len(parts) > 1 else np.sort(parts[0])
            if during is not None and len(slots):
                begin, end = table.times[:, slots]
                slots = slots[(begin <= during[1]) & (end >= during[0])]
            if windows is not None and self._shapes and len(slots):
                unsure = slots[~_within(table.bounds[:, slots], windows)]
                shapes = self._shapes
                doubtful = [(slot, shapes[slot]) for slot in unsure.tolist() if slot in shapes]
            numbers = table.numbers[slots]
        if doubtful:
            assert windows is not None
            out = _apart(doubtful, windows)
            if len(out):
                numbers = numbers[~np.isin(slots, out)]
        if windows is not None:
            self.tally.kept += len(numbers)
            self.took_ms.append((time.perf_counter() - begun_s) * 1e3)
        return numbers

    def containing(self, lon: float, lat: float) -> Slots:
        """Numbers, ascending, of the shapes in which or on whose border the position lies."""
        begun_s = time.perf_counter()
        with self._lock:
            slots = np.sort(self._find((lon, lat, lon, lat)))
            shapes = [(slot, self._shapes.get(slot)) for slot in slots.tolist()]
            numbers = self.table.numbers[slots]
        if any(shape is not None for _, shape in shapes):
            import shapely

            # A point that is no shape contains only itself; it is not asked for here.
            candidates = np.array([shape for _, shape in shapes], dtype=object)
            shapely.prepare(candidates)
            numbers = numbers[shapely.intersects_xy(candidates, lon, lat)]
        else:
            numbers = numbers[:0]
        self.tally.kept += len(numbers)
        self.took_ms.append((time.perf_counter() - begun_s) * 1e3)
        return numbers

    def nearest(self, lon: float, lat: float, count: int, within_m: float) -> list[tuple[int, float]]:
        """(number, metres) of what is nearest by great circle and not farther than that, the nearest first."""
        begun_s = time.perf_counter()
        reach_m = min(self._reach_m if self.table.live > NEAR_ALL else sphere.HALF_WAY_M, within_m)
        while True:
            with self._lock:
                parts = [self._find(window) for window in sphere.windows_within(lon, lat, reach_m)]
                slots = np.unique(np.concatenate(parts))
                bounds = self.table.bounds[:, slots]
                numbers = self.table.numbers[slots]
                shapes = [(at, self._shapes[slot]) for at, slot in enumerate(slots.tolist()) if slot in self._shapes]
            metres = sphere.distances(lon, lat, bounds[0], bounds[1])
            for at, shape in shapes:
                metres[at] = _distance(lon, lat, shape)
            inside = metres <= reach_m
            if int(inside.sum()) >= count or reach_m >= min(within_m, sphere.HALF_WAY_M):
                break
            reach_m = min(reach_m * 3.0, within_m)
        if reach_m < within_m:
            # Next time as far as would have held about twice as many: one look is the rule.
            found = int(inside.sum())
            self._reach_m = min(max(reach_m * (2.0 * count / max(found, 1)) ** 0.5, 10.0), sphere.HALF_WAY_M)
        chosen = np.flatnonzero(inside)
        order = chosen[np.lexsort((numbers[chosen], metres[chosen]))][:count]
        self.tally.kept += len(order)
        self.took_ms.append((time.perf_counter() - begun_s) * 1e3)
        return [(int(numbers[at]), float(metres[at])) for at in order]

    def extent(self) -> tuple[Bounds | None, Interval | None]:
        """Where and when all of it is."""
        with self._lock:
            if self._extent is None or self._extent[0] != self.version:
                self._extent = (self.version, self.table.extent(), self.table.span())
            return self._extent[1:]

    def vertices(self) -> int:
        """Of all its shapes."""
        with self._lock:
            shapes = list(self._shapes.values())
        if not shapes:
            return 0
        import shapely

        return int(shapely.get_num_coordinates(shapes).sum())

    def placed(self) -> tuple[Slots, Floats]:
        """Numbers and bounds of all that are somewhere."""
        with self._lock:
            slots = np.flatnonzero(~np.isnan(self.table.bounds[0, : self.table.size]))
            return self.table.numbers[slots], self.table.bounds[:, slots]

    def p95_ms(self) -> float | None:
        """Of the last questions."""
        took = sorted(self.took_ms.copy())
        return took[int(0.95 * (len(took) - 1))] if took else None


def _within(bounds: Floats, windows: Sequence[Bounds]) -> NDArray[np.bool_]:
    """Which lie wholly in a window, and so need no second look."""
    inside = np.zeros(bounds.shape[1], np.bool_)
    for west, south, east, north in windows:
        inside |= (bounds[0] >= west) & (bounds[2] <= east) & (bounds[1] >= south) & (bounds[3] <= north)
    return inside


def _apart(doubtful: list[tuple[int, Any]], windows: Sequence[Bounds]) -> Slots:
    """The slots whose shapes touch no window, though their bounds do."""
    import shapely

    shapes = np.array([shape for _, shape in doubtful], dtype=object)
    touches = np.zeros(len(shapes), np.bool_)
    for window in windows:
        touches |= shapely.intersects(shapely.box(*window), shapes)
    return np.array([slot for slot, _ in doubtful], np.int64)[~touches]


def _distance(lon: float, lat: float, shape: Any) -> float:
    """Metres to the closest position of a shape, which is sought in the plane about (lon, lat); 0 inside of it."""
    import shapely

    squeeze = max(np.cos(np.radians(lat)), 1e-6)

    def plane(coordinates: Floats) -> Floats:
        east = (coordinates[:, 0] - lon + 180.0) % 360.0 - 180.0
        return np.column_stack((east * squeeze, coordinates[:, 1] - lat))

    if shapely.intersects_xy(shape, lon, lat):
        return 0.0
    flat = shapely.transform(shape, plane)
    x, y = shapely.get_coordinates(shapely.shortest_line(shapely.Point(0.0, 0.0), flat))[1]
    return float(sphere.distances(lon, lat, np.array([lon + x / squeeze]), np.array([lat + y]))[0])
