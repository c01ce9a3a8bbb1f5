"""The database: chunks of samples, a journal of those that are in no chunk yet, targets, rules, alerts.

SQLite, WAL, ``synchronous=FULL``: what is committed is on disk. Used by one thread, the keeper's; questions
have connections of their own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.monitoring.exposition import Labels
from services.sqlite import Transaction, opened

_VERSION = 1
SPAN_MS = 3_600_000
"""No chunk is longer, so that those of a stretch are found by where they begin."""
_TABLES = """
CREATE TABLE IF NOT EXISTS series (id INTEGER PRIMARY KEY, labels BLOB NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS chunks (
    series INTEGER, begin INTEGER, end INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (series, begin)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunks_by_end ON chunks (end);
CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY AUTOINCREMENT, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS kept (kind TEXT, name TEXT, content BLOB NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID;
"""
_labels_encoder = msgspec.json.Encoder()
_labels_decoder = msgspec.json.Decoder(Labels)


class Chunk(NamedTuple):
    """Samples of one series, packed."""

    series: int
    begin_ms: int
    end_ms: int
    content: bytes


class Disk:
    """The one connection that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = opened(path, _TABLES, _VERSION)

    def close(self) -> None:
        """No more is written."""
        self._db.close()

    # -- at the start -----------------------------------------------------------------------------------

    def series(self) -> Iterator[tuple[int, Labels]]:
        """All that there are."""
        for id, labels in self._db.execute("SELECT id, labels FROM series"):
            yield id, _labels_decoder.decode(labels)

    def journal(self) -> Iterator[tuple[int, bytes]]:
        """Batches that are not all in chunks yet."""
        yield from self._db.execute("SELECT seq, content FROM journal ORDER BY seq")

    def chunk_ends(self) -> dict[int, int]:
        """Up to where each series is in chunks."""
        return dict(self._db.execute("SELECT series, max(end) FROM chunks GROUP BY series").fetchall())

    def kept(self, kind: str) -> dict[str, bytes]:
        """Values of a kind, by name."""
        return dict(self._db.execute("SELECT name, content FROM kept WHERE kind = ?", (kind,)).fetchall())

    # -- in ---------------------------------------------------------------------------------------------

    def write(self, met: Iterable[tuple[int, Labels]], content: bytes | None, changes: Iterable[Change]) -> int:
        """New series, a batch of samples, and other values, in one transaction; the number of the batch."""
        seq = 0
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO series VALUES (?, ?)",
                ((id, _labels_encoder.encode(labels)) for id, labels in met),
            )
            if content is not None:
                seq = int(db.execute("INSERT INTO journal (content) VALUES (?)", (content,)).lastrowid or 0)
            for change in changes:
                if change.content is None:
                    db.execute("DELETE FROM kept WHERE kind = ? AND name = ?", (change.kind, change.name))
                else:
                    db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", change)
        return seq

    def seal(self, chunks: Iterable[Chunk]) -> None:
        """Chunks of samples that are in the journal."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?)", chunks)

    def sealed(self, seq: int) -> None:
        """All batches up to seq are in chunks."""
        with self._transaction() as db:
            db.execute("DELETE FROM journal WHERE seq <= ?", (seq,))

    # -- retention --------------------------------------------------------------------------------------

    def size(self) -> int:
        """Bytes that are in use."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def drop(self, before_ms: int, at_most: int) -> int:
        """Drop chunks that end before; at most so many, the oldest. How many there were."""
        with self._transaction() as db:
            found = db.execute(
                "SELECT series, begin FROM chunks WHERE end < ? ORDER BY end LIMIT ?", (before_ms, at_most)
            ).fetchall()
            db.executemany("DELETE FROM chunks WHERE series = ? AND begin = ?", found)
        return len(found)

    def chunks(self) -> int:
        """How many there are."""
        (count,) = self._db.execute("SELECT count(*) FROM chunks").fetchone()
        return int(count)

    def without_chunks(self) -> list[int]:
        """Series that have none."""
        found = self._db.execute(
            "SELECT id FROM series WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.series = series.id)"
        )
        return [id for (id,) in found]

    def forget(self, series: Iterable[int]) -> None:
        """Take series out."""
        with self._transaction() as db:
            db.executemany("DELETE FROM series WHERE id = ?", ((id,) for id in series))

    def _transaction(self) -> Transaction:
        return Transaction(self._db)


class Change(NamedTuple):
    """A value that is to be kept, or no longer."""

    kind: str
    name: str
    content: bytes | None


class Reader:
    """A connection that only reads; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False, isolation_level=None)

    def chunks(self, series: int, begin_ms: int, end_ms: int) -> list[bytes]:
        """Those that may have samples of a stretch, in order."""
        found = self._db.execute(
            "SELECT content FROM chunks WHERE series = ? AND begin >= ? AND begin <= ? AND end >= ? ORDER BY begin",
            (series, begin_ms - SPAN_MS, end_ms, begin_ms),
        )
        return [content for (content,) in found]

    def close(self) -> None:
        """End it."""
        self._db.close()
