"""ATLAS's HTTP: the fleet for the page, for scripts, and for those without ZeroMQ."""

from __future__ import annotations

import os

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from bus.messages import ServiceView
from cdn_daemon.web import error_body
from services.atlas.access import Guard, OperatorToken, names_of
from services.atlas.api import api_routes
from services.atlas.history import History
from services.atlas.live import Live
from services.atlas.orders_api import order_routes
from services.atlas.page_files import page_routes
from services.atlas.switchboard import Switchboard

SCHEMA_VERSION = 1


class FleetAnswer(msgspec.Struct, kw_only=True):
    """Answer of ``GET /api/v1/fleet``; ``services`` as in ``cdnctl status --json``."""

    schema_version: int
    services: tuple[ServiceView, ...]
    counts: dict[str, int]


def make_app(switchboard: Switchboard, history: History, token: OperatorToken) -> Starlette:
    """The application, answering from these."""

    async def fleet(request: Request) -> Response:
        answer = FleetAnswer(
            schema_version=SCHEMA_VERSION, services=switchboard.views(), counts=switchboard.all_counts()
        )
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def not_found(request: Request, _: Exception) -> Response:
        body = error_body(404, "cannot find that", value=request.url.path, next="GET /api/v1/fleet")
        return Response(body, status_code=404, media_type="application/json")

    async def not_allowed(request: Request, _: Exception) -> Response:
        # Starlette names the methods of the first route of this path only.
        here = [
            each for each in request.app.routes if isinstance(each, Route) and each.path_regex.match(request.url.path)
        ]
        allowed = ", ".join(sorted({method for each in here for method in each.methods or ()}))
        body = error_body(405, "cannot do that here", value=request.method, limit=allowed)
        return Response(body, status_code=405, media_type="application/json", headers={"Allow": allowed})

    async def left(request: Request, _: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it: the client has left in the middle of its own request

    return Starlette(
        routes=[
            Route("/api/v1/fleet", fleet, methods=["GET"]),
            WebSocketRoute("/api/v1/live", Live(switchboard).serve),
            *order_routes(switchboard, token),
            *api_routes(switchboard, history),
            *page_routes(),
        ],
        middleware=[Middleware(Guard, names=names_of(os.environ))],
        exception_handlers={404: not_found, 405: not_allowed, ClientDisconnect: left},
    )
