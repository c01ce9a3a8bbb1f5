"""A small HTTP/1.1 server on asyncio's streams: bounded in connections, headers, bodies and time.

No TLS, no ranges, no compression: for that there are proxies. Answers are whole,
so that every one has its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

log = logging.getLogger(__name__)

HEAD_BYTES = 16_384
BODY_BYTES = 65_536
BODY_SKIPPED_BYTES = 1_000_000
"""Of a ping's body more is read and dropped, up to here."""
HEAD_S = 10.0
IDLE_S = 30.0
LINGER_S, LINGER_BYTES = 2.0, 16_000_000
"""As every service does it (cdn_daemon/intake.py)."""
CONNECTIONS_MAX = 200
_NO_BODY = (204, 304)
_ONCE = frozenset({"content-length", "transfer-encoding", "host", "origin"})
"""Two of a kind could mean one thing here, and another to a proxy."""


class RefusedError(Exception):
    """A request cannot be served; becomes ``{"error": {"status", "what", "value", "limit", "next"}}``."""

    def __init__(
        self, status: int, what: str, *, value: Any = None, limit: Any = None, next: str | None = None
    ) -> None:
        super().__init__(what)
        self.status = status
        self.detail = {"status": status, "what": what, "value": value, "limit": limit, "next": next}


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    """Without its query, unquoted."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes = b""
    peer: str = ""
    connected: str = ""
    """The address that it was sent to."""
    is_cut: bool = False
    """Its body was longer, and the rest has been dropped."""
    may_stay: bool = True
    """Its connection, by its version of HTTP."""

    def json(self) -> dict[str, Any]:
        """Its body as an object; raises RefusedError."""
        try:
            value = json.loads(self.body or b"{}")
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what could not be answered is not taken
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, f"cannot read the body as JSON: {error}"[:300]) from error
        if not isinstance(value, dict):
            raise RefusedError(400, "cannot use the body: it must be a JSON object", value=str(value)[:100])
        return value

    def one(self, name: str) -> str | None:
        """A parameter of the query; the last if it is there more than once."""
        return self.query[name][-1] if name in self.query else None


@dataclass
class Response:
    """What is answered."""

    status: int = 200
    body: bytes = b""
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def answer(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(status, json.dumps(value, ensure_ascii=False, allow_nan=False, default=str).encode())


def text(value: str, status: int = 200) -> Response:
    """A plain one."""
    return Response(status, value.encode(), "text/plain; charset=utf-8")


Serve = Callable[[Request], Awaitable[Response]]


class Server:
    """Listens, and answers what ``serve`` says."""

    def __init__(self, serve: Serve, is_ping: Callable[[str], bool]) -> None:
        self._serve = serve
        self._is_ping = is_ping
        self._open: dict[asyncio.Task[None], float] = {}
        self._busy: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.requests = self.refused = 0
        self.is_draining = False

    @property
    def in_flight(self) -> int:
        """Requests not yet answered."""
        return len(self._busy)

    async def start(self, sock: Any) -> None:
        """Begin to accept."""
        self._server = await asyncio.start_server(self._connected, sock=sock, limit=HEAD_BYTES)

    async def stop(self, within_s: float) -> None:
        """Accept no more, let requests be answered for so long, and close."""
        self.is_draining = True
        if self._server is not None:
            self._server.close()
        for task in set(self._open) - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=within_s)
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(set(self._open), timeout=1.0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= CONNECTIONS_MAX:
            idle = [each for each in self._open if each not in self._busy]
            if idle:  # whoever says nothing makes room for who may have something to say
                min(idle, key=lambda each: self._open[each]).cancel()
            else:
                self.refused += 1
                error = RefusedError(503, "cannot serve more connections", limit=CONNECTIONS_MAX, next="try again")
                await _write(writer, _refusal(error), keep=False, head=False)
                writer.close()
                return
        self._open[task] = time.monotonic()
        try:
            while await self._exchange(reader, writer, task):
                self._open[task] = time.monotonic()
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, OSError):
            return  # whoever asked has gone, or never finished asking
        except asyncio.CancelledError:
            if not self.is_draining and task.cancelling() > 1:
                raise
        finally:
            self._open.pop(task, None)
            self._busy.discard(task)
            with contextlib.suppress(OSError):  # it is closed already
                writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            async with asyncio.timeout(IDLE_S):
                first = await reader.read(1)
            if not first:
                return False
            async with asyncio.timeout(HEAD_S):
                try:
                    head = first + await reader.readuntil(b"\r\n\r\n")
                except asyncio.LimitOverrunError as error:
                    raise RefusedError(
                        431, "cannot read the head of the request: too long", limit=HEAD_BYTES
                    ) from error
                request = read_head(head)
                request.peer = str((writer.get_extra_info("peername") or ("",))[0])
                request.connected = str((writer.get_extra_info("sockname") or ("",))[0])
                self._busy.add(task)
                await self._read_body(request, reader, writer)
        except RefusedError as error:
            self.refused += 1
            await _write(writer, _refusal(error), keep=False, head=False)
            await _hear_out(reader, writer)
            return False
        except TimeoutError:
            if not self._busy & {task}:
                return False
            self.refused += 1
            late = RefusedError(408, "cannot wait longer for the request", limit=f"{HEAD_S:g} s")
            await _write(writer, _refusal(late), keep=False, head=False)
            return False
        try:
            response = await self._serve(request)
        except RefusedError as error:
            self.refused += 1
            response = _refusal(error)
        except Exception:
            log.error("cannot answer %s %s", request.method, request.path[:200], exc_info=True)
            response = _refusal(RefusedError(500, "cannot answer: the service has a fault; see its log"))
        self.requests += 1
        keep = request.may_stay and request.headers.get("connection", "").lower() != "close" and not self.is_draining
        await _write(writer, response, keep=keep, head=request.method == "HEAD")
        self._busy.discard(task)
        return keep

    async def _read_body(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = request.headers
        is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        told = headers.get("content-length", "0")
        if is_chunked and "content-length" in headers:
            raise RefusedError(400, "cannot read a body that has both a length and chunks")
        if not (told.isascii() and told.isdigit()) or len(told) > 18:
            raise RefusedError(400, "cannot read Content-Length", value=told[:40])
        is_ping = self._is_ping(request.path)
        most = BODY_SKIPPED_BYTES if is_ping else BODY_BYTES
        if int(told) > most:
            raise RefusedError(413, "cannot take the body: too large", value=int(told), limit=most)
        if (is_chunked or int(told)) and headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        content = bytearray()
        taken = 0
        async for part in _chunks(reader) if is_chunked else _counted(reader, int(told)):
            taken += len(part)
            if taken > most:
                raise RefusedError(413, "cannot take the body: too large", limit=most)
            content += part[: max(0, BODY_BYTES - len(content))]
        request.body, request.is_cut = bytes(content), taken > len(content)


async def _hear_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read on for a while from who is refused and still sending: else it cannot read why, as its connection breaks."""
    with contextlib.suppress(OSError):  # TimeoutError too
        async with asyncio.timeout(LINGER_S):
            if writer.can_write_eof():
                writer.write_eof()
            left = LINGER_BYTES
            while left > 0 and (part := await reader.read(65_536)):
                left -= len(part)


