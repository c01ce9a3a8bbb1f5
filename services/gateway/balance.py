"""Which instance gets the next request, and what came of it.

Two instances are drawn by chance, and the cheaper gets it: latency, as a peak
EWMA, times the requests that would then wait there. That goes round a slow one
within one answer, needs no clock, and does not herd as "always the cheapest" would.

The latency is that of an answer's head, from when the request was sent: how long a body
streams says nothing of how quick an instance is. WebSockets go where fewer are open.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.gateway.errors import Refusal, UpstreamError
from services.gateway.outliers import Standing, choosable, eject, reason_to_eject
from services.gateway.routes import Target

log = logging.getLogger(__name__)

TRACKED_MAX = 10_000
TAU_S = 2.0
"""How fast an old latency counts for less. Beside peers of 1 ms, one of 200 ms is tried again after about 10 s."""

NOISE_S = 0.0001
"""Latencies below this are equal: what counts then is how many requests wait."""


@dataclass
class PeakEwma:
    """Latency that rises at once and falls slowly; forgotten, in favour of what others have, without news."""

    value_s: float | None = None
    at_s: float = 0.0

    def observe(self, latency_s: float, now_s: float) -> None:
        """Fold in one answer's."""
        if self.value_s is None or latency_s >= self.value_s:
            self.value_s = latency_s
        else:
            kept = math.exp(-max(now_s - self.at_s, 0.0) / TAU_S)
            self.value_s = self.value_s * kept + latency_s * (1 - kept)
        self.at_s = now_s

    def expected_s(self, otherwise_s: float, now_s: float) -> float:
        """What the next answer may take; ``otherwise_s`` to the degree that nothing is known."""
        if self.value_s is None:
            return otherwise_s
        if self.value_s <= otherwise_s:
            return self.value_s
        kept = math.exp(-max(now_s - self.at_s, 0.0) / TAU_S)
        return self.value_s * kept + otherwise_s * (1 - kept)


@dataclass
class Account:
    """One incarnation of an instance: its requests, as this gateway has seen them."""

    incarnation: int = 0
    requests: int = 0
    in_flight: int = 0
    waiting: int = 0
    """Of them, HTTP requests whose answer has not begun."""
    tunnels: int = 0
    """Of them, WebSockets."""
    failures: Counter[str] = field(default_factory=Counter)
    """By UpstreamError.kind; ``status_5xx`` for answers that say so themselves."""
    ejections: Counter[str] = field(default_factory=Counter)
    """By reason."""
    answers: int = 0
    """With a latency that was measured."""
    latency_s: float = 0.0
    """Sum over them."""
    good: int = 0
    bad: int = 0
    ewma: PeakEwma = field(default_factory=PeakEwma)
    standing: Standing = field(default_factory=Standing)


class Attempt:
    """One try at one instance, while it lasts."""

    def __init__(self, ledger: Ledger, account: Account, target: Target, targets: Sequence[Target]) -> None:
        self._ledger = ledger
        self._account = account
        self._target = target
        self._targets = targets
        self._asked_s: float | None = None
        self.is_waiting = False
        self.closed_idle = False
        """It was on a connection that the instance closed before it got the request."""

    def begins(self) -> None:
        """A connection is there."""
        self.is_waiting = True
        self._account.waiting += 1

    def sent(self) -> None:
        """All of the request is on its way: the answer is due from now on."""
        self._asked_s = self._ledger.clock()

    def answered(self, status: int) -> None:
        """The answer's head is here. One that came before the end of the request has no latency."""
        now_s = self._ledger.clock()
        self._ends()
        if self._asked_s is not None:
            self._observe(now_s - self._asked_s, now_s)
        if status >= 500:
            self._account.failures["status_5xx"] += 1
        self._ledger.record(self._account, self._target, self._targets, status < 500)

    def failed(self, error: UpstreamError) -> None:
        """There is none, or it broke off."""
        account = self._account
        account.failures[error.kind] += 1
        if self.closed_idle:
            return
        if self.is_waiting and self._asked_s is not None:
            now_s = self._ledger.clock()
            # A quick failure is no reason to be chosen.
            self._observe(max(now_s - self._asked_s, account.ewma.value_s or 0.0), now_s)
        self._ledger.record(account, self._target, self._targets, False)

    def over(self) -> None:
        """Nothing more comes of it."""
        self._ends()

    def _observe(self, latency_s: float, now_s: float) -> None:
        self._account.answers += 1
        self._account.latency_s += latency_s
        self._account.ewma.observe(latency_s, now_s)

    def _ends(self) -> None:
        if self.is_waiting:
            self.is_waiting = False
            self._account.waiting -= 1


