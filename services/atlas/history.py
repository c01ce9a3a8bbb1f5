"""ATLAS's memory: what it saw, kept on disk by a thread of its own, and asked there.

Whoever has something to keep tells it and goes on; once a second the thread takes
that, the newest status of each service and the post-mortems that are new, and writes
them in one transaction. Questions are answered on the same thread, so that nobody
else ever waits for the disk.

Without a disk ATLAS goes on: what cannot be written waits, bounded, for room; where
there can be no file at all, history is kept in memory until there can be one.
"""

from __future__ import annotations

import logging
import math
import queue
import sqlite3
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Protocol, TypeVar

from bus.endpoints import RunDir
from bus.messages import CommandView, DaemonStatus, Event, LifecyclePhase
from bus.postmortems import directory_of
from cdn_daemon.limits import KiB, MiB
from cdn_daemon.settings import SettingError
from services.atlas import samples
from services.atlas.aging import Aging
from services.atlas.ends import AT_ONCE, Ends
from services.atlas.fleet import Said
from services.atlas.queries import Life, Queries
from services.atlas.samples import Row
from services.atlas.store import Batch, Store, Unusable, in_words, is_damage, put_aside

log = logging.getLogger(__name__)

T = TypeVar("T")

LIMIT_BYTES = 256 * MiB
"""Default of CDN_ATLAS_HISTORY_BYTES."""
LEAST_BYTES, MOST_BYTES = MiB, 1 << 40
MEMORY_BYTES = 16 * MiB
"""The limit while there is no file."""

TICK_S = 1.0
FLUSH_S = 10
"""Samples wait so long to be written together; what a SIGKILL of ATLAS may lose of them."""
SAMPLED_A_SECOND = 2000
"""With more services than that each is sampled less often, so that 10,000 cost little more than 2,000."""
ROLLED_UP_PART = 1 / 300
"""Of the instances, in a tick: done in a third of the time there is, and never long at a stretch, as others wait."""
ROWS_WAITING = 60
"""Of one service, while they cannot be written."""
EVENTS_WAITING = 10_000
QUESTIONS_WAITING = 64
QUESTION_STEPS = 20_000_000
"""Of SQLite's machine, some tenths of a second; an honest question needs a tenth of them."""
EVENTS_RESTORED = 2000
COMMANDS_LOOKED_AT = 1000
LOOK_S = 10.0
RETRY_S = 5.0
INSTANCES_MOST = 20_000
_INTEGER_MOST = (1 << 62) - 1


class Source(Protocol):
    """Whom the thread asks: the switchboard."""

    def said(self) -> list[Said]:
        """What each instance said last."""

    def commands(self, limit: int) -> tuple[CommandView, ...]:
        """The newest commands, oldest first."""

    def restore(self, events: list[Event]) -> None:
        """These had happened before ATLAS began."""


class Busy(Exception):
    """Too many questions wait already."""


@dataclass(frozen=True)
class Memory:
    """What a question is answered from."""

    queries: Queries
    waiting: Mapping[str, list[Row]]
    """Rows that are not on disk yet, by instance."""

    def seconds(self, name: str, since_s: float, until_s: float) -> list[Row]:
        """SECOND rows of an instance, oldest first, to the present."""
        waiting = [row for row in self.waiting.get(name, ()) if since_s <= (row[0] or 0) < until_s]
        return self.queries.seconds(name, since_s, until_s) + waiting


