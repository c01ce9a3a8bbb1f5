"""What an index is worth, and which to make or drop. Pure: arithmetic on one observation.

The unit is seconds of CPU per second of time, as CPU time says the same on an idle and on
a busy machine, where the time on the clock does not.

    benefit = calls/s × seconds saved per call - rows written/s × INDEX_WRITE_S
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from msgspec import Struct

from services.data_fabric.candidates import IndexSpec

INDEX_WRITE_S = 10e-6
"""What one more index costs per inserted row: 2 to 10 µs measured, airports, 1 to 100 rows a transaction."""
SCAN_ROW_S = 50e-9
"""What a full scan costs per row: 53 ns measured on 28,298 airports."""
SEARCH_STEPS = 40
"""Virtual machine steps of an indexed query that finds nothing."""
ROW_STEPS = 12
"""Its steps per row it returns."""

MIN_BENEFIT = 0.005
"""Half a per cent of a core: an index that saves less is not worth having."""
CREATE_RATIO = 2.0
"""An index is made when its benefit is over twice its upkeep …"""
DROP_RATIO = 0.5
"""… and dropped when what it is worth is under half its upkeep: between the two lies the hysteresis."""
MIN_CALLS = 5
"""Calls in the window, below which nothing is concluded."""
IDLE_S = 900.0
"""An index that no query has used for so long is dropped."""
MAX_OWN = 30
MAX_OWN_PER_TABLE = 5
MAX_TABLE_ROWS = 5_000_000
"""Writes wait while an index is built, on such a table for some seconds."""


class ShapeRow(Struct, frozen=True, kw_only=True):
    """What was measured of one query shape over the window. Per call, unless it says otherwise."""

    shape: str
    calls: int
    """In the window."""
    calls_per_s: float
    cpu_s: float
    wall_s: float
    rows: float
    vm_steps: float
    fullscan_steps: float
    sorts: float
    autoindexes: float
    latest_cpu_s: float | None = None
    """Since the observation before this; None if it was not called."""
    latest_calls: int = 0
    candidates: tuple[IndexSpec, ...] = ()
    """Indexes that SQLite's planner would use for it, if they were there."""
    uses: tuple[str, ...] = ()
    """Indexes that it uses now."""


class TableRow(Struct, frozen=True, kw_only=True):
    """One table: its size, and rows inserted per second over the window."""

    table: str
    rows: int
    writes_per_s: float


class IndexRow(Struct, frozen=True, kw_only=True):
    """One index of the tuner's own."""

    name: str
    spec: IndexSpec
    idle_s: float
    """Since a query last used it, or since it was first seen."""


class Observation(Struct, frozen=True, kw_only=True):
    """What there is to go on."""

    window_s: float
    shapes: tuple[ShapeRow, ...] = ()
    tables: tuple[TableRow, ...] = ()
    indexes: tuple[IndexRow, ...] = ()


class Prospect(Struct, frozen=True, kw_only=True):
    """An index that could be made, or that is there."""

    spec: IndexSpec
    exists: bool
    calls: int
    saving: float
    """Seconds of CPU per second that it would save, by prediction."""
    upkeep: float
    """Seconds of CPU per second that it costs, or would cost, the writers."""
    cost_s: float | None
    """CPU seconds per call, of the queries that want it, since the last observation; with its upkeep if it exists."""

    @property
    def pays(self) -> bool:
        """Whether it is worth having."""
        return self.saving - self.upkeep >= MIN_BENEFIT and self.saving >= CREATE_RATIO * self.upkeep


class Worth(Struct, frozen=True, kw_only=True):
    """An index of the tuner's own, weighed."""

    index: IndexRow
    value: float
    """Seconds of CPU per second that scans would take without it."""
    upkeep: float


class Picture(Struct, frozen=True, kw_only=True):
    """What the observation means."""

    prospects: tuple[Prospect, ...] = ()
    """The best first."""
    worths: tuple[Worth, ...] = ()
    too_large: tuple[str, ...] = ()
    """Tables on which an index would keep writers waiting for too long."""


class CreateIndex(Struct, frozen=True, tag_field="do", tag="create_index"):
    """Make an index."""

    spec: IndexSpec


