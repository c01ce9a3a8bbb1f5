"""The loop: sees how right each feed is and what look-ups cost, and changes one thing at a time.

The arithmetic is in trust.py; what is measured, in correlate.py and store.py. No request waits for it.
"""

from __future__ import annotations

import time
from collections import Counter

from cdn_daemon.ooda import OodaLoop
from services.threat_intel import trust
from services.threat_intel.correlate import Correlator
from services.threat_intel.index import STAGES
from services.threat_intel.store import Store
from services.threat_intel.trust import (
    Decision,
    FeedSeen,
    Judged,
    JudgedValue,
    Observation,
    Picture,
    SetGuard,
    StageSeen,
)
from services.threat_intel.values import NoValue, read

JUDGED = 500
"""The newest verdicts that are weighed."""
JUDGED_S = 90 * 86_400.0
"""Older ones tell of a feed as it was."""
QUIET_S = 60.0
"""While nothing is asked and nobody judges, it looks so often."""
SAMPLED = 64
"""Of a stage, before its figures are believed."""
LISTED = 20_000
"""Of the allow-list, so many entries are sought in the feeds."""


class FeedTuner(OodaLoop[Observation, Picture, Decision]):
    """Sets how far feeds are trusted, how fast they age, and what is kept where."""

    period_s = 2.0
    settle_s = 10.0
    min_gain = 0.1
    hold_off_s = 600.0

    def __init__(self, store: Store, correlator: Correlator) -> None:
        self._store = store
        self._correlator = correlator
        self._begun_s = time.monotonic()
        self._at_s: float | None = None
        self._seen_verdicts: object = None
        self._lookups = 0
        self._seconds = 0.0
        self._hits: Counter[str] = Counter()
        self._stages = dict.fromkeys(STAGES, (0, 0))
        self._measured: dict[str, StageSeen] = {}
        self._allowed: tuple[object, dict[str, int]] = (None, {})

    def observe(self) -> Observation | None:
        """What happened since the last time; None while nothing does."""
        store, tally, now_s = self._store, self._correlator.tally, time.monotonic()
        if not store.is_open:
            return None
        judged = (len(store.verdicts), max((one.at_s for one in list(store.verdicts.values())[-1:]), default=0.0))
        is_quiet = tally.lookups == self._lookups and judged == self._seen_verdicts
        if self._at_s is not None and is_quiet and self._settling is None and now_s - self._at_s < QUIET_S:
            return None
        elapsed_s = max(now_s - (self._at_s if self._at_s is not None else self._begun_s), 1e-3)
        lookups, seconds = tally.lookups - self._lookups, tally.seconds - self._seconds
        hits = Counter(tally.hits)
        hits.subtract(self._hits)
        self._at_s, self._seen_verdicts = now_s, judged
        self._lookups, self._seconds, self._hits = tally.lookups, tally.seconds, Counter(tally.hits)
        return Observation(
            lookups_per_s=round(lookups / elapsed_s, 3),
            us_per_lookup=round(seconds / lookups * 1e6, 3) if lookups else None,
            feeds=self._feeds({name: count / elapsed_s for name, count in hits.items()}, now_s),
            judged=self._judged(),
            stages=self._sampled(),
            is_guarded=store.index.is_guarded,
            index_bytes=store.index.size_bytes(),
        )

    def _feeds(self, hits_per_s: dict[str, float], now_s: float) -> tuple[FeedSeen, ...]:
        store, tally = self._store, self._correlator.tally
        since_s = time.time() - JUDGED_S
        right, wrong = Counter[str](), Counter[str]()
        for one in list(store.verdicts.values()):
            if one.at_s >= since_s:
                (right if one.is_true else wrong)[one.feed] += 1
        allowed = self._contradicted()
        return tuple(
            FeedSeen(
                feed=feed,
                values=store.counts.get(name, 0),
                true_positives=right[name],
                false_positives=wrong[name],
                allowed=allowed.get(name, 0),
                hits_per_s=round(hits_per_s.get(name, 0.0), 3),
                idle_s=round(now_s - tally.hit_s.get(name, self._begun_s), 1),
            )
            for name, feed in store.index.feeds.items()
        )

    def _contradicted(self) -> dict[str, int]:
        """How many entries of the allow-list each feed lists; counted anew when either has changed."""
        index = self._store.index
        known_for = (index.allowed, index.hot)
        if self._allowed[0] is None or any(a is not b for a, b in zip(self._allowed[0], known_for, strict=True)):  # type: ignore[call-overload]
            counts = Counter[str]()
            for _, key in zip(range(LISTED), index.allowed, strict=False):
                counts.update({listing.feed for listing in index.hot.get(key, ())})
            self._allowed = (known_for, dict(counts))
        return self._allowed[1]

    def _judged(self) -> Judged:
        """The newest verdicts, one for each value, with who speaks of it now."""
        store, now_s = self._store, time.time()
        truths: dict[str, bool] = {}
        for one in reversed(list(store.verdicts.values())):
            if len(truths) >= JUDGED or one.at_s < now_s - JUDGED_S:
                break
            truths.setdefault(one.key, one.is_true)
        found = []
        for key, is_true in truths.items():
            try:
                witnesses = self._correlator.witnesses(store.index, read(key), now_s)
            except NoValue:
                continue
            if witnesses:  # else no feed lists it any more
                found.append(JudgedValue(is_true, witnesses))
        return Judged(tuple(found))

    def _sampled(self) -> dict[str, StageSeen]:
        """Of each stage what was sampled since the last time; what was not, is as it was."""
        for name, stage in self._correlator.stages.items():
            asked, passed = self._stages[name]
            asked, passed = stage.asked - asked, stage.passed - passed
            if asked >= SAMPLED:
                self._measured[name] = StageSeen(us=stage.us(), pass_rate=round(passed / asked, 4))
                self._stages[name] = (stage.asked, stage.passed)
        return dict(self._measured)

    def orient(self, observation: Observation) -> Picture:
        """What it means."""
        return trust.orient(observation)

    def decide(self, picture: Picture) -> Decision | None:
        """One thing, or none."""
        return trust.decide(picture, self.held)

    def cost(self, picture: Picture, decision: Decision) -> float | None:
        """What it is to lower."""
        return trust.cost(picture, decision)

    def act(self, decision: Decision) -> None:
        """Swap the index for one in which it is so."""
        self._set(decision, is_undone=False)

    def undo(self, decision: Decision) -> None:
        """Swap it back."""
        self._set(decision, is_undone=True)

    def _set(self, decision: Decision, *, is_undone: bool) -> None:
        store = self._store
        if isinstance(decision, SetGuard):
            store.guard(is_guarded=decision.up != is_undone)
            return
        change = trust.before if is_undone else trust.after
        store.tune(decision.feed, lambda feed: change(feed, decision))
