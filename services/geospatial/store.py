"""What is kept: collections, tracks, fences, crossings. One SQLite database, and a layer in memory of each collection.

Everything here blocks, but for what returns a Future. What is acknowledged is on disk, and can be found.
"""

from __future__ import annotations

import fcntl
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec
import numpy as np
from msgspec.structs import replace

from bus.ids import new_id
from cdn_daemon.api import RefusedError
from services.geospatial import rows as sql
from services.geospatial.fences import Crossing, Fences, Position, crossed
from services.geospatial.geojson import BadGeoJSON, read_feature, read_features
from services.geospatial.indexes import breathe
from services.geospatial.layer import Change, Layer
from services.geospatial.limits import Limits
from services.geospatial.rows import Row, Settings
from services.geospatial.table import Slots
from services.geospatial.times import written
from services.json_path import member
from services.writer import Writer

TRACKS = "tracks"
"""The collection of where each moving object is now; written by positions alone."""
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
CHUNK = 500
OLD_EVERY = 10_000
"""So many positions or crossings are written before the oldest are looked for."""


class StoreError(Exception):
    """What is on disk cannot be used; the text says what to do."""


class Collection(NamedTuple):
    """A collection: its row, and what is in memory of it."""

    id: int
    settings: Settings
    layer: Layer


class Moved(NamedTuple):
    """What came of positions."""

    accepted: int
    ignored: int
    """Those that were no newer than what was known of their object."""
    crossings: list[Crossing]


