"""The change feed: what has changed, in order, each change with a number.

Each is written in the transaction of what it tells.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import apsw
from msgspec import Struct

KEPT = 100_000
"""Changes; older ones are forgotten, and who asks for them is told so."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS _cdn_changes(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL NOT NULL, source TEXT NOT NULL COLLATE NOCASE, kind TEXT NOT NULL,
    first_rowid INTEGER, last_rowid INTEGER
) STRICT
"""


class Change(Struct, frozen=True, kw_only=True, tag_field="type", tag="change"):
    """One change of a source."""

    seq: int
    """1, 2, 3 …; no number is given twice, and after a crash none is missing."""
    at_s: float
    """Unix time."""
    source: str
    kind: str
    """loaded, attached, inserted or dropped; one that replaces another is loaded or attached."""
    first_rowid: int | None = None
    """Of the rows that came; ``GET /tables/NAME/rows?after=`` one less has them."""
    last_rowid: int | None = None


class Gap(Struct, frozen=True, kw_only=True, tag_field="type", tag="gap"):
    """Changes before the next one are forgotten, or the one asked for is of another database: read all anew."""

    since: int


class Changes(Struct, frozen=True, kw_only=True):
    """Changes after ``since``, the oldest first."""

    changes: list[Change]
    last: int
    """To be the next request's since."""
    gap: bool
    """Between since and the first of these some are forgotten, or since is of another database: read all anew."""


def note(
    connection: apsw.Connection, source: str, kind: str, first_rowid: int | None = None, last_rowid: int | None = None
) -> None:
    """Write a change down; to be called in its transaction."""
    connection.execute(
        "INSERT INTO _cdn_changes(at_s, source, kind, first_rowid, last_rowid) VALUES (?, ?, ?, ?, ?)",
        (time.time(), source, kind, first_rowid, last_rowid),
    )
    connection.execute("DELETE FROM _cdn_changes WHERE seq <= ?", (connection.last_insert_rowid() - KEPT,))


class Log:
    """Reads the changes; from any thread."""

    def __init__(self, path: Path) -> None:
        """A connection to the database at that path."""
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        self._connection.set_busy_timeout(1_000)
        self._lock = threading.Lock()

    def newest(self) -> int:
        """The number of the newest change; 0 if there was none. Quick."""
        with self._lock:
            found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = '_cdn_changes'").get
        return int(found or 0)

    def since(self, seq: int, source: str | None, limit: int) -> Changes:
        """Up to limit changes after that number, of that source or of all."""
        with self._lock, self._connection:  # one snapshot
            found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = '_cdn_changes'").get
            newest = int(found or 0)
            oldest = self._connection.execute("SELECT min(seq) FROM _cdn_changes").get
            rows: list[Any] = self._connection.execute(
                "SELECT seq, at_s, source, kind, first_rowid, last_rowid FROM _cdn_changes "
                "WHERE seq > ? AND (? IS NULL OR source = ?) ORDER BY seq LIMIT ?",
                (seq, source, source, limit),
            ).fetchall()
        changes = [
            Change(seq=at, at_s=at_s, source=name, kind=kind, first_rowid=first, last_rowid=last)
            for at, at_s, name, kind, first, last in rows
        ]
        gap = seq > newest or (oldest is not None and seq < int(oldest) - 1)
        return Changes(changes=changes, last=changes[-1].seq if len(changes) == limit else newest, gap=gap)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
