"""TAXII 2.1: each STIX feed is a collection. Reading is open, writing needs the token.

Objects come in the order in which they were added, each at a microsecond of its own, so a page ends at a time and
the next begins after it; a client that polls by ``added_after`` with the last X-TAXII-Date-Added-Last misses nothing
and gets nothing twice. What a request adds is on disk before it is answered: its status is complete from the beginning.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cdn_daemon.api import RefusedError, read_body, whole_number
from services.threat_intel import rows as sql
from services.threat_intel.intel import Intel, collection_id
from services.threat_intel.scoring import Feed, FeedKind
from services.threat_intel.stix import BadObject, seconds_of
from services.threat_intel.store import new_status_id
from services.threat_intel.uploads import read_bundle, read_objects

MEDIA_TYPE = "application/taxii+json;version=2.1"
ROOT = "intel"
FILTERS = frozenset({"match[id]", "match[type]", "match[version]", "match[spec_version]"})
MATCHES = 100
"""Values in one filter."""
Endpoint = Callable[[Request], Awaitable[Response]]


class Found(NamedTuple):
    """A version of an object."""

    added_us: int
    id: str
    version: str
    spec: str
    content: bytes


class ErrorMessage(Struct, omit_defaults=True):
    """TAXII's."""

    title: str
    http_status: str
    description: str | None = None
    details: dict[str, str] = {}


class Detail(Struct, omit_defaults=True):
    """What became of one object."""

    id: str
    version: str
    message: str = ""


class Status(Struct, kw_only=True):
    """TAXII's, of a request to add objects."""

    id: str
    status: str = "complete"
    request_timestamp: str
    total_count: int
    success_count: int
    successes: list[Detail]
    failure_count: int
    failures: list[Detail]
    pending_count: int = 0


class Envelope(Struct, omit_defaults=True):
    """A page of objects."""

    more: bool = False
    next: str | None = None
    objects: list[Raw] = []