class Store:
    """The database and the layers."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.directory = directory
        self.limits = limits
        self.collections: dict[str, Collection] = {}
        """Replaced by each change of it, never changed itself."""
        self.fences = Fences({})
        self._fences_now = self.fences
        """As of the transaction that is open; the writer's thread's own."""
        self._collecting = threading.Lock()
        """Held by who makes or deletes a collection until that is done."""
        self.crossing = 0
        """Number of the last one."""
        self.positions_total = 0
        self.ignored_total = 0
        self._number = 0
        """Of the last feature; the writer's thread alone counts it on."""
        self._writer: Writer | None = None
        self._readers: queue.SimpleQueue[apsw.Connection] = queue.SimpleQueue()
        self._lock_fd: int | None = None
        self._since_swept = 0

    # -- opening and closing ------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The database."""
        return self.directory / "places.db"

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
        """Open the database, creating it and its directory (0700) if there is none, and read what it has."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"cannot use {self.path}: another process has it; stop that one first") from error
        try:
            connection = apsw.Connection(str(self.path))
            connection.set_busy_timeout(5_000)
            connection.pragma("journal_mode", "wal")
            connection.pragma("synchronous", "full")
            version = connection.pragma("user_version")
            if version not in (0, sql.VERSION):
                raise StoreError(f"cannot use {self.path}: its version is {version}, this reads {sql.VERSION}")
            connection.execute(sql.SCHEMA)
            self._load(connection)
        except (apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, msgspec.MsgspecError) as error:
            raise StoreError(f"cannot use {self.path}: {error}; mend it, or move it away") from error
        self._writer = Writer(connection, waiting=self.limits.writes_waiting)
        if TRACKS not in self.collections:
            self.make(TRACKS, title="What moves", description="Where each object is now, as its last position says.")

    def _load(self, connection: apsw.Connection) -> None:
        for id, name, settings in sql.query(connection, "SELECT id, name, settings FROM collections ORDER BY id"):
            table, shapes = sql.loaded(connection, id)
            layer = Layer(name, self.limits)
            layer.replace(table, shapes)
            layer.tally.writes = 0
            self.collections[name] = Collection(id, msgspec.json.decode(settings, type=Settings), layer)
        self._number = _sequence(connection, "features")
        self.crossing = _sequence(connection, "crossings")
        self._load_fences(connection)

    def _load_fences(self, connection: apsw.Connection) -> None:
        found = sql.query(connection, "SELECT id, wkb FROM fences ORDER BY id")
        shapes = {}
        if found:
            import shapely

            shapes = {id: shapely.from_wkb(wkb) for id, wkb in found}
        self.fences = self._fences_now = Fences(shapes)

    def close(self) -> None:
        """Finish the writes that were accepted, then close the database."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        while not self._readers.empty():
            self._readers.get().close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def answers(self) -> None:
        """Raises if the database cannot be read."""
        with self.reading() as connection:
            sql.query(connection, "SELECT count(*) FROM collections")

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

    # -- collections --------------------------------------------------------------------------------------

    def collection(self, name: str) -> Collection:
        """The collection of that name; raises RefusedError."""
        found = self.collections.get(name)
        if found is None:
            raise no_collection(name)
        return found

    def writable(self, name: str) -> None:
        """Raises RefusedError if there can be no collection of this name, or none that is written so."""
        if not NAMES.fullmatch(name):
            limit = "1 to 64 letters, digits, '_', '.' and '-'"
            raise RefusedError(400, "cannot use this name for a collection", value=name, limit=limit)
        if name == TRACKS:
            raise RefusedError(
                409, "cannot write this collection: it shows what moves", value=name, next="PUT /tracks/OBJECT"
            )

    def make(self, name: str, *, title: str = "", description: str = "") -> None:
        """A new collection, empty; the title and description of one that is there."""

        def write(connection: apsw.Connection) -> Collection:
            return self._made(connection, name, title, description)

        with self._collecting:
            self.writer.submit(write, then=lambda made: self._show(name, made), urgent=True).result()

    def _made(self, connection: apsw.Connection, name: str, title: str, description: str) -> Collection:
        """On the writer's thread."""
        now_s = time.time()
        known = self.collections.get(name)
        if known is None:
            if len(self.collections) >= self.limits.collections:
                limit = self.limits.collections
                raise RefusedError(409, "cannot keep one more collection", limit=limit, next="DELETE one")
            settings = Settings(
                title=title,
                description=description,
                created_s=now_s,
                updated_s=now_s,
                names=("object", "datetime") if name == TRACKS else (),
            )
            connection.execute(
                "INSERT INTO collections (name, settings) VALUES (?, ?)", (name, msgspec.json.encode(settings))
            )
            return Collection(connection.last_insert_rowid(), settings, Layer(name, self.limits))
        settings = replace(
            known.settings,
            title=title or known.settings.title,
            description=description or known.settings.description,
            updated_s=now_s,
        )
        return known._replace(settings=settings)

    def _show(self, name: str, collection: Collection) -> None:
        self.collections = {**self.collections, name: collection}

    def _named(
        self, connection: apsw.Connection, made: Collection, rows: Sequence[Row], *, is_whole: bool
    ) -> Collection:
        """The collection, with the names of the properties that its features have."""
        # The settings on disk, as a write before this one in the same transaction may have changed them.
        stored = connection.execute("SELECT settings FROM collections WHERE id = ?", (made.id,)).get
        if stored is None:
            raise no_collection(made.layer.name)
        before = made.settings if is_whole else msgspec.json.decode(stored, type=Settings)
        names = dict.fromkeys(() if is_whole else before.names)
        for row in rows:
            names.update(dict.fromkeys(row.feature.names))
        settings = replace(before, names=tuple(names)[: self.limits.properties])
        connection.execute("UPDATE collections SET settings = ? WHERE id = ?", (msgspec.json.encode(settings), made.id))
        return made._replace(settings=settings)

    def drop(self, name: str) -> None:
        """No such collection any more; raises RefusedError."""
        self.writable(name)

        def write(connection: apsw.Connection) -> None:
            found = self.collection(name)
            connection.execute("DELETE FROM features WHERE collection = ?", (found.id,))
            connection.execute("DELETE FROM collections WHERE id = ?", (found.id,))

        def then(_: None) -> None:
            self.collections = {key: value for key, value in self.collections.items() if key != name}

        with self._collecting:
            self.writer.submit(write, then=then).result()

    def read(self, body: bytes) -> list[Row]:
        """The features of an upload, all checked; raises RefusedError if one cannot be taken."""
        rows: list[Row] = []
        at = 0
        try:
            for at, raw in enumerate(read_features(body)):
                rows.append(Row(read_feature(raw, self.limits)))
                if at % CHUNK == CHUNK - 1:
                    breathe()
        except BadGeoJSON as error:
            raise RefusedError(
                422, f"cannot take this GeoJSON: {error}", value=f"feature {at}", limit="RFC 7946"
            ) from error
        return _shaped(rows)

    def put_whole(self, name: str, rows: Sequence[Row], *, title: str = "", description: str = "") -> int:
        """Have the collection hold these features and no others; how many. Returns once they are on disk."""
        self.writable(name)
        by_fid: dict[str, Row] = {}
        for at, row in enumerate(rows):
            by_fid[row.feature.fid or f"\0{at}"] = row  # of two with one id the last one holds
        wanted = list(by_fid.values())
        known = self.collections.get(name)
        self._check_room(wanted, instead_of=known.layer if known else None)

        def write(connection: apsw.Connection) -> tuple[Collection, list[int]]:
            made = self._named(connection, self._made(connection, name, title, description), wanted, is_whole=True)
            numbers = list(range(self._number + 1, self._number + 1 + len(wanted)))
            connection.execute("DELETE FROM features WHERE collection = ?", (made.id,))
            connection.executemany(
                sql.PUT, (row.stored(number, made.id) for row, number in zip(wanted, numbers, strict=True))
            )
            self._number += len(wanted)
            return made, numbers

        def then(done: tuple[Collection, list[int]]) -> None:
            made, numbers = done
            made.layer.replace(*sql.made(wanted, numbers))
            self._show(name, made)

        with self._collecting:
            self.writer.submit(write, then=then).result()
        return len(wanted)

    def put(self, name: str, rows: Sequence[Row], *, is_new: bool = False) -> tuple[list[str], int]:
        """Add features, and replace those that have the same ids; their ids, and how many were new.

        With is_new those with ids that are there are refused. Raises RefusedError.
        """
        self.writable(name)
        self._check_room(rows)

        def write(connection: apsw.Connection) -> tuple[Collection, list[int], list[str], int]:
            found = self.collection(name)
            numbers, fids, new, numbered = [], [], 0, self._number
            for row in rows:
                fid = row.feature.fid
                number = None if fid is None else _number(connection, found.id, fid)
                if number is None:
                    number = numbered = numbered + 1
                    while fid is None and _number(connection, found.id, str(number)) is not None:
                        number = numbered = numbered + 1
                    new += 1
                elif is_new:
                    raise RefusedError(409, "cannot add this feature: its id is there", value=fid, next="PUT it")
                stored = row.stored(number, found.id)
                connection.execute(sql.PUT, stored)
                numbers.append(number)
                fids.append(stored[2])
            made = self._named(connection, found, rows, is_whole=False)
            self._number = numbered
            return made, numbers, fids, new

        def then(done: tuple[Collection, list[int], list[str], int]) -> None:
            made, numbers, _, _ = done
            made.layer.apply(row.change(number) for row, number in zip(rows, numbers, strict=True))
            self._show(name, made)

        _, _, fids, new = self.writer.submit(write, then=then).result()
        return fids, new

    def remove(self, name: str, fid: str) -> None:
        """The feature is no more; raises RefusedError if it was not."""
        self.writable(name)

        def write(connection: apsw.Connection) -> tuple[Collection, int]:
            found = self.collection(name)
            number = _number(connection, found.id, fid)
            if number is None:
                raise no_feature(fid)
            connection.execute("DELETE FROM features WHERE number = ?", (number,))
            return found, number

        self.writer.submit(write, then=lambda done: done[0].layer.apply((), (done[1],))).result()

    def _check_room(self, rows: Sequence[Row], instead_of: Layer | None = None) -> None:
        layers = [one.layer for one in self.collections.values() if one.layer is not instead_of]
        features = len(rows) + sum(layer.table.live for layer in layers)
        if features > self.limits.features:
            raise RefusedError(
                413, "cannot keep so many features", value=features, limit=self.limits.features, next="DELETE some"
            )
        vertices = sum(row.feature.vertices for row in rows if row.wkb) + sum(layer.vertices() for layer in layers)
        if vertices > self.limits.vertices_kept:
            raise RefusedError(
                413,
                "cannot keep so many positions",
                value=vertices,
                limit=self.limits.vertices_kept,
                next="DELETE some",
            )

    # -- reading ------------------------------------------------------------------------------------------

    def bodies(self, numbers: Sequence[int]) -> list[str]:
        """The features; those that are gone by now are left out."""
        found = []
        with self.reading() as connection:
            for number in numbers:
                for (body,) in connection.execute("SELECT body FROM features WHERE number = ?", (number,)):
                    found.append(body)
        return found

    def body(self, name: str, fid: str) -> str:
        """One feature; raises RefusedError."""
        found = self.collection(name)
        with self.reading() as connection:
            body = connection.execute("SELECT body FROM features WHERE collection = ? AND fid = ?", (found.id, fid)).get
        if body is None:
            raise no_feature(fid)
        return str(body)

    def having(self, collection: Collection, numbers: Slots, wanted: dict[str, str]) -> Slots:
        """Those of the numbers whose features have properties with these values; or RefusedError."""
        paths = [member("properties", name) for name in wanted]
        condition = " AND ".join(f"{_TEXT_OF} = ?" for _ in wanted)
        bindings: list[Any] = [each for pair in zip(paths, paths, wanted.values(), strict=True) for each in pair]
        deadline_s = time.monotonic() + self.limits.query_s
        with self.reading() as connection:
            connection.set_progress_handler(lambda: time.monotonic() > deadline_s, 10_000)
            try:
                if len(numbers) <= CHUNK:
                    statement = f"SELECT number FROM features WHERE number = ? AND {condition}"
                    found = [
                        row[0]
                        for number in numbers.tolist()
                        for row in connection.execute(statement, [number, *bindings])
                    ]
                else:
                    statement = f"SELECT number FROM features WHERE collection = ? AND {condition}"
                    found = [row[0] for row in connection.execute(statement, [collection.id, *bindings])]
            except apsw.InterruptError as error:
                raise RefusedError(
                    503, "cannot answer in time", limit=f"{self.limits.query_s:g} s", next="ask for a smaller bbox"
                ) from error
            finally:
                connection.set_progress_handler(None)
        return np.intersect1d(numbers, np.array(found, np.int64))

    # -- tracks -------------------------------------------------------------------------------------------

    def move(self, positions: Sequence[Position]) -> Future[Moved]:
        """Objects were there; the Future ends once that is on disk, and found. Raises RefusedError."""
        ordered = sorted(positions, key=lambda one: one.at_s)
        changes: list[Change] = []

        def write(connection: apsw.Connection) -> Moved:
            tracks, first = self.collections[TRACKS], self._number
            known: dict[str, tuple[int, float]] = {}
            fresh: list[Position] = []
            for one in ordered:
                last = (
                    known.get(one.object)
                    or connection.execute(
                        "SELECT number, begin_s FROM features WHERE collection = ? AND fid = ?", (tracks.id, one.object)
                    ).fetchone()
                )
                if last is not None and one.at_s <= last[1]:
                    continue
                if last is None:
                    if tracks.layer.table.live + self._number - first >= self.limits.tracks:
                        raise RefusedError(409, "cannot follow one more object", limit=self.limits.tracks)
                    self._number += 1
                known[one.object] = (last[0] if last else self._number, one.at_s)
                fresh.append(one)
            connection.executemany(
                "INSERT INTO positions (object, at_s, lon, lat) VALUES (?, ?, ?, ?)",
                [(one.object, one.at_s, one.lon, one.lat) for one in fresh],
            )
            rows = [
                (_track(one, self.limits), known[one.object][0]) for one in {one.object: one for one in fresh}.values()
            ]
            rows.sort(key=lambda pair: pair[1])
            connection.executemany(sql.PUT, [row.stored(number, tracks.id) for row, number in rows])
            changes.extend(row.change(number) for row, number in rows)
            crossings = self._cross(connection, fresh)
            self._sweep(connection, len(fresh))
            return Moved(len(fresh), len(ordered) - len(fresh), crossings)

        def then(moved: Moved) -> None:
            self.crossing = moved.crossings[-1].number if moved.crossings else self.crossing
            self.positions_total += moved.accepted
            self.ignored_total += moved.ignored
            self.collections[TRACKS].layer.apply(changes)

        return self.writer.submit(write, then=then)

    def _cross(self, connection: apsw.Connection, fresh: Sequence[Position]) -> list[Crossing]:
        if not self._fences_now.shapes:
            return []
        inside = {
            object: frozenset(
                fence for (fence,) in connection.execute("SELECT fence FROM inside WHERE object = ?", (object,))
            )
            for object in {one.object for one in fresh}
        }
        crossings = []
        found = crossed(fresh, self._fences_now.within(fresh), inside)
        for number, (position, fence, crossing) in enumerate(found, _sequence(connection, "crossings") + 1):
            one = Crossing(
                number=number,
                id=new_id(),
                object=position.object,
                fence=fence,
                crossing=crossing,
                lon=position.lon,
                lat=position.lat,
                at_s=position.at_s,
            )
            connection.execute(
                "INSERT INTO crossings VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (number, one.id, one.object, fence, crossing, one.lon, one.lat, one.at_s),
            )
            change = (
                "INSERT OR IGNORE INTO inside VALUES (?, ?)"
                if crossing == "enter"
                else "DELETE FROM inside WHERE object = ? AND fence = ?"
            )
            connection.execute(change, (one.object, fence))
            crossings.append(one)
        return crossings

    def _sweep(self, connection: apsw.Connection, written: int) -> None:
        """Forget the oldest, now and then."""
        self._since_swept += written
        if self._since_swept < OLD_EVERY:
            return
        self._since_swept = 0
        for table, kept in (("positions", self.limits.positions_kept), ("crossings", self.limits.crossings_kept)):
            connection.execute(f"DELETE FROM {table} WHERE number <= ?", (_sequence(connection, table) - kept,))

    def path_of(self, object: str, begin_s: float, end_s: float, limit: int) -> list[tuple[float, float, float]]:
        """The newest (at_s, lon, lat) of an object in that time, in the order of time; raises RefusedError."""
        with self.reading() as connection:
            found = sql.query(
                connection,
                "SELECT at_s, lon, lat FROM positions WHERE object = ? AND at_s BETWEEN ? AND ? "
                "ORDER BY at_s DESC LIMIT ?",
                (object, begin_s, end_s, limit),
            )
            if not found:
                self._followed(connection, object)
        return found[::-1]

    def _followed(self, connection: apsw.Connection, object: str) -> int:
        """Number of the object's feature; raises RefusedError."""
        number = _number(connection, self.collections[TRACKS].id, object)
        if number is None:
            raise RefusedError(404, "cannot find this object", value=object, next="GET /collections/tracks/items")
        return number

    def forget(self, object: str) -> None:
        """The object is followed no more, and what is known of it is gone."""

        def write(connection: apsw.Connection) -> int:
            number = self._followed(connection, object)
            connection.execute("DELETE FROM features WHERE number = ?", (number,))
            connection.execute("DELETE FROM positions WHERE object = ?", (object,))
            connection.execute("DELETE FROM inside WHERE object = ?", (object,))
            return number

        def then(number: int) -> None:
            self.collections[TRACKS].layer.apply((), (number,))

        self.writer.submit(write, then=then).result()

    # -- fences -------------------------------------------------------------------------------------------

    def put_fence(self, id: str, row: Row) -> bool:
        """There is a fence, and it is so; whether it is new. What is inside already crosses nothing."""
        if not NAMES.fullmatch(id):
            limit = "1 to 64 letters, digits, '_', '.' and '-'"
            raise RefusedError(400, "cannot use this name for a fence", value=id, limit=limit)
        if row.shape is None or row.shape.geom_type not in ("Polygon", "MultiPolygon"):
            raise RefusedError(422, "cannot fence this: it must be a Polygon or MultiPolygon", value=id)
        if row.feature.vertices > self.limits.fence_vertices:
            raise RefusedError(
                422,
                "cannot fence this: too many positions",
                value=row.feature.vertices,
                limit=self.limits.fence_vertices,
            )

        def write(connection: apsw.Connection) -> bool:
            now = self._fences_now
            is_new = id not in now.shapes
            if is_new and len(now.shapes) >= self.limits.fences:
                raise RefusedError(409, "cannot keep one more fence", limit=self.limits.fences, next="DELETE one")
            connection.execute("INSERT OR REPLACE INTO fences VALUES (?, ?, ?)", (id, row.feature.body(id), row.wkb))
            connection.execute("DELETE FROM inside WHERE fence = ?", (id,))
            here = [
                Position(object, lon, lat, 0.0)
                for object, lon, lat in connection.execute(
                    "SELECT fid, west, south FROM features WHERE collection = ?", (self.collections[TRACKS].id,)
                )
            ]
            within = zip(here, Fences({id: row.shape}).within(here), strict=True)
            connection.executemany("INSERT INTO inside VALUES (?, ?)", [(one.object, id) for one, any in within if any])
            self._fences_now = Fences({**now.shapes, id: row.shape})
            return is_new

        return self._fenced(write)

    def drop_fence(self, id: str) -> None:
        """No such fence any more; raises RefusedError if there was none."""

        def write(connection: apsw.Connection) -> bool:
            shapes = dict(self._fences_now.shapes)
            if shapes.pop(id, None) is None:
                raise no_fence(id)
            connection.execute("DELETE FROM fences WHERE id = ?", (id,))
            connection.execute("DELETE FROM inside WHERE fence = ?", (id,))
            self._fences_now = Fences(shapes)
            return False

        self._fenced(write)

    def _fenced(self, write: Callable[[apsw.Connection], bool]) -> bool:
        """Have the fences changed; if that fails they are as they are on disk."""

        def then(_: bool) -> None:
            self.fences = self._fences_now

        try:
            return self.writer.submit(write, then=then).result()
        except Exception:
            self.writer.submit(self._load_fences, urgent=True).result()
            raise

    def fence_bodies(self, id: str | None = None) -> list[str]:
        """All, or the one; raises RefusedError if that is not there."""
        with self.reading() as connection:
            found = sql.query(connection, "SELECT body FROM fences WHERE ?1 IS NULL OR id = ?1 ORDER BY id", (id,))
        if id is not None and not found:
            raise no_fence(id)
        return [body for (body,) in found]

    def crossings(self, after: int, limit: int, fence: str | None = None, object: str | None = None) -> list[Crossing]:
        """In order, from the one after that number."""
        with self.reading() as connection:
            found = sql.query(
                connection,
                "SELECT number, id, object, fence, crossing, lon, lat, at_s FROM crossings WHERE number > ?1 "
                "AND (?2 IS NULL OR fence = ?2) AND (?3 IS NULL OR object = ?3) ORDER BY number LIMIT ?4",
                (after, fence, object, limit),
            )
        return [
            Crossing(number=n, id=i, object=o, fence=f, crossing=c, lon=x, lat=y, at_s=t)
            for n, i, o, f, c, x, y, t in found
        ]


