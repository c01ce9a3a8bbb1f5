"""The server's side of a connection, with what uvicorn leaves open: how large a head may be, and how slow.

uvicorn on httptools gathers a head of any size, for as long as it takes, before
the application hears of it. Nothing here knows of routing; every service that
listens to strangers could use it.
"""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.gateway.errors import Refusal

HEAD_MAX_BYTES = 128 << 10
"""Twice what is forwarded, so that a head somewhat over that limit still gets the full reason."""
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
            self._refuse(Refusal(431, what, value=self._gathered_bytes, limit=HEAD_MAX_BYTES))

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
            self._refuse(Refusal(408, "cannot wait longer for the head of a request", limit=f"{self.head_s:g} s"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, refusal: Refusal) -> None:
        if not self._is_answering():
            lines = [b"%b: %b\r\n" % header for header in refusal.headers()]
            head = b"HTTP/1.1 %d Refused\r\n%b\r\n" % (refusal.detail.status, b"".join(lines))
            self.transport.write(head + refusal.body())
        self.transport.close()


def install() -> None:
    """Have uvicorn use it in this process."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHttp.__name__}"
