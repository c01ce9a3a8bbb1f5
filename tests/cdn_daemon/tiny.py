"""A service that does whatever a test needs to see survived."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Lock, Thread

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cdn_daemon import ConfigurationError, OodaLoop, Service, long_call, run, work


async def hello(request: Request) -> Response:
    """Answers at once."""
    return PlainTextResponse("hello")


async def slow(request: Request) -> Response:
    """Answers after ?s= seconds."""
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse("slow but done")


async def wait(request: Request) -> Response:
    """Answers once there is a file called ?for= in the run directory."""
    while not os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], request.query_params["for"])):
        await asyncio.sleep(0.02)
    return PlainTextResponse("there it is")


async def raises(request: Request) -> Response:
    """Raises; with a query, after having begun to answer."""
    if not request.query_params:
        raise RuntimeError("this service is broken")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one piece"
        raise RuntimeError("this answer is broken")

    return StreamingResponse(pieces())


async def own_500(request: Request) -> Response:
    """A 500 in the application's own words."""
    return PlainTextResponse("Internal Server Error", status_code=500)


async def block(request: Request) -> Response:
    """Blocks the loop for ?s= seconds."""
    time.sleep(float(request.query_params["s"]))
    return PlainTextResponse("blocked")


async def declared(request: Request) -> Response:
    """Blocks the loop for ?s= seconds, declared as up to ?may= seconds."""
    with long_call(float(request.query_params["may"])):
        time.sleep(float(request.query_params["s"]))
    return PlainTextResponse("long but declared")


HOARD: list[object] = []


async def leak(request: Request) -> Response:
    """Takes ?mb= megabytes at once, and as many again every ?every= seconds, ?times= times."""
    query = request.query_params

    async def take() -> None:
        for _ in range(int(query.get("times", "1"))):
            HOARD.append(bytearray(b"x") * (int(query["mb"]) << 20))
            await asyncio.sleep(float(query.get("every", "0")))

    HOARD.append(asyncio.ensure_future(take()))
    return PlainTextResponse("leaking")


async def open_files(request: Request) -> Response:
    """Opens ?n= files."""
    HOARD.extend(open("/dev/null") for _ in range(int(request.query_params["n"])))  # noqa: SIM115
    return PlainTextResponse("open")


async def start_threads(request: Request) -> Response:
    """Starts ?n= threads."""
    for _ in range(int(request.query_params["n"])):
        Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return PlainTextResponse("started")


async def start_child(request: Request) -> Response:
    """Starts a child that takes ?mb= megabytes, and ends when this process has."""
    code = f"x = bytearray(b'x') * ({int(request.query_params['mb'])} << 20); import sys; sys.stdin.read()"
    HOARD.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
    return PlainTextResponse("started")


async def deadlock(request: Request) -> Response:
    """Two threads take two locks in two orders, in work that should take ?s= seconds."""
    first, second = Lock(), Lock()

    def take(one: Lock, other: Lock) -> None:
        with work("take both", deadline_s=float(request.query_params["s"])), one:
            time.sleep(0.2)
            with other:
                pass

    Thread(target=take, args=(first, second), name="forth", daemon=True).start()
    Thread(target=take, args=(second, first), name="back", daemon=True).start()
    return PlainTextResponse("locked")


async def echo(socket: WebSocket) -> None:
    """Echoes."""
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Serves, or fails as TINY_LIFESPAN says."""
    match os.environ.get("TINY_LIFESPAN"):
        case "raise":
            raise RuntimeError("lifespan is broken")
        case "misconfigured":
            raise ConfigurationError("cannot find the size: set TINY_SIZE")
        case _:
            yield


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", hello),
        Route("/slow", slow),
        Route("/wait", wait),
        Route("/raises", raises),
        Route("/own500", own_500),
        Route("/block", block),
        Route("/declared", declared),
        Route("/leak", leak),
        Route("/open", open_files),
        Route("/threads", start_threads),
        Route("/child", start_child),
        Route("/deadlock", deadlock),
        WebSocketRoute("/echo", echo),
    ],
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


class Undecided:
    """As an array: neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("its truth is ambiguous")


class Onlooker(OodaLoop[float, float, str]):
    """Sees nothing to do; what it sees makes no sense while a file called ``puzzling`` is in the run directory."""

    period_s = 0.2

    def observe(self) -> float:
        """Something."""
        return 1.0

    def orient(self, observation: float) -> float:
        """Raises, or not."""
        if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "puzzling")):
            raise ValueError("puzzling")
        return observation


service = Service("tiny", app=app, port=18999, drain_s=5.0, background=background, ooda=Onlooker())


@service.check(every_s=0.2, timeout_s=0.5, fails_after=2)
async def well() -> object:
    """Fails when a file called ``ill`` is in the run directory, or ``raving``, or ``undecided``."""
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "ill")):
        raise RuntimeError("there is a file called ill")
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "raving")):
        raise RuntimeError("\udce9" * 2_000_000)
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "undecided")):
        return Undecided()
    return None


@service.check(every_s=0.2, timeout_s=0.5, fails_after=2)
def hangs() -> None:
    """Hangs while a file called ``hang`` is in the run directory."""
    while os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "hang")):
        time.sleep(0.05)


@service.metrics
def numbers() -> dict[str, float]:
    """Its own number; raises when a file called ``nonsense`` is in the run directory, has no end with ``endless``."""
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "nonsense")):
        raise ValueError("nonsense")
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "endless")):
        return {f"tiny_thing_{number}_total": 1.0 for number in range(50_000)}
    return {"tiny_things_total": 3.0}


@service.shed
def less(dimension: str) -> None:
    """Writes down what it was asked to use less of."""
    with open(os.path.join(os.environ["CDN_RUN_DIR"], "shed"), "a") as file:
        print(dimension, file=file)
    if os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "cannot")):
        raise RuntimeError("nothing to shed")


@service.resume
async def more() -> None:
    """Writes down that it serves as before."""
    less("resumed")


if __name__ == "__main__":
    if os.environ.get("TINY_DAEMON") == "dies":

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("the daemon is broken")

        from cdn_daemon.daemon import CDNDaemon

        CDNDaemon._measure = broken  # type: ignore[method-assign]
    run(service)
