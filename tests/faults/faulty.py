"""A service with every fault on request: ``GET /fault/NAME``. Its name is its program's in supervisord.conf.

    python -m tests.faults.faulty

injections.py knows the requests. A file ``NAME.exits`` in the run directory has each of its starts end with 3
after so many seconds.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cdn_daemon import CDNDaemon, Service, long_call, run
from tests.cdn_daemon import tiny

NAME = os.environ.get("SUPERVISOR_PROCESS_NAME", "faulty")

Answerer = Callable[[Request], Awaitable[Response]]


async def who(_: Request) -> Response:
    """Its pid."""
    return PlainTextResponse(str(os.getpid()))


async def hold_by_regex(_: Request) -> Response:
    """Holds the interpreter, burning."""
    re.match("(a+)+$", "a" * 60 + "b")
    return PlainTextResponse("never")


async def hold_by_sleep(request: Request) -> Response:
    """Holds the interpreter, sleeping, for ?s= seconds; declared, if ?may= says how long it may take."""
    sleeps_us = int(1e6 * float(request.query_params["s"]))
    if may := request.query_params.get("may"):
        with long_call(float(may)):
            ctypes.PyDLL(None).usleep(sleeps_us)
    else:
        ctypes.PyDLL(None).usleep(sleeps_us)
    return PlainTextResponse("held")


async def busy(_: Request) -> Response:
    """A thread that computes from now on."""

    def compute() -> None:
        while True:
            pass

    threading.Thread(target=compute, daemon=True).start()
    return PlainTextResponse("computing")


async def end_daemon(_: Request) -> Response:
    """The daemon's thread raises in its next report."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the daemon is broken")

    CDNDaemon._measure = broken  # type: ignore[method-assign]
    return PlainTextResponse("soon")


async def ignore_sigterm(_: Request) -> Response:
    """From now on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return PlainTextResponse("deaf")


async def storm(request: Request) -> Response:
    """A child forks ?n= more, every other one in a session of its own."""
    pairs = int(request.query_params["n"]) // 2
    script = f"n=0; while [ $n -lt {pairs} ]; do sleep 1000 & setsid sleep 1000 & n=$((n+1)); done; wait"
    tiny.HOARD.append(subprocess.Popen(["sh", "-c", script]))
    return PlainTextResponse("forking")


async def leave_heir(_: Request) -> Response:
    """A child in a session of its own has the listening socket and the log, and does not go by itself; its pid."""
    child = subprocess.Popen(["sleep", "1000"], pass_fds=listening(), start_new_session=True)
    tiny.HOARD.append(child)
    return PlainTextResponse(str(child.pid))


def listening() -> list[int]:
    """Descriptors of this process on which it accepts connections by TCP."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as one:
                is_listening = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if one.family == socket.AF_INET and is_listening:
                    found.append(int(entry))
        except OSError:
            continue
    return found


FAULTS: dict[str, Answerer] = {
    "hold-by-regex": hold_by_regex,
    "hold-by-sleep": hold_by_sleep,
    "busy": busy,
    "end-daemon": end_daemon,
    "ignore-sigterm": ignore_sigterm,
    "storm": storm,
    "heir": leave_heir,
    "block": tiny.block,
    "declared": tiny.declared,
    "deadlock": tiny.deadlock,
    "leak": tiny.leak,
    "files": tiny.open_files,
    "threads": tiny.start_threads,
}


def exit_soon() -> None:
    """End with 3 after as many seconds as the file says, if there is one."""
    path = Path(os.environ["CDN_RUN_DIR"]) / f"{NAME}.exits"
    if path.exists():
        timer = threading.Timer(float(path.read_text()), os._exit, (3,))
        timer.daemon = True
        timer.start()


routes = [Route("/", who), *(Route(f"/fault/{name}", answer) for name, answer in FAULTS.items())]
service = Service(NAME, app=Starlette(routes=routes), port=0, drain_s=5.0)

if __name__ == "__main__":
    exit_soon()
    run(service)
