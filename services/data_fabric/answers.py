"""From requests to queries, and from batches of rows to bodies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from cdn_daemon.api import RefusedError
from services.data_fabric.api import RowsAnswer, SqlRequest
from services.data_fabric.encode import Format, head, json_rows, lines
from services.data_fabric.ingest import storable
from services.data_fabric.limits import Limits
from services.data_fabric.plans import Params, quoted
from services.data_fabric.reader import Batch, Query
from services.data_fabric.store import Store


def query(asked: SqlRequest, form: Format, limits: Limits) -> Query:
    """The query that is asked for, within the limits; raises RefusedError."""
    if len(asked.sql) > limits.sql_chars:
        raise RefusedError(
            413, "cannot run so long a statement", value=len(asked.sql), limit=f"{limits.sql_chars} characters"
        )
    if "\0" in asked.sql:
        raise RefusedError(400, "cannot run a statement with a NUL in it", next="bind it as a parameter")
    timeout_s = limits.timeout_default_s if asked.timeout_s is None else asked.timeout_s
    if not 0 < timeout_s <= limits.timeout_max_s:
        raise RefusedError(
            400, "cannot use this timeout_s", value=timeout_s, limit=f"over 0, at most {limits.timeout_max_s:g} s"
        )
    rows = (limits.rows_default if form is Format.JSON else limits.rows_max) if asked.limit is None else asked.limit
    if not 1 <= rows <= limits.rows_max:
        raise RefusedError(400, "cannot use this limit", value=rows, limit=f"1 to {limits.rows_max} rows")
    return Query(sql=asked.sql, params=_params(asked.params, limits), timeout_s=timeout_s, rows=rows)


def _params(params: list[Any] | dict[str, Any], limits: Limits) -> Params:
    if len(params) > limits.params:
        raise RefusedError(413, "cannot bind so many parameters", value=len(params), limit=str(limits.params))
    items = params.items() if isinstance(params, dict) else enumerate(params, 1)
    bound = {}
    for name, value in items:
        if isinstance(value, list | dict):
            raise RefusedError(
                400, f"cannot bind parameter {name}", value=value, limit="null, true, false, a number or a string"
            )
        try:
            bound[name] = storable(value)
        except ValueError as error:
            raise RefusedError(400, f"cannot bind parameter {name}: {error}") from error
    return {str(name): value for name, value in bound.items()} if isinstance(params, dict) else list(bound.values())


def json_batch(batch: Batch) -> bytes:
    """A batch as the inside of a JSON array."""
    return json_rows(batch.rows)


def _array(chunks: list[bytes]) -> msgspec.Raw:
    """The batches as one JSON array; those of an empty result are empty."""
    return msgspec.Raw(b"[" + b",".join(chunk for chunk in chunks if chunk) + b"]")


def json_join(query: Query, limits: Limits) -> Callable[[list[bytes], Batch, int, bool], bytes]:
    """How the batches of a query become a RowsAnswer."""

    def join(chunks: list[bytes], last: Batch, rows: int, cut: bool) -> bytes:
        by = f"{limits.result_bytes} bytes" if cut else f"{query.rows} rows" if last.more else None
        return msgspec.json.encode(
            RowsAnswer(
                columns=last.columns,
                rows=_array(chunks),
                row_count=rows,
                truncated=by is not None,
                truncated_by=by,
                elapsed_ms=round(last.elapsed_s * 1e3, 3),
            )
        )

    return join


def stream_batch(form: Format, *, explicit: bool, limit: int) -> Callable[[Batch], bytes]:
    """How batches become the chunks of a CSV or NDJSON stream.

    A stream that would hold more rows than the service allows is broken off, not
    ended as if it were whole; one that the client itself limited is just that long.
    """
    first = True

    def encode(batch: Batch) -> bytes:
        nonlocal first
        if batch.more and not explicit:
            raise RefusedError(422, "cannot stream so many rows", limit=f"{limit} rows", next="page through them")
        begin, first = (head(form, batch.columns) if first else b""), False
        return begin + lines(form, batch.columns, batch.rows)

    return encode


class Page:
    """One page of a table, by rowid."""

    def __init__(self, store: Store, name: str, form: Format, limit: int, after: int) -> None:
        source, dot, table = name.partition(".")
        if dot:
            known = store.source(source)
            if known.kind != "sqlite":
                raise RefusedError(404, "cannot find this table", value=name, next="GET /sources lists what there is")
            sql_name = f"{quoted(known.name)}.{quoted(table)}"
        else:
            sql_name = f"main.{quoted(store.table(name)[0])}"
        self._path = f"/tables/{quote(name)}/rows?limit={limit}" + ("" if form is Format.JSON else f"&format={form}")
        self._form = form
        self._before = self._last = after
        self._first = True
        self.query = Query(
            sql=f"SELECT _rowid_ AS _rowid_, * FROM {sql_name} WHERE _rowid_ > ? ORDER BY _rowid_",
            params=(after,),
            timeout_s=store.limits.timeout_default_s,
            rows=limit,
            tuned=False,
        )
        self.next: str | None = None

    def encode(self, batch: Batch) -> bytes:
        """A batch in the page's format."""
        self._before, self._last = self._last, batch.rows[-1][0] if batch.rows else self._last  # type: ignore[assignment]
        if self._form is Format.JSON:
            return json_rows(batch.rows)
        begin, self._first = (head(self._form, batch.columns) if self._first else b""), False
        return begin + lines(self._form, batch.columns, batch.rows)

    def join(self, chunks: list[bytes], last: Batch, rows: int, cut: bool) -> bytes:
        """The page; afterwards ``next`` is where the next one is, if there is one."""
        if cut:  # the batch that was too much is left to the next page
            self._last = self._before
        if cut or last.more:
            self.next = f"{self._path}&after={self._last}"
        if self._form is not Format.JSON:
            return b"".join(chunks)
        return msgspec.json.encode(
            RowsAnswer(
                columns=last.columns,
                rows=_array(chunks),
                row_count=rows,
                truncated=self.next is not None,
                elapsed_ms=round(last.elapsed_s * 1e3, 3),
                next=self.next,
            )
        )
