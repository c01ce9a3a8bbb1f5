"""GET /api/v1/live: the fleet by WebSocket, as a snapshot and then what changes, for the page and for scripts.

Each message is encoded once for all clients. A client that is behind by more than
is kept gets a new snapshot instead, and one that takes nothing is dropped: nobody's
backlog is kept. Nothing is looked at while nobody listens. Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress

import msgspec
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from bus.endpoints import host_name
from cdn_daemon.web import error_body
from services.atlas.changes import Delta, Row, Snapshot, Told
from services.atlas.switchboard import Switchboard

log = logging.getLogger(__name__)

PERIOD_S = 0.25
SHARE = 0.05
"""Looking takes about this part of a core: with 10,000 services there are fewer deltas a second,"""
PERIOD_MAX_S = 2.0
"""but no fewer than this, or clients would take it for silence."""
SILENCE_S = 1.0
"""When nothing has changed for so long, a delta says that."""
DELTAS_KEPT = 20
SEND_S = 20.0
CLIENTS_MAX = 64
EVENTS_TOLD = 200
COMMANDS_TOLD = 100


class Live:
    """Tells every client; ``serve`` is for as long as one stays."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._told = Told()
        """What the thread that looks has found; the two below are what has been told of it."""
        self._rows: list[Row] | None = None
        self._notes: tuple[str, ...] = ()
        self._seq = 0
        self._spoke_s = 0.0
        self._deltas: deque[tuple[int, str]] = deque(maxlen=DELTAS_KEPT)
        self._snapshot: tuple[int, str] | None = None
        self._clients = 0
        self._news = asyncio.Event()
        """Set once there is another message, and then replaced."""
        self._teller: asyncio.Task[None] | None = None

    async def serve(self, websocket: WebSocket) -> None:
        """One client, until it leaves or is too slow."""
        if self._clients >= CLIENTS_MAX:
            body = error_body(503, "cannot tell more clients", limit=CLIENTS_MAX, next="GET /api/v1/fleet")
            await websocket.send_denial_response(Response(body, status_code=503, media_type="application/json"))
            return
        await websocket.accept()
        self._clients += 1
        if self._teller is None:
            self._teller = asyncio.create_task(self._tell())
        speaking = asyncio.create_task(self._speak(websocket))
        listening = asyncio.create_task(self._listen(websocket))
        try:
            await asyncio.wait((speaking, listening), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients -= 1
            for task in (speaking, listening):
                task.cancel()
            ended = await asyncio.gather(speaking, listening, return_exceptions=True)
        match ended:
            case [TimeoutError(), _]:
                log.info("dropped a client of /api/v1/live that took nothing for %g s", SEND_S)
            case [WebSocketDisconnect(), _] | [_, WebSocketDisconnect()]:
                return
            case _:
                with suppress(WebSocketDisconnect):
                    await websocket.close(1008 if ended[1] is None else 1011)

    async def _listen(self, websocket: WebSocket) -> None:
        """Until the client leaves, or says something: there is nothing to be said here."""
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))

    async def _speak(self, websocket: WebSocket) -> None:
        """Until the teller has failed."""
        at: int | None = None
        while self._teller is not None:
            if at == self._seq or self._rows is None:
                await self._news.wait()
                continue
            at, text = self._next(at)
            async with asyncio.timeout(SEND_S):  # wait_for of Python 3.11 can lose the cancellation by serve
                await websocket.send_text(text)

    def _next(self, at: int | None) -> tuple[int, str]:
        """What a client that has heard message ``at`` hears next."""
        if at is not None and self._deltas and self._deltas[0][0] <= at + 1:
            return self._deltas[at + 1 - self._deltas[0][0]]
        if self._snapshot is None or self._snapshot[0] != self._seq:
            snapshot = Snapshot(
                seq=self._seq,
                time_s=time.time(),
                host=host_name(),
                services=self._rows or [],
                notes=self._notes,
                events=list(self._switchboard.events(EVENTS_TOLD)),
                commands=list(self._switchboard.commands(COMMANDS_TOLD)),
            )
            self._snapshot = self._seq, msgspec.json.encode(snapshot).decode()
        return self._snapshot

    async def _tell(self) -> None:
        """Look again and again, while anybody listens."""
        try:
            while self._clients:
                began_s = time.monotonic()
                delta, cost_s = await asyncio.to_thread(self._look, self._seq + 1)
                self._rows, self._notes = list(self._told.rows.values()), self._told.notes
                is_news = bool(delta.services or delta.gone or delta.events or delta.commands)
                if is_news or delta.notes is not None or began_s - self._spoke_s >= SILENCE_S:
                    self._spoke_s = began_s
                    self._seq = delta.seq
                    self._deltas.append((delta.seq, msgspec.json.encode(delta).decode()))
                    self._wake()
                period_s = min(PERIOD_MAX_S, max(PERIOD_S, cost_s / SHARE))
                await asyncio.sleep(max(0.0, began_s + period_s - time.monotonic()))
        except Exception:
            log.exception("cannot tell what changes in the fleet")
        finally:
            self._teller = None
            self._told, self._rows, self._snapshot = Told(), None, None
            self._deltas.clear()
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _look(self, seq: int) -> tuple[Delta, float]:
        """What is new, and what it cost in CPU time. On a thread, as a large fleet takes a while."""
        now_s, began_s = time.time(), time.thread_time()
        services, gone = self._told.services(self._switchboard.views(), now_s)
        delta = Delta(
            seq=seq,
            time_s=now_s,
            services=services,
            gone=gone,
            notes=self._told.changed_notes(self._switchboard.notes()),
            events=self._told.events(self._switchboard.events(EVENTS_TOLD)),
            commands=self._told.commands(self._switchboard.commands(COMMANDS_TOLD)),
        )
        return delta, time.thread_time() - began_s
