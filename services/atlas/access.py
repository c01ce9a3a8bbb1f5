"""Who may talk to ATLAS's HTTP: the names that it answers to, the origins that it believes, the operator's token.

What only reads needs no token, as whoever reaches the port may see the fleet. But a
page of another site must not reach it through somebody's browser: a name that is
not this host's own is refused (DNS rebinding), a foreign Origin is refused, and no
CORS header is ever sent. Orders need ``operator.token`` of the run directory in a
header, which no page of another site can know, or send without being asked first.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from bus.endpoints import RunDir
from cdn_daemon.origins import is_own_name
from cdn_daemon.web import error_body

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_MIN_CHARS = 16
FAILURES_MAX = 10
"""Wrong tokens in a row that are told so; more of them have to wait."""
FAILURES_PER_S = 0.2

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


def names_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Host names that ATLAS answers to besides loopback: CDN_ATLAS_HOSTS, and CDN_HOSTS as of every service."""
    told = f"{environ.get('CDN_ATLAS_HOSTS', '')} {environ.get('CDN_HOSTS', '')}"
    return tuple(told.lower().replace(",", " ").split())


class Guard:
    """ASGI: lets in what is meant for this host and comes from no other site's page; puts SECURITY_HEADERS on answers.

    ``names`` are host names that ATLAS answers to besides loopback and the address that was connected to:
    those of the proxy in front.
    """

    def __init__(self, app: App, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
            return
        status, body = refusal
        kind = "websocket.http" if scope["type"] == "websocket" else "http"
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send_guarded({"type": f"{kind}.response.start", "status": status, "headers": headers})
        await send_guarded({"type": f"{kind}.response.body", "body": b"" if scope.get("method") == "HEAD" else body})

    def _refusal(self, scope: Scope) -> tuple[int, bytes] | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
        host = hosts[0] if len(hosts) == 1 else ""
        connected = scope.get("server") or ("",)
        if not is_own_name(host, {*self._names, str(connected[0]).lower()}):
            what = "cannot answer under this name"
            limit = "localhost, a loopback address, or a name in CDN_ATLAS_HOSTS"
            return 421, error_body(421, what, value=host[:200], limit=limit, next="use http://127.0.0.1")
        asks_to_change = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        if asks_to_change and origin is not None and origin.partition("://")[2].lower() != host.lower():
            what = "cannot take this from another site's page"
            return 403, error_body(403, what, value=origin[:200], limit=f"the Origin of {host[:200]}, or none")
        return None


class OperatorToken:
    """The token that orders need, in ``operator.token`` of the run directory, 0600.

    It is read each time, so removing the file is how to have a new one. A right token is always
    taken, so that whoever guesses cannot lock the operator out.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._failures = 0.0
        self._failed_s = 0.0
        self.refused = 0
        """Wrong tokens since the start."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._run_dir.operator_token

    def read(self) -> str:
        """The token; made if there is none. OSError if that cannot be."""
        try:
            token = self.path.read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            token = ""
        if len(token) >= TOKEN_MIN_CHARS:
            return token
        token = secrets.token_urlsafe(32)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(token + "\n")
        unfinished.replace(self.path)
        log.info("made a new operator token in %s", self.path)
        return token

    def is_right(self, authorization: str, now_s: float) -> bool:
        """Whether an Authorization header bears the token; a wrong one is counted. Takes the same time for any."""
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.read().encode()) and scheme.lower() == "bearer"
        if right:
            self._failures = 0.0
        else:
            self.refused += 1
            self._failures = self._left(now_s) + 1
            self._failed_s = now_s
        return right

    def wait_s(self, now_s: float) -> float:
        """How long whoever has failed is to wait; 0 while that was seldom."""
        return max(0.0, self._left(now_s) - FAILURES_MAX) / FAILURES_PER_S

    def _left(self, now_s: float) -> float:
        return max(0.0, self._failures - (now_s - self._failed_s) * FAILURES_PER_S)
