"""One WebSocket through to an instance: every message and the close code, both ways.

Pings are answered hop by hop, by the server in front and the client behind, each
of which also pings to find a dead peer.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.frames import EXTERNAL_CLOSE_CODES
from websockets.typing import Subprotocol

from cdn_daemon.web import Receive, Scope, Send
from services.gateway.balance import Attempt, Balance, Ledger
from services.gateway.errors import CONNECT_KINDS, UpstreamError, connect_failed, connect_timeout
from services.gateway.headers import HeaderList, response_headers
from services.gateway.proxy import INSTANCES_TRIED_MAX, Request, admit, targets_of
from services.gateway.routes import Table, Target
from services.gateway.settings import GatewaySettings

MESSAGE_MAX_BYTES = 16 << 20
"""The server in front has the same limit for what clients send."""
NO_STATUS = 1005
BAD_GATEWAY = 1014
"""https://www.iana.org/assignments/websocket/websocket.xhtml#close-code-number"""


class _Connect(connect):
    """websockets' connect, to exactly the path given, and never following a redirect."""

    def __init__(self, target: Target, request: Request, connect_s: float, **options: Any) -> None:
        super().__init__(f"ws://{target.authority}/", **options)
        self._connect_s = connect_s
        path, _, query = request.path.decode("ascii").partition("?")
        self.ws_uri = replace(self.ws_uri, path=path, query=query)

    async def open_tcp_connection(self) -> ClientConnection:
        """As Pool.take: with a patience of its own, and failing in its own way, as nothing was sent yet."""
        authority = f"{self.ws_uri.host}:{self.ws_uri.port}"
        try:
            async with asyncio.timeout(self._connect_s):
                return await super().open_tcp_connection()
        except TimeoutError as error:
            raise connect_timeout(authority, self._connect_s) from error
        except OSError as error:
            raise connect_failed(authority, error) from error

    def process_redirect(self, exc: Exception) -> Exception:
        """Leave it to the client."""
        return exc


