"""HTTP/1.1 connections to instances, kept alive and reused.

The parser is httptools, the one that the server in front uses. A connection
carries one exchange at a time; bodies flow with back-pressure both ways, and
nothing is held that the other side has not asked for. Trailers are dropped, and
so are informational answers, 100 aside.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import cast

import httptools

from services.gateway.errors import UpstreamError, connect_failed, connect_timeout
from services.gateway.headers import HeaderList, has_control, nominated

HIGH_WATER_BYTES = 256 << 10
"""More than this of a body unread, and the socket is not read on."""
HEAD_MAX_BYTES = 256 << 10


@dataclass(frozen=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: HeaderList


class Connection(asyncio.Protocol):
    """One connection; begin starts an exchange on it, head and read take the answer."""

    def __init__(self, pool: Pool, key: tuple[str, int]) -> None:
        self._pool = pool
        self.key = key
        self.used = 0
        """Exchanges begun."""
        self.idle_since_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self._write_paused = False
        self._parser: httptools.HttpResponseParser | None = None
        self._reset("")

    def _reset(self, method: str) -> None:
        self._method = method
        self._head: Head | None = None
        self._headers: HeaderList = []
        self._head_bytes = 0
        self._got_bytes = False
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._read_paused = False
        self._complete = False
        self._until_close = False
        self._error: Exception | None = None
        self._reusable = False
        self._continued = False
        self._progress: asyncio.Event | None = None

    # -- the exchange ------------------------------------------------------------------------------------

    def begin(self, method: str, head: bytes) -> None:
        """Send the head of a request."""
        self._reset(method)
        self.used += 1
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self._transport.is_closing():
            self._error = UpstreamError("closed", "it closed the connection", unanswered=True)
            return
        self._transport.write(head)

    async def write(self, chunk: bytes) -> None:
        """Send part of the body, as fast as the instance takes it; does nothing once the exchange has failed."""
        if self._transport is None or self._transport.is_closing() or self._error is not None:
            return
        self._transport.write(chunk)
        if self._write_paused:
            self._drain = self._loop.create_future()
            await self._drain

    async def head(self) -> Head:
        """The answer's head; raises UpstreamError, or what fail was given."""
        while self._head is None:
            if self._error is not None:
                raise self._error
            await self._wait()
        return self._head

    async def continued_or_answered(self) -> None:
        """Wait for 100 Continue, the answer's head, or the end of the exchange."""
        self._progress = asyncio.Event()
        if not (self._continued or self._head is not None or self._error is not None):
            await self._progress.wait()

    @property
    def answered(self) -> bool:
        """Whether the answer's head is here."""
        return self._head is not None

    async def read(self) -> bytes:
        """What has come of the answer's body; empty at its end. Raises as head does, also if it was cut short."""
        while not self._chunks:
            if self._complete:
                return b""
            if self._error is not None:
                raise self._error
            await self._wait()
        chunk = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered_bytes = 0
        if self._read_paused and self._transport is not None:
            self._read_paused = False
            self._transport.resume_reading()
        return chunk

    @property
    def at_end(self) -> bool:
        """Whether all of the answer has been read."""
        return self._complete and not self._chunks

    def fail(self, error: Exception) -> None:
        """End the exchange and the connection: whoever waits for the answer gets this error."""
        if self._error is None and not self._complete:
            self._error = error
        self.abort()
        self._wake()

    def abort(self) -> None:
        """Close at once, without sending what is still buffered."""
        if self._transport is not None:
            self._transport.abort()

    def release(self, *, sent: bool) -> None:
        """The exchange is over; keep the connection for another if both its messages were whole."""
        whole = sent and self._complete and self._reusable and self._error is None
        if whole and self._transport is not None and not self._transport.is_closing() and not self._write_paused:
            self._pool.put(self)
        else:
            self.abort()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None
        if self._progress is not None:
            self._progress.set()

    # -- asyncio.Protocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """asyncio: feed the parser; what nobody asked for ends the connection."""
        if self._parser is None or self._complete:
            self._reusable = False
            self.abort()
            return
        self._got_bytes = True
        if self._head is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(UpstreamError("bad_answer", "it switched protocols without being asked to"))
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error.__context__, UpstreamError) else None
            self.fail(cause or UpstreamError("bad_answer", f"its answer is not HTTP/1.1: {error}"))
        if self._head is None and self._head_bytes > HEAD_MAX_BYTES:
            self.fail(UpstreamError("bad_answer", f"the head of its answer has over {HEAD_MAX_BYTES} bytes"))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: closed, by either side."""
        self._transport = None
        self._pool.lost(self)
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        if self._parser is not None and not self._complete and self._error is None:
            if self._until_close and exc is None:
                self._complete = True
            elif self._head is None:
                text = "it closed the connection without an answer"
                self._error = UpstreamError("closed", text, unanswered=not self._got_bytes)
            else:
                self._error = UpstreamError("truncated", "it closed the connection in the middle of its answer")
        self._wake()

    def pause_writing(self) -> None:
        """asyncio: the instance takes no more for now."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """asyncio: it does again."""
        self._write_paused = False
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    # -- httptools ---------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header, or, after the head, a trailer."""
        if self._head is None:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """httptools: the head is whole."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status < 200:
            self._continued = self._continued or status == 100
            self._wake()
            return
        if status > 599:
            raise _bad(f"its status is {status}")
        if has_control(headers):
            raise _bad("a header of its answer has a control character in it")
        codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise _bad(f"its Transfer-Encoding is {b', '.join(codings).decode('latin-1')[:50]}")
        bodiless = self._method == "HEAD" or status in (204, 304)
        self._until_close = not (bodiless or codings or any(name == b"content-length" for name, _ in headers))
        self._head = Head(status, headers)
        if bodiless:
            self._finish()
        self._wake()

    def on_body(self, body: bytes) -> None:
        """httptools: part of the body."""
        if self._complete:
            self._reusable = False  # a body where there must be none
            return
        self._chunks.append(body)
        self._buffered_bytes += len(body)
        if self._buffered_bytes > HIGH_WATER_BYTES and not self._read_paused and self._transport is not None:
            self._read_paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """httptools: the answer is whole, unless it was an informational one."""
        if self._head is not None and not self._complete:
            self._finish()
            self._wake()

    def on_message_begin(self) -> None:
        """httptools: a head begins; a second answer to one request is not to be trusted."""
        if self._complete:
            self._reusable = False
        self._headers = []

    def _finish(self) -> None:
        assert self._parser is not None
        self._complete = True
        self._reusable = self._parser.should_keep_alive()
        if self._method == "HEAD" and self._head is not None:  # the parser, not knowing, may expect a body to the end
            closes = b"close" in nominated(self._head.headers)
            self._reusable = not closes and self._parser.get_http_version() == "1.1"


def _bad(text: str) -> UpstreamError:
    return UpstreamError("bad_answer", text)


class Pool:
    """Idle connections by host and port, the last used first."""

    def __init__(self, *, connect_s: float, idle_s: float = 4.0, idle_max: int = 128) -> None:
        self._connect_s = connect_s
        # uvicorn closes an idle connection after 5 s: ours must be the shorter patience, or a request meets a
        # connection that is just being closed.
        self._idle_s = idle_s
        self._idle_max = idle_max
        self._idle: dict[tuple[str, int], deque[Connection]] = {}

    async def take(self, host: str, port: int, *, fresh: bool = False) -> Connection:
        """An idle connection, or a new one, or with ``fresh`` always a new one; raises UpstreamError."""
        key = (host, port)
        idle = self._idle.get(key)
        oldest_s = asyncio.get_running_loop().time() - self._idle_s
        while idle and not fresh:
            connection = idle.pop()
            if connection.idle_since_s >= oldest_s:
                return connection
            connection.abort()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self, key), host, port
                )
        except TimeoutError as error:
            raise connect_timeout(f"{host}:{port}", self._connect_s) from error
        except OSError as error:
            raise connect_failed(f"{host}:{port}", error) from error
        return connection

    def put(self, connection: Connection) -> None:
        """Keep a connection for the next exchange."""
        idle = self._idle.setdefault(connection.key, deque())
        if len(idle) >= self._idle_max:
            idle.popleft().abort()
        connection.idle_since_s = asyncio.get_running_loop().time()
        idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed; forget it if it was idle."""
        idle = self._idle.get(connection.key)
        if idle is None:
            return
        if connection in idle:
            idle.remove(connection)
        if not idle:
            del self._idle[connection.key]

    def sweep(self, *, everything: bool = False) -> None:
        """Close what has been idle for too long."""
        oldest_s = asyncio.get_running_loop().time() - self._idle_s
        for idle in list(self._idle.values()):
            for connection in list(idle):
                if everything or connection.idle_since_s < oldest_s:
                    idle.remove(connection)
                    connection.abort()

    @property
    def idle(self) -> int:
        """Connections waiting for a request."""
        return sum(len(idle) for idle in self._idle.values())
