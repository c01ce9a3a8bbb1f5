"""What may be asked of history: SQL in, messages out. Bounded answers; sqlite3.Error is passed on.

What cannot be read, as it is damaged or of a later version, is left out and counted.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from bus.messages import CommandView, Event, PostMortem
from bus.postmortems import Filed
from services.atlas import samples
from services.atlas.samples import Row

T = TypeVar("T")

CAUSE = "json_extract(CAST(event AS TEXT), '$.cause')"
"""Of an event; store.py has an index of just this expression."""

BUCKET_S = 60
QUARTER_S = 900
"""What a row of ``seconds`` and of ``minutes`` spans."""
SPILL_S = 60
"""A chunk may reach so far into the bucket after its own."""


@dataclass(frozen=True)
class Life:
    """An incarnation as its daemon's statuses tell it. Unix times."""

    instance: str
    incarnation: int
    host: str
    pid: int
    started_s: float
    heard_s: float


class Queries:
    """Questions to the tables of store.py, on that connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.unreadable = 0
        """Chunks, events, commands and post-mortems that were none."""

    def seconds(self, name: str, since_s: float, until_s: float) -> list[Row]:
        """SECOND rows of an instance, oldest first."""
        instance = self.number_of(name)
        return [] if instance is None else self.rows("seconds", instance, since_s, until_s)

    def minutes(self, name: str, since_s: float, until_s: float) -> list[Row]:
        """ROLLUP rows of an instance, oldest first; there are none yet for the last quarter of an hour or so."""
        instance = self.number_of(name)
        return [] if instance is None else self.rows("minutes", instance, since_s, until_s)

    def rolled_until_s(self, name: str) -> float:
        """Until when there are minutes of that instance; 0.0 if there are none."""
        instance = self.number_of(name)
        newest, oldest = (self._connection.execute(f"SELECT {which}(bucket) FROM minutes").fetchone()[0]
                          for which in ("max", "min"))  # fmt: skip
        for quarter in range(newest or 0, max((oldest or 0), (newest or 0) - 8) - 1, -1):
            row = self._connection.execute(
                "SELECT 1 FROM minutes WHERE bucket = ? AND instance = ?", (quarter, instance)
            )
            if row.fetchone() is not None:
                return (quarter + 1) * float(QUARTER_S)
        return 0.0

    def rows(self, table: str, instance: int, since_s: float, until_s: float) -> list[Row]:
        """Rows of one of the two tables, oldest first, by the instance's number; damaged ones are left out."""
        span_s, columns = (BUCKET_S, len(samples.SECOND)) if table == "seconds" else (QUARTER_S, len(samples.ROLLUP))
        spill_s = SPILL_S if table == "seconds" else 0
        oldest, newest = (self._connection.execute(f"SELECT {which}(bucket) FROM {table}").fetchone()[0]
                          for which in ("min", "max"))  # fmt: skip
        if oldest is None:
            return []
        wanted = range(max(oldest, int(since_s - spill_s) // span_s), 1 + min(newest, int(until_s) // span_s))
        rows: list[Row] = []
        for low in range(wanted.start, wanted.stop, 1000):
            buckets = range(low, min(low + 1000, wanted.stop))
            found = self._connection.execute(
                f"SELECT chunk FROM {table} WHERE instance = ? AND bucket IN ({','.join('?' * len(buckets))})",
                (instance, *buckets),
            )
            for (chunk,) in found:
                try:
                    rows += samples.unpack(chunk, columns) if chunk else []
                except ValueError:
                    self.unreadable += 1
        return sorted((row for row in rows if since_s <= (row[0] or 0) < until_s), key=lambda row: row[0] or 0)

    def number_of(self, name: str) -> int | None:
        """The number that an instance has in the tables of metrics; None if there are none of it."""
        row = self._connection.execute("SELECT id FROM instances WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def newest_s(self) -> float | None:
        """The newest time of anything; None if there is nothing."""
        (bucket,) = self._connection.execute("SELECT max(bucket) FROM seconds").fetchone()
        (event_s,) = self._connection.execute("SELECT max(time_s) FROM events").fetchone()
        times = [time_s for time_s in (event_s, None if bucket is None else bucket * BUCKET_S) if time_s is not None]
        return max(times, default=None)

    def newest_events(self, limit: int) -> list[Event]:
        """The newest, oldest first."""
        found = self._connection.execute("SELECT event FROM events ORDER BY seq DESC LIMIT ?", (limit,))
        return self._all(found, Event)[::-1]

    def events(
        self,
        *,
        instance: str | None = None,
        kind: str | None = None,
        since_s: float = 0.0,
        until_s: float | None = None,
        before: tuple[float, int] | None = None,
        limit: int = 100,
    ) -> list[tuple[tuple[float, int], Event]]:
        """Events, newest first, each with its place; ``before`` is such a place."""
        conditions, values = ["time_s >= ?"], [since_s]
        more: list[object] = []
        if until_s is not None:
            conditions, more = [*conditions, "time_s < ?"], [*more, until_s]
        if instance is not None:
            conditions, more = [*conditions, "instance = ?"], [*more, instance]
        if kind is not None:
            conditions, more = [*conditions, "kind = ?"], [*more, kind]
        if before is not None:
            conditions, more = [*conditions, "(time_s, seq) < (?, ?)"], [*more, *before]
        found = self._connection.execute(
            f"SELECT time_s, seq, event FROM events WHERE {' AND '.join(conditions)} "
            "ORDER BY time_s DESC, seq DESC LIMIT ?",
            (*values, *more, limit),
        ).fetchall()
        return [
            ((time_s, seq), told) for time_s, seq, event in found if (told := self._decoded(event, Event)) is not None
        ]

    def event(self, id_: str) -> Event | None:
        """The event with that id."""
        found = self._all(self._connection.execute("SELECT event FROM events WHERE id = ?", (id_,)), Event)
        return found[0] if found else None

    def events_beginning(self, prefix: str, limit: int) -> list[Event]:
        """Events whose ids begin so."""
        found = self._connection.execute(
            "SELECT event FROM events WHERE id >= ? AND id < ? LIMIT ?", (prefix, f"{prefix}\U0010ffff", limit)
        )
        return self._all(found, Event)

    def events_caused_by(self, id_: str, limit: int) -> list[Event]:
        """Events whose cause is that event or command, oldest first."""
        found = self._connection.execute(
            f"SELECT event FROM events WHERE {CAUSE} = ? ORDER BY seq LIMIT ?", (id_, limit)
        )
        return self._all(found, Event)

    def commands(self, name: str | None, since_s: float, until_s: float, limit: int) -> list[CommandView]:
        """Commands that were asked in that time and have ended, newest first."""
        named = "name = ? AND " if name is not None else ""
        found = self._connection.execute(
            f"SELECT command FROM commands WHERE {named}asked_at_s >= ? AND asked_at_s < ? "
            "ORDER BY asked_at_s DESC LIMIT ?",
            (*([name] if name is not None else []), since_s, until_s, limit),
        )
        return self._all(found, CommandView)

    def end_keys(self) -> set[str]:
        """Keys of all post-mortems."""
        return {key for (key,) in self._connection.execute("SELECT key FROM postmortems")}

    def ends(self, instance: str, *, before_s: float | None, limit: int) -> list[Filed]:
        """Post-mortems, newest first."""
        found = self._connection.execute(
            "SELECT key, ended_s, report FROM postmortems WHERE instance = ? AND ended_s < ? "
            "ORDER BY ended_s DESC LIMIT ?",
            (instance, 1e18 if before_s is None else before_s, limit),
        ).fetchall()
        return [filed for row in found if (filed := self._filed(*row)) is not None]

    def end(self, instance: str, *, key: str | None = None, incarnation: int | None = None) -> Filed | None:
        """One post-mortem; the newest if that incarnation has several."""
        column, value = ("key", key) if key is not None else ("incarnation", incarnation)
        row = self._connection.execute(
            f"SELECT key, ended_s, report FROM postmortems WHERE instance = ? AND {column} = ? "
            "ORDER BY ended_s DESC LIMIT 1",
            (instance, value),
        ).fetchone()
        return None if row is None else self._filed(*row)

    def count_ends(self, instance: str, since_s: float, until_s: float) -> int:
        """Ends after the one moment, and up to the other."""
        found = self._connection.execute(
            "SELECT count(*) FROM postmortems WHERE instance = ? AND ended_s > ? AND ended_s <= ?",
            (instance, since_s, until_s),
        )
        return int(found.fetchone()[0])

    def lives(self, instance: str, *, before_s: float | None, limit: int) -> list[Life]:
        """Incarnations, those heard last first; of those heard before that."""
        found = self._connection.execute(
            "SELECT instance, incarnation, host, pid, started_s, heard_s FROM incarnations "
            "WHERE instance = ? AND heard_s < ? ORDER BY heard_s DESC LIMIT ?",
            (instance, 1e18 if before_s is None else before_s, limit),
        )
        return [Life(*row) for row in found]

    def life(self, instance: str, *, incarnation: int | None = None, pid: int | None = None) -> Life | None:
        """One incarnation; by pid the latest that had it."""
        column, value = ("incarnation", incarnation) if incarnation is not None else ("pid", pid)
        row = self._connection.execute(
            "SELECT instance, incarnation, host, pid, started_s, heard_s FROM incarnations "
            f"WHERE instance = ? AND {column} = ? ORDER BY incarnation DESC LIMIT 1",
            (instance, value),
        ).fetchone()
        return None if row is None else Life(*row)

    def names(self) -> list[str]:
        """Every instance of which there is anything."""
        found = self._connection.execute(
            "SELECT name FROM instances UNION SELECT instance FROM incarnations UNION SELECT instance FROM postmortems"
        )
        return [name for (name,) in found]

    def interrupt_after(self, instructions: int) -> None:
        """Have a question fail that takes more of SQLite's steps than that; 0: let it run."""
        self._connection.set_progress_handler((lambda: 1) if instructions else None, instructions)

    def _all(self, found: Iterable[tuple[bytes]], type_: type[T]) -> list[T]:
        return [told for (content,) in found if (told := self._decoded(content, type_)) is not None]

    def _decoded(self, content: bytes, type_: type[T]) -> T | None:
        try:
            return msgspec.json.decode(content, type=type_)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.unreadable += 1
            return None

    def _filed(self, key: str, ended_s: float, report: bytes) -> Filed | None:
        try:
            told = self._decoded(zlib.decompress(report), PostMortem)
        except zlib.error:
            self.unreadable += 1
            return None
        return None if told is None else Filed(Path(f"{key}.json"), ended_s, told)
