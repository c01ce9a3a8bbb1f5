"""ATLAS's HTTP: the fleet for the page, for scripts, and for those without ZeroMQ."""

from __future__ import annotations

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bus.messages import ServiceView
from cdn_daemon.web import error_body
from services.atlas.switchboard import Switchboard

SCHEMA_VERSION = 1


class FleetAnswer(msgspec.Struct, kw_only=True):
    """Answer of ``GET /api/v1/fleet``; ``services`` as in ``cdnctl status --json``."""

    schema_version: int
    services: tuple[ServiceView, ...]
    counts: dict[str, int]


def make_app(switchboard: Switchboard) -> Starlette:
    """The application, answering from this switchboard."""

    async def fleet(request: Request) -> Response:
        answer = FleetAnswer(
            schema_version=SCHEMA_VERSION, services=switchboard.views(), counts=switchboard.all_counts()
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def not_found(request: Request, _: Exception) -> Response:
        body = error_body(404, "cannot find that", value=request.url.path, next="GET /api/v1/fleet")
        return Response(body, status_code=404, media_type="application/json")

    async def not_allowed(request: Request, _: Exception) -> Response:
        body = error_body(405, "cannot do that here", value=request.method, limit="GET")
        return Response(body, status_code=405, media_type="application/json", headers={"Allow": "GET, HEAD"})

    return Starlette(
        routes=[Route("/api/v1/fleet", fleet, methods=["GET"])],
        exception_handlers={404: not_found, 405: not_allowed},
    )
