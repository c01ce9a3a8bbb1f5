"""The HTTP interface. What changes anything needs the token; what only tells does not."""

from __future__ import annotations

import asyncio
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cdn_daemon.api import (
    EXCEPTION_HANDLERS,
    RefusedError,
    Token,
    answer,
    read_body,
    read_json,
    routes,
    whole_number,
)
from services.stream import gone
from services.threat_reaction import lapi, sshd, store
from services.threat_reaction.desk import Desk, Told
from services.threat_reaction.gateways import Gateways
from services.threat_reaction.judgement import Sighted, simulate
from services.threat_reaction.memory import Ban
from services.threat_reaction.networks import BadNetworkError, read_address
from services.threat_reaction.playbooks import BadPlaybookError, Kind, Playbook, Seconds, check
from services.threat_reaction.records import Reaction, Standing

BODY_BYTES = 1 << 20
SIGHTINGS_MAX = 1000
SIMULATED_MAX = 20_000
SIMULATED_BYTES = 8 << 20
DECISIONS_SHOWN = 1000
PAGE_MAX = 1000
AHEAD_S = 300.0
"""How far in the future a sighting may be: clocks differ."""
BOUNCERS_MAX = 100
WATCHERS_MAX = 100
WATCHED_MAX = 256
"""What waits for one watcher; one that is slower is sent away."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

Who = Annotated[str, Meta(min_length=1, max_length=100)]
Why = Annotated[str, Meta(max_length=1000)]


class PostedSighting(Struct, kw_only=True, forbid_unknown_fields=True):
    """What somebody has seen of an address."""

    address: str
    kind: Kind
    at: float | None = None
    """Seconds since the epoch; None: now."""
    count: Annotated[int, Meta(ge=1, le=1000)] = 1
    confidence: Annotated[int, Meta(ge=0, le=100)] = 100
    source: Annotated[str, Meta(max_length=100)] = ""
    id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """The same id twice is the same sighting."""
    cause: Annotated[str, Meta(max_length=200)] | None = None
    """Id of the event that told of it."""


class Order(Struct, kw_only=True, forbid_unknown_fields=True):
    """Who orders it, and why."""

    by: Who
    why: Why = ""


class StandingOrder(Order, kw_only=True, forbid_unknown_fields=True):
    """A standing approval; without for_s until it is revoked."""

    for_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None


class BanOrder(Order, kw_only=True, forbid_unknown_fields=True):
    """A person's ban; without for_s as long as escalation says."""

    network: str
    for_s: Seconds | None = None


class SimulationOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """Sightings to play; ``sshd`` are lines of OpenSSH's log."""

    sightings: Annotated[list[PostedSighting], Meta(max_length=SIMULATED_MAX)] = []
    sshd: Annotated[list[str], Meta(max_length=SIMULATED_MAX)] = []
    playbook: Playbook | None = None
    """Another than the one of that name."""


class BouncerOrder(Struct, kw_only=True, forbid_unknown_fields=True):
    """A bouncer that may ask."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
    by: Who


class BanView(Struct, kw_only=True):
    """A ban, as it is shown."""

    id: int
    network: str
    kind: str
    starts_s: float
    until_s: float
    left_s: float
    level: float
    reaction: str
    scenario: str
    by: str
    gateways: dict[str, str]
    """What each does about it."""


class PlaybookView(Struct, kw_only=True):
    """A playbook and its approval."""

    name: str
    asks: bool
    """Whether a person has to approve what it would do."""
    standing: Standing | None
    playbook: Playbook


class Watchers:
    """Who listens to /ws/stream."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def tell(self, told: Told) -> None:
        """From any thread."""
        loop = self._loop
        if loop is not None and self._queues and not loop.is_closed():
            message = msgspec.json.encode({"event": told.id, "cause": told.cause, "reaction": told.reaction})
            loop.call_soon_threadsafe(self._put, message)

    def _put(self, message: bytes) -> None:
        for waiting in self._queues:
            if waiting.qsize() >= WATCHED_MAX:
                while not waiting.empty():
                    waiting.get_nowait()
                waiting.put_nowait(None)
            else:
                waiting.put_nowait(message)

    @contextmanager
    def watching(self) -> Iterator[asyncio.Queue[bytes | None]]:
        """A queue of what is told from now on; None is the last, for one who is too slow."""
        self._loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queues.add(waiting)
        try:
            yield waiting
        finally:
            self._queues.discard(waiting)

    def __len__(self) -> int:
        return len(self._queues)


