"""Who waits for changes: a request for the next one, a WebSocket for all. Belongs to the event loop.

Nothing is held for anyone: whoever is ready reads on from where it was, so that a slow client costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from cdn_daemon.api import RefusedError
from cdn_daemon.web import error_body
from services.data_fabric.changes import Changes, Gap
from services.data_fabric.store import Store

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between looks for what another process over the same database has changed; our own changes are told at once."""
SEND_S = 20.0
BATCH = 500


class Feed:
    """The changes of a store, as they come."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._news = asyncio.Event()
        self._ended = False
        self.listeners = 0

    def listen(self) -> None:
        """Be told of commits on the running loop; before the store is opened."""
        loop = asyncio.get_running_loop()

        def committed() -> None:
            loop.call_soon_threadsafe(self._tell)

        self._store.committed = committed

    def end(self) -> None:
        """Let all who wait go, with what there is."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        if self.listeners >= self._store.limits.listeners:
            raise RefusedError(
                503,
                "cannot tell one more of changes",
                limit=f"{self._store.limits.listeners} at once",
                next="try again",
            )
        self.listeners += 1
        try:
            yield
        finally:
            self.listeners -= 1

    async def after(self, since: int, source: str | None, limit: int, wait_s: float) -> Changes:
        """Changes after that number; where there are none, once there are, or after that time. Raises RefusedError."""
        with self._listening():
            return await self._after(since, source, limit, wait_s)

    async def _after(self, since: int, source: str | None, limit: int, wait_s: float) -> Changes:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        while True:
            news = self._news  # before the look: what comes after it wakes us
            found = await asyncio.to_thread(self._store.changes().since, since, source, limit)
            left_s = deadline_s - loop.time()
            if found.changes or found.gap or left_s <= 0 or self._ended:
                return found
            since = found.last
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S)):
                    await news.wait()

    async def serve(self, websocket: WebSocket) -> None:
        """``/ws/stream``: each change since ``since=``, else from now on, until the client leaves or says something."""
        try:
            asked = websocket.query_params.get("since")
            since = int(asked) if asked else await asyncio.to_thread(self._store.changes().newest)
            with self._listening():
                await websocket.accept()
                await self._serve(websocket, max(0, min(since, 2**63 - 1)), websocket.query_params.get("source"))
        except ValueError:
            body = error_body(400, "cannot use this since", limit="a whole number")
            await websocket.send_denial_response(Response(body, status_code=400, media_type="application/json"))
        except RefusedError as error:
            body = error_body(error.reason.status, error.reason.what, limit=error.reason.limit, next=error.reason.next)
            refusal = Response(body, status_code=error.reason.status, media_type="application/json")
            await websocket.send_denial_response(refusal)

    async def _serve(self, websocket: WebSocket, since: int, source: str | None) -> None:
        speaking = asyncio.create_task(self._speak(websocket, since, source))
        listening = asyncio.create_task(websocket.receive())
        try:
            await asyncio.wait((speaking, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (speaking, listening):
                task.cancel()
            spoken, heard = await asyncio.gather(speaking, listening, return_exceptions=True)
        if isinstance(spoken, TimeoutError):
            log.info("dropped a client of /ws/stream that took nothing for %g s", SEND_S)
        elif isinstance(spoken, Exception) and not isinstance(spoken, WebSocketDisconnect):
            log.error("cannot go on telling a client of changes", exc_info=spoken)
        left = isinstance(heard, dict) and heard["type"] == "websocket.disconnect"
        if not left and not isinstance(spoken, WebSocketDisconnect):
            code = 1012 if self._ended else 1008 if isinstance(heard, dict) else 1011
            with suppress(WebSocketDisconnect, RuntimeError):
                await websocket.close(code)

    async def _speak(self, websocket: WebSocket, since: int, source: str | None) -> None:
        while not self._ended:
            found = await self._after(since, source, BATCH, 30.0)
            messages = [Gap(since=since)] if found.gap else []
            for message in [*messages, *found.changes]:
                async with asyncio.timeout(SEND_S):
                    await websocket.send_text(msgspec.json.encode(message).decode())
            since = found.last
