"""One GET of a service on this host, bounded in time and size; for what a service tells of itself."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from urllib.parse import urlsplit

WITHIN_S = 2.0
MOST_BYTES = 512 * 1024
AT_ONCE = 16


class NoAnswer(Exception):
    """The service did not answer as it should; ``status`` is what that is in HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Loopback:
    """Asks; at most AT_ONCE at the same time. Belongs to the event loop."""

    def __init__(self) -> None:
        self._asking = 0

    async def get(self, address: str, path: str) -> bytes:
        """The body of the answer at that path of that base URL; raises NoAnswer."""
        host, port = _host_and_port(address)
        if self._asking >= AT_ONCE:
            raise NoAnswer(503, f"{AT_ONCE} services are being asked already")
        self._asking += 1
        try:
            async with asyncio.timeout(WITHIN_S):
                return await _get(host, port, path)
        except TimeoutError as error:
            raise NoAnswer(504, f"no answer from {address} within {WITHIN_S:.1f} s") from error
        except OSError as error:
            raise NoAnswer(502, f"cannot reach {address}: {error.strerror or error}") from error
        finally:
            self._asking -= 1


def _host_and_port(address: str) -> tuple[str, int]:
    """Of a base URL that is on this host; whoever can publish a status may name any."""
    try:
        url = urlsplit(address)
        if url.scheme == "http" and ip_address(url.hostname or "").is_loopback and url.port:
            return url.hostname or "", url.port
    except ValueError:
        pass  # no address at all, which is said below
    raise NoAnswer(502, f"cannot ask at {address[:100]}: only http on this host's loopback is asked")


async def _get(host: str, port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, limit=MOST_BYTES)
    try:
        # HTTP/1.0: the answer ends with the connection, and is in one piece.
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await _read(reader)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ")[1:2] != [b"200"]:
        first = head.partition(b"\r\n")[0][:100].decode(errors="replace")
        raise NoAnswer(502, f"the service answered {first!r}")
    return body


async def _read(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    while more := await reader.read(65536):
        answer += more
        if len(answer) > MOST_BYTES:
            raise NoAnswer(502, f"the service's answer is over {MOST_BYTES} bytes")
    if not answer:
        raise NoAnswer(502, "the service closed the connection without an answer")
    return answer
