"""The HTTP interface: an application over one store. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from services.data_fabric import answers, disk
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
from services.data_fabric.errors import ErrorAnswer, Reason, RefusedError
from services.data_fabric.limits import Limits
from services.data_fabric.pool import Pool
from services.data_fabric.reader import CancelledError
from services.data_fabric.store import Store

log = logging.getLogger(__name__)

INLINE_BYTES = 64 * 1024
"""A body up to this is decoded on the event loop, in well under a millisecond."""
SPOOL_BYTES = 1024 * 1024
KINDS = {
    "text/csv": "csv",
    "application/csv": "csv",
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/json": "sqlite",
}
Body = TypeVar("Body")


class Fabric:
    """The store, the threads that read it, and the answers to requests."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.limits = store.limits
        self.pool = Pool(store)
        self._uploads = 0

    # -- SQL ------------------------------------------------------------------------------------------

    async def sql(self, request: Request) -> Response:
        """``POST /sql``."""
        asked = await self._body(request, SqlRequest, self.limits.sql_body_bytes)
        form = choose(request.query_params.get("format"), request.headers.get("accept"))
        query = answers.query(asked, form, self.limits)
        if form is Format.JSON:
            return Response(
                await self.pool.run(query, answers.json_batch, answers.json_join(query, self.limits)),
                media_type=MEDIA_TYPES[form],
            )
        chunks = self.pool.stream(query, answers.stream_batch(form, explicit=asked.limit is not None, limit=query.rows))
        first = await anext(chunks)  # what is wrong with the statement shows before the status line is sent

        async def all_chunks() -> AsyncIterator[bytes]:
            try:
                yield first
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()

        return BreakableStream(all_chunks(), media_type=MEDIA_TYPES[form], headers={"cdn-row-limit": str(query.rows)})

    async def rows(self, request: Request) -> Response:
        """``GET /tables/NAME/rows``: a page, in order of insertion."""
        form = choose(request.query_params.get("format"), request.headers.get("accept"))
        limit = answers.whole_number(request, "limit", default=100, low=1, high=self.limits.page_rows_max)
        after = answers.whole_number(request, "after", default=0, low=-(2**63), high=2**63 - 1)
        name = request.path_params["name"]
        page = answers.Page(self.store, name, form, limit, after)
        body = await self.pool.run(page.query, page.encode, page.join)
        headers = {"link": f'<{page.next}>; rel="next"'} if page.next else {}
        return Response(body, media_type=MEDIA_TYPES[form], headers=headers)

    async def insert(self, request: Request) -> Response:
        """``POST /tables/NAME/rows``: answered when the rows are on disk."""
        asked = await self._body(request, InsertRequest, self.limits.insert_bytes)
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
        return _json(InsertAnswer(table=name, inserted=len(asked.rows), last_rowid=last), 201)

    # -- sources --------------------------------------------------------------------------------------

    async def sources(self, request: Request) -> Response:
        """``GET /sources``."""
        return _json(SourcesAnswer(sources=tuple(map(_source, self.store.catalogue.sources.values()))))

    async def source(self, request: Request) -> Response:
        """``GET /sources/NAME``."""
        return _json(await self._described(self.store.source(request.path_params["name"])))

    async def add(self, request: Request) -> Response:
        """``POST /sources/NAME`` makes a source; ``PUT`` replaces one, if there is one."""
        name = request.path_params["name"]
        replace = request.method == "PUT"
        kind = request.query_params.get("kind") or KINDS.get(
            request.headers.get("content-type", "").partition(";")[0].strip().lower(), ""
        )
        if kind == "sqlite":
            asked = await self._body(request, AttachRequest, self.limits.sql_body_bytes)
            made = await asyncio.to_thread(self.store.attach, name, asked.path, replace=replace)
        elif kind in {"csv", "ndjson"}:
            self.store.check_free(name, replace)  # before the body is read
            made = await self._load(request, name, kind, replace)
        else:
            raise RefusedError(
                415,
                "cannot tell what this source is",
                value=request.headers.get("content-type"),
                limit=", ".join(KINDS),
                next="set Content-Type, or ?kind=csv, ndjson or sqlite",
            )
        return _json(await self._described(made), 201)

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
                    async for chunk in _chunks(request, self.limits.upload_bytes, self.limits.upload_s):
                        waiting += chunk
                        if len(waiting) >= SPOOL_BYTES:
                            await asyncio.to_thread(_write_all, file, waiting)
                            waiting = bytearray()
                    await asyncio.to_thread(_write_all, file, waiting)
                return await asyncio.to_thread(self.store.load, name, kind, Path(spooled), replace=replace)
            finally:
                os.unlink(spooled)
        except OSError as error:
            if disk.is_full(error):
                raise disk.refusal(self.store.spool) from error
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

    async def _body(self, request: Request, type: type[Body], limit: int) -> Body:
        body = b"".join([chunk async for chunk in _chunks(request, limit, self.limits.body_s)])
        if len(body) <= INLINE_BYTES:
            return _decode(body, type)
        return await asyncio.to_thread(_decode, body, type)

    def metrics(self) -> dict[str, float]:
        """What the service measures, for its status and for Prometheus."""
        store = self.store
        writer = store.writer if store.is_open else None
        return {
            "statements_total": store.workload.calls,
            "statements_running": self.pool.running(),
            "statements_refused_total": self.pool.refused,
            "streams_broken_total": self.pool.broken_streams,
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
        await asyncio.to_thread(fabric.store.open)
        try:
            yield
        finally:
            await asyncio.to_thread(fabric.pool.close)
            await asyncio.to_thread(fabric.store.close)

    def route(path: str, **methods: Callable[[Request], Awaitable[Response]]) -> list[Route]:
        return [Route(path, current(endpoint), methods=[method.upper()]) for method, endpoint in methods.items()]

    def current(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if fabric.store.is_behind():
                await asyncio.to_thread(fabric.store.catch_up)
            return await endpoint(request)

        return answer

    app = Starlette(
        lifespan=opened,
        routes=[
            *route("/sql", post=fabric.sql),
            *route("/sources", get=fabric.sources),
            *route("/sources/{name}", get=fabric.source, post=fabric.add, put=fabric.add, delete=fabric.drop),
            *route("/tables/{name}/rows", get=fabric.rows, post=fabric.insert),
        ],
        exception_handlers={RefusedError: _refused, HTTPException: _http, ClientDisconnect: _gone, Exception: _bug},
    )
    app.state.fabric = fabric
    app.state.store = fabric.store
    return app


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


async def _chunks(request: Request, limit: int, within_s: float) -> AsyncIterator[bytes]:
    """The request's body, as long as it is within its limits; raises RefusedError."""
    too_large = RefusedError(413, "cannot take so large a body", limit=f"{limit} bytes", next="send it in parts")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    size = 0
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout_at(deadline_s):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise RefusedError(408, "cannot wait longer for the body", limit=f"{within_s:g} s") from error
        if chunk is None:
            return
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk


def _write_all(file: FileIO, content: bytearray) -> None:
    """An unbuffered file takes what there is room for, and says so only by a number."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _decode(body: bytes, type: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=type)
    except RecursionError as error:
        raise RefusedError(400, "cannot read the JSON: it is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        shown = body[:100].decode(errors="replace")
        raise RefusedError(400, f"cannot read the JSON: {error}", value=shown) from error


def _json(answer: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type=MEDIA_TYPES[Format.JSON])


def _source(source: Source) -> SourceAnswer:
    return SourceAnswer(name=source.name, kind=source.kind, path=source.path, created_s=source.created_s)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    response = _json(ErrorAnswer(error=error.reason), error.reason.status)
    if error.reason.status == 503:
        response.headers["retry-after"] = "1"
    return response


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "cannot find this path", 405: "cannot do this with this path"}.get(error.status_code, error.detail)
    answer = Reason(status=error.status_code, what=what, value=f"{request.method} {request.url.path}"[:200])
    return Response(
        msgspec.json.encode(ErrorAnswer(error=answer)),
        error.status_code,
        headers=dict(error.headers or {}),
        media_type=MEDIA_TYPES[Format.JSON],
    )


async def _bug(request: Request, _: Exception) -> Response:
    """What nobody foresaw; it is in the log."""
    reason = Reason(
        status=500, what="cannot answer: a fault of the service", value=f"{request.method} {request.url.path}"
    )
    return _json(ErrorAnswer(error=reason), 500)


async def _gone(_: Request, error: Exception) -> Response:
    """The client went away in the middle of its request; nobody reads this."""
    return Response(status_code=400)
