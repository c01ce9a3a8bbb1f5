"""Probes: whether a program that says nothing of itself answers. Each returns None, or in words why not.

They bound themselves: one that gets no answer ends at its time-out, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Probe = Callable[[], Coroutine[Any, Any, str | None]]

_STATUS_LINE_BYTES = 1024


class ProbeError(ValueError):
    """A probe is described wrongly; the text says how."""


@dataclass(frozen=True)
class Http:
    """``http://HOST[:PORT][/PATH]``: passes with a status of 200 to 399."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Http:
        """Raises ProbeError."""
        wrong = ProbeError(f"cannot probe {text!r}: it must be http://HOST[:PORT][/PATH]")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise wrong from error
        if url.scheme != "http" or not url.hostname or url.username or url.fragment or not text.isascii():
            raise wrong
        if any(c.isspace() for c in text):
            raise wrong
        return cls(
            url.hostname, 80 if port is None else port, (url.path or "/") + (f"?{url.query}" if url.query else "")
        )

    @property
    def address(self) -> str:
        """Base URL."""
        return f"http://{_bracketed(self.host)}:{self.port}"

    async def ask(self) -> str | None:
        """One request, on a connection of its own."""
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=_STATUS_LINE_BYTES)
        except OSError as error:
            return f"{self.address}: {_why(error)}"
        try:
            head = f"GET {self.path} HTTP/1.1\r\nHost: {_bracketed(self.host)}:{self.port}\r\n"
            writer.write(f"{head}User-Agent: cdn-run\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode())
            words = (await reader.readline()).split(maxsplit=2)
        except OSError as error:
            return f"GET {self.address}{self.path}: {_why(error)}"
        except ValueError:  # over the reader's limit
            return f"GET {self.address}{self.path}: a status line of over {_STATUS_LINE_BYTES} bytes"
        finally:
            writer.transport.abort()  # nothing of the body is wanted, nor waited for
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            return f"GET {self.address}{self.path}: no answer of HTTP/1"
        if not 200 <= int(words[1]) < 400:
            return f"GET {self.address}{self.path}: status {int(words[1])}"
        return None


@dataclass(frozen=True)
class Tcp:
    """``HOST:PORT``: passes with a connection."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Tcp:
        """Raises ProbeError."""
        try:
            url = urlsplit(f"//{text}")
            port = url.port
        except ValueError:
            port = None
        if port is None or not url.hostname or url.path or url.query or url.fragment or "@" in text:
            raise ProbeError(f"cannot probe {text!r}: it must be HOST:PORT")
        return cls(url.hostname, port)

    @property
    def address(self) -> str:
        """As a URL."""
        return f"tcp://{_bracketed(self.host)}:{self.port}"

    async def ask(self) -> str | None:
        """One connection, closed at once."""
        try:
            _, writer = await asyncio.open_connection(self.host, self.port)
        except OSError as error:
            return f"{self.host}:{self.port}: {_why(error)}"
        writer.close()
        with suppress(OSError):  # whether it says good-bye is not asked
            await writer.wait_closed()
        return None


def within(ask: Probe, timeout_s: float) -> Probe:
    """The probe, ended when it has had no answer for so long."""

    async def bounded() -> str | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await ask()
        except TimeoutError:
            return f"no answer within {timeout_s:g} s"

    return bounded


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _why(error: OSError) -> str:
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
