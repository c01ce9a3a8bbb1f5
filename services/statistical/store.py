"""Every series in memory: takes lines in, bounded in number and in size. What is beyond the bounds is counted.

Whoever touches it holds ``lock``. Nothing here waits for a disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from msgspec import Struct

from services.statistical.aggregates import Aggregate, Distribution
from services.statistical.budget import Demand
from services.statistical.changes import Detector
from services.statistical.limits import Limits
from services.statistical.series import Closed, Reservoir, Series
from services.statistical.sketch import BIN_BYTES, BINS_MAX, BINS_MIN
from services.statistical.statsd import CAUSES, GarbageError, Kind, Line, name_of, parse

OVERFLOW = "cdn.overflow"
WATCHED = (Kind.COUNTER, Kind.DISTRIBUTION)
CLOSED_MAX = 100_000
"""Slots that are over and not on disk yet: with a full disk there are more and more."""
SPELLINGS = 4
"""So many ways to write a series' name and tags are remembered, for each series that there may be."""


class Measured(Struct, frozen=True):
    """One distribution, by its last slot."""

    name: str
    nats: float
    count: float
    bins: int
    error: float | None


class Clock:
    """Wall time that never runs backwards: it was looked at once, and goes on by the monotonic clock."""

    def __init__(self, slot_s: int) -> None:
        self.slot_s = slot_s
        self._ahead_s = time.time() - time.monotonic()

    def now_s(self) -> float:
        """Seconds since 1970."""
        return time.monotonic() + self._ahead_s

    def slot(self) -> int:
        """The slot that is open now."""
        return int(self.now_s() // self.slot_s)

    def at_least(self, slot: int) -> None:
        """Go on from no earlier slot: the wall clock was set back since an earlier process wrote it."""
        self._ahead_s = max(self._ahead_s, slot * self.slot_s - time.monotonic())


class Store:
    """Series by kind and name."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.lock = threading.Lock()
        self.clock = Clock(limits.slot_s)
        self.series: dict[tuple[Kind, str], Series] = {}
        self.closed: list[Closed] = []
        self.closing: list[Closed] = []
        """Those that are on their way to the disk."""
        self.samples = 0
        self.garbage = dict.fromkeys(CAUSES, 0)
        self.overflowed = 0
        self.lost_slots = 0
        self.bytes_seen = 0
        """What the open slots took when that was last added up."""
        self.shares: dict[str, int] | None = None
        """Bins of each distribution, as the loop has shared them out; None: all the same."""
        self.folded = 0.0
        """Samples, each with its weight."""
        self._spelt: dict[Kind, dict[bytes, Series]] = {kind: {} for kind in Kind}
        self._next_id = 1
        self.distributions = 0
        self._room = 0
        """For how many distributions there is room in the slots that are open."""
        self._watched = self._panel = self._sets = 0

    # -- in ---------------------------------------------------------------------------------------------

    def fold(self, packet: bytes, weight: float, slot: int, now_s: float) -> None:
        """Lines of StatsD, each standing for so many like it; what is no line is counted by its cause."""
        for line in packet.split(b"\n"):
            if line:
                try:
                    self.take(parse(line), weight, slot, now_s)
                except GarbageError as error:
                    self.garbage[error.cause] += 1

    def take(self, line: Line, weight: float, slot: int, now_s: float) -> None:
        """One line's values; raises GarbageError at the first that is none."""
        kind, key, text, stands_for = line
        series = self._spelt[kind].get(key)
        if series is None:
            series = self.meet(kind, key)
            if series.name == OVERFLOW:
                kind, text = Kind.COUNTER, b"1"
        if series.slot != slot:
            self.turn(series, slot)
        weight *= stands_for
        if kind is Kind.SET or b":" not in text:
            series.add(text, weight, now_s)
            self.samples += 1
            self.folded += weight
        else:
            for one in text.split(b":"):
                series.add(one, weight, now_s)
                self.samples += 1
                self.folded += weight

    def meet(self, kind: Kind, key: bytes) -> Series:
        """The series of a spelling that is new; that of what has no place any more. Raises GarbageError."""
        name = name_of(key)
        series = self.series.get((kind, name))
        if series is None:
            reserved = (Kind.COUNTER, OVERFLOW) not in self.series
            is_full = len(self.series) + reserved >= self.limits.series or (
                kind is Kind.SET and self._sets >= self.limits.sets
            )
            if is_full and name != OVERFLOW:
                self.overflowed += 1
                return self._overflow()
            series = self.admit(kind, name)
        spelt = self._spelt[kind]
        if len(spelt) >= SPELLINGS * self.limits.series:
            spelt.clear()
        spelt[key] = series
        return series

    def _overflow(self) -> Series:
        known = self.series.get((Kind.COUNTER, OVERFLOW))
        return known if known is not None else self.admit(Kind.COUNTER, OVERFLOW)

    def admit(self, kind: Kind, name: str, id: int | None = None) -> Series:
        """A new series."""
        series = Series(self._next_id if id is None else id, kind, name, BINS_MIN)
        self._next_id = max(self._next_id, series.id + 1)
        self.series[kind, name] = series
        if kind is Kind.SET:
            self._sets += 1
        if kind is Kind.DISTRIBUTION:
            self._make_room()
            series.bins_max = self._share(name, self._room)
            if self._panel < self.limits.panel:
                self._panel += 1
                series.reservoir = Reservoir()
        return series

    def turn(self, series: Series, slot: int) -> None:
        """Let the series go on with another slot."""
        if series.kind is Kind.DISTRIBUTION:
            series.bins_max = self._share(series.name, self.distributions)
        closed = series.turn(slot)
        if closed is None:
            return
        if len(self.closed) + len(self.closing) < CLOSED_MAX:
            self.closed.append(closed)
        else:  # the later ones go: what was acknowledged is in the earlier ones
            self.lost_slots += 1

    def merge(self, kind: Kind, name: str, aggregate: Aggregate, slot: int, now_s: float) -> None:
        """What another instance has taken. Raises GarbageError, ValueError."""
        series = self.meet(kind, name.encode())
        if series.slot != slot:
            self.turn(series, slot)
        if series.name == OVERFLOW and name != OVERFLOW:
            series.add(b"%d" % aggregate.received, 1.0, now_s)
        else:
            series.merge(aggregate, now_s)

    def forget(self, gone: Iterable[Series]) -> None:
        """Series of which nothing is left on disk either."""
        for series in gone:
            self.series.pop((series.kind, series.name), None)
            self._sets -= series.kind is Kind.SET
            self.distributions -= series.kind is Kind.DISTRIBUTION
            self._watched -= series.detector is not None
            self._panel -= series.reservoir is not None
        for spelt in self._spelt.values():
            spelt.clear()

    # -- memory -----------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """One more distribution: each time that they have doubled, those that are open get half as much."""
        self.distributions += 1
        if self.distributions <= self._room:
            return
        self._room = 2 * self.distributions
        for series in self.series.values():
            if isinstance(series.aggregate, Distribution):
                series.aggregate.sketch.fit(min(series.bins_max, self._share(series.name, self._room)))

    def _share(self, name: str, among: int) -> int:
        """How many bins a distribution may have in its next slot."""
        if self.shares is not None:
            return self.shares.get(name, BINS_MIN)
        return min(BINS_MAX, max(BINS_MIN, self.bins // max(1, among)))

    @property
    def bins(self) -> int:
        """What there is for all distributions together."""
        return self.limits.quantile_bytes // BIN_BYTES

    def measured(self, now_slot: int) -> list[Measured]:
        """The distributions that have had values lately."""
        return [
            Measured(one.name, one.nats, one.slot_count, one.bins_max, one.error)
            for one in self.series.values()
            if one.kind is Kind.DISTRIBUTION and one.slot_count and now_slot - one.slot <= 2
        ]

    def demands(self, now_slot: int) -> list[Demand]:
        """The same, as what the bins are shared out by."""
        return [Demand(name=one.name, nats=one.nats, count=one.count) for one in self.measured(now_slot)]

    def bytes(self) -> int:
        """What the open slots take."""
        return sum(series.bytes for series in self.series.values())

    def watch(self, series: Series) -> Detector | None:
        """What finds the series' changes; None if too many are watched."""
        if series.detector is None and series.kind in WATCHED and self._watched < self.limits.watched:
            series.detector = Detector()
            self._watched += 1
        return series.detector
