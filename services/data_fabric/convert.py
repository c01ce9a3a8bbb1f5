"""Parquet and JSON files as lines of JSON, in a process of their own.

A library in C that reads a file from a stranger may crash, and a JSON document is read as a whole, holding
the GIL. Here neither touches the service, which loads the lines as it does any NDJSON. It also keeps DuckDB's
65 MiB out of the service's memory. The process bounds itself: it ends by its own alarm even if nobody waits.

    python -m services.data_fabric.convert KIND FILE LINES    prints the Parts, or a Reason with exit code 1
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from services.data_fabric.geometry import Geometry

MiB = 1024 * 1024
MEMORY_BYTES = 1024 * MiB
LINES_BYTES = 1024 * MiB
"""What a file may become: a few KiB of Parquet can say a lot."""
WITHIN_S = 120
REFUSED = 1
FULL = 2


class Part(Struct, frozen=True):
    """Lines that become a table."""

    suffix: str
    """Of the table's name."""
    path: str
    columns: tuple[str, ...]
    """Its first ones, there even if there is no row."""


class UnusableError(Exception):
    """The file cannot be converted: what, value."""


class DiskFullError(Exception):
    """There is no room for the lines."""


def convert(kind: str, path: Path, lines: Path) -> list[Part]:
    """The file as lines of JSON in files beginning with that path; raises UnusableError or DiskFullError. Blocks."""
    command = [sys.executable, "-m", "services.data_fabric.convert", kind, str(path), str(lines)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=WITHIN_S + 30)
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=list[Part])
    if done.returncode == REFUSED and done.stdout:
        raise UnusableError(*msgspec.json.decode(done.stdout, type=tuple[str, str | None]))
    if done.returncode == FULL:
        raise DiskFullError
    if done.returncode in (-signal.SIGALRM, -signal.SIGXCPU):
        raise UnusableError(f"it takes longer than {WITHIN_S} s", None)
    if done.returncode == -signal.SIGXFSZ:
        raise UnusableError(f"it becomes more than {LINES_BYTES} bytes", None)
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    if "MemoryError" in said:
        raise UnusableError(f"reading it takes more than {MEMORY_BYTES} bytes of memory", None)
    raise UnusableError(f"its reader ended with {done.returncode}", said or None)


# -- in the process of its own ----------------------------------------------------------------------------


