"""History on disk: one SQLite file, bounded in age and size. No thread and no clock of its own.

Metrics are chunks of samples.py: some ten samples in a row of ``seconds``, and what
they come to by the minute, a quarter of an hour in a row of ``minutes``, rolled up
from what is on disk, so that nothing but the last seconds is lost with the process.
Keys begin with the time: writing appends, and pruning takes whole pages from the
front. A row for each sample was measured at 37 bytes of file, this is at 14; a
thousand services at 1 s cost 1 % of a core, rolling up included, and 50 MB an hour.

WAL with synchronous=NORMAL: what is written survives the process, not the machine,
on which every process that it is about ends too; the file stays whole either way.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bus.messages import CommandView, Event, PostMortem
from bus.postmortems import Filed
from services.atlas import samples
from services.atlas.queries import BUCKET_S, CAUSE, QUARTER_S, SPILL_S, Life, Queries
from services.atlas.samples import Row
from services.sqlite import Transaction

log = logging.getLogger(__name__)

VERSION = 1
"""Of the schema; a file with a later one is left alone."""
_APPLICATION = 0x43444E41
"""``CDNA``; file(1) and others may look for it."""

SECONDS_KEPT_S = 3600
MINUTES_KEPT_S = 7 * 86400
EVENTS_KEPT_S = 30 * 86400
SECONDS_LEAST_S = 1500
"""Over its size history gives up seconds first, but not these, which are still to be rolled up."""
MINUTES_LEAST_S = 86400

OF_INSTANCE = 200
"""Post-mortems kept of one instance."""
_PRUNED_AT_ONCE = 500
_FULL_AT = 0.85
"""Of the size allowed: from here on what is oldest goes, so that the hard limit is not met."""
_LAST_AT = 0.95
"""And from here on anything does."""

_SCHEMA = """
CREATE TABLE instances (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, heard_s REAL NOT NULL);
CREATE TABLE seconds (bucket INTEGER, instance INTEGER, part INTEGER, chunk BLOB NOT NULL,
    PRIMARY KEY (bucket, instance, part)) WITHOUT ROWID;
CREATE TABLE minutes (bucket INTEGER, instance INTEGER, chunk BLOB NOT NULL,
    PRIMARY KEY (bucket, instance)) WITHOUT ROWID;
CREATE TABLE events (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, time_s REAL NOT NULL, instance TEXT NOT NULL,
    kind TEXT NOT NULL, event BLOB NOT NULL);
CREATE INDEX events_by_time ON events (time_s);
CREATE INDEX events_by_instance ON events (instance, time_s);
CREATE TABLE commands (id TEXT PRIMARY KEY, name TEXT NOT NULL, asked_at_s REAL NOT NULL, command BLOB NOT NULL);
CREATE INDEX commands_by_time ON commands (asked_at_s);
CREATE INDEX commands_by_name ON commands (name, asked_at_s);
CREATE TABLE postmortems (instance TEXT NOT NULL, key TEXT NOT NULL, ended_s REAL NOT NULL, pid INTEGER NOT NULL,
    incarnation INTEGER, report BLOB NOT NULL, PRIMARY KEY (instance, key));
CREATE INDEX postmortems_by_time ON postmortems (ended_s);
CREATE TABLE incarnations (instance TEXT NOT NULL, incarnation INTEGER NOT NULL, host TEXT NOT NULL,
    pid INTEGER NOT NULL, started_s REAL NOT NULL, heard_s REAL NOT NULL,
    PRIMARY KEY (instance, incarnation)) WITHOUT ROWID;
"""


class Unusable(Exception):
    """There can be no history in that place now; the text says why."""


@dataclass
class Batch:
    """What one transaction writes."""

    chunks: list[tuple[str, list[Row]]] = field(default_factory=list)
    """Instance and SECOND rows within SPILL_S of each other."""
    events: list[Event] = field(default_factory=list)
    commands: list[CommandView] = field(default_factory=list)
    ends: list[Filed] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    last_heard: list[tuple[float, str, int]] = field(default_factory=list)
    """When an incarnation that has ended was heard last: Unix time, instance, incarnation."""


def is_damage(error: BaseException) -> bool:
    """Whether the error says that the file is no longer a database, rather than that it cannot be written now."""
    return isinstance(error, sqlite3.DatabaseError) and getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def in_words(error: BaseException) -> str:
    """Why it cannot be written."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return "no space left on device" if code == sqlite3.SQLITE_FULL else str(error)


