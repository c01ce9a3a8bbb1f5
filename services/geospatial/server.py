"""The HTTP interface: OGC API Features Part 1, and beside it writing, nearest, tracks, fences."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from cdn_daemon.api import EXCEPTION_HANDLERS, RefusedError, answer, read_body, read_json, routes, whole_number
from cdn_daemon.service import ConfigurationError
from cdn_daemon.tokens import TokenError
from services.geospatial import times
from services.geospatial.fences import Position
from services.geospatial.geojson import FID_CHARS
from services.geospatial.limits import Limits
from services.geospatial.openapi import CONFORMANCE, MEDIA_TYPE, document
from services.geospatial.places import Places
from services.geospatial.questions import Question, number, only, read_items, read_time
from services.geospatial.sphere import HALF_WAY_M
from services.geospatial.store import Collection, StoreError
from services.geospatial.times import NoTime, written
from services.stream import gone

GEOJSON = "application/geo+json"
CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
GREGORIAN = "http://www.opengis.net/def/uom/ISO-8601/0/Gregorian"
AHEAD_S = 60.0
"""A position may be so far in the future, for clocks that are; later ones would silence the object."""

Name = Annotated[str, Meta(min_length=1, max_length=FID_CHARS, pattern="^[^/\\x00-\\x1f\\x7f]*$")]
Lon = Annotated[float, Meta(ge=-180.0, le=180.0)]
Lat = Annotated[float, Meta(ge=-90.0, le=90.0)]


class At(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an object was; without a time it is there now."""

    lon: Lon
    lat: Lat
    datetime: str | None = None


class ObjectAt(At, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same, of an object that is named."""

    object: Name


class TrackRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PUT /tracks/OBJECT``."""

    positions: list[At]


class TracksRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /tracks``."""

    positions: list[ObjectAt]


class MovedAnswer(Struct, frozen=True, kw_only=True):
    """What came of positions."""

    accepted: int
    ignored: int
    """Those that were no newer than what was known of their object."""
    crossings: int


class WrittenAnswer(Struct, frozen=True, kw_only=True):
    """What came of features."""

    collection: str
    features: int
    added: int
    ids: tuple[str, ...] = ()
    """The first hundred."""


class Link(Struct, frozen=True, omit_defaults=True):
    """As RFC 8288 has it."""

    href: str
    rel: str
    type: str = ""
    title: str = ""


def base_of(request: Request) -> str:
    """The address that the client has used for this service, as a gateway tells it if one is between."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", request.url.scheme)
    host = headers.get("x-forwarded-host", headers.get("host", ""))
    prefix = headers.get("x-forwarded-prefix", "").rstrip("/")
    if not re.fullmatch(r"https?", scheme) or not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]{1,255}", host):
        return ""  # links are relative to the root then, which is the best that can be said
    return f"{scheme}://{host}{quote(prefix)}"