async def _counted(reader: asyncio.StreamReader, left: int) -> Any:
    while left:
        part = await reader.read(min(left, 65_536))
        if not part:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(part)
        yield part


async def _chunks(reader: asyncio.StreamReader) -> Any:
    while True:
        try:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0].strip(), 16)
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise RefusedError(400, "cannot read the body's chunks") from error
        if not 0 <= size <= BODY_SKIPPED_BYTES:
            raise RefusedError(413, "cannot take the body: too large", limit=BODY_SKIPPED_BYTES)
        if not size:
            try:
                while (await reader.readuntil(b"\r\n")) != b"\r\n":
                    continue  # a trailer
            except asyncio.LimitOverrunError as error:
                raise RefusedError(431, "cannot read a trailer: too long", limit=HEAD_BYTES) from error
            return
        async for part in _counted(reader, size):
            yield part
        await reader.readexactly(2)


def read_head(head: bytes) -> Request:
    """The request line and headers; raises RefusedError. Pure."""
    line, *lines = head[:-4].decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[0].isalpha() or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise RefusedError(400, "cannot read the request line", value=line[:100])
    headers: dict[str, str] = {}
    for each in lines:
        name, colon, value = each.partition(":")
        if not colon or not name or name != name.strip():
            raise RefusedError(400, "cannot read a header", value=each[:100])
        name = name.lower()
        if name in headers and name in _ONCE:
            raise RefusedError(400, f"cannot use {name} twice")
        headers[name] = value.strip()
    try:
        url = urlsplit(words[1])
        query = parse_qs(url.query, keep_blank_values=True, max_num_fields=50)
    except ValueError as error:
        raise RefusedError(400, "cannot read the address", value=words[1][:100]) from error
    return Request(words[0].upper(), unquote(url.path), query, headers, may_stay=words[2] == "HTTP/1.1")


def _refusal(error: RefusedError) -> Response:
    response = answer({"error": error.detail}, error.status)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="cdn-isolated-monitoring"'
    return response


async def _write(writer: asyncio.StreamWriter, response: Response, *, keep: bool, head: bool) -> None:
    reason = HTTPStatus(response.status).phrase
    lines = [f"HTTP/1.1 {response.status} {reason}", f"Date: {formatdate(usegmt=True)}"]
    if response.status not in _NO_BODY:
        lines += [f"Content-Type: {response.media_type}", f"Content-Length: {len(response.body)}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    lines.append("Connection: " + ("keep-alive" if keep else "close"))
    body = b"" if head or response.status in _NO_BODY else response.body
    writer.write("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body)
    async with asyncio.timeout(HEAD_S):
        await writer.drain()
