"""What the loop weighs: how far each feed is to be trusted, and which stages of a look-up pay. Pure.

**Trust.** People say of listed values whether the feed was right. Of a feed's precision that makes a Beta posterior,
beginning with Beta(4, 1): a feed is taken to be right four times of five. ``malicious`` means a chance of 70 % at
least, so a feed whose precision is below that, with 95 % certainty, may not say it alone: its trust
is lowered until its word alone weighs as much as its precision. Whether that helps is asked of all judged
values before anything is done, and again, by the real look-up, after: the error is the part of them that is called
malicious and is not, or is not called so and is.

**Stages.** The guard before the networks, and keeping a feed's values on disk, change what a look-up costs and never
what it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from services.threat_intel.scoring import MALICIOUS_AT, Feed, Witness, combined

PRIOR_TRUE, PRIOR_FALSE = 4.0, 1.0
WANTED = MALICIOUS_AT / 100
CERTAIN = 0.95
VERDICTS_MIN = 10
"""Of one feed, before it is thought about."""
ERRORS_MIN = 3
"""So many judged values fewer must be wrong."""
GAIN_MIN = 0.2
TRUST_MIN = 0.05
AGEING_MIN = 1 / 16
ALLOWED_MAX = 50
"""Values that a feed lists and a person allows count as false, up to so many: a large feed is not damned by a large
allow-list."""

GUARD_GAIN_MIN = 0.12
"""A guard that keeps nothing from the tree costs about this much of it."""
CPU_MIN = 0.002
"""Part of a core that the guard must save."""
COOL_VALUES = 20_000
"""What a smaller feed would save is not worth the trouble."""
COOL_AFTER_S = 900.0
WARM_HITS_PER_S = 1.0
"""A cold feed that is hit more often is better in memory."""


class SetTrust(Struct, frozen=True, tag=True):
    """What a feed says counts so much, of 1."""

    feed: str
    to: float
    was: float


class SetAgeing(Struct, frozen=True, tag=True):
    """A feed's half-life is multiplied by this."""

    feed: str
    to: float
    was: float


class SetGuard(Struct, frozen=True, tag=True):
    """Whether the first 16 bits of an address are looked up before the networks are searched."""

    up: bool


class Cool(Struct, frozen=True, tag=True):
    """Keep a feed's values on disk, and their fingerprints in memory."""

    feed: str


class Warm(Struct, frozen=True, tag=True):
    """Keep a feed's values in memory again."""

    feed: str


Decision = SetTrust | SetAgeing | SetGuard | Cool | Warm


class JudgedValue(Struct, frozen=True):
    """A value that a person judged, and who speaks of it now."""

    is_true: bool
    witnesses: tuple[Witness, ...]


