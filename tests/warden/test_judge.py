"""The judge: a table of what it finds, and its promises under any observations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cdn_daemon.warden.judge import (
    Evidence,
    Finding,
    Observations,
    Sample,
    ThreadSample,
    Watched,
    compare,
    excuse,
    judge,
)

IDLE = Evidence(span_s=0.4, cpu_s=0.0, waited_s=0.0, starving=False, blocked=False, traced=False, state="S")
BURNING = replace(IDLE, cpu_s=0.4, state="R")
STOPPED = replace(IDLE, state="T")
NOW_S = 1000.0


def silent(seconds: float, evidence: Evidence | None = None, **more: object) -> Watched:
    return Watched(name="x", limit_s=0.6, heard_s=NOW_S - seconds, evidence=evidence, **more)  # type: ignore[arg-type]


def stopped(seconds: float, evidence: Evidence | None) -> Watched:
    return silent(seconds, evidence, stopped_since_s=NOW_S - seconds)


@pytest.mark.parametrize(
    ("watched", "finding"),
    [
        (silent(0.1), None),
        (silent(0.3), Finding.SUSPECT),
        (silent(0.3, IDLE), None),
        (silent(0.7), Finding.SUSPECT),  # no evidence, no verdict
        (silent(0.7, IDLE), Finding.HUNG),
        (silent(0.7, BURNING), Finding.HUNG),
        (silent(0.7, replace(IDLE, waited_s=0.3)), Finding.SPARED),
        (silent(9.0, replace(IDLE, span_s=8.7, waited_s=8.6)), Finding.SPARED),
        (silent(9.0, replace(IDLE, span_s=8.7, waited_s=5.0)), Finding.HUNG),
        (silent(9.0, replace(IDLE, starving=True)), Finding.SPARED),
        (silent(9.0, replace(IDLE, traced=True)), Finding.SPARED),
        (silent(9.0, replace(IDLE, state="t"), traced_s=NOW_S - 0.01), Finding.SPARED),  # it is about to beat
        (silent(9.0, IDLE, traced_s=NOW_S - 0.7), Finding.HUNG),
        (silent(0.7, replace(IDLE, blocked=True)), Finding.SPARED),
        (silent(9.0, replace(IDLE, blocked=True)), Finding.HUNG),
        (silent(0.7, replace(IDLE, waited_s=None)), Finding.SPARED),
        (silent(9.0, replace(IDLE, waited_s=None)), Finding.HUNG),
        (silent(9.0, IDLE, extended_until_s=NOW_S + 1), None),
        (silent(9.0, IDLE, extended_until_s=NOW_S - 1), Finding.HUNG),
        (silent(0.0, trigger=""), Finding.HUNG),
        (silent(0.0, trigger="loop is stuck"), Finding.HUNG),
        (stopped(0.05, None), Finding.SUSPECT),
        (stopped(0.1, STOPPED), None),
        (stopped(0.25, STOPPED), Finding.STOPPED),
        (stopped(0.25, replace(STOPPED, traced=True)), None),
        (stopped(0.25, replace(STOPPED, state="t", traced=True)), None),
        (stopped(0.25, IDLE), None),  # it goes on again: only its silence counts
    ],
)
def test_findings(watched: Watched, finding: Finding | None) -> None:
    verdicts = judge(NOW_S, Observations((watched,)))
    assert [verdict.finding for verdict in verdicts] == ([finding] if finding else [])


def test_the_verdict_tells_its_evidence() -> None:
    (verdict,) = judge(NOW_S, Observations((silent(0.7, BURNING),)))
    assert verdict.text == (
        "silent for 0.70 s (limit 0.6); in the last 0.40 s it used 0.40 s of CPU and waited 0.00 s for one; "
        "state R; 1 of 1 silent"
    )


def test_many_silent_at_once_are_the_hosts_fault_for_a_while() -> None:
    def fleet(silence_s: float, hung: int, well: int) -> Observations:
        bad = [replace(silent(silence_s, IDLE), name=f"bad{number}") for number in range(hung)]
        good = [replace(silent(0.0), name=f"good{number}") for number in range(well)]
        return Observations((*bad, *good))

    def kills(observations: Observations) -> int:
        return sum(verdict.finding is Finding.HUNG for verdict in judge(NOW_S, observations))

    assert kills(fleet(1.0, hung=3, well=3)) == 0
    assert kills(fleet(1.0, hung=2, well=2)) == 2
    assert kills(fleet(1.0, hung=3, well=4)) == 3
    assert kills(fleet(31.0, hung=3, well=3)) == 3


def test_who_waits_now_is_starving_though_the_kernel_has_not_added_it_up() -> None:
    before = Sample(0.0, "S", False, {1: ThreadSample("S", 1.0, 1.0), 2: ThreadSample("S", 5.0, 0.0)})
    after = Sample(1.0, "S", False, {1: ThreadSample("R", 1.01, 1.2), 2: ThreadSample("S", 5.5, 0.1)})
    evidence = compare(before, after)
    assert evidence.starving
    assert evidence.cpu_s == pytest.approx(0.51)
    assert evidence.waited_s == pytest.approx(0.2)  # the longest of any one thread, not the sum
    assert evidence.fair_s == pytest.approx(0.8)


def test_what_the_judge_did_not_see_is_not_charged() -> None:
    assert excuse(10.0, 0.4, now_s=11.0) == 10.4
    assert excuse(10.9, 0.4, now_s=11.0) == 11.0
    assert excuse(10.0, 8.0, now_s=20.0) == 20.0


EVIDENCE = st.builds(
    Evidence,
    span_s=st.floats(0.0, 100.0),
    cpu_s=st.floats(0.0, 100.0),
    waited_s=st.one_of(st.none(), st.floats(0.0, 100.0)),
    starving=st.booleans(),
    blocked=st.booleans(),
    traced=st.booleans(),
    state=st.sampled_from("RSDTtZ"),
)
WATCHED = st.builds(
    Watched,
    name=st.sampled_from("abcdefgh"),
    limit_s=st.floats(0.1, 60.0),
    heard_s=st.floats(NOW_S - 200.0, NOW_S),
    extended_until_s=st.one_of(st.just(0.0), st.floats(NOW_S - 10.0, NOW_S + 10.0)),
    stopped_since_s=st.one_of(st.none(), st.floats(NOW_S - 10.0, NOW_S)),
    evidence=st.one_of(st.none(), EVIDENCE),
    traced_s=st.floats(NOW_S - 10.0, NOW_S),
    held=st.booleans(),
)


@given(st.lists(WATCHED, max_size=8, unique_by=lambda each: each.name), st.floats(0.0, 10.0))
def test_nobody_is_convicted_without_evidence(watched: list[Watched], late_s: float) -> None:
    """Each conviction has all that it needs; a judge who is late convicts nobody, and nobody one in maintenance."""
    by_name = {each.name: each for each in watched}
    verdicts = judge(NOW_S, Observations(tuple(watched), late_s))
    if late_s > 0.25:
        assert verdicts == []
    for verdict in verdicts:
        each = by_name[verdict.name]
        assert (verdict.finding is Finding.HELD) <= each.held
        if each.held:
            assert verdict.finding not in (Finding.STOPPED, Finding.HUNG)
        if verdict.finding is Finding.STOPPED:
            assert each.stopped_since_s is not None
            assert each.evidence is not None
            assert each.evidence.state == "T"
            assert not each.evidence.traced
        elif verdict.finding is Finding.HUNG:
            assert each.evidence is not None
            assert NOW_S - each.heard_s >= each.limit_s
            assert NOW_S - each.extended_until_s >= each.limit_s
            assert NOW_S - each.traced_s >= each.limit_s
            assert not each.evidence.traced
            assert not each.evidence.starving
            assert each.evidence.fair_s >= 0.6 * each.limit_s - 0.1 - 1e-9


@given(st.lists(st.tuples(st.floats(0.0, 0.3), st.booleans()), max_size=60))
def test_who_beats_whenever_it_could_is_never_convicted(ticks: list[tuple[float, bool]]) -> None:
    """A process that beats whenever it gets a CPU is never hung, however starved it is and however late we are."""
    now_s, heard_s, waited_s, base_s = 0.0, 0.0, 0.0, None
    for late_s, got_cpu in ticks:
        now_s += 0.1 + late_s
        heard_s = excuse(heard_s, late_s, now_s) if late_s > 0.25 else heard_s
        if got_cpu:
            heard_s, base_s = now_s, None
        elif base_s is not None:
            waited_s += 0.1 + late_s
        evidence = None
        if base_s is not None:
            evidence = replace(IDLE, span_s=now_s - base_s, waited_s=waited_s)
        verdicts = judge(now_s, Observations((Watched("x", 0.6, heard_s, evidence=evidence),), late_s))
        for verdict in verdicts:
            assert verdict.finding in (Finding.SUSPECT, Finding.SPARED)
            if verdict.finding is Finding.SUSPECT and base_s is None:
                base_s, waited_s = now_s, 0.0
