"""Both ends of a gateway's connections, as raw sockets: instances that behave as told, and a client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Script = Callable[["Peer"], None]


class Peer:
    """A scripted instance's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._pending = b""

    def head(self) -> bytes:
        """The next request's head; empty if the gateway closed instead."""
        while b"\r\n\r\n" not in self._pending:
            if not self._more():
                return b""
        head, _, self._pending = self._pending.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def body(self, length: int) -> bytes:
        """So many bytes after the head."""
        while len(self._pending) < length and self._more():
            continue
        body, self._pending = self._pending[:length], self._pending[length:]
        return body

    def _more(self) -> bool:
        """Read on; False if the gateway closed instead.

        A request that it gives up it ends with a reset, if what the instance has said of it is still unread.
        """
        try:
            chunk = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._pending += chunk
        return bool(chunk)

    def send(self, content: bytes) -> None:
        """As it is."""
        self.socket.sendall(content)

    def closed(self) -> None:
        """Wait for the gateway to close, whatever it says before that."""
        while self._more():
            self._pending = b""


@dataclass
class Instance:
    """A scripted instance: a listening socket whose connections each run the script on a thread."""

    script: Script
    connections: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Instance:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._stop = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    @property
    def address(self) -> str:
        """For its status."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(30)
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self.script(Peer(connection))
        except OSError as error:
            if not self._stop.is_set():
                self.failures.append(error)
        except AssertionError as error:
            self.failures.append(error)
        finally:
            connection.close()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join()
        self._listener.close()
        assert not self.failures, self.failures


def dead_address() -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@dataclass
class Answer:
    """A parsed answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]

    def one(self, name: str) -> str | None:
        """The header's only value; None if it is not there."""
        values = self.all(name)
        assert len(values) < 2, self.headers
        return values[0] if values else None

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal."""
        detail = json.loads(self.body)["error"]
        assert isinstance(detail, dict)
        assert detail["status"] == self.status
        assert detail["what"].startswith("cannot ")
        return detail


class Client:
    """One raw connection to the gateway."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(30)
        self.pending = b""

    def send(self, content: bytes) -> None:
        """As it is."""
        self.socket.sendall(content)

    def more(self) -> bytes:
        """What comes next; empty at the end."""
        chunk = self.socket.recv(65536)
        self.pending += chunk
        return chunk

    def rest(self) -> bytes:
        """Everything until the gateway closes."""
        try:
            while self.more():
                continue
        except ConnectionResetError:
            self.pending += b"<reset>"
        content, self.pending = self.pending, b""
        return content

    def answer(self, *, bodiless: bool = False) -> Answer:
        """The next answer, by its framing."""
        while b"\r\n\r\n" not in self.pending:
            assert self.more(), f"closed within the head: {self.pending!r}"
        head, _, self.pending = self.pending.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        parsed = Answer(int(first.split()[1]), headers, b"")
        if not bodiless and parsed.status not in (204, 304):
            length = parsed.one("content-length")
            parsed.body = self._chunked() if length is None else self._take(int(length))
        return parsed

    def _take(self, length: int) -> bytes:
        while len(self.pending) < length:
            assert self.more(), "closed within the body"
        content, self.pending = self.pending[:length], self.pending[length:]
        return content

    def _chunked(self) -> bytes:
        body = b""
        while True:
            while b"\r\n" not in self.pending:
                assert self.more(), "closed within a chunk"
            size, _, self.pending = self.pending.partition(b"\r\n")
            chunk = self._take(int(size, 16))
            assert self._take(2) == b"\r\n"
            if not chunk:
                return body
            body += chunk

    def close(self) -> None:
        """At once."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ok(content: bytes = b"hello", *headers: str) -> bytes:
    """A plain answer."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {len(content)}\r\n\r\n".encode() + content


def echoing_heads(peer: Peer) -> None:
    """Answers each request with its own head; for requests without a body."""
    while head := peer.head():
        peer.send(ok(head))
