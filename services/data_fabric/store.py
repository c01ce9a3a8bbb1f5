"""The store: one SQLite database, its writer, its catalogue, and what may be done to them.

Everything here blocks; the server calls it from threads. Nothing is opened before open().
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeAlias

import apsw
import msgspec

from bus.messages import Event
from cdn_daemon.api import RefusedError
from services.data_fabric import catalogue as catalogues
from services.data_fabric import changes, ingest
from services.data_fabric.candidates import IndexSpec
from services.data_fabric.catalogue import Catalogue, Source
from services.data_fabric.convert import DiskFullError, Part, UnusableError, convert
from services.data_fabric.ingest import Column, Table
from services.data_fabric.limits import Limits
from services.data_fabric.plans import columns_sql, quoted
from services.data_fabric.reader import Reader, attach
from services.data_fabric.workload import Workload
from services.disk import no_room
from services.writer import Writer

FILES_VARIABLE = "CDN_FABRIC_FILES"
_Load: TypeAlias = "tuple[str, Table, Generator[tuple[Any, ...], None, None]]"
"""A table to be made: its name, its columns, its rows."""
EVENTS = "events"
EVENTS_SCHEMA = """
CREATE TABLE events(
    id TEXT PRIMARY KEY NOT NULL, cause TEXT, kind TEXT NOT NULL, at_s REAL NOT NULL, instance TEXT NOT NULL,
    text TEXT NOT NULL, facts TEXT NOT NULL
) STRICT;
CREATE INDEX events_cause ON events(cause);
"""
ANALYSIS_ROWS = 1_000
"""Rows that ANALYZE looks at per index: enough to tell a good index from a bad one (sqlite.org/pragma.html)."""


class Store:
    """A directory with the database, uploads under way, and the SQLite files that may be attached."""

    def __init__(
        self, directory: Path, limits: Limits | None = None, files: Path | None = None, spool: Path | None = None
    ) -> None:
        self.directory = directory
        self.spool = spool if spool is not None else directory / "spool"
        """Uploads that are under way; this process's own, as what it finds there it removes."""
        self.limits = limits if limits is not None else Limits()
        self.files = files if files is not None else Path(os.environ.get(FILES_VARIABLE) or directory / "files")
        """Only what lies below it can be attached."""
        self.committed: Callable[[], None] = lambda: None
        """Called on the writer's thread after each commit; to be set before open()."""
        self.workload = Workload()
        self.catalogue = Catalogue()
        self.rows: dict[str, int] = {}
        self._writer: Writer | None = None
        self._opening = threading.Lock()
        self._changes: changes.Log | None = None
        self._watcher: apsw.Connection | None = None
        self._version = 0
        """SQLite's data_version as of the last look."""
        self._signature: tuple[object, ...] = ()
        """Of the database that the catalogue is of."""

    @property
    def path(self) -> Path:
        """The database."""
        return self.directory / "fabric.db"

    @property
    def is_open(self) -> bool:
        """Whether there is something to read and write."""
        return self._writer is not None

    def open(self) -> None:
        """Open the database, creating it and its directory (0700) if there is none. A second call does nothing."""
        with self._opening:
            if self._writer is not None:
                return
            for directory in (self.directory, self.spool):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in self.spool.iterdir():  # of a process that was killed; none of it was acknowledged
                leftover.unlink()
            apsw.hard_heap_limit(self.limits.heap_bytes)
            connection = apsw.Connection(str(self.path))
            connection.set_busy_timeout(5_000)
            for pragma, value in (("journal_mode", "wal"), ("synchronous", "full"), ("analysis_limit", ANALYSIS_ROWS)):
                connection.pragma(pragma, value)
            connection.execute(catalogues.SCHEMA)
            connection.execute(changes.SCHEMA)
            self.catalogue = catalogues.read(connection, 1)
            self.rows = {name: catalogues.row_count(connection, name) for name in self.catalogue.tables}
            self._signature = catalogues.signature(connection)
            self._changes = changes.Log(self.path)
            self._watcher = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
            self._writer = Writer(connection, waiting=self.limits.writes_waiting, committed=self.committed)

    def close(self) -> None:
        """Finish the writes that were accepted, then close the database."""
        with self._opening:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            watcher, self._watcher = self._watcher, None
            if watcher is not None:
                watcher.close()
            changed, self._changes = self._changes, None
            if changed is not None:
                changed.close()

    def is_behind(self) -> bool:
        """Whether another process over the same database has changed what there is. Quick; on one thread only."""
        watcher = self._watcher
        if watcher is None:
            return False
        try:
            version = watcher.pragma("data_version")
            if version == self._version:
                return False
            if catalogues.signature(watcher) != self._signature:
                return True
        except apsw.Error:
            return False  # the request itself will tell what is wrong with the database
        self._version = version
        return False

    def catch_up(self) -> None:
        """Read the catalogue anew."""
        self._refresh()

    @property
    def writer(self) -> Writer:
        """The thread that writes; raises RefusedError while the store is not open."""
        if self._writer is None:
            raise RefusedError(503, "cannot write: the store is not open", next="try again")
        return self._writer

    def changes(self) -> changes.Log:
        """The changes so far; raises RefusedError while the store is not open."""
        if self._changes is None:
            raise RefusedError(503, "cannot tell of changes: the store is not open", next="try again")
        return self._changes

    def reader(self) -> Reader:
        """A new read-only connection."""
        return Reader(self.path, self.limits, self.files)

    def answers(self) -> None:
        """Open the database anew and read from it; raises if that does not work."""
        reader = self.reader()
        try:
            reader.connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        finally:
            reader.close()

    # -- sources ------------------------------------------------------------------------------------------

    def load(self, name: str, kind: str, path: Path, *, replace: bool) -> Source:
        """Make a table of a file, or two of a graph: all of it, or nothing. Raises RefusedError."""
        self.check_free(name, replace)
        with ExitStack() as opened:
            loads = self._tables(name, kind, path, opened)
            for each, _, _ in loads:
                self.check_free(each, replace)
            sources = [Source(name=each, kind=kind, created_s=time.time()) for each, _, _ in loads]

            def write(connection: apsw.Connection) -> None:
                for source, (each, table, rows) in zip(sources, loads, strict=True):
                    self.check_free(each, replace)
                    if replace:
                        self._forget(connection, each)
                    _create(connection, each, table)
                    places = ", ".join("?" * len(table.columns))
                    connection.executemany(f"INSERT INTO {quoted(each)} VALUES ({places})", rows)
                    self._remember(connection, source)
                    rows_of = (1, table.rows) if table.rows else (None, None)
                    changes.note(connection, each, "loaded", *rows_of)

            self.writer.submit(write).result()
        self._refresh()
        return sources[0]

    def _tables(self, name: str, kind: str, path: Path, opened: ExitStack) -> list[_Load]:
        """What the file becomes; opened closes and removes what that takes."""
        rows: Generator[tuple[Any, ...], None, None]
        if kind == "csv":
            table = ingest.check_csv(path, self.limits)
            rows = opened.enter_context(closing(ingest.read_csv(path, table, self.limits)))
            return [(name, table, rows)]
        if kind == "ndjson":
            parts, unit = [Part("", str(path), ())], "line"
        else:
            lines, unit = path.with_suffix(".lines"), "row"
            for made in (lines, lines.with_suffix(".nodes")):
                opened.callback(made.unlink, missing_ok=True)
            try:
                parts = convert(kind, path, lines)
            except UnusableError as error:
                what, value = error.args
                raise RefusedError(422, f"cannot load the file as {kind}: {what}", value=value) from error
            except DiskFullError as error:
                raise no_room(self.spool) from error
        loads = []
        for part in parts:
            table = ingest.check_ndjson(Path(part.path), self.limits, unit, part.columns)
            # Closed in any case: else a failure keeps the file open, and a full disk full.
            rows = opened.enter_context(closing(ingest.read_ndjson(Path(part.path), table, self.limits)))
            loads.append((name + part.suffix, table, rows))
        return loads

    def attach(self, name: str, path: str, *, replace: bool) -> Source:
        """Have a SQLite file below the directory of files attached under the name. Raises RefusedError."""
        self.check_free(name, replace)
        if len(self.catalogue.files()) >= self.limits.files:
            raise RefusedError(409, "cannot attach one more file", limit=f"{self.limits.files} files", next="drop one")
        real = resolve(self.files, path)
        probe = apsw.Connection(":memory:", flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)
        try:
            attach(probe, name, real)
        except apsw.Error as error:
            raise RefusedError(
                422, f"cannot attach the file: {error}", value=path, next="it must be a SQLite 3 database"
            ) from error
        finally:
            probe.close()
        relative = str(real.relative_to(self.files.resolve()))
        source = Source(name=name, kind="sqlite", path=relative, created_s=time.time())

        def write(connection: apsw.Connection) -> None:
            self.check_free(name, replace)
            if replace:
                self._forget(connection, name)
            self._remember(connection, source)
            changes.note(connection, name, "attached")

        self.writer.submit(write).result()
        self._refresh()
        return source

    def drop(self, name: str) -> None:
        """Forget a source, and drop its table; a SQLite file itself is left alone. Raises RefusedError."""
        known = self.source(name)

        def write(connection: apsw.Connection) -> None:
            self._forget(connection, known.name)
            changes.note(connection, known.name, "dropped")

        self.writer.submit(write).result()
        self._refresh()

    def source(self, name: str) -> Source:
        """The source of that name (case does not matter); raises RefusedError if there is none."""
        for source in self.catalogue.sources.values():
            if source.name.lower() == name.lower():
                return source
        raise RefusedError(404, "cannot find this source", value=name, next="GET /sources lists them")

    def table(self, name: str) -> tuple[str, tuple[Column, ...]]:
        """Name and columns of a loaded table; raises RefusedError if there is none."""
        for known, columns in self.catalogue.tables.items():
            if known.lower() == name.lower():
                return known, columns
        raise RefusedError(404, "cannot find this table", value=name, next="GET /sources lists what there is")

    def describe(self, name: str) -> list[tuple[str, str, tuple[Column, ...]]]:
        """(name, table or view, columns) of what a source holds; raises RefusedError."""
        source = self.source(name)
        if source.kind != "sqlite":
            return [(source.name, "table", self.catalogue.tables[source.name])]
        probe = apsw.Connection(":memory:", flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)
        try:
            attach(probe, source.name, self.files / str(source.path))
            held = probe.execute(
                f"SELECT name, type FROM {quoted(source.name)}.sqlite_schema "
                "WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name LIMIT 1000"
            ).fetchall()
            return [
                (f"{source.name}.{table}", str(kind), _columns(probe, source.name, str(table))) for table, kind in held
            ]
        except apsw.Error as error:
            raise RefusedError(
                502,
                f"cannot read the attached file: {error}",
                value=source.path,
                next="put it back, or DELETE the source",
            ) from error
        finally:
            probe.close()

    # -- rows ---------------------------------------------------------------------------------------------

    def insert(self, name: str, rows: Sequence[object]) -> Future[int]:
        """Append rows, each an array or an object; the Future has the last row's id once all are on disk.

        Raises RefusedError at once for rows that do not fit the columns; the Future raises it
        for values that do not fit their types. Either way no row is inserted.
        """
        table, columns = self.table(name)
        names = [column.name for column in columns]
        if self.source(table).kind == EVENTS:
            raise RefusedError(403, "cannot insert into the events: they are what the services have said", value=table)
        values = [_row(row, names, at) for at, row in enumerate(rows, 1)]
        places = ", ".join("?" * len(names))
        sql = f"INSERT INTO {quoted(table)} VALUES ({places})"

        def write(connection: apsw.Connection) -> int:
            for at, row in enumerate(values, 1):
                try:
                    connection.execute(sql, row)
                except (apsw.ConstraintError, apsw.TooBigError) as error:
                    raise RefusedError(422, f"cannot insert row {at}: {error}", next="none was inserted") from error
                except apsw.SQLError as error:  # dropped or replaced, since the request was checked
                    raise RefusedError(409, f"cannot insert into this table: {error}", value=table) from error
            last = connection.last_insert_rowid()
            changes.note(connection, table, "inserted", last - len(values) + 1, last)
            return last

        def written(last: int) -> None:
            self.rows[table] = last
            self.workload.wrote(table, len(values))

        return self.writer.submit(write, then=written)

    def hear(self, event: Event) -> Future[bool]:
        """Append an event to the table of events, made if there is none; the Future says whether it was made.

        An event that is there already is left as it is. The Future raises RefusedError if a table that is somebody's
        own has that name.
        """
        row = (
            event.id,
            event.cause,
            event.kind,
            event.time_s,
            event.instance,
            event.text,
            msgspec.json.encode(event.facts).decode(),
        )

        def write(connection: apsw.Connection) -> bool:
            kind = connection.execute("SELECT kind FROM _cdn_sources WHERE name = ?", (EVENTS,)).get
            made = kind is None
            if made:
                connection.execute(EVENTS_SCHEMA)
                self._remember(connection, Source(name=EVENTS, kind=EVENTS, created_s=time.time()))
            elif kind != EVENTS:
                raise RefusedError(409, "cannot keep events: there is a source of that name", value=EVENTS)
            if connection.execute("SELECT 1 FROM events WHERE id = ?", (event.id,)).get is None:
                connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                last = connection.last_insert_rowid()
                connection.execute("DELETE FROM events WHERE _rowid_ <= ?", (last - self.limits.events,))
                changes.note(connection, EVENTS, "inserted", last, last)
                self.rows[EVENTS] = min(last, self.limits.events)
            return made

        return self.writer.submit(write, urgent=True)

    # -- the tuner's indexes --------------------------------------------------------------------------------

    def create_index(self, spec: IndexSpec) -> None:
        """Make an index, and learn how selective it is; the tuner's action."""
        name = catalogues.index_name(spec)

        def write(connection: apsw.Connection) -> None:
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS {quoted(name)} ON {quoted(spec.table)} ({columns_sql(spec)})"
            )
            connection.execute(f"ANALYZE {quoted(name)}")

        self.writer.submit(write, urgent=True).result()
        self._refresh()

    def drop_index(self, spec: IndexSpec) -> None:
        """Drop an index that create_index made; nothing happens if it is gone."""
        name = catalogues.index_name(spec)
        self.writer.submit(
            lambda connection: connection.execute(f"DROP INDEX IF EXISTS {quoted(name)}"), urgent=True
        ).result()
        self._refresh()

    # -- the catalogue --------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        def look(connection: apsw.Connection) -> None:
            self.catalogue = catalogues.read(connection, self.catalogue.generation + 1)
            self._signature = catalogues.signature(connection)
            self.rows = {name: catalogues.row_count(connection, name) for name in self.catalogue.tables}

        self.writer.submit(look, urgent=True).result()

    def check_free(self, name: str, replace: bool) -> None:
        """Whether a source of that name can be made; raises RefusedError."""
        ingest.check_name(name)
        taken = any(known.lower() == name.lower() for known in self.catalogue.sources)
        if taken and not replace:
            raise RefusedError(
                409,
                "cannot make this source: there is one of that name",
                value=name,
                next="PUT replaces it, DELETE drops it",
            )
        if not taken and len(self.catalogue.sources) >= self.limits.sources:
            raise RefusedError(409, "cannot make one more source", limit=f"{self.limits.sources} sources")

    def _forget(self, connection: apsw.Connection, name: str) -> None:
        connection.execute(f"DROP TABLE IF EXISTS {quoted(name)}")
        connection.execute("DELETE FROM _cdn_sources WHERE name = ?", (name,))

    def _remember(self, connection: apsw.Connection, source: Source) -> None:
        try:
            connection.execute(
                "INSERT INTO _cdn_sources VALUES (?, ?, ?, ?)",
                (source.name, source.kind, source.path, source.created_s),
            )
        except apsw.ConstraintError as error:  # two of that name were under way at once
            raise RefusedError(
                409, "cannot make this source: there is one of that name", value=source.name, next="PUT replaces it"
            ) from error


