"""One read-only connection, and a statement run on it within its limits.

Two locks hold the door: the connection is opened read-only, and an authorizer
allows nothing but reading. A third, for one statement at a time, keeps what
comes after the first semicolon from running at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
from msgspec import Struct

from cdn_daemon.api import RefusedError
from services.data_fabric.breath import breathe
from services.data_fabric.catalogue import Catalogue
from services.data_fabric.infer import Value
from services.data_fabric.limits import Limits
from services.data_fabric.plans import Params, quoted
from services.data_fabric.workload import Sample
from services.disk import is_full

BATCH_BYTES = 256 * 1024
BATCH_ROWS = 512
PROGRESS_STEPS = 50_000
"""Between looks at the clock: about half a millisecond of SQLite's work."""

_ALLOWED = {apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "edit", "writefile", "readfile"}
_STATISTICS = {
    "vm_steps": "SQLITE_STMTSTATUS_VM_STEP",
    "fullscan_steps": "SQLITE_STMTSTATUS_FULLSCAN_STEP",
    "sorts": "SQLITE_STMTSTATUS_SORT",
    "autoindexes": "SQLITE_STMTSTATUS_AUTOINDEX",
}


class Query(Struct, frozen=True, kw_only=True):
    """A statement to run, with its bounds."""

    sql: str
    params: Params = ()
    timeout_s: float
    rows: int
    """Rows to return at most; it is learnt whether there are more."""
    tuned: bool = True
    """Whether the index tuner should know of it."""


class Batch(Struct, frozen=True, kw_only=True):
    """Some rows of an answer. There is at least one batch, if an empty one."""

    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    more: bool = False
    """On the last batch: there were more rows than were asked for."""
    elapsed_s: float = 0.0
    """Since the statement began."""


class CancelledError(Exception):
    """Nobody takes the answer, or not in time."""


