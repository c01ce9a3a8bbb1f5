"""The requests and answers of the HTTP interface."""

from __future__ import annotations

from typing import Any

from msgspec import Raw, Struct

from services.data_fabric.ingest import Column


class SqlRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /sql``."""

    sql: str
    params: list[Any] | dict[str, Any] = []
    """One value for each ``?``, or by name for each ``:name``: null, true, false, a number or a string."""
    timeout_s: float | None = None
    limit: int | None = None
    """Rows to return at most."""


class InsertRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /tables/NAME/rows``: each row an array of all columns, or an object."""

    rows: list[Any]


class AttachRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /sources/NAME`` with JSON: attach a SQLite file, read-only."""

    path: str


class RowsAnswer(Struct, frozen=True, kw_only=True):
    """Rows as JSON."""

    columns: tuple[str, ...]
    rows: Raw
    row_count: int
    truncated: bool
    """There are more rows than these."""
    truncated_by: str | None = None
    elapsed_ms: float
    """What the statement took, without the way there and back."""
    next: str | None = None
    """Where the next page is."""


class InsertAnswer(Struct, frozen=True, kw_only=True):
    """The rows are on disk."""

    table: str
    inserted: int
    last_rowid: int


class TableAnswer(Struct, frozen=True, kw_only=True):
    """A table or view of a source."""

    name: str
    """As SQL says it: ``NAME``, or ``SOURCE.NAME`` in an attached file."""
    type: str
    columns: tuple[Column, ...]
    rows: int | None
    """None in an attached file: counting would read all of it."""
    indexes: tuple[str, ...] = ()
    """The index tuner's."""


class SourceAnswer(Struct, frozen=True, kw_only=True):
    """A source, and what is in it if one asked for it."""

    name: str
    kind: str
    path: str | None
    created_s: float
    tables: tuple[TableAnswer, ...] | None = None


class SourcesAnswer(Struct, frozen=True, kw_only=True):
    """All sources, by name."""

    sources: tuple[SourceAnswer, ...]