class Server:
    """The answers to requests."""

    def __init__(self, desk: Desk, gateways: Gateways, token: Token) -> None:
        self.desk = desk
        self.gateways = gateways
        self.token = token
        self.watchers = Watchers()
        self._simulating = asyncio.Semaphore(1)

    # -- sightings ------------------------------------------------------------------------------------------

    async def sight(self, request: Request) -> Response:
        """``POST /sightings``: one, an array of them, or as text/plain OpenSSH's log. Answered when on disk."""
        self.token.check(request)
        body = await read_body(request, BODY_BYTES)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        read = self._read_log if kind == "text/plain" else self._read_sightings
        sightings = read(body) if len(body) < 65536 else await asyncio.to_thread(read, body)
        return answer(await _done(self.desk.sight(sightings)))

    def _read_sightings(self, body: bytes) -> list[tuple[Sighted, str | None]]:
        try:
            posted = msgspec.json.decode(body, type=PostedSighting | list[PostedSighting])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedError(
                400,
                f"cannot read the sightings: {error}",
                value=body[:100].decode(errors="replace"),
                next='send {"address": "192.0.2.1", "kind": "ssh_failed"}, or an array of such',
            ) from error
        several = posted if isinstance(posted, list) else [posted]
        if len(several) > SIGHTINGS_MAX:
            raise RefusedError(413, "cannot take so many sightings at once", value=len(several), limit=SIGHTINGS_MAX)
        now_s = self.desk.clock()
        return [(_sighted(one, now_s), one.id) for one in several]

    def _read_log(self, body: bytes) -> list[tuple[Sighted, str | None]]:
        """A line that was sent before is known by its own text: syslog's have no ids."""
        # Whatever else ends a line in Unicode, somebody may have typed for a name.
        lines = body.decode(errors="replace").removesuffix("\n").split("\n")
        if len(lines) > SIGHTINGS_MAX:
            raise RefusedError(413, "cannot take so many lines at once", value=len(lines), limit=SIGHTINGS_MAX)
        now_s = self.desk.clock()
        year = datetime.fromtimestamp(now_s, UTC).year
        return [
            (sighted, f"sshd:{line.strip()}")
            for line in lines
            if (sighted := sshd.read_line(line, year)) is not None and sighted.at_s <= now_s + AHEAD_S
        ]

    async def source(self, request: Request) -> Response:
        """``GET /sources/ADDRESS``."""
        return answer(await _done(self.desk.known(request.path_params["address"])))

    # -- reactions ------------------------------------------------------------------------------------------

    async def reactions(self, request: Request) -> Response:
        """``GET /reactions``: newest first, a page at a time."""
        states = tuple(word for word in request.query_params.get("state", "").split(",") if word)
        limit = whole_number(request, "limit", default=100, low=1, high=PAGE_MAX)
        before = whole_number(request, "before", default=1 << 62, low=1, high=1 << 62)
        found = await self._read(lambda db: store.reactions(db, states, limit, before))
        following = found[-1][0] if len(found) == limit else None
        return answer({"reactions": [reaction for _, reaction in found], "before": following})

    async def reaction(self, request: Request) -> Response:
        """``GET /reactions/ID``."""
        id = request.path_params["id"]
        found = await self._read(lambda db: store.reaction(db, id))
        if found is None:
            raise RefusedError(404, "cannot find this reaction", value=id, next="GET /reactions")
        return answer(found)

    async def order(self, request: Request) -> Response:
        """``POST /reactions/ID/approve|deny|rollback``."""
        self.token.check(request)
        id, verb = request.path_params["id"], request.path_params["verb"]
        orders = {"approve": self.desk.approve, "deny": self.desk.deny, "rollback": self.desk.roll_back}
        if verb not in orders:
            raise RefusedError(404, "cannot do this with a reaction", value=verb, limit=", ".join(orders))
        asked = await read_json(request, Order, BODY_BYTES)
        done: Reaction = await _done(orders[verb](id, asked.by, asked.why))
        return answer(done)

    # -- bans -----------------------------------------------------------------------------------------------

    async def bans(self, request: Request) -> Response:
        """``GET /bans``: those in force, and what each gateway does about them."""
        limit = whole_number(request, "limit", default=1000, low=1, high=10_000)
        after = whole_number(request, "after", default=0, low=0, high=1 << 62)

        def view() -> bytes:
            bans = sorted(self.desk.bans.values(), key=lambda ban: ban.id)
            shown = [self._shown(ban) for ban in bans if ban.id > after][:limit]
            return msgspec.json.encode(
                {"bans": shown, "count": len(bans), "after": shown[-1].id if len(shown) == limit else None}
            )

        return Response(await asyncio.to_thread(view), media_type="application/json")

    def _shown(self, ban: Ban) -> BanView:
        return BanView(
            id=ban.id,
            network=str(ban.network),
            kind=ban.kind,
            starts_s=ban.starts_s,
            until_s=ban.until_s,
            left_s=round(max(0.0, ban.until_s - self.desk.clock()), 1),
            level=round(ban.level, 3),
            reaction=ban.reaction,
            scenario=ban.scenario,
            by=ban.by,
            gateways=self.gateways.does(ban.network),
        )

    async def ban(self, request: Request) -> Response:
        """``POST /bans``."""
        self.token.check(request)
        asked = await read_json(request, BanOrder, BODY_BYTES)
        bans = await _done(self.desk.ban(asked.network, asked.for_s, asked.by, asked.why))
        return answer({"bans": [self._shown(ban) for ban in bans]}, 201)

    async def lift(self, request: Request) -> Response:
        """``DELETE /bans/NETWORK?by=…``."""
        self.token.check(request)
        by, why = _by(request)
        return answer(self._shown(await _done(self.desk.lift(request.path_params["network"], by, why))))

    # -- what is never blocked ------------------------------------------------------------------------------

    async def never(self, request: Request) -> Response:
        """``GET /never-block``."""
        listed = {str(network): why for network, why in self.desk.listing()[1].items()}
        return answer({"never_block": listed, "gateways": self.gateways.addresses()})

    async def spare(self, request: Request) -> Response:
        """``PUT /never-block/NETWORK``."""
        self.token.check(request)
        asked = await read_json(request, Order, BODY_BYTES)
        lifted = await _done(self.desk.spare(request.path_params["network"], asked.by, asked.why))
        return answer({"lifted": [str(ban.network) for ban in lifted]})

    async def unspare(self, request: Request) -> Response:
        """``DELETE /never-block/NETWORK?by=…``."""
        self.token.check(request)
        by, why = _by(request)
        await _done(self.desk.unspare(request.path_params["network"], by, why))
        return Response(status_code=204)

    # -- playbooks ------------------------------------------------------------------------------------------

    def _playbook(self, name: str) -> PlaybookView:
        found = self.desk.listing()[0].get(name)
        if found is None:
            raise RefusedError(404, "cannot find this playbook", value=name, next="GET /playbooks")
        playbook, standing = found
        stands = standing is not None and (standing.until_s is None or standing.until_s > self.desk.clock())
        return PlaybookView(name=name, asks=not stands, standing=standing, playbook=playbook)

    async def playbooks(self, request: Request) -> Response:
        """``GET /playbooks``."""
        return answer({"playbooks": [self._playbook(name) for name in self.desk.listing()[0]]})

    async def playbook(self, request: Request) -> Response:
        """``GET /playbooks/NAME``."""
        return answer(self._playbook(request.path_params["name"]))

    async def put_playbook(self, request: Request) -> Response:
        """``PUT /playbooks/NAME?by=…``."""
        self.token.check(request)
        name, (by, _) = request.path_params["name"], _by(request)
        if not _NAME.fullmatch(name):
            raise RefusedError(400, "cannot name a playbook so", value=name, limit="letters, digits, . _ -, at most 64")
        playbook = _checked(await read_json(request, Playbook, BODY_BYTES))
        is_new = await _done(self.desk.put_playbook(name, playbook, by))
        return answer(self._playbook(name), 201 if is_new else 200)

    async def drop_playbook(self, request: Request) -> Response:
        """``DELETE /playbooks/NAME?by=…``."""
        self.token.check(request)
        await _done(self.desk.drop_playbook(request.path_params["name"], _by(request)[0]))
        return Response(status_code=204)

    async def stand(self, request: Request) -> Response:
        """``POST /playbooks/NAME/approve|revoke``: a standing approval."""
        name, verb = request.path_params["name"], request.path_params["verb"]
        if verb == "simulate":
            return await self.simulate(request)
        self.token.check(request)
        if verb not in ("approve", "revoke"):
            raise RefusedError(404, "cannot do this with a playbook", value=verb, limit="approve, revoke, simulate")
        asked = await read_json(request, StandingOrder, BODY_BYTES)
        await _done(self.desk.stand(name, asked.by, asked.for_s, stands=verb == "approve"))
        return answer(self._playbook(name))

    async def simulate(self, request: Request) -> Response:
        """``POST /playbooks/NAME/simulate``: what it would have done. Changes nothing, and needs no token."""
        name = request.path_params["name"]
        if self._simulating.locked():
            raise RefusedError(503, "cannot simulate now: another simulation runs", next="try again")
        async with self._simulating:
            asked = await read_json(request, SimulationOrder, SIMULATED_BYTES)
            playbook = _checked(asked.playbook) if asked.playbook is not None else self._playbook(name).playbook
            now_s = self.desk.clock()
            year = datetime.fromtimestamp(now_s, UTC).year
            played = [_sighted(one, now_s) for one in asked.sightings] + sshd.read_lines(asked.sshd, year)
            never = self.desk.listing()[1]
            return answer(
                await asyncio.to_thread(simulate, name, playbook, played, never, decisions_max=DECISIONS_SHOWN)
            )

    # -- audit ----------------------------------------------------------------------------------------------

    async def audit(self, request: Request) -> Response:
        """``GET /audit``: oldest first, a page at a time."""
        after = whole_number(request, "after", default=0, low=0, high=1 << 62)
        limit = whole_number(request, "limit", default=100, low=1, high=PAGE_MAX)
        entries = await self._read(lambda db: store.audit_entries(db, after, limit))
        return answer({"entries": entries, "after": entries[-1].number if len(entries) == limit else None})

    async def verify(self, request: Request) -> Response:
        """``GET /audit/verify``: whether every entry follows from those before it."""
        count, broken = await self._read(store.first_broken)
        return answer({"entries": count, "intact": broken is None, "first_broken": broken})

    async def gateways_shown(self, request: Request) -> Response:
        """``GET /gateways``."""
        return answer({"gateways": self.gateways.shown()})

    # -- CrowdSec's bouncers ---------------------------------------------------------------------------------

    async def bouncers(self, request: Request) -> Response:
        """``GET /bouncers``."""
        rows = await self._read(
            lambda db: db.execute("SELECT name, made_s, pulled_s, agent FROM bouncers ORDER BY name").fetchall()
        )
        named = [dict(zip(("name", "made_s", "pulled_s", "agent"), row, strict=True)) for row in rows]
        return answer({"bouncers": named})

    async def add_bouncer(self, request: Request) -> Response:
        """``POST /bouncers``: the key is in this answer, and nowhere else."""
        self.token.check(request)
        asked = await read_json(request, BouncerOrder, BODY_BYTES)
        key = secrets.token_urlsafe(32)
        await _done(self.desk.add_bouncer(asked.name, lapi.key_hash(key), asked.by, BOUNCERS_MAX))
        return answer({"name": asked.name, "key": key}, 201)

    async def drop_bouncer(self, request: Request) -> Response:
        """``DELETE /bouncers/NAME?by=…``."""
        self.token.check(request)
        await _done(self.desk.drop_bouncer(request.path_params["name"], _by(request)[0]))
        return Response(status_code=204)

    async def _bouncer(self, request: Request) -> lapi.Bouncer:
        key = request.headers.get("x-api-key", "")
        found: lapi.Bouncer | None = await self._read(lambda db: lapi.bouncer(db, key))
        if found is None:
            raise LapiError(403, "access forbidden")
        return found

    async def decisions_stream(self, request: Request) -> Response:
        """``GET /v1/decisions/stream``: what is new and over since this bouncer's last question."""
        bouncer = await self._bouncer(request)
        if request.method == "HEAD":
            return Response()
        query, now_s = dict(request.query_params), self.desk.clock()

        def look(db: sqlite3.Connection) -> tuple[bytes, int]:
            stream, revision = lapi.stream(db, query, bouncer.revision, now_s)
            return msgspec.json.encode(stream), revision

        body, revision = await self._read(look)
        agent = request.headers.get("user-agent", "")[:100]
        await _done(self.desk.pulled(bouncer.name, revision, agent))
        return Response(body, media_type="application/json")

    async def decisions(self, request: Request) -> Response:
        """``GET /v1/decisions``: those about an address, a range, or all; null if there are none."""
        await self._bouncer(request)
        query, now_s = dict(request.query_params), self.desk.clock()
        try:
            found = await self._read(lambda db: lapi.about(db, query, now_s))
        except BadNetworkError as error:
            raise LapiError(400, f"cannot look this up: {error}") from error
        return Response() if request.method == "HEAD" else answer(found or None)

    # -- watching -------------------------------------------------------------------------------------------

    async def watch(self, websocket: WebSocket) -> None:
        """``/ws/stream``: each state of each reaction, as it comes."""
        if len(self.watchers) >= WATCHERS_MAX:
            await websocket.close(1013, "too many watch already")
            return
        with self.watchers.watching() as waiting:
            await websocket.accept()
            left = asyncio.ensure_future(gone(websocket))
            try:
                while not left.done():
                    getting = asyncio.ensure_future(waiting.get())
                    await asyncio.wait((getting, left), return_when=asyncio.FIRST_COMPLETED)
                    if not getting.done():
                        getting.cancel()
                        return
                    message = getting.result()
                    if message is None:
                        await websocket.close(1013, "too slow")
                        return
                    await websocket.send_text(message.decode())
            except (WebSocketDisconnect, RuntimeError):
                return
            finally:
                left.cancel()

    async def _read(self, look: Callable[[sqlite3.Connection], Any]) -> Any:
        return await asyncio.to_thread(self.desk.read, look)


