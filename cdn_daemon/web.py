"""What every service's server answers without its author's doing.

``/livez`` alive at all, ``/readyz`` fit for traffic, ``/metrics`` in Prometheus'
text format, ``GET /ooda`` and ``POST /ooda/mode``. Everything else goes to the
service's own application, and is counted; where that has nothing at ``/``, the
service says there who it is and where to look. What a page of another site could
have sent is refused before anybody sees it (origins.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase, OodaMode, OodaPhase
from cdn_daemon.exposition import CONTENT_TYPE, exposition
from cdn_daemon.ooda import Cycle, OodaLoop
from cdn_daemon.origins import ANY, Refused, refusal
from cdn_daemon.service import ASGIApp

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)

_MODE_BYTES = 1024
_NOT_FOUND_BYTES = 4096
_FRAMEWORKS_500 = b"Internal Server Error"
"""Starlette and others answer so, in plain text, when an application raises; then they let it rise further."""

_handshake: ContextVar[_Handshake | None] = ContextVar("_handshake", default=None)


class _Handshake:
    """Sends for one WebSocket, and knows whether it was refused by an answer of HTTP."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_refused = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "websocket.http.response.start":
            self.is_refused = True
        await self._send(message)


def is_worth_logging(record: logging.LogRecord) -> bool:
    """For uvicorn's own log: it calls it an error of the application that a WebSocket was refused with an answer."""
    handshake = _handshake.get()
    return handshake is None or not handshake.is_refused or "completing handshake" not in record.getMessage()


class Traffic:
    """What is under way in the service, and how much is done."""

    def __init__(self) -> None:
        self.in_flight = 0
        """Requests and WebSockets."""
        self.websockets = 0
        self.tasks = 0
        """Of the service's own: its background task, its main function, its drain."""
        self.requests = 0

    def under_way(self) -> str:
        """For people: ``3 requests, 1 websocket, 2 background tasks``, or ``nothing in flight``."""
        counts = (
            (self.in_flight - self.websockets, "request"),
            (self.websockets, "websocket"),
            (self.tasks, "background task"),
        )
        parts = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count]
        return ", ".join(parts) or "nothing in flight"


class Subject(Protocol):
    """What these answers are about: the daemon."""

    def status(self) -> DaemonStatus:
        """Its status now."""

    @property
    def ooda(self) -> OodaLoop[Any, Any, Any]:
        """Its loop."""


class OodaView(msgspec.Struct, kw_only=True):
    """Answer of ``GET /ooda``."""

    service: str
    instance: str
    mode: OodaMode
    phase: OodaPhase
    period_s: float
    settle_s: float
    kept: int
    undone: int
    failed: int
    actions: list[Cycle]
    """The cycles that changed something, with the effect it had; newest last."""
    cycles: list[Cycle]
    """Newest last."""


class ModeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /ooda/mode``."""

    mode: OodaMode


class ErrorDetail(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Why a request was refused."""

    status: int
    what: str
    value: Any = None
    limit: Any = None
    next: str | None = None


def error_body(status: int, what: str, *, value: Any = None, limit: Any = None, next: str | None = None) -> bytes:
    """``{"error": {"status", "what", "value", "limit", "next"}}``, the form of every refusal."""
    return msgspec.json.encode({"error": ErrorDetail(status=status, what=what, value=value, limit=limit, next=next)})


class Root(msgspec.Struct, kw_only=True):
    """Answer of ``GET /`` of a service whose application has none."""

    service: str
    instance: str
    host: str
    incarnation: int
    phase: LifecyclePhase
    health: HealthStatus
    reasons: tuple[str, ...]
    paths: tuple[str, ...] = ("/livez", "/readyz", "/metrics", "/ooda")
    """What every service answers; its own stand in its documentation."""


