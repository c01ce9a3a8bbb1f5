"""What queries and writes have cost: recorded by the threads that run them, taken by the loop.

Bounded: a fixed number of shapes, of which the least recently seen gives way.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from services.data_fabric.benefit import IndexRow, Observation, ShapeRow, TableRow
from services.data_fabric.candidates import IndexSpec

MAX_SHAPES = 256
SHOWN_SHAPES = 20
WINDOW_PERIODS = 10
SHAPE_CHARS = 400
PLAN_AFTER_CALLS = 3
"""A shape is planned for when it has come so often; what comes once is not worth an index."""


class Sample(Struct, frozen=True, kw_only=True):
    """One call of one query. Steps and sorts are SQLite's own counters (sqlite.org/c3ref/c_stmtstatus_counter.html)."""

    cpu_s: float
    """CPU time of the thread that ran it; unlike the wall's, it does not grow when others compete."""
    wall_s: float
    rows: int
    vm_steps: int = 0
    fullscan_steps: int = 0
    sorts: int = 0
    autoindexes: int = 0


class Plan(Struct, frozen=True):
    """How SQLite goes about a query: the indexes it uses, and those it would use."""

    uses: tuple[str, ...] = ()
    candidates: tuple[IndexSpec, ...] = ()


@dataclass
class _Sums:
    calls: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    rows: int = 0
    vm_steps: int = 0
    fullscan_steps: int = 0
    sorts: int = 0
    autoindexes: int = 0

    def add(self, other: Sample | _Sums, calls: int) -> None:
        self.calls += calls
        self.cpu_s += other.cpu_s
        self.wall_s += other.wall_s
        self.rows += other.rows
        self.vm_steps += other.vm_steps
        self.fullscan_steps += other.fullscan_steps
        self.sorts += other.sorts
        self.autoindexes += other.autoindexes


@dataclass
class _Shape:
    total_calls: int = 0
    plan: Plan | None = None
    planned_for: int = -1
    """The schema's generation that the plan was made for."""


@dataclass
class _Period:
    span_s: float
    shapes: dict[str, _Sums]
    writes: dict[str, int]


@dataclass
class _Open:
    since_s: float
    shapes: dict[str, _Sums] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)


class Workload:
    """The measurements. Every method may be called from any thread, and is quick."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shapes: OrderedDict[str, _Shape] = OrderedDict()
        self._open = _Open(since_s=clock())
        self._periods: deque[_Period] = deque(maxlen=WINDOW_PERIODS)
        self._used_s: dict[str, float] = {}
        self.calls = 0
        self.rows_written = 0

    def ran(self, shape: str, sample: Sample) -> None:
        """One call of a query is over."""
        with self._lock:
            self.calls += 1
            known = self._shapes.get(shape)
            if known is None:
                known = self._shapes[shape] = _Shape()
                if len(self._shapes) > MAX_SHAPES:
                    gone, _ = self._shapes.popitem(last=False)
                    self._open.shapes.pop(gone, None)
            self._shapes.move_to_end(shape)
            known.total_calls += 1
            self._open.shapes.setdefault(shape, _Sums()).add(sample, 1)
            for index in known.plan.uses if known.plan else ():
                self._used_s[index] = self._clock()

    def wrote(self, table: str, rows: int) -> None:
        """Rows were inserted."""
        with self._lock:
            self.rows_written += rows
            self._open.writes[table] = self._open.writes.get(table, 0) + rows

    def wants_plan(self, shape: str, generation: int) -> bool:
        """Whether the shape comes often, and its plan is missing or of another schema."""
        with self._lock:
            known = self._shapes.get(shape)
            return known is not None and known.total_calls >= PLAN_AFTER_CALLS and known.planned_for != generation

    def planned(self, shape: str, generation: int, plan: Plan) -> None:
        """This is how SQLite goes about the shape."""
        with self._lock:
            known = self._shapes.get(shape)
            if known is not None:
                known.plan, known.planned_for = plan, generation

    def take(self, tables: Mapping[str, int], own: Mapping[str, IndexSpec]) -> Observation:
        """Close the present period; return the window that ends with it.

        tables gives rows by table, own the tuner's indexes by name.
        """
        with self._lock:
            now_s = self._clock()
            opened, self._open = self._open, _Open(since_s=now_s)
            latest = _Period(max(now_s - opened.since_s, 1e-9), opened.shapes, opened.writes)
            self._periods.append(latest)
            span_s = sum(period.span_s for period in self._periods)
            sums: dict[str, _Sums] = {}
            writes: dict[str, int] = {}
            for period in self._periods:
                for shape, part in period.shapes.items():
                    sums.setdefault(shape, _Sums()).add(part, part.calls)
                for table, rows in period.writes.items():
                    writes[table] = writes.get(table, 0) + rows
            busiest = sorted(sums.items(), key=lambda item: -item[1].cpu_s)[:SHOWN_SHAPES]
            self._used_s = {name: self._used_s.get(name, now_s) for name in own}
            return Observation(
                window_s=span_s,
                shapes=tuple(self._row(shape, part, latest.shapes.get(shape), span_s) for shape, part in busiest),
                tables=tuple(
                    TableRow(table=table, rows=rows, writes_per_s=writes.get(table, 0) / span_s)
                    for table, rows in tables.items()
                ),
                indexes=tuple(
                    IndexRow(name=name, spec=spec, idle_s=now_s - self._used_s[name]) for name, spec in own.items()
                ),
            )

    def _row(self, shape: str, part: _Sums, latest: _Sums | None, span_s: float) -> ShapeRow:
        known = self._shapes.get(shape)
        plan = known.plan if known is not None and known.plan is not None else Plan()
        return ShapeRow(
            shape=shape[:SHAPE_CHARS],
            calls=part.calls,
            calls_per_s=part.calls / span_s,
            cpu_s=part.cpu_s / part.calls,
            wall_s=part.wall_s / part.calls,
            rows=part.rows / part.calls,
            vm_steps=part.vm_steps / part.calls,
            fullscan_steps=part.fullscan_steps / part.calls,
            sorts=part.sorts / part.calls,
            autoindexes=part.autoindexes / part.calls,
            latest_cpu_s=latest.cpu_s / latest.calls if latest is not None else None,
            latest_calls=latest.calls if latest is not None else 0,
            candidates=plan.candidates,
            uses=plan.uses,
        )
