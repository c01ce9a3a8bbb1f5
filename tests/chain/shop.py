"""A service behind the gateway, whose log-ins somebody is guessing: it tells of that when it is told to."""

from __future__ import annotations

import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bus.messages import ChangePoint
from cdn_daemon import Service, run


async def hello(request: Request) -> Response:
    """Answers everybody."""
    return PlainTextResponse("hello")


async def rises(request: Request) -> Response:
    """Emits that failed log-ins from ?source= have risen; answers the event's id."""
    source = request.query_params["source"]
    facts = ChangePoint(
        series="logins_failed", direction="up", before=0.1, after=9.0, p_value=1e-6, at_s=time.time(), source=source
    )
    return PlainTextResponse(service.emit(facts, f"failed log-ins from {source} have risen from 0.1 to 9 a second"))


app = Starlette(routes=[Route("/", hello), Route("/rises", rises, methods=["POST"])])
service = Service("shop", app=app, port=0)

if __name__ == "__main__":
    run(service)
