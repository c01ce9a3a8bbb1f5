"""Requests of one client, limited."""

from __future__ import annotations

from collections import Counter

from tests.gateway.sockets import echoing_heads
from tests.gateway.support import a_fleet
from tests.support import short_dir, until


def test_a_client_that_asks_too_much() -> None:
    """429 and Retry-After beyond its burst, for it alone, and only for a while."""
    settings = {"CDN_GATEWAY_CLIENT_RATE": "0.5", "CDN_GATEWAY_CLIENT_BURST": "5", "FORWARDED_ALLOW_IPS": "127.0.0.1"}
    with short_dir() as path, a_fleet(path, **settings) as fleet, fleet.instance("rated", echoing_heads):

        def ask(client: str) -> int:
            return fleet.ask("GET", "/rated/", f"X-Forwarded-For: {client}").status

        statuses = Counter(ask("198.51.100.1") for _ in range(40))
        assert statuses[200] >= 5
        assert statuses[429] > 0  # 40 requests do not take 70 s
        refused = fleet.ask("GET", "/rated/", "X-Forwarded-For: 198.51.100.1")
        if refused.status == 429:
            assert refused.one("retry-after") in ("1", "2")
            assert refused.error["value"] == "198.51.100.1"
        assert ask("198.51.100.2") == 200
        six = [ask(f"2001:db8::{number}") for number in range(40)]
        assert 429 in six, "one customer's network is one client"
        until(lambda: ask("198.51.100.1") == 200, what="it may ask again")
