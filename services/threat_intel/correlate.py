"""Values in, verdicts out: the request path. It reads one snapshot of the index, and waits for nothing but the disk,
where a feed is cold or a network asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from msgspec import Struct

from services.threat_intel import rows as sql
from services.threat_intel.api import MatchAnswer, Related, Technique, TechniqueAnswer, ValueAnswer
from services.threat_intel.index import STAGES, Index, Match, Stage
from services.threat_intel.scoring import Feed, Verdict, Witness, score, verdict, weight, witness
from services.threat_intel.stix import StixObject, read_object
from services.threat_intel.store import Store
from services.threat_intel.values import Kind, NoValue, Value, read

MEASURED_EVERY = 16
"""One batch in so many is looked up once more, stage by stage, with a clock beside."""
MEASURED_VALUES = 64
"""Of that batch, so many values at most."""


class Tally(Struct):
    """What was looked up since the process began."""

    lookups: int = 0
    batches: int = 0
    invalid: int = 0
    seconds: float = 0.0
    verdicts: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    """By feed."""
    malicious: Counter[str] = Counter()
    """By feed, of those that were called so."""
    hit_s: dict[str, float] = {}
    """When each feed was last hit, monotonic."""


class Correlator:
    """Looks values up, and counts what comes of it. Any thread may call it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._techniques: dict[str, tuple[Technique, ...]] = {}
        self._techniques_of: dict[str, Feed] = {}
        """The feeds that those are of: any change of what is stored makes new ones."""
        self.tally = Tally(verdicts=Counter(), hits=Counter(), malicious=Counter(), hit_s={})
        self.stages = {name: Stage() for name in STAGES}

    def correlate(self, texts: Sequence[str]) -> list[ValueAnswer]:
        """What is known of each, in order."""
        begun_s = time.perf_counter()
        index, now_s = self._store.index, time.time()
        answers, hits, malicious = [], Counter[str](), Counter[str]()
        measured: list[Value] = []
        limit = self._store.limits.value_chars
        invalid = 0
        for text in texts:
            try:
                if len(text) > limit:
                    raise NoValue(f"it is longer than {limit} characters")
                value = read(text)
            except NoValue as error:
                answers.append(
                    ValueAnswer(value=text[:limit], verdict=Verdict.UNKNOWN, error=f"cannot look it up: {error}")
                )
                invalid += 1
                continue
            if value.kind is Kind.IPV4 and len(measured) < MEASURED_VALUES:
                measured.append(value)
            answer = self.look_up(index, text, value, now_s)
            answers.append(answer)
            if answer.feeds:
                hits.update(answer.feeds)
                if answer.verdict == Verdict.MALICIOUS:
                    malicious.update(answer.feeds)
        if self.tally.batches % MEASURED_EVERY == 0:
            for value in measured:
                index.measure(value, self._store.confirm, self.stages)
        with self._lock:
            tally = self.tally
            tally.batches += 1
            tally.lookups += len(texts)
            tally.invalid += invalid
            tally.seconds += time.perf_counter() - begun_s
            tally.verdicts.update(answer.verdict for answer in answers)
            tally.hits.update(hits)
            tally.malicious.update(malicious)
            now_s = time.monotonic()
            for feed in hits:
                tally.hit_s[feed] = now_s
        return answers

    def look_up(self, index: Index, text: str, value: Value, now_s: float) -> ValueAnswer:
        """What that index has of a value."""
        matches = index.matches(value, self._store.confirm)
        if value.is_network:
            matches += self._inside(index, value)
        allowed_by = index.allowing(value)
        answer = ValueAnswer(
            value=text,
            key=value.key,
            type=value.kind,
            verdict=Verdict.ALLOWED if allowed_by is not None else Verdict.UNKNOWN,
            allowed_by=allowed_by,
        )
        if matches:
            self._weigh(answer, index, matches, now_s)
        return answer

    def _inside(self, index: Index, value: Value) -> list[Match]:
        found = []
        for key in self._store.inside(value):
            listings = index.hot.get(key, ())
            if index.cold_counts:
                listings += self._store.confirm(key)
            if listings:
                found.append(Match("inside", key, listings))
        return found

    def _weigh(self, answer: ValueAnswer, index: Index, matches: list[Match], now_s: float) -> None:
        said: list[tuple[float, MatchAnswer]] = []
        strongest: dict[str, float] = {}
        for how, key, listings in matches:
            sighted_s = index.sighted.get(key, 0.0)
            for listing in listings:
                feed = index.feeds.get(listing.feed)
                seen = witness(listing, feed, sighted_s, now_s) if feed is not None else None
                if feed is None or seen is None:
                    continue
                one = weight(seen, feed)
                if one > strongest.get(feed.name, 0.0):
                    strongest[feed.name] = one
                said.append(
                    (
                        one,
                        MatchAnswer(
                            feed=feed.name,
                            how=how,
                            listed=key,
                            score=round(100 * one, 1),
                            first_s=listing.first_s,
                            last_s=listing.last_s if listing.last_s > sighted_s else sighted_s,
                            indicator=listing.indicator,
                        ),
                    )
                )
        if not said:
            return
        if len(said) > 1:
            said.sort(key=itemgetter(0), reverse=True)
        shown = [one for _, one in said]
        answer.score = round(score(strongest.values()), 1)
        if answer.allowed_by is None:
            answer.verdict = verdict(answer.score)
        answer.feeds = tuple(dict.fromkeys(one.feed for one in shown))
        answer.first_s = min([one.first_s for one in shown])
        answer.last_s = max([one.last_s for one in shown])
        indicators = [one.indicator for one in shown if one.indicator]
        if indicators:
            indicated = [technique for one in indicators for technique in self._indicated(index, one)]
            answer.techniques = tuple(dict.fromkeys(indicated))
        most = self._store.limits.matches
        if len(shown) > most:
            answer.matches_total = len(shown)
        answer.matches = tuple(shown[:most])

    def witnesses(self, index: Index, value: Value, now_s: float) -> tuple[Witness, ...]:
        """Who speaks of the value now."""
        found = []
        for _, key, listings in index.matches(value, self._store.confirm):
            sighted_s = index.sighted.get(key, 0.0)
            for listing in listings:
                feed = index.feeds.get(listing.feed)
                if feed is not None and (seen := witness(listing, feed, sighted_s, now_s)) is not None:
                    found.append(seen)
        return tuple(found)

    # -- ATT&CK -------------------------------------------------------------------------------------------

    def _indicated(self, index: Index, indicator: str) -> tuple[Technique, ...]:
        if self._techniques_of is not index.feeds:
            self._techniques, self._techniques_of = {}, index.feeds
        known = self._techniques
        found = known.get(indicator)
        if found is None:
            with self._store.reading() as connection:
                found = tuple(Technique(*row) for row in sql.query(connection, sql.INDICATED, (indicator, indicator)))
            if len(known) < 100_000:
                known[indicator] = found
        return found

    def technique(self, id: str) -> TechniqueAnswer | None:
        """The technique of ATT&CK with that id, such as T0803; None if no bundle that was loaded has it."""
        with self._store.reading() as connection:
            row = next(iter(sql.query(connection, sql.TECHNIQUE, (id,))), None)
            if row is None:
                return None
            stix_id, feed, raw = row
            related = sql.query(connection, sql.RELATED, (stix_id, stix_id, stix_id, stix_id))
        found: StixObject = read_object(raw, self._store.limits.object_bytes)
        reference = next((one for one in found.external_references if one.external_id == id), None)
        return TechniqueAnswer(
            id=id,
            name=found.name or "",
            description=found.description or "",
            tactics=tuple(phase.phase_name for phase in found.kill_chain_phases),
            url=reference.url if reference else None,
            stix_id=stix_id,
            feed=feed,
            related=tuple(
                Related(relationship, type, name or "", attack)
                for relationship, type, name, attack in related
                if type != "indicator"
            ),
            indicators=sum(type == "indicator" for _, type, _, _ in related),
        )
