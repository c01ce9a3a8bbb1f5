"""The database: slots of every series in three tiers, acknowledged batches that are in no slot yet, change points.

SQLite, WAL, ``synchronous=FULL``: what is committed is on disk. Used by one thread, the keeper's; questions
have connections of their own.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from services.sqlite import Transaction, opened
from services.statistical import aggregates
from services.statistical.aggregates import Aggregate
from services.statistical.statsd import Kind
from services.statistical.windows import KEPT, WIDTHS, Stretch

_VERSION = 1
BREATH = 8
_TABLES = """
CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (kind, name));
CREATE TABLE IF NOT EXISTS slots (
    tier INTEGER, series INTEGER, slot INTEGER, state BLOB NOT NULL, PRIMARY KEY (tier, series, slot)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS slots_by_time ON slots (tier, slot);
CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY AUTOINCREMENT, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS batches (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, answer BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS changes (id INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tiers (tier INTEGER PRIMARY KEY, joined INTEGER NOT NULL);
"""


class Row(NamedTuple):
    """A slot to be written."""

    series: int
    slot: int
    state: bytes


class Disk:
    """The one connection that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = opened(path, _TABLES, _VERSION)

    def close(self) -> None:
        """No more is written."""
        self._db.close()

    # -- at the start -----------------------------------------------------------------------------------

    def series(self) -> list[tuple[int, Kind, str]]:
        """All that there are."""
        return [(id, Kind(kind), name) for id, kind, name in self._db.execute("SELECT id, kind, name FROM series")]

    def last_slot(self) -> int:
        """The latest that was written."""
        (slot,) = self._db.execute("SELECT max(slot) FROM slots WHERE tier = 0").fetchone()
        return int(slot or 0)

    def open_slots(self, slot: int) -> list[Row]:
        """What was written of that slot, which may go on."""
        return [
            Row(*row)
            for row in self._db.execute("SELECT series, slot, state FROM slots WHERE tier=0 AND slot=?", (slot,))
        ]

    def journal(self) -> list[tuple[int, bytes]]:
        """Batches that are in no slot yet."""
        return self._db.execute("SELECT seq, content FROM journal ORDER BY seq").fetchall()

    def joined(self) -> tuple[int, int, int]:
        """Up to which slot each tier is complete."""
        held = dict(self._db.execute("SELECT tier, joined FROM tiers").fetchall())
        return (0, held.get(1, 0), held.get(2, 0))

    # -- batches ----------------------------------------------------------------------------------------

    def answer_to(self, id: str) -> bytes | None:
        """What a batch of that id was answered, if there was one."""
        row = self._db.execute("SELECT answer FROM batches WHERE id = ?", (id,)).fetchone()
        return None if row is None else bytes(row[0])

    def write_down(self, batches: Iterable[tuple[str | None, bytes, bytes]], kept: int) -> int:
        """(id, content, answer) of batches, all in one transaction; the number of the last."""
        with self._transaction() as db:
            seq = 0
            for id, content, answer in batches:
                seq = int(db.execute("INSERT INTO journal (content) VALUES (?)", (content,)).lastrowid or 0)
                if id is not None:
                    db.execute("INSERT INTO batches (id, answer) VALUES (?, ?)", (id, answer))
            db.execute("DELETE FROM batches WHERE number <= (SELECT max(number) FROM batches) - ?", (kept,))
        return seq

    # -- slots ------------------------------------------------------------------------------------------

    def flush(self, met: Iterable[tuple[int, Kind, str]], rows: Iterable[Row], seq: int) -> None:
        """Series that are new, slots as they are now, and that the batches up to seq are in them."""
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO series VALUES (?, ?, ?)", met)
            db.executemany("INSERT OR REPLACE INTO slots VALUES (0, ?, ?, ?)", rows)
            db.execute("DELETE FROM journal WHERE seq <= ?", (seq,))

    def join(self, tier: int, begin: int, end: int) -> None:
        """Make the tier's slot from begin to end of those of the finer one, and forget what is too old."""
        with self._transaction() as db:
            joined: dict[int, Aggregate] = {}
            found = db.execute(
                "SELECT series, state FROM slots WHERE tier = ? AND slot >= ? AND slot < ?", (tier - 1, begin, end)
            )
            for count, (series, state) in enumerate(found):
                if count % BREATH == 0:
                    time.sleep(0)  # else the event loop waits for the interpreter's switch interval each time
                aggregate = aggregates.unpacked(state)
                if series in joined:
                    aggregates.merged(joined[series], aggregate)
                else:
                    joined[series] = aggregate
            db.executemany(
                "INSERT OR REPLACE INTO slots VALUES (?, ?, ?, ?)",
                ((tier, series, begin, aggregates.packed(aggregate)) for series, aggregate in joined.items()),
            )
            db.execute("INSERT OR REPLACE INTO tiers VALUES (?, ?)", (tier, end))
            db.execute("DELETE FROM slots WHERE tier = ? AND slot < ?", (tier - 1, end - KEPT[tier - 1]))
            if tier == len(WIDTHS) - 1:
                db.execute("DELETE FROM slots WHERE tier = ? AND slot < ?", (tier, end - KEPT[tier]))

    def first_slot(self, tier: int, begin: int) -> int | None:
        """The first one of the tier, not before begin."""
        slot: int | None
        (slot,) = self._db.execute("SELECT min(slot) FROM slots WHERE tier = ? AND slot >= ?", (tier, begin)).fetchone()
        return slot

    def without_slots(self) -> list[int]:
        """Series that have none left, in any tier."""
        found = self._db.execute(
            "SELECT id FROM series WHERE NOT EXISTS (SELECT 1 FROM slots WHERE tier IN (0, 1, 2) AND series = id)"
        )
        return [id for (id,) in found]

    def forget(self, series: Iterable[int]) -> None:
        """Take series out."""
        with self._transaction() as db:
            db.executemany("DELETE FROM series WHERE id = ?", ((id,) for id in series))

    # -- changes ----------------------------------------------------------------------------------------

    def note_changes(self, contents: Iterable[bytes], kept: int) -> None:
        """Change points, in order."""
        with self._transaction() as db:
            db.executemany("INSERT INTO changes (content) VALUES (?)", ((content,) for content in contents))
            db.execute("DELETE FROM changes WHERE id <= (SELECT max(id) FROM changes) - ?", (kept,))

    def last_changes(self, limit: int) -> list[bytes]:
        """The newest change points, in order."""
        found = self._db.execute("SELECT content FROM changes ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
        return [content for (content,) in reversed(found)]

    def _transaction(self) -> Transaction:
        return Transaction(self._db)


class Reader:
    """A connection that only reads; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False, isolation_level=None)

    def slots(self, series: int, stretch: Stretch) -> list[tuple[int, bytes]]:
        """(slot, state) of a stretch, in order."""
        return self._db.execute(
            "SELECT slot, state FROM slots WHERE tier = ? AND series = ? AND slot >= ? AND slot < ? ORDER BY slot",
            (stretch.tier, series, stretch.begin, stretch.end),
        ).fetchall()

    def changes(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """(id, content), in order."""
        return self._db.execute(
            "SELECT id, content FROM changes WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        ).fetchall()

    def close(self) -> None:
        """End it."""
        self._db.close()
