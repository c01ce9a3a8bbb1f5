"""The server's side of a connection, with what uvicorn leaves open: how large a head may be, how slow, and how many.

uvicorn on httptools gathers a head of any size, for as long as it takes, before
the application hears of it: one header of 200 MiB took 356 MiB of memory. What
its parser refuses, it refuses in plain text; and it closes at once, at which the
kernel resets a client that is still sending, often before that has read why. It
takes connections until there are no descriptors left: a thousand clients who say
nothing had a service of 1024 restarted for its limit of them, or refuse everybody.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import sys

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cdn_daemon.web import error_body

log = logging.getLogger(__name__)

HEAD_MAX_BYTES = 128 << 10
"""More than any honest client sends, cookies included."""
HEADERS_MAX = 1000
LINGER_S = 2.0
"""How long a refused client may take to read the refusal and close."""
LINGER_MAX_BYTES = 16 << 20
"""What it may send meanwhile, as it may not look before it has sent all; read and thrown away."""
CONNECTIONS_PART = 0.5
"""Of the descriptors that this process may open: the rest is for what it opens itself, also to answer."""
_SAID_S = 60.0


class _Crowd:
    """The HTTP connections of one server, who was heard longest ago first. Belongs to its loop."""

    def __init__(self) -> None:
        self.heard: dict[BoundedHttp, None] = {}
        self._said_s = -math.inf

    def say(self, now_s: float, most: int) -> None:
        """Note now and then that there are too many."""
        if now_s - self._said_s >= _SAID_S:
            self._said_s = now_s
            log.warning("over %d connections: closing who keeps us waiting longest, or else refusing more", most)


class _Lingering:
    """The transport as a request's answer uses it, but that its close waits for a client that is still sending."""

    def __init__(self, protocol: BoundedHttp) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.answered_last()


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 for clients that are not trusted: each refusal is the project's JSON, and can be read.

    431 for heads without end, 408 for those that do not come, 400 for what is no HTTP. Where there are too many
    connections, a new one has the place of who has kept the server waiting longest: for a head, for the rest of a body,
    or to take an answer. If all are busy it is 503.
    """

    head_s = 30.0
    """From connecting, or from its first byte, to the end of a request's head."""

    _gathered_bytes = 0
    _has_body_to_come = False
    _patience: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None
    """The client has been told; closes when it rings."""
    _discarded_bytes = 0

    @staticmethod
    def connections_max() -> int:
        """How many connections a server may have, WebSockets included."""
        return int(CONNECTIONS_PART * resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._crowd: _Crowd = vars(self.server_state).setdefault("crowd", _Crowd())
        self._await_head()
        most = self.connections_max()
        if len(self.connections) > most:
            self._find_room(most)
        self._crowd.heard[self] = None

    def data_received(self, data: bytes) -> None:
        """asyncio: feed the parser; refuse if it only gathers."""
        if self._lingering is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_MAX_BYTES:
                self.transport.abort()
            return
        if self._crowd.heard.pop(self, self) is None:
            self._crowd.heard[self] = None
        self._gathered_bytes += len(data)
        super().data_received(data)
        if self._patience is None and self._is_idle():
            self._await_head()  # an empty line begins no request, and has stopped uvicorn's clock of idle connections
        if self._gathered_bytes > HEAD_MAX_BYTES:
            what = "cannot take a head, a trailer or a chunk's extension of this size in bytes"
            self._refuse(431, error_body(431, what, value=self._gathered_bytes, limit=HEAD_MAX_BYTES))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: closed."""
        self._crowd.heard.pop(self, None)
        self._head_is_here()
        if self._lingering is not None:
            self._lingering.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """uvicorn: the server drains, so nobody is waited for who has had an answer."""
        if self._lingering is not None:
            self.transport.close()
        else:
            super().shutdown()

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header or a trailer."""
        if len(self.headers) >= HEADERS_MAX:
            self._refuse(431, error_body(431, "cannot take so many headers or trailers", limit=HEADERS_MAX))
            raise httptools.HttpParserError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """httptools: the head is whole."""
        self._gathered_bytes = 0
        self._has_body_to_come = True
        self._head_is_here()
        earlier = self.cycle
        super().on_headers_complete()
        if self.cycle is not earlier:  # else it becomes a WebSocket
            self.cycle.transport = _Lingering(self)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """httptools: part of the body."""
        self._gathered_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        self._gathered_bytes = 0
        self._has_body_to_come = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """uvicorn: the parser raised; its own words say more than msg."""
        error = sys.exception()
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        self._refuse(400, error_body(400, f"cannot read this as an HTTP/1.1 request: {cause or error or msg}"))

    def handle_websocket_upgrade(self) -> None:
        """uvicorn: the connection becomes a WebSocket, and is left open without a word if its head is refused there."""
        self._crowd.heard.pop(self, None)
        super().handle_websocket_upgrade()
        connection = getattr(self.transport.get_protocol(), "conn", None)
        error = getattr(connection, "handshake_exc", None)
        if error is not None:
            what = f"cannot read this as a WebSocket's request: {error.__cause__ or error}"
            self._refuse(400, error_body(400, what))

    def on_response_complete(self) -> None:
        """uvicorn: an answer is over; after the last there is nothing to be done."""
        if self._lingering is None:
            super().on_response_complete()

    def answered_last(self) -> None:
        """Close the connection, now that there is nothing more to say."""
        if self.cycle.more_body and not self.pipeline:
            self._linger()
        else:
            self.transport.close()

    def _await_head(self) -> None:
        self._head_is_here()
        self._patience = self.loop.call_later(self.head_s, self._too_slow)

    def _head_is_here(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _too_slow(self) -> None:
        if self._is_answering():
            self._await_head()  # a request behind the one that is being answered may take its time
        else:
            what = "cannot wait longer for the head of a request"
            self._refuse(408, error_body(408, what, limit=f"{self.head_s:g} s"))

    def _find_room(self, most: int) -> None:
        """For this connection, which is one too many."""
        self._crowd.say(self.loop.time(), most)
        waiting = next((each for each in self._crowd.heard if each._waits_for_client()), None)
        if waiting is None:
            what = "cannot take more connections: all are busy"
            self._refuse(503, error_body(503, what, limit=most, next="try again later"))
        else:
            del self._crowd.heard[waiting]
            waiting.transport.abort()  # what it does not take would keep it open

    def _waits_for_client(self) -> bool:
        """Whether the next word is the client's: a head, more of a body, or that it takes what it is sent."""
        if self._lingering is not None or self.flow.write_paused or not self._is_answering():
            return True
        cycle, is_read = self.cycle, not self.flow.read_paused
        return self._has_body_to_come and is_read and not cycle.body and not cycle.waiting_for_100_continue

    def _is_idle(self) -> bool:
        """Whether nothing of a request is here, and none is being answered; not so for a WebSocket."""
        is_between = not self._has_body_to_come and not self._is_answering()
        return is_between and self._lingering is None and self in self._crowd.heard

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, body: bytes) -> None:
        """Tell the client, unless it would take that for part of an answer that is under way; and close."""
        if self._lingering is not None or self.transport.is_closing():
            return
        if self._is_answering() and (self.cycle.response_started or not self.cycle.more_body or self.pipeline):
            self.transport.close()
            return
        head = b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
        self.transport.write(head % (status, len(body)) + b"\r\n" + body)
        self._linger()

    def _linger(self) -> None:
        """Close when the client has closed, or has had its time; what it says until then is not looked at."""
        if self._lingering is not None or self.transport.is_closing():
            return
        if self._is_answering():  # its application has lost its client
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._head_is_here()
        self.flow.resume_reading()
        self.transport.write_eof()
        self._lingering = self.loop.call_later(LINGER_S, self.transport.close)
