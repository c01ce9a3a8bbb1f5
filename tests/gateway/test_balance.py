"""The choice of an instance: cheap ones, by what came of earlier requests; nobody is starved or overrun."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.balance import TAU_S, Balance, Ledger, PeakEwma, cheaper
from services.gateway.errors import Refusal, UpstreamError
from services.gateway.routes import Target

A, B, C = (Target("s", name, "127.0.0.1", port, 1) for port, name in enumerate("abc", start=1))
ALL = (A, B, C)


class World:
    """A balance over a clock that one can hold."""

    def __init__(self, *, in_flight_max: int = 1000, seed: int = 1) -> None:
        self.now_s = 100.0
        self.ledger = Ledger(lambda: self.now_s)
        self.balance = Balance(self.ledger, in_flight_max=in_flight_max, draw=random.Random(seed).random)

    def ask(self, target: Target, latency_s: float, status: int = 200, targets: tuple[Target, ...] = ALL) -> None:
        """One request to the target, and its answer after latency_s."""
        with self.ledger.attempt(target, targets) as attempt:
            attempt.begins()
            attempt.sent()
            self.now_s += latency_s
            attempt.answered(status)

    def pick(self, tried: tuple[Target, ...] = ()) -> Target | None:
        """Of all three."""
        return self.balance.pick("s", ALL, tried)

    def shares(self, count: int = 300) -> Counter[str]:
        """How often each is picked, if nothing comes of it."""
        return Counter(target.instance for _ in range(count) if (target := self.pick()))


def test_peak_ewma() -> None:
    """Up at once, down slowly, and without news towards what the others have."""
    ewma = PeakEwma()
    assert ewma.expected_s(0.3, 0.0) == 0.3
    ewma.observe(0.01, 0.0)
    ewma.observe(0.2, 1.0)
    assert ewma.value_s == 0.2
    ewma.observe(0.01, 1.0 + TAU_S)
    assert ewma.value_s == pytest.approx(0.01 + 0.19 / 2.71828, rel=1e-3)
    assert ewma.expected_s(0.01, 1.0 + 20 * TAU_S) == pytest.approx(0.01, rel=1e-3)
    assert ewma.expected_s(0.5, 1.0 + TAU_S) == ewma.value_s  # silence makes nobody worse


def test_equals_share() -> None:
    """Instances of the same latency get the same."""
    world = World()
    for target in ALL:
        world.ask(target, 0.01)
    assert min(world.shares().values()) > 70


def test_a_slow_one_is_avoided_and_tried_again() -> None:
    """One slow answer is enough to go round it; when others are busy, or time has passed, it has its turn."""
    world = World()
    for target, latency_s in ((A, 0.001), (B, 0.001), (C, 0.2)):
        world.ask(target, latency_s)
    assert world.shares()["c"] == 0
    world.now_s += 8 * TAU_S
    with ExitStack() as busy:
        for target in (A, B):
            busy.enter_context(world.ledger.attempt(target, ALL)).begins()
        assert world.shares()["c"] > 100


def test_waiting_requests_count() -> None:
    """Of two equals the one with less to do gets it."""
    world = World()
    for target in ALL:
        world.ask(target, 0.01)
    with world.ledger.attempt(A, ALL) as waiting:
        waiting.begins()
        assert world.shares()["a"] == 0
    assert world.shares()["a"] > 70


def test_quick_failures_do_not_attract() -> None:
    """An instance that refuses at once looks no cheaper for it."""
    world = World()
    for target in ALL:
        world.ask(target, 0.01)
    before_s = world.ledger.of(C).ewma.value_s
    with pytest.raises(UpstreamError), world.ledger.attempt(C, ALL) as attempt:
        attempt.begins()
        attempt.sent()
        raise UpstreamError("closed", "gone")
    assert world.ledger.of(C).ewma.value_s == before_s


def test_an_outlier_is_out_and_a_new_incarnation_is_not() -> None:
    """Five failures in a row, and it gets nothing for a while, unless it begins anew or nobody else is left."""
    world = World()
    for target in (*ALL, *[C] * 5):
        world.ask(target, 0.01, 500 if target is C else 200)
    assert world.shares()["c"] == 0
    assert world.pick(tried=(A, B)) == C
    again = Target("s", "c", "127.0.0.1", 3, 2)
    assert not world.ledger.of(again).standing.is_out(world.now_s)
    numbers = world.ledger.numbers()
    assert numbers['gateway_upstream_ejections_total{upstream="c",reason="consecutive"}'] == 1
    assert numbers['gateway_upstream_failures_total{upstream="c",kind="status_5xx"}'] == 6


def test_answers_to_an_earlier_incarnation_are_not_held_against_the_next() -> None:
    """They come late, and are of another process."""
    world = World()
    again = Target("s", "c", "127.0.0.1", 3, 2)
    with ExitStack() as stack:
        late = [stack.enter_context(world.ledger.attempt(C, ALL)) for _ in range(9)]
        world.ask(again, 0.01, targets=(A, B, again))
        for attempt in late:
            attempt.answered(500)
    assert not world.ledger.of(again).standing.is_out(world.now_s)
    assert world.ledger.of(again).standing.bad == 0


def test_connections_closed_while_idle_are_nobody_s_failure() -> None:
    """They are counted, and not judged."""
    world = World()
    for _ in range(9):
        with pytest.raises(UpstreamError), world.ledger.attempt(C, ALL) as attempt:
            attempt.closed_idle = True
            raise UpstreamError("closed", "idle", unanswered=True)
    assert world.ledger.of(C).failures["closed"] == 9
    assert not world.ledger.of(C).standing.is_out(world.now_s)


def test_full_instances_get_no_more() -> None:
    """Each has its bound; when all are full the answer is 503 with Retry-After, at once."""
    world = World(in_flight_max=2)
    with ExitStack() as busy:
        for target in (A, A, B, B, C):
            busy.enter_context(world.ledger.attempt(target, ALL))
        assert set(world.shares()) == {"c"}
        busy.enter_context(world.ledger.attempt(C, ALL))
        with pytest.raises(Refusal) as refused:
            world.pick()
        assert (refused.value.detail.status, refused.value.detail.limit) == (503, "2 each")
        assert (b"retry-after", b"1") in refused.value.headers()
    assert world.pick() is not None


def test_weights() -> None:
    """Of equals, the one with a small weight gets nothing while another is free, and something when they are busy."""
    world = World()
    for target in ALL:
        world.ask(target, 0.01)
    world.balance.weights = {"c": 0.25}
    assert world.shares()["c"] == 0
    with ExitStack() as busy:
        for target in (A, B) * 5:
            busy.enter_context(world.ledger.attempt(target, ALL)).begins()
        assert world.shares()["c"] > 100


def test_websockets_go_where_fewer_are_open_and_weigh_on_no_request() -> None:
    world = World()
    for target in ALL:
        world.ask(target, 0.01)
    with ExitStack() as opened:
        for _ in range(9):
            chosen = world.balance.pick("s", ALL, (), tunnel=True)
            assert chosen is not None
            opened.enter_context(world.ledger.attempt(chosen, ALL, tunnel=True))
        assert max(world.ledger.of(target).tunnels for target in ALL) <= 4
        assert min(world.shares().values()) > 70


def test_not_adaptive_is_plain_round_robin() -> None:
    """Whatever is known of them."""
    world = World()
    for target in (*ALL, *[C] * 9):
        world.ask(target, 0.5 if target is B else 0.001, 500 if target is C else 200)
    world.balance.weights = {"a": 0.01}
    world.balance.is_adaptive = lambda: False
    assert world.shares(300) == {"a": 100, "b": 100, "c": 100}


@given(st.integers(1, 9), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_two_different_ones_are_drawn(count: int, one: float, other: float) -> None:
    """Any two numbers: the cheaper of two different targets."""
    targets = [Target("s", str(number), "h", 1) for number in range(count)]
    draws, asked = iter((one, other)), list[str]()

    def cost(target: Target) -> float:
        asked.append(target.instance)
        return float(target.instance)

    picked = cheaper(targets, cost, lambda: next(draws))
    assert len(set(asked)) == min(2, len(asked)) == (2 if count > 1 else 0)
    assert picked.instance == min(asked, key=float, default="0")


outcomes = st.lists(st.tuples(st.floats(0, 0.5), st.sampled_from([200, 200, 404, 500]), st.booleans()), max_size=80)


@given(outcomes, st.integers(0, 5))
def test_any_history(history: list[tuple[float, int, bool]], seed: int) -> None:
    """Somebody is always picked, never one that was tried, and nothing is left in flight or waiting."""
    world = World(seed=seed)
    for latency_s, status, fails in history:
        first = world.pick()
        assert first is not None
        if fails:
            with pytest.raises(UpstreamError), world.ledger.attempt(first, ALL) as attempt:
                attempt.begins()
                raise UpstreamError("closed", "x")
            second = world.pick(tried=(first,))
            assert second not in (None, first)
        else:
            world.ask(first, latency_s, status)
    assert all((account.in_flight, account.waiting) == (0, 0) for account in world.ledger.accounts().values())
