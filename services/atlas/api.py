"""GET /api/v1/…: one service, its metrics, lives, log and loop; events and commands. For the page and for scripts.

History is asked on its own thread, which encodes the answer too; files are read on
another. On the event loop nothing waits and nothing is long.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import msgspec
from msgspec import Struct, structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bus.endpoints import host_name
from bus.messages import CommandView, DaemonStatus, Event, IncarnationView, ProcessRow, ServiceView
from cdn_daemon.file_end import end_of
from cdn_daemon.web import error_body
from services.atlas import samples
from services.atlas.asked import BadQuery, moment, next_page, only, place, whole
from services.atlas.chain import NoChain, chain_of
from services.atlas.history import Busy, History, Memory
from services.atlas.loopback import Loopback, NoAnswer
from services.atlas.samples import MetricsPoint
from services.atlas.switchboard import Switchboard
from services.atlas.why import Lives, near

SCHEMA_VERSION = 1
ANSWER_S = 5.0
"""History may be busy, but not for longer."""
HOUR_S = 3600.0
MINUTE_S = 60
POINTS = 300
"""By default."""
POINTS_MOST = 5000
EVENTS_MOST = 1000
COMMANDS_MOST = 1000
INCARNATIONS_MOST = 100
LOG_BYTES = 64 * 1024
LOG_BYTES_MOST = 1 << 20
_COMMANDS_NEAR = 20

Answerer = Callable[[Request], Awaitable[Response]]


class ServiceAnswer(Struct, kw_only=True):
    """Answer of ``GET /api/v1/services/ID``."""

    schema_version: int = SCHEMA_VERSION
    service: ServiceView
    process: ProcessRow | None
    """supervisord's, by its warden's word; None if there is none."""
    status: DaemonStatus | None
    """The last of its daemon; None if there was none."""


class MetricsAnswer(Struct, kw_only=True):
    """Answer of ``GET /api/v1/services/ID/metrics``."""

    schema_version: int = SCHEMA_VERSION
    service: str
    since_s: float
    until_s: float
    step_s: int
    """Of the points; coarser than was asked for where history is."""
    points: list[MetricsPoint]
    """Oldest first; where nothing was heard there is none."""


class IncarnationsAnswer(Struct, kw_only=True):
    """Answer of ``GET /api/v1/services/ID/incarnations``."""

    schema_version: int = SCHEMA_VERSION
    service: str
    incarnations: list[IncarnationView]
    """Newest first, without their circumstances, stacks and log."""
    next: str | None


class IncarnationAnswer(IncarnationView, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/services/ID/incarnations/KEY``."""

    schema_version: int = SCHEMA_VERSION


class EventsAnswer(Struct, kw_only=True):
    """Answer of ``GET /api/v1/events``."""

    schema_version: int = SCHEMA_VERSION
    events: list[Event]
    """Newest first; of a chain the oldest."""
    next: str | None


class CommandsAnswer(Struct, kw_only=True):
    """Answer of ``GET /api/v1/commands``."""

    schema_version: int = SCHEMA_VERSION
    commands: list[CommandView]
    """Newest first; those that have not ended are on the first page."""
    next: str | None


class LogAnswer(Struct, kw_only=True):
    """Answer of ``GET /api/v1/services/ID/log``."""

    schema_version: int = SCHEMA_VERSION
    service: str
    path: str
    size_bytes: int
    text: str
    """The end of it, from the beginning of a line."""


class _Refused(Exception):
    def __init__(
        self, status: int, what: str, *, value: object = None, limit: object = None, next: str | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.body = error_body(status, what, value=value, limit=limit, next=next)


def api_routes(switchboard: Switchboard, history: History) -> list[Route]:
    """All of them, answering from these two."""
    api = Api(switchboard, history)
    answers: dict[str, Answerer] = {
        "/api/v1/services/{id}": api.service,
        "/api/v1/services/{id}/metrics": api.metrics,
        "/api/v1/services/{id}/incarnations": api.incarnations,
        "/api/v1/services/{id}/incarnations/{key}": api.incarnation,
        "/api/v1/services/{id}/log": api.log,
        "/api/v1/services/{id}/ooda": api.ooda,
        "/api/v1/events": api.events,
        "/api/v1/commands": api.commands,
    }
    return [Route(path, _answering(answer), methods=["GET"]) for path, answer in answers.items()]


def _answering(answer: Answerer) -> Answerer:
    async def guarded(request: Request) -> Response:
        try:
            return await answer(request)
        except _Refused as refused:
            return _json(refused.body, refused.status)
        except BadQuery as bad:
            return _json(error_body(400, bad.what, value=bad.value, limit=bad.limit), 400)

    return guarded


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status_code=status, media_type="application/json", headers={"Cache-Control": "no-store"})


