"""What must outlive the process: checks, pings, incidents, alerts on their way, maintenance. SQLite, in its own thread.

A disk that hangs must not stop the watching, so nobody waits for it but who was
promised durability: that promise is kept by a commit with fsync, many in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from services.isolated_monitoring.checks import BODY_BYTES, PINGS_KEPT

_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pings (
    uuid TEXT NOT NULL, n INTEGER NOT NULL, body TEXT NOT NULL, said BLOB, PRIMARY KEY (uuid, n)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flips (uuid TEXT NOT NULL, unix_s REAL NOT NULL, up INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS flips_of ON flips (uuid, unix_s);
"""
_BATCH = 500
_QUEUED_MAX = 10_000
FLIPS_KEPT = 1000


class StoreError(Exception):
    """The store cannot keep or read it; the text says why."""


Job = Callable[[sqlite3.Connection], Any]


class Store:
    """One database file and the thread that has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.Queue[tuple[Job, asyncio.Future[Any] | None] | None] = queue.Queue(_QUEUED_MAX)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database: sqlite3.Connection | None = None
        self.problem = ""
        """Why the last write failed; empty if it did not."""
        self.commits = 0

    def open(self) -> None:
        """Open or make the database; one that is damaged is set aside. Raises StoreError."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                self._database = self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        Path(f"{self._path}{suffix}").rename(f"{self._path}.damaged{suffix}")
                self._database = self._connect()
                self.problem = f"{self._path} was damaged and is set aside as {self._path.name}.damaged"
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open {self._path}: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")  # acknowledged is durable, also when the power fails
            database.execute("PRAGMA journal_size_limit=4194304")
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        return database

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to write."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Write what is queued, and close."""
        self._jobs.put(None)
        self._thread.join(10.0)

    # -- for the loop's thread ------------------------------------------------------------------------

    async def do(self, job: Job) -> Any:
        """Run the job in a transaction and return what it returned, once that is durable. Raises StoreError."""
        assert self._loop is not None
        future: asyncio.Future[Any] = self._loop.create_future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full:
            raise StoreError(f"cannot keep it: {_QUEUED_MAX} writes are waiting for the disk") from None
        return await future

    def later(self, job: Job) -> None:
        """Run the job some time soon; if that fails, ``problem`` says so."""
        try:
            self._jobs.put_nowait((job, None))
        except queue.Full:
            self.problem = f"cannot keep it: {_QUEUED_MAX} writes are waiting for the disk"

    def read_now(self, job: Job) -> Any:
        """For the start, before the thread runs."""
        assert self._database is not None
        return job(self._database)

    # -- the writer's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch = [self._jobs.get()]
            while len(batch) < _BATCH:
                try:
                    batch.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            stopping = None in batch
            jobs = [each for each in batch if each is not None]
            if jobs and not self._commit(jobs) and len(jobs) > 1:
                for job in jobs:  # one of them may be to blame: each by itself
                    self._commit([job])
        if self._database is not None:
            self._database.close()

    def _commit(self, jobs: list[tuple[Job, asyncio.Future[Any] | None]]) -> bool:
        database = self._database
        if database is None:
            for _, future in jobs:
                self._tell(future, None, StoreError(self.problem))
            return True
        try:
            changes = database.total_changes
            database.execute("BEGIN IMMEDIATE")
            results = [job(database) for job, _ in jobs]
            database.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - also a bug: without this thread all others would wait for ever
            with contextlib.suppress(sqlite3.Error):  # there is no transaction, if it ended by itself
                database.execute("ROLLBACK")
            self.problem = f"cannot write {self._path}: {error}"
            if len(jobs) == 1:
                self._tell(jobs[0][1], None, StoreError(self.problem))
            return False
        if database.total_changes > changes:  # a commit of nothing proves nothing
            self.problem = ""
        self.commits += 1
        for (_, future), result in zip(jobs, results, strict=True):
            self._tell(future, result, None)
        return True

    def _tell(self, future: asyncio.Future[Any] | None, result: Any, error: Exception | None) -> None:
        if future is None or self._loop is None:
            return

        def settle() -> None:
            if future.done():  # whoever waited has gone
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who waited
            self._loop.call_soon_threadsafe(settle)


