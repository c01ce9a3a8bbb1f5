"""One HTTP request through to an instance, and its answer back, both streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdn_daemon.web import Receive, Scope, Send
from services.gateway.balance import Attempt, Balance, Ledger
from services.gateway.budget import RetryBudget
from services.gateway.errors import CONNECT_KINDS, ClientGone, Refusal, UpstreamError
from services.gateway.headers import (
    Body,
    HeaderList,
    Hop,
    body_of,
    check,
    is_loop,
    request_headers,
    response_headers,
)
from services.gateway.routes import BadPath, Table, Target, split
from services.gateway.settings import GatewaySettings
from services.gateway.upstream import Connection, Pool

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""RFC 9110 §9.2.2."""
NOT_FORWARDED = frozenset({"CONNECT", "TRACE"})
NAMED_MAX = 100
"""Services that a 404 names."""
INSTANCES_TRIED_MAX = 3
"""By one request: when a service is scaled down, several go at once."""
PASSED_OVER = frozenset({502, 503, 504})
"""Answers by which an instance says that it cannot now: what may be sent twice is sent to another instead."""
CONTINUE_S = 1.0
"""How long a client that expects 100 Continue waits for the instance to say so; then it is said for it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be forwarded, admitted and routed, but for the choice of the instance."""

    service: str
    method: str
    path: bytes
    """With its query."""
    headers: HeaderList
    body: Body | None
    expects: bool
    """The client waits for 100 Continue before it sends the body."""

    @property
    def prefix(self) -> bytes:
        """What was taken off the path."""
        return b"/" + self.service.encode()

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice is the same as sending it once, and possible."""
        return self.method in IDEMPOTENT and self.body is None

    def head(self, authority: str) -> bytes:
        """As it is sent to an instance."""
        lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (self.method.encode(), self.path, authority.encode())]
        lines += [b"%b: %b\r\n" % header for header in self.headers]
        if self.body is not None:
            length = self.body.length
            lines.append(b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length)
            if self.expects:
                lines.append(b"expect: 100-continue\r\n")
        return b"".join(lines) + b"\r\n"


def admit(scope: Scope, settings: GatewaySettings) -> Request:
    """The request in the form in which it is forwarded; raises Refusal."""
    headers: HeaderList = list(scope["headers"])
    method: str = scope.get("method", "GET")
    http_version: str = scope["http_version"]
    host = check(headers, http_version=http_version)
    body = body_of(headers)
    if method in NOT_FORWARDED:
        raise Refusal(405, f"cannot forward {method}", value=method)
    if body is not None and any(name == b"upgrade" for name, _ in headers):
        raise Refusal(400, "cannot forward a body with Upgrade", next="send it without the Upgrade header")
    if body is not None and body.length is not None and body.length > settings.body_max_bytes:
        raise _too_large(body.length, settings)
    pseudonym = settings.instance.encode()
    if is_loop(headers, pseudonym):
        raise Refusal(508, "cannot forward in a circle: this request has been here before", value=settings.instance)
    raw_path: bytes = scope["raw_path"]
    try:
        service, path = split(raw_path)
    except BadPath as error:
        shown = raw_path.decode("latin-1")[:200]
        raise Refusal(400, f"cannot route this path: {error}", value=shown, limit="/SERVICE/…") from error
    query: bytes = scope["query_string"]
    client = scope.get("client")
    hop = Hop(
        client=client[0] if client else None,
        scheme="https" if scope["scheme"] in ("https", "wss") else "http",
        host=host,
        prefix=b"/" + service.encode(),
        http_version=http_version,
        pseudonym=pseudonym,
    )
    return Request(
        service=service,
        method=method,
        path=path + b"?" + query if query else path,
        headers=request_headers(headers, hop),
        body=body,
        expects=http_version != "1.0" and any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers),
    )


def targets_of(table: Table, service: str) -> Sequence[Target]:
    """The instances that take the service's traffic; raises Refusal if there are none."""
    targets = table.routes.get(service)
    if targets is None:
        known = ", ".join(sorted(table.routes)[:NAMED_MAX]) or "none yet"
        raise Refusal(
            404,
            f"cannot route to {service}: no such service",
            value=service,
            next=f"known services: {known}",
            service=service,
        )
    if not targets:
        raise Refusal(
            503,
            f"cannot route to {service}: no instance of it is serving",
            next=f"try again, or look: cdnctl status {service}",
            service=service,
        )
    return targets


