"""POST /api/v1/commands: orders by HTTP, from whoever has the operator token; and what became of each command."""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bus.ids import new_id
from bus.messages import Limits, OodaMode, OrderRequest, ProcessName, Refusal, Verb
from cdn_daemon.web import error_body
from services.atlas.access import OperatorToken
from services.atlas.switchboard import Switchboard

BODY_MAX_BYTES = 64 << 10
_KEY = re.compile(r"[A-Za-z0-9_-]{8,64}")


class Order(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of the POST: an OrderRequest, but for what ATLAS knows itself."""

    verb: Verb
    names: Annotated[tuple[ProcessName, ...], Meta(min_length=1, max_length=1000)]
    timeout_s: float = 60.0
    batch: int | None = None
    signal: int | None = None
    instances: int | None = None
    on: bool | None = None
    for_s: float | None = None
    mode: OodaMode | None = None
    limits: Limits | None = None


class OrderAnswer(Struct, frozen=True, kw_only=True):
    """ATLAS has the order: one command for each name."""

    id: str
    commands: dict[str, str]
    """Name → id, for ``GET /api/v1/commands/ID``."""


def order_routes(switchboard: Switchboard, token: OperatorToken) -> list[Route]:
    """The routes, answering from this switchboard."""

    async def give(request: Request) -> Response:
        if (refusal := await _unauthorized(request, token)) is not None:
            return refusal
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _error(415, "cannot read this type of content", limit="application/json")
        if (body := await _read(request)) is None:
            return _error(413, "cannot take a body of this size", limit=BODY_MAX_BYTES)
        key = request.headers.get("idempotency-key")
        if key is not None and not _KEY.fullmatch(key):
            return _error(400, "cannot use this Idempotency-Key", value=key[:80], limit=_KEY.pattern)
        try:
            order = msgspec.json.decode(body, type=Order)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _error(400, f"cannot read the order: {error}", next='{"verb": "restart", "names": ["NAME"]}')
        asked = OrderRequest(
            id=new_id() if key is None else f"http-{key}",
            asked_by=f"http@{request.client.host if request.client is not None else 'unknown'}",
            **msgspec.structs.asdict(order),
        )
        answer = await asyncio.to_thread(switchboard.order, asked)
        if isinstance(answer, Refusal):
            return _error(409, answer.reason, value=list(order.names)[:10])
        return _json(202, OrderAnswer(id=answer.id, commands=answer.commands))

    async def outcome(request: Request) -> Response:
        id_ = request.path_params["id"]
        command = await asyncio.to_thread(switchboard.command, id_)
        if command is None:
            return _error(404, "cannot find this command", value=id_[:200], next="GET /api/v1/commands")
        return _json(200, command)

    return [
        Route("/api/v1/commands", give, methods=["POST"]),
        Route("/api/v1/commands/{id}", outcome, methods=["GET"]),
    ]


async def _unauthorized(request: Request, token: OperatorToken) -> Response | None:
    """Why not, if the request does not bear the token."""
    now_s = time.monotonic()
    try:
        is_right = await asyncio.to_thread(token.is_right, request.headers.get("authorization", ""), now_s)
    except OSError as error:
        return _error(503, f"cannot read the operator token: {error.strerror}", value=str(token.path))
    if is_right:
        return None
    if (wait_s := token.wait_s(now_s)) > 0:
        answer = _error(429, "cannot look at more wrong tokens for now", next=f"wait {wait_s:.0f} s")
        answer.headers["Retry-After"] = str(math.ceil(wait_s))
        return answer
    what = "cannot take an order without the operator token"
    answer = _error(401, what, next=f"send Authorization: Bearer with what is in {token.path}")
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


async def _read(request: Request) -> bytes | None:
    """The body; None if it is too large."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > BODY_MAX_BYTES:
            return None
    return bytes(content)


def _error(status: int, what: str, *, value: object = None, limit: object = None, next: str | None = None) -> Response:
    body = error_body(status, what, value=value, limit=limit, next=next)
    return Response(body, status_code=status, media_type="application/json")


def _json(status: int, answer: Struct) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(answer), status_code=status, media_type="application/json", headers=headers)
