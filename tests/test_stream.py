"""/ws/stream: what one client hears, and what one that is slow costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from msgspec import Struct
from starlette.websockets import WebSocket

from cdn_daemon.api import RefusedError
from services.stream import Stream

Message = MutableMapping[str, Any]


class Said(Struct, tag="said"):
    """A message."""

    n: int


def client_of(send: Callable[[Message], Awaitable[None]], *, leaves: asyncio.Event) -> WebSocket:
    """An ASGI client, which says nothing until it leaves."""
    opening = [{"type": "websocket.connect"}]

    async def receive() -> Message:
        if opening:
            return opening.pop()
        await leaves.wait()
        return {"type": "websocket.disconnect", "code": 1000}

    return WebSocket({"type": "websocket", "path": "/ws/stream", "headers": []}, receive, send)


def test_what_happens_while_a_client_is_accepted_it_hears() -> None:
    """It listens from before the handshake's answer on; nothing between is lost."""
    heard: list[Any] = []

    async def run() -> None:
        stream, leaves = Stream(1, 10, instead=""), asyncio.Event()

        async def send(message: Message) -> None:
            if message["type"] == "websocket.accept":
                stream.tell(Said(n=1))
                await asyncio.sleep(0)
                stream.tell(Said(n=2))
            elif message["type"] == "websocket.send":
                heard.append(json.loads(message["text"]))
                if len(heard) == 2:
                    leaves.set()

        async with asyncio.timeout(30):
            await stream.serve(client_of(send, leaves=leaves))
        assert len(stream) == 0

    asyncio.run(run())
    assert heard == [{"type": "said", "n": 1}, {"type": "said", "n": 2}]


def test_a_client_that_cannot_be_accepted_is_forgotten() -> None:
    """It went away meanwhile; its place is free."""

    async def run() -> None:
        stream = Stream(1, 10, instead="")

        async def send(_: Message) -> None:
            raise OSError("gone")

        for _ in range(2):
            with pytest.raises(Exception, match=r"gone|1006") as raised:
                await stream.serve(client_of(send, leaves=asyncio.Event()))
            assert not isinstance(raised.value, RefusedError)
            assert len(stream) == 0

    asyncio.run(run())


def test_a_slow_client_costs_a_bounded_backlog() -> None:
    """It misses the oldest, and is told how many, in their place; one client too many is refused."""
    heard: list[Any] = []

    async def run() -> None:
        stream, leaves = Stream(1, 3, instead="GET /it"), asyncio.Event()
        takes = asyncio.Event()

        async def send(message: Message) -> None:
            if message["type"] == "websocket.send":
                await takes.wait()
                heard.append(json.loads(message["text"]))
                if len(heard) == 5:
                    leaves.set()

        serving = asyncio.create_task(stream.serve(client_of(send, leaves=leaves)))
        while not len(stream):
            await asyncio.sleep(0)
        stream.tell(Said(n=0))
        for _ in range(10):  # the first is on its way now, and stuck
            await asyncio.sleep(0)
        for n in range(1, 9):
            stream.tell(Said(n=n))
        with pytest.raises(RefusedError, match="more clients") as refused:
            await stream.serve(client_of(send, leaves=leaves))
        assert (refused.value.reason.status, refused.value.reason.next) == (503, "GET /it")
        takes.set()
        async with asyncio.timeout(30):
            await serving
        assert stream.missed == 5

    asyncio.run(run())
    told = [{"type": "said", "n": n} for n in (6, 7, 8)]
    assert heard == [{"type": "said", "n": 0}, {"type": "missed", "messages": 5}, *told]
