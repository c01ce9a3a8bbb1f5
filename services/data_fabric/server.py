"""The HTTP interface: an application over one store. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import TypeVar

import apsw
import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Send

from cdn_daemon.api import EXCEPTION_HANDLERS, RefusedError, answer, chunks, read_json, whole_number
from cdn_daemon.service import ConfigurationError
from services.data_fabric import answers, convert
from services.data_fabric.api import (
    AttachRequest,
    InsertAnswer,
    InsertRequest,
    SourceAnswer,
    SourcesAnswer,
    SqlRequest,
    TableAnswer,
)
from services.data_fabric.catalogue import Source
from services.data_fabric.encode import MEDIA_TYPES, Format, choose
from services.data_fabric.feed import Feed
from services.data_fabric.infer import Value
from services.data_fabric.limits import Limits
from services.data_fabric.pool import Encode, Join, Pool
from services.data_fabric.reader import CancelledError
from services.data_fabric.store import Store
from services.disk import is_full, no_room

log = logging.getLogger(__name__)

SPOOL_BYTES = 1024 * 1024
KINDS = {
    "text/csv": "csv",
    "application/csv": "csv",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/geo+json": "geojson",
    "application/vnd.apache.parquet": "parquet",
    "application/json": "sqlite",
}
UPLOADED = {"csv", "ndjson", *convert.KINDS}
T = TypeVar("T")


class Fabric:
    """The store, the threads that read it, and the answers to requests."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.limits = store.limits
        self.pool = Pool(store)
        self.feed = Feed(store)
        self._uploads = 0
        self._refused = 0

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Answer a RefusedError, and count it."""
        self._refused += 1
        return await EXCEPTION_HANDLERS[RefusedError](request, error)

    # -- SQL ------------------------------------------------------------------------------------------

    async def sql(self, request: Request) -> Response:
        """``POST /sql``."""
        asked = await read_json(request, SqlRequest, self.limits.sql_body_bytes, self.limits.body_s)
        form = choose(request.query_params.get("format"), request.headers.get("accept"))
        query = answers.query(asked, form, self.limits)
        match form:
            case Format.JSON:
                encode: Encode = answers.json_batch
                join: Join = answers.json_join(query, self.limits)
            case Format.GEOJSON:
                features = answers.Features(request.query_params)
                encode, join = features.encode, features.join
            case Format.NODE_LINK:
                edges = answers.Edges(request.query_params)
                encode, join = edges.encode, edges.join
        if form not in answers.STREAMED:
            body = await unless_gone(request, self.pool.run(query, encode, join))
            if form is Format.NODE_LINK:
                body = await self._graph(request, edges)
            return Response(body, media_type=MEDIA_TYPES[form])
        batches = self.pool.stream(
            query, answers.stream_batch(form, explicit=asked.limit is not None, limit=query.rows)
        )
        first = await unless_gone(
            request, anext(batches)
        )  # what is wrong with the statement shows before the status line is sent

        async def all_chunks() -> AsyncIterator[bytes]:
            try:
                yield first
                async for chunk in batches:
                    yield chunk
            finally:
                await batches.aclose()

        return BreakableStream(all_chunks(), media_type=MEDIA_TYPES[form], headers={"cdn-row-limit": str(query.rows)})

    async def rows(self, request: Request) -> Response:
        """``GET /tables/NAME/rows``: a page, in order of insertion."""
        form = choose(request.query_params.get("format"), request.headers.get("accept"))
        limit = whole_number(request, "limit", default=100, low=1, high=self.limits.page_rows_max)
        after = whole_number(request, "after", default=0, low=-(2**63), high=2**63 - 1)
        name = request.path_params["name"]
        page = answers.Page(self.store, name, form, limit, after, request.query_params)
        body = await unless_gone(request, self.pool.run(page.query, page.encode, page.join))
        if form is Format.NODE_LINK:
            body = await self._graph(request, page.edges)
        headers = {"link": f'<{page.next}>; rel="next"'} if page.next else {}
        return Response(body, media_type=MEDIA_TYPES[form], headers=headers)

    async def _graph(self, request: Request, edges: answers.Edges) -> bytes:
        """The edges, with their nodes as the table ``nodes=`` describes them, if one is named."""
        described: Mapping[Value, Mapping[str, Value]] = {}
        if table := request.query_params.get("nodes"):
            nodes = answers.Described(self.store, table, request.query_params.get("id", "id"), edges.nodes())
            await unless_gone(request, self.pool.run(nodes.query, nodes.encode, nodes.join))
            described = nodes.by_id
        return await asyncio.to_thread(edges.graph, described)

    async def insert(self, request: Request) -> Response:
        """``POST /tables/NAME/rows``: answered when the rows are on disk."""
        asked = await read_json(request, InsertRequest, self.limits.insert_bytes, self.limits.body_s)
        if len(asked.rows) > self.limits.insert_rows:
            raise RefusedError(
                413,
                "cannot insert so many rows at once",
                value=len(asked.rows),
                limit=f"{self.limits.insert_rows} rows",
            )
        if not asked.rows:
            raise RefusedError(400, "cannot insert no rows", next="give one at least")
        name, _ = self.store.table(request.path_params["name"])
        if len(asked.rows) > 100:
            written = await asyncio.to_thread(self.store.insert, name, asked.rows)
        else:
            written = self.store.insert(name, asked.rows)
        last = await asyncio.wrap_future(written)
        return answer(InsertAnswer(table=name, inserted=len(asked.rows), last_rowid=last), 201)

    # -- changes --------------------------------------------------------------------------------------

    async def changes(self, request: Request) -> Response:
        """``GET /changes``: what has changed since; with wait_s, once something has."""
        since = whole_number(request, "since", default=0, low=0, high=2**63 - 1)
        limit = whole_number(request, "limit", default=1_000, low=1, high=self.limits.changes_max)
        wait_s = whole_number(request, "wait_s", default=0, low=0, high=30)
        source = request.query_params.get("source")
        return answer(await unless_gone(request, self.feed.after(since, source, limit, float(wait_s))))

    # -- sources --------------------------------------------------------------------------------------

    async def sources(self, request: Request) -> Response:
        """``GET /sources``."""
        return answer(SourcesAnswer(sources=tuple(map(_source, self.store.catalogue.sources.values()))))

    async def source(self, request: Request) -> Response:
        """``GET /sources/NAME``."""
        return answer(await self._described(self.store.source(request.path_params["name"])))

    async def add(self, request: Request) -> Response:
        """``POST /sources/NAME`` makes a source; ``PUT`` replaces one, if there is one."""
        name = request.path_params["name"]
        replace = request.method == "PUT"
        kind = request.query_params.get("kind") or KINDS.get(
            request.headers.get("content-type", "").partition(";")[0].strip().lower(), ""
        )
        if kind == "sqlite":
            asked = await read_json(request, AttachRequest, self.limits.sql_body_bytes, self.limits.body_s)
            made = await asyncio.to_thread(self.store.attach, name, asked.path, replace=replace)
        elif kind in UPLOADED:
            self.store.check_free(name, replace)  # before the body is read
            made = await self._load(request, name, kind, replace)
        else:
            raise RefusedError(
                415,
                "cannot tell what this source is",
                value=request.headers.get("content-type"),
                limit=", ".join(KINDS),
                next=f"set Content-Type, or ?kind=sqlite, {', '.join(sorted(UPLOADED))}",
            )
        return answer(await self._described(made), 201)

    async def drop(self, request: Request) -> Response:
        """``DELETE /sources/NAME``."""
        await asyncio.to_thread(self.store.drop, request.path_params["name"])
        return Response(status_code=204)

    async def _load(self, request: Request, name: str, kind: str, replace: bool) -> Source:
        if self._uploads >= self.limits.uploads:
            raise RefusedError(
                503, "cannot take one more upload now", limit=f"{self.limits.uploads} at once", next="try again"
            )
        self._uploads += 1
        try:
            handle, spooled = await asyncio.to_thread(tempfile.mkstemp, suffix=".part", dir=self.store.spool)
            try:
                with open(handle, "wb", buffering=0) as file:
                    waiting = bytearray()
                    async for chunk in chunks(request, self.limits.upload_bytes, self.limits.upload_s):
                        waiting += chunk
                        if len(waiting) >= SPOOL_BYTES:
                            await asyncio.to_thread(_write_all, file, waiting)
                            waiting = bytearray()
                    await asyncio.to_thread(_write_all, file, waiting)
                return await asyncio.to_thread(self.store.load, name, kind, Path(spooled), replace=replace)
            finally:
                os.unlink(spooled)
        except OSError as error:
            if is_full(error):
                raise no_room(self.store.spool) from error
            raise
        finally:
            self._uploads -= 1

    async def _described(self, source: Source) -> SourceAnswer:
        catalogue = self.store.catalogue
        tables = tuple(
            TableAnswer(
                name=name,
                type=kind,
                columns=columns,
                rows=self.store.rows.get(name),
                indexes=tuple(str(spec) for spec in catalogue.own_indexes.values() if spec.table == name),
            )
            for name, kind, columns in await asyncio.to_thread(self.store.describe, source.name)
        )
        return msgspec.structs.replace(_source(source), tables=tables)

    def metrics(self) -> dict[str, float]:
        """What the service measures, for its status and for Prometheus."""
        store = self.store
        writer = store.writer if store.is_open else None
        return {
            "requests_refused_total": self._refused,
            "statements_total": store.workload.calls,
            "statements_running": self.pool.running(),
            "statements_refused_total": self.pool.refused,
            "statements_cancelled_total": self.pool.cancelled,
            "streams_broken_total": self.pool.broken_streams,
            "changes_listeners": self.feed.listeners,
            "rows_written_total": store.workload.rows_written,
            "commits_total": writer.commits if writer else 0,
            "writes_waiting": writer.waiting() if writer else 0,
            "uploads_running": self._uploads,
            "sources": len(store.catalogue.sources),
            "own_indexes": len(store.catalogue.own_indexes),
        }


def make_app(
    directory: Path, *, limits: Limits | None = None, files: Path | None = None, spool: Path | None = None
) -> Starlette:
    """The application over the store in directory, which is opened when the application starts.

    ``app.state.fabric`` is the Fabric, ``app.state.store`` the Store.
    """
    fabric = Fabric(Store(directory, limits, files, spool))

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        fabric.feed.listen()
        try:
            await asyncio.to_thread(fabric.store.open)
        except (apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError) as error:
            path = fabric.store.path
            raise ConfigurationError(f"cannot use {path}: {error}; mend it, or move it away") from error
        try:
            yield
        finally:
            fabric.feed.end()
            await asyncio.to_thread(fabric.pool.close)
            await asyncio.to_thread(fabric.store.close)

    def route(path: str, **methods: Callable[[Request], Awaitable[Response]]) -> list[Route]:
        return [Route(path, current(endpoint), methods=[method.upper()]) for method, endpoint in methods.items()]

    def current(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def reply(request: Request) -> Response:
            if fabric.store.is_behind():
                await asyncio.to_thread(fabric.store.catch_up)
            return await endpoint(request)

        return reply

    app = Starlette(
        lifespan=opened,
        routes=[
            *route("/sql", post=fabric.sql),
            *route("/sources", get=fabric.sources),
            *route("/sources/{name}", get=fabric.source, post=fabric.add, put=fabric.add, delete=fabric.drop),
            *route("/changes", get=fabric.changes),
            WebSocketRoute("/ws/stream", fabric.feed.serve),
            *route("/tables/{name}/rows", get=fabric.rows, post=fabric.insert),
        ],
        exception_handlers={**EXCEPTION_HANDLERS, RefusedError: fabric.refuse},
    )
    app.state.fabric = fabric
    app.state.store = fabric.store
    return app


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What the work returns; if the client goes away before, the work is cancelled. The body has been read."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()


class BreakableStream(StreamingResponse):
    """A stream that, when it cannot go on, is cut off without its closing chunk: a client sees that it is not whole."""

    async def stream_response(self, send: Send) -> None:
        """Send the chunks."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self.body_iterator:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (RefusedError, CancelledError) as error:
            log.warning("broke off a stream: %s", error)
            return  # the server closes a connection whose answer was not completed
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# -- pieces -----------------------------------------------------------------------------------------------


def _write_all(file: FileIO, content: bytearray) -> None:
    """An unbuffered file takes what there is room for, and says so only by a number."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _source(source: Source) -> SourceAnswer:
    return SourceAnswer(name=source.name, kind=source.kind, path=source.path, created_s=source.created_s)
