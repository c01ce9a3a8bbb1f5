"""The server's side of a connection, with what uvicorn leaves open: how large a head may be, and how slow.

uvicorn on httptools gathers a head of any size, for as long as it takes, before
the application hears of it: one header of 200 MiB took 356 MiB of memory.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cdn_daemon.web import error_body

HEAD_MAX_BYTES = 128 << 10
"""More than any honest client sends, cookies included."""
HEADERS_MAX = 1000


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 for clients that are not trusted: 431 for heads without end, 408 for those that do not come."""

    head_s = 30.0
    """From connecting, or from its first byte, to the end of a request's head."""

    _gathered_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: connected."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """asyncio: feed the parser; refuse if it only gathers."""
        self._gathered_bytes += len(data)
        super().data_received(data)
        if self._gathered_bytes > HEAD_MAX_BYTES and not self.transport.is_closing():
            what = "cannot take a head, a trailer or a chunk's extension of this size in bytes"
            self._refuse(431, error_body(431, what, value=self._gathered_bytes, limit=HEAD_MAX_BYTES))

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: closed."""
        self._head_is_here()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        super().on_message_begin()
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: a header or a trailer."""
        if len(self.headers) >= HEADERS_MAX:
            raise httptools.HttpParserError(f"more than {HEADERS_MAX} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """httptools: the head is whole."""
        self._gathered_bytes = 0
        self._head_is_here()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """httptools: part of the body."""
        self._gathered_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        self._gathered_bytes = 0
        super().on_message_complete()

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
        elif not self.transport.is_closing():
            what = "cannot wait longer for the head of a request"
            self._refuse(408, error_body(408, what, limit=f"{self.head_s:g} s"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, body: bytes) -> None:
        if not self._is_answering():
            head = (
                b"HTTP/1.1 %d Refused\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
            )
            self.transport.write(head % (status, len(body)) + b"\r\n" + body)
        self.transport.close()