class Api:
    """Each method answers one kind of request."""

    def __init__(self, switchboard: Switchboard, history: History) -> None:
        self._switchboard = switchboard
        self._history = history
        self._loopback = Loopback()

    # -- of the present -----------------------------------------------------------------------------

    async def service(self, request: Request) -> Response:
        """The service as it is now."""
        only(request.query_params)
        name, view = await self._known(request)
        place = self._switchboard.process(name)
        answer = ServiceAnswer(
            service=view, process=None if place is None else place[1], status=self._switchboard.status(name)
        )
        return _json(msgspec.json.encode(answer))

    async def log(self, request: Request) -> Response:
        """The end of its log, of the file that supervisord writes and no other."""
        query = request.query_params
        only(query, "bytes")
        most = whole(query, "bytes", LOG_BYTES, 1, LOG_BYTES_MOST)
        name, _ = await self._known(request)
        place = self._switchboard.process(name)
        if place is None or place[1].log is None:
            raise _Refused(404, f"cannot find a log of {name}: no supervisord told of one")
        host, row = place
        if host != host_name():
            raise _Refused(404, f"cannot read the log of {name} here: it is on {host}", value=row.log)
        assert row.log is not None
        path = row.log
        try:
            size_bytes, text = await asyncio.to_thread(end_of, path, most)
        except OSError as error:
            raise _Refused(404, f"cannot read the log of {name}: {error.strerror}", value=path) from error
        return _json(msgspec.json.encode(LogAnswer(service=name, path=path, size_bytes=size_bytes, text=text)))

    async def ooda(self, request: Request) -> Response:
        """What the service's own GET /ooda says."""
        only(request.query_params)
        name, view = await self._known(request)
        if view.address is None:
            raise _Refused(503, f"cannot ask {name} for its loop: it serves nowhere now", value=view.state)
        try:
            body = await self._loopback.get(view.address, "/ooda")
            if not isinstance(msgspec.json.decode(body), dict):
                raise NoAnswer(502, "the service's answer is no JSON object")
        except NoAnswer as error:
            raise _Refused(error.status, f"cannot ask {name} for its loop: {error}", value=view.address) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _Refused(502, f"cannot read what {name} says of its loop: {error}", value=view.address) from error
        return _json(body)

    async def _known(self, request: Request) -> tuple[str, ServiceView]:
        name = request.path_params["id"]
        view = self._switchboard.view(name)
        if view is None:
            raise await self._unknown(name)
        return name, view

    async def _unknown(self, name: str, others: list[str] | None = None) -> _Refused:
        meant = await asyncio.to_thread(near, name, {*self._switchboard.names(), *(others or ())})
        next = f"did you mean {' or '.join(meant)}?" if meant else "GET /api/v1/fleet"
        return _Refused(404, "cannot find this service", value=name[:200], next=next)

    # -- of the past --------------------------------------------------------------------------------

    async def metrics(self, request: Request) -> Response:
        """Its numbers over a time, by the second for the last hour and by the minute for a week."""
        query = request.query_params
        only(query, "since", "until", "step")
        name, now_s = request.path_params["id"], time.time()
        until_s = moment(query, "until", now_s)
        since_s = moment(query, "since", until_s - HOUR_S)
        if since_s >= until_s:
            raise BadQuery("cannot tell of a time that ends before it begins", str(since_s), f"before {until_s}")
        span_s = until_s - since_s
        step_s = whole(query, "step", max(1, -(-int(span_s) // POINTS)), 1, 86400)
        if span_s / step_s > POINTS_MOST:
            raise BadQuery(
                "cannot give so many points", f"{span_s:.0f} s by {step_s} s", f"{POINTS_MOST}; use a longer step"
            )

        def question(memory: Memory) -> bytes | None:
            points, finest_s = points_of(memory, name, since_s, until_s, step_s, now_s)
            if not points and memory.queries.number_of(name) is None:
                return None
            return msgspec.json.encode(
                MetricsAnswer(
                    service=name, since_s=since_s, until_s=until_s, step_s=max(step_s, finest_s), points=points
                )
            )

        return await self._of_service(name, question, MetricsAnswer(
            service=name, since_s=since_s, until_s=until_s, step_s=step_s, points=[]
        ))  # fmt: skip

    async def incarnations(self, request: Request) -> Response:
        """Its lives, newest first."""
        query = request.query_params
        only(query, "limit", "before")
        limit = whole(query, "limit", 20, 1, INCARNATIONS_MOST)
        before = place(query)
        name, path = request.path_params["id"], request.url.path
        view, commands = self._present(name)

        def question(memory: Memory) -> bytes | None:
            lives = Lives(memory, name, view, commands).listed(limit, None if before is None else before[0])
            if not lives and before is None:
                return None
            last_s = lives[-1].ended_s if lives else None  # after one that runs come all that have ended
            answer = IncarnationsAnswer(
                service=name,
                incarnations=[structs.replace(life, stacks="", log_tail="") for life in lives],
                next=next_page(path, query, time.time() if last_s is None else last_s) if len(lives) == limit else None,
            )
            return msgspec.json.encode(answer)

        return await self._of_service(name, question, IncarnationsAnswer(service=name, incarnations=[], next=None))

    async def incarnation(self, request: Request) -> Response:
        """One life of it, and all that is known of its end."""
        only(request.query_params)
        name, key = request.path_params["id"], request.path_params["key"]
        view, commands = self._present(name)

        def question(memory: Memory) -> bytes | None:
            life = Lives(memory, name, view, commands).bundle(key)
            return None if life is None else msgspec.json.encode(IncarnationAnswer(**structs.asdict(life)))

        body = await self._ask(question)
        if body is None:
            if view is None:
                raise await self._unknown(name, await self._ask(lambda memory: memory.queries.names()))
            raise _Refused(
                404,
                f"cannot find this incarnation of {name}",
                value=key[:200],
                next=f"GET /api/v1/services/{name}/incarnations",
            )
        return _json(body)

    async def events(self, request: Request) -> Response:
        """What happened, newest first."""
        query = request.query_params
        if "chain" in query:
            return await self._chain(request)
        only(query, "service", "kind", "since", "until", "limit", "before", "chain")
        limit = whole(query, "limit", 100, 1, EVENTS_MOST)
        since_s, until_s = moment(query, "since", 0.0), moment(query, "until", 1e11)
        before, path = place(query), request.url.path

        def question(memory: Memory) -> bytes:
            found = memory.queries.events(
                instance=query.get("service"),
                kind=query.get("kind"),
                since_s=since_s,
                until_s=until_s,
                before=before,
                limit=limit,
            )
            answer = EventsAnswer(
                events=[event for _, event in found],
                next=next_page(path, query, *found[-1][0]) if len(found) == limit else None,
            )
            return msgspec.json.encode(answer)

        return _json(await self._ask(question))

    async def _chain(self, request: Request) -> Response:
        """What led to an event or command and what came of it, oldest first."""
        only(request.query_params, "chain")
        id_ = request.query_params["chain"]

        def question(memory: Memory) -> bytes:
            return msgspec.json.encode(EventsAnswer(events=chain_of(memory.queries, id_), next=None))

        try:
            return _json(await self._ask(question))
        except NoChain as error:
            raise _Refused(404, str(error), value=id_[:200], next="GET /api/v1/events") from error

    async def commands(self, request: Request) -> Response:
        """What was asked and what came of it, newest first."""
        query = request.query_params
        only(query, "service", "since", "until", "limit", "before")
        limit = whole(query, "limit", 100, 1, COMMANDS_MOST)
        since_s, until_s = moment(query, "since", 0.0), moment(query, "until", 1e11)
        before, path, name = place(query), request.url.path, query.get("service")
        if before is not None:
            until_s = min(until_s, before[0])
        present = self._switchboard.commands(limit, name)

        def question(memory: Memory) -> bytes:
            held = {each.id: each for each in memory.queries.commands(name, since_s, until_s, limit)}
            held |= {each.id: each for each in present if since_s <= each.asked_at_s < until_s}
            found = sorted(held.values(), key=lambda each: -each.asked_at_s)[:limit]
            answer = CommandsAnswer(
                commands=found,
                next=next_page(path, query, found[-1].asked_at_s) if len(found) == limit else None,
            )
            return msgspec.json.encode(answer)

        return _json(await self._ask(question))

    def _present(self, name: str) -> tuple[ServiceView | None, tuple[CommandView, ...]]:
        return self._switchboard.view(name), self._switchboard.commands(_COMMANDS_NEAR, name)

    async def _of_service(self, name: str, question: Callable[[Memory], bytes | None], nothing: Struct) -> Response:
        """The answer; ``nothing`` if history has none of a service that there is."""
        body = await self._ask(question)
        if body is None:
            if self._switchboard.view(name) is None:
                raise await self._unknown(name, await self._ask(lambda memory: memory.queries.names()))
            body = msgspec.json.encode(nothing)
        return _json(body)

    async def _ask(self, question: Callable[[Memory], Any]) -> Any:
        try:
            asked: Future[Any] = self._history.ask(question)
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(asked)
        except Busy as error:
            raise _Refused(503, f"cannot look into the history: {error}", next="try again") from error
        except TimeoutError as error:
            raise _Refused(503, f"cannot look into the history: no answer within {ANSWER_S:.0f} s") from error
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise _Refused(503, f"cannot look into the history: {error}") from error


def points_of(
    memory: Memory, name: str, since_s: float, until_s: float, step_s: int, now_s: float
) -> tuple[list[MetricsPoint], int]:
    """Points by that step, and the finest step that there is of that time."""
    if since_s >= now_s - HOUR_S - MINUTE_S:
        rows, finest_s = memory.seconds(name, since_s, until_s), 1
        return [samples.point_of(row) for row in samples.roll_up(rows, step_s)], finest_s
    rolled_s = memory.queries.rolled_until_s(name)
    rollups = memory.queries.minutes(name, since_s, min(rolled_s, until_s))
    rollups += samples.roll_up(memory.seconds(name, max(since_s, rolled_s), until_s), MINUTE_S)
    return [samples.point_of(row) for row in samples.merge(rollups, max(step_s, MINUTE_S))], MINUTE_S
