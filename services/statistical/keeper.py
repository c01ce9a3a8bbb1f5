"""The thread that writes: what was acknowledged at once, everything else once a second; and what comes with the second.

A batch by HTTP is in the journal, on disk, before it is taken in and acknowledged. Each second the slots that have
changed are written, and in the same transaction the batches that are in them leave the journal. So a batch is counted
once, whenever the process is killed. Of StatsD, which nobody acknowledges, at most a second and a bit is lost.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import msgspec
from msgspec import Struct

from cdn_daemon.api import RefusedError
from services.sqlite import DiskError, refusal
from services.statistical import aggregates
from services.statistical.aggregates import AnyState
from services.statistical.changes import Change
from services.statistical.disk import Disk, Row
from services.statistical.series import Series
from services.statistical.statsd import GarbageError, Kind, Line
from services.statistical.store import Store
from services.statistical.windows import REACH, WIDTHS

log = logging.getLogger(__name__)

FLUSH_S = 1.0
GROUP = 64
"""Batches in one transaction, at most."""
TOLD_AGAIN, TOLD_AGAIN_S = 1000, 600.0
"""So many change points, of the time before a restart, are told again: they may not have got out."""
LATE_SLOTS = 1
"""Slots are joined so long after they are over: the intake may be at work on the last one."""


class Merge(Struct, frozen=True, array_like=True):
    """A sketch of another instance's."""

    kind: Kind
    name: str
    state: AnyState


class Batch(Struct, frozen=True, array_like=True):
    """What was acknowledged together."""

    lines: list[Line] = []
    merges: list[Merge] = []


class Noted(Struct, frozen=True, kw_only=True):
    """A change point of a series."""

    series: str
    kind: Kind
    at_s: float
    """When it began; seconds since 1970."""
    noticed_s: float
    change: Change
    unit: str
    """What before and after are: the rate of a counter, the mean of a distribution."""
    source: str = ""
    """The most frequent member of the set NAME.from, if there is one and it stands for over half."""


class Beat(Struct, frozen=True, kw_only=True):
    """What came with one second."""

    now_s: float
    elapsed_s: float
    values: list[tuple[Series, float]]
    changes: list[Noted]


class _Waiting(Struct):
    id: str | None
    content: bytes
    batch: Batch
    answer: bytes
    done: Future[bytes]


_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_noted_encoder = msgspec.msgpack.Encoder()
_noted_decoder = msgspec.msgpack.Decoder(Noted)