class _Answer:
    """An answer on its way out, but that of a framework that says 500 in its own words and then raises."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[MutableMapping[str, Any]] = []
        self.has_begun = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if not self.has_begun and (message.get("status") == 500 or message.get("body") == _FRAMEWORKS_500):
            self._held.append(message)
            return
        await self.release()
        self.has_begun = True
        await self._send(message)

    async def release(self) -> None:
        """Send what was held: it was the application's own."""
        held, self._held = self._held, []
        for message in held:
            self.has_begun = True
            await self._send(message)


class _RootAnswer:
    """An answer for ``/``: where it is a 404 that leads nowhere, ``instead`` is called in its place."""

    def __init__(self, send: Send, instead: Callable[[], Awaitable[None]]) -> None:
        self._send = send
        self._instead = instead
        self._held: list[MutableMapping[str, Any]] = []

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if not self._held and message.get("status") != 404:
            await self._send(message)
            return
        self._held.append(message)
        content = b"".join(each.get("body", b"") for each in self._held)
        is_short = len(content) <= _NOT_FOUND_BYTES
        is_whole = message["type"] == "http.response.body" and not message.get("more_body")
        if is_short and not is_whole:
            return
        held, self._held = self._held, []
        if is_short and not _leads_on(content):
            await self._instead()
            return
        for each in held:
            await self._send(each)


def _leads_on(content: bytes) -> bool:
    """Whether a 404 says itself where to look next."""
    try:
        return msgspec.json.decode(content)["error"]["next"] is not None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return False


