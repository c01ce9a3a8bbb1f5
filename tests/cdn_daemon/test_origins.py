"""Which requests of web pages a service takes."""

from __future__ import annotations

import pytest

from cdn_daemon.origins import refusal

EVIL = "https://evil.example"


def status(
    *,
    host: str | None = "127.0.0.1:80",
    origin: str | None = None,
    through: str | None = None,
    method: str = "POST",
    connected: str = "127.0.0.1",
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> int | None:
    """Of the refusal, if there is one."""
    given = {b"host": host, b"origin": origin, b"x-forwarded-host": through}
    headers = [(name, value.encode("latin-1")) for name, value in given.items() if value is not None]
    refused = refusal(headers, method=method, path="/x", connected=connected, hosts=hosts, origins=origins)
    return refused.status if refused is not None else None


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, None),
        ({"host": None}, None),
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example", "method": "GET"}, 421),
        ({"host": "evil.example", "connected": "192.0.2.1"}, None),
        ({"host": "www.example", "hosts": ("www.example",)}, None),
        ({"host": "evil.example", "hosts": ("*",)}, None),
        ({"host": "a.localhost:80"}, None),
        ({"host": "\xe9"}, 421),
        ({"host": ""}, 421),
        ({"host": "web"}, None),
        ({"host": "3232235777.com"}, 421),
        ({"origin": EVIL}, 403),
        ({"origin": EVIL, "method": ""}, 403),
        ({"origin": EVIL, "method": "GET"}, None),
        ({"origin": EVIL, "connected": "192.0.2.1"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": EVIL, "origins": (EVIL,)}, None),
        ({"origin": EVIL, "origins": ("*",)}, None),
        ({"origin": "HTTP://127.0.0.1:80"}, None),
        ({"origin": "http://127.0.0.1:81"}, 403),
        ({"origin": "https://www.example", "through": "www.example"}, None),
        ({"origin": EVIL, "through": "www.example"}, 403),
    ],
)
def test_a_table(asked: dict[str, object], wanted: int | None) -> None:
    """Rebound names, other sites' pages, WebSockets; and those who are let in."""
    assert status(**asked) == wanted  # type: ignore[arg-type]
