"""Which instance gets the next request, and what came of it.

Round robin. A better choice replaces RoundRobin and finds what it needs to know
of each instance in Ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from services.gateway.errors import UpstreamError
from services.gateway.routes import Target

TRACKED_MAX = 10_000


class Balance(Protocol):
    """Chooses."""

    def pick(self, service: str, targets: Sequence[Target], tried: Collection[Target]) -> Target | None:
        """One of the targets that was not tried; None if all were."""


class RoundRobin:
    """Each in turn, per service."""

    def __init__(self) -> None:
        self._turn: Counter[str] = Counter()

    def pick(self, service: str, targets: Sequence[Target], tried: Collection[Target]) -> Target | None:
        """The next that was not tried."""
        left = [target for target in targets if target not in tried] if tried else targets
        if not left:
            return None
        turn = self._turn[service]
        self._turn[service] = turn + 1
        return left[turn % len(left)]


@dataclass
class Account:
    """One instance's requests, as this gateway has seen them since it began."""

    requests: int = 0
    in_flight: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """By UpstreamError.kind."""


class Ledger:
    """The accounts of all instances that had traffic."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def of(self, target: Target) -> Account:
        """The instance's account."""
        account = self._accounts.get(target.instance)
        if account is None:
            if len(self._accounts) >= TRACKED_MAX:
                self._forget_idle()
            account = self._accounts[target.instance] = Account()
        return account

    @contextmanager
    def attempt(self, target: Target) -> Iterator[None]:
        """Count one try at an instance, and how it fails if it does."""
        account = self.of(target)
        account.requests += 1
        account.in_flight += 1
        try:
            yield
        except UpstreamError as error:
            account.failures[error.kind] += 1
            raise
        finally:
            account.in_flight -= 1

    def _forget_idle(self) -> None:
        self._accounts = {name: account for name, account in self._accounts.items() if account.in_flight}

    def numbers(self) -> Mapping[str, float]:
        """Totals, and with the label ``upstream`` each instance's own, named for Prometheus."""
        numbers: dict[str, float] = {
            "gateway_upstream_requests_total": 0,
            "gateway_upstream_failures_total": 0,
            "gateway_upstream_in_flight": 0,
        }
        for name, account in list(self._accounts.items()):
            failed = sum(account.failures.values())
            numbers["gateway_upstream_requests_total"] += account.requests
            numbers["gateway_upstream_failures_total"] += failed
            numbers["gateway_upstream_in_flight"] += account.in_flight
            numbers[f'gateway_upstream_requests_total{{upstream="{name}"}}'] = account.requests
            numbers[f'gateway_upstream_in_flight{{upstream="{name}"}}'] = account.in_flight
            for kind, count in list(account.failures.items()):
                numbers[f'gateway_upstream_failures_total{{upstream="{name}",kind="{kind}"}}'] = count
        return numbers
