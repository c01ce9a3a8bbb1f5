"""A WSGI application (PEP 3333) behind the service's server, called on a pool of threads.

Not by a2wsgi, as that takes a request body that breaks off for a whole one, and
writes the application's errors to standard output.

The loop beside it stays free, so its pulse says nothing of these threads:
``has_free_thread`` does, and is a health check of every such service.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cdn_daemon.service import WSGIApp
from cdn_daemon.web import Receive, Scope, Send


class ClientLeft(OSError):
    """The client went away before its request, or its answer, was whole."""


class WsgiApp:
    """The ASGI application that calls the WSGI one."""

    def __init__(self, app: WSGIApp, threads: int) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="wsgi")

    async def has_free_thread(self) -> None:
        """Returns once a thread is free; with a time-out it is the health check ``wsgi_threads``."""
        await asyncio.get_running_loop().run_in_executor(self._threads, _nothing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        match scope["type"]:
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1000})
            case _:
                await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        exchange = _Exchange(loop, receive, send, has_body=_has_body(scope))
        call = contextvars.copy_context().run
        try:
            await loop.run_in_executor(self._threads, call, exchange.run, self._app, environ_of(scope, exchange))
        except ClientLeft:
            return  # nobody is there to be answered
        finally:
            exchange.end()


class _Exchange(io.RawIOBase):
    """One request and its answer, on a thread; itself the stream that the application reads the body from."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Receive, send: Send, *, has_body: bool) -> None:
        self._loop = loop
        self._receive = receive
        self._send = send
        self._rest = b""
        self._more = has_body
        self._head: dict[str, Any] | None = None
        self._head_sent = False
        self._over = False
        self._watch: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Answered or given up; on the loop."""
        self._over = True
        if self._watch is not None:
            self._watch.cancel()

    async def _watch_for_leaving(self) -> None:
        """The server takes answers for a client that has left without a word, and some answers have no end."""
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._over = True

    async def _begin(self, head: dict[str, Any]) -> None:
        await self._send(head)
        if not self._more:
            self._watch = asyncio.ensure_future(self._watch_for_leaving())

    # -- the body -------------------------------------------------------------------------------------

    def readable(self) -> bool:
        """io: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """io: the next bytes of the body; raises ClientLeft if it breaks off."""
        while not self._rest and self._more:
            message = self._wait(self._receive())
            if message["type"] != "http.request":
                raise ClientLeft("the client left before its request was whole")
            self._rest, self._more = message.get("body", b""), message.get("more_body", False)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    # -- the answer -----------------------------------------------------------------------------------

    def run(self, app: WSGIApp, environ: dict[str, Any]) -> None:
        """Call the application, and send what it answers."""
        pieces: Iterable[bytes] = app(environ, self._start_response)
        try:
            for piece in pieces:
                if piece:
                    self._write(piece)
            self._send_head()
            self._wait(self._send({"type": "http.response.body", "body": b""}))
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()

    def _start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        try:
            if self._head_sent and exc_info:
                raise exc_info[1].with_traceback(exc_info[2])
            if self._head is not None and not exc_info:
                raise AssertionError("start_response was called twice, without exc_info")
        finally:
            exc_info = None  # PEP 3333: no circular reference
        self._head = {
            "type": "http.response.start",
            "status": int(status.split(" ", 1)[0]),
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        return self._write

    def _send_head(self) -> None:
        if self._head is None:
            raise AssertionError("the application answered without having called start_response")
        if not self._head_sent:
            self._head_sent = True
            self._wait(self._begin(self._head))

    def _write(self, piece: bytes) -> None:
        self._send_head()
        self._wait(self._send({"type": "http.response.body", "body": piece, "more_body": True}))

    def _wait(self, coroutine: Any) -> Any:
        if self._over:
            coroutine.close()
            raise ClientLeft("the client left before its answer was whole")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def environ_of(scope: Scope, body: io.RawIOBase) -> dict[str, Any]:
    """PEP 3333's environ of an ASGI scope."""
    root = scope.get("root_path", "")
    host, port = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root.encode().decode("latin-1"),
        "PATH_INFO": scope["path"].removeprefix(root).encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BufferedReader(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if scope.get("client"):
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = scope["client"][0], str(scope["client"][1])
    for raw_name, raw_value in scope["headers"]:
        if b"_" in raw_name:  # X_Forwarded_For would be taken for X-Forwarded-For, which is another's to set
            continue
        name, value = raw_name.decode("latin-1").upper().replace("-", "_"), raw_value.decode("latin-1")
        key = name if name in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{name}"
        separator = "; " if name == "COOKIE" else ","
        environ[key] = f"{environ[key]}{separator}{value}" if key in environ else value
    return environ


def _nothing() -> None:
    """What a free thread does for the health check."""


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
