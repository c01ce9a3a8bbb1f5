"""A service's own interface refuses so that the sender can do something about it."""

from __future__ import annotations

import asyncio
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cdn_daemon.api import EXCEPTION_HANDLERS, Token, answer, read_json, whole_number
from cdn_daemon.tokens import TokenError


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """Of its body."""
        return msgspec.json.decode(self.content)


class Client:
    """Calls an application as a server would."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    def ask(self, method: str, path: str, content: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        """One request, its body in one piece."""
        path, _, query = path.partition("?")
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        try:
            asyncio.run(self._app(scope, receive, send))
        except ZeroDivisionError:
            assert path == "/bug"  # Starlette answers, and raises for the log
        start, *bodies = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return Reply(start["status"], found, b"".join(body["body"] for body in bodies))


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A request's body."""

    count: int


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """Of a service with one path that takes a number, one that takes a body, and one that needs the token."""
    token = Token(tmp_path / "token")
    token.arm()

    async def number(request: Request) -> Response:
        return answer({"n": whole_number(request, "n", default=7, low=1, high=9)})

    async def body(request: Request) -> Response:
        return answer(await read_json(request, Asked, 100_000), 201)

    async def order(request: Request) -> Response:
        token.check(request)
        return answer({})

    async def bug(request: Request) -> Response:
        raise ZeroDivisionError

    return Client(
        Starlette(
            routes=[
                Route("/number", number),
                Route("/body", body, methods=["POST"]),
                Route("/order", order, methods=["POST"]),
                Route("/bug", bug),
            ],
            exception_handlers=EXCEPTION_HANDLERS,
        )
    )


@pytest.mark.parametrize("text", ["0", "10", "x", "", "1e3", "9" * 5000])
def test_a_number_out_of_bounds_is_refused_with_them(client: Client, text: str) -> None:
    """400, with what, value and limit."""
    error = client.ask("GET", f"/number?n={text}")
    assert error.status == 400
    assert error.json()["error"]["limit"] == "a whole number, 1 to 9"
    assert len(error.json()["error"]["value"]) < 300
    assert client.ask("GET", "/number").json() == {"n": 7}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"count": 3}', 201),
        (b'{"count": 3, "x":' + b"1" * 70_000 + b"}", 400),  # decoded off the loop
        (b'{"count": "3"}', 400),
        (b'{"coun', 400),
        (b"\xff\xfe", 400),
        (b"[" * 50_000, 400),
        (b" " * 100_001, 413),
    ],
)
def test_a_body_is_what_was_asked_for_or_refused(client: Client, body: bytes, status: int) -> None:
    """Wrong, broken, too deep, too large: each says what."""
    reply = client.ask("POST", "/body", body)
    assert reply.status == status
    assert status == 201 or reply.json()["error"]["what"].startswith("cannot ")


def test_an_order_needs_the_token(client: Client, tmp_path: Path) -> None:
    """401 without it and with another; the file is its owner's alone."""
    token = (tmp_path / "token").read_text().strip()
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    wrong: list[dict[str, str]] = [{}, {"authorization": f"Bearer {token[:-1]}"}, {"authorization": f"Basic {token}"}]
    for headers in wrong:
        refused = client.ask("POST", "/order", headers=headers)
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert token.encode() not in refused.content
    assert client.ask("POST", "/order", headers={"authorization": f"bearer {token}"}).status == 200


def test_a_token_that_others_may_read_is_not_trusted(tmp_path: Path) -> None:
    """Nor one that is too short."""
    path = tmp_path / "token"
    path.write_text("x" * 32)
    os.chmod(path, 0o644)
    with pytest.raises(TokenError, match="chmod 600"):
        Token(path).arm()
    path.write_text("short")
    os.chmod(path, 0o600)
    with pytest.raises(TokenError, match="16 to 256"):
        Token(path).arm()


def test_a_token_that_a_full_disk_did_not_take(tmp_path: Path) -> None:
    """The file is there, and empty: once there is room the next start makes one."""
    path = tmp_path / "token"
    soft, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    try:
        with pytest.raises(TokenError, match="File too large"):
            Token(path).arm()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, most))
    Token(path).arm()
    assert len(path.read_text()) > 32
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_and_what_breaks_answer_in_the_same_form(client: Client) -> None:
    """404, 405 and 500."""
    for reply, status in (
        (client.ask("GET", "/nowhere"), 404),
        (client.ask("GET", "/order"), 405),
        (client.ask("GET", "/bug"), 500),
    ):
        assert reply.status == status
        assert reply.json()["error"]["status"] == status
