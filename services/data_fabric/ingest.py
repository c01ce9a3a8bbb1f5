"""CSV and NDJSON files as typed tables; others become NDJSON first. Reads files; knows no database.

Every file is read twice: once to check it and to find its columns' types, once for
its rows. So a broken file is refused, with line and reason, before anything is written.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cdn_daemon.api import RefusedError
from services.data_fabric.breath import breathe
from services.data_fabric.infer import EXACT_IN_FLOAT, INT64, Kind, Value, convert, json_type, kind_of, sql_type, widen
from services.data_fabric.limits import Limits

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
RESERVED = ("sqlite_", "cdn_", "_cdn_", "pragma_")

BREATH_ROWS = 100


class Column(Struct, frozen=True):
    """A column of a table: its name and its type in SQLite's words."""

    name: str
    type: str


class Table(Struct, frozen=True):
    """A file that was checked: what its table will look like."""

    columns: tuple[Column, ...]
    rows: int


def check_name(name: str) -> str:
    """The name of a source, if it can be one; raises RefusedError."""
    if not NAME.fullmatch(name) or name.lower().startswith(RESERVED) or name.lower() in {"main", "temp"}:
        raise RefusedError(
            400,
            "cannot use this name for a source",
            value=name,
            limit="a letter or '_', then letters, digits, '_', at most 63; not main, temp, sqlite_…, cdn_…, pragma_…",
        )
    return name


def check_columns(names: list[str], limits: Limits, line: int, unit: str = "line") -> list[str]:
    """The names of a table's columns, if they can be; raises RefusedError."""
    where = f"{unit} {line}"
    if len(names) > limits.columns:
        raise RefusedError(
            422, f"cannot load {where}: too many columns", value=len(names), limit=f"{limits.columns} columns"
        )
    seen: dict[str, str] = {}
    for at, name in enumerate(names, 1):
        if not name.strip():
            raise RefusedError(422, f"cannot load {where}: column {at} has no name", next="name it in the header")
        if len(name) > 200 or "\0" in name:
            raise RefusedError(
                422, f"cannot load {where}: unusable column name", value=repr(name), limit="200 characters, no NUL"
            )
        if name.lower() == "_rowid_":
            raise RefusedError(422, f"cannot load {where}: _rowid_ is the name of SQLite's own column", value=name)
        if name.lower() in seen:
            raise RefusedError(
                422,
                f"cannot load {where}: two columns have the same name (SQL does not mind case)",
                value=f"{seen[name.lower()]!r} and {name!r}",
                next="rename one of them",
            )
        seen[name.lower()] = name
    return names


# -- CSV ------------------------------------------------------------------------------------------------


def check_csv(path: Path, limits: Limits) -> Table:
    """The columns, types and number of rows of an RFC 4180 file in UTF-8; raises RefusedError with the line.

    A byte-order mark is skipped, and so are blank lines.
    """
    rows = _csv_rows(path, limits)
    line, header = next(rows, (1, []))
    if not header:
        raise RefusedError(422, "cannot load line 1: the file is empty", next="its first line names the columns")
    names = check_columns(header, limits, line)
    kinds = [Kind.EMPTY] * len(names)
    width, count = len(names), 0
    for line, row in rows:
        if len(row) != width:
            raise RefusedError(
                422,
                f"cannot load line {line}: it has {len(row)} fields, the header has {width}",
                value=",".join(row),
                next="mend the line, or quote fields that hold commas or line breaks",
            )
        for at, text in enumerate(row):
            if kinds[at] is not Kind.TEXT:
                kinds[at] = widen(kinds[at], kind_of(text))
        count += 1
    return Table(tuple(Column(name, sql_type(kind)) for name, kind in zip(names, kinds, strict=True)), count)


def read_csv(path: Path, table: Table, limits: Limits) -> Generator[tuple[Value, ...], None, None]:
    """The rows of a file that check_csv has passed."""
    types = [column.type for column in table.columns]
    rows = _csv_rows(path, limits)
    next(rows)
    for _, row in rows:
        yield tuple(map(convert, row, types))


