"""What is kept: feeds, their listings and STIX objects, allow-list, sightings, verdicts. One SQLite database.

Everything here blocks; the server calls it from threads. What is acknowledged is on disk, and in the index.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from cdn_daemon.api import RefusedError
from services.threat_intel import rows as sql
from services.threat_intel.index import Index, Listings, Networks, patched
from services.threat_intel.limits import Limits
from services.threat_intel.patterns import BadPattern, read_pattern
from services.threat_intel.scoring import Feed, FeedKind, Listing
from services.threat_intel.stix import BadObject, StixObject, read_object, seconds_of
from services.threat_intel.values import Value, bounds
from services.writer import Writer

EXPIRED_AT_ONCE = 10_000
INBOX = "inbox"
"""The feed that is there from the beginning, for what TAXII clients add."""


class StoreError(Exception):
    """What is on disk cannot be used; the text says what to do."""


class ObjectRow(Struct, frozen=True):
    """A STIX object that was checked, and how it is stored."""

    found: StixObject
    raw: bytes
    values: tuple[Value, ...]


class Loaded(Struct):
    """What came of a feed's upload."""

    accepted: int = 0
    """Of a list its values, of a bundle its objects."""
    indexed: int = 0
    """Values that can be looked up now."""
    not_indexed: int = 0
    """Indicators whose pattern stands for no plain value; they are stored."""
    removed: int = 0
    rejected: int = 0
    examples: list[Rejected] = []
    """Of the rejected, the first ten."""


class Rejected(Struct, frozen=True):
    """What was not taken, and why."""

    what: str
    why: str


class Sighting(Struct, frozen=True, kw_only=True):
    """Something that was seen, as it is stored."""

    number: int = 0
    id: str
    value: str
    key: str
    kind: str
    seen_by: str
    count: int
    at_s: float
    score: float
    feeds: tuple[str, ...]
    cause: str | None = None


class Judged(Struct, frozen=True):
    """A person's word on a value that a feed lists."""

    feed: str
    key: str
    is_true: bool
    at_s: float


class Allowed(Struct, frozen=True):
    """An entry of the allow-list."""

    value: str
    type: str
    note: str
    at_s: float


class _Written(NamedTuple):
    """What a write has done, for the index to follow."""

    feed: Feed
    loaded: Loaded
    listed: dict[str, Listings | None]
    changes: dict[str, Any]
    listings: int
    """Of the feed."""
    objects: int | None = None
    """Of all feeds, where that may have changed."""


class _Ended(NamedTuple):
    """What a feed lists no more."""

    listed: dict[str, Listings | None]
    listings: int
    """That are left."""