def put(kind: str, key: str, body: Any) -> Job:
    """Keep one thing, in place of the one that had its name."""
    text = json.dumps(body)

    def job(database: sqlite3.Connection) -> None:
        database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (kind, key, text))

    return job


def drop(kind: str, keys: Iterable[str]) -> Job:
    """Forget some."""
    names = [(kind, key) for key in keys]

    def job(database: sqlite3.Connection) -> None:
        database.executemany("DELETE FROM kept WHERE kind = ? AND id = ?", names)

    return job


def all_of(kind: str) -> Job:
    """Everything of that kind."""

    def job(database: sqlite3.Connection) -> list[Any]:
        return [json.loads(body) for (body,) in database.execute("SELECT body FROM kept WHERE kind = ?", (kind,))]

    return job


def put_ping(check: dict[str, Any], ping: dict[str, Any], said: bytes, flip: bool | None) -> Job:
    """Keep a ping, the check as it is after it, and its change of status if it had one."""
    text, body, uuid, n = json.dumps(check), json.dumps(ping), check["uuid"], check["n_pings"]

    def job(database: sqlite3.Connection) -> None:
        database.execute("INSERT OR REPLACE INTO kept VALUES ('check', ?, ?)", (uuid, text))
        database.execute("INSERT OR REPLACE INTO pings VALUES (?, ?, ?, ?)", (uuid, n, body, said[:BODY_BYTES] or None))
        database.execute("DELETE FROM pings WHERE uuid = ? AND n <= ?", (uuid, n - PINGS_KEPT))
        if flip is not None:
            database.execute("INSERT INTO flips VALUES (?, ?, ?)", (uuid, ping["unix_s"], flip))

    return job


def put_flip(check: dict[str, Any], unix_s: float, up: bool) -> Job:
    """Keep a change of status that no ping brought."""
    text, uuid = json.dumps(check), check["uuid"]

    def job(database: sqlite3.Connection) -> None:
        database.execute("INSERT OR REPLACE INTO kept VALUES ('check', ?, ?)", (uuid, text))
        database.execute("INSERT INTO flips VALUES (?, ?, ?)", (uuid, unix_s, up))
        database.execute(
            "DELETE FROM flips WHERE uuid = ? AND rowid NOT IN "
            "(SELECT rowid FROM flips WHERE uuid = ? ORDER BY unix_s DESC LIMIT ?)",
            (uuid, uuid, FLIPS_KEPT),
        )

    return job


def drop_check(uuid: str) -> Job:
    """Forget a check and all that it said."""

    def job(database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM kept WHERE kind = 'check' AND id = ?", (uuid,))
        database.execute("DELETE FROM pings WHERE uuid = ?", (uuid,))
        database.execute("DELETE FROM flips WHERE uuid = ?", (uuid,))

    return job


def pings_of(uuid: str) -> Job:
    """The last pings of a check, newest first."""

    def job(database: sqlite3.Connection) -> list[Any]:
        rows = database.execute(
            "SELECT n, body, said IS NOT NULL FROM pings WHERE uuid = ? ORDER BY n DESC LIMIT ?", (uuid, PINGS_KEPT)
        )
        return [{"n": n, "has_body": bool(has), **json.loads(body)} for n, body, has in rows]

    return job


def body_of(uuid: str, n: int) -> Job:
    """What a ping had for a body; None if there is none."""

    def job(database: sqlite3.Connection) -> bytes | None:
        row = database.execute("SELECT said FROM pings WHERE uuid = ? AND n = ?", (uuid, n)).fetchone()
        return row[0] if row else None

    return job


def flips_of(uuid: str) -> Job:
    """The changes of status of a check, newest first."""

    def job(database: sqlite3.Connection) -> list[Any]:
        rows = database.execute(
            "SELECT unix_s, up FROM flips WHERE uuid = ? ORDER BY unix_s DESC LIMIT ?", (uuid, FLIPS_KEPT)
        )
        return [{"unix_s": unix_s, "up": up} for unix_s, up in rows]

    return job
