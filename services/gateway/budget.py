"""What may be asked for: retries as a share of requests, and requests of one client. Pure: time comes in as now_s."""

from __future__ import annotations

import math
from collections import OrderedDict

RETRY_SHARE = 0.2
RETRIES_PER_S = 5.0
"""Beside the share, so that a service with little traffic has retries at all."""
MEMORY_S = 10.0


class RetryBudget:
    """Retries stay below a share of requests: a service that fails does not get twice the load for it.

    Both counts fade, so that what was saved up in a quiet hour cannot be spent in a second.
    """

    def __init__(self) -> None:
        self._requests = self._retries = 0.0
        self._counted_s = -math.inf

    def deposit(self, now_s: float) -> None:
        """Count a request, whatever becomes of it."""
        self._fade(now_s)
        self._requests += 1

    def withdraw(self, now_s: float) -> bool:
        """Take one retry; False if there is none."""
        self._fade(now_s)
        if self._retries + 1 > RETRY_SHARE * self._requests + RETRIES_PER_S * MEMORY_S:
            return False
        self._retries += 1
        return True

    def _fade(self, now_s: float) -> None:
        fade = math.exp(-max(now_s - self._counted_s, 0.0) / MEMORY_S)
        self._requests *= fade
        self._retries *= fade
        self._counted_s = now_s


class Rates:
    """A token bucket for each client: ``per_s`` requests a second, ``burst`` at once. The last seen are remembered."""

    def __init__(self, per_s: float, burst: float, *, clients_max: int = 100_000) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clients_max = clients_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def __len__(self) -> int:
        """Clients remembered."""
        return len(self._buckets)

    def wait_s(self, client: str, now_s: float) -> float:
        """Take one token: 0 if there was one, else the seconds until there is."""
        tokens, counted_s = self._buckets.pop(client, (self._burst, now_s))
        tokens = min(self._burst, tokens + max(now_s - counted_s, 0.0) * self._per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._buckets[client] = (tokens if wait_s else tokens - 1, now_s)
        if len(self._buckets) > self._clients_max:
            self._buckets.popitem(last=False)
        return wait_s
