"""cdn-data-fabric as it is, but slow and failing for as long as there is a file ``faulty`` in its state directory."""

from __future__ import annotations

import asyncio
import os
import random

from bus.endpoints import default_run_dir
from cdn_daemon import Service, run
from cdn_daemon.web import Receive, Scope, Send
from services.data_fabric.server import make_app

STATE = default_run_dir().state(os.environ["CDN_INSTANCE"])
DELAY_S = 0.2
ERROR_SHARE = 0.2

fabric = make_app(STATE)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI."""
    if scope["type"] == "http" and (STATE / "faulty").exists():
        await asyncio.sleep(DELAY_S)
        if random.random() < ERROR_SHARE:
            await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
    await fabric(scope, receive, send)


if __name__ == "__main__":
    run(Service("cdn-data-fabric", app=app, port=0))
