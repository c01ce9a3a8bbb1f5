"""The HTTP interface: an application over one Intel. TAXII's part is in taxii.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cdn_daemon.api import EXCEPTION_HANDLERS, RefusedError, answer, decode, read_body, read_json, routes, whole_number
from cdn_daemon.tokens import TokenError
from services.stream import gone
from services.threat_intel.api import (
    AllowedAnswer,
    AllowListAnswer,
    AllowRequest,
    CorrelateAnswer,
    CorrelateRequest,
    FeedAnswer,
    FeedsAnswer,
    LoadedAnswer,
    RejectedAnswer,
    SightingRequest,
    SightingsAnswer,
    SightingsRequest,
    VerdictAnswer,
    VerdictRequest,
)
from services.threat_intel.intel import Intel, answered, collection_id, valued
from services.threat_intel.limits import Limits
from services.threat_intel.scoring import Feed, verdict
from services.threat_intel.store import StoreError
from services.threat_intel.taxii import Taxii
from services.threat_intel.trust import posterior
from services.threat_intel.uploads import kind_of

SETTINGS = {
    "confidence": (1.0, 100.0),
    "half_life_s": (60.0, 10 * 365 * 86_400.0),
    "ttl_s": (60.0, 10 * 365 * 86_400.0),
}
"""Of a feed, in the query string, and from where to where."""


class Server:
    """Answers."""

    def __init__(self, intel: Intel) -> None:
        self.intel = intel
        self.store = intel.store
        self.limits = intel.limits

    # -- look-ups -----------------------------------------------------------------------------------------

    async def correlate(self, request: Request) -> Response:
        """``POST /correlate``."""
        if not self.store.is_open:
            raise RefusedError(503, "cannot look anything up: the store is not open", next="try again")
        asked = await read_json(request, CorrelateRequest, self.limits.body_bytes)
        if len(asked.values) > self.limits.values:
            raise RefusedError(
                413, "cannot look up so many values at once", value=len(asked.values), limit=self.limits.values
            )
        begun_s = time.perf_counter()
        # A network is sought on disk, as is what is cold.
        is_quick = not self.store.index.cold and not any("/" in value for value in asked.values)
        if is_quick and len(asked.values) <= self.limits.inline_values:
            answers = self.intel.correlator.correlate(asked.values)
        else:
            answers = await asyncio.to_thread(self.intel.correlator.correlate, asked.values)
        if "origin" not in request.headers:  # any web page can send this much; it is answered, and nobody is told
            self.intel.notice(answers, asked.seen_by, asked.cause)
        took_ms = round((time.perf_counter() - begun_s) * 1e3, 3)
        return answer(CorrelateAnswer(values=answers, elapsed_ms=took_ms))

    async def technique(self, request: Request) -> Response:
        """``GET /techniques/T0803``."""
        id = request.path_params["id"].upper()
        found = await asyncio.to_thread(self.intel.correlator.technique, id)
        if found is None:
            raise RefusedError(
                404, "cannot find this technique", value=id, next="load a bundle of ATT&CK's: PUT /feeds/attack-ics"
            )
        return answer(found)

    # -- feeds --------------------------------------------------------------------------------------------

    async def feeds(self, request: Request) -> Response:
        """``GET /feeds``."""
        return answer(FeedsAnswer(feeds=tuple(map(self._feed, self.store.index.feeds.values()))))

    async def feed(self, request: Request) -> Response:
        """``GET /feeds/NAME``."""
        return answer(self._feed(self.store.feed(request.path_params["name"])))

    async def load(self, request: Request) -> Response:
        """``PUT /feeds/NAME`` has the feed hold this and no more, ``POST`` this too."""
        self.intel.token.check(request)
        name = request.path_params["name"]
        settings = {key: _number(request, key, low, high) for key, (low, high) in SETTINGS.items()}
        begun_s = time.perf_counter()
        body = await read_body(request, self.limits.feed_bytes, self.limits.feed_body_s)
        kind = kind_of(request.headers.get("content-type", ""), body)
        given = {key: value for key, value in settings.items() if value is not None}
        is_whole = request.method == "PUT"
        loaded = await asyncio.to_thread(self.intel.load, name, kind, body, given, is_whole=is_whole)
        return answer(
            LoadedAnswer(
                feed=name,
                accepted=loaded.accepted,
                indexed=loaded.indexed,
                not_indexed=loaded.not_indexed,
                removed=loaded.removed,
                rejected=loaded.rejected,
                examples=tuple(RejectedAnswer(one.what, one.why) for one in loaded.examples),
                elapsed_ms=round((time.perf_counter() - begun_s) * 1e3, 1),
            ),
            201,
        )

    async def drop(self, request: Request) -> Response:
        """``DELETE /feeds/NAME``."""
        self.intel.token.check(request)
        await asyncio.to_thread(self.store.remove_feed, request.path_params["name"])
        return Response(status_code=204)

    async def values(self, request: Request) -> Response:
        """``GET /feeds/NAME/values``: what a feed lists, one value a line, as firewalls read it."""
        name = self.store.feed(request.path_params["name"]).name
        limit = whole_number(request, "limit", default=10_000, low=1, high=100_000)
        keys = await asyncio.to_thread(self.store.keys, name, request.query_params.get("after", ""), limit)
        headers = {}
        if len(keys) == limit:
            headers["link"] = f'<?limit={limit}&after={quote(keys[-1], safe="")}>; rel="next"'
        return Response("".join(f"{key}\n" for key in keys), headers=headers, media_type="text/plain")

    def _feed(self, feed: Feed) -> FeedAnswer:
        tally = self.intel.correlator.tally
        judged = [one.is_true for one in self.store.verdicts.values() if one.feed == feed.name]
        alpha, beta = posterior(sum(judged), len(judged) - sum(judged))
        return FeedAnswer(
            name=feed.name,
            kind=feed.kind,
            collection=collection_id(feed.name),
            confidence=feed.confidence,
            half_life_s=feed.half_life_s,
            ttl_s=feed.ttl_s,
            created_s=feed.created_s,
            updated_s=feed.updated_s,
            values=self.store.counts.get(feed.name, 0),
            hits=tally.hits[feed.name],
            malicious=tally.malicious[feed.name],
            true_positives=sum(judged),
            false_positives=len(judged) - sum(judged),
            precision=round(alpha / (alpha + beta), 3),
            trust=feed.trust,
            ageing=feed.ageing,
            is_cold=feed.is_cold,
        )

    # -- the allow-list -----------------------------------------------------------------------------------

    async def allowed(self, request: Request) -> Response:
        """``GET /allow``."""
        listed = await asyncio.to_thread(self.store.allow_list)
        return answer(AllowListAnswer(tuple(AllowedAnswer(one.value, one.type, one.note, one.at_s) for one in listed)))

    async def allow(self, request: Request) -> Response:
        """``POST /allow`` of several, ``PUT /allow/VALUE`` of one."""
        self.intel.token.check(request)
        if request.method == "PUT":
            asked = AllowRequest(values=[request.path_params["value"]], note=request.query_params.get("note", "")[:256])
        else:
            asked = await read_json(request, AllowRequest, self.limits.body_bytes)
        values = [valued(text) for text in asked.values]
        await asyncio.to_thread(self.store.allow, values, asked.note)
        at_s = time.time()
        return answer(AllowListAnswer(tuple(AllowedAnswer(one.key, one.kind, asked.note, at_s) for one in values)), 201)

    async def disallow(self, request: Request) -> Response:
        """``DELETE /allow/VALUE``."""
        self.intel.token.check(request)
        await asyncio.to_thread(self.store.disallow, valued(request.path_params["value"]))
        return Response(status_code=204)

    # -- sightings and verdicts ---------------------------------------------------------------------------

    async def sight(self, request: Request) -> Response:
        """``POST /sightings``: one, or several. Answered when they are on disk."""
        self.intel.token.check(request)
        body = await read_body(request, self.limits.body_bytes)
        asked = await asyncio.to_thread(_sightings, body)
        told, known = await self.intel.sight(asked)
        return answer(SightingsAnswer(sightings=tuple(told), known=known), 201)

    async def sightings(self, request: Request) -> Response:
        """``GET /sightings``: a page, in the order in which they were kept."""
        limit = whole_number(request, "limit", default=100, low=1, high=self.limits.sightings_page)
        after = whole_number(request, "after", default=0, low=0, high=2**63 - 1)
        value = request.query_params.get("value")
        key = valued(value).key if value is not None else None
        found = await asyncio.to_thread(self.store.sightings, after=after, limit=limit, key=key)
        next_page = f"?limit={limit}&after={found[-1].number}" if len(found) == limit else None
        if next_page and key:
            next_page += f"&value={quote(key, safe='')}"
        return answer(
            SightingsAnswer(sightings=tuple(answered(one, verdict(one.score)) for one in found), next=next_page)
        )

    async def judge(self, request: Request) -> Response:
        """``POST /verdicts``: answered when it is on disk."""
        self.intel.token.check(request)
        asked = await read_json(request, VerdictRequest, self.limits.body_bytes)
        is_true = asked.verdict == "true_positive"
        feeds = await asyncio.to_thread(
            self.intel.judge, asked.value, is_true=is_true, feed=asked.feed, judged_by=asked.judged_by
        )
        return answer(VerdictAnswer(value=valued(asked.value).key, feeds=feeds), 201)

    async def stream(self, websocket: WebSocket) -> None:
        """``/ws/stream``: every sighting from now on, as JSON."""
        waiting = self.intel.watchers.join()
        if waiting is None:
            await websocket.close(1013)
            return
        await websocket.accept()
        left = asyncio.ensure_future(gone(websocket))
        try:
            while True:
                coming = asyncio.ensure_future(waiting.get())
                await asyncio.wait({coming, left}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    coming.cancel()
                    return
                content = coming.result()
                if content is None:
                    await websocket.close(1013)  # try again later
                    return
                await websocket.send_text(content.decode())
        except (WebSocketDisconnect, RuntimeError):
            return  # it went away while it was being told
        finally:
            left.cancel()
            self.intel.watchers.leave(waiting)

    def metrics(self) -> dict[str, float]:
        """What the service measures, for its status and for Prometheus."""
        store, tally = self.store, self.intel.correlator.tally
        index = store.index
        numbers: dict[str, float] = {
            "intel_feeds": len(index.feeds),
            "intel_values": sum(store.counts.values()),
            "intel_objects": store.objects,
            "intel_allowed": len(index.allowed),
            "intel_lookups_total": tally.lookups,
            "intel_lookup_seconds_total": tally.seconds,
            "intel_invalid_total": tally.invalid,
            "intel_told_total": self.intel.told,
            "intel_untold_total": self.intel.untold,
            "intel_watchers": len(self.intel.watchers),
            "intel_watchers_let_go_total": self.intel.watchers.let_go,
            "intel_commits_total": store.writer.commits if store.is_open else 0,
            "intel_writes_waiting": store.writer.waiting() if store.is_open else 0,
        }
        for name, count in tally.verdicts.copy().items():
            numbers[f'intel_verdicts_total{{verdict="{name}"}}'] = count
        for name, feed in index.feeds.items():
            numbers[f'intel_feed_hits_total{{feed="{name}"}}'] = tally.hits[name]
            numbers[f'intel_feed_trust{{feed="{name}"}}'] = feed.trust
        for name, stage in self.intel.correlator.stages.items():
            if stage.asked:
                numbers[f'intel_stage_microseconds{{stage="{name}"}}'] = stage.us()
        return numbers


def _sightings(body: bytes) -> list[SightingRequest]:
    try:
        one = msgspec.json.decode(body, type=SightingRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        if b'"sightings"' in body[:64]:
            return decode(body, SightingsRequest).sightings
        return [decode(body, SightingRequest)]  # raises, with the reason
    return [one]


def _number(request: Request, name: str, low: float, high: float) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        value = float(text[:30])
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise RefusedError(400, f"cannot use this {name}", value=text, limit=f"{low:g} to {high:g}")
    return value


def make_app(directory: Path, token: Path, *, limits: Limits | None = None) -> Starlette:
    """The application over the store in directory, which is opened when the application starts.

    ``app.state.intel`` is the Intel, ``app.state.server`` the Server.
    """
    intel = Intel(directory, token, limits)
    server = Server(intel)

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(intel.open)
        except (TokenError, StoreError) as error:
            intel.unusable = error  # raised here it would be the server's failure, to be tried again for ever
        intel.opened.set()
        try:
            yield
        finally:
            intel.watchers.end()
            await asyncio.to_thread(intel.store.close)

    app = Starlette(
        lifespan=opened,
        routes=[
            *routes("/correlate", post=server.correlate),
            *routes("/techniques/{id}", get=server.technique),
            *routes("/feeds", get=server.feeds),
            *routes("/feeds/{name}", get=server.feed, put=server.load, post=server.load, delete=server.drop),
            *routes("/feeds/{name}/values", get=server.values),
            *routes("/allow", get=server.allowed, post=server.allow),
            *routes("/allow/{value:path}", put=server.allow, delete=server.disallow),
            *routes("/sightings", post=server.sight, get=server.sightings),
            *routes("/verdicts", post=server.judge),
            WebSocketRoute("/ws/stream", server.stream),
            *Taxii(intel).routes(),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.intel = intel
    app.state.server = server
    return app
