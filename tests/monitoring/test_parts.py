"""The pure parts: patterns, packed samples, alerts, and the loop on what it is for and on what it is not for."""

from __future__ import annotations

import asyncio
import math
import re
import struct
import threading
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.monitoring import drawn
from benchmarks.monitoring import loop as both_arms
from bus.messages import AlertState
from services.monitoring import host
from services.monitoring.exposition import NAME, STALE, is_stale, parse_series, read, written
from services.monitoring.limits import Limits
from services.monitoring.ooda import IntervalLoop, Picture
from services.monitoring.pattern import Pattern, PatternError
from services.monitoring.rules import Rule, step
from services.monitoring.samples import Columns, packed, unpacked
from services.monitoring.schedule import FOR_LOOKS, LOOKS, Demand, Schedule, shared, unseen_s
from services.monitoring.scraper import HOST, Scraper, Spec
from services.monitoring.store import Store

WORDS = st.sampled_from(["a", "b", "ab", "[ab]", "[^a]", ".", r"\d", "(a|b)", "(?:ab)?"])
PATTERNS = st.lists(st.tuples(WORDS, st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}"])), max_size=5)


@given(PATTERNS, st.text("ab1\n", max_size=8))
def test_patterns_match_as_pythons_do(parts: list[tuple[str, str]], text: str) -> None:
    """Whatever is understood means the same."""
    pattern = "".join(f"(?:{word}){often}" for word, often in parts)
    assert Pattern(pattern).matches(text) == bool(re.fullmatch(pattern, text, re.DOTALL | re.ASCII))


@pytest.mark.parametrize("text", [r"(a)\1", "(?=a)", "(?<!a)b", "(?i)a", "(", "a{5000}", "(a{99}){99}", "x" * 2000])
def test_patterns_that_are_refused(text: str) -> None:
    """They need more than an automaton, or too large a one."""
    with pytest.raises(PatternError):
        Pattern(text)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(width=64)), min_size=1, max_size=50))
def test_packed_samples_are_the_same_bit_by_bit(pairs: list[tuple[int, float]]) -> None:
    """Also NaNs, of which one means that the series has ended."""
    columns = Columns()
    at_ms = -(10**6)
    for step_ms, value in [*pairs, (5, STALE)]:
        at_ms += step_ms
        columns.append(at_ms, value)
    again = unpacked(packed(columns))
    assert again.times == columns.times
    assert again.values.tobytes() == columns.values.tobytes()
    assert is_stale(again.values[-1])
    assert not is_stale(math.nan)
    assert struct.unpack("<Q", array("d", [STALE]).tobytes())[0] == 0x7FF0000000000002


@given(st.dictionaries(st.from_regex("[a-z_]{1,5}", fullmatch=True), st.text(min_size=1, max_size=10), max_size=4))
def test_labels_survive_the_format(labels: dict[str, str]) -> None:
    """Whatever they hold, save what ends a line in the middle of a text."""
    wanted = tuple(sorted({**labels, NAME: "m"}.items()))
    line = f"{written(wanted)} 1.5 -7"
    ((series, value, at_ms),), _ = read(line)
    assert (parse_series(series), value, at_ms) == (wanted, 1.5, -7)


def test_an_alert_from_pending_to_resolved() -> None:
    """Fires after for_s, once; what was only pending is not resolved."""
    rule = Rule(expr="x", for_s=10, labels={"severity": "page"})
    found: dict[tuple[tuple[str, str], ...], list[float | None]] = {((NAME, "x"), ("a", "b")): [1.0]}
    alerts, changes = step("R", rule, {}, found, 100.0)
    assert [(one.state, one.value) for one in changes] == [(AlertState.PENDING, 1.0)]
    assert dict(changes[0].labels) == {"a": "b", "severity": "page", "alertname": "R"}
    assert step("R", rule, alerts, {}, 101.0) == ({}, [])
    same, changes = step("R", rule, alerts, found, 109.9)
    assert not changes
    alerts, changes = step("R", rule, same, found, 110.0)
    assert [one.state for one in changes] == [AlertState.FIRING]
    assert step("R", rule, alerts, found, 50.0)[1] == []  # the clock was set back
    assert [one.state for one in step("R", rule, alerts, {}, 120.0)[1]] == [AlertState.RESOLVED]


