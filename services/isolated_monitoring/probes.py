"""Looking at targets: one try, within its timeout, and what came of it. Never raises but CancelledError."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.isolated_monitoring.proc import state_of
from services.isolated_monitoring.suspicion import Answer, Outcome
from services.isolated_monitoring.target import Expect, Kind, Target

BODY_BYTES = 65_536
"""Of an answer no more is looked at."""
_GONE = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK)


async def probe(target: Target) -> Answer:
    """Look at a configured target once."""
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(target.timeout_s):
            match target.kind:
                case Kind.HTTP:
                    return await _http(target, began_s)
                case Kind.TCP:
                    host, _, port = target.address.rpartition(":")
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
                    writer.close()
                case Kind.UNIX:
                    await _connect_unix(target.address)
                case Kind.PIDFILE:
                    return _pidfile(Path(target.address), began_s)
                case _:
                    raise AssertionError(f"{target.kind} is not probed so")
    except TimeoutError:
        return Answer(
            outcome=Outcome.SILENT, took_s=time.monotonic() - began_s, text=f"no answer within {target.timeout_s:g} s"
        )
    except OSError as error:
        return _failed(error, began_s)
    return Answer(outcome=Outcome.ANSWERED, took_s=time.monotonic() - began_s)


async def readiness(host: str, port: int, timeout_s: float) -> tuple[Answer, int, bytes]:
    """``GET /readyz`` of a service on this host: the answer, its status (0: none), its body.

    Any well-formed answer is a sign of life; what it means is the caller's matter. By the bare socket, as this is
    what the monitor spends its time with.
    """
    began_s = time.monotonic()
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    content = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
                await loop.sock_connect(connection, (host, port))
                shown = f"[{host}]" if ":" in host else host
                request = f"GET /readyz HTTP/1.1\r\nHost: {shown}:{port}\r\nConnection: close\r\n\r\n"
                await loop.sock_sendall(connection, request.encode())
                while len(content) < BODY_BYTES and (chunk := await loop.sock_recv(connection, 65536)):
                    content += chunk
    except TimeoutError:
        took_s = time.monotonic() - began_s
        answer = Answer(outcome=Outcome.SILENT, took_s=took_s, text=f"no answer within {timeout_s:g} s")
        return answer, 0, b""
    except OSError as error:
        return _failed(error, began_s), 0, b""
    status = read_status(bytes(content))
    took_s = time.monotonic() - began_s
    if not status:
        return Answer(outcome=Outcome.WRONG, took_s=took_s, text="its answer is no HTTP"), 0, b""
    return Answer(outcome=Outcome.ANSWERED, took_s=took_s), status, bytes(content).partition(b"\r\n\r\n")[2]


def read_status(content: bytes) -> int:
    """The status of an HTTP answer; 0 if it is none. Pure."""
    words = content[:64].split(maxsplit=2)
    if len(words) > 1 and words[0].startswith(b"HTTP/1.") and len(words[1]) == 3 and words[1].isdigit():
        return int(words[1])
    return 0


def judge_http(expect: Expect, status: int, body: bytes) -> str:
    """What is wrong with an answer; empty if nothing is. Pure."""
    if not status:
        return "its answer is no HTTP"
    if status != expect.status if expect.status else status >= 400:
        return f"HTTP {status}" + (f", expected {expect.status}" if expect.status else "")
    if expect.contains and expect.contains.encode() not in body:
        return f"its answer lacks {expect.contains!r}"
    return ""


async def _http(target: Target, began_s: float) -> Answer:
    status, body = await request("GET", target.address)
    wrong = judge_http(target.expect, status, body)
    outcome = Outcome.WRONG if wrong else Outcome.ANSWERED
    return Answer(outcome=outcome, took_s=time.monotonic() - began_s, text=wrong)


async def request(
    method: str, address: str, body: bytes = b"", content_type: str = "", **headers: str
) -> tuple[int, bytes]:
    """One HTTP request and its answer, without following redirects; raises OSError (also of TLS)."""
    url = urlsplit(address)
    secure: Any = ssl.create_default_context() if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(
        url.hostname, url.port or (443 if secure else 80), ssl=secure, limit=BODY_BYTES
    )
    try:
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        lines = [f"{method} {path} HTTP/1.1", f"Host: {url.netloc.rpartition('@')[2]}", "Connection: close"]
        lines += ["User-Agent: cdn-isolated-monitoring", "Accept: */*"]
        if body:
            lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        content = bytearray()
        while len(content) < BODY_BYTES and (chunk := await reader.read(BODY_BYTES)):
            content += chunk
    finally:
        writer.close()
    return read_status(bytes(content)), bytes(content).partition(b"\r\n\r\n")[2]


async def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as connection:
        await asyncio.get_running_loop().sock_connect(connection, path)


def _pidfile(path: Path, began_s: float) -> Answer:
    try:
        pid = int(path.read_text()[:20].strip() or 0)
    except ValueError:
        pid = 0
    state = state_of(pid) if pid > 0 else ""
    if state in ("", "Z", "X"):
        return Answer(
            outcome=Outcome.REFUSED, took_s=time.monotonic() - began_s, text=f"no process {pid or ''}".strip()
        )
    if state == "T":
        return Answer(outcome=Outcome.REFUSED, took_s=time.monotonic() - began_s, text="stopped by a signal (state T)")
    return Answer(outcome=Outcome.ANSWERED, took_s=time.monotonic() - began_s)


def _failed(error: OSError, began_s: float) -> Answer:
    outcome = Outcome.REFUSED if error.errno in _GONE else Outcome.WRONG
    # asyncio says ``Connect call failed`` and the address, which people know
    known = isinstance(error.errno, int) and error.errno > 0 and not isinstance(error, ssl.SSLError)
    text = os.strerror(error.errno or 0) if known else str(error) or type(error).__name__
    return Answer(outcome=outcome, took_s=time.monotonic() - began_s, text=text[:200])