class DropIndex(Struct, frozen=True, tag_field="do", tag="drop_index"):
    """Drop an index of the tuner's own."""

    spec: IndexSpec


Decision: TypeAlias = CreateIndex | DropIndex


def saving_s(row: ShapeRow) -> float:
    """CPU seconds that the right index would save per call: all but what finding its rows takes."""
    if not (row.fullscan_steps or row.sorts or row.autoindexes) or row.vm_steps <= 0:
        return 0.0
    needed = SEARCH_STEPS + ROW_STEPS * row.rows
    return row.cpu_s * max(0.0, 1.0 - needed / row.vm_steps)


def orient(seen: Observation) -> Picture:
    """Weigh every index that a query wants, and every one that is there."""
    tables = {row.table: row for row in seen.tables}
    existing = {row.spec for row in seen.indexes}
    wanted: dict[IndexSpec, list[ShapeRow]] = {}
    for shape in seen.shapes:
        for spec in shape.candidates:
            if spec.table in tables:
                wanted.setdefault(spec, []).append(shape)
    prospects = []
    for spec, shapes in wanted.items():
        upkeep = tables[spec.table].writes_per_s * INDEX_WRITE_S
        calls = sum(shape.latest_calls for shape in shapes)
        cost_s = None
        if calls:
            spent_s = sum((shape.latest_cpu_s or 0.0) * shape.latest_calls for shape in shapes)
            rate = sum(shape.calls_per_s for shape in shapes)
            cost_s = spent_s / calls + (upkeep / rate if spec in existing and rate else 0.0)
        prospects.append(
            Prospect(
                spec=spec,
                exists=spec in existing,
                calls=sum(shape.calls for shape in shapes),
                saving=sum(shape.calls_per_s * saving_s(shape) for shape in shapes),
                upkeep=upkeep,
                cost_s=cost_s,
            )
        )
    prospects.sort(key=lambda prospect: (prospect.upkeep - prospect.saving, prospect.spec))
    worths = []
    for index in seen.indexes:
        table = tables.get(index.spec.table)
        rate = sum(shape.calls_per_s for shape in seen.shapes if index.name in shape.uses)
        worths.append(
            Worth(
                index=index,
                value=rate * (table.rows if table else 0) * SCAN_ROW_S,
                upkeep=(table.writes_per_s if table else 0.0) * INDEX_WRITE_S,
            )
        )
    too_large = tuple(row.table for row in seen.tables if row.rows > MAX_TABLE_ROWS)
    return Picture(prospects=tuple(prospects), worths=tuple(worths), too_large=too_large)


def decide(picture: Picture, *, held: Collection[Decision] = (), idle_s: float = IDLE_S) -> Decision | None:
    """Drop what does not earn its keep; else make what would earn most; else nothing. None of what is held."""
    for worth in picture.worths:
        costly = worth.upkeep > MIN_BENEFIT and worth.value < DROP_RATIO * worth.upkeep
        drop = DropIndex(worth.index.spec)
        if (costly or worth.index.idle_s > idle_s) and drop not in held:
            return drop
    own = [worth.index.spec for worth in picture.worths]
    for prospect in picture.prospects:
        spec = prospect.spec
        if (
            prospect.calls >= MIN_CALLS
            and prospect.pays
            and not prospect.exists
            and not any(spec.starts(other) for other in own)
            and CreateIndex(spec) not in held
            and spec.table not in picture.too_large
            and len(own) < MAX_OWN
            and sum(other.table == spec.table for other in own) < MAX_OWN_PER_TABLE
        ):
            return CreateIndex(spec)
    return None


def cost(picture: Picture, decision: Decision) -> float | None:
    """What the decision is to lower.

    For a new index, CPU seconds per call of the queries that want it. For a drop,
    how much the index is missed: 1 while it is there, 0 when it is gone and
    nobody wants it, 2 when it is gone and somebody does.
    """
    match decision:
        case CreateIndex(spec):
            return next((prospect.cost_s for prospect in picture.prospects if prospect.spec == spec), None)
        case DropIndex(spec):
            if any(worth.index.spec == spec for worth in picture.worths):
                return 1.0
            missed = any(prospect.spec == spec and prospect.pays for prospect in picture.prospects)
            return 2.0 if missed else 0.0