def _too_large(length: int, settings: GatewaySettings) -> Refusal:
    return Refusal(
        413,
        "cannot forward a body of this size in bytes",
        value=length,
        limit=settings.body_max_bytes,
        next="send less, or have CDN_GATEWAY_MAX_BODY_BYTES raised",
    )


class Proxy:
    """Forwards HTTP requests to the instances that a table names."""

    def __init__(self, settings: GatewaySettings, pool: Pool, balance: Balance, ledger: Ledger) -> None:
        self._settings = settings
        self._pool = pool
        self._balance = balance
        self._ledger = ledger
        self._budget = RetryBudget()
        self.clients_gone = 0
        """Clients that left before their answer was complete."""
        self.retries = 0
        """Requests that were sent to one more instance."""
        self.retries_refused = 0
        """Those that were not, as the budget was spent."""

    async def forward(self, table: Table, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request from an instance.

        Raises Refusal while nothing has been sent to the client. After that a
        failure ends without completing the answer, at which the server closes the
        connection: what was cut short must not look whole.
        """
        request = admit(scope, self._settings)
        targets = targets_of(table, request.service)
        self._budget.deposit(self._ledger.clock())
        tried: list[Target] = []
        fresh = False
        while True:
            target = self._balance.pick(request.service, targets, tried)
            assert target is not None  # fewer were tried than there are
            has_another = len(tried) + 1 < min(len(targets), INSTANCES_TRIED_MAX)
            may_repeat = request.repeatable and not fresh

            def may_pass_over(status: int, may: bool = may_repeat and has_another) -> bool:
                return status in PASSED_OVER and may and self._may_retry()

            exchange = _Exchange(request, target, self._settings, receive, send, may_pass_over)
            try:
                with self._ledger.attempt(target, targets) as attempt:
                    connection = await self._pool.take(target.host, target.port, fresh=fresh)
                    await exchange.run(connection, attempt)
                if not exchange.passed_over:
                    return
                fresh = True
                tried.append(target)
            except UpstreamError as error:
                if exchange.started:
                    return
                if error.unanswered and exchange.reused and may_repeat:
                    fresh = True  # it was closed while it was idle, and never saw the request: that is no retry
                elif has_another and error.kind in CONNECT_KINDS:
                    tried.append(target)  # nothing was sent, so any method may go to another: that is no retry, either
                elif has_another and error.unanswered and may_repeat and self._may_retry():
                    fresh = True
                    tried.append(target)
                else:
                    raise error.refusal(target.service, target.instance) from error
            except ClientGone:
                self.clients_gone += 1
                return
            except Refusal:
                if exchange.started:
                    return
                raise

    def _may_retry(self) -> bool:
        """Take one retry from the budget, if there is one."""
        if self._budget.withdraw(self._ledger.clock()):
            self.retries += 1
            return True
        self.retries_refused += 1
        return False


class _Exchange:
    """One try at one instance."""

    def __init__(
        self,
        request: Request,
        target: Target,
        settings: GatewaySettings,
        receive: Receive,
        send: Send,
        may_pass_over: Callable[[int], bool],
    ) -> None:
        self._request = request
        self._target = target
        self._settings = settings
        self._receive = receive
        self._send = send
        self._may_pass_over = may_pass_over
        self._sent = request.body is None
        self._body_begun = False
        self._answering = asyncio.Event()
        self.started = False
        """The client has been sent the head of the answer."""
        self.reused = False
        """It was on a connection that had carried another exchange before."""
        self.passed_over = False
        """The answer was one that is not passed on: another instance is to be asked."""

    async def run(self, connection: Connection, attempt: Attempt) -> None:
        """Send the request, pass the answer on; raises UpstreamError, ClientGone or Refusal."""
        self.reused = connection.used > 0
        attempt.begins()
        if self._sent:
            attempt.sent()
        connection.begin(self._request.method, self._request.head(self._target.authority))
        answer_s = self._settings.answer_s if self._sent else None
        try:
            async with asyncio.timeout(answer_s) as patience:
                client = asyncio.ensure_future(self._client_side(connection, attempt, patience))
                try:
                    head = await connection.head()
                finally:
                    if not connection.answered:
                        client.cancel()
        except TimeoutError as error:
            connection.abort()
            text = f"no answer within {self._settings.answer_s:g} s"
            raise UpstreamError("answer_timeout", text, status=504) from error
        except UpstreamError as error:
            attempt.closed_idle = error.unanswered and self.reused
            connection.abort()
            raise
        except BaseException:
            connection.abort()
            raise
        attempt.answered(head.status)
        try:
            if self._may_pass_over(head.status):
                self.passed_over = True
                return
            await self._answer(connection, head.status, head.headers)
        finally:
            client.cancel()
            connection.release(sent=self._sent)

    async def _answer(self, connection: Connection, status: int, headers: HeaderList) -> None:
        request, settings = self._request, self._settings
        kept = response_headers(
            headers,
            status=status,
            authority=self._target.authority.encode(),
            prefix=request.prefix,
            via=settings.instance.encode(),
        )
        if request.expects and not self._body_begun:
            kept.append((b"connection", b"close"))  # whether the client now sends its body is its own affair
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": kept})
        self._answering.set()
        chunk, last = b"", False
        try:
            while not last:
                async with asyncio.timeout(settings.stall_s):
                    chunk = b""
                    chunk = await connection.read()
                    last = connection.at_end
                    await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
        except TimeoutError as error:
            if chunk:
                raise ClientGone from error  # it is the client that takes nothing
            raise UpstreamError("stalled", f"nothing came for {settings.stall_s:g} s", status=504) from error

    # -- the client's side: its body, then its leaving ---------------------------------------------------

    async def _client_side(self, connection: Connection, attempt: Attempt, patience: asyncio.Timeout) -> None:
        """Pass the body on, then watch for the client to leave; whatever goes wrong fails the connection."""
        try:
            if not self._sent:
                await self._pass_body(connection)
                if self._sent and not connection.answered:
                    attempt.sent()
                    patience.reschedule(asyncio.get_running_loop().time() + self._settings.answer_s)
            while (await self._receive())["type"] != "http.disconnect":
                continue
            raise ClientGone
        except Exception as error:  # noqa: BLE001 - also what nobody foresaw: who waits for the answer would wait for ever
            connection.fail(error)

    async def _pass_body(self, connection: Connection) -> None:
        request, settings = self._request, self._settings
        if request.expects and not await self._may_continue(connection):
            await self._answering.wait()  # to ask the server for anything before that would have it say 100 Continue
            return
        self._body_begun = True
        assert request.body is not None
        length, passed_bytes, more = request.body.length, 0, True
        while more:
            try:
                async with asyncio.timeout(settings.stall_s):
                    message = await self._receive()
            except TimeoutError as error:
                limit = f"{settings.stall_s:g} s"
                raise Refusal(408, "cannot wait longer for the rest of the body", limit=limit) from error
            if message["type"] != "http.request":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            passed_bytes += len(chunk)
            if passed_bytes > settings.body_max_bytes:
                raise _too_large(passed_bytes, settings)
            if chunk:
                await self._write(connection, chunk if length is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if length is None:
            await self._write(connection, b"0\r\n\r\n")
        elif passed_bytes != length:
            raise Refusal(400, "cannot forward a body that is not as long as it says", value=passed_bytes, limit=length)
        self._sent = True

    async def _write(self, connection: Connection, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(self._settings.stall_s):
                await connection.write(chunk)
        except TimeoutError as error:
            text = f"it took nothing of the body for {self._settings.stall_s:g} s"
            raise UpstreamError("stalled", text, status=504) from error

    async def _may_continue(self, connection: Connection) -> bool:
        """Whether the client is to send its body: the instance asks for it, or says nothing for CONTINUE_S."""
        try:
            async with asyncio.timeout(CONTINUE_S):
                await connection.continued_or_answered()
        except TimeoutError:
            return True
        return not connection.answered