def may_read(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    """The authorizer (sqlite.org/c3ref/set_authorizer.html): reading, and nothing else."""
    allowed = (
        action in _ALLOWED
        or (action == apsw.SQLITE_READ and not (first or "").lower().startswith("_cdn_"))
        or (action == apsw.SQLITE_FUNCTION and (second or "").lower() not in _FORBIDDEN_FUNCTIONS)
    )
    return apsw.SQLITE_OK if allowed else apsw.SQLITE_DENY


class Reader:
    """A read-only connection to the store and the attached files. One thread uses it at a time."""

    def __init__(self, path: Path, limits: Limits, files: Path) -> None:
        self._limits = limits
        self._files = files
        self._deadline_s = 0.0
        self._gone = threading.Event()
        self._running = False
        self._lock = threading.Lock()
        self._status: dict[str, int] = {}
        self._attached: dict[str, str | None] = {}
        self.generation = -1
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        self.connection = connection
        connection.set_busy_timeout(1_000)
        for option, value in (
            (apsw.SQLITE_DBCONFIG_DEFENSIVE, 1),
            (apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0),
            (apsw.SQLITE_DBCONFIG_DQS_DML, 0),  # "US" is a column, not a string: else a misspelt column is no error
            (apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0),
        ):
            connection.config(option, value)
        for limit, value in (
            (apsw.SQLITE_LIMIT_LENGTH, limits.field_bytes),
            (apsw.SQLITE_LIMIT_SQL_LENGTH, 4 * limits.sql_chars + 100),
            (apsw.SQLITE_LIMIT_COLUMN, limits.columns),
            (apsw.SQLITE_LIMIT_COMPOUND_SELECT, 100),
            (apsw.SQLITE_LIMIT_EXPR_DEPTH, 200),
            (apsw.SQLITE_LIMIT_VDBE_OP, 250_000),
            (apsw.SQLITE_LIMIT_VARIABLE_NUMBER, limits.params),
            (apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
            (apsw.SQLITE_LIMIT_WORKER_THREADS, 0),
        ):
            connection.limit(limit, value)
        connection.pragma("query_only", True)
        connection.pragma("cell_size_check", True)
        connection.pragma("cache_size", -8_000)
        connection.authorizer = may_read
        connection.set_progress_handler(self._out_of_time, PROGRESS_STEPS)
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, self._profiled)

    def follow(self, catalogue: Catalogue) -> None:
        """Have exactly those files attached that the catalogue names."""
        if self.generation == catalogue.generation:
            return
        wanted = {source.name: source.path for source in catalogue.files()}
        self.connection.authorizer = None
        try:
            for name in [name for name, path in self._attached.items() if wanted.get(name) != path]:
                self.connection.execute(f"DETACH {quoted(name)}")
                del self._attached[name]
            for name, path in wanted.items():
                if name not in self._attached:
                    try:
                        attach(self.connection, name, self._files / str(path))
                    except apsw.Error:  # it has gone since: its queries fail with "no such table", others do not
                        continue
                    self._attached[name] = path
        finally:
            self.connection.authorizer = may_read
        self.generation = catalogue.generation

    def stop_if_late(self) -> None:
        """Interrupt the statement that runs if its time is over or nobody waits for it; from another thread.

        SQLite sees this once per row it visits, where the progress handler counts
        steps, of which one may take long.
        """
        with self._lock:
            if self._running and self._out_of_time():
                self.connection.interrupt()

    def run(
        self, query: Query, measured: Callable[[Sample], None], gone: threading.Event | None = None
    ) -> Generator[Batch, None, None]:
        """Run the statement; yield its rows. measured is told once it has ended well.

        Raises RefusedError, or CancelledError once gone is set.
        """
        self._status = {}
        with self._lock:
            self._gone = gone or threading.Event()
            self._deadline_s = time.monotonic() + query.timeout_s
            self._running = True
        begun = 0

        def one_statement(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
            nonlocal begun
            begun += 1
            if begun > 1:
                raise RefusedError(
                    400, "cannot run more than one statement", limit="1 statement", next="send one request for each"
                )
            if not cursor.is_readonly:
                raise RefusedError(
                    403, "cannot run a statement that writes", next="POST /tables/NAME/rows inserts rows"
                )
            return True

        cursor = self.connection.cursor()
        wall_s, cpu_s, count, more = time.perf_counter(), 0.0, 0, False
        try:
            cursor.exec_trace = one_statement
            started_s = time.thread_time()
            cursor.execute(query.sql, query.params)
            columns = self._columns(cursor, query) if begun else ()
            if not columns:
                raise RefusedError(400, "cannot run this: there is no SELECT in it", value=query.sql)
            ended = False
            while not ended:
                rows, size, ended = [], 0, True
                for row in cursor:
                    if count == query.rows:
                        more = True
                        break
                    rows.append(row)
                    count += 1
                    size += weight(row)
                    if size > BATCH_BYTES or len(rows) == BATCH_ROWS:
                        ended = False
                        break
                cpu_s += time.thread_time() - started_s
                if not ended:
                    yield Batch(columns=columns, rows=rows, elapsed_s=time.perf_counter() - wall_s)
                    breathe()
                    started_s = time.thread_time()
            cursor.close(True)
            wall_s = time.perf_counter() - wall_s
            measured(Sample(cpu_s=cpu_s, wall_s=wall_s, rows=count, **self._counters()))
            yield Batch(columns=columns, rows=rows, more=more, elapsed_s=wall_s)
        except (apsw.Error, UnicodeDecodeError, OverflowError, TypeError, KeyError) as error:
            raise self._refusal(error, query) from error
        finally:
            cursor.close(True)
            with self._lock:
                self._running = False

    def _columns(self, cursor: apsw.Cursor, query: Query) -> tuple[str, ...]:
        """The columns of a statement that runs: of the tables as they are, which may not be those it was prepared for.

        After the last row SQLite tells no more, so a statement without rows is prepared once again, and not run.
        """
        try:
            return _names(cursor)
        except apsw.ExecutionCompleteError:
            columns: tuple[str, ...] = ()

        def look(cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
            nonlocal columns
            columns = _names(cursor) if cursor.has_vdbe else ()
            return False

        again = self.connection.cursor()
        again.exec_trace = look
        with suppress(apsw.ExecTraceAbort):
            again.execute(query.sql, query.params, can_cache=False)
        return columns

    def _counters(self) -> dict[str, int]:
        return {name: self._status.get(key, 0) for name, key in _STATISTICS.items()}

    def _profiled(self, event: dict[str, Any]) -> None:
        self._status = event["stmt_status"]  # a virtual table's own statements end before the one around them

    def _out_of_time(self) -> bool:
        return self._gone.is_set() or time.monotonic() > self._deadline_s

    def _refusal(self, error: Exception, query: Query) -> Exception:
        said = str(error)
        match error:
            case apsw.FullError() | apsw.IOError() if is_full(error, self.connection):
                return RefusedError(507, "cannot run this: no space left for SQLite's temporary files", value=query.sql)
            case apsw.InterruptError():
                if self._gone.is_set():
                    return CancelledError("the client is gone")
                return RefusedError(
                    422,
                    "cannot finish the statement in time; it was stopped",
                    value=query.sql,
                    limit=f"{query.timeout_s:g} s",
                    next=f"narrow it, or ask for more with timeout_s, at most {self._limits.timeout_max_s:g}",
                )
            case apsw.AuthError() | apsw.ReadOnlyError():
                return RefusedError(403, f"cannot run this: {said}", value=query.sql, limit="reading only")
            case apsw.SQLError() if "authoriz" in said or "prohibited" in said:
                return RefusedError(403, f"cannot run this: {said}", value=query.sql, limit="reading only")
            case apsw.SQLError():
                at = max(0, getattr(error, "error_offset", -1))  # in bytes
                rest = query.sql.encode(errors="replace")[at:].decode(errors="replace")
                return RefusedError(400, f"cannot run this: {said}", value=rest)
            case apsw.BindingsError():
                return RefusedError(400, f"cannot bind the parameters: {said}", next="give one for each ? or :name")
            case KeyError():
                return RefusedError(400, f"cannot bind the parameters: there is none named {said}")
            case apsw.TooBigError():
                return RefusedError(422, f"cannot run this: {said}", limit=f"{self._limits.field_bytes} bytes a value")
            case apsw.BusyError() | apsw.LockedError():
                return RefusedError(503, f"cannot read now: {said}", next="try again")
            case apsw.NoMemError():
                return RefusedError(503, "cannot run this: out of memory", limit=f"{self._limits.heap_bytes} bytes")
            case UnicodeDecodeError():
                return RefusedError(
                    422, "cannot return a text that is not UTF-8", value=error.object[:40], next="select hex(column)"
                )
            case apsw.CorruptError() | apsw.NotADBError() | apsw.CantOpenError() | apsw.IOError():
                return RefusedError(500, f"cannot read the database: {said}", next="see the service's log")
            case OverflowError():
                return RefusedError(400, "cannot bind an integer beyond 64 bits", next="send it as a string")
        return RefusedError(400, f"cannot run this: {said}", value=query.sql)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def attach(connection: apsw.Connection, name: str, path: Path) -> None:
    """Attach a SQLite file, read-only; raises apsw.Error, also if it is not a SQLite file."""
    connection.execute(f"ATTACH ? AS {quoted(name)}", (f"file:{quote(str(path))}?mode=ro",))
    try:
        connection.execute(f"SELECT count(*) FROM {quoted(name)}.sqlite_schema").fetchall()
    except apsw.Error:
        connection.execute(f"DETACH {quoted(name)}")
        raise


def weight(row: tuple[Value, ...]) -> int:
    """About how many bytes a row takes."""
    total = 16 * len(row)
    for value in row:  # a third of the time that sum() of a generator takes, and it runs for every row
        kind = type(value)
        if kind is str or kind is bytes:
            total += len(value)  # type: ignore[arg-type]
    return total


def _names(cursor: apsw.Cursor) -> tuple[str, ...]:
    return unique(tuple(str(column[0]) for column in cursor.get_description()))


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a result's columns, told apart: the second ``a`` becomes ``a_2``."""
    taken: dict[str, None] = {}
    for name in names:
        other, at = name, 1
        while other in taken:
            at += 1
            other = f"{name}_{at}"
        taken[other] = None
    return tuple(taken)
