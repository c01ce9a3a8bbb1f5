"""The loop over a real store: a poisoned feed, a calm fleet, the guard, a large feed that nobody asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdn_daemon.ooda import Cycle, OodaLoop
from services.threat_intel.intel import Intel
from services.threat_intel.ooda import FeedTuner
from services.threat_intel.scoring import FeedKind
from services.threat_intel.trust import Cool, SetGuard, SetTrust, Warm
from services.threat_intel.values import read
from tests.threat_intel.support import addresses


@pytest.fixture
def intel(tmp_path: Path) -> Iterator[Intel]:
    """The service without a server."""
    one = Intel(tmp_path / "state", tmp_path / "token")
    one.open()
    yield one
    one.store.close()


class Clock:
    """Has a loop go through its cycles, as its daemon would, without the waiting."""

    def __init__(self, loop: FeedTuner) -> None:
        self.loop = loop
        self.now_s = 1_000.0

    def cycles(self, count: int) -> list[Cycle]:
        """So many; those that acted."""
        for _ in range(count):
            self.now_s += self.loop.period_s
            for _ in range(4):
                work = self.loop.step(self.now_s)
                if work is not None:
                    work.run()
                    self.loop.finished(self.now_s, None)
        return list(self.loop.actions)


def load(intel: Intel, name: str, values: list[str]) -> None:
    """A list of these."""
    intel.load(name, FeedKind.LIST, "\n".join(values).encode(), {}, is_whole=True)


def called_malicious(intel: Intel, values: list[str]) -> float:
    """What part of them."""
    return sum(one.verdict == "malicious" for one in intel.correlator.correlate(values)) / len(values)


def test_a_poisoned_feed_loses_its_trust_and_the_others_keep_theirs(intel: Intel) -> None:
    """False positives fall to nothing, what the good feeds list is found as before; the effect is measured and kept."""
    everything = addresses(700, seed=1)
    evil, benign = everything[:400], everything[400:]
    load(intel, "good", evil[:300])
    load(intel, "also-good", evil[100:400])
    load(intel, "poisoned", benign[:150] + evil[:50])
    assert (called_malicious(intel, benign), called_malicious(intel, evil)) == (0.5, 1.0)
    loop = FeedTuner(intel.store, intel.correlator)
    clock = Clock(loop)
    for value in [*benign[:30], *evil[:5], *evil[200:230]]:
        intel.judge(value, is_true=value in evil, feed=None, judged_by="me")
    (action,) = clock.cycles(10)
    assert isinstance(action.decision, SetTrust)
    assert action.decision.feed == "poisoned"
    assert action.effect is not None
    assert (action.effect.verdict, action.effect.after) == ("kept", 0.0)
    assert action.effect.before == pytest.approx(30 / 65)
    assert (called_malicious(intel, benign), called_malicious(intel, evil)) == (0.0, 1.0)
    assert {name: feed.trust for name, feed in intel.store.index.feeds.items() if name != "poisoned"} == {
        "good": 1.0, "also-good": 1.0, "inbox": 1.0,
    }  # fmt: skip
    # Loaded anew, it is no more trusted than before; the loop's word is on disk.
    load(intel, "poisoned", benign)
    assert called_malicious(intel, benign) == 0.0
    assert len(clock.cycles(30)) == 1


def test_a_change_that_does_not_help_is_taken_back(intel: Intel) -> None:
    """The verdicts that follow it say that the feed was right after all."""
    everything = addresses(400, seed=2)
    load(intel, "feed", everything)
    loop = FeedTuner(intel.store, intel.correlator)
    clock = Clock(loop)
    for value in everything[:30]:
        intel.judge(value, is_true=False, feed=None, judged_by="me")
    (action,) = clock.cycles(1)
    trusted = intel.store.index.feeds["feed"].trust
    assert trusted < 1.0
    for value in everything[:80]:
        intel.judge(value, is_true=True, feed=None, judged_by="me")
    clock.cycles(10)
    assert action.effect is not None
    assert action.effect.verdict == "undone"
    assert intel.store.index.feeds["feed"].trust == 1.0


def test_a_calm_fleet_is_left_alone(intel: Intel) -> None:
    """Good feeds, a false positive now and then, networks, look-ups at a walking pace: nothing is ever changed."""
    everything = addresses(900, seed=3)
    load(intel, "a", everything[:400])
    load(intel, "b", [*everything[300:600], "198.51.100.0/24"])
    loop = FeedTuner(intel.store, intel.correlator)
    clock = Clock(loop)
    for at, value in enumerate(everything[:200] + everything[450:550]):
        intel.judge(value, is_true=at % 12 != 0, feed=None, judged_by="me")
        if at % 10 == 0:
            intel.correlator.correlate([value, "192.0.2.1"])
            assert clock.cycles(1) == []
    assert clock.cycles(20) == []
    assert len(loop.cycles) > 20
    assert not intel.store.index.is_guarded


def test_switched_off_it_does_nothing(intel: Intel) -> None:
    """The control arm: what is poisoned stays."""
    everything = addresses(200, seed=4)
    load(intel, "poisoned", everything)
    loop = FeedTuner(intel.store, intel.correlator)
    loop.mode = type(loop.mode)("off")
    for value in everything[:50]:
        intel.judge(value, is_true=False, feed=None, judged_by="me")
    assert Clock(loop).cycles(10) == []
    assert called_malicious(intel, everything) == 1.0


def test_the_guard_changes_what_a_look_up_costs_and_not_what_it_says(intel: Intel) -> None:
    """Set and taken back, every answer is the same."""
    networks = ["198.51.100.0/24", "10.0.0.0/7", "203.0.113.128/25", "2001:db8::/32"]
    load(intel, "networks", networks)
    asked = ["198.51.100.9", "198.51.101.9", "11.255.1.2", "12.0.0.1", "203.0.113.5", "203.0.113.200", "2001:db8::5"]
    bare = [one.feeds for one in intel.correlator.correlate(asked)]
    assert bare == [("networks",) if hit else () for hit in (1, 0, 1, 0, 0, 1, 1)]
    loop = FeedTuner(intel.store, intel.correlator)
    loop.act(SetGuard(True))
    assert intel.store.index.is_guarded
    assert [one.feeds for one in intel.correlator.correlate(asked)] == bare
    loop.undo(SetGuard(True))
    assert not intel.store.index.is_guarded


def test_a_cold_feed_says_what_it_said(intel: Intel) -> None:
    """From disk: values, names, networks and what is inside one; it takes less memory, can be changed, and warmed."""
    values = addresses(25_000, seed=5)
    load(intel, "large", [*values, "198.51.100.0/24", "evil.example"])
    asked = [*values[:50], "198.51.100.9", "www.evil.example", "192.0.2.1", "198.51.0.0/16"]
    before = [(one.verdict, one.feeds) for one in intel.correlator.correlate(asked)]
    hot_bytes = intel.store.index.size_bytes()
    loop = FeedTuner(intel.store, intel.correlator)
    loop.act(Cool("large"))
    assert [(one.verdict, one.feeds) for one in intel.correlator.correlate(asked)] == before
    assert intel.store.index.size_bytes() < hot_bytes / 5
    load(intel, "large", [*values[1:], "198.51.100.0/24"])
    assert [one.verdict for one in intel.correlator.correlate([values[0], values[1], "evil.example"])] == [
        "unknown", "malicious", "unknown",
    ]  # fmt: skip
    intel.store.close()
    intel.store.open()
    assert intel.store.index.feeds["large"].is_cold
    assert called_malicious(intel, values[1:100]) == 1.0
    loop.act(Warm("large"))
    assert len(intel.store.index.cold) == 0
    assert called_malicious(intel, values[1:100]) == 1.0
    intel.store.remove_feed("large")
    assert called_malicious(intel, values[1:100]) == 0.0
    assert intel.store.index.hot == {}


def test_what_has_expired_is_forgotten(intel: Intel) -> None:
    """After its ttl, unless it was seen since."""
    load(intel, "list", ["203.0.113.1", "203.0.113.2", "198.51.100.0/24"])
    feed = intel.store.index.feeds["list"]
    later_s = feed.updated_s + feed.ttl_s + 10
    intel.store.index.sighted["203.0.113.2"] = later_s - 100
    assert intel.store.expire(feed.updated_s + feed.ttl_s - 10) == 0
    assert intel.store.expire(later_s) == 2
    assert list(intel.store.index.hot) == ["203.0.113.2"]
    assert intel.store.index.matches(read("198.51.100.1"), intel.store.confirm) == []
    assert intel.store.counts["list"] == 1


def test_what_is_seen_does_not_keep_what_is_not(intel: Intel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many have passed their ttl and were seen since, the others are forgotten."""
    monkeypatch.setattr("services.threat_intel.store.EXPIRED_AT_ONCE", 2)
    load(intel, "list", [f"203.0.113.{n}" for n in range(5)])
    feed = intel.store.index.feeds["list"]
    later_s = feed.updated_s + feed.ttl_s + 10
    intel.store.index.sighted.update({f"203.0.113.{n}": later_s for n in (0, 1)})
    assert [intel.store.expire(later_s) for _ in range(3)] == [2, 1, 0]


def test_what_failed_is_not_counted(intel: Intel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that is rolled back leaves the counts as they are on disk."""
    load(intel, "list", ["203.0.113.1"])
    monkeypatch.setattr("services.threat_intel.rows.networks_in", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load(intel, "list", ["203.0.113.2", "198.51.100.0/24"])
    with pytest.raises(ZeroDivisionError):
        intel.store.remove_feed("list")
    assert intel.store.counts["list"] == 1
    assert intel.store.objects == 0


def test_the_loop_is_a_loop_of_the_framework() -> None:
    """Its settling window, roll-back and hysteresis are the framework's."""
    assert issubclass(FeedTuner, OodaLoop)
    assert FeedTuner.step is OodaLoop.step