class Store:
    """The database, and the index of what it lists."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.directory = directory
        self.limits = limits
        self.index = Index()
        """Replaced by each change, never changed itself but for what was sighted."""
        self.counts: dict[str, int] = {}
        """Listings of each feed."""
        self.objects = 0
        self.verdicts: dict[tuple[str, str], Judged] = {}
        self._writer: Writer | None = None
        self._readers: queue.SimpleQueue[apsw.Connection] = queue.SimpleQueue()
        self._opening = threading.Lock()
        self._added_us = 0
        self._version: object = None
        """SQLite's data_version as of the last look."""

    @property
    def path(self) -> Path:
        """The database."""
        return self.directory / "intel.db"

    @property
    def is_open(self) -> bool:
        """Whether there is something to read and write."""
        return self._writer is not None

    @property
    def writer(self) -> Writer:
        """The thread that writes; raises RefusedError while the store is not open."""
        if self._writer is None:
            raise RefusedError(503, "cannot write: the store is not open", next="try again")
        return self._writer

    def open(self) -> None:
        """Open the database, creating it and its directory (0700) if there is none, and read what it lists."""
        with self._opening:
            if self._writer is not None:
                return
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                connection = apsw.Connection(str(self.path))
                connection.set_busy_timeout(5_000)
                connection.pragma("journal_mode", "wal")
                connection.pragma("synchronous", "full")
                version = connection.pragma("user_version")
                if version not in (0, sql.VERSION):
                    raise StoreError(f"cannot use {self.path}: its version is {version}, this reads {sql.VERSION}")
                connection.execute(sql.SCHEMA)
                self._version = connection.pragma("data_version")
                self._load(connection)
            except (apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, msgspec.MsgspecError) as error:
                # To begin anew without what people had listed and allowed would be worse than not to begin.
                raise StoreError(f"cannot use {self.path}: {error}; mend it, or move it away") from error
            self._writer = Writer(connection, waiting=self.limits.writes_waiting)
            if not self.index.feeds:
                now_s = time.time()
                self._make(Feed(name=INBOX, kind=FeedKind.STIX, created_s=now_s, updated_s=now_s))

    def catch_up(self) -> None:
        """Read all anew if another process over the same database has changed it."""

        def look(connection: apsw.Connection) -> None:
            version = connection.pragma("data_version")  # changes with others' commits, not with this connection's own
            if version != self._version:
                self._load(connection)
                self._version = version

        self.writer.submit(look, urgent=True).result()

    def close(self) -> None:
        """Finish the writes that were accepted, then close the database."""
        with self._opening:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            while not self._readers.empty():
                self._readers.get().close()

    def answers(self) -> None:
        """Raises if the database cannot be read."""
        with self.reading() as connection:
            sql.query(connection, "SELECT count(*) FROM feeds")

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A connection that only reads, for this thread alone."""
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(5_000)
        try:
            yield connection
        finally:
            self._readers.put(connection)

    # -- reading what is there ----------------------------------------------------------------------------

    def _load(self, connection: apsw.Connection) -> None:
        feeds = {
            name: msgspec.json.decode(settings, type=Feed)
            for name, settings in sql.query(connection, "SELECT name, settings FROM feeds ORDER BY name")
        }
        hot: dict[str, Listings] = {}
        for name, feed in feeds.items():
            for key, listings in sql.listed_in(connection, name, networks_only=feed.is_cold):
                hot[key] = (*hot[key], *listings) if key in hot else listings
            self.counts[name] = sql.count_of(connection, name)
        allowed = frozenset(key for (key,) in sql.query(connection, "SELECT key FROM allowed"))
        self.index = Index(
            feeds=feeds,
            hot=hot,
            networks=sql.networks_in(connection),
            **sql.cold_of(connection, feeds),
            sighted=dict(
                sql.query(connection, "SELECT key, max(at_s) FROM sightings WHERE feeds <> '[]' GROUP BY key")
            ),
            allowed=allowed,
            allowed_networks=sql.allowed_networks_in(connection),
        )
        self._added_us = connection.execute("SELECT max(added_us) FROM objects").get or 0
        self.objects = sql.objects_in(connection)
        self.verdicts = {
            (feed, key): Judged(feed, key, bool(is_true), at_s)
            for feed, key, is_true, at_s in sql.query(connection, "SELECT feed, key, is_true, at_s FROM verdicts")
        }

    def confirm(self, key: str) -> Listings:
        """The listings of a key in the feeds that are cold."""
        found: Listings = ()
        with self.reading() as connection:
            for name, feed in self.index.feeds.items():
                if feed.is_cold:
                    for _, listings in sql.listed_in(connection, name, key=key):
                        found += listings
        return found

    def inside(self, value: Value) -> list[str]:
        """Keys of what is listed inside a network, one more than is shown at most."""
        low, high = bounds(value.key)
        bits = int(value.key.partition("/")[2])
        with self.reading() as connection:
            keys = sql.query(
                connection,
                "SELECT DISTINCT key FROM listings WHERE low BETWEEN ? AND ? LIMIT ?",
                (low, high, self.limits.inside + 34),  # the networks that begin where this one does are at most so many
            )
        return [key for (key,) in keys if int(key.partition("/")[2] or 999) > bits][: self.limits.inside + 1]

    def keys(self, feed: str, after: str, limit: int) -> list[str]:
        """What the feed lists, in the order of its keys, from the one after that."""
        with self.reading() as connection:
            found = sql.query(
                connection,
                "SELECT DISTINCT key FROM listings WHERE feed = ? AND key > ? ORDER BY key LIMIT ?",
                (feed, after, limit),
            )
        return [key for (key,) in found]

    def has_object(self, feed: str, id: str) -> bool:
        """Whether the feed has any version of it."""
        with self.reading() as connection:
            return bool(sql.query(connection, "SELECT 1 FROM objects WHERE id = ? AND feed = ? LIMIT 1", (id, feed)))

    # -- feeds --------------------------------------------------------------------------------------------

    def feed(self, name: str) -> Feed:
        """The feed of that name; raises RefusedError."""
        feed = self.index.feeds.get(name)
        if feed is None:
            raise RefusedError(404, "cannot find this feed", value=name, next="GET /feeds lists them")
        return feed

    def check_room(self, feed: str, more: int, *, is_whole: bool = False) -> None:
        """Raises RefusedError if so many listings more, or instead of the feed's own, were too many."""
        total = sum(self.counts.values()) + more - (self.counts.get(feed, 0) if is_whole else 0)
        if total > self.limits.listings:
            raise RefusedError(
                413, "cannot list so many values", value=total, limit=self.limits.listings, next="DELETE a feed"
            )
        if feed not in self.index.feeds and len(self.index.feeds) >= self.limits.feeds:
            raise RefusedError(409, "cannot keep one more feed", limit=self.limits.feeds, next="DELETE one")

    def tune(self, name: str, change: Callable[[Feed], Feed]) -> None:
        """Change a feed's settings, unless it was deleted meanwhile; the loop's way. Returns once that is on disk."""

        def write(connection: apsw.Connection) -> tuple[Feed, dict[str, Listings | None] | None, dict[str, Any]] | None:
            before = self.index.feeds.get(name)
            if before is None:
                return None
            feed = change(before)
            sql.write_feed(connection, feed)
            if before.is_cold == feed.is_cold:
                return feed, None, {}
            listed: dict[str, Listings | None] = dict(sql.listed_in(connection, name, networks_only=feed.is_cold))
            return feed, listed, sql.cold_of(connection, {**self.index.feeds, name: feed})

        def then(done: tuple[Feed, dict[str, Listings | None] | None, dict[str, Any]] | None) -> None:
            if done is None:
                return
            feed, listed, changes = done
            if listed is not None:
                gone = dict.fromkeys(sql.keys_of(self.index.hot, name))
                changes["hot"] = patched(self.index.hot, name, {**gone, **listed})
            self._swap(feeds={**self.index.feeds, name: feed}, **changes)

        self.writer.submit(write, then=then, urgent=True).result()

    def _make(self, feed: Feed) -> None:
        def then(_: None) -> None:
            self._swap(feeds={**self.index.feeds, feed.name: feed})
            self.counts[feed.name] = 0

        self.writer.submit(lambda connection: sql.write_feed(connection, feed), then=then, urgent=True).result()

    def _as_tuned(self, feed: Feed) -> Feed:
        """The settings that were sent, with what the loop has made of the feed by now."""
        now = self.index.feeds.get(feed.name)
        return feed if now is None else replace(feed, trust=now.trust, ageing=now.ageing, is_cold=now.is_cold)

    def put_list(self, feed: Feed, values: Sequence[Value], *, is_whole: bool) -> Loaded:
        """Have the feed list these values: only these, or these too. Returns once they are on disk."""
        now_s = feed.updated_s

        def write(connection: apsw.Connection) -> _Written:
            kept = self._as_tuned(feed)
            sql.write_feed(connection, kept)
            first = dict(sql.query(connection, "SELECT key, first_s FROM listings WHERE feed = ?", (feed.name,)))
            wanted = {value.key: value for value in values}
            gone = [key for key in first if key not in wanted] if is_whole else []
            connection.executemany(
                "DELETE FROM listings WHERE feed = ? AND key = ?", ((feed.name, key) for key in gone)
            )
            if is_whole:
                connection.execute("UPDATE listings SET last_s = ? WHERE feed = ?", (now_s, feed.name))
            else:
                connection.executemany(
                    "UPDATE listings SET last_s = ? WHERE feed = ? AND key = ?",
                    ((now_s, feed.name, key) for key in wanted if key in first),
                )
            connection.executemany(  # in the order of the table, which is twice as quick
                "INSERT INTO listings VALUES (?, ?, '', ?, ?, ?, ?, NULL, NULL)",
                (
                    (feed.name, key, str(wanted[key].kind), sql.low_of(wanted[key]), now_s, now_s)
                    for key in sorted(wanted)
                    if key not in first
                ),
            )
            shared: dict[float, Listings] = {}
            listed: dict[str, Listings | None] = dict.fromkeys(gone)
            for key in wanted:
                first_s = first.get(key, now_s)
                if first_s not in shared:
                    shared[first_s] = (Listing(feed.name, first_s, now_s),)
                listed[key] = shared[first_s]
            loaded = Loaded(accepted=len(wanted), indexed=len(wanted), removed=len(gone))
            count = sql.count_of(connection, feed.name)
            return _Written(kept, loaded, listed, self._changes(connection, kept, listed), count)

        return self._apply(write)

    def put_objects(self, feed: Feed, rows: Sequence[ObjectRow], *, is_whole: bool) -> Loaded:
        """Have the feed hold these STIX objects: only these, or these too. Returns once they are on disk."""

        def write(connection: apsw.Connection) -> _Written:
            kept = self._as_tuned(feed)
            sql.write_feed(connection, kept)
            loaded = Loaded(accepted=len(rows))
            touched: set[str] = set()
            # Another process over the same database may have added some since.
            self._added_us = max(self._added_us, connection.execute("SELECT max(added_us) FROM objects").get or 0)
            if is_whole:
                wanted = {row.found.id for row in rows}
                for (gone,) in sql.query(connection, "SELECT DISTINCT id FROM objects WHERE feed = ?", (feed.name,)):
                    if gone not in wanted:
                        touched |= sql.remove_object(connection, feed.name, gone)
                        loaded.removed += 1
            for row in rows:
                touched |= self._write_object(connection, feed, row)
                loaded.indexed += len(row.values)
                loaded.not_indexed += row.found.type == "indicator" and not row.values
            listed: dict[str, Listings | None] = {}
            for key in touched:
                listed[key] = next((listings for _, listings in sql.listed_in(connection, feed.name, key=key)), None)
            counts = sql.count_of(connection, feed.name), sql.objects_in(connection)
            return _Written(kept, loaded, listed, self._changes(connection, kept, listed), *counts)

        return self._apply(write)

    def _write_object(self, connection: apsw.Connection, feed: Feed, row: ObjectRow) -> set[str]:
        found, name = row.found, feed.name
        self._added_us = max(int(time.time() * 1e6), self._added_us + 1)
        version = found.version or sql.time_text(self._added_us)
        version_us = round(seconds_of(version) * 1e6)
        latest = connection.execute(
            "SELECT max(version_us) FROM objects WHERE id = ? AND feed = ?", (found.id, name)
        ).get
        if latest is not None and (found.version is None or version_us == latest):
            return set()  # what has no versions is what it was
        connection.execute(
            "INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._added_us,
                name,
                found.id,
                version,
                version_us,
                found.type,
                found.spec_version or "2.0",
                found.attack_id(),
                found.name,
                row.raw,
            ),
        )
        if latest is not None and version_us < latest:
            return set()
        touched = sql.unlist(connection, name, found.id) if latest is not None else set()
        if found.type == "relationship":
            connection.execute("DELETE FROM relations WHERE feed = ? AND id = ?", (name, found.id))
            if not found.revoked:
                connection.execute(
                    "INSERT INTO relations VALUES (?, ?, ?, ?, ?)",
                    (name, found.id, found.source_ref, found.relationship_type, found.target_ref),
                )
        if found.type == "indicator" and not found.revoked:
            first_s = seconds_of(found.valid_from or version)
            until_s = seconds_of(found.valid_until) if found.valid_until else None
            last_s = min(version_us / 1e6, time.time())
            connection.executemany(
                "INSERT OR REPLACE INTO listings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        name,
                        one.key,
                        found.id,
                        str(one.kind),
                        sql.low_of(one),
                        first_s,
                        last_s,
                        until_s,
                        found.confidence,
                    )
                    for one in row.values
                ],
            )
            touched |= {one.key for one in row.values}
        return touched

    def remove_object(self, feed: Feed, id: str, versions_us: Iterable[int] | None) -> None:
        """Forget an object, or these versions of it; the newest that is left counts. Raises RefusedError."""

        def write(connection: apsw.Connection) -> _Written:
            touched = sql.remove_object(connection, feed.name, id, versions_us)
            left = connection.execute(
                "SELECT json, added_us FROM objects WHERE id = ? AND feed = ? ORDER BY version_us DESC LIMIT 1",
                (id, feed.name),
            ).fetchone()
            if left is not None:  # written anew, it is listed anew
                connection.execute("DELETE FROM objects WHERE added_us = ?", (left[1],))
                touched |= self._write_object(connection, feed, checked(left[0], self.limits))
                connection.execute("UPDATE objects SET added_us = ? WHERE added_us = ?", (left[1], self._added_us))
            listed: dict[str, Listings | None] = {
                key: next((listings for _, listings in sql.listed_in(connection, feed.name, key=key)), None)
                for key in touched
            }
            kept = self._as_tuned(feed)
            counts = sql.count_of(connection, feed.name), sql.objects_in(connection)
            return _Written(kept, Loaded(), listed, self._changes(connection, kept, listed), *counts)

        self._apply(write)

    def remove_feed(self, name: str) -> None:
        """Forget the feed and all that it held; raises RefusedError."""
        self.feed(name)

        def write(connection: apsw.Connection) -> tuple[int, dict[str, Any]]:
            for table in ("listings", "objects", "relations", "verdicts"):
                connection.execute(f"DELETE FROM {table} WHERE feed = ?", (name,))
            connection.execute("DELETE FROM feeds WHERE name = ?", (name,))
            others = {other: feed for other, feed in self.index.feeds.items() if other != name}
            changes = {"networks": sql.networks_in(connection), **sql.cold_of(connection, others)}
            return sql.objects_in(connection), changes

        def then(done: tuple[int, dict[str, Any]]) -> None:
            self.objects, changes = done
            hot = patched(self.index.hot, name, dict.fromkeys(sql.keys_of(self.index.hot, name)))
            feeds = {other: feed for other, feed in self.index.feeds.items() if other != name}
            self._swap(feeds=feeds, hot=hot, **changes)
            self.counts.pop(name, None)
            for judged in [judged for judged in self.verdicts if judged[0] == name]:
                del self.verdicts[judged]

        self.writer.submit(write, then=then).result()

    def expire(self, now_s: float) -> int:
        """Forget listings that count no more, up to 10,000 of a feed; how many there were. STIX objects stay."""

        def write(connection: apsw.Connection) -> tuple[int, dict[str, _Ended], dict[str, Any]]:
            ended: dict[str, _Ended] = {}
            count = 0
            for name, feed in self.index.feeds.items():
                found = connection.execute(
                    "SELECT key, indicator FROM listings WHERE feed = ? AND (last_s <= ? OR until_s <= ?)",
                    (name, now_s - feed.ttl_s, now_s),
                )
                over = (row for row in found if now_s - self.index.sighted.get(row[0], 0.0) >= feed.ttl_s)
                rows = list(islice(over, EXPIRED_AT_ONCE))
                found.close()
                connection.executemany(
                    "DELETE FROM listings WHERE feed = ? AND key = ? AND indicator = ?", ((name, *row) for row in rows)
                )
                if rows:
                    count += len(rows)
                    listed = {
                        key: next((one for _, one in sql.listed_in(connection, name, key=key)), None) for key, _ in rows
                    }
                    ended[name] = _Ended(listed, sql.count_of(connection, name))
            changes = (
                {"networks": sql.networks_in(connection), **sql.cold_of(connection, self.index.feeds)} if ended else {}
            )
            return count, ended, changes

        def then(done: tuple[int, dict[str, _Ended], dict[str, Any]]) -> None:
            _, ended, changes = done
            hot = self.index.hot
            for name, (listed, count) in ended.items():
                hot = patched(hot, name, listed)
                self.counts[name] = count
            if ended:
                self._swap(hot=hot, **changes)

        return self.writer.submit(write, then=then, urgent=True).result()[0]

    def _changes(
        self, connection: apsw.Connection, feed: Feed, listed: Mapping[str, Listings | None]
    ) -> dict[str, Any]:
        """What of the index changes beside the feed's own listings."""
        changes: dict[str, Any] = {}
        networks = self.index.networks.keys
        if any(key in networks or "/" in key for key in listed):
            changes["networks"] = sql.networks_in(connection)
        if feed.is_cold:
            changes |= sql.cold_of(connection, {**self.index.feeds, feed.name: feed})
        return changes

    def _apply(self, write: Callable[[apsw.Connection], _Written]) -> Loaded:
        # The new dict is made after the commit: of writes that are committed together each builds on the one before.
        def then(done: _Written) -> None:
            feed, _, listed, changes, count, objects = done
            self.counts[feed.name] = count
            self.objects = self.objects if objects is None else objects
            if feed.is_cold:
                networks = changes.get("networks", self.index.networks).keys
                listed = {key: listings for key, listings in listed.items() if listings is None or key in networks}
            hot = patched(self.index.hot, feed.name, listed)
            self._swap(feeds={**self.index.feeds, feed.name: feed}, hot=hot, **changes)

        return self.writer.submit(write, then=then).result().loaded

    def _swap(self, **changes: Any) -> None:
        self.index = replace(self.index, **changes)

    def guard(self, *, is_guarded: bool) -> None:
        """Ask for the networks of an address only if one begins as it does, or always; the loop's. Not kept on disk."""
        self.writer.submit(lambda _: None, then=lambda _: self._swap(is_guarded=is_guarded), urgent=True).result()

    # -- allow-list, sightings, verdicts ------------------------------------------------------------------

    def allow(self, values: Sequence[Value], note: str) -> None:
        """Have the values, and what lies below them, never called malicious. Returns once that is on disk."""
        if len(self.index.allowed) + len(values) > self.limits.allowed:
            raise RefusedError(409, "cannot allow so many", limit=self.limits.allowed, next="DELETE some")

        def write(connection: apsw.Connection) -> Networks:
            connection.executemany(
                "INSERT OR REPLACE INTO allowed VALUES (?, ?, ?, ?)",
                [(value.key, str(value.kind), note, time.time()) for value in values],
            )
            return sql.allowed_networks_in(connection)

        def then(networks: Networks) -> None:
            self._swap(allowed=self.index.allowed | {value.key for value in values}, allowed_networks=networks)

        self.writer.submit(write, then=then).result()

    def disallow(self, value: Value) -> None:
        """Take it from the allow-list; raises RefusedError if it is not on it."""
        if value.key not in self.index.allowed:
            raise RefusedError(404, "cannot find this on the allow-list", value=value.key, next="GET /allow lists it")

        def write(connection: apsw.Connection) -> Networks:
            connection.execute("DELETE FROM allowed WHERE key = ?", (value.key,))
            return sql.allowed_networks_in(connection)

        def then(networks: Networks) -> None:
            self._swap(allowed=self.index.allowed - {value.key}, allowed_networks=networks)

        self.writer.submit(write, then=then).result()

    def allow_list(self) -> list[Allowed]:
        """All of it."""
        with self.reading() as connection:
            rows = sql.query(connection, "SELECT key, kind, note, at_s FROM allowed ORDER BY key")
        return [Allowed(*row) for row in rows]

    def sight(self, sightings: Sequence[Sighting]) -> list[Sighting]:
        """Keep what was seen; those that are new, with their numbers, once they are on disk."""

        def write(connection: apsw.Connection) -> list[Sighting]:
            fresh = []
            for one in sightings:
                connection.execute(
                    "INSERT OR IGNORE INTO sightings VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        one.id,
                        one.value,
                        one.key,
                        one.kind,
                        one.seen_by,
                        one.count,
                        one.at_s,
                        one.score,
                        msgspec.json.encode(one.feeds),
                        one.cause,
                    ),
                )
                if connection.changes():
                    fresh.append(replace(one, number=connection.last_insert_rowid()))
            if fresh:
                connection.execute(
                    "DELETE FROM sightings WHERE number <= ?", (fresh[-1].number - self.limits.sightings_kept,)
                )
            return fresh

        def then(fresh: list[Sighting]) -> None:
            sighted = self.index.sighted
            for one in fresh:
                if one.feeds and one.at_s > sighted.get(one.key, 0.0):
                    sighted[one.key] = one.at_s

        return self.writer.submit(write, then=then).result()

    def sightings(self, *, after: int, limit: int, key: str | None = None) -> list[Sighting]:
        """Those after that number, in their order."""
        where, given = ("AND key = ? ", [after, key, limit]) if key is not None else ("", [after, limit])
        with self.reading() as connection:
            return [
                _sighting(*row)
                for row in sql.query(connection, f"{_SIGHTINGS} WHERE number > ? {where}ORDER BY number LIMIT ?", given)
            ]

    def newest(self, limit: int) -> list[Sighting]:
        """The last sightings, in their order."""
        with self.reading() as connection:
            newest = sql.query(connection, f"{_SIGHTINGS} ORDER BY number DESC LIMIT ?", [limit])
        return [_sighting(*row) for row in reversed(newest)]

    def judge(self, judged: Sequence[Judged], judged_by: str) -> None:
        """Keep people's words, the last one for each feed and value. Returns once they are on disk."""

        def write(connection: apsw.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?)",
                [(one.feed, one.key, one.is_true, one.at_s, judged_by) for one in judged],
            )

        def then(_: None) -> None:
            for one in judged:
                self.verdicts.pop((one.feed, one.key), None)
                self.verdicts[one.feed, one.key] = one

        if len(self.verdicts) + len(judged) > self.limits.verdicts_kept:
            self._forget_verdicts(len(judged) + self.limits.verdicts_kept // 10)
        self.writer.submit(write, then=then).result()

    def _forget_verdicts(self, count: int) -> None:
        oldest = sorted(self.verdicts.values(), key=lambda one: one.at_s)[:count]

        def write(connection: apsw.Connection) -> None:
            connection.executemany(
                "DELETE FROM verdicts WHERE feed = ? AND key = ?", [(one.feed, one.key) for one in oldest]
            )

        def then(_: None) -> None:
            for one in oldest:
                self.verdicts.pop((one.feed, one.key), None)

        self.writer.submit(write, then=then).result()

    # -- TAXII's statuses ---------------------------------------------------------------------------------

    def keep_status(self, id: str, content: bytes) -> None:
        """Keep the status of a request to add objects."""

        def write(connection: apsw.Connection) -> None:
            connection.execute("INSERT INTO statuses VALUES (NULL, ?, ?)", (id, content))
            connection.execute(
                "DELETE FROM statuses WHERE number <= (SELECT max(number) FROM statuses) - ?",
                (self.limits.statuses_kept,),
            )

        self.writer.submit(write).result()

    def status(self, id: str) -> bytes | None:
        """The status of that id."""
        with self.reading() as connection:
            found: bytes | None = connection.execute("SELECT json FROM statuses WHERE id = ?", (id,)).get
        return found


def checked(raw: bytes | msgspec.Raw, limits: Limits) -> ObjectRow:
    """The object, ready to be stored; raises BadObject."""
    found = read_object(raw, limits.object_bytes)
    values: tuple[Value, ...] = ()
    if found.type == "indicator" and found.pattern is not None and found.pattern_type in (None, "stix"):
        if len(found.pattern) > limits.pattern_chars:
            raise BadObject(f"its pattern is longer than {limits.pattern_chars} characters")
        try:
            values = read_pattern(found.pattern)
        except BadPattern as error:
            raise BadObject(str(error)) from error
    return ObjectRow(found, bytes(raw), values)


def new_status_id() -> str:
    """As TAXII has it, a UUID."""
    return str(uuid.uuid4())


_SIGHTINGS = "SELECT number, id, value, key, kind, seen_by, count, at_s, score, feeds, cause FROM sightings"


def _sighting(*row: Any) -> Sighting:
    number, id, value, key, kind, seen_by, count, at_s, score, feeds, cause = row
    return Sighting(
        number=number,
        id=id,
        value=value,
        key=key,
        kind=kind,
        seen_by=seen_by,
        count=count,
        at_s=at_s,
        score=score,
        feeds=msgspec.json.decode(feeds, type=tuple[str, ...]),
        cause=cause,
    )