def _parquet(path: Path, lines: Path) -> list[Part]:
    import duckdb

    source, target = (str(each).replace("'", "''") for each in (path, lines))
    with duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "512MB"}) as database:
        for setting in (
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            f"allowed_paths = ['{source}', '{target}']",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            database.execute(f"SET {setting}")
        try:
            rows = f"read_parquet('{source}')"
            described = database.execute(f"DESCRIBE SELECT * FROM {rows}").fetchall()
            columns = {str(name): str(declared) for name, declared, *_ in described}
            chosen = ", ".join(
                f"{_plain(_quoted(name), declared, lambda sql: database.execute(f'{sql} FROM {rows}').fetchall())} "
                f"AS {_quoted(name)}"
                for name, declared in columns.items()
            )
            database.execute(f"COPY (SELECT {chosen} FROM {rows}) TO '{target}' (FORMAT json)")
        except duckdb.IOException as error:
            if "No space left" in str(error):
                raise OSError(28, str(error)) from error
            raise UnusableError("it is no Parquet", str(error).partition("\n")[0]) from error
        except duckdb.Error as error:
            raise UnusableError("its Parquet cannot be read", str(error).partition("\n")[0]) from error
    return [Part("", str(lines), tuple(columns))]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(column: str, declared: str, ask: Callable[[str], list[Any]]) -> str:
    """The column in what JSON and SQLite both have, so that nothing is lost that they could keep."""
    kind, _, rest = declared.partition("(")
    match kind:
        case "BLOB":
            return f"to_base64({column})"
        case "FLOAT" | "DOUBLE":  # JSON has no infinity
            return f"CASE WHEN isfinite({column}) THEN {column} END"
        case "DECIMAL" if int(rest.partition(",")[0]) > 15:
            return f"CAST({column} AS VARCHAR)"
        case "UBIGINT" | "HUGEINT" | "UHUGEINT":
            fits = ask(
                f"SELECT coalesce(bool_and({column} BETWEEN -9223372036854775808 AND 9223372036854775807), true)"
            )
            return column if fits[0][0] else f"CAST({column} AS VARCHAR)"
        case "TIMESTAMP WITH TIME ZONE":
            return f"strftime({column} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
    return column


def _json(path: Path, lines: Path) -> list[Part]:
    """An array of objects."""
    rows = _decode(path.read_bytes(), list[Raw], "an array of objects")
    _write(lines, (msgspec.json.format(bytes(row), indent=-1) for row in rows))
    return [Part("", str(lines), ())]


class _Feature(Struct, tag_field="type", tag="Feature"):
    geometry: Geometry | None
    properties: dict[str, Raw] | None
    id: str | int | float | None = None


class _Features(Struct, tag_field="type", tag="FeatureCollection"):
    features: list[Raw]


def _geojson(path: Path, lines: Path) -> list[Part]:
    """A FeatureCollection of RFC 7946: its properties, its geometries as JSON, its ids.

    Where a property has the name id, the column of the features' own is feature_id.
    """
    collection = _decode(path.read_bytes(), _Features, "a FeatureCollection")
    has_id = names_id = False
    for at, raw in enumerate(collection.features, 1):
        feature = _decode(bytes(raw), _Feature, f"a Feature as feature {at}")
        has_id = has_id or feature.id is not None
        names_id = names_id or "id" in (feature.properties or {})
        if "geometry" in (feature.properties or {}):
            raise UnusableError(f"feature {at} has a property named geometry, as its table's column is", None)
    column = "feature_id" if names_id else "id"

    def rows() -> Iterator[bytes]:
        for at, raw in enumerate(collection.features, 1):
            feature = _decode(bytes(raw), _Feature, f"feature {at}")
            properties: dict[str, Any] = dict(feature.properties or {})
            if has_id:
                if column in properties and column != "id":
                    raise UnusableError(f"feature {at} has properties named id and feature_id", None)
                properties = {column: feature.id, **properties}
            yield msgspec.json.format(msgspec.json.encode({**properties, "geometry": feature.geometry}), indent=-1)

    _write(lines, rows())
    if not collection.features:  # a window in which there is nothing is a table, too
        return [Part("", str(lines), ("id", "geometry"))]
    return [Part("", str(lines), (column,) if has_id else ())]


class _Graph(Struct):
    nodes: list[Raw]
    edges: list[Raw] | None = None
    links: list[Raw] | None = None


def _node_link(path: Path, lines: Path) -> list[Part]:
    """What networkx.node_link_data writes: its edges, which were links before networkx 3.4, and its nodes."""
    graph = _decode(path.read_bytes(), _Graph, "node-link JSON: nodes, and edges or links")
    edges = graph.edges if graph.edges is not None else graph.links
    if edges is None:
        raise UnusableError("it has neither edges nor links", None)
    for what, needed, held in (("edge", ("source", "target"), edges), ("node", ("id",), graph.nodes)):
        for at, raw in enumerate(held, 1):
            if missing := set(needed) - _decode(bytes(raw), dict[str, Raw], f"an object as {what} {at}").keys():
                raise UnusableError(f"{what} {at} has no {' and no '.join(sorted(missing))}", bytes(raw)[:100].decode())
    nodes = lines.with_suffix(".nodes")
    _write(lines, (msgspec.json.format(bytes(raw), indent=-1) for raw in edges))
    _write(nodes, (msgspec.json.format(bytes(raw), indent=-1) for raw in graph.nodes))
    return [Part("", str(lines), ("source", "target")), Part("_nodes", str(nodes), ("id",))]


def _decode(body: bytes, type: Any, wanted: str) -> Any:
    try:
        return msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"), type=type)
    except RecursionError as error:
        raise UnusableError("it is nested too deeply", None) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UnusableError(f"it is not {wanted}: {error}", body[:100].decode(errors="replace")) from error


def _write(path: Path, lines: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        for line in lines:
            file.write(line + b"\n")


KINDS = {"parquet": _parquet, "json": _json, "geojson": _geojson, "node-link": _node_link}


def main() -> int:
    """Convert a file as the command line says."""
    _, kind, path, lines = sys.argv
    for limit, value in (
        (resource.RLIMIT_DATA, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, LINES_BYTES),
        (resource.RLIMIT_CPU, WITHIN_S),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, hard))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
    signal.alarm(WITHIN_S)
    try:
        parts = KINDS[kind](Path(path), Path(lines))
    except UnusableError as error:
        sys.stdout.buffer.write(msgspec.json.encode(error.args))
        return REFUSED
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            return FULL
        raise
    sys.stdout.buffer.write(msgspec.json.encode(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