class Tunnel:
    """Forwards WebSockets to the instances that a table names."""

    def __init__(self, settings: GatewaySettings, balance: Balance, ledger: Ledger) -> None:
        self._settings = settings
        self._balance = balance
        self._ledger = ledger

    async def forward(self, table: Table, scope: Scope, receive: Receive, send: Send) -> None:
        """Connect the client with an instance until either ends; raises Refusal before it is accepted."""
        request = admit(scope, self._settings)
        targets = targets_of(table, request.service)
        await receive()  # websocket.connect
        tried: list[Target] = []
        while True:
            target = self._balance.pick(request.service, targets, tried, tunnel=True)
            assert target is not None  # fewer were tried than there are
            try:
                with self._ledger.attempt(target, targets, tunnel=True) as attempt:
                    await self._through(request, target, attempt, scope, receive, send)
                return
            except UpstreamError as error:
                tried.append(target)
                if error.kind not in CONNECT_KINDS or len(tried) >= min(len(targets), INSTANCES_TRIED_MAX):
                    raise error.refusal(target.service, target.instance) from error

    async def _through(
        self, request: Request, target: Target, attempt: Attempt, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            upstream = await self._open(request, target, scope)
        except InvalidStatus as refused:
            attempt.answered(refused.response.status_code)
            await _pass_refusal(refused, request, target, self._settings, send)
            return
        try:
            assert upstream.response is not None  # it is open
            answered = [(n.lower().encode(), v.encode("latin-1")) for n, v in upstream.response.headers.raw_items()]
            passed = _passed(answered, 101, request, target, self._settings)
            headers = [header for header in passed if not header[0].startswith(b"sec-websocket")]
            await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": headers})
            attempt.answered(101)
            if await _both_ways(upstream, receive, send):
                attempt.failed(UpstreamError("truncated", "it was gone without a closing message"))
        finally:
            if upstream.transport is not None:
                upstream.transport.abort()

    async def _open(self, request: Request, target: Target, scope: Scope) -> ClientConnection:
        settings = self._settings
        headers = [(n.decode(), v.decode("latin-1")) for n, v in request.headers if not n.startswith(b"sec-websocket")]
        subprotocols = [cast(Subprotocol, name) for name in scope.get("subprotocols", ())]
        opening = _Connect(
            target,
            request,
            settings.connect_s,
            subprotocols=subprotocols or None,
            additional_headers=headers,
            user_agent_header=None,
            compression=None,  # between processes of one host it costs more than it saves
            proxy=None,
            open_timeout=settings.answer_s,
            max_size=MESSAGE_MAX_BYTES,
        )
        try:
            return await opening
        except InvalidStatus:
            raise
        except TimeoutError as error:
            text = f"no answer within {settings.answer_s:g} s"
            raise UpstreamError("answer_timeout", text, status=504) from error
        except OSError as error:
            raise UpstreamError("closed", "it closed the connection without an answer") from error
        except InvalidMessage as error:
            raise UpstreamError("bad_answer", f"its answer is not HTTP/1.1: {error}") from error
        except InvalidHandshake as error:
            raise UpstreamError("bad_answer", f"its answer is no WebSocket's: {error}") from error


def _passed(
    headers: HeaderList, status: int, request: Request, target: Target, settings: GatewaySettings
) -> HeaderList:
    return response_headers(
        headers,
        status=status,
        authority=target.authority.encode(),
        prefix=request.prefix,
        via=settings.instance.encode(),
    )


async def _pass_refusal(
    refused: InvalidStatus, request: Request, target: Target, settings: GatewaySettings, send: Send
) -> None:
    """The instance answered with something else than a WebSocket: that answer is the client's."""
    response = refused.response
    body = bytes(response.body)
    answered = [(n.lower().encode(), v.encode("latin-1")) for n, v in response.headers.raw_items()]
    headers = [
        h for h in _passed(answered, response.status_code, request, target, settings) if h[0] != b"content-length"
    ]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "websocket.http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _both_ways(upstream: ClientConnection, receive: Receive, send: Send) -> bool:
    """Pass messages until one side closes, then close the other in the same way; True if the instance was lost."""
    inward = asyncio.ensure_future(_inward(upstream, receive))
    outward = asyncio.ensure_future(_outward(upstream, send))
    try:
        await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if inward.done() and inward.result() and not outward.done():
            return False
        return await outward  # once the instance has closed, what it said before that still has to get through
    finally:
        inward.cancel()
        outward.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)


async def _inward(upstream: ClientConnection, receive: Receive) -> bool:
    """Client to instance; True if it was the client who closed."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            await _close_upstream(upstream, message.get("code", NO_STATUS), message.get("reason") or "")
            return True
        text = message.get("text")
        try:
            await upstream.send(text if text is not None else message["bytes"])
        except ConnectionClosed:
            return False


async def _close_upstream(upstream: ClientConnection, code: int, reason: str) -> None:
    if _may_be_sent(code):
        await upstream.close(code, reason)
    else:
        # Gone, or closed without a code, which the server in front tells alike (1005): None sends none, either.
        await upstream.close(cast(int, None))


def _may_be_sent(code: int) -> bool:
    return code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000


async def _outward(upstream: ClientConnection, send: Send) -> bool:
    """Instance to client; True if the instance went without a word."""
    try:
        while True:
            message = await upstream.recv()
            kind = "text" if isinstance(message, str) else "bytes"
            await send({"type": "websocket.send", kind: message})
    except ConnectionClosed:
        if upstream.protocol.close_rcvd_then_sent is False:
            return False  # the client closed first, and knows
        closed = upstream.protocol.close_rcvd
        code, reason = (BAD_GATEWAY, "the instance is gone") if closed is None else (closed.code, closed.reason)
        await send({"type": "websocket.close", "code": code if _may_be_sent(code) else 1000, "reason": reason})
        return closed is None