class Ledger:
    """The accounts of all instances that had traffic. ``clock`` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._accounts: dict[str, Account] = {}

    def of(self, target: Target) -> Account:
        """The instance's account; what an earlier incarnation was like is not held against a new one."""
        account = self._accounts.get(target.instance)
        if account is None:
            if len(self._accounts) >= TRACKED_MAX:
                self._forget_idle()
            account = self._accounts[target.instance] = Account(incarnation=target.incarnation)
        elif account.incarnation != target.incarnation:
            account.incarnation = target.incarnation
            account.ewma, account.standing = PeakEwma(), Standing()
        return account

    @contextmanager
    def attempt(self, target: Target, targets: Sequence[Target] = (), *, tunnel: bool = False) -> Iterator[Attempt]:
        """Count one try at one of the service's targets, and how it fails if it does."""
        account = self.of(target)
        attempt = Attempt(self, account, target, targets)
        account.requests += 1
        account.in_flight += 1
        account.tunnels += tunnel
        try:
            yield attempt
        except UpstreamError as error:
            attempt.failed(error)
            raise
        finally:
            attempt.over()
            account.in_flight -= 1
            account.tunnels -= tunnel

    def record(self, account: Account, target: Target, targets: Sequence[Target], is_good: bool) -> None:
        """Fold in an answer, or its lack, and leave the instance out if it fails more than its peers do."""
        account.good += is_good
        account.bad += not is_good
        if account.incarnation != target.incarnation:
            return  # it is another by now
        now_s = self.clock()
        account.standing.record(is_good, now_s)
        if is_good:
            return
        peers = [self.of(other).standing for other in targets if other != target]
        reason = reason_to_eject(account.standing, peers, now_s)
        if reason is not None:
            account.ejections[reason] += 1
            out_s = eject(account.standing, now_s)
            log.warning("%s is left out for %.0f s: %s", target.instance, out_s, _WHY[reason])

    def _forget_idle(self) -> None:
        self._accounts = {name: account for name, account in self._accounts.items() if account.in_flight}

    def accounts(self) -> Mapping[str, Account]:
        """By instance; from any thread."""
        return self._accounts.copy()

    def numbers(self) -> Mapping[str, float]:
        """Totals, and with the label ``upstream`` each instance's own, named for Prometheus."""
        now_s = self.clock()
        numbers: dict[str, float] = {
            "gateway_upstream_requests_total": 0,
            "gateway_upstream_failures_total": 0,
            "gateway_upstream_in_flight": 0,
            "gateway_upstream_ejections_total": 0,
            "gateway_upstreams_ejected": 0,
        }
        for name, account in self.accounts().items():
            failures = account.failures.copy()
            ejections = account.ejections.copy()
            numbers["gateway_upstream_requests_total"] += account.requests
            numbers["gateway_upstream_failures_total"] += sum(failures.values())
            numbers["gateway_upstream_in_flight"] += account.in_flight
            numbers["gateway_upstream_ejections_total"] += sum(ejections.values())
            numbers["gateway_upstreams_ejected"] += account.standing.is_out(now_s)
            numbers[f'gateway_upstream_requests_total{{upstream="{name}"}}'] = account.requests
            numbers[f'gateway_upstream_in_flight{{upstream="{name}"}}'] = account.in_flight
            numbers[f'gateway_upstream_ejected{{upstream="{name}"}}'] = float(account.standing.is_out(now_s))
            if account.ewma.value_s is not None:
                numbers[f'gateway_upstream_latency_ewma_seconds{{upstream="{name}"}}'] = account.ewma.value_s
            for kind, count in failures.items():
                numbers[f'gateway_upstream_failures_total{{upstream="{name}",kind="{kind}"}}'] = count
            for reason, count in ejections.items():
                numbers[f'gateway_upstream_ejections_total{{upstream="{name}",reason="{reason}"}}'] = count
        return numbers


_WHY = {
    "consecutive": "it has failed several times in a row, and others do better",
    "ratio": "it fails more often than the others",
}


def cheaper(targets: Sequence[Target], costs: Callable[[Target], float], draw: Callable[[], float]) -> Target:
    """The cheaper of two drawn by chance; ``draw`` gives numbers in [0, 1)."""
    count = len(targets)
    if count == 1:
        return targets[0]
    first = int(draw() * count)
    second = int(draw() * (count - 1))
    second += second >= first
    one, other = targets[first], targets[second]
    return one if costs(one) <= costs(other) else other


class Balance:
    """Chooses. While ``is_adaptive`` is False it is plain round robin, with nobody left out."""

    def __init__(self, ledger: Ledger, *, in_flight_max: int, draw: Callable[[], float]) -> None:
        self._ledger = ledger
        self._in_flight_max = in_flight_max
        self._draw = draw
        self._turn: Counter[str] = Counter()
        self.is_adaptive: Callable[[], bool] = lambda: True
        self.weights: Mapping[str, float] = {}
        """By instance, 0 to 1; 1 where none is named. Swapped, never changed."""
        self.shed = 0
        """Requests refused as every instance had all the work that it may have."""

    def pick(
        self, service: str, targets: Sequence[Target], tried: Collection[Target], *, tunnel: bool = False
    ) -> Target | None:
        """One of the targets that was not tried, None if all were; raises Refusal if all of them are full."""
        if not (left := [target for target in targets if target not in tried] if tried else targets):
            return None
        of, bound = self._ledger.of, self._in_flight_max
        if not (free := [target for target in left if of(target).in_flight < bound]):
            self.shed += 1
            raise Refusal(
                503,
                f"cannot give {service} more work: every instance of it has its limit of requests in flight",
                value=sum(of(target).in_flight for target in left),
                limit=f"{bound} each",
                next="try again, or scale it up",
                service=service,
            )
        if not self.is_adaptive():
            turn = self._turn[service]
            self._turn[service] = turn + 1
            return free[turn % len(free)]
        if len(free) == 1:
            return free[0]
        now_s = self._ledger.clock()
        inside = choosable(targets, [of(target).standing for target in targets], now_s)
        if inside is not targets:
            free = [target for target in free if target in inside] or free
        if tunnel:
            return cheaper(
                free, lambda target: (of(target).tunnels + 1) / self.weights.get(target.instance, 1), self._draw
            )
        best_s = min((ewma for target in free if (ewma := of(target).ewma.value_s) is not None), default=0.0)

        def cost(target: Target) -> float:
            account = of(target)
            expected_s = max(account.ewma.expected_s(best_s, now_s), NOISE_S)
            return expected_s * (account.waiting + 1) / self.weights.get(target.instance, 1)

        return cheaper(free, cost, self._draw)