class Judged:
    """All of them; too many to be shown with each cycle."""

    def __init__(self, values: tuple[JudgedValue, ...]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"{len(self.values)} judged values"


class FeedSeen(Struct, frozen=True, kw_only=True):
    """What was seen of a feed."""

    feed: Feed
    values: int
    true_positives: int
    false_positives: int
    allowed: int
    """Values that it lists and a person allows."""
    hits_per_s: float
    idle_s: float
    """Since it was last hit, or since this process began."""


class StageSeen(Struct, frozen=True, kw_only=True):
    """What was measured of a stage, by sampling."""

    us: float
    pass_rate: float


class Observation(Struct, frozen=True, kw_only=True):
    """What was seen since the last time."""

    lookups_per_s: float
    us_per_lookup: float | None
    feeds: tuple[FeedSeen, ...]
    judged: Judged
    stages: dict[str, StageSeen]
    is_guarded: bool
    index_bytes: int


class FeedPicture(Struct, frozen=True, kw_only=True):
    """What a feed is worth."""

    name: str
    precision: float
    """The posterior's mean."""
    below_wanted: float
    """Chance that its precision is below what ``malicious`` means."""
    verdicts: int


class Candidate(Struct, frozen=True):
    """What could be done, and the error that is expected of it."""

    decision: SetTrust | SetAgeing
    error: float


class Picture(Struct, frozen=True, kw_only=True):
    """What it means."""

    error: float | None
    """Part of the judged values that are called what they are not; None if there are too few."""
    false_alarms: int
    missed: int
    judged: int
    feeds: tuple[FeedPicture, ...]
    candidates: tuple[Candidate, ...]
    """Those that help enough, the best first."""
    networks_us: float | None
    """What an address costs in the stages of the networks, as they are now."""
    guard: SetGuard | None
    """What would be better than now."""
    index_bytes: int
    disk_us_per_s: float
    """What confirming the fingerprints of cold feeds takes."""
    cool: str | None
    warm: str | None


def orient(seen: Observation) -> Picture:
    """Weigh what was seen."""
    feeds = {one.feed.name: one.feed for one in seen.feeds}
    judged = seen.judged.values
    false_alarms, missed = errors(judged, feeds)
    pictures = tuple(_feed(one) for one in seen.feeds)
    candidates: list[Candidate] = []
    if len(judged) >= VERDICTS_MIN:
        wrong = false_alarms + missed
        for one, picture in zip(seen.feeds, pictures, strict=True):
            for decision in _proposals(one, picture):
                then = {**feeds, one.feed.name: after(one.feed, decision)}
                expected = sum(errors(judged, then))
                if expected <= wrong - ERRORS_MIN and expected <= wrong * (1 - GAIN_MIN):
                    candidates.append(Candidate(decision, expected / len(judged)))
    networks_us, guard = _networks(seen)
    disk = seen.stages.get("disk")
    cold_hits = sum(one.hits_per_s for one in seen.feeds if one.feed.is_cold)
    return Picture(
        error=(false_alarms + missed) / len(judged) if len(judged) >= VERDICTS_MIN else None,
        false_alarms=false_alarms,
        missed=missed,
        judged=len(judged),
        feeds=pictures,
        candidates=tuple(sorted(candidates, key=lambda one: one.error)),
        networks_us=networks_us,
        guard=guard,
        index_bytes=seen.index_bytes,
        disk_us_per_s=cold_hits * (disk.us if disk is not None else 50.0),
        cool=_coolest(seen),
        warm=next((one.feed.name for one in seen.feeds if one.feed.is_cold and one.hits_per_s > WARM_HITS_PER_S), None),
    )


def decide(picture: Picture, held: frozenset[Decision]) -> Decision | None:
    """The one thing to do: first what makes answers right, then what makes them cheap."""
    wanted: list[Decision] = [one.decision for one in picture.candidates]
    if picture.guard is not None:
        wanted.append(picture.guard)
    if picture.warm is not None:
        wanted.append(Warm(picture.warm))
    if picture.cool is not None:
        wanted.append(Cool(picture.cool))
    return next((one for one in wanted if one not in held), None)


def cost(picture: Picture, decision: Decision) -> float | None:
    """What the decision is to lower."""
    match decision:
        case SetTrust() | SetAgeing():
            return picture.error
        case SetGuard():
            return picture.networks_us
        case Cool():
            return float(picture.index_bytes)
        case Warm():
            return picture.disk_us_per_s


def after(feed: Feed, decision: Decision) -> Feed:
    """The feed's settings once that is done."""
    match decision:
        case SetTrust(to=to):
            return replace(feed, trust=to)
        case SetAgeing(to=to):
            return replace(feed, ageing=to)
        case Cool():
            return replace(feed, is_cold=True)
        case Warm():
            return replace(feed, is_cold=False)
    return feed


def before(feed: Feed, decision: Decision) -> Feed:
    """The feed's settings once that is taken back."""
    match decision:
        case SetTrust(was=was):
            return replace(feed, trust=was)
        case SetAgeing(was=was):
            return replace(feed, ageing=was)
        case Cool():
            return replace(feed, is_cold=False)
        case Warm():
            return replace(feed, is_cold=True)
    return feed


def errors(judged: Iterable[JudgedValue], feeds: Mapping[str, Feed]) -> tuple[int, int]:
    """(false alarms, missed) among the judged values, with the feeds set so."""
    false_alarms = missed = 0
    for one in judged:
        is_called = combined(one.witnesses, feeds) >= MALICIOUS_AT
        false_alarms += is_called and not one.is_true
        missed += one.is_true and not is_called
    return false_alarms, missed


def posterior(true_positives: int, false_positives: int) -> tuple[float, float]:
    """Alpha and beta of a feed's precision."""
    return PRIOR_TRUE + true_positives, PRIOR_FALSE + false_positives


def _feed(seen: FeedSeen) -> FeedPicture:
    wrong = seen.false_positives + min(seen.allowed, ALLOWED_MAX)
    alpha, beta = posterior(seen.true_positives, wrong)
    return FeedPicture(
        name=seen.feed.name,
        precision=round(alpha / (alpha + beta), 3),
        below_wanted=round(beta_below(WANTED, alpha, beta), 4),
        verdicts=seen.true_positives + wrong,
    )


def _proposals(seen: FeedSeen, picture: FeedPicture) -> list[SetTrust | SetAgeing]:
    if picture.verdicts < VERDICTS_MIN:
        return []
    feed = seen.feed
    found: list[SetTrust | SetAgeing] = []
    # In steps of 0.05, so that the next verdict alone does not make for another decision.
    fair = max(TRUST_MIN, min(1.0, math.floor(20 * picture.precision / max(feed.confidence / 100, 0.01)) / 20))
    if picture.below_wanted >= CERTAIN and fair < feed.trust:
        found.append(SetTrust(feed.name, fair, feed.trust))
        if feed.ageing > AGEING_MIN:
            found.append(SetAgeing(feed.name, feed.ageing / 2, feed.ageing))
    if picture.below_wanted <= 1 - CERTAIN:
        if feed.trust < 1.0:
            found.append(SetTrust(feed.name, 1.0, feed.trust))
        if feed.ageing < 1.0:
            found.append(SetAgeing(feed.name, min(1.0, feed.ageing * 2), feed.ageing))
    return found


def _networks(seen: Observation) -> tuple[float | None, SetGuard | None]:
    """(µs of an address as things are, what would be better)."""
    guard, networks = seen.stages.get("guard"), seen.stages.get("networks")
    if guard is None or networks is None:
        return None, None
    bare, guarded = networks.us, guard.us + guard.pass_rate * networks.us
    now, other = (guarded, bare) if seen.is_guarded else (bare, guarded)
    saves = seen.lookups_per_s * (now - other) / 1e6
    is_better = other <= now * (1 - GUARD_GAIN_MIN) and saves >= CPU_MIN
    return now, SetGuard(not seen.is_guarded) if is_better else None


def _coolest(seen: Observation) -> str | None:
    idle = [
        one for one in seen.feeds if not one.feed.is_cold and one.values >= COOL_VALUES and one.idle_s >= COOL_AFTER_S
    ]
    return max(idle, key=lambda one: one.values).feed.name if idle else None


def beta_below(x: float, alpha: float, beta: float) -> float:
    """The chance that a Beta(alpha, beta) is below x: the regularised incomplete beta function.

    By its continued fraction (NIST's Digital Library of Mathematical Functions, 8.17.22), evaluated by Lentz's method.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (alpha + 1) / (alpha + beta + 2):  # where the fraction converges slowly; the other end's does not
        return 1.0 - beta_below(1.0 - x, beta, alpha)
    front = math.exp(
        math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta) + alpha * math.log(x) + beta * math.log1p(-x)
    )
    tiny = 1e-300
    c, d = 1.0, 1.0 / max(1.0 - (alpha + beta) * x / (alpha + 1), tiny)
    fraction = d
    for m in range(1, 500):
        even = m * (beta - m) * x / ((alpha + 2 * m - 1) * (alpha + 2 * m))
        odd = -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1))
        step = 1.0
        for term in (even, odd):
            d = 1.0 / (_away(1.0 + term * d))
            c = _away(1.0 + term / c)
            step = c * d
            fraction *= step
        if abs(step - 1.0) < 1e-12:
            break
    return front * fraction / alpha


def _away(value: float) -> float:
    """From zero."""
    return value if abs(value) > 1e-300 else 1e-300