def _columns(connection: apsw.Connection, schema: str, table: str) -> tuple[Column, ...]:
    """The columns of a table or view; none for a view that does not work."""
    try:
        rows = connection.execute("SELECT name, type FROM pragma_table_xinfo(?, ?)", (table, schema)).fetchall()
    except apsw.SQLError:
        return ()
    return tuple(Column(str(name), str(declared)) for name, declared in rows)


def _create(connection: apsw.Connection, name: str, table: Table) -> None:
    declared = ", ".join(f"{quoted(column.name)} {column.type}" for column in table.columns)
    try:
        connection.execute(f"CREATE TABLE {quoted(name)} ({declared}) STRICT")
    except apsw.SQLError as error:
        if "already exists" not in str(error):
            raise
        raise RefusedError(
            409, "cannot make this source: there is one of that name", value=name, next="PUT replaces it"
        ) from error


def _row(row: object, names: list[str], at: int) -> tuple[Any, ...]:
    try:
        if isinstance(row, dict):
            if unknown := row.keys() - set(names):
                raise ValueError(f"there is no column {', '.join(map(repr, sorted(unknown)))}")
            return tuple([ingest.storable(row.get(name)) for name in names])
        if isinstance(row, list):
            if len(row) != len(names):
                raise ValueError(f"it has {len(row)} values, the table {len(names)} columns")
            return tuple([ingest.storable(value) for value in row])
        raise ValueError("a row is an array or an object")
    except ValueError as error:
        raise RefusedError(422, f"cannot insert row {at}: {error}", value=row, next="none was inserted") from error


def resolve(files: Path, path: str) -> Path:
    """The real path of a regular file below files; links count where they lead. Raises RefusedError."""
    refusal = RefusedError(
        403,
        "cannot attach this path",
        value=path,
        limit=f"files below {files}",
        next=f"put it there, or set {FILES_VARIABLE}",
    )
    if "\0" in path or not path:
        raise refusal
    root = files.resolve()
    try:
        real = (root / path).resolve(strict=True)
        if not real.is_relative_to(root) or real == root:
            raise refusal
        if not stat.S_ISREG(real.stat().st_mode):
            raise refusal
    except (OSError, RuntimeError) as error:
        raise RefusedError(404, "cannot find this file", value=path, limit=f"files below {files}") from error
    return real
