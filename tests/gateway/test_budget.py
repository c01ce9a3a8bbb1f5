"""What retries and clients may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.budget import MEMORY_S, RETRIES_PER_S, RETRY_SHARE, Rates, RetryBudget

SAVED = RETRIES_PER_S * MEMORY_S


def test_retries_of_a_service_that_always_fails() -> None:
    """1,000 requests a second that all want a retry: a fifth of them get one, and a few."""
    budget, granted = RetryBudget(), 0
    for number in range(60_000):
        budget.deposit(number / 1000)
        granted += budget.withdraw(number / 1000)
    assert RETRY_SHARE * 60_000 < granted <= RETRY_SHARE * 60_000 + RETRIES_PER_S * 60 + SAVED


def test_a_quiet_service_has_retries() -> None:
    """One request a minute may be tried again each time."""
    budget = RetryBudget()
    for minute in range(10):
        budget.deposit(minute * 60.0)
        assert budget.withdraw(minute * 60.0)


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=300))
def test_any_history_of_retries(history: list[tuple[float, bool]]) -> None:
    """Never more than the share of all requests, and the few per second since the beginning, and what is saved."""
    budget, now_s, requests, retries = RetryBudget(), 0.0, 0, 0
    for wait_s, asks in history:
        now_s += wait_s
        if asks:
            retries += budget.withdraw(now_s)
        else:
            requests += 1
            budget.deposit(now_s)
        assert retries <= RETRY_SHARE * requests + RETRIES_PER_S * now_s + SAVED + 1e-6


def test_a_client_s_rate() -> None:
    """Its burst at once, then per_s; how long to wait is what it takes; others are not concerned."""
    rates = Rates(10, 3)
    assert [rates.wait_s("a", 0.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert rates.wait_s("b", 0.0) == 0
    assert rates.wait_s("a", 0.05) == pytest.approx(0.05)
    assert rates.wait_s("a", 0.1001) == 0
    assert [rates.wait_s("a", 100.0) > 0 for _ in range(4)] == [False, False, False, True]


def test_clients_are_bounded() -> None:
    """The one not seen for the longest is forgotten."""
    rates = Rates(1, 1, clients_max=2)
    for client in ("a", "b", "a", "c"):
        rates.wait_s(client, 0.0)
    assert len(rates) == 2
    assert rates.wait_s("a", 0.0) > 0
    assert rates.wait_s("b", 0.0) == 0


@given(st.lists(st.floats(0.0, 1.0), max_size=200), st.floats(0.5, 50), st.integers(1, 20))
def test_any_history_of_a_client(waits_s: list[float], per_s: float, burst: int) -> None:
    """Never more than its burst and its rate; who waits as told is let in."""
    rates, now_s, granted = Rates(per_s, burst), 0.0, 0
    for wait_s in waits_s:
        now_s += wait_s
        left_s = rates.wait_s("a", now_s)
        granted += not left_s
        assert granted <= burst + per_s * now_s + 1e-6
    left_s = rates.wait_s("a", now_s)
    assert rates.wait_s("a", now_s + left_s + 1e-6) == 0 or not left_s
