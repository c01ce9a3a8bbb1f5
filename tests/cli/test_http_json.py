"""What is asked of a server of the fleet over HTTP, and who answers it: it may be another server by now."""

from __future__ import annotations

import socket
import threading

import pytest

from cli.exits import Problem
from cli.http_json import get


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>another server</html>", "malformed"),
        (200, b'["no object"]', "Expected `object`"),
        (200, b'{"a": "\xff"}', ""),
        (200, b'{"a":' * 20_000, "recursion"),
        (404, b'{"error": "no such page"}', "404, refused"),
        (404, b'{"error": {"what": "cannot find", "value": "x"}}', "404, cannot find x"),
    ],
)
def test_what_cannot_be_understood_is_a_problem(status: int, body: bytes, why: str) -> None:
    """Not a traceback: it says what was asked, and why there is no answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 %d So\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Problem) as caught:
            get(address, "api", "v1", "events")
        thread.join(10)
    assert caught.value.message.startswith(f"cannot get {address}/api/v1/events: ")
    assert why in caught.value.message