class LapiError(Exception):
    """A refusal in the words of CrowdSec's API."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def _lapi_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, LapiError)
    return answer({"message": str(error), "errors": ""}, error.status)


async def _done(future: Any) -> Any:
    return await asyncio.wrap_future(future)


def _by(request: Request) -> tuple[str, str]:
    by, why = request.query_params.get("by", ""), request.query_params.get("why", "")
    if not 0 < len(by) <= 100 or len(why) > 1000:
        raise RefusedError(400, "cannot do this for nobody", value=by, limit="1 to 100 characters", next="add ?by=NAME")
    return by, why


def _sighted(posted: PostedSighting, now_s: float) -> Sighted:
    try:
        address = read_address(posted.address)
    except BadNetworkError as error:
        raise RefusedError(400, f"cannot take a sighting: {error}", value=posted.address) from error
    at_s = now_s if posted.at is None else posted.at
    if not 0 <= at_s <= now_s + AHEAD_S:
        raise RefusedError(400, "cannot take a sighting from the future", value=at_s, limit=f"{now_s + AHEAD_S:.0f}")
    return Sighted(
        address=address,
        kind=posted.kind,
        at_s=at_s,
        count=posted.count,
        confidence=posted.confidence,
        source=posted.source,
        cause=posted.cause,
    )


def _checked(playbook: Playbook) -> Playbook:
    try:
        check(playbook)
    except BadPlaybookError as error:
        raise RefusedError(422, f"cannot follow this playbook: {error}") from error
    return playbook


def make_app(server: Server, opened: Callable[[], None], closed: Callable[[], None]) -> Starlette:
    """The application; ``opened`` and ``closed`` are called on a thread, around all requests."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(opened)
        try:
            yield
        finally:
            await asyncio.to_thread(closed)

    return Starlette(
        lifespan=lifespan,
        routes=[
            *routes("/sightings", post=server.sight),
            *routes("/sources/{address}", get=server.source),
            *routes("/reactions", get=server.reactions),
            *routes("/reactions/{id}", get=server.reaction),
            *routes("/reactions/{id}/{verb}", post=server.order),
            *routes("/bans", get=server.bans, post=server.ban),
            *routes("/bans/{network:path}", delete=server.lift),
            *routes("/never-block", get=server.never),
            *routes("/never-block/{network:path}", put=server.spare, delete=server.unspare),
            *routes("/playbooks", get=server.playbooks),
            *routes("/playbooks/{name}", get=server.playbook, put=server.put_playbook, delete=server.drop_playbook),
            *routes("/playbooks/{name}/{verb}", post=server.stand),
            *routes("/audit", get=server.audit),
            *routes("/audit/verify", get=server.verify),
            *routes("/gateways", get=server.gateways_shown),
            *routes("/bouncers", get=server.bouncers, post=server.add_bouncer),
            *routes("/bouncers/{name}", delete=server.drop_bouncer),
            *routes("/v1/decisions", get=server.decisions),
            *routes("/v1/decisions/stream", get=server.decisions_stream),
            WebSocketRoute("/ws/stream", server.watch),
        ],
        exception_handlers={**EXCEPTION_HANDLERS, LapiError: _lapi_refused},
    )
