"""The block-list on disk: what was acknowledged outlives SIGKILL and a loss of power. SQLite, each change committed.

On disk times are by the wall clock, as they have to mean the same to the next
process; in memory they are monotonic, so that a clock that is set frees and blocks nobody.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import quote

from services.gateway.blocklist import Blocklist, Network, Rule

log = logging.getLogger(__name__)

COMMANDS_KEPT = 10_000
TOLD_KEPT_S, TOLD_KEPT = 600.0, 1000
"""What has become of the list is told again for so long by who comes after this process: it may not have been heard."""
_VERSION = 2
"""1 had no rates."""
_TABLES = """
CREATE TABLE IF NOT EXISTS rules (
    network TEXT PRIMARY KEY, allow INTEGER NOT NULL, starts_s REAL NOT NULL, ends_s REAL, command TEXT NOT NULL,
    rate_per_s REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commands (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, content BLOB NOT NULL, answer BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS told (number INTEGER PRIMARY KEY, at_s REAL NOT NULL, told BLOB NOT NULL);
"""

_FROM_1 = "BEGIN IMMEDIATE; ALTER TABLE rules ADD COLUMN rate_per_s REAL; PRAGMA user_version=2; COMMIT;"


class StoreError(Exception):
    """The list cannot be read or written; the text says what to do."""


class BlockStore:
    """The list, and the commands that it was made by. Any thread may change it, one at a time."""

    def __init__(self, path: Path, rules: Blocklist) -> None:
        self.rules = rules
        self._path = path
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self.broken = ""
        """Why nothing can be written; empty if it can."""
        self._closed = False

    def open(self) -> None:
        """Read what is there. Only once no other process has it open.

        If the disk lets nothing be written, what is there is obeyed, and new commands fail until it does.
        Raises StoreError if what is there cannot be read: to begin without would free what somebody has contained.
        """
        try:
            self._db = self._opened()
            return
        except (OSError, sqlite3.Error, ValueError) as error:
            self.broken = f"cannot write the block-list in {self._path}: {error}"
        wal = self._path.with_name(self._path.name + "-wal")
        try:
            if wal.exists() and wal.stat().st_size:
                raise ValueError(self.broken)  # part of it is there, and cannot be read without writing
            if self._path.exists():
                reading = sqlite3.connect(f"file:{quote(str(self._path))}?immutable=1", uri=True)
                with closing(reading):
                    self._load(reading)
        except (OSError, sqlite3.Error, ValueError) as error:
            raise StoreError(f"cannot use the block-list in {self._path}: {error}; mend it, or move it away") from error
        log.warning("%s", self.broken)

    def _opened(self) -> sqlite3.Connection:
        path = self._path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")  # acknowledged means on disk
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, _VERSION):
                raise ValueError(f"its version is {version}, this reads {_VERSION}")
            if version == 1:
                db.executescript(_FROM_1)
            db.executescript(_TABLES + f"PRAGMA user_version={_VERSION};")
            self._load(db)
        except BaseException:
            db.close()
            raise
        return db

    def _load(self, db: sqlite3.Connection) -> None:
        ahead_s = time.monotonic() - time.time()
        (version,) = db.execute("PRAGMA user_version").fetchone()  # 1 on a disk that takes nothing new
        rate = "NULL" if version == 1 else "rate_per_s"
        for network, allow, starts_s, ends_s, command, rate_per_s in db.execute(
            f"SELECT network, allow, starts_s, ends_s, command, {rate} FROM rules"
        ):
            self.rules.put(
                Rule(
                    network=ip_network(network),
                    allow=bool(allow),
                    starts_s=starts_s + ahead_s,
                    ends_s=math.inf if ends_s is None else ends_s + ahead_s,
                    command=command,
                    rate_per_s=rate_per_s,
                )
            )

    def close(self) -> None:
        """Nothing is changed after this."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
            self._closed = True
            self.broken = "cannot write the block-list: this gateway is ending"

    def once(
        self,
        id: str,
        content: bytes,
        do: Callable[[], tuple[bytes, Rule | Network | None]],
        told: Callable[[Rule | Network], bytes],
    ) -> bytes:
        """Do what a command says, and answer; the second time only answer.

        ``do`` returns the answer and what becomes of the list: a rule that is new, a network whose rule is gone,
        or None; ``told`` what is told of that, and told again by ``told_lately``. Both are called with nobody else
        changing the list. Returns once all of it is on disk.
        Raises StoreError, or ValueError if the id was another command's.
        """
        with self._lock:
            db = self._writable()
            try:
                held = db.execute("SELECT content, answer FROM commands WHERE id = ?", (id,)).fetchone()
                if held is not None:
                    if held[0] != content:
                        raise ValueError(f"{id} was the id of another command")
                    return bytes(held[1])
                answer, change = do()
                db.execute("BEGIN IMMEDIATE")
                try:
                    self._write(db, change)
                    if change is not None:
                        db.execute("INSERT INTO told (at_s, told) VALUES (?, ?)", (time.time(), told(change)))
                        db.execute("DELETE FROM told WHERE number <= (SELECT max(number) FROM told) - ?", (TOLD_KEPT,))
                    db.execute("INSERT INTO commands (id, content, answer) VALUES (?, ?, ?)", (id, content, answer))
                    db.execute(
                        "DELETE FROM commands WHERE number <= (SELECT max(number) FROM commands) - ?", (COMMANDS_KEPT,)
                    )
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"cannot write the block-list in {self._path}: {error}") from error
            if isinstance(change, Rule):
                self.rules.put(change)
            elif change is not None:
                self.rules.remove(change)
            return answer

    def told_lately(self) -> list[bytes]:
        """What was told lately of changes, oldest first; what is older is forgotten. Raises StoreError."""
        with self._lock:
            if self._db is None:
                return []
            try:
                self._db.execute("DELETE FROM told WHERE at_s < ?", (time.time() - TOLD_KEPT_S,))
                return [bytes(told) for (told,) in self._db.execute("SELECT told FROM told ORDER BY number")]
            except sqlite3.Error as error:
                raise StoreError(f"cannot read the block-list in {self._path}: {error}") from error

    def _write(self, db: sqlite3.Connection, change: Rule | Network | None) -> None:
        if isinstance(change, Rule):
            ahead_s = time.monotonic() - time.time()
            ends_s = None if math.isinf(change.ends_s) else change.ends_s - ahead_s
            db.execute(
                "INSERT OR REPLACE INTO rules VALUES (?, ?, ?, ?, ?, ?)",
                (
                    str(change.network),
                    change.allow,
                    change.starts_s - ahead_s,
                    ends_s,
                    change.command,
                    change.rate_per_s,
                ),
            )
        elif change is not None:
            db.execute("DELETE FROM rules WHERE network = ?", (str(change),))

    def _writable(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreError(self.broken)
        return self._db

    def sweep(self) -> int:
        """Forget the rules that are over; return how many. Raises StoreError, and tries what is broken again."""
        with self._lock:
            if self._closed:
                return 0
            if self._db is None:
                try:
                    self._db = self._opened()
                except (OSError, sqlite3.Error, ValueError) as error:
                    raise StoreError(self.broken) from error
                self.broken = ""
            ended = self.rules.ended(time.monotonic())
            if not ended:
                return 0
            db = self._db
            try:
                db.execute("BEGIN IMMEDIATE")
                db.executemany("DELETE FROM rules WHERE network = ?", [(str(network),) for network in ended])
                db.execute("COMMIT")
            except sqlite3.Error as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise StoreError(f"cannot write the block-list in {self._path}: {error}") from error
            for network in ended:
                self.rules.remove(network)
            return len(ended)