class Keeper:
    """Opens the database, reads what is there, and writes until it is closed."""

    def __init__(
        self, store: Store, directory: Path, beat: Callable[[Beat], None] = lambda _: None, *, flush_s: float = FLUSH_S
    ) -> None:
        self._store = store
        self.path = directory / "statistical.db"
        self._beat = beat
        self._flush_s = flush_s
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closed = True
        self._thread: threading.Thread | None = None
        self._disk: Disk | None = None
        self._folded_seq = 0
        self._on_disk: set[int] = set()
        self._again: list[Noted] = []
        """What an earlier process has noticed, and is to be told again."""
        self._unnoted: list[Noted] = []
        """What the disk has not taken."""
        self._last_beat_s = 0.0
        self.joined = (0, 0, 0)
        self.ended: Future[None] = Future()
        """Ends when the thread does; with what it raised."""
        self.broken = ""
        """Why nothing can be written; empty if it can."""
        self.flushes = self.flushes_failed = self.batches = self.changes = 0
        self.flush_s = 0.0

    def open(self) -> None:
        """Read what is there and start the thread; raises DiskError."""
        self._disk = Disk(self.path)
        try:
            self._recall(self._disk)
        except (sqlite3.Error, msgspec.MsgspecError, ValueError) as error:
            raise DiskError(f"cannot read {self.path}: {error}; mend it, or move it away") from error
        self._last_beat_s = time.monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="statistical-keeper", daemon=True)
        self._thread.start()

    def _recall(self, disk: Disk) -> None:
        store = self._store
        with store.lock:
            for id, kind, name in disk.series():
                store.admit(kind, name, id)
                self._on_disk.add(id)
            store.clock.at_least(disk.last_slot())
            slot, now_s = store.clock.slot(), store.clock.now_s()
            by_id = {series.id: series for series in store.series.values()}
            for row in disk.open_slots(slot):
                series = by_id[row.series]
                store.turn(series, slot)
                series.merge(aggregates.unpacked(row.state, series.bins_max), now_s)
            for seq, content in disk.journal():
                self._take(_batch_decoder.decode(content), slot, now_s)
                self._folded_seq = seq
            for series in store.series.values():
                series.since_last_time(1.0)  # what was there already is no news of the first second
        self.joined = disk.joined()
        noted = map(_noted_decoder.decode, disk.last_changes(TOLD_AGAIN))
        self._again = [one for one in noted if one.noticed_s > now_s - TOLD_AGAIN_S]

    def close(self) -> None:
        """Write everything, then end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        assert self._thread is not None
        self._thread.join()

    def waiting(self) -> int:
        """Batches that are not on disk yet."""
        return self._queue.qsize()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, batch: Batch, answer: bytes, id: str | None = None) -> Future[bytes]:
        """Have a batch written down and taken in; the Future has the answer once it is, or that of the first of its id.

        Raises RefusedError if too many wait.
        """
        done: Future[bytes] = Future()
        one = _Waiting(id, _encoder.encode(batch), batch, answer, done)
        with self._lock:
            if self._closed:
                raise RefusedError(503, "cannot take samples: the service is closing", next="try again")
            if self._queue.qsize() >= self._store.limits.waiting:
                limit = f"{self._store.limits.waiting} batches"
                raise RefusedError(503, "cannot take samples now: too many batches wait", limit=limit, next="try again")
            self._queue.put(one)
        return done

    # -- the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._again:
                self._beat(Beat(now_s=self._store.clock.now_s(), elapsed_s=0.0, values=[], changes=self._again))
                self._again = []
            while self._turn():
                pass
            assert self._disk is not None
            self._disk.close()
            self.ended.set_result(None)
        except BaseException as error:
            log.exception("the keeper has ended")
            self.ended.set_exception(error)

    def _turn(self) -> bool:
        """Wait for a batch, or for the second to be over; False once everything is written and it is to end."""
        left_s = self._last_beat_s + self._flush_s - time.monotonic()
        group: list[_Waiting] = []
        goes_on = True
        try:
            first = self._queue.get(timeout=max(0.0, left_s)) if left_s > 0 else self._queue.get_nowait()
            while first is not None:
                group.append(first)
                if len(group) == GROUP:
                    break
                first = self._queue.get_nowait()
            goes_on = first is not None
        except queue.Empty:
            goes_on = True
        if group:
            self._write_down(group)
        if not goes_on or time.monotonic() >= self._last_beat_s + self._flush_s:
            self._second()
        return goes_on

    def _write_down(self, group: list[_Waiting]) -> None:
        assert self._disk is not None
        fresh: dict[str | int, _Waiting] = {}
        again: list[tuple[_Waiting, bytes | None]] = []
        try:
            for one in group:
                if one.id is not None and (known := self._disk.answer_to(one.id)) is not None:
                    again.append((one, known))
                elif one.id in fresh:
                    again.append((one, fresh[one.id].answer))
                else:
                    fresh[one.id if one.id is not None else id(one)] = one
            if fresh:
                seq = self._disk.write_down(
                    ((one.id, one.content, one.answer) for one in fresh.values()), self._store.limits.batches_kept
                )
        except (OSError, sqlite3.Error) as error:
            for one in group:
                one.done.set_exception(refusal(self.path.parent, error))
            return
        if fresh:
            with self._store.lock:
                slot, now_s = self._store.clock.slot(), self._store.clock.now_s()
                for one in fresh.values():
                    self._take(one.batch, slot, now_s)
            self._folded_seq = seq
            self.batches += len(fresh)
        for one in fresh.values():
            one.done.set_result(one.answer)
        for one, answer in again:
            one.done.set_result(answer or b"")

    def _take(self, batch: Batch, slot: int, now_s: float) -> None:
        """Into memory. It was checked before it was written down, so what is refused now is only counted."""
        store = self._store
        for line in batch.lines:
            try:
                store.take(line, 1.0, slot, now_s)
            except GarbageError as error:
                store.garbage[error.cause] += 1
        for merge in batch.merges:
            try:
                store.merge(merge.kind, merge.name, aggregates.of(merge.state), slot, now_s)
            except GarbageError as error:
                store.garbage[error.cause] += 1
            except ValueError:
                store.garbage["value"] += 1

    # -- once a second ----------------------------------------------------------------------------------

    def _second(self) -> None:
        began_s = time.monotonic()
        elapsed_s = began_s - self._last_beat_s
        self._last_beat_s = began_s
        beat = self._look(max(elapsed_s, 1e-3))
        try:
            self._flush(beat)
            if self.broken:
                log.warning("the disk takes what is written again")
            self.broken = ""
        except (OSError, sqlite3.Error) as error:
            self.flushes_failed += 1
            if not self.broken:
                log.warning("cannot write to %s: %s", self.path, error)
            self.broken = f"cannot write to {self.path}: {error}"
        self.flush_s = time.monotonic() - began_s
        self._beat(beat)

    def _look(self, elapsed_s: float) -> Beat:
        """The second's value of each series, and what has changed."""
        store = self._store
        values: list[tuple[Series, float]] = []
        found: list[tuple[Series, Change]] = []
        with store.lock:
            now_s = store.clock.now_s()
            for series in store.series.values():
                value = series.since_last_time(elapsed_s)
                if value is None:
                    continue
                values.append((series, value))
                detector = store.watch(series)
                if detector is not None and (change := detector.hear(value)) is not None:
                    found.append((series, change))
            noted = [
                Noted(
                    series=series.name,
                    kind=series.kind,
                    at_s=now_s - change.ago * elapsed_s,
                    noticed_s=now_s,
                    change=change,
                    unit="per second" if series.kind is Kind.COUNTER else "mean",
                    source=self._source(series.name),
                )
                for series, change in found
            ]
        return Beat(now_s=now_s, elapsed_s=elapsed_s, values=values, changes=noted)

    def _source(self, name: str) -> str:
        plain, *tags = name.split(";")
        members = self._store.series.get((Kind.SET, ";".join([f"{plain}.from", *tags])))
        aggregate = members.aggregate if members is not None else None
        if not isinstance(aggregate, aggregates.Set):
            return ""
        top = aggregate.distinct.top(1)
        return top[0].member if top and top[0].low * 2 > aggregate.count else ""

    def _flush(self, beat: Beat) -> None:
        assert self._disk is not None
        store, rows = self._store, []
        self._unnoted = [*self._unnoted, *beat.changes][-store.limits.changes_kept :]
        with store.lock:
            every = list(store.series.values())
            slot = store.clock.slot()
        dirty: list[Series] = []
        for series in every:
            if series.dirty:
                with store.lock:
                    series.dirty = False
                    at, aggregate = series.slot, series.aggregate
                    state = aggregate.state() if aggregate is not None else None
                dirty.append(series)
                if state is not None:
                    rows.append(Row(series.id, at, aggregates.packed_state(state)))
        with store.lock:  # after the others: a slot that ended meanwhile is among these, and later than its row above
            store.closing, store.closed = store.closing + store.closed, []
        rows += [Row(one.series.id, one.slot, aggregates.packed(one.aggregate)) for one in store.closing]
        met = [(one.id, one.kind, one.name) for one in every if one.id not in self._on_disk]
        known = {one.id for one in every}
        met += [
            (one.series.id, one.series.kind, one.series.name) for one in store.closing if one.series.id not in known
        ]
        try:
            if rows or self._folded_seq:
                self._disk.flush(met, rows, self._folded_seq)
            if self._unnoted:
                kept = store.limits.changes_kept
                self._disk.note_changes([_noted_encoder.encode(noted) for noted in self._unnoted], kept)
                self.changes += len(self._unnoted)
                self._unnoted = []
        except BaseException:
            with store.lock:
                for series in dirty:
                    series.dirty = True
            raise
        self._folded_seq = 0
        self._on_disk.update(id for id, _, _ in met)
        with store.lock:
            store.closing = []
        self.flushes += 1
        self._join(slot)

    def _join(self, now: int) -> None:
        """Make minutes of slots and hours of minutes, as far as they are over."""
        assert self._disk is not None
        for tier in range(1, len(WIDTHS)):
            width = WIDTHS[tier]
            complete = (now - LATE_SLOTS) // width * width if tier == 1 else self.joined[1] // width * width
            while self.joined[tier] < complete:
                earliest = max(self.joined[tier], now - REACH[tier])
                first = self._disk.first_slot(tier - 1, earliest)
                begin = complete - width if first is None else min(first // width * width, complete - width)
                begin = max(begin, self.joined[tier])
                self._disk.join(tier, begin, begin + width)
                self.joined = (0, begin + width, self.joined[2]) if tier == 1 else (0, self.joined[1], begin + width)
                if tier == 2:
                    self._forget()

    def _forget(self) -> None:
        assert self._disk is not None
        idle = set(self._disk.without_slots())
        with self._store.lock:
            gone = [one for one in self._store.series.values() if one.id in idle and not one.dirty]
            self._store.forget(gone)
        self._disk.forget([one.id for one in gone])
        self._on_disk.difference_update(one.id for one in gone)
