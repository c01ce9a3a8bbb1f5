"""A service that does whatever a test needs to see survived."""

from __future__ import annotations

import asyncio
import os
import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cdn_daemon import ConfigurationError, Service, long_call, run


async def hello(request: Request) -> Response:
    """Answers at once."""
    return PlainTextResponse("hello")


async def slow(request: Request) -> Response:
    """Answers after ?s= seconds."""
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse("slow but done")


async def block(request: Request) -> Response:
    """Blocks the loop for ?s= seconds."""
    time.sleep(float(request.query_params["s"]))
    return PlainTextResponse("blocked")


async def declared(request: Request) -> Response:
    """Blocks the loop for ?s= seconds, declared as up to ?may= seconds."""
    with long_call(float(request.query_params["may"])):
        time.sleep(float(request.query_params["s"]))
    return PlainTextResponse("long but declared")


async def echo(socket: WebSocket) -> None:
    """Echoes."""
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


app = Starlette(
    routes=[
        Route("/", hello),
        Route("/slow", slow),
        Route("/block", block),
        Route("/declared", declared),
        WebSocketRoute("/echo", echo),
    ]
)


async def background() -> None:
    """Runs, or fails as TINY_BACKGROUND says."""
    match os.environ.get("TINY_BACKGROUND"):
        case "raise":
            raise RuntimeError("background task is broken")
        case "misconfigured":
            raise ConfigurationError("cannot find the colour: set TINY_COLOUR")
        case _:
            await asyncio.sleep(3600)


service = Service("tiny", app=app, port=18999, drain_s=5.0, background=background)


@service.check(every_s=0.2, timeout_s=0.5, fails_after=2)
async def well() -> None:
    """Fails when a file called ``ill`` is in the run directory."""
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "ill")):
        raise RuntimeError("there is a file called ill")


@service.check(every_s=0.2, timeout_s=0.5, fails_after=2)
def hangs() -> None:
    """Hangs while a file called ``hang`` is in the run directory."""
    while os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "hang")):
        time.sleep(0.05)


@service.metrics
def numbers() -> dict[str, float]:
    """Its own number; raises when a file called ``nonsense`` is in the run directory."""
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "nonsense")):
        raise ValueError("nonsense")
    return {"tiny_things_total": 3.0}


if __name__ == "__main__":
    if os.environ.get("TINY_DAEMON") == "dies":

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the daemon is broken")

        from cdn_daemon.daemon import CDNDaemon

        CDNDaemon._sample = broken  # type: ignore[method-assign]
    run(service)
