"""From requests to queries, and from batches of rows to bodies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from cdn_daemon.api import RefusedError
from services.data_fabric import geojson, nodelink
from services.data_fabric.api import RowsAnswer, SqlRequest
from services.data_fabric.encode import Format, head, json_rows, lines
from services.data_fabric.infer import Value
from services.data_fabric.ingest import storable
from services.data_fabric.limits import Limits
from services.data_fabric.plans import Params, quoted
from services.data_fabric.reader import Batch, Query
from services.data_fabric.store import Store

STREAMED = frozenset({Format.CSV, Format.NDJSON})


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
    usual = limits.rows_max if form in STREAMED else limits.rows_default
    rows = usual if asked.limit is None else asked.limit
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


class Features:
    """Batches as a FeatureCollection."""

    def __init__(self, asked: Mapping[str, str]) -> None:
        self._asked = asked
        self._at: geojson.Places | None = None

    def encode(self, batch: Batch) -> bytes:
        """A batch as the inside of an array of features."""
        if self._at is None:
            self._at = geojson.places(batch.columns, self._asked)
        return geojson.features(batch.columns, batch.rows, self._at)

    def join(self, chunks: list[bytes], last: Batch, rows: int, cut: bool) -> bytes:
        """The collection of a query; foreign members say how many features it has and whether there are more."""
        return self.collection(chunks, rows, truncated=cut or last.more)

    def collection(self, chunks: list[bytes], rows: int, *, truncated: bool, next: str | None = None) -> bytes:
        """The collection; next is a link as OGC API Features has it."""
        more: dict[str, object] = {"numberReturned": rows, "truncated": truncated}
        if next is not None:
            more["links"] = [{"rel": "next", "href": next, "type": "application/geo+json"}]
        features = b",".join(chunk for chunk in chunks if chunk)
        return b'{"type":"FeatureCollection",%s,"features":[%s]}' % (msgspec.json.encode(more)[1:-1], features)


class Edges:
    """Batches as the edges of a graph, whose nodes are asked for afterwards."""

    def __init__(self, asked: Mapping[str, str]) -> None:
        self._asked = asked
        self._at: tuple[int, int] | None = None
        self._nodes: list[dict[Value, None]] = []
        self.chunks: list[bytes] = []
        self.truncated = False
        self.next: str | None = None

    def encode(self, batch: Batch) -> bytes:
        """A batch as the inside of an array of edges."""
        if self._at is None:
            self._at = nodelink.ends(batch.columns, self._asked)
        made, nodes = nodelink.edges(batch.columns, batch.rows, self._at)
        self._nodes.append(nodes)
        return made

    def join(self, chunks: list[bytes], last: Batch, rows: int, cut: bool) -> bytes:
        """Keep what there is."""
        self.chunks, self.truncated = chunks, cut or last.more
        del self._nodes[len(chunks) :]
        return b""

    def nodes(self) -> list[Value]:
        """Each node at an end of an edge, once."""
        return list({node: None for nodes in self._nodes for node in nodes})

    def graph(self, described: Mapping[Value, Mapping[str, Value]]) -> bytes:
        """The whole graph, its nodes as described, where they are."""
        more: dict[str, object] = {"truncated": self.truncated}
        if self.next is not None:
            more["next"] = self.next
        return nodelink.graph(self.chunks, ({**described.get(node, {}), "id": node} for node in self.nodes()), more)


class Described:
    """The rows of a table of nodes, by their id."""

    def __init__(self, store: Store, table: str, key: str, nodes: list[Value]) -> None:
        name, columns = store.table(table)
        names = [column.name for column in columns]
        if key.lower() not in (known.lower() for known in names):
            raise RefusedError(
                400, "cannot find the nodes' column", value=key, limit=", ".join(names), next="&id=COLUMN"
            )
        self._at = [known.lower() for known in names].index(key.lower())
        self.by_id: dict[Value, dict[str, Value]] = {}
        self.query = Query(
            sql=f"SELECT * FROM main.{quoted(name)} "
            f"WHERE {quoted(names[self._at])} IN (SELECT value FROM json_each(?))",
            params=(msgspec.json.encode(nodes).decode(),),
            timeout_s=store.limits.timeout_default_s,
            rows=store.limits.rows_max,
        )

    def encode(self, batch: Batch) -> bytes:
        """Keep a batch; what it returns tells how large it is."""
        for row in batch.rows:
            self.by_id.setdefault(row[self._at], dict(zip(batch.columns, row, strict=True)))
        return json_rows(batch.rows)

    def join(self, chunks: list[bytes], last: Batch, rows: int, cut: bool) -> bytes:
        """Nothing more to do; raises RefusedError if there are too many."""
        if cut or last.more:
            raise RefusedError(422, "cannot describe so many nodes at once", next="ask for fewer edges by limit=")
        return b""


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


ROLES = ("geometry", "lon", "lat", "id", "source", "target", "nodes")
"""What columns are for, in the query string."""


class Page:
    """One page of a table, by rowid."""

    def __init__(self, store: Store, name: str, form: Format, limit: int, after: int, asked: Mapping[str, str]) -> None:
        source, dot, table = name.partition(".")
        if dot:
            known = store.source(source)
            if known.kind != "sqlite":
                raise RefusedError(404, "cannot find this table", value=name, next="GET /sources lists what there is")
            sql_name = f"{quoted(known.name)}.{quoted(table)}"
        else:
            sql_name = f"main.{quoted(store.table(name)[0])}"
        kept: dict[str, object] = {"limit": limit} | ({} if form is Format.JSON else {"format": form})
        kept |= {role: asked[role] for role in ROLES if role in asked}
        self._path = f"/tables/{quote(name)}/rows?{urlencode(kept)}"
        self._features = Features(asked)
        self.edges = Edges(asked)
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
        match self._form:
            case Format.JSON:
                return json_rows(batch.rows)
            case Format.GEOJSON:
                return self._features.encode(batch)
            case Format.NODE_LINK:
                return self.edges.encode(batch)
        begin, self._first = (head(self._form, batch.columns) if self._first else b""), False
        return begin + lines(self._form, batch.columns, batch.rows)

    def join(self, chunks: list[bytes], last: Batch, rows: int, cut: bool) -> bytes:
        """The page; afterwards ``next`` is where the next one is, if there is one."""
        if cut and not chunks:
            raise RefusedError(422, "cannot answer with so large a page", next="ask for fewer rows by limit=")
        if cut:  # the batch that was too much is left to the next page
            self._last = self._before
        if cut or last.more:
            self.next = f"{self._path}&after={self._last}"
        match self._form:
            case Format.CSV | Format.NDJSON:
                return b"".join(chunks)
            case Format.GEOJSON:
                return self._features.collection(chunks, rows, truncated=self.next is not None, next=self.next)
            case Format.NODE_LINK:
                self.edges.next = self.next
                return self.edges.join(chunks, last, rows, cut)
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