class Server:
    """Answers."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.store = places.store
        self.limits = places.limits

    # -- what Part 1 has beside features ------------------------------------------------------------------

    async def landing(self, request: Request) -> Response:
        """``GET /``."""
        only(request, "f")
        base = base_of(request)
        return answer(
            {
                "title": "cdn-geospatial",
                "description": "Places, areas and what moves.",
                "links": [
                    Link(f"{base}/", "self", "application/json", "This document"),
                    Link(f"{base}/api", "service-desc", MEDIA_TYPE, "The API"),
                    Link(f"{base}/conformance", "conformance", "application/json", "What it conforms to"),
                    Link(f"{base}/collections", "data", "application/json", "The collections"),
                ],
            }
        )

    async def conformance(self, request: Request) -> Response:
        """``GET /conformance``."""
        only(request, "f")
        return answer({"conformsTo": CONFORMANCE})

    async def api(self, request: Request) -> Response:
        """``GET /api``."""
        only(request, "f")
        named = [(name, one.settings.names) for name, one in sorted(self.store.collections.items())]
        return answer(document(base_of(request), named, self.limits), media_type=MEDIA_TYPE)

    async def collections(self, request: Request) -> Response:
        """``GET /collections``."""
        only(request, "f")
        base = base_of(request)
        listed = [self._described(base, name, one) for name, one in sorted(self.store.collections.items())]
        return answer({"links": [Link(f"{base}/collections", "self", "application/json")], "collections": listed})

    async def collection(self, request: Request) -> Response:
        """``GET /collections/NAME``."""
        only(request, "f")
        name = request.path_params["name"]
        return answer(self._described(base_of(request), name, self.store.collection(name)))

    def _described(self, base: str, name: str, one: Collection) -> dict[str, Any]:
        path = f"{base}/collections/{quote(name)}"
        bounds, span = one.layer.extent()
        extent: dict[str, Any] = {"spatial": {"bbox": [bounds or (-180.0, -90.0, 180.0, 90.0)], "crs": CRS84}}
        if span is not None:
            extent["temporal"] = {"interval": [list(map(times.written_or_open, span))], "trs": GREGORIAN}
        return {
            "id": name,
            "title": one.settings.title or name,
            "description": one.settings.description,
            "itemType": "feature",
            "crs": [CRS84],
            "extent": extent,
            "links": [
                Link(path, "self", "application/json", "This document"),
                Link(f"{path}/items", "items", GEOJSON, "The features"),
                Link(f"{base}/collections", "collection", "application/json", "All collections"),
            ],
        }

    # -- features -----------------------------------------------------------------------------------------

    async def items(self, request: Request) -> Response:
        """``GET /collections/NAME/items``."""
        name = request.path_params["name"]
        found = self.store.collection(name)
        question = read_items(request, found.settings.names, self.limits)
        base, query = base_of(request), request.url.query
        begun_s = time.perf_counter()
        version, answers = found.layer.version, found.layer.answers
        key = f"{base} {query}"
        content = answers.get(key, version)
        if content is None:
            content = await asyncio.to_thread(self._page, name, found, question, base, dict(request.query_params))
            answers.put(key, version, content)
        answers.took((time.perf_counter() - begun_s) * 1e3)
        return Response(content, media_type=GEOJSON)

    def _page(self, name: str, found: Collection, asked: Question, base: str, params: dict[str, str]) -> bytes:
        numbers = found.layer.select(asked.windows, asked.during)
        if asked.wanted:
            numbers = self.store.having(found, numbers, asked.wanted)
        matched = len(numbers)
        rest = numbers[numbers > asked.after] if asked.after else numbers
        rest = rest[asked.offset :]
        wanted = rest[: asked.limit].tolist()
        bodies, size, read = [], 0, 0
        while read < len(wanted) and size < self.limits.page_bytes:
            some = self.store.bodies(wanted[read : read + 500])
            size += sum(map(len, some))
            read += len(wanted[read : read + 500])
            bodies += some
        path = f"{base}/collections/{quote(name)}"
        links = [
            Link(f"{path}/items?{urlencode(params)}" if params else f"{path}/items", "self", GEOJSON),
            Link(path, "collection", "application/json"),
        ]
        if read < len(rest):
            more = {key: value for key, value in params.items() if key not in ("offset", "after")}
            links.append(Link(f"{path}/items?{urlencode({**more, 'after': wanted[read - 1]})}", "next", GEOJSON))
        return _feature_collection(bodies, links=links, numberMatched=matched, timeStamp=written(time.time()))

    async def item(self, request: Request) -> Response:
        """``GET /collections/NAME/items/ID``."""
        only(request, "f")
        name, fid = request.path_params["name"], request.path_params["fid"]
        body = await asyncio.to_thread(self.store.body, name, fid)
        path = f"{base_of(request)}/collections/{quote(name)}"
        links = [
            Link(f"{path}/items/{quote(fid, safe='')}", "self", GEOJSON),
            Link(path, "collection", "application/json"),
        ]
        content = body[:-1].encode() + b',"links":' + msgspec.json.encode(links) + b"}"
        return Response(content, media_type=GEOJSON)

    async def nearest(self, request: Request) -> Response:
        """``GET /collections/NAME/nearest``."""
        only(request, "lon", "lat", "k", "within_m", "f")
        found = self.store.collection(request.path_params["name"])
        lon, lat = number(request, "lon", -180, 180), number(request, "lat", -90, 90)
        count = whole_number(request, "k", default=1, low=1, high=self.limits.nearest)
        within_m = number(request, "within_m", 0.0, HALF_WAY_M, HALF_WAY_M)

        def find() -> bytes:
            near = found.layer.nearest(lon, lat, count, within_m)
            bodies = [(body, metres) for n, metres in near for body in self.store.bodies([n])]
            # Beside "properties", as a member of the feature: nothing that a client had stored is hidden.
            marked = [f'{body[:-1]},"distance_m":{metres:.3f}}}' for body, metres in bodies]
            return _feature_collection(marked, timeStamp=written(time.time()))

        return Response(await asyncio.to_thread(find), media_type=GEOJSON)

    async def contains(self, request: Request) -> Response:
        """``GET /collections/NAME/contains``."""
        only(request, "lon", "lat", "limit", "f")
        found = self.store.collection(request.path_params["name"])
        lon, lat = number(request, "lon", -180, 180), number(request, "lat", -90, 90)
        limit = whole_number(request, "limit", default=100, low=1, high=self.limits.page)

        def find() -> bytes:
            numbers = found.layer.containing(lon, lat)
            bodies = self.store.bodies(numbers[:limit].tolist())
            return _feature_collection(bodies, numberMatched=len(numbers), timeStamp=written(time.time()))

        return Response(await asyncio.to_thread(find), media_type=GEOJSON)

    # -- writing ------------------------------------------------------------------------------------------

    async def replace(self, request: Request) -> Response:
        """``PUT /collections/NAME``: only these features."""
        self.places.token.check(request)
        only(request, "title", "description")
        name = request.path_params["name"]
        self.store.writable(name)
        is_new = name not in self.store.collections
        body = await read_body(request, self.limits.upload_bytes, self.limits.upload_s)
        title, description = (request.query_params.get(key, "")[:1000] for key in ("title", "description"))

        def put() -> int:
            rows = self.store.read(body) if body.strip() else []
            return self.store.put_whole(name, rows, title=title, description=description)

        count = await asyncio.to_thread(put)
        return answer(WrittenAnswer(collection=name, features=count, added=count), 201 if is_new else 200)

    async def drop(self, request: Request) -> Response:
        """``DELETE /collections/NAME``."""
        self.places.token.check(request)
        await asyncio.to_thread(self.store.drop, request.path_params["name"])
        return Response(status_code=204)

    async def add(self, request: Request) -> Response:
        """``POST /collections/NAME/items``: one feature, or many."""
        self.places.token.check(request)
        only(request)
        name = request.path_params["name"]
        self.store.writable(name)
        self.store.collection(name)
        body = await read_body(request, self.limits.upload_bytes, self.limits.upload_s)

        def put() -> tuple[list[str], int]:
            return self.store.put(name, self.store.read(body))

        fids, new = await asyncio.to_thread(put)
        headers = {}
        if len(fids) == 1:
            headers["location"] = f"{base_of(request)}/collections/{quote(name)}/items/{quote(fids[0], safe='')}"
        written = WrittenAnswer(collection=name, features=len(fids), added=new, ids=tuple(fids[:100]))
        return answer(written, 201, headers)

    async def set(self, request: Request) -> Response:
        """``PUT /collections/NAME/items/ID``."""
        self.places.token.check(request)
        only(request)
        name, fid = request.path_params["name"], request.path_params["fid"]
        self.store.writable(name)
        body = await read_body(request, self.limits.body_bytes)

        def put() -> int:
            rows = self.store.read(body)
            if len(rows) != 1 or rows[0].feature.fid not in (None, fid):
                raise RefusedError(
                    422, "cannot put this here: it must be one feature, with this id or without one", value=fid
                )
            row = msgspec.structs.replace(rows[0], feature=msgspec.structs.replace(rows[0].feature, fid=checked(fid)))
            return self.store.put(name, [row])[1]

        return Response(status_code=201 if await asyncio.to_thread(put) else 204)

    async def remove(self, request: Request) -> Response:
        """``DELETE /collections/NAME/items/ID``."""
        self.places.token.check(request)
        await asyncio.to_thread(self.store.remove, request.path_params["name"], request.path_params["fid"])
        return Response(status_code=204)

    # -- what moves ---------------------------------------------------------------------------------------

    async def move_one(self, request: Request) -> Response:
        """``PUT /tracks/OBJECT``."""
        self.places.token.check(request)
        object = checked(request.path_params["object"])
        asked = await read_json(request, TrackRequest, self.limits.body_bytes)
        return await self._move([(object, one) for one in asked.positions])

    async def move(self, request: Request) -> Response:
        """``POST /tracks``: of many objects at once."""
        self.places.token.check(request)
        asked = await read_json(request, TracksRequest, self.limits.body_bytes)
        return await self._move([(one.object, one) for one in asked.positions])

    async def _move(self, asked: Sequence[tuple[str, At]]) -> Response:
        if not 1 <= len(asked) <= self.limits.positions:
            raise RefusedError(
                413, "cannot take so many positions", value=len(asked), limit=f"1 to {self.limits.positions}"
            )
        now_s = time.time()
        positions = [Position(object, one.lon, one.lat, _at_s(one.datetime, now_s)) for object, one in asked]
        moved = await self.places.move(positions)
        return answer(MovedAnswer(accepted=moved.accepted, ignored=moved.ignored, crossings=len(moved.crossings)))

    async def track(self, request: Request) -> Response:
        """``GET /tracks/OBJECT``: its newest positions in a time, as a line with the time of each."""
        only(request, "datetime", "limit", "f")
        object = request.path_params["object"]
        limit = whole_number(request, "limit", default=1_000, low=1, high=self.limits.path)
        text = request.query_params.get("datetime")
        begin_s, end_s = times.ALWAYS if text is None else read_time(text)
        path = await asyncio.to_thread(self.store.path_of, object, begin_s, end_s, limit)
        line = [(lon, lat) for _, lon, lat in path]
        geometry: Any = None
        if line:
            geometry = (
                {"type": "Point", "coordinates": line[0]}
                if len(line) == 1
                else {"type": "LineString", "coordinates": line}
            )
        feature = {
            "type": "Feature",
            "id": object,
            "geometry": geometry,
            "properties": {"object": object, "times": [written(at_s) for at_s, _, _ in path]},
        }
        return answer(feature, media_type=GEOJSON)

    async def forget(self, request: Request) -> Response:
        """``DELETE /tracks/OBJECT``."""
        self.places.token.check(request)
        await asyncio.to_thread(self.store.forget, request.path_params["object"])
        return Response(status_code=204)

    # -- fences -------------------------------------------------------------------------------------------

    async def fences(self, request: Request) -> Response:
        """``GET /fences``."""
        only(request, "f")
        return Response(_feature_collection(await asyncio.to_thread(self.store.fence_bodies)), media_type=GEOJSON)

    async def fence(self, request: Request) -> Response:
        """``GET /fences/NAME``."""
        only(request, "f")
        (body,) = await asyncio.to_thread(self.store.fence_bodies, request.path_params["name"])
        return Response(body, media_type=GEOJSON)

    async def put_fence(self, request: Request) -> Response:
        """``PUT /fences/NAME``: a feature, or a geometry alone."""
        self.places.token.check(request)
        name = request.path_params["name"]
        body = await read_body(request, self.limits.body_bytes)

        def put() -> bool:
            feature = body if b'"Feature"' in body else b'{"type":"Feature","properties":null,"geometry":%b}' % body
            rows = self.store.read(feature)
            if len(rows) != 1:
                raise RefusedError(422, "cannot fence this: it must be one feature", value=name)
            return self.store.put_fence(name, rows[0])

        return Response(status_code=201 if await asyncio.to_thread(put) else 204)

    async def drop_fence(self, request: Request) -> Response:
        """``DELETE /fences/NAME``."""
        self.places.token.check(request)
        await asyncio.to_thread(self.store.drop_fence, request.path_params["name"])
        return Response(status_code=204)

    async def crossings(self, request: Request) -> Response:
        """``GET /crossings``: in order, from the one after a number."""
        only(request, "limit", "after", "fence", "object", "f")
        limit = whole_number(request, "limit", default=100, low=1, high=self.limits.crossings_page)
        after = whole_number(request, "after", default=0, low=0, high=2**53)
        fence, object = request.query_params.get("fence"), request.query_params.get("object")
        found = await asyncio.to_thread(self.store.crossings, after, limit, fence, object)
        next_after = found[-1].number if len(found) == limit else None
        return answer({"crossings": found, "next_after": next_after})

    async def stream(self, websocket: WebSocket) -> None:
        """``/ws/stream``: every crossing from now on, or from the one after a number."""
        asked = websocket.query_params
        after = asked.get("after", "")
        is_number = after.isascii() and after.isdigit() and len(after) < 16
        waiting = self.places.watchers.join() if after == "" or is_number else None
        if waiting is None:
            await websocket.close(1013)
            return
        await websocket.accept()
        left = asyncio.ensure_future(gone(websocket))
        fence, object = asked.get("fence"), asked.get("object")
        try:
            told = int(after or 0)
            while after:  # what it has missed; what comes meanwhile waits, and is told once
                missed = await asyncio.to_thread(self.store.crossings, told, 1_000, fence, object)
                for one in missed:
                    await websocket.send_text(msgspec.json.encode(one).decode())
                    told = one.number
                if len(missed) < 1_000:
                    break
            while True:
                coming = asyncio.ensure_future(waiting.get())
                await asyncio.wait({coming, left}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    coming.cancel()
                    return
                news = coming.result()
                if news is None:
                    await websocket.close(1013)  # try again later
                    return
                if news.number > told and fence in (None, news.fence) and object in (None, news.object):
                    await websocket.send_text(msgspec.json.encode(news).decode())
        except (WebSocketDisconnect, RuntimeError):
            return  # it went away while it was being told
        finally:
            left.cancel()
            self.places.watchers.leave(waiting)

    def metrics(self) -> dict[str, float]:
        """What the service measures, for its status and for Prometheus."""
        store = self.store
        numbers: dict[str, float] = {
            "geo_collections": len(store.collections),
            "geo_fences": len(store.fences.shapes),
            "geo_positions_total": store.positions_total,
            "geo_positions_ignored_total": store.ignored_total,
            "geo_crossings_told_total": self.places.told,
            "geo_watchers": len(self.places.watchers),
            "geo_watchers_let_go_total": self.places.watchers.let_go,
            "geo_commits_total": store.writer.commits if store.is_open else 0,
            "geo_writes_waiting": store.writer.waiting() if store.is_open else 0,
        }
        for name, one in store.collections.items():
            layer, tally = one.layer, one.layer.tally
            for what, value in {
                "features": layer.table.live,
                "reads_total": tally.reads,
                "read_seconds_total": tally.read_ns / 1e9,
                "writes_total": tally.writes,
                "index_rebuilds_total": tally.rebuilds,
                "index_delta": layer.index.delta(),
                "answers_kept_total": layer.answers.asked.hits,
            }.items():
                numbers[f'geo_{what}{{collection="{name}"}}'] = value
        return numbers


def checked(fid: str) -> str:
    """An id from a path; raises RefusedError."""
    if not 0 < len(fid) <= FID_CHARS or not fid.isprintable():
        raise RefusedError(400, "cannot use this id", value=fid, limit=f"1 to {FID_CHARS} printable characters")
    return fid


def _at_s(text: str | None, now_s: float) -> float:
    if text is None:
        return now_s
    try:
        at_s = times.moment(text)[0]
    except NoTime as error:
        raise RefusedError(400, f"cannot use this datetime: {error}", value=text) from error
    if at_s > now_s + AHEAD_S:
        raise RefusedError(422, "cannot take a position from the future", value=text, limit=f"{AHEAD_S:g} s ahead")
    return at_s


def _feature_collection(bodies: Sequence[str], **members: Any) -> bytes:
    """Of features that are JSON already."""
    more = "".join(
        f",{msgspec.json.encode(key).decode()}:{msgspec.json.encode(members[key]).decode()}" for key in members
    )
    joined = ",".join(bodies)
    return f'{{"type":"FeatureCollection","features":[{joined}],"numberReturned":{len(bodies)}{more}}}'.encode()


def make_app(directory: Path, token: Path, *, limits: Limits | None = None) -> Starlette:
    """The application over the store in directory, which is opened when the application starts.

    ``app.state.places`` is the Places, ``app.state.server`` the Server.
    """
    places = Places(directory, token, limits)
    server = Server(places)

    @asynccontextmanager
    async def opened(_: Starlette) -> AsyncIterator[None]:
        try:
            await asyncio.to_thread(places.open)
        except (TokenError, StoreError) as error:
            raise ConfigurationError(str(error)) from error
        try:
            yield
        finally:
            places.watchers.end()
            await asyncio.to_thread(places.store.close)

    one = "/collections/{name}"
    app = Starlette(
        lifespan=opened,
        routes=[
            *routes("/", get=server.landing),
            *routes("/conformance", get=server.conformance),
            *routes("/api", get=server.api),
            *routes("/collections", get=server.collections),
            *routes(one, get=server.collection, put=server.replace, delete=server.drop),
            *routes(f"{one}/items", get=server.items, post=server.add),
            *routes(f"{one}/items/{{fid}}", get=server.item, put=server.set, delete=server.remove),
            *routes(f"{one}/nearest", get=server.nearest),
            *routes(f"{one}/contains", get=server.contains),
            *routes("/tracks", post=server.move),
            *routes("/tracks/{object}", get=server.track, put=server.move_one, delete=server.forget),
            *routes("/fences", get=server.fences),
            *routes("/fences/{name}", get=server.fence, put=server.put_fence, delete=server.drop_fence),
            *routes("/crossings", get=server.crossings),
            WebSocketRoute("/ws/stream", server.stream),
        ],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.places = places
    app.state.server = server
    return app
