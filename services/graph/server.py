"""The HTTP interface: an application over one store and its engine. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import apsw
import msgspec
from msgspec import Raw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from bus.messages import Blocked, Event, Reaction, Sighting
from cdn_daemon.api import EXCEPTION_HANDLERS, JSON, RefusedError, answer, read_body, read_json, routes, whole_number
from cdn_daemon.service import ConfigurationError
from services.graph import answers
from services.graph.api import (
    AlgorithmRequest,
    Direction,
    KhopQuestion,
    NodesRequest,
    PathsQuestion,
    QueryRequest,
    RelationshipsRequest,
    Written,
)
from services.graph.compute import compute
from services.graph.engine import ClientGone, Engine, Reading, out_of_time
from services.graph.export import MEDIA_TYPES, graphml, node_link
from services.graph.heard import work_of
from services.graph.limits import Limits
from services.graph.patterns import check
from services.graph.stix import read_import
from services.graph.store import Store, StoreError
from services.graph.stream import Stream
from services.graph.views import TimeIsUp
from services.graph.workload import Answered, Question

log = logging.getLogger(__name__)

CHUNK_ROWS = 200


class Graph:
    """The store, what answers, and what is told."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self.store = Store(directory, limits)
        self.limits = self.store.limits
        self.engine = Engine(self.store)
        self.stream = Stream(self.store)
        self._computing = asyncio.Semaphore(self.limits.computing)
        self._exports = 0

    # -- writing ------------------------------------------------------------------------------------------

    async def put_nodes(self, request: Request) -> Response:
        """``POST /nodes``."""
        _not_from_a_page(request)
        asked = await read_json(request, NodesRequest, self.limits.body_bytes)
        self._check_batch(len(asked.nodes))
        return await _written(self.store.put_nodes(asked.nodes, merge=asked.merge))

    async def put_relationships(self, request: Request) -> Response:
        """``POST /relationships``."""
        _not_from_a_page(request)
        asked = await read_json(request, RelationshipsRequest, self.limits.body_bytes)
        self._check_batch(len(asked.relationships))
        return await _written(
            self.store.put_relationships(asked.relationships, merge=asked.merge, create_nodes=asked.create_nodes)
        )

    def _check_batch(self, count: int) -> None:
        if not 0 < count <= self.limits.batch:
            raise RefusedError(413, "cannot take a batch of this size", value=count, limit=f"1 to {self.limits.batch}")

    async def delete_node(self, request: Request) -> Response:
        """``DELETE /nodes/ID``."""
        _not_from_a_page(request)
        detach = _is_yes(request, "detach", default=False)
        return await _written(self.store.delete_node(request.path_params["id"], detach=detach), 200)

    async def delete_relationship(self, request: Request) -> Response:
        """``DELETE /relationships/ID``."""
        _not_from_a_page(request)
        return await _written(self.store.delete_relationship(request.path_params["id"]), 200)

    async def bring_in(self, request: Request) -> Response:
        """``POST /import``."""
        _not_from_a_page(request)
        body = await read_body(request, self.limits.import_bytes, self.limits.import_s)
        brought = await asyncio.to_thread(read_import, body, request.query_params.get("format"), self.limits)
        done = await asyncio.wrap_future(self.store.bring_in(brought.nodes, brought.relationships))
        done.skipped, done.examples = brought.skipped, brought.examples
        return answer(done, 201)

    async def hear(self, event: Event, facts: Sighting | Reaction | Blocked) -> None:
        """An event of the bus."""
        await asyncio.wrap_future(self.store.hear(event.id, work_of(event, facts)))

    # -- reading ------------------------------------------------------------------------------------------

    async def node(self, request: Request) -> Response:
        """``GET /nodes/ID``."""
        id = request.path_params["id"]

        def work(reading: Reading) -> Any:
            key = reading.key(id)
            found = answers.node_answer(reading, key, properties=True)
            if found is None:
                raise RefusedError(404, "cannot find this node", value=id)
            reading.returned = 1
            return {
                "node": found,
                "degree": {"out": len(reading.view.out(key)[0]), "in": len(reading.view.into(key)[0])},
            }

        return await self._read(request, Question("node", id), work)

    async def relationship(self, request: Request) -> Response:
        """``GET /relationships/ID``."""
        id = request.path_params["id"]

        def work(reading: Reading) -> Any:
            found = reading.db.execute(answers.RELATIONSHIP.format("id"), (id,)).fetchone()
            if found is None:
                raise RefusedError(404, "cannot find this relationship", value=id)
            reading.returned = 1
            names = ("id", "type", "from", "to")
            return {"relationship": dict(zip(names, found[:4], strict=True)) | {"properties": Raw(found[4].encode())}}

        return await self._read(request, Question("relationship", id), work)

    async def khop(self, request: Request) -> Response:
        """``GET /nodes/ID/khop``."""
        asked = KhopQuestion(
            id=request.path_params["id"],
            k=whole_number(request, "k", default=1, low=1, high=self.limits.hops),
            direction=_direction(request, "both"),
            types=_types(request),
            limit=whole_number(request, "limit", default=100, low=1, high=self.limits.results),
            properties=_is_yes(request, "properties", default=False),
        )
        return await self._read(
            request, _question("khop", asked), lambda reading: answers.neighbourhood(reading, asked)
        )

    async def paths(self, request: Request) -> Response:
        """``GET /paths``."""
        query = request.query_params
        ends = [query.get(name, "") for name in ("from", "to")]
        if not all(ends):
            raise RefusedError(400, "cannot look for a path without its ends", next="?from=ID&to=ID")
        asked = PathsQuestion(
            source=ends[0],
            target=ends[1],
            k=whole_number(request, "k", default=1, low=1, high=self.limits.paths),
            max_hops=whole_number(request, "max_hops", default=self.limits.hops, low=1, high=32),
            direction=_direction(request, "out"),
            types=_types(request),
            weight=query.get("weight") or None,
        )
        return await self._read(
            request, _question("paths", asked), lambda reading: answers.shortest_paths(self.engine, reading, asked)
        )

    async def query(self, request: Request) -> Response:
        """``POST /query``."""
        asked = await read_json(request, QueryRequest, self.limits.body_bytes)
        check(asked, self.limits)
        plain = msgspec.structs.replace(asked, timeout_s=None, max_staleness_s=None)
        return await self._read(
            request,
            _question("query", plain),
            lambda reading: answers.matches(reading, plain),
            asked.timeout_s,
            asked.max_staleness_s,
        )

    async def _read(
        self,
        request: Request,
        question: Question,
        work: Callable[[Reading], Any],
        timeout_s: float | None = None,
        max_staleness_s: float | None = None,
    ) -> Response:
        timeout_s = timeout_s or _seconds(request, "timeout_s", self.limits.timeout_max_s) or self.limits.timeout_s
        if max_staleness_s is None:
            max_staleness_s = _seconds(request, "max_staleness_s", 3600.0)

        async def found(bound_s: float) -> Answered:
            return (await self.engine.read(bound_s, timeout_s, work))[1]

        try:
            body = await self.engine.ask(question, found, max_staleness_s=max_staleness_s, request=request)
        except ClientGone:
            return Response(status_code=400)  # nobody reads this
        return Response(body, media_type=JSON)

    async def algorithm(self, request: Request) -> Response:
        """``POST /algorithms/NAME``."""
        name = request.path_params["name"]
        if name not in answers.ALGORITHMS:
            raise RefusedError(404, "cannot find this algorithm", value=name, limit=", ".join(answers.ALGORITHMS))
        asked = await read_json(request, AlgorithmRequest, self.limits.body_bytes)
        if name == "hawkes" and bool(asked.times) is (asked.node is not None):
            raise RefusedError(422, "cannot fit this series", next="give times, or node")
        plain = msgspec.structs.replace(asked, timeout_s=None, max_staleness_s=None)
        timeout_s = asked.timeout_s or self.limits.timeout_s

        async def found(bound_s: float) -> Answered:
            return await self._compute(name, plain, bound_s, timeout_s)

        try:
            body = await self.engine.ask(
                _question(name, plain), found, max_staleness_s=asked.max_staleness_s, request=request
            )
        except ClientGone:
            return Response(status_code=400)
        return Response(body, media_type=JSON)

    async def _compute(self, name: str, asked: AlgorithmRequest, bound_s: float, timeout_s: float) -> Answered:
        begun_s = time.monotonic()
        kept: list[Any] = []

        def gather(reading: Reading) -> Any:
            kept.extend((answers.select(self.engine, reading, name, asked, self.limits), reading.view))
            return {}

        try:
            async with asyncio.timeout(timeout_s):
                await self._computing.acquire()
        except TimeoutError as error:
            raise RefusedError(
                503, "cannot compute now: others do", limit=f"{self.limits.computing} at once", next="try again"
            ) from error
        try:
            _, took = await self.engine.read(bound_s, timeout_s, gather)
            selected, view = kept
            selected.job.deadline_s = max(0.05, timeout_s - (time.monotonic() - begun_s))
            outcome = await compute(selected.job)
        except TimeIsUp as error:
            self.engine.workload.timeouts += 1
            raise out_of_time(timeout_s, self.limits.timeout_max_s) from error
        finally:
            self._computing.release()
        if outcome.error:
            raise RefusedError(422, outcome.error)
        elapsed_ms = (time.monotonic() - begun_s) * 1e3

        def tell(reading: Reading) -> Any:
            if view.engine == "snapshot":
                reading.view = view
            return answers.told(reading, name, selected, outcome, elapsed_ms)

        _, told = await self.engine.read(3600.0, self.limits.timeout_s, tell)
        return told._replace(version=took.version, engine=took.engine, cpu_ms=elapsed_ms)

    async def export(self, request: Request) -> Response:
        """``GET /export``: all of it, as of one moment, while it is read."""
        form = request.query_params.get("format", "node-link")
        if form not in MEDIA_TYPES:
            raise RefusedError(400, "cannot export this format", value=form, limit=", ".join(MEDIA_TYPES))
        if self._exports >= self.limits.exports:
            raise RefusedError(503, "cannot export now: others do", limit=f"{self.limits.exports} at once")
        self._exports += 1
        held = ExitStack()
        try:
            db = await asyncio.to_thread(held.enter_context, self.store.reading())
            rows = (node_link if form == "node-link" else graphml)(db)
            first = await asyncio.to_thread(_chunk, rows)
            version = await asyncio.to_thread(_version, db)
        except BaseException:
            self._exports -= 1
            held.close()
            raise

        def ended() -> None:
            self._exports -= 1
            held.close()

        headers = {"cdn-graph-version": str(version)}
        return Export(rows, first, ended, self.limits.export_s, media_type=MEDIA_TYPES[form], headers=headers)

    async def about(self, request: Request) -> Response:
        """``GET /graph``: how much there is."""

        def work(reading: Reading) -> Any:
            db = reading.db
            nodes, relationships = db.execute("SELECT nodes, relationships FROM totals").get
            most = "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1000"
            return {
                "nodes": nodes,
                "relationships": relationships,
                "labels": dict(db.execute(f"SELECT label, count(*) FROM labels {most}").fetchall()),  # type: ignore[arg-type]
                "types": dict(db.execute(f"SELECT type, count(*) FROM relationships {most}").fetchall()),  # type: ignore[arg-type]
            }

        return await self._read(request, Question("graph", ""), work)

    # -- the rest -----------------------------------------------------------------------------------------

    async def background(self) -> None:
        """The snapshot follows the writes."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            self.engine.wake()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.stream.tell)

        self.store.changed = changed
        await self.engine.follow()

    def metrics(self) -> dict[str, float]:
        """For the status and for Prometheus."""
        store, engine = self.store, self.engine
        snapshot = engine.snapshot
        age_s = store.commits.age_s(snapshot.version, time.monotonic()) if snapshot is not None else 0.0
        numbers: dict[str, float] = {
            "graph_version": store.commits.newest,
            "graph_reads_total": engine.workload.reads,
            "graph_timeouts_total": engine.workload.timeouts,
            "graph_changes_total": store.written,
            "graph_writes_waiting": store.writer.waiting() if store.is_open else 0,
            "graph_snapshot": int(snapshot is not None),
            "graph_snapshot_age_seconds": round(age_s, 3),
            "graph_snapshot_bytes": snapshot.size_bytes() if snapshot is not None else 0,
            "graph_snapshot_refreshes_total": engine.workload.refreshes,
            "graph_snapshot_refresh_seconds": engine.refresh_s,
            "graph_pinned": len(engine.pinned),
            "graph_watchers": len(self.stream),
        }
        if engine.workload.p95_ms is not None:
            numbers["graph_read_p95_milliseconds"] = round(engine.workload.p95_ms, 3)
        return numbers


class Export(StreamingResponse):
    """A file as it is read. Where it cannot go on it is cut off without its closing chunk: a client sees that."""

    def __init__(
        self, rows: Iterator[bytes], first: bytes, ended: Callable[[], None], limit_s: float, **more: Any
    ) -> None:
        super().__init__(self._chunks(), **more)
        self._rows = rows
        self._first = first
        self._ended = ended
        self._limit_s = limit_s
        self._reading: asyncio.Future[bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; ``ended`` is called in any case, and not while a thread still reads."""
        try:
            async with asyncio.timeout(self._limit_s):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("broke off an export: it took longer than %g s", self._limit_s)
        finally:
            if self._reading is not None and not self._reading.done():
                await asyncio.wait({self._reading})
            self._ended()

    async def stream_response(self, send: Send) -> None:
        """Send the chunks."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self.body_iterator:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except apsw.Error as error:
            log.warning("broke off an export: %s", error)
            return  # the server closes a connection whose answer was not completed
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[bytes]:
        chunk = self._first
        while chunk:
            yield chunk
            self._reading = asyncio.ensure_future(asyncio.to_thread(_chunk, self._rows))
            chunk = await asyncio.shield(self._reading)


async def _written(done: Future[Written], status: int = 201) -> Response:
    return answer(await asyncio.wrap_future(done), status)


def _chunk(rows: Iterator[bytes]) -> bytes:
    return b"".join(islice(rows, CHUNK_ROWS))


def _version(db: apsw.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM changes").get)


def _question(kind: str, asked: Any) -> Question:
    return Question(kind, msgspec.json.encode(asked).decode())


def _not_from_a_page(request: Request) -> None:
    """Any web page can send a request here; it cannot send one without saying where it is from."""
    if "origin" in request.headers:
        raise RefusedError(403, "cannot be written to by a web page", next="send no Origin header")


def _direction(request: Request, default: Direction) -> Direction:
    text = request.query_params.get("direction", default)
    if text not in ("out", "in", "both"):
        raise RefusedError(400, "cannot go in this direction", value=text, limit="out, in, both")
    return text  # type: ignore[return-value]


def _types(request: Request) -> tuple[str, ...]:
    return tuple(sorted({one for one in request.query_params.get("types", "").split(",") if one}))


def _is_yes(request: Request, name: str, *, default: bool) -> bool:
    text = request.query_params.get(name)
    if text is None:
        return default
    if text not in ("true", "false"):
        raise RefusedError(400, f"cannot use this {name}", value=text, limit="true, false")
    return text == "true"


def _seconds(request: Request, name: str, most: float) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        value = float(text[:30])
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise RefusedError(400, f"cannot use this {name}", value=text, limit=f"seconds, 0 to {most:g}")
    return value


def make_app(directory: Path, *, limits: Limits | None = None) -> Starlette:
    """The application over the store in directory, which is opened when the application starts.

    ``app.state.graph`` is the Graph; its background() must run beside the application.
    """
    graph = Graph(directory, limits)

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(graph.store.open)
        except StoreError as error:
            raise ConfigurationError(str(error)) from error
        try:
            yield
        finally:
            graph.stream.end()
            await asyncio.to_thread(graph.engine.close)
            await asyncio.to_thread(graph.store.close)

    app = Starlette(
        lifespan=opened,
        routes=[
            *routes("/graph", get=graph.about),
            *routes("/nodes", post=graph.put_nodes),
            *routes("/nodes/{id:path}/khop", get=graph.khop),
            *routes("/nodes/{id:path}", get=graph.node, delete=graph.delete_node),
            *routes("/relationships", post=graph.put_relationships),
            *routes("/relationships/{id:path}", get=graph.relationship, delete=graph.delete_relationship),
            *routes("/query", post=graph.query),
            *routes("/paths", get=graph.paths),
            *routes("/algorithms/{name}", post=graph.algorithm),
            *routes("/import", post=graph.bring_in),
            *routes("/export", get=graph.export),
            WebSocketRoute("/ws/stream", graph.stream.serve),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.graph = graph
    return app
