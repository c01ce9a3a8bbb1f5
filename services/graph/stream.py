"""/ws/stream: every change, in order, from the database itself: who is slow is behind, and misses nothing kept."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket, WebSocketDisconnect

from cdn_daemon.api import RefusedError
from services.graph.store import Store, What
from services.stream import gone

log = logging.getLogger(__name__)

PAGE = 500
LOOK_S = 1.0
"""So often another process' changes are looked for, while somebody listens."""
SEND_S = 20.0


class Changed(Struct, frozen=True, kw_only=True):
    """One change."""

    seq: int
    at_s: float
    what: What
    id: str
    detail: msgspec.Raw


class Missed(Struct, frozen=True, kw_only=True):
    """What was asked for is no longer kept: so many changes."""

    missed: int


class Stream:
    """Everyone who listens. Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listening: set[asyncio.Event] = set()
        self._ended = False

    def __len__(self) -> int:
        """How many listen."""
        return len(self._listening)

    def tell(self) -> None:
        """There is something new."""
        for news in self._listening:
            news.set()

    def end(self) -> None:
        """The service ends."""
        self._ended = True
        self.tell()

    async def serve(self, websocket: WebSocket) -> None:
        """One client, until it leaves or takes nothing for too long; ``?after=SEQ`` goes on after that change."""
        after = websocket.query_params.get("after", "")
        if len(self._listening) >= self._store.limits.watchers:
            raise RefusedError(503, "cannot tell more clients", limit=self._store.limits.watchers)
        if after and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise RefusedError(400, "cannot go on after this change", value=after, limit="a whole number")
        news = asyncio.Event()
        self._listening.add(news)
        at = int(after) if after else self._store.commits.newest  # what changes while it is accepted it hears
        try:
            await websocket.accept()
            await self._serve(websocket, news, at)
        finally:
            self._listening.discard(news)

    async def _serve(self, websocket: WebSocket, news: asyncio.Event, at: int) -> None:
        tasks = [
            asyncio.ensure_future(self._speak(websocket, news, at)),
            asyncio.ensure_future(gone(websocket)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            spoken, _ = await asyncio.gather(*tasks, return_exceptions=True)
            if spoken is None:
                with suppress(WebSocketDisconnect, RuntimeError):
                    await websocket.close(1012)  # the service restarts
            elif not isinstance(spoken, WebSocketDisconnect | asyncio.CancelledError):
                log.info("a client of /ws/stream is let go: %r", spoken)
                with suppress(WebSocketDisconnect, RuntimeError):
                    await websocket.close(1013)

    async def _speak(self, websocket: WebSocket, news: asyncio.Event, at: int) -> None:
        while not self._ended:
            changes, oldest = await asyncio.to_thread(self._store.newer, at, PAGE)
            if oldest > at + 1 and changes:
                await _send(websocket, Missed(missed=changes[0].seq - at - 1))
            for seq, at_s, what, id, detail in changes:
                await _send(
                    websocket, Changed(seq=seq, at_s=at_s, what=what, id=id, detail=msgspec.Raw(detail.encode()))
                )
                at = seq
            if len(changes) == PAGE:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await news.wait()
            news.clear()
            if at >= self._store.commits.newest:
                self._store.look()


async def _send(websocket: WebSocket, message: Struct) -> None:
    async with asyncio.timeout(SEND_S):
        await websocket.send_text(msgspec.json.encode(message).decode())