def test_the_budget_is_kept_and_goes_where_surprises_are() -> None:
    """Within its part for plain scrapes; who surprises more is scraped more often, who is large less."""
    demands = [Demand("wild", 10, 1 / 100), Demand("quiet", 10, 1 / 10_000), Demand("large", 1000, 1 / 10_000)]
    budget = sum(demand.samples for demand in demands) / 10
    plan = shared(demands, budget)
    assert sum(demand.samples / plan[demand.name] for demand in demands) <= budget * (1 - FOR_LOOKS) * 1.001
    assert plan["wild"] < plan["quiet"] < plan["large"]
    assert unseen_s(demands, plan, 10) < unseen_s(demands, None, 10)


def test_a_surprise_is_looked_at_again_within_the_budget() -> None:
    """Some looks a second apart with a plan, none without; and never more than was saved up."""
    for plan, looks in ((None, 0), ({}, LOOKS)):
        schedule = Schedule(10.0)
        schedule.plan = plan
        for turn in range(30):
            assert schedule.heard("t", turn * 10.0, [(1, 100.0 + turn % 3)], 1) == 10.0
        waits = [schedule.heard("t", 300.0, [(1, 500.0)], 1)]
        while waits[-1] == 1.0:
            waits.append(schedule.heard("t", 300.0 + len(waits), [(1, 500.0)], 1))
        assert waits.count(1.0) == looks
        assert schedule.surprises == 1


def test_anomalies_are_found_earlier_at_equal_samples() -> None:
    """Than at a fixed interval, with no more samples nor false alarms; as the benchmark has it, in virtual time."""
    off, on = both_arms(drawn(5, targets=20, end_s=7_200))
    assert (off.arm, on.arm) == ("off", "on")
    assert abs(on.samples - off.samples) <= 20
    assert on.false_alarms <= off.false_alarms
    assert min(on.found, off.found) > 10
    assert on.median_s < off.median_s / 2
    assert on.unseen < off.unseen


def test_the_loop_does_nothing_where_nothing_surprises() -> None:
    """Calm targets: no plan is worth it. With one that is ill all the time one is."""
    schedule = Schedule(10.0)
    loop = IntervalLoop(schedule, threading.Lock(), lambda: (0, 1.0))
    for turn in range(100):
        for name in ("a", "b", "c"):
            schedule.heard(name, turn * 10.0, [(1, 5.0 + turn % 2)], 1)
    observation = loop.observe()
    assert observation is not None
    assert observation.surprises == 0
    assert loop.decide(loop.orient(observation)) is None
    assert loop.decide(Picture(unseen_s=5.0, promised_s=4.8, surprises=50, gap_s=None)) is None
    decision = loop.decide(Picture(unseen_s=5.0, promised_s=2.0, surprises=50, gap_s=None))
    assert decision is not None
    loop.act(decision)
    assert schedule.plan is not None
    loop.undo(decision)
    assert schedule.plan is None


def test_what_nobody_foresaw_ends_one_scrape_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target has an error, and is scraped again."""

    def broken() -> str:
        raise KeyError("total")

    monkeypatch.setattr(host, "exposition", broken)

    async def scraped_twice() -> str | None:
        scraper = Scraper(Store(100), Limits(interval_s=0.2))
        scraper.set("host", [Spec(HOST, (("job", "node"),))])
        (target,) = scraper.targets.values()
        async with asyncio.timeout(60):
            while target.scrapes < 2:
                await asyncio.sleep(0.01)
        await scraper.close()
        return target.error

    assert asyncio.run(scraped_twice()) == "a fault of the scraper: KeyError: 'total'"
