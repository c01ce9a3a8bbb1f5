"""What is in the store: sources, their tables, the tuner's indexes. Read from the database, kept as a value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import apsw
from msgspec import Struct, field

from services.data_fabric.candidates import IndexSpec
from services.data_fabric.ingest import Column
from services.data_fabric.plans import quoted

OWN_PREFIX = "cdn_auto_"
"""Names of the tuner's indexes begin so; it touches no others."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS _cdn_sources(
    name TEXT PRIMARY KEY COLLATE NOCASE, kind TEXT NOT NULL, path TEXT, created_s REAL NOT NULL
) STRICT
"""


class Source(Struct, frozen=True, kw_only=True):
    """Where rows came from: a file that was loaded into a table of its name, or a SQLite file that is attached."""

    name: str
    kind: str
    """csv, ndjson, json, geojson, node-link, parquet, sqlite; or events, of which there is one."""
    path: str | None = None
    """Of a SQLite file, below the directory of files."""
    created_s: float
    """Unix time."""


class Catalogue(Struct, frozen=True, kw_only=True):
    """The store's contents at one moment; generation changes with every change of schema."""

    generation: int = 0
    sources: Mapping[str, Source] = field(default_factory=dict)
    tables: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    """Tables that were loaded, by name."""
    own_indexes: Mapping[str, IndexSpec] = field(default_factory=dict)

    def files(self) -> list[Source]:
        """The sources that are attached."""
        return [source for source in self.sources.values() if source.kind == "sqlite"]


def read(connection: apsw.Connection, generation: int) -> Catalogue:
    """The catalogue as the database has it."""
    sources = {
        name: Source(name=name, kind=kind, path=path, created_s=created_s)
        for name, kind, path, created_s in connection.execute(
            "SELECT name, kind, path, created_s FROM _cdn_sources ORDER BY name"
        )
    }
    tables = {
        name: tuple(
            Column(column, declared)
            for column, declared in connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,))
        )
        for name, source in sources.items()
        if source.kind != "sqlite"
    }
    own: dict[str, IndexSpec] = {}
    for index, table in connection.execute(
        "SELECT name, tbl_name FROM sqlite_schema WHERE type = 'index' AND substr(name, 1, ?) = ?",
        (len(OWN_PREFIX), OWN_PREFIX),
    ).fetchall():
        columns = connection.execute(
            'SELECT name, "desc" FROM pragma_index_xinfo(?) WHERE key = 1 ORDER BY seqno', (index,)
        )
        own[str(index)] = IndexSpec(str(table), tuple((str(name), bool(descending)) for name, descending in columns))
    return Catalogue(generation=generation, sources=sources, tables=tables, own_indexes=own)


def signature(connection: apsw.Connection) -> tuple[object, ...]:
    """Differs where two catalogues do."""
    sources: tuple[object, ...] = connection.execute("SELECT count(*), total(created_s) FROM _cdn_sources").get
    return (connection.pragma("schema_version"), *sources)


def index_name(spec: IndexSpec) -> str:
    """The name of the tuner's index of that specification; the same each time."""
    return f"{OWN_PREFIX}{spec.table}_{hashlib.sha256(str(spec).encode()).hexdigest()[:10]}"


def row_count(connection: apsw.Connection, table: str) -> int:
    """How many rows there are: of single rows only the oldest are ever deleted."""
    count = connection.execute(f"SELECT max(_rowid_) - min(_rowid_) + 1 FROM {quoted(table)}").get
    return int(count or 0)