class Taxii:
    """Its endpoints."""

    def __init__(self, intel: Intel) -> None:
        self._intel = intel
        self._store = intel.store

    def routes(self) -> list[Route]:
        """With and without the last slash, as some clients leave it out."""
        root, one = f"/taxii2/{ROOT}", f"/taxii2/{ROOT}/collections/{{collection}}"
        found: list[Route] = []
        for path, methods in (
            ("/taxii2", {"GET": self.discovery}),
            (root, {"GET": self.root}),
            (f"{root}/status/{{id}}", {"GET": self.status}),
            (f"{root}/collections", {"GET": self.collections}),
            (one, {"GET": self.collection}),
            (f"{one}/objects", {"GET": self.objects, "POST": self.add}),
            (f"{one}/objects/{{id}}", {"GET": self.object, "DELETE": self.delete}),
            (f"{one}/objects/{{id}}/versions", {"GET": self.versions}),
            (f"{one}/manifest", {"GET": self.manifest}),
        ):
            for method, endpoint in methods.items():
                answering = _negotiated(endpoint)
                found += [Route(path + end, answering, methods=[method]) for end in ("", "/")]
        return found

    # -- what there is ------------------------------------------------------------------------------------

    async def discovery(self, request: Request) -> Response:
        """``GET /taxii2/``."""
        root = f"{_base(request)}/taxii2/{ROOT}/"
        return _answer(
            {
                "title": "cdn-threat-intel",
                "description": "Threat intelligence of this fleet",
                "default": root,
                "api_roots": [root],
            }
        )

    async def root(self, request: Request) -> Response:
        """The API root's information."""
        return _answer(
            {
                "title": "Threat intelligence",
                "description": "Every STIX feed is a collection; writing needs the token",
                "versions": [MEDIA_TYPE],
                "max_content_length": self._intel.limits.feed_bytes,
            }
        )

    async def collections(self, request: Request) -> Response:
        """All of them, by name."""
        may_write = self._may_write(request)
        found = [
            _collection(feed, may_write) for feed in self._store.index.feeds.values() if feed.kind is FeedKind.STIX
        ]
        return _answer({"collections": found} if found else {})

    async def collection(self, request: Request) -> Response:
        """One, by id or alias."""
        return _answer(_collection(self._feed(request), self._may_write(request)))

    async def status(self, request: Request) -> Response:
        """Of a request to add objects; the last thousand are known."""
        id = request.path_params["id"]
        content = await asyncio.to_thread(self._store.status, id)
        if content is None:
            raise RefusedError(404, "cannot find this status", value=id)
        return _answer(Raw(content))

    # -- reading ------------------------------------------------------------------------------------------

    async def objects(self, request: Request) -> Response:
        """A page of objects."""
        return await self._page(request, self._feed(request), None)

    async def object(self, request: Request) -> Response:
        """An object; its newest version, or those that are asked for."""
        return await self._page(request, self._feed(request), request.path_params["id"])

    async def _page(self, request: Request, feed: Feed, id: str | None) -> Response:
        found, more = await self._found(request, feed, id, with_content=True)
        envelope = Envelope(objects=[Raw(one.content) for one in found])
        if more:
            envelope.more, envelope.next = True, str(found[-1].added_us)
        return _answer(envelope, headers=_dates(found))

    async def manifest(self, request: Request) -> Response:
        """What a page of objects would have, without the objects."""
        found, more = await self._found(request, self._feed(request), None, with_content=False)
        content: dict[str, Any] = {}
        if more:
            content = {"more": True, "next": str(found[-1].added_us)}
        if found:
            content["objects"] = [
                {
                    "id": one.id,
                    "date_added": sql.time_text(one.added_us),
                    "version": one.version,
                    "media_type": f"application/stix+json;version={one.spec}",
                }
                for one in found
            ]
        return _answer(content, headers=_dates(found))

    async def versions(self, request: Request) -> Response:
        """Which versions of an object there are."""
        feed, id = self._feed(request), request.path_params["id"]
        found, more = await self._found(request, feed, id, with_content=False, version="all")
        content: dict[str, Any] = {"versions": [one.version for one in found]}
        if more:
            content |= {"more": True, "next": str(found[-1].added_us)}
        return _answer(content, headers=_dates(found))

    async def _found(
        self, request: Request, feed: Feed, id: str | None, *, with_content: bool, version: str = "last"
    ) -> tuple[list[Found], bool]:
        """(a page, whether there is more); raises RefusedError."""
        limits = self._intel.limits
        query = request.query_params
        if unknown := [name for name in query if name.startswith("match[") and name not in FILTERS]:
            raise RefusedError(400, "cannot filter by this", value=unknown[0], limit=", ".join(sorted(FILTERS)))
        limit = min(whole_number(request, "limit", default=limits.page, low=1, high=2**31), limits.page)
        after_us = _microseconds(query["added_after"]) if "added_after" in query else 0
        if "next" in query:
            after_us = max(after_us, whole_number(request, "next", default=0, low=0, high=2**62))
        where, given = ["o.feed = ?", "o.added_us > ?"], [feed.name, after_us]
        if id is not None:
            where.append("o.id = ?")
            given.append(id)
        for name, column in (("match[id]", "o.id"), ("match[type]", "o.type"), ("match[spec_version]", "o.spec")):
            if values := _values(query.get(name)):
                where.append(f"{column} IN ({', '.join('?' * len(values))})")
                given += values
        clauses: list[str] = []
        for wanted in _values(query.get("match[version]", version)):
            if wanted in sql.VERSIONS:
                clauses.append(sql.VERSIONS[wanted])
            else:
                clauses.append("o.version_us = ?")
                given.append(_microseconds(wanted))
        where.append(f"({' OR '.join(clauses)})")
        found = await asyncio.to_thread(self._read, " AND ".join(where), given, limit, with_content)
        if id is not None and not found[0] and not await asyncio.to_thread(self._store.has_object, feed.name, id):
            raise RefusedError(404, "cannot find this object in this collection", value=id)
        return found

    def _read(self, where: str, given: Sequence[Any], limit: int, with_content: bool) -> tuple[list[Found], bool]:
        content = "o.json" if with_content else "x''"
        found: list[Found] = []
        size = 0
        with self._store.reading() as connection:
            for row in connection.execute(
                f"SELECT o.added_us, o.id, o.version, o.spec, {content} FROM objects o WHERE {where} "
                "ORDER BY o.added_us LIMIT ?",
                (*given, limit + 1),
            ):
                one = Found(*row)
                size += len(one.content)
                if len(found) == limit or (found and size > self._intel.limits.page_bytes):
                    return found, True
                found.append(one)
        return found, False

    # -- writing ------------------------------------------------------------------------------------------

    async def add(self, request: Request) -> Response:
        """Add objects; those that are none are told in the status."""
        feed = self._feed(request)
        self._intel.token.check(_as_bearer(request))
        media_type = request.headers.get("content-type", "")
        if not _is_taxii(media_type):
            raise RefusedError(415, "cannot take this media type", value=media_type, limit=MEDIA_TYPE)
        at_us = int(time.time() * 1e6)
        body = await read_body(request, self._intel.limits.feed_bytes, self._intel.limits.feed_body_s)
        status = await asyncio.to_thread(self._add, feed, body, at_us)
        return _answer(Raw(status), 202)

    def _add(self, feed: Feed, body: bytes, at_us: int) -> bytes:
        raws = read_bundle(body)
        if not raws:
            raise RefusedError(422, "cannot add no objects", next='send {"objects": […]}')
        if self._store.objects + len(raws) > self._intel.limits.objects:
            raise RefusedError(413, "cannot keep so many objects", value=len(raws), limit=self._intel.limits.objects)
        rows, failures = read_objects(raws, self._intel.limits)
        self._store.check_room(feed.name, sum(len(row.values) for row in rows))
        if rows:
            self._store.put_objects(msgspec.structs.replace(feed, updated_s=at_us / 1e6), rows, is_whole=False)
        status = Status(
            id=new_status_id(),
            request_timestamp=sql.time_text(at_us),
            total_count=len(raws),
            success_count=len(rows),
            successes=[
                Detail(
                    row.found.id,
                    row.found.version or "",
                    "stored; its pattern stands for no plain value, so it is not indexed"
                    if row.found.type == "indicator" and not row.values
                    else "",
                )
                for row in rows
            ],
            failure_count=len(failures),
            failures=[Detail(who, version, why) for who, version, why in failures],
        )
        content = msgspec.json.encode(status)
        self._store.keep_status(status.id, content)
        return content

    async def delete(self, request: Request) -> Response:
        """Delete an object, or those of its versions that are asked for."""
        feed, id = self._feed(request), request.path_params["id"]
        self._intel.token.check(_as_bearer(request))
        found, _ = await self._found(request, feed, id, with_content=False, version="all")
        versions = [round(seconds_of(one.version) * 1e6) for one in found]
        await asyncio.to_thread(self._store.remove_object, feed, id, versions)
        return _answer({})

    # -- pieces -------------------------------------------------------------------------------------------

    def _feed(self, request: Request) -> Feed:
        name = request.path_params["collection"]
        for feed in self._store.index.feeds.values():
            if feed.kind is FeedKind.STIX and name in (feed.name, collection_id(feed.name)):
                return feed
        raise RefusedError(404, "cannot find this collection", value=name, next=f"GET /taxii2/{ROOT}/collections/")

    def _may_write(self, request: Request) -> bool:
        try:
            self._intel.token.check(_as_bearer(request))
        except RefusedError:
            return False
        return True


