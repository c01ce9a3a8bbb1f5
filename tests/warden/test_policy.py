"""The restart policy: its table, and its promises under any history of ends."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_daemon.warden.policy import (
    LONGEST_HOLD_S,
    Ending,
    History,
    Hold,
    Limits,
    Quarantine,
    Restart,
    StayDown,
    describe,
    ended,
    hold,
    started,
)
from cdn_daemon.warden.program import Program
from cdn_daemon.warden.settings import Settings

LIMITS = Limits()
CRASH = Ending(wait_status=3 << 8)
ASKED = Ending(wait_status=75 << 8, ready_for_s=1.0)


def after(failures: int, starts: int) -> History:
    return History(starts_s=tuple(100.0 + number for number in range(starts)), failures=failures)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Ending(3 << 8), "exit 3"),
        (Ending(0), "exit 0"),
        (Ending(signal.SIGKILL), "killed by SIGKILL"),
        (Ending(signal.SIGSEGV | 0x80), "killed by SIGSEGV (core dumped)"),
        (Ending(40), "killed by signal 40"),
        (Ending(75 << 8), "asked to be restarted (exit 75)"),
        (Ending(78 << 8, cause="no such port"), "configuration error (78): no such port"),
        (Ending(signal.SIGABRT, cause="silent for 0.7 s"), "killed by SIGABRT: silent for 0.7 s"),
        (Ending(None, cause="no such file"), "cannot spawn: no such file"),
    ],
)
def test_an_end_is_told_in_words(ending: Ending, words: str) -> None:
    assert describe(ending) == words


@pytest.mark.parametrize(
    ("failures_before", "least_s", "most_s"),
    [(0, 0.0, 0.0), (1, 0.4, 0.6), (2, 0.8, 1.2), (3, 1.6, 2.4)],
)
def test_the_first_restart_is_at_once_and_each_later_one_waits_twice_as_long(
    failures_before: int, least_s: float, most_s: float
) -> None:
    for luck in (0.0, 0.5, 0.999):
        _, decision = ended(after(failures_before, failures_before + 1), CRASH, 105.0, LIMITS, luck)
        assert isinstance(decision, Restart)
        assert least_s <= decision.after_s <= most_s


def test_five_starts_in_a_minute_are_enough() -> None:
    _, decision = ended(after(4, 5), CRASH, 105.0, LIMITS, 0.5)
    assert decision == Quarantine("quarantined: 5 starts in 60 s, last: exit 3")


def test_what_was_healthy_for_a_minute_is_forgiven() -> None:
    healthy = Ending(3 << 8, ready_for_s=60.0)
    history, decision = ended(after(4, 5), healthy, 105.0, LIMITS, 0.5)
    assert decision == Restart(0.0, "exit 3")
    assert history == History(failures=1)


def test_an_expected_end_stays_down_and_forgets() -> None:
    assert ended(after(4, 5), Ending(0, expected=True), 105.0, LIMITS, 0.5) == (History(), StayDown("exit 0"))


def test_75_is_at_once_and_no_failure_but_has_the_same_budget() -> None:
    history, decision = ended(after(2, 3), ASKED, 105.0, LIMITS, 0.5)
    assert isinstance(decision, Restart)
    assert decision.after_s == 0.0
    assert history.failures == 2
    _, held_back = ended(after(2, 5), ASKED, 105.0, LIMITS, 0.5)
    assert isinstance(held_back, Restart)
    assert held_back.after_s == 0.5
    _, held_back = ended(after(2, 15), ASKED, 115.0, LIMITS, 0.5)
    assert isinstance(held_back, Restart)
    assert held_back.after_s == 5.0
    never_ready = Ending(75 << 8)
    assert isinstance(ended(after(2, 5), never_ready, 105.0, LIMITS, 0.5)[1], Quarantine)


def test_what_an_operator_has_ordered_is_not_held_against_it() -> None:
    for ready_for_s in (None, 1.0):
        ordered = Ending(wait_status=75 << 8, ready_for_s=ready_for_s, ordered=True)
        history, decision = ended(after(3, 5), ordered, 105.0, LIMITS, 0.5)
        assert decision == Restart(0.0, "asked to be restarted (exit 75)")
        assert history == History()
    crashed = Ending(wait_status=3 << 8, ready_for_s=1.0, ordered=True)  # told to restart, but it crashed on the way
    assert isinstance(ended(after(4, 5), crashed, 105.0, LIMITS, 0.5)[1], Quarantine)


ENDS = st.builds(
    Ending,
    wait_status=st.one_of(st.none(), st.sampled_from([0, 3 << 8, 75 << 8, 78 << 8, 9, 11, 6 | 0x80])),
    ready_for_s=st.one_of(st.none(), st.floats(0.0, 200.0)),
    expected=st.booleans(),
)


@given(st.lists(st.tuples(ENDS, st.floats(0.0, 90.0), st.floats(0.0, 0.999)), max_size=40), st.integers(1, 8))
def test_no_history_starts_more_often_than_the_budget_without_a_healthy_minute(
    ends: list[tuple[Ending, float, float]], budget: int
) -> None:
    """Whatever happens, starts since the last forgiveness never exceed the budget in any window.

    What serves and asks to be restarted goes on, 5 s apart at last: so much more often, and no more.
    """
    limits = Limits(budget=budget)
    now_s, history = 0.0, History()
    starts_s: list[float] = []
    allowed = budget
    for ending, lived_s, luck in ends:
        history = started(history, now_s, limits)
        starts_s = [*(start_s for start_s in starts_s if now_s - start_s < limits.window_s), now_s]
        assert len(starts_s) <= allowed
        now_s += max(lived_s, ending.ready_for_s or 0.0)
        history, decision = ended(history, ending, now_s, limits, luck)
        if ending.expected or (ending.ready_for_s or 0.0) >= limits.healthy_s:
            starts_s = []
        has_asked = ending.wait_status == 75 << 8 and ending.ready_for_s is not None
        allowed = budget + 20 if has_asked or len(starts_s) > budget else budget
        match decision:
            case Restart(after_s, reason):
                assert reason
                assert 0.0 <= after_s <= max(limits.window_s, limits.longest_wait_s * (1 + limits.jitter))
                now_s += after_s
            case Quarantine(reason):
                assert "quarantined" in reason
                history, starts_s = History(), []  # an operator starts it again
            case StayDown(reason):
                assert ending.expected
                assert reason


# -- holds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("for_s", "held"),
    [
        (0.0, None),
        (0.5, Hold("held by atlas: a storm", 100.5)),
        (60.0, Hold("held by atlas: a storm", 160.0)),
        (61.0, Hold("held by atlas: a storm", 160.0)),
        (1e300, Hold("held by atlas: a storm", 160.0)),
    ],
)
def test_a_hold_lasts_a_minute_at_most(for_s: float, held: Hold | None) -> None:
    assert hold("atlas", for_s, "a storm", 100.0) == held


@pytest.mark.parametrize("for_s", [-1.0, float("nan"), float("inf")])
def test_a_hold_for_no_time_that_there_is_is_refused(for_s: float) -> None:
    with pytest.raises(ValueError, match="cannot hold restarts for "):
        hold("atlas", for_s, "a storm", 100.0)


@given(st.none() | st.floats(0.0, 1000.0), st.none() | st.floats(0.0, 200.0), st.floats(0.0, 1000.0))
def test_a_hold_delays_a_start_and_makes_none(due_s: float | None, for_s: float | None, now_s: float) -> None:
    """What is to be started starts when it is due and no longer held; what is not to be started never does."""
    program = Program(name="x", settings=Settings(), log=None, due_s=due_s)
    program.hold = None if for_s is None else hold("atlas", for_s, "a storm", now_s)
    if due_s is None:
        assert program.next_start_s is None
    else:
        assert program.next_start_s is not None
        assert due_s <= program.next_start_s <= max(due_s, now_s + LONGEST_HOLD_S)
