"""The routing optimizer: gives an instance that is a worse bargain than its peers less to do, if that helps.

What has to be quick is done for every request, by balance.py and outliers.py, and
only while this loop is on. The loop sees what they cannot: an instance that is quick,
and fails too rarely to be left out, costs its service nothing but errors. Its traffic is
cut by its weight, for a lease; the effect on the whole service is measured, and undone
if there is none. Off, or in shadow, requests go round robin.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from msgspec import Struct

from cdn_daemon.ooda import OodaLoop
from services.gateway.balance import Account, Balance, Ledger
from services.gateway.routes import Table

WINDOW_CYCLES = 5
VOLUME_MIN = 100
"""Answers in the window below which an instance is not judged."""
ERROR_PENALTY = 20.0
"""One failed answer is as bad as waiting so many times as long for a good one."""
WORSE = 1.5
"""An instance that costs this many times what its peers do gets less to do."""
STEP = 4.0
WEIGHT_MIN = 1 / 16
LEASE_S = 60.0
"""After this long it has its whole weight again: whether it got better can only be seen with traffic."""
NOISE_S = 0.001
"""Differences in latency below this are nobody's fault: they are the machine's."""


class Seen(Struct, frozen=True, kw_only=True):
    """One instance over the window."""

    good: int
    bad: int
    latency_s: float | None
    """Mean, to the head of an answer; None: nothing was measured."""
    waiting: int = 0
    ejected: bool = False
    weight: float = 1.0


class Observation(Struct, frozen=True, kw_only=True):
    """Every service that had traffic: its instances over the window."""

    services: Mapping[str, Mapping[str, Seen]]


class Bargain(Struct, frozen=True, kw_only=True):
    """What one answer of a service costs, all in all and from each instance; seconds, failures included."""

    cost_s: float
    instances: Mapping[str, tuple[float, float]]
    """At least and at most, as a few failures may be chance; only those with enough answers to be judged."""
    weights: Mapping[str, float]
    """Below 1."""
    known: int
    """Instances that had traffic."""


class Picture(Struct, frozen=True, kw_only=True):
    """The bargain that each service is."""

    services: Mapping[str, Bargain]


class Weigh(Struct, frozen=True, kw_only=True):
    """Give an instance this weight: it is chosen as if its answers took 1/weight times as long."""

    service: str
    instance: str
    weight: float


def cost_s(good: int, bad: float, latency_s: float) -> float:
    """Of one answer."""
    return max(latency_s, NOISE_S) * (1 + ERROR_PENALTY * bad / (good + bad)) if good + bad else 0.0


def _range(seen: Seen, latency_s: float) -> tuple[float, float]:
    """One standard deviation of the count of failures to either side."""
    low, high = seen.bad - math.sqrt(seen.bad), seen.bad + math.sqrt(seen.bad + 1)
    return cost_s(seen.good, low, latency_s), cost_s(seen.good, high, latency_s)


def orient(observation: Observation) -> Picture:
    """What the answers of each service and instance cost."""
    services: dict[str, Bargain] = {}
    for service, instances in observation.services.items():
        measured = [(seen, seen.latency_s) for seen in instances.values() if seen.latency_s is not None]
        count = sum(seen.good + seen.bad for seen, _ in measured)
        if not count:
            continue
        mean_s = sum((seen.good + seen.bad) * latency_s for seen, latency_s in measured) / count
        usual_s = sorted(latency_s for _, latency_s in measured)[len(measured) // 2]
        good, bad = sum(seen.good for seen in instances.values()), sum(seen.bad for seen in instances.values())
        services[service] = Bargain(
            cost_s=cost_s(good, bad, mean_s),
            instances={
                # Where it fails quickly its own latency would flatter it.
                name: _range(seen, max(seen.latency_s, usual_s) if seen.bad else seen.latency_s)
                for name, seen in instances.items()
                if seen.latency_s is not None and seen.good + seen.bad >= VOLUME_MIN
            },
            weights={name: seen.weight for name, seen in instances.items() if seen.weight < 1},
            known=len(instances),
        )
    return Picture(services=services)


def _worse(bargain: Bargain, name: str) -> float:
    """How many times what its peers cost the instance does at least; 0 if it or they cannot be judged."""
    peers = sorted(peer_s for peer, (_, peer_s) in bargain.instances.items() if peer != name)
    if not peers or name not in bargain.instances:
        return 0.0
    return bargain.instances[name][0] / peers[len(peers) // 2]  # of an even number the upper one: it accuses less


def decide(picture: Picture, held: Collection[Weigh]) -> Weigh | None:
    """Less for the instance that is the worst bargain beside its peers, or nothing."""
    worst: tuple[float, Weigh] | None = None
    for service, bargain in picture.services.items():
        for name in bargain.instances:
            ratio = _worse(bargain, name)
            weight = bargain.weights.get(name, 1.0) / STEP
            others = sum(1 for other in bargain.weights if other != name)
            choice = Weigh(service=service, instance=name, weight=weight)
            if ratio < WORSE or weight < WEIGHT_MIN or 2 * (others + 1) > bargain.known or choice in held:
                continue
            if worst is None or ratio > worst[0]:
                worst = (ratio, choice)
    return worst[1] if worst else None


@dataclass
class _Totals:
    good: int = 0
    bad: int = 0
    answers: int = 0
    latency_s: float = 0.0

    @classmethod
    def of(cls, account: Account) -> _Totals:
        return cls(account.good, account.bad, account.answers, account.latency_s)

    def since(self, earlier: _Totals) -> _Totals:
        return _Totals(
            self.good - earlier.good,
            self.bad - earlier.bad,
            self.answers - earlier.answers,
            self.latency_s - earlier.latency_s,
        )


class RoutingOptimizer(OodaLoop[Observation, Picture, Weigh]):
    """Observes what each instance's answers cost, and changes one weight at a time."""

    period_s = 1.0
    settle_s = 10.0
    min_gain = 0.1
    hold_off_s = 120.0

    def __init__(
        self, ledger: Ledger, balance: Balance, table: Callable[[], Table], *, lease_s: float = LEASE_S
    ) -> None:
        self._ledger = ledger
        self._balance = balance
        self._table = table
        self._lease_s = lease_s
        self._leases: dict[str, float] = {}
        self._totals: deque[dict[str, _Totals]] = deque(maxlen=WINDOW_CYCLES + 1)

    def observe(self) -> Observation | None:
        """The window's answers; None while there is no traffic, and nothing to be verified."""
        now_s = self._ledger.clock()
        self._release(now_s)
        accounts = self._ledger.accounts()
        self._totals.append({name: _Totals.of(account) for name, account in accounts.items()})
        earlier, services = self._totals[0], dict[str, dict[str, Seen]]()
        for service, targets in self._table().routes.items():
            for target in targets:
                account = accounts.get(target.instance)
                if account is None:
                    continue
                now = self._totals[-1][target.instance].since(earlier.get(target.instance, _Totals()))
                if min(now.good, now.bad) < 0 or not now.good + now.bad:
                    continue  # no traffic, or an account that was begun anew
                services.setdefault(service, {})[target.instance] = Seen(
                    good=now.good,
                    bad=now.bad,
                    latency_s=now.latency_s / now.answers if now.answers else None,
                    waiting=account.waiting,
                    ejected=account.standing.is_out(now_s),
                    weight=self._balance.weights.get(target.instance, 1.0),
                )
        return Observation(services=services) if services or self._settling is not None else None

    def orient(self, observation: Observation) -> Picture:
        """See orient."""
        return orient(observation)

    def decide(self, picture: Picture) -> Weigh | None:
        """See decide."""
        return decide(picture, self.held)

    def cost(self, picture: Picture, decision: Weigh) -> float | None:
        """Of the whole service: what one instance is spared must not cost the others more.

        None of a picture from before the change in which there was nothing wrong with the instance yet: less than
        that no weight could make it.
        """
        bargain = picture.services.get(decision.service)
        if bargain is None or (self._settling is None and _worse(bargain, decision.instance) < WORSE):
            return None
        return bargain.cost_s

    def act(self, decision: Weigh) -> None:
        """Set the weight, for a lease. The window begins anew: what was before it is no effect of it."""
        self._totals.clear()
        self._leases[decision.instance] = self._ledger.clock() + self._lease_s
        self._balance.weights = {**self._balance.weights, decision.instance: decision.weight}

    def undo(self, decision: Weigh) -> None:
        """As it was one step before."""
        self._totals.clear()
        weights = {**self._balance.weights, decision.instance: decision.weight * STEP}
        if weights[decision.instance] >= 1:
            del weights[decision.instance]
            self._leases.pop(decision.instance, None)
        self._balance.weights = weights

    def _release(self, now_s: float) -> None:
        over = {name for name, until_s in self._leases.items() if until_s <= now_s}
        if over:
            self._leases = {name: until_s for name, until_s in self._leases.items() if name not in over}
            self._balance.weights = {n: weight for n, weight in self._balance.weights.items() if n not in over}