class ServiceApp:
    """The ASGI application that is served: the framework's answers around the author's."""

    def __init__(
        self,
        app: ASGIApp,
        traffic: Traffic,
        expose: Callable[[DaemonStatus], str] | None = None,
        *,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)
        self._takes_all = ANY in self._hosts and ANY in self._origins
        self._expose = expose
        self._traffic = traffic
        self.subject: Subject | None = None
        """Set once the daemon exists, before the server listens."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        is_websocket = scope["type"] == "websocket"
        if is_websocket:
            send = _Handshake(send)
            _handshake.set(send)
        refused = None if self._takes_all else self._refusal(scope)
        if refused is not None:
            await _refuse(scope, send, refused)
            return
        if scope["type"] == "http" and self.subject is not None:
            answer = self._ANSWERS.get(scope["path"])
            if answer is not None:
                await answer(self, self.subject, scope, receive, send)
                return
        traffic = self._traffic
        traffic.in_flight += 1
        traffic.websockets += is_websocket
        try:
            if is_websocket:
                await self._app(scope, receive, send)
            else:
                await self._answer_even_if_it_raises(scope, receive, send)
        finally:
            traffic.in_flight -= 1
            traffic.websockets -= is_websocket
            traffic.requests += 1

    def _refusal(self, scope: Scope) -> Refused | None:
        connected = scope.get("server") or ("",)
        return refusal(
            scope["headers"],
            method=scope.get("method", ""),
            path=scope["path"],
            connected=str(connected[0]),
            hosts=self._hosts,
            origins=self._origins,
        )

    async def _answer_even_if_it_raises(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD") and self.subject is not None:
            send = _RootAnswer(send, partial(self._root, self.subject, scope, send))
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer)
        except Exception:
            if answer.has_begun:
                raise  # the server logs it, and closes the connection, so that nobody takes it for whole
            log.error("cannot answer %s %s", scope["method"], scope["path"], exc_info=True)
            await _answer(scope, send, 500, error_body(500, "cannot answer: the service has a fault; see its log"))
            return
        await answer.release()

    async def _root(self, subject: Subject, scope: Scope, send: Send) -> None:
        status = subject.status()
        root = Root(
            service=status.service,
            instance=status.instance,
            host=status.host,
            incarnation=status.incarnation,
            phase=status.phase,
            health=status.health,
            reasons=status.reasons,
        )
        await _answer(scope, send, 200, msgspec.json.encode(root))

    async def _livez(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        status = subject.status()
        await _answer(scope, send, 200, msgspec.json.encode({"alive": True, "phase": status.phase}))

    async def _readyz(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        status = subject.status()
        ready = status.phase is LifecyclePhase.SERVING and status.health is not HealthStatus.UNHEALTHY
        body = {"ready": ready, "phase": status.phase, "health": status.health, "reasons": status.reasons}
        await _answer(scope, send, 200 if ready else 503, msgspec.json.encode(body))

    async def _metrics(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        if self._expose is None:
            text = exposition(subject.status())
        else:
            text = await asyncio.to_thread(self._expose, subject.status())
        await _answer(scope, send, 200, text.encode(errors="replace"), CONTENT_TYPE.encode())

    async def _ooda(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        status, loop = subject.status(), subject.ooda
        view = OodaView(
            service=status.service,
            instance=status.instance,
            mode=loop.mode,
            phase=loop.current_phase(),
            period_s=loop.period_s,
            settle_s=loop.settle_s,
            kept=loop.kept,
            undone=loop.undone,
            failed=loop.failed,
            actions=list(loop.actions),
            cycles=list(loop.cycles),
        )
        try:
            body = msgspec.json.encode(view, enc_hook=repr)
        except Exception:  # noqa: BLE001 - what an author's loop keeps may be anything
            view.actions, view.cycles = (
                [_told(cycle) for cycle in view.actions],
                [_told(cycle) for cycle in view.cycles],
            )
            body = msgspec.json.encode(view)
        await _answer(scope, send, 200, body)

    async def _ooda_mode(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            body = error_body(405, "cannot set the mode", value=scope["method"], next="use POST")
            await _answer(scope, send, 405, body, extra=[(b"allow", b"POST")])
            return
        # A page's Origin proves nothing: that of a name rebound to this host is the Host that it asks for.
        if any(name == b"origin" for name, _ in scope["headers"]):
            body = error_body(403, "cannot set the mode from a web page", next="send no Origin header")
            await _answer(scope, send, 403, body)
            return
        content = await _read(receive, _MODE_BYTES)
        if content is None:
            await _answer(scope, send, 413, error_body(413, "cannot take the body: too large", limit=_MODE_BYTES))
            return
        try:
            subject.ooda.mode = msgspec.json.decode(content, type=ModeRequest).mode
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            body = error_body(400, f"cannot set the mode: {error}", limit='{"mode": "off"|"shadow"|"on"}')
            await _answer(scope, send, 400, body)
            return
        await _answer(scope, send, 200, msgspec.json.encode({"mode": subject.ooda.mode}))

    _ANSWERS = {  # noqa: RUF012
        "/livez": _livez,
        "/readyz": _readyz,
        "/metrics": _metrics,
        "/ooda": _ooda,
        "/ooda/mode": _ooda_mode,
    }


def _told(cycle: Cycle) -> Cycle:
    """The same, with texts for what JSON cannot have."""
    told = {}
    for name in ("observation", "picture", "decision"):
        value = getattr(cycle, name)
        try:
            told[name] = msgspec.Raw(msgspec.json.encode(value, enc_hook=repr))
        except Exception:  # noqa: BLE001 - see above
            told[name] = msgspec.Raw(msgspec.json.encode(_text(value)))
    return replace(cycle, **told)


def _text(value: object) -> str:
    try:
        return repr(value).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - its own __repr__
        return f"a {type(value).__name__} that cannot be shown"


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a service that has none."""
    match scope["type"]:
        case "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        case "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        case _:
            next_ = None if scope["path"] == "/" else "/livez, /readyz, /metrics"
            body = error_body(404, "cannot find this path", value=scope["path"][:200], next=next_)
            await _answer(scope, send, 404, body)


async def _refuse(scope: Scope, send: Send, refused: Refused) -> None:
    body = error_body(refused.status, refused.what, value=refused.value, limit=refused.limit, next=refused.next)
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": f"{kind}.start", "status": refused.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The request's body; None if it is over the limit or its sender left."""
    content: bytes = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        content += message.get("body", b"")
        if len(content) > limit:
            return None
        if not message.get("more_body"):
            return content


async def _answer(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"application/json",
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *(extra or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