# What JSON calls true is 1 to json_extract; a query string says true.
_TEXT_OF = (
    "CASE json_type(body, ?) WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' "
    "ELSE CAST(json_extract(body, ?) AS TEXT) END"
)


def no_collection(name: str) -> RefusedError:
    """There is none of that name."""
    return RefusedError(404, "cannot find this collection", value=name, next="GET /collections lists them")


def no_fence(id: str) -> RefusedError:
    """There is none of that name."""
    return RefusedError(404, "cannot find this fence", value=id, next="GET /fences lists them")


def no_feature(fid: str) -> RefusedError:
    """There is none of that id."""
    return RefusedError(404, "cannot find this feature", value=fid)


def _sequence(connection: apsw.Connection, table: str) -> int:
    """The largest number that the table ever had."""
    return connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).get or 0


def _number(connection: apsw.Connection, collection: int, fid: str) -> int | None:
    number: int | None = connection.execute(
        "SELECT number FROM features WHERE collection = ? AND fid = ?", (collection, fid)
    ).get
    return number


def _shaped(rows: list[Row]) -> list[Row]:
    """With the shapes of those that are no points; raises RefusedError."""
    at = [place for place, row in enumerate(rows) if row.feature.bounds is not None and not row.feature.is_point]
    if not at:
        return rows
    import shapely

    for start in range(0, len(at), CHUNK):
        some = at[start : start + CHUNK]
        try:
            shapes = shapely.from_geojson([rows[place].feature.geometry for place in some])
        except shapely.errors.GEOSException as error:
            raise RefusedError(422, f"cannot take this GeoJSON: {error}", limit="RFC 7946") from error
        for place, shape, wkb in zip(some, shapes, shapely.to_wkb(shapes), strict=True):
            rows[place] = Row(rows[place].feature, wkb, shape)
        breathe()
    return rows


def _track(one: Position, limits: Limits) -> Row:
    """Where an object is now, as a feature."""
    feature = {
        "type": "Feature",
        "id": one.object,
        "geometry": {"type": "Point", "coordinates": [one.lon, one.lat]},
        "properties": {"object": one.object, "datetime": written(one.at_s)},
    }
    found = read_feature(msgspec.json.encode(feature), limits)
    return Row(replace(found, time=(one.at_s, one.at_s)))  # to the microsecond, and not as it is written