class History:
    """Runs from ``start`` to ``stop``; ``tell``, ``ask`` and what it shows are for any thread."""

    def __init__(self, run_dir: RunDir, limit_bytes: int = LIMIT_BYTES, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._path = run_dir.state("atlas") / "history.db"
        self.limit_bytes = limit_bytes
        """Before ``start``."""
        self._directory = directory_of(run_dir)
        self.problem = ""
        """Why nothing is written now, in words; empty when it is."""
        self.counts: Counter[str] = Counter()
        self._told: deque[Event] = deque()
        self._stirred = False
        self._questions: queue.SimpleQueue[tuple[Callable[[Memory], object], Future[object]] | None]
        self._questions = queue.SimpleQueue()
        self._source: Source
        self._store = Store(None, MEMORY_BYTES)
        """In memory until the thread has opened the file, and while it cannot."""
        self._ends = Ends(self._directory)
        self._waiting: dict[str, list[Row]] = {}
        self._batch = Batch()
        """What has been taken and is not written yet, but for the samples."""
        self._heard: dict[str, tuple[int, int, float]] = {}
        """Incarnation and seq of the status of each instance that was taken last, and when."""
        self._ended_commands: set[str] = set()
        self._restored = False
        self._aging = Aging(None, wall(), _boot_s())
        self._tick_number = 0
        self._looked_s = 0.0
        self._retry_s = 0.0
        self._thread = Thread(target=self._run, name="atlas-history", daemon=True)

    # -- any thread ---------------------------------------------------------------------------------

    def start(self, source: Source) -> None:
        """Open the file and begin; returns at once."""
        self._source = source
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        if self._thread.ident is not None:
            self._questions.put(None)
            self._thread.join(timeout=5.0)

    def tell(self, event: Event) -> None:
        """Something has happened; never waits."""
        if len(self._told) < EVENTS_WAITING:
            self._told.append(event)
            self._stirred = True
        else:
            self.counts["events_dropped"] += 1

    def ask(self, question: Callable[[Memory], T]) -> Future[T]:
        """Have the thread answer; raises Busy. The Future may have sqlite3.Error."""
        if self._questions.qsize() >= QUESTIONS_WAITING:
            raise Busy(f"{QUESTIONS_WAITING} questions wait already")
        done: Future[T] = Future()
        self._questions.put((question, done))  # type: ignore[arg-type]
        return done

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        self._guarded(self._open)
        due_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if now_s >= due_s:
                due_s = max(due_s + TICK_S, now_s)
                self._guarded(self._tick)
            try:
                # However long a tick takes, there is one question between two.
                asked = self._questions.get(timeout=max(0.0, due_s - time.monotonic()))
            except queue.Empty:
                continue
            if asked is None:
                break
            self._answer(*asked)
        self._guarded(self._finish)

    def _guarded(self, step: Callable[[], None]) -> None:
        """A fault of history's, or of its disk, costs history, not ATLAS."""
        try:
            try:
                step()
            except sqlite3.Error as error:
                self._failed(error)
        except Exception as error:
            log.exception("history failed")
            self.counts["errors"] += 1
            self._stopped(f"{type(error).__name__}: {error}")
            self._batch = Batch()  # something in it may be what failed

    def _failed(self, error: sqlite3.Error) -> None:
        path = self._store.path
        if path is None or not is_damage(error):
            self._stopped(f"cannot write {self._path}: {in_words(error)}")
            return
        self.counts["damaged"] += 1
        self._store.close()
        self._store = Store(None, MEMORY_BYTES)
        try:
            self.counts["set_aside"] += 1
            put_aside(path, "damaged", str(error))
        finally:
            self._open()

    def _stopped(self, why: str) -> None:
        self._retry_s = time.monotonic() + RETRY_S
        if not self.problem:
            log.error("history stopped: %s; trying again every %.0f s", why, RETRY_S)
            self.counts["stopped"] += 1
        self.problem = f"history stopped: {why}"

    def _open(self) -> None:
        try:
            self._use(Store(self._path, self.limit_bytes))
            self.problem = ""
        except Unusable as error:
            log.error("%s; it is kept in memory until that can be", error)
            self._use(Store(None, MEMORY_BYTES))
            self._retry_s = time.monotonic() + RETRY_S
            self.problem = f"history is in memory only: {error}"
        if not self._restored:
            self._source.restore(self._store.queries.newest_events(EVENTS_RESTORED))
            self._restored = True

    def _use(self, store: Store) -> None:
        self._store.close()
        self._store = store
        self._aging = Aging(store.queries.newest_s(), self._wall(), _boot_s())
        self.counts["set_aside"] += store.set_aside
        self._ends = Ends(self._directory, store.queries.end_keys())
        self._heard.clear()
        self._ended_commands.clear()

    def _reopen(self) -> None:
        """From memory to a file, if there can be one now."""
        try:
            store = Store(self._path, self.limit_bytes)
        except Unusable:
            self._retry_s = time.monotonic() + RETRY_S
            return
        store.write(Batch(events=self._store.queries.newest_events(EVENTS_WAITING)))
        self._use(store)
        self.problem = ""
        log.info("history is in %s again", self._path)

    def _begin_anew(self) -> None:
        """The file was deleted or moved away while in use: keep what there is of it, but for the metrics."""
        log.error("%s was deleted or moved: history begins anew there, with its newest events", self._path)
        events = self._store.queries.newest_events(EVENTS_WAITING)
        self._store.close()  # before there is another, as it deletes its -wal by name
        self._open()
        self._store.write(Batch(events=events))

    def _tick(self) -> None:
        now_s = self._wall()
        self._aging.look(now_s, _boot_s())
        self._tick_number += 1
        if not self._store.is_in_place():
            self._begin_anew()
        self._sample(now_s)
        self._take_commands()
        may_try = time.monotonic() >= self._retry_s
        if self.problem and self._store.path is None and may_try:
            self._reopen()
        if self.problem and self._store.path is not None and not may_try:
            return
        self._gather(now_s)
        self._write(self._due())
        if self.problem and self._store.path is not None:
            self.problem = ""
            log.info("history goes on")
        step_s = 60 * self._every(len(self._heard))
        self._store.roll_up(now_s, step_s, math.ceil(len(self._heard) * ROLLED_UP_PART) + 1)
        self._store.prune(now_s, self._aging.lag_s)
        if self._tick_number % 60 == 0:
            self._store.prune_rarely(now_s, self._aging.lag_s)
            self._forget_absent()
        self.counts["bytes"] = self._store.size_bytes()
        self.counts["unreadable"] = self._store.queries.unreadable

    @staticmethod
    def _every(services: int) -> int:
        """Of so many services each is sampled every so many seconds."""
        return max(1, math.ceil(services / SAMPLED_A_SECOND))

    def _sample(self, now_s: float) -> None:
        everybody = self._source.said()
        every = self._every(len(everybody))
        for said in everybody:
            name = said.instance
            held = self._heard.get(name)
            if held is None and len(self._heard) >= INSTANCES_MOST:
                self.counts["instances_dropped"] += 1
                continue
            if held is not None and held[:2] == (said.incarnation, said.seq):
                continue
            if not 0 <= said.incarnation <= _INTEGER_MOST:
                continue
            turn = self._tick_number + zlib.crc32(name.encode())
            begins = held is None or held[0] != said.incarnation
            if begins and held is not None:
                self._batch.last_heard.append((held[2], name, held[0]))
            if not (begins or turn % every == 0 or said.phase is LifecyclePhase.STOPPED):
                continue
            status = said.status
            if begins or turn % (FLUSH_S * every) == 0 or said.phase is LifecyclePhase.STOPPED:
                self._batch.lives.append(_life(status, now_s))
            self._heard[name] = (said.incarnation, said.seq, now_s)
            rows = self._waiting.setdefault(name, [])
            rows.append(samples.row_of(status, now_s))
            if len(rows) > ROWS_WAITING:
                del rows[0]
                self.counts["samples_dropped"] += 1

    def _take_commands(self) -> None:
        commands = self._source.commands(COMMANDS_LOOKED_AT)
        ended = {command.id: command for command in commands if command.kind is not None}
        self._batch.commands += [ended[id_] for id_ in ended.keys() - self._ended_commands]
        self._ended_commands = set(ended)

    def _gather(self, now_s: float) -> None:
        """Post-mortems, when something has happened or some time has passed."""
        if self._stirred or time.monotonic() - self._looked_s >= LOOK_S:
            self._stirred = bool(self._told)  # once more in the next second: the file may come after the word
            self._looked_s = time.monotonic()
            self._batch.ends = self._ends.look(now_s)
            self._stirred = self._stirred or len(self._batch.ends) >= AT_ONCE

    def _due(self) -> list[str]:
        """Instances whose samples are to be written in this tick; each has its own, so that ticks are alike."""
        every = FLUSH_S if self._every(len(self._heard)) == 1 else 50
        return [
            name
            for name, rows in self._waiting.items()
            if (self._tick_number + zlib.crc32(name.encode())) % every == 0 or len(rows) >= ROWS_WAITING
        ]

    def _write(self, names: Iterable[str]) -> None:
        """What has been taken, and the samples of these."""
        for _ in range(len(self._told)):
            self._batch.events.append(self._told.popleft())
        del self._batch.events[:-EVENTS_WAITING]
        del self._batch.commands[:-EVENTS_WAITING]
        del self._batch.last_heard[:-EVENTS_WAITING]
        self._batch.lives = list({(life.instance, life.incarnation): life for life in self._batch.lives}.values())
        batch, names = self._batch, list(names)
        batch.chunks = [(name, self._waiting[name]) for name in names]
        if batch == Batch():
            return
        self._store.write(batch)
        self._ends.taken(batch.ends)
        self._batch = Batch()
        for name in names:
            del self._waiting[name]

    def _forget_absent(self) -> None:
        present = {said.instance for said in self._source.said()}
        self._heard = {name: heard for name, heard in self._heard.items() if name in present}

    def _answer(self, question: Callable[[Memory], object], done: Future[object]) -> None:
        if not done.set_running_or_notify_cancel():
            return
        if self._told and (not self.problem or self._store.path is None):
            self._guarded(lambda: self._write([]))
        queries = self._store.queries
        try:
            queries.interrupt_after(QUESTION_STEPS)
            answer = question(Memory(queries, self._waiting))
        except Exception as error:  # noqa: BLE001 - it is the asker's, who gets it
            done.set_exception(error)
            if isinstance(error, sqlite3.Error) and is_damage(error):
                self._guarded(partial(self._failed, error))
        else:
            done.set_result(answer)
        finally:
            queries.interrupt_after(0)

    def _finish(self) -> None:
        self._batch.ends = self._ends.look(self._wall())
        self._write(list(self._waiting))
        self._store.close()


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def limit_bytes_of(environ: Mapping[str, str]) -> int:
    """CDN_ATLAS_HISTORY_BYTES: bytes, with k, m or g; raises SettingError."""
    text = environ.get("CDN_ATLAS_HISTORY_BYTES")
    if not text:
        return LIMIT_BYTES
    factor = {"k": KiB, "m": MiB, "g": 1024 * MiB}.get(text[-1].lower(), 1)
    digits = text if factor == 1 else text[:-1]
    value = int(digits) * factor if digits.isascii() and digits.isdecimal() and len(digits) < 20 else 0
    if not LEAST_BYTES <= value <= MOST_BYTES:
        raise SettingError(
            f"cannot use CDN_ATLAS_HISTORY_BYTES={text}: it must be a number of bytes from 1m to 1024g, such as 256m"
        )
    return value


def _life(status: DaemonStatus, now_s: float) -> Life:
    uptime_s = status.uptime_s if 0 <= status.uptime_s < 1e9 else 0.0
    return Life(
        instance=status.instance,
        incarnation=status.incarnation,
        host=status.host,
        pid=max(0, min(status.pid, _INTEGER_MOST)),
        started_s=now_s - uptime_s,
        heard_s=now_s,
    )
