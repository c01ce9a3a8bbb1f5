"""One GET of a target's metrics: HTTP/1.0, so that the body ends with the connection; bounded in size and time."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

ACCEPT = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
_HEAD_BYTES = 64 * 1024


class ScrapeError(Exception):
    """There is no answer that can be used; tells why."""


def url_problem(url: str) -> str | None:
    """Why a URL cannot be a target's; None if it can."""
    try:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.username is not None or parts.fragment:
            return "it must be http://HOST:PORT/PATH"
        if parts.port == 0 or not url.isascii() or not url.isprintable() or " " in url or len(url) > 500:
            return "it must be http://HOST:PORT/PATH, at most 500 ASCII characters"
    except ValueError as error:
        return f"it must be http://HOST:PORT/PATH: {error}"
    return None


async def get(url: str, timeout_s: float, limit_bytes: int) -> str:
    """The body of an answer 200; raises ScrapeError."""
    parts = urlsplit(url)
    port = parts.port or 80
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(parts.hostname, port, limit=_HEAD_BYTES)
            request = (
                f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\nAccept: {ACCEPT}\r\n"
                f"User-Agent: cdn-monitoring\r\nConnection: close\r\n\r\n"
            )
            writer.write(request.encode("ascii"))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = head[0].split(" ", 2)
            if len(status) < 2 or not status[0].startswith("HTTP/1."):
                raise ScrapeError(f"this is no HTTP: {head[0][:100]!r}")
            if status[1] != "200":
                raise ScrapeError(f"it answers {' '.join(status[1:])[:100]}")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in head[1:])
            }
            if "transfer-encoding" in headers or headers.get("content-encoding", "identity") != "identity":
                raise ScrapeError("it sends an encoding that was not asked for")
            declared = headers.get("content-length", "")
            body = await _body(reader, limit_bytes)
            if declared.isdigit() and len(body) != int(declared):
                raise ScrapeError(f"it sends {len(body)} bytes of {declared}")
            return body.decode()
    except TimeoutError:
        raise ScrapeError(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ScrapeError(error.strerror or str(error) or type(error).__name__) from error
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ScrapeError("its answer breaks off") from error
    except UnicodeError as error:
        raise ScrapeError("its answer is not UTF-8") from error
    finally:
        if writer is not None:
            writer.close()


async def _body(reader: asyncio.StreamReader, limit_bytes: int) -> bytes:
    parts, size = [], 0
    while part := await reader.read(256 * 1024):
        size += len(part)
        if size > limit_bytes:
            raise ScrapeError(f"it sends more than {limit_bytes} bytes")
        parts.append(part)
    return b"".join(parts)
