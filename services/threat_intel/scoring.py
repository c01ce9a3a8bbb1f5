"""How much a listing counts: confidence, decay, trust, and the verdict on a value. Pure: time comes in as now_s.

Each feed that lists a value is one witness. A witness' weight is its confidence, halved for every half-life since the
value was last listed or seen, times the trust in the feed. Witnesses are taken to be independent:
the score is 1 − Π(1 − weight), in per cent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

MALICIOUS_AT = 70.0
SUSPICIOUS_AT = 35.0
CONFIDENCE = 80.0
"""Of a feed that does not say."""
HALF_LIFE_S = 30 * 86_400.0
TTL_S = 180 * 86_400.0


class Verdict(StrEnum):
    """What becomes of a value."""

    MALICIOUS = "malicious"
    SUSPICIOUS = "suspicious"
    UNKNOWN = "unknown"
    ALLOWED = "allowed"


class FeedKind(StrEnum):
    """What a feed is made of."""

    LIST = "list"
    STIX = "stix"


class Feed(Struct, frozen=True, kw_only=True):
    """Where listings come from, what they are worth, and what the loop has made of that."""

    name: str
    kind: FeedKind
    confidence: float = CONFIDENCE
    """Per cent; of what does not say so itself."""
    half_life_s: float = HALF_LIFE_S
    ttl_s: float = TTL_S
    """A value that was not listed again for so long does not count."""
    created_s: float
    updated_s: float
    trust: float = 1.0
    """0 to 1: the loop's, as people's verdicts have it."""
    ageing: float = 1.0
    """What half_life_s is multiplied by: the loop's."""
    is_cold: bool = False
    """Kept on disk, with fingerprints in memory: the loop's."""


class Listing(Struct, frozen=True, gc=False):
    """One value in one feed. Those of a list share it, as far as they came and were seen together."""

    feed: str
    first_s: float
    """Since when, by the wall clock, as are the others."""
    last_s: float
    """Last listed."""
    until_s: float = math.inf
    confidence: float | None = None
    indicator: str | None = None
    """Id of the STIX indicator."""


class Witness(Struct, frozen=True, gc=False):
    """What one listing says of one value now."""

    feed: str
    confidence: float
    age_s: float
    """Since it was last listed or seen."""


def witness(listing: Listing, feed: Feed, sighted_s: float, now_s: float) -> Witness | None:
    """What the listing says; None if it has expired, or is an indicator that is not valid yet."""
    age_s = max(0.0, now_s - max(listing.last_s, sighted_s))
    if now_s >= listing.until_s or age_s >= feed.ttl_s or (listing.indicator and now_s < listing.first_s):
        return None
    return Witness(listing.feed, feed.confidence if listing.confidence is None else listing.confidence, age_s)


def weight(seen: Witness, feed: Feed) -> float:
    """0 to 1."""
    return seen.confidence / 100 * math.exp2(-seen.age_s / (feed.half_life_s * feed.ageing)) * feed.trust


def score(weights: Iterable[float]) -> float:
    """Per cent."""
    doubt = 1.0
    for one in weights:
        doubt *= 1.0 - one
    return 100.0 * (1.0 - doubt)


def combined(witnesses: Iterable[Witness], feeds: Mapping[str, Feed]) -> float:
    """The score of a value that these speak of; a feed speaks once for a value, by the strongest of its listings."""
    strongest: dict[str, float] = {}
    for seen in witnesses:
        feed = feeds.get(seen.feed)
        if feed is not None:
            strongest[seen.feed] = max(strongest.get(seen.feed, 0.0), weight(seen, feed))
    return score(strongest.values())


def verdict(points: float) -> Verdict:
    """What the score means."""
    if points >= MALICIOUS_AT:
        return Verdict.MALICIOUS
    return Verdict.SUSPICIOUS if points >= SUSPICIOUS_AT else Verdict.UNKNOWN
