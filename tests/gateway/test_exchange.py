"""One try at one instance, with both its ends in the test's hands."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from services.gateway.balance import Attempt
from services.gateway.headers import Body
from services.gateway.proxy import Request, _Exchange
from services.gateway.routes import Target
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Connection

POST = Request(service="web", method="POST", path=b"/", headers=[], body=Body(None), expects=False)


class Silent:
    """A connection to an instance that never answers."""

    used = 0
    answered = False

    def __init__(self) -> None:
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def begin(self, method: str, head: bytes) -> None:
        """It takes everything."""

    async def head(self) -> Any:
        """For ever, unless it fails."""
        return await self._answer

    def fail(self, error: Exception) -> None:
        """Whoever waits gets this."""
        self._answer.set_exception(error)

    def abort(self) -> None:
        """Nothing is to be closed."""


def test_a_fault_of_the_clients_side_ends_the_exchange() -> None:
    """Also one that nobody foresaw: while a body is sent, nothing else bounds the wait for an answer."""

    async def receive() -> NoReturn:
        raise ZeroDivisionError

    async def run() -> None:
        attempt = SimpleNamespace(begins=lambda: None)
        exchange = _Exchange(
            POST, Target("web", "web", "127.0.0.1", 1), GatewaySettings(), receive, cast(Any, None), lambda _: False
        )
        async with asyncio.timeout(20):
            await exchange.run(cast(Connection, Silent()), cast(Attempt, attempt))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())