def _csv_rows(path: Path, limits: Limits) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(limits.field_bytes)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise RefusedError(
                    422, f"cannot load line {line}: {error}", next="RFC 4180 says how to quote"
                ) from error
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error) from error
            if row:
                yield line, row
                if line % BREATH_ROWS == 0:
                    breathe()


def _not_utf8(path: Path, error: UnicodeDecodeError) -> RefusedError:
    """The refusal with the line that is to blame; the decoder, which reads ahead, only knows the byte."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            try:
                raw.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as first:
                return RefusedError(
                    422,
                    f"cannot load line {line}: byte {first.start + 1} is not UTF-8",
                    value=raw[first.start : first.start + 8].hex(" "),
                    next="convert it, as with: iconv -f latin1 -t utf-8",
                )
    return RefusedError(422, f"cannot load the file: it is not UTF-8 ({error.reason})")


# -- NDJSON ---------------------------------------------------------------------------------------------

_DECODER = msgspec.json.Decoder(dict[str, Any])


def check_ndjson(path: Path, limits: Limits, unit: str = "line", first: Sequence[str] = ()) -> Table:
    """The columns, types and number of rows of a file with one JSON object a line; raises RefusedError with the line.

    Columns are all keys there are, in the order of their first appearance; blank lines are skipped. The first ones
    are there in any case; unit is what a line is called to people.
    """
    types: dict[str, set[type]] = {name: set() for name in check_columns(list(first), limits, 1, unit)}
    inexact: set[str] = set()
    count, line = 0, 0
    for line, row in _ndjson_rows(path, limits, unit):
        count += 1
        if not types.keys() >= row.keys():
            for key in row:
                types.setdefault(key, set())
            check_columns(list(types), limits, line, unit)
        for key, value in row.items():
            if value is not None:
                types[key].add(type(value))
                if type(value) is int and value not in EXACT_IN_FLOAT:
                    inexact.add(key)
    if not count and not types:
        raise RefusedError(422, f"cannot load {unit} 1: the file is empty", next=f"one JSON object a {unit}")
    if not types:
        raise RefusedError(422, f"cannot load {unit} {line}: no object in the file has a key")
    columns = []
    for name, seen in types.items():
        numbers = seen <= {int, float} and len(seen) == 2 and name not in inexact
        columns.append(Column(name, "REAL" if numbers else json_type(seen)))
    return Table(tuple(columns), count)


def read_ndjson(path: Path, table: Table, limits: Limits) -> Generator[tuple[Value, ...], None, None]:
    """The rows of a file that check_ndjson has passed."""
    names = [column.name for column in table.columns]
    for _, row in _ndjson_rows(path, limits):
        yield tuple([storable(row.get(name)) for name in names])


def storable(value: object) -> Value:
    """A JSON value as SQLite stores it: objects and arrays as JSON text. Raises ValueError, with the reason."""
    if value is None or isinstance(value, float | str | bytes):
        return value
    if isinstance(value, int):
        if value not in INT64:
            raise ValueError(f"integer {str(value)[:40]} is beyond 64 bits; send it as a string")
        return int(value)
    if isinstance(value, list | dict):
        return msgspec.json.encode(value).decode()
    raise ValueError(f"{type(value).__name__} cannot be stored")


def _ndjson_rows(path: Path, limits: Limits, unit: str = "line") -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    with path.open("rb") as file:
        while raw := file.readline(limits.field_bytes + 1):
            line += 1
            if len(raw) > limits.field_bytes:
                raise RefusedError(
                    422, f"cannot load {unit} {line}: it is too long", limit=f"{limits.field_bytes} bytes"
                )
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                row = _DECODER.decode(raw)
                for value in row.values():
                    if type(value) is int:
                        storable(value)
            except RecursionError as error:
                raise RefusedError(422, f"cannot load {unit} {line}: nested too deeply") from error
            except (ValueError, msgspec.MsgspecError) as error:
                shown = raw[:100].decode(errors="replace").rstrip()
                raise RefusedError(422, f"cannot load {unit} {line}: {error}", value=shown) from error
            yield line, row
            if line % BREATH_ROWS == 0:
                breathe()