def put_aside(path: Path, why: str, text: str) -> None:
    """Rename the file with what belongs to it; OSError if that cannot be. One that is damaged replaces the last."""
    aside = path.with_name(f"{path.name}.{why}")
    for suffix in ("-shm", "-wal", ""):
        of_it = path.with_name(path.name + suffix)
        if of_it.exists():
            of_it.replace(aside.with_name(aside.name + suffix))
    log.error("history in %s is %s: it is now %s, and history begins anew", path, text, aside.name)


Lag = Callable[[float], float]
"""How much earlier than by the wall clock the time is, for what is kept for so long."""


def _no_lag(kept_s: float) -> float:
    return 0.0


class Store:
    """The tables, in that file; without a path in memory. Raises Unusable; the methods raise sqlite3.Error.

    A file that is damaged, or of a later version, is set aside under another name.
    """

    def __init__(self, path: Path | None, limit_bytes: int) -> None:
        self.path = path
        self.set_aside = 0
        """Files that were."""
        self._limit_bytes = limit_bytes
        self._ids: dict[str, int] = {}
        self._rolled_up = 0
        """The quarter that is being rolled up, or was last, and below of which instances."""
        self._to_roll_up: list[int] = []
        try:
            self._connection = self._open()
            self._file = None if path is None else os.stat(path)
        except (sqlite3.Error, OSError) as error:
            raise Unusable(f"cannot keep history in {path}: {in_words(error)}") from error
        self.queries = Queries(self._connection)

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            return self._prepared(":memory:")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._prepared(str(self.path))
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self._put_aside(self.path, "damaged", str(error))
        except _Newer as error:
            self._put_aside(self.path, f"version-{error.version}.{int(time.time())}", "of a later version of ATLAS")
        return self._prepared(str(self.path))

    def _prepared(self, name: str) -> sqlite3.Connection:
        if name != ":memory:":  # before SQLite makes it: its log and its index get their modes from it
            os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.chmod(name, 0o600)
        connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise _Newer(version)
            if not version:
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=4194304")
            connection.execute("PRAGMA temp_store=MEMORY")
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            self._pages_most = max(64, self._limit_bytes // page_bytes)
            connection.execute(f"PRAGMA max_page_count={self._pages_most}")
            if not version:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id={_APPLICATION}; "
                    f"PRAGMA user_version={VERSION}; COMMIT;"
                )
            # Not in the schema, and no later version of it: what was written before has it from now on.
            connection.execute(f"CREATE INDEX IF NOT EXISTS events_by_cause ON events ({CAUSE}) WHERE {CAUSE} NOT NULL")
            self._part = (connection.execute("SELECT max(part) FROM seconds").fetchone()[0] or 0) + 1
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self, path: Path, why: str, text: str) -> None:
        put_aside(path, why, text)
        self.set_aside += 1

    def is_in_place(self) -> bool:
        """Whether its path still leads to it: SQLite goes on in a deleted file, which nobody finds afterwards."""
        if self.path is None or self._file is None:
            return True
        try:
            return os.path.samestat(self._file, os.stat(self.path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # -- writing ------------------------------------------------------------------------------------

    def write(self, batch: Batch) -> None:
        """All of it, or on an error nothing."""
        try:
            with self._transaction():
                self._write(batch)
        except BaseException:
            self._ids.clear()  # some may have been of this transaction
            raise

    def _write(self, batch: Batch) -> None:
        self._write_chunks(batch.chunks)
        self._connection.executemany(
            "INSERT OR IGNORE INTO events (id, time_s, instance, kind, event) VALUES (?, ?, ?, ?, ?)",
            ((e.id, e.time_s, e.instance, e.kind, msgspec.json.encode(e)) for e in batch.events),
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO commands VALUES (?, ?, ?, ?)",
            ((c.id, c.name, c.asked_at_s, msgspec.json.encode(c)) for c in batch.commands),
        )
        self._connection.executemany(
            "INSERT OR IGNORE INTO postmortems VALUES (?, ?, ?, ?, ?, ?)",
            (
                (f.instance, f.key, f.ended_s, f.report.pid, f.report.incarnation, _squeezed(f.report))
                for f in batch.ends
            ),
        )
        self._connection.executemany(
            "INSERT INTO incarnations VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (instance, incarnation) "
            "DO UPDATE SET heard_s = excluded.heard_s, host = excluded.host, pid = excluded.pid",
            ((life.instance, life.incarnation, life.host, life.pid, life.started_s, life.heard_s)
             for life in batch.lives),
        )  # fmt: skip
        self._connection.executemany(
            "UPDATE incarnations SET heard_s = max(heard_s, ?) WHERE instance = ? AND incarnation = ?",
            batch.last_heard,
        )

    def _transaction(self) -> Transaction:
        return Transaction(self._connection)

    def _write_chunks(self, chunks: Iterable[tuple[str, list[Row]]]) -> None:
        rows = []
        for name, chunk in chunks:
            begin_s = chunk[0][0] or 0
            rows.append((begin_s // BUCKET_S, self._id_of(name, begin_s), self._part, samples.pack(chunk)))
            self._part += 1
        self._connection.executemany("INSERT INTO seconds VALUES (?, ?, ?, ?)", rows)

    def _id_of(self, name: str, heard_s: float) -> int:
        if name not in self._ids:
            self._connection.execute("INSERT OR IGNORE INTO instances (name, heard_s) VALUES (?, ?)", (name, heard_s))
            found = self.queries.number_of(name)
            assert found is not None
            self._ids[name] = found
        return self._ids[name]

    def roll_up(self, now_s: float, step_s: int, most: int) -> bool:
        """Make minutes of the seconds of quarters that are over, for so many instances; whether there were any."""
        last = int(now_s - SPILL_S) // QUARTER_S - 1
        if self._rolled_up > last + 1:
            self._rolled_up = 0  # the clock was set back
        while not self._to_roll_up and self._rolled_up < last:
            found = self._connection.execute(
                "SELECT min(bucket) FROM seconds WHERE bucket >= ?", ((self._rolled_up + 1) * QUARTER_S // BUCKET_S,)
            )
            (bucket,) = found.fetchone()
            self._rolled_up = last if bucket is None else min(last, bucket * BUCKET_S // QUARTER_S)
            self._to_roll_up = self._not_rolled_up(self._rolled_up)
        if not self._to_roll_up:
            return False
        self._roll_up_quarter(self._rolled_up, self._to_roll_up[:most], step_s)
        del self._to_roll_up[:most]
        return True

    def _not_rolled_up(self, quarter: int) -> list[int]:
        found = self._connection.execute(
            "SELECT DISTINCT instance FROM seconds WHERE bucket >= ? AND bucket < ? "
            "EXCEPT SELECT instance FROM minutes WHERE bucket = ?",
            (quarter * QUARTER_S // BUCKET_S, (quarter + 1) * QUARTER_S // BUCKET_S, quarter),
        )
        return [instance for (instance,) in found]

    def _roll_up_quarter(self, quarter: int, instances: Sequence[int], step_s: int) -> None:
        begin_s, end_s = quarter * QUARTER_S, (quarter + 1) * QUARTER_S
        with self._transaction():
            for instance in instances:
                rolled = samples.roll_up(self.queries.rows("seconds", instance, begin_s, end_s), step_s)
                self._connection.execute(
                    "INSERT OR REPLACE INTO minutes VALUES (?, ?, ?)",
                    (quarter, instance, samples.pack(rolled) if rolled else b""),
                )
                self._connection.execute("UPDATE instances SET heard_s = ? WHERE id = ?", (end_s, instance))

    def prune(self, now_s: float, lag_s: Lag = _no_lag) -> None:
        """Drop a little of what is too old or too much; call it every second."""
        execute = self._connection.execute
        self._prune_oldest("seconds", (now_s - lag_s(SECONDS_KEPT_S) - SECONDS_KEPT_S) // BUCKET_S - 1)
        self._prune_oldest("minutes", (now_s - lag_s(MINUTES_KEPT_S) - MINUTES_KEPT_S) // QUARTER_S - 1)
        for table, column in (("events", "time_s"), ("commands", "asked_at_s"), ("postmortems", "ended_s")):
            execute(
                f"DELETE FROM {table} WHERE rowid IN "
                f"(SELECT rowid FROM {table} WHERE {column} < ? ORDER BY {column} LIMIT {_PRUNED_AT_ONCE})",
                (now_s - lag_s(EVENTS_KEPT_S) - EVENTS_KEPT_S,),
            )
        if self.used_share() > _FULL_AT:
            self._shrink(now_s)
        (free,) = execute("PRAGMA freelist_count").fetchone()
        if free > self._pages_most // 4:
            execute("PRAGMA incremental_vacuum(256)").fetchall()

    def prune_rarely(self, now_s: float, lag_s: Lag = _no_lag) -> None:
        """Drop what there is too much of, in number; call it every minute."""
        execute = self._connection.execute
        rows_most = self._limit_bytes // 4 // 1024
        for table in ("events", "commands"):
            (count,) = execute(f"SELECT count(*) FROM {table}").fetchone()
            column = "seq" if table == "events" else "asked_at_s"
            execute(
                f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY {column} LIMIT ?)",
                (max(0, count - rows_most),),
            )
        execute(
            "DELETE FROM postmortems WHERE rowid IN (SELECT rowid FROM (SELECT rowid, row_number() OVER "
            f"(PARTITION BY instance ORDER BY ended_s DESC) AS age FROM postmortems) WHERE age > {OF_INSTANCE})"
        )
        (count,) = execute("SELECT count(*) FROM postmortems").fetchone()
        execute(
            "DELETE FROM postmortems WHERE rowid IN (SELECT rowid FROM postmortems ORDER BY ended_s LIMIT ?)",
            (max(0, count - self._limit_bytes // 4 // 8192),),
        )
        execute("DELETE FROM incarnations WHERE heard_s < ?", (now_s - lag_s(EVENTS_KEPT_S) - EVENTS_KEPT_S,))
        instances_kept_s = MINUTES_KEPT_S + 86400
        heard_s = now_s - lag_s(instances_kept_s) - instances_kept_s
        if execute("DELETE FROM instances WHERE heard_s < ?", (heard_s,)).rowcount:
            self._ids.clear()

    def _prune_oldest(self, table: str, bucket: float) -> bool:
        """Drop the oldest bucket if it is before that one; whether it was."""
        (oldest,) = self._connection.execute(f"SELECT min(bucket) FROM {table}").fetchone()
        if oldest is None or oldest >= bucket:
            return False
        self._connection.execute(f"DELETE FROM {table} WHERE bucket = ?", (oldest,))
        return True

    def _shrink(self, now_s: float) -> None:
        """Give up one thing: seconds before minutes, and both before what tells why something ended."""
        if self._prune_oldest("seconds", (now_s - SECONDS_LEAST_S) // BUCKET_S):
            return
        if self._prune_oldest("minutes", (now_s - MINUTES_LEAST_S) // QUARTER_S):
            return
        for table, column in (("events", "seq"), ("commands", "asked_at_s"), ("postmortems", "ended_s")):
            self._connection.execute(
                f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} ORDER BY {column} "
                f"LIMIT max(1, (SELECT count(*) FROM {table}) / 50))"
            )
        if self.used_share() > _LAST_AT:
            self._prune_oldest("seconds", now_s // BUCKET_S)
            self._prune_oldest("minutes", now_s // QUARTER_S)

    def used_share(self) -> float:
        """How much of the size allowed is in use."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return float((pages - free) / self._pages_most)

    def size_bytes(self) -> int:
        """Of the database, without its log."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int(pages) * int(page_bytes)


class _Newer(Exception):
    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


def _squeezed(report: PostMortem) -> bytes:
    return zlib.compress(msgspec.json.encode(report), 6)
