"""The shop of the demonstration: an ordinary program, of no framework, that people log in to. ``cdn-run`` runs it.

``POST /login`` of ``NAME:PASSWORD`` is 200 or 401, ``GET /`` is the shop window, ``GET /about`` answers whatever the
shop's health, ``GET /health`` is for the probe, ``GET /metrics`` for whoever scrapes, all else is 404. Each log-in that
fails is told by StatsD, as shops do. ``POST /settings`` says where that listens, and which part of the answers is to be
a 500: an illness to be ill with.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import socket
import sys
from urllib.parse import parse_qs

PEOPLE = 200
"""``person-0`` to ``person-199``."""
SERIES = "logins.failed"
METRIC = "shop_logins_failed_total"
WORK_S = 0.008
"""For each answer, as if there were something to look up."""
_REASONS = {200: "OK", 401: "Unauthorized", 404: "Not Found", 500: "Internal Server Error"}


def password(name: str) -> str:
    """Everybody's password: nobody types it here."""
    return hashlib.sha256(f"shop {name}".encode()).hexdigest()[:12]


class Shop:
    """What there is of it: who may log in, whom to tell, how ill it is."""

    def __init__(self) -> None:
        self._known = {name: password(name) for name in (f"person-{number}" for number in range(PEOPLE))}
        self._statsd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._statsd_at: tuple[str, int] | None = None
        self._ill = 0.0
        self._failed = 0
        self._chance = random.Random(os.getpid())

    def answer(self, method: str, path: str, client: str, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if path == "/health":
            return 200, b"well\n"
        if path == "/about":
            return 200, b"we are open\n"
        if path == "/metrics":
            return 200, f"# TYPE {METRIC} counter\n{METRIC} {self._failed}\n".encode()
        if (method, path) == ("POST", "/settings"):
            return 200, self._set({key: values[-1] for key, values in parse_qs(body.decode()).items()})
        if self._chance.random() < self._ill:
            return 500, b"the shelf has fallen down\n"
        if (method, path) == ("POST", "/login"):
            return self._log_in(body.decode(errors="replace"), client)
        return (200, b"welcome\n") if path == "/" else (404, b"we have no such thing\n")

    def _log_in(self, words: str, client: str) -> tuple[int, bytes]:
        name, _, given = words.partition(":")
        if self._known.get(name) == given:
            return 200, b"welcome back\n"
        self._failed += 1
        if self._statsd_at is not None:
            lines = f"{SERIES}:1|c\n{SERIES}.from:{client}|s\n"
            self._statsd.sendto(lines.encode(), self._statsd_at)
        return 401, b"wrong name or password\n"

    def _set(self, settings: dict[str, str]) -> bytes:
        if "statsd" in settings:
            host, _, port = settings["statsd"].rpartition(":")
            self._statsd_at = (host, int(port))
        self._ill = float(settings.get("ill", self._ill))
        return json.dumps({"ill": self._ill}).encode() + b"\n"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request after request, until the client has enough."""
        is_last = False
        try:
            while not is_last:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ", 2)
                parted = (line.partition(":") for line in lines)
                fields = {name.strip().lower(): value.strip() for name, _, value in parted}
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                client = fields.get("x-forwarded-for", "nobody").rpartition(",")[2].strip()
                is_last = fields.get("connection", "").lower() == "close"
                await asyncio.sleep(WORK_S)
                status, content = self.answer(method, target.partition("?")[0], client, body)
                head = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Length: {len(content)}"]
                head += ["Content-Type: text/plain", f"Connection: {'close' if is_last else 'keep-alive'}"]
                writer.write("\r\n".join([*head, "", ""]).encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # it has gone
        finally:
            writer.close()


async def _open(port: int) -> None:
    server = await asyncio.start_server(Shop().serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_open(int(sys.argv[1])))