def _negotiated(endpoint: Endpoint) -> Endpoint:
    """The endpoint, for who accepts TAXII 2.1; its refusals in TAXII's form."""

    async def answer(request: Request) -> Response:
        try:
            accepted = request.headers.get("accept", "*/*")
            if not any(_is_taxii(one) or one.strip().partition(";")[0] in _ANY for one in accepted.split(",")):
                raise RefusedError(406, "cannot answer in this media type", value=accepted, limit=MEDIA_TYPE)
            return await endpoint(request)
        except RefusedError as error:
            reason = error.reason
            details = {"value": reason.value, "limit": reason.limit, "next": reason.next}
            message = ErrorMessage(
                title=reason.what,
                http_status=str(reason.status),
                description=reason.next,
                details={name: text for name, text in details.items() if text is not None},
            )
            headers = {"www-authenticate": 'Basic realm="cdn-threat-intel", Bearer'} if reason.status == 401 else None
            return _answer(message, reason.status, headers)

    return answer


_ANY = frozenset({"*/*", "application/*"})


def _is_taxii(media_type: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in media_type.split(";"))
    versions = [one.partition("=")[2].strip('" ') for one in parameters if one.startswith("version")]
    return kind == "application/taxii+json" and all(version == "2.1" for version in versions)


def _answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # As a header, not as media_type: Starlette would add nothing, but others compare this one letter by letter.
    return Response(msgspec.json.encode(content), status, headers={**(headers or {}), "content-type": MEDIA_TYPE})


def _base(request: Request) -> str:
    """How the client calls this server; a proxy says what it has taken off the path."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", request.url.scheme)
    host = headers.get("x-forwarded-host", headers.get("host", "127.0.0.1"))
    return f"{scheme}://{host}{headers.get('x-forwarded-prefix', '').rstrip('/')}"


def _as_bearer(request: Request) -> Request:
    """The request with the token in the form that Token knows: TAXII clients send it as a password, or as Token."""
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            sent = base64.b64decode(sent, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            sent = ""
    elif scheme.lower() not in {"token", "bearer"}:
        sent = ""
    return Request({"type": "http", "headers": [(b"authorization", b"Bearer " + sent.encode("latin-1", "replace"))]})


def _collection(feed: Feed, may_write: bool) -> dict[str, Any]:
    return {
        "id": collection_id(feed.name),
        "title": feed.name,
        "alias": feed.name,
        "can_read": True,
        "can_write": may_write,
        "media_types": ["application/stix+json;version=2.1"],
    }


def _values(text: str | None) -> list[str]:
    values = [one for one in (text or "").split(",") if one]
    if len(values) > MATCHES:
        raise RefusedError(400, "cannot match so many values", value=len(values), limit=MATCHES)
    return values


def _microseconds(text: str) -> int:
    try:
        return round(seconds_of(text) * 1e6)
    except BadObject as error:
        raise RefusedError(
            400, "cannot read this timestamp", value=text, limit="2026-01-31T12:00:00.000Z, first, last or all"
        ) from error


def _dates(found: Sequence[Found]) -> dict[str, str]:
    if not found:
        return {}
    return {
        "x-taxii-date-added-first": sql.time_text(found[0].added_us),
        "x-taxii-date-added-last": sql.time_text(found[-1].added_us),
    }
