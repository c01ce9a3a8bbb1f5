"""How evidence becomes a verdict, on a clock that the test holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.isolated_monitoring.suspicion import PHI_CONVICTS, Answer, FairClock, Outcome, Suspicion
from services.isolated_monitoring.target import Condition

GOOD = Answer(outcome=Outcome.ANSWERED, took_s=0.002)


def bad(outcome: Outcome) -> Answer:
    """An answer that is evidence."""
    return Answer(outcome=outcome, took_s=1.0, text=outcome.value)


def run(clock: FairClock, seconds: float, pressure: float = 0.0) -> None:
    """Let time pass, in the ticks of a judge that is on time."""
    for _ in range(round(seconds / 0.2)):
        clock.tick(0.2, pressure)


@pytest.mark.parametrize(
    ("outcome", "lasts_s", "verdict"),
    [
        (Outcome.REFUSED, 0.2, Condition.SUSPECT),
        (Outcome.REFUSED, 0.4, Condition.DOWN),
        (Outcome.WRONG, 0.8, Condition.SUSPECT),
        (Outcome.WRONG, 1.2, Condition.DOWN),
        (Outcome.SILENT, 0.8, Condition.SUSPECT),
        (Outcome.SILENT, 2.0, Condition.DOWN),
    ],
)
def test_two_failures_that_last(outcome: Outcome, lasts_s: float, verdict: Condition) -> None:
    """One failure convicts nobody; two do, if they lie far enough apart for their kind."""
    clock, suspicion = FairClock(), Suspicion()
    suspicion.hear(GOOD, clock.now, clock.now)
    assert suspicion.judge(clock.now) is Condition.UP
    sent = clock.now
    suspicion.hear(bad(outcome), sent, clock.now)
    run(clock, 60)
    assert suspicion.judge(clock.now) is Condition.SUSPECT
    suspicion.forget()

    sent = clock.now
    suspicion.hear(bad(outcome), sent, clock.now)
    run(clock, lasts_s)
    suspicion.hear(bad(outcome), sent, clock.now)
    assert suspicion.judge(clock.now) is verdict
    suspicion.hear(GOOD, clock.now, clock.now)
    assert suspicion.judge(clock.now) is Condition.UP


def test_a_probe_that_is_still_out() -> None:
    """After one that was silent, it counts as soon as it should have been answered long ago."""
    clock, suspicion = FairClock(), Suspicion()
    suspicion.hear(bad(Outcome.SILENT), clock.now, clock.now)
    run(clock, 2)
    verdicts = [suspicion.judge(clock.now, pending_s=pending_s) for pending_s in (0.0, 0.3, 0.5)]
    assert verdicts == [Condition.SUSPECT, Condition.SUSPECT, Condition.DOWN]


def test_patience() -> None:
    """A target that is given more time is convicted later."""
    clock, suspicion = FairClock(), Suspicion()
    for _ in range(2):
        suspicion.hear(bad(Outcome.REFUSED), clock.now, clock.now)
    run(clock, 5)
    assert suspicion.judge(clock.now, patience_s=12.0) is Condition.SUSPECT
    run(clock, 8)
    assert suspicion.judge(clock.now, patience_s=12.0) is Condition.DOWN


def test_a_late_judge_accuses_nobody() -> None:
    """Frozen for an hour between two probes, it charges no more than one tick."""
    clock, suspicion = FairClock(), Suspicion()
    sent = clock.now
    suspicion.hear(bad(Outcome.SILENT), sent, clock.now)
    clock.tick(3600.0, 0.0)
    suspicion.hear(bad(Outcome.SILENT), sent, clock.now)
    assert suspicion.judge(clock.now) is Condition.SUSPECT
    assert clock.late_s == pytest.approx(3599.7)


def test_a_host_short_of_cpu_is_waited_for() -> None:
    """Silence needs five times as long under full pressure; a refused connection does not."""
    for outcome, verdict in ((Outcome.SILENT, Condition.SUSPECT), (Outcome.REFUSED, Condition.DOWN)):
        clock, suspicion = FairClock(), Suspicion()
        sent = clock.now
        suspicion.hear(bad(outcome), sent, clock.now)
        run(clock, 4, pressure=1.0)
        suspicion.hear(bad(outcome), sent, clock.now)
        assert suspicion.judge(clock.now) is verdict
        run(clock, 8, pressure=1.0)
        assert suspicion.judge(clock.now) is Condition.DOWN


def test_the_starved_are_spared() -> None:
    """Who waited for a CPU for most of its silence is given a new window; who is silent without that, not."""
    clock, suspicion = FairClock(), Suspicion()
    sent = clock.now
    suspicion.hear(bad(Outcome.SILENT), sent, clock.now, waited_s=10.0)
    run(clock, 4)
    suspicion.hear(bad(Outcome.SILENT), sent, clock.now)
    assert suspicion.judge(clock.now, waited_s=13.5) is Condition.SUSPECT
    assert suspicion.spared == 1
    run(clock, 4)
    assert suspicion.judge(clock.now, waited_s=13.6) is Condition.DOWN


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 0.5), max_size=100), st.floats(0.0, 1000.0), st.floats(0.0, 1000.0))
def test_phi_grows(took_s: list[float], first_s: float, more_s: float) -> None:
    """The longer the silence the more it says, whatever came before; and it is never below zero."""
    clock, suspicion = FairClock(), Suspicion()
    for each in took_s:
        suspicion.hear(Answer(outcome=Outcome.ANSWERED, took_s=each), clock.now, clock.now)
    suspicion.hear(bad(Outcome.SILENT), clock.now, clock.now)
    early = clock.now._replace(fair_s=first_s)
    late = clock.now._replace(fair_s=first_s + more_s)
    assert 0 <= suspicion.phi(early) <= suspicion.phi(late) + 1e-9
    assert suspicion.phi(clock.now._replace(fair_s=100.0)) > PHI_CONVICTS
