"""What every service's server answers without its author's doing.

``/livez`` alive at all, ``/readyz`` fit for traffic, ``/metrics`` in Prometheus'
text format, ``GET /ooda`` and ``POST /ooda/mode``. Everything else goes to the
service's own application, and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import msgspec

from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase, OodaMode, OodaPhase
from cdn_daemon.ooda import Cycle, OodaLoop
from cdn_daemon.service import ASGIApp

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_MODE_BYTES = 1024
_METRIC = re.compile(r'(?P<name>[a-z_:][a-z0-9_:]*)(\{(?P<labels>[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*)\})?')
"""``name`` or ``name{label="value"}``; other metrics are on the bus but not in this format."""


class Traffic:
    """Requests and WebSockets: under way, and done."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = 0


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


class ServiceApp:
    """The ASGI application that is served: the framework's answers around the author's."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic
        self.subject: Subject | None = None
        """Set once the daemon exists, before the server listens."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http" and self.subject is not None:
            answer = self._ANSWERS.get(scope["path"])
            if answer is not None:
                await answer(self, self.subject, scope, receive, send)
                return
        self._traffic.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._traffic.in_flight -= 1
            self._traffic.requests += 1

    async def _livez(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        status = subject.status()
        await _answer(scope, send, 200, msgspec.json.encode({"alive": True, "phase": status.phase}))

    async def _readyz(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        status = subject.status()
        ready = status.phase is LifecyclePhase.SERVING and status.health is not HealthStatus.UNHEALTHY
        body = {"ready": ready, "phase": status.phase, "health": status.health, "reasons": status.reasons}
        await _answer(scope, send, 200 if ready else 503, msgspec.json.encode(body))

    async def _metrics(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        body = exposition(subject.status()).encode()
        await _answer(scope, send, 200, body, b"text/plain; version=0.0.4; charset=utf-8")

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
        await _answer(scope, send, 200, msgspec.json.encode(view, enc_hook=repr))

    async def _ooda_mode(self, subject: Subject, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            body = error_body(405, "cannot set the mode", value=scope["method"], next="use POST")
            await _answer(scope, send, 405, body, extra=[(b"allow", b"POST")])
            return
        if not _same_site(scope):
            body = error_body(403, "cannot set the mode from another site's page", next="send no Origin header")
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
            body = error_body(404, "cannot find this path", value=scope["path"][:200], next="/livez, /readyz, /metrics")
            await _answer(scope, send, 404, body)


def _same_site(scope: Scope) -> bool:
    """Whether no browser sends this on behalf of another site's page."""
    headers = dict(scope["headers"])
    origin: bytes | None = headers.get(b"origin")
    return origin is None or origin.partition(b"://")[2] == headers.get(b"host")


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


def exposition(status: DaemonStatus) -> str:
    """The status in Prometheus' text format 0.0.4; names and units by its conventions."""
    vitals, metrics = status.metrics.vitals, status.metrics
    labels = f'{{service="{status.service}",instance_id="{status.instance}"}}'
    lines: list[str] = []

    def put(name: str, kind: str, help_: str, value: float | None) -> None:
        if value is not None:
            lines.extend((f"# HELP {name} {help_}", f"# TYPE {name} {kind}", f"{name}{labels} {value!r}"))

    ready = status.phase is LifecyclePhase.SERVING and status.health is not HealthStatus.UNHEALTHY
    put("cdn_service_ready", "gauge", "1 if the service takes traffic.", int(ready))
    put("cdn_service_healthy", "gauge", "1 if every health check passes.", int(status.health is HealthStatus.HEALTHY))
    put("cdn_service_incarnation", "gauge", "Counts the starts of this instance.", status.incarnation)
    put("cdn_service_uptime_seconds", "gauge", "Time since the process began.", status.uptime_s)
    put("cdn_service_requests_total", "counter", "Requests answered.", metrics.requests)
    put("cdn_service_requests_in_flight", "gauge", "Requests not yet answered.", metrics.in_flight)
    put("cdn_service_cpu_cores", "gauge", "Processor use over the last second, in cores.", vitals.cpu_cores)
    put("cdn_service_resident_memory_bytes", "gauge", "Resident memory.", vitals.rss_bytes)
    put("cdn_service_open_fds", "gauge", "Open file descriptors.", vitals.fds)
    put("cdn_service_threads", "gauge", "Threads.", vitals.threads)
    put("cdn_service_loop_lag_seconds", "gauge", "How long the service's loop takes to answer.", vitals.loop_lag_s)
    described = ""
    for key, value in sorted(metrics.values.items()):
        match = _METRIC.fullmatch(key)
        if match is None:
            continue
        name, own = match["name"], match["labels"] or ""
        if name != described:
            described = name
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.extend((f"# HELP {name} See the service's documentation.", f"# TYPE {name} {kind}"))
        lines.append(f"{name}{labels[:-1]}{',' if own else ''}{own}}} {value!r}")
    return "\n".join(lines) + "\n"
