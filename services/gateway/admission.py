"""Who may ask at all: before a request is looked at, its client's address is. And whoever is blocked is cut off."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

from cdn_daemon.web import Scope
from services.gateway.blocklist import Blocklist, Network, Rule, parse_address
from services.gateway.budget import Rates
from services.gateway.errors import Refusal


class Admission:
    """The block-list and the rates, applied to clients. On the server's loop."""

    def __init__(self, rules: Blocklist, rates: Rates | None) -> None:
        self._rules = rules
        self._rates = rates
        self._inside: dict[asyncio.Task[object], str] = {}
        self._cut: set[asyncio.Task[object]] = set()
        self._slowed: dict[Network, tuple[Rule, Rates]] = {}
        self.blocked = 0
        """Requests refused for their address."""
        self.limited = 0
        """Requests refused for their number."""
        self.cut_off = 0
        """Requests and WebSockets that were ended as their client was blocked meanwhile."""

    def refusal(self, address: str) -> Refusal | None:
        """What the address is told if it is blocked now."""
        rule = self._rules.refuses(address, time.monotonic())
        if rule is None:
            return None
        return Refusal(403, "cannot serve this address: it is blocked", value=address, limit=str(rule.network))

    def check(self, scope: Scope) -> str | None:
        """The client's address, as the server has made it out; raises Refusal if it is blocked."""
        client = scope.get("client")
        if client is None:
            return None
        address: str = client[0]
        if (refusal := self.refusal(address)) is not None:
            self.blocked += 1
            raise refusal
        return address

    def spend(self, address: str | None) -> None:
        """Count a request against its client's rate, and a rule's; raises Refusal if one of them is used up."""
        if address is None:
            return
        now_s = time.monotonic()
        if (rule := self._rules.slows(address, now_s)) is not None:
            wait_s = self._rates_of(rule).wait_s("", now_s)
            self._limit(wait_s, address, f"{rule.rate_per_s:g} a second from {rule.network}")
        if self._rates is not None:
            self._limit(self._rates.wait_s(_who(address), now_s), address)

    def _rates_of(self, rule: Rule) -> Rates:
        held, rates = self._slowed.get(rule.network, (None, None))
        if rates is None or held != rule:
            assert rule.rate_per_s is not None
            rates = Rates(rule.rate_per_s, max(1.0, 2 * rule.rate_per_s))
            self._slowed[rule.network] = rule, rates
        return rates

    def _limit(self, wait_s: float, address: str, limit: str | None = None) -> None:
        if wait_s:
            self.limited += 1
            raise Refusal(
                429,
                "cannot take so many requests from one client",
                value=address,
                limit=limit,
                next=f"try again in {wait_s:.1f} s",
                retry_after_s=math.ceil(wait_s),
            )

    @contextmanager
    def inside(self, address: str | None, has_begun: Callable[[], bool]) -> Iterator[None]:
        """While the request is served it can be cut off: it ends where it is, or with Refusal before the answer."""
        task = asyncio.current_task()
        if task is None or address is None:
            yield
            return
        self._inside[task] = address
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            if not has_begun() and (refusal := self.refusal(address)) is not None:
                raise refusal from None
        finally:
            del self._inside[task]
            self._cut.discard(task)

    def cut(self) -> None:
        """End what is under way for clients that are blocked now; forget the rates of rules that are no more."""
        for network, (rule, _) in list(self._slowed.items()):
            if self._rules.get(network) != rule:
                del self._slowed[network]
        for task, address in self._inside.items():
            if task not in self._cut and self.refusal(address) is not None:
                self._cut.add(task)
                self.cut_off += 1
                task.cancel("its client is blocked")


def _who(address: str) -> str:
    """One client: an IPv4 address, or the network that one customer of IPv6 has."""
    parsed = parse_address(address)
    return str(int(parsed) >> 64) if isinstance(parsed, IPv6Address) else address
