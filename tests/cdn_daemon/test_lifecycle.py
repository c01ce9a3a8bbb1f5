"""The lifecycle is the table in its module, and any history through it ends as the contract says."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import LifecyclePhase as P
from cdn_daemon.lifecycle import TRANSITIONS, ExitCode, Instruction, LifecycleManager
from cdn_daemon.lifecycle import LifecycleEvent as E

DRAIN_S = 10.0


def test_the_table_is_whole() -> None:
    """Every phase × event pair is written down."""
    assert set(TRANSITIONS) == set(product(P, E))


@pytest.mark.parametrize(
    ("events", "phase", "exit_code"),
    [
        ([], P.STARTING, None),
        ([E.LISTENING], P.SERVING, None),
        ([E.LISTENING, E.RESTART], P.DRAINING, ExitCode.RESTART),
        ([E.LISTENING, E.RESTART, E.DRAINED], P.STOPPED, ExitCode.RESTART),
        ([E.LISTENING, E.SHUTDOWN, E.DRAINED], P.STOPPED, ExitCode.STAY_DOWN),
        ([E.LISTENING, E.RESTART, E.SHUTDOWN, E.DRAINED], P.STOPPED, ExitCode.STAY_DOWN),
        ([E.LISTENING, E.SHUTDOWN, E.RESTART, E.DRAINED], P.STOPPED, ExitCode.STAY_DOWN),
        ([E.LISTENING, E.SHUTDOWN, E.HURRY], P.STOPPED, ExitCode.STAY_DOWN),
        ([E.LISTENING, E.DRAINED], P.STOPPED, ExitCode.BUG),
        ([E.FAILED], P.STOPPED, ExitCode.BUG),
        ([E.MISCONFIGURED], P.STOPPED, ExitCode.CONFIGURATION),
        ([E.SHUTDOWN, E.LISTENING], P.DRAINING, ExitCode.STAY_DOWN),
        ([E.LISTENING, E.RESTART, E.EXPIRED], P.STOPPED, ExitCode.RESTART),
    ],
)
def test_histories(events: list[E], phase: P, exit_code: ExitCode | None) -> None:
    """Where a sequence of events leads, and with which exit code."""
    lifecycle = LifecycleManager(drain_s=DRAIN_S)
    for event in events:
        lifecycle.on(event, 0.0)
    assert (lifecycle.phase, lifecycle.exit_code) == (phase, exit_code)


def test_a_drain_has_a_deadline() -> None:
    """At drain_s it ends, and not before; time that the daemon was away does not count."""
    lifecycle = LifecycleManager(drain_s=DRAIN_S)
    lifecycle.on(E.LISTENING, 0.0)
    assert lifecycle.on(E.SHUTDOWN, 100.0) is Instruction.DRAIN
    assert lifecycle.tick(109.9) is None
    lifecycle.restart_windows(5.0)
    assert lifecycle.tick(114.9) is None
    assert lifecycle.tick(115.0) is Instruction.END
    assert lifecycle.phase is P.STOPPED


@given(st.lists(st.sampled_from(list(E)), max_size=30))
def test_any_history(events: list[E]) -> None:
    """Phases only go forward, draining is begun once, the end is told once, and whoever stopped has a code."""
    lifecycle = LifecycleManager(drain_s=DRAIN_S)
    order = list(P)
    told: list[Instruction] = []
    for now_s, event in enumerate(events):
        before = lifecycle.phase
        instruction = lifecycle.on(event, float(now_s))
        assert order.index(lifecycle.phase) >= order.index(before)
        if instruction is not None:
            told.append(instruction)
    assert all(told.count(instruction) <= 1 for instruction in Instruction)
    assert (lifecycle.phase is P.STOPPED) == (Instruction.END in told)
    assert (lifecycle.phase in (P.DRAINING, P.STOPPED)) == (lifecycle.exit_code is not None)
    asked = {E.SHUTDOWN, E.HURRY} & set(events)
    if not asked:
        assert lifecycle.exit_code is not ExitCode.STAY_DOWN
