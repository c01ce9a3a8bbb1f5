"""What a service's own HTTP interface is made of: refusals that help, bounded bodies, typed answers.

For Starlette. Only services import it, so that a service of another kind need not load Starlette.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cdn_daemon.tokens import is_bearer, token_in

BODY_S = 10.0
INLINE_BYTES = 64 * 1024
"""A body up to this is decoded on the event loop, in well under a millisecond."""
JSON = "application/json"
_VALUE_CHARS = 200
Body = TypeVar("Body")


class Reason(Struct, frozen=True, kw_only=True):
    """The body of every error answer, under the key ``error``."""

    status: int
    what: str
    value: str | None = None
    limit: str | None = None
    next: str | None = None


class ErrorAnswer(Struct, frozen=True, kw_only=True):
    """``{"error": {"status", "what", "value", "limit", "next"}}``."""

    error: Reason


class RefusedError(Exception):
    """A request cannot be done; nothing of it was done. Becomes an ErrorAnswer."""

    def __init__(
        self, status: int, what: str, *, value: object = None, limit: object = None, next: str | None = None
    ) -> None:
        self.reason = Reason(
            status=status,
            what=what,
            value=None if value is None else _short(str(value)),
            limit=None if limit is None else str(limit),
            next=next,
        )
        super().__init__(what)


def _short(text: str) -> str:
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}… ({len(text)} characters)"


# -- requests ---------------------------------------------------------------------------------------------


async def chunks(request: Request, limit_bytes: int, within_s: float = BODY_S) -> AsyncIterator[bytes]:
    """The request's body as it comes; raises RefusedError 413 where it is too large, 408 where it takes too long."""
    too_large = RefusedError(413, "cannot take so large a body", limit=f"{limit_bytes} bytes", next="send it in parts")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise too_large
    size = 0
    stream = request.stream()
    deadline_s = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            async with asyncio.timeout_at(deadline_s):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise RefusedError(408, "cannot wait longer for the body", limit=f"{within_s:g} s") from error
        if chunk is None:
            return
        size += len(chunk)
        if size > limit_bytes:
            raise too_large
        yield chunk


async def read_body(request: Request, limit_bytes: int, within_s: float = BODY_S) -> bytes:
    """The whole body; raises RefusedError as chunks does."""
    return b"".join([chunk async for chunk in chunks(request, limit_bytes, within_s)])


async def read_json(request: Request, type: type[Body], limit_bytes: int, within_s: float = BODY_S) -> Body:
    """The body as a value of the type, off the loop if it is large; raises RefusedError, 400 where it is none."""
    body = await read_body(request, limit_bytes, within_s)
    if len(body) <= INLINE_BYTES:
        return decode(body, type)
    return await asyncio.to_thread(decode, body, type)


def decode(body: bytes, type: type[Body]) -> Body:
    """JSON as a value of the type; raises RefusedError 400 with the reason and the beginning of what was sent."""
    try:
        return msgspec.json.decode(body, type=type)
    except RecursionError as error:
        raise RefusedError(400, "cannot read the JSON: it is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        shown = body[:100].decode(errors="replace")
        raise RefusedError(400, f"cannot read the JSON: {error}", value=shown) from error


def whole_number(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    """A whole number from the query string, within its bounds; raises RefusedError 400."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text[:30])
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise RefusedError(400, f"cannot use this {name}", value=text, limit=f"a whole number, {low} to {high}")
    return value


class Token:
    """The token that orders need; made in its file, 0600, when it is first armed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = b""

    def arm(self) -> None:
        """Read it, or make it; raises tokens.TokenError. Blocks."""
        self._token = token_in(self.path)

    def check(self, request: Request) -> None:
        """Raises RefusedError 401 unless the request carries the token."""
        if not self._token or not is_bearer(request.headers.get("authorization", "").encode("latin-1"), self._token):
            raise RefusedError(
                401,
                "cannot obey without this service's token: Authorization: Bearer …",
                next=f"its owner finds the token in {self.path}",
            )


def routes(path: str, **methods: Callable[[Request], Awaitable[Response]]) -> list[Route]:
    """What answers each method of a path: ``routes("/feeds", get=self.feeds, post=self.load)``."""
    return [Route(path, endpoint, methods=[method.upper()]) for method, endpoint in methods.items()]


# -- answers ----------------------------------------------------------------------------------------------


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None, media_type: str = JSON) -> Response:
    """The value as JSON."""
    return Response(msgspec.json.encode(value), status, headers=headers, media_type=media_type)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {503: {"retry-after": "1"}, 401: {"www-authenticate": "Bearer"}}.get(error.reason.status)
    return answer(ErrorAnswer(error=error.reason), error.reason.status, headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "cannot find this path", 405: "cannot do this with this path"}.get(error.status_code, error.detail)
    reason = Reason(status=error.status_code, what=what, value=_short(f"{request.method} {request.url.path}"))
    return answer(ErrorAnswer(error=reason), error.status_code, error.headers)


async def _gone(_: Request, error: Exception) -> Response:
    """The client went away in the middle of its request; nobody reads this."""
    return Response(status_code=400)


async def _bug(request: Request, _: Exception) -> Response:
    """What nobody foresaw; it is in the log."""
    value = _short(f"{request.method} {request.url.path}")
    return answer(ErrorAnswer(error=Reason(status=500, what="cannot answer: a fault of the service", value=value)), 500)


EXCEPTION_HANDLERS: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    RefusedError: _refused,
    HTTPException: _http,
    ClientDisconnect: _gone,
    Exception: _bug,
}
"""For ``Starlette(exception_handlers=…)``."""
