"""The keeper: one thread that writes what was scraped, makes chunks of it, and forgets what is too old.

What is acknowledged (an import, a rule, targets) is committed first. Scraped samples are committed once a second.
"""

from __future__ import annotations

import logging
import math
import queue
import sqlite3
import struct
import threading
import time
import zlib
from array import array
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import msgspec

from cdn_daemon.api import RefusedError
from services.monitoring.disk import SPAN_MS, Change, Chunk, Disk
from services.monitoring.limits import Limits
from services.monitoring.samples import Columns, packed
from services.monitoring.store import Batch, Series, Store
from services.sqlite import DiskError, refusal

log = logging.getLogger(__name__)

FLUSH_S = 1.0
BREATH = 64
"""Chunks that are packed in one go: then the event loop gets its turn."""
DROPPED_AT_ONCE = 2_000
RETENTION_EVERY_S = 60.0


class Keeper:
    """Opens the database, reads what is there, and writes until it is closed."""

    def __init__(self, store: Store, directory: Path, limits: Limits, *, flush_s: float = FLUSH_S) -> None:
        self._store = store
        self._limits = limits
        self._flush_s = flush_s
        self.path = directory / "monitoring.db"
        self._orders: queue.Queue[tuple[list[Change], Future[None]] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._closed = True
        self._thread: threading.Thread | None = None
        self._disk: Disk | None = None
        self._unwritten: deque[Batch] = deque()
        self._sealed_s = self._retained_s = 0.0
        self._journal_bytes = 0
        self._seq = 0
        self.kept: dict[str, dict[str, bytes]] = {}
        """Values by kind and name, as they were at the start."""
        self.ended: Future[None] = Future()
        self.broken = ""
        """Why nothing can be written; empty if it can."""
        self.flushes = self.flushes_failed = self.samples_lost = self.chunks_dropped = 0
        self.flush_s = self.seal_s = 0.0
        self.bytes = 0

    def open(self) -> None:
        """Read what is there and start the thread; raises DiskError."""
        self._disk = Disk(self.path)
        try:
            self._recall(self._disk)
        except (sqlite3.Error, msgspec.MsgspecError, zlib.error, struct.error, ValueError) as error:
            raise DiskError(f"cannot read {self.path}: {error}; mend it, or move it away") from error
        self._sealed_s = self._retained_s = time.monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="monitoring-keeper", daemon=True)
        self._thread.start()

    def _recall(self, disk: Disk) -> None:
        store = self._store
        with store.lock:
            for id, labels in disk.series():
                store.admit(id, labels)
            for id, end_ms in disk.chunk_ends().items():
                if id in store.by_id:
                    store.by_id[id].last_ms = end_ms
            for seq, content in disk.journal():
                self._replay(content)
                self._seq = seq
                self._journal_bytes += len(content)
        for kind in ("rule", "target", "found", "alert"):
            self.kept[kind] = disk.kept(kind)
        self.bytes = disk.size()

    def _replay(self, content: bytes) -> None:
        ids, times, values = decoded(content)
        by_id = self._store.by_id
        for id, at_ms, value in zip(ids, times, values, strict=True):
            one = by_id.get(id)
            if one is not None and at_ms > one.last_ms:
                one.last_ms = at_ms
                one.head.append(at_ms, value)

    def close(self) -> None:
        """Write everything, then end the thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._orders.put(None)
        assert self._thread is not None
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, changes: list[Change]) -> Future[None]:
        """Have everything that the store has taken, and these values, written down; done once it is on disk.

        Ends with RefusedError where it cannot be.
        """
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                raise RefusedError(503, "cannot keep this: the service is closing", next="try again")
            self._orders.put((changes, done))
        return done

    # -- the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            assert self._disk is not None
            self._disk.close()
            self.ended.set_result(None)
        except BaseException as error:
            log.exception("the keeper has ended")
            self.ended.set_exception(error)

    def _turn(self) -> bool:
        orders: list[tuple[list[Change], Future[None]]] = []
        goes_on = True
        try:
            one = self._orders.get(timeout=self._flush_s)
            while one is not None:
                orders.append(one)
                one = self._orders.get_nowait()
            goes_on = False
        except queue.Empty:
            goes_on = True
        self._write(orders)
        now_s = time.monotonic()
        if goes_on and not self.broken:
            try:
                self._upkeep(now_s)
            except (OSError, sqlite3.Error) as error:
                self._failed(error)
        return goes_on

    def _write(self, orders: list[tuple[list[Change], Future[None]]]) -> None:
        assert self._disk is not None
        began_s = time.monotonic()
        store = self._store
        with store.lock:
            met, store.met = store.met, []
            if len(store.batch):
                self._unwritten.append(store.batch)
                store.batch = Batch()
        try:
            while True:
                batch = self._unwritten[0] if self._unwritten else None
                last = len(self._unwritten) <= 1
                changes = [change for one, _ in orders for change in one] if last else []
                if batch is None and not met and not changes:
                    break
                content = encoded(batch) if batch is not None else None
                seq = self._disk.write(((one.id, one.labels) for one in met), content, changes)
                met = []
                if batch is not None and content is not None:
                    self._seq = seq
                    self._journal_bytes += len(content)
                    self._unwritten.popleft()
                if last:
                    break
            if self.broken:
                log.warning("the disk takes what is written again")
            self.broken = ""
            self.flushes += 1
        except (OSError, sqlite3.Error) as error:
            with store.lock:
                store.met = met + store.met
            self._failed(error)
            self._shorten()
            for _, done in orders:
                done.set_exception(refusal(self.path.parent, error))
            return
        self.flush_s = time.monotonic() - began_s
        for _, done in orders:
            done.set_result(None)

    def _failed(self, error: Exception) -> None:
        self.flushes_failed += 1
        if not self.broken:
            log.warning("cannot write to %s: %s", self.path, error)
        self.broken = f"cannot write to {self.path}: {error}"

    def _shorten(self) -> None:
        """Drop the oldest that wait for the disk, if there are too many."""
        while sum(batch.bytes() for batch in self._unwritten) > self._limits.waiting_bytes and self._unwritten:
            lost = self._unwritten.popleft()
            self.samples_lost += len(lost)
            by_id = self._store.by_id
            with self._store.lock:
                for id, at_ms in zip(lost.ids, lost.times, strict=True):
                    one = by_id.get(id)
                    if one is not None:
                        one.head = one.head.between(at_ms + 1, 2**62)

    # -- upkeep -----------------------------------------------------------------------------------------

    def _upkeep(self, now_s: float) -> None:
        if now_s - self._sealed_s >= self._limits.seal_s or self._journal_bytes >= self._limits.journal_bytes:
            self._sealed_s = now_s
            self.seal()
            self._retained_s = -math.inf  # chunks are new: there may be too many
        if now_s - self._retained_s >= min(RETENTION_EVERY_S, self._limits.retention_s / 4):
            self._retained_s = now_s
            self.retain(int(time.time() * 1000))

    def seal(self) -> None:
        """Make chunks of everything that is in the journal, and empty that. On the keeper's thread."""
        assert self._disk is not None
        began_s = time.monotonic()
        store, seq = self._store, self._seq
        with store.lock:  # a chunk of a series that is not on disk could become another's
            strangers = {one.id for one in store.met}
            every = [one for one in store.by_id.values() if len(one.head) and one.id not in strangers]
        for at in range(0, len(every), BREATH):
            some = every[at : at + BREATH]
            with store.lock:
                heads = [(one, one.head.between(-(2**62), 2**62)) for one in some]
            self._disk.seal(chunk for one, head in heads for chunk in _chunks(one, head))
            with store.lock:  # only now: who asks has looked here before it looks at the disk
                for one, head in heads:
                    one.head = one.head.between(head.times[-1] + 1, 2**62)
        self._disk.sealed(seq)
        self._journal_bytes = 0
        self.bytes = self._disk.size()
        self.seal_s = time.monotonic() - began_s

    def retain(self, now_ms: int) -> None:
        """Forget chunks that are too old or too many, the oldest first, and series of which nothing is left."""
        assert self._disk is not None
        limits = self._limits
        cutoff_ms = now_ms - int(limits.retention_s * 1000)
        while dropped := self._disk.drop(cutoff_ms, DROPPED_AT_ONCE):
            self.chunks_dropped += dropped
            time.sleep(0)
        while self._disk.size() > limits.retention_bytes:
            some = max(1, min(DROPPED_AT_ONCE, self._disk.chunks() // 20))
            if not (dropped := self._disk.drop(2**62, some)):
                break
            self.chunks_dropped += dropped
        empty = self._disk.without_chunks()
        with self._store.lock:
            idle = [
                one
                for id in empty
                if (one := self._store.by_id.get(id)) is not None
                and not len(one.head)
                and one.last_ms < now_ms - limits.lookback_s * 1000
            ]
            for one in idle:
                self._store.forget(one)
        self._disk.forget([one.id for one in idle])
        self.bytes = self._disk.size()


def _chunks(one: Series, head: Columns) -> list[Chunk]:
    """The samples as chunks, none longer than SPAN_MS."""
    chunks = []
    begin = 0
    times = head.times
    while begin < len(times):
        part = head.between(times[begin], times[begin] + SPAN_MS - 1)
        chunks.append(Chunk(one.id, part.times[0], part.times[-1], packed(part)))
        begin += len(part)
    return chunks


def encoded(batch: Batch) -> bytes:
    """For the journal."""
    raw = batch.ids.tobytes() + batch.times.tobytes() + batch.values.tobytes()
    return struct.pack("<I", len(batch)) + zlib.compress(raw, 1)


def decoded(content: bytes) -> tuple[array[int], array[int], array[float]]:
    """Numbers of series, times, values."""
    (count,) = struct.unpack_from("<I", content)
    raw = zlib.decompress(content[4:])
    ids, times, values = array("L"), array("q"), array("d")
    ids.frombytes(raw[: 8 * count])
    times.frombytes(raw[8 * count : 16 * count])
    values.frombytes(raw[16 * count :])
    return ids, times, values
