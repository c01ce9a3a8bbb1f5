"""/ws/stream: the same to everybody who listens.

Of a Stream a slow client misses some, and is told how many; of Watchers it is let go.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct
from starlette.websockets import WebSocket, WebSocketDisconnect

from cdn_daemon.api import RefusedError

log = logging.getLogger(__name__)

SEND_S = 20.0
T = TypeVar("T")


class Missed(Struct, frozen=True, kw_only=True, tag="missed"):
    """The client was too slow for so many messages."""

    messages: int


class _Client:
    def __init__(self, backlog: int) -> None:
        self.waiting: deque[str] = deque(maxlen=backlog)
        self.missed = 0
        self.news = asyncio.Event()

    def tell(self, text: str) -> None:
        self.missed += len(self.waiting) == self.waiting.maxlen
        self.waiting.append(text)
        self.news.set()


class Stream:
    """Tells every client the same, encoded once. Belongs to the event loop."""

    def __init__(self, clients_max: int, backlog: int, *, instead: str) -> None:
        """``backlog`` messages are kept for each client; ``instead`` is what one too many can ask."""
        self._clients: set[_Client] = set()
        self._max = clients_max
        self._backlog = backlog
        self._instead = instead
        self.missed = 0
        """Messages that some client was told it has missed."""

    def __len__(self) -> int:
        """How many listen."""
        return len(self._clients)

    def tell(self, message: Struct) -> None:
        """Have everybody sent this."""
        if self._clients:
            text = msgspec.json.encode(message).decode()
            for client in self._clients:
                client.tell(text)

    async def serve(self, websocket: WebSocket) -> None:
        """One client, until it leaves, says something, or takes nothing for too long. Raises RefusedError."""
        if len(self._clients) >= self._max:
            raise RefusedError(503, "cannot tell more clients", limit=self._max, next=self._instead)
        client = _Client(self._backlog)
        self._clients.add(client)  # before it is accepted: what happens from then on it hears
        try:
            await websocket.accept()
            await self._serve(websocket, client)
        finally:
            self._clients.discard(client)

    async def _serve(self, websocket: WebSocket, client: _Client) -> None:
        tasks = [asyncio.create_task(self._speak(websocket, client)), asyncio.create_task(self._listen(websocket))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            spoken, heard = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(spoken, TimeoutError):
            log.info("dropped a client of /ws/stream that took nothing for %g s", SEND_S)
        elif not isinstance(spoken, WebSocketDisconnect) and not isinstance(heard, WebSocketDisconnect):
            with suppress(WebSocketDisconnect, RuntimeError):
                await websocket.close(1008 if heard is None else 1011)

    async def _speak(self, websocket: WebSocket, client: _Client) -> None:
        while True:
            await client.news.wait()
            client.news.clear()
            while client.waiting:
                if client.missed:
                    self.missed += client.missed
                    text = msgspec.json.encode(Missed(messages=client.missed)).decode()
                    client.missed = 0
                else:
                    text = client.waiting.popleft()
                async with asyncio.timeout(SEND_S):
                    await websocket.send_text(text)

    async def _listen(self, websocket: WebSocket) -> None:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))


class Watchers(Generic[T]):
    """Queues of what is told; one that nobody takes from is let go. Belongs to the event loop."""

    def __init__(self, watchers_max: int, backlog: int) -> None:
        self._waiting: set[asyncio.Queue[T | None]] = set()
        self._max = watchers_max
        self._backlog = backlog
        self.let_go = 0

    def __len__(self) -> int:
        """How many watch."""
        return len(self._waiting)

    def join(self) -> asyncio.Queue[T | None] | None:
        """What comes from now on; None in it is the end. None instead of it if too many watch."""
        if len(self._waiting) >= self._max:
            return None
        waiting: asyncio.Queue[T | None] = asyncio.Queue()
        self._waiting.add(waiting)
        return waiting

    def leave(self, waiting: asyncio.Queue[T | None]) -> None:
        """It watches no more."""
        self._waiting.discard(waiting)

    def tell(self, message: T) -> None:
        """Have every one sent this."""
        for waiting in [*self._waiting]:
            if waiting.qsize() < self._backlog:
                waiting.put_nowait(message)
            else:
                waiting.put_nowait(None)
                self._waiting.discard(waiting)
                self.let_go += 1

    def end(self) -> None:
        """Let all go; the service ends."""
        for waiting in self._waiting:
            waiting.put_nowait(None)
        self._waiting.clear()


async def gone(websocket: WebSocket) -> None:
    """Until the client has gone; what it says is not heard."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        continue
