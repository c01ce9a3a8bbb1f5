"""The routing optimizer: what it sees, what it decides, and when it does nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import OodaMode
from services.gateway.balance import Balance, Ledger
from services.gateway.ooda import (
    LEASE_S,
    STEP,
    VOLUME_MIN,
    WEIGHT_MIN,
    Observation,
    RoutingOptimizer,
    Seen,
    Weigh,
    decide,
    orient,
)
from services.gateway.routes import Table, Target

NAMES = ("a", "b", "c")
TARGETS = tuple(Target("s", name, "h", 1) for name in NAMES)


def seen(good: int = 100, bad: int = 0, latency_s: float = 0.01, weight: float = 1.0) -> Seen:
    """One instance's window."""
    return Seen(good=good, bad=bad, latency_s=latency_s, weight=weight)


@pytest.mark.parametrize(
    ("instances", "worst", "weight"),
    [
        ({"a": seen(), "b": seen(), "c": seen()}, None, 0),
        ({"a": seen(), "b": seen(), "c": seen(92, 8)}, "c", 1 / STEP),
        ({"a": seen(), "b": seen(), "c": seen(98, 2)}, None, 0),
        ({"a": seen(), "b": seen(), "c": seen(92, 8, latency_s=0.0001)}, "c", 1 / STEP),
        ({"a": seen(), "b": seen(), "c": seen(latency_s=0.025)}, "c", 1 / STEP),
        ({"a": seen(95, 5), "b": seen(95, 5), "c": seen(95, 5)}, None, 0),
        ({"a": seen(), "b": seen(), "c": seen(VOLUME_MIN // 2, VOLUME_MIN // 2 - 1)}, None, 0),
        ({"a": seen(), "b": seen(latency_s=0.05), "c": seen(latency_s=0.05)}, None, 0),
        ({"a": seen(latency_s=0.0001), "b": seen(latency_s=0.0009)}, None, 0),
        ({"a": seen()}, None, 0),
        ({"a": seen(), "b": seen(50, 50)}, "b", 1 / STEP),
        ({"a": seen(), "b": seen(50, 50), "c": seen(weight=0.25)}, None, 0),
        ({"a": seen(), "b": seen(), "c": seen(50, 50, weight=0.25)}, "c", 0.25 / STEP),
        ({"a": seen(), "b": seen(), "c": seen(50, 50, weight=WEIGHT_MIN)}, None, 0),
    ],
)
def test_decisions(instances: dict[str, Seen], worst: str | None, weight: float) -> None:
    """Less for one that is a worse bargain than its peers, half of them at most; nothing where all are alike."""
    decision = decide(orient(Observation(services={"s": instances})), frozenset())
    assert decision == (Weigh(service="s", instance=worst, weight=weight) if worst else None)
    if decision:
        assert decide(orient(Observation(services={"s": instances})), {decision}) is None


@given(
    st.lists(
        st.builds(
            seen, st.integers(0, 500), st.integers(0, 500), st.floats(0, 2), st.sampled_from([1.0, 0.25, 1 / 16])
        ),
        max_size=6,
    )
)
def test_any_observation(windows: list[Seen]) -> None:
    """A weight in its bounds, for an instance that was seen, or nothing."""
    instances = {str(number): window for number, window in enumerate(windows)}
    decision = decide(orient(Observation(services={"s": instances})), frozenset())
    if decision is not None:
        assert WEIGHT_MIN <= decision.weight < 1
        assert decision.weight == instances[decision.instance].weight / STEP


class World:
    """The loop over a balance, with requests that are answered as ``behaves`` says; all in simulated time."""

    def __init__(self, error_shares: dict[str, float], *, mode: OodaMode = OodaMode.ON) -> None:
        self.now_s = 100.0
        self._chance = random.Random(9)
        self.ledger = Ledger(lambda: self.now_s)
        self.balance = Balance(self.ledger, in_flight_max=1000, draw=self._chance.random)
        self.balance.is_adaptive = lambda: self.loop.mode is OodaMode.ON
        self.error_shares = error_shares
        self.loop = RoutingOptimizer(self.ledger, self.balance, lambda: Table(routes={"s": TARGETS}))
        self.loop.mode = mode
        self.errors: list[int] = []
        """By second."""

    def run(self, seconds: int, per_s: int = 200) -> None:
        """So many requests a second, 4 ms each, and a step of the loop every 100 ms."""
        for _ in range(seconds):
            self.errors.append(0)
            for number in range(per_s):
                target = self.balance.pick("s", TARGETS, ())
                assert target is not None
                status = 500 if self._chance.random() < self.error_shares.get(target.instance, 0) else 200
                with self.ledger.attempt(target, TARGETS) as attempt:
                    attempt.begins()
                    attempt.sent()
                    self.now_s += 0.004
                    attempt.answered(status)
                self.now_s += 1 / per_s - 0.004
                self.errors[-1] += status == 500
                if number % 20 == 0 and (work := self.loop.step(self.now_s)):
                    work.run()
                    self.loop.finished(self.now_s, None)


def test_an_instance_that_fails_a_little_gets_less_and_that_is_kept() -> None:
    """6 % of errors are too few to be left out for; its service has fewer of them with it weighed down."""
    world = World({"c": 0.06})
    world.run(30)
    assert world.loop.kept == 1
    assert world.balance.weights == {"c": 1 / STEP}
    assert sum(world.errors[-10:]) < sum(world.errors[:5])
    world.error_shares = {}
    world.run(int(LEASE_S))
    assert world.balance.weights == {}, "the lease is over"


@pytest.mark.parametrize("before_per_s", [200, 6])
def test_what_falls_ill_after_a_calm_time_is_judged_by_its_illness(before_per_s: int) -> None:
    """What its service cost before anything was seen to be wrong is nothing that less for it could lower."""
    world = World({})
    world.run(20, before_per_s)
    world.error_shares = {"c": 0.09}
    world.run(20)
    assert (world.loop.kept, world.loop.undone) == (1, 0), [cycle.effect for cycle in world.loop.actions]
    assert world.balance.weights == {"c": 1 / STEP}


def test_off_and_shadow_change_nothing() -> None:
    """Off sees nothing; shadow says what it would do. Requests go round robin in both."""
    for mode in (OodaMode.OFF, OodaMode.SHADOW):
        world = World({"c": 0.06}, mode=mode)
        world.run(20)
        assert world.balance.weights == {}
        counts = {name: account.requests for name, account in world.ledger.accounts().items()}
        assert max(counts.values()) - min(counts.values()) <= 1
        decisions = {cycle.decision for cycle in world.loop.cycles if cycle.decision}
        assert bool(decisions) is (mode is OodaMode.SHADOW)


@pytest.mark.parametrize("share", [0.0, 0.06, 0.3])
def test_where_all_are_alike_it_does_nothing(share: float) -> None:
    """No errors, or the same errors everywhere: no weight, nobody left out for long, and no action in two minutes."""
    world = World(dict.fromkeys(NAMES, share))
    world.run(120)
    assert not world.loop.actions
    assert world.balance.weights == {}


def test_what_did_not_help_is_undone() -> None:
    """If the errors move to the peers the weight is taken back, and not given again at once."""
    world = World({"c": 0.06})
    while not world.balance.weights:
        world.run(1)
    world.error_shares = {"a": 0.06, "b": 0.06}
    while not world.loop.undone:
        world.run(1)
    assert world.balance.weights == {}
