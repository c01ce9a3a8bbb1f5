"""What a listing is worth, and what the loop makes of people's verdicts. Values in, values out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.threat_intel import trust
from services.threat_intel.scoring import (
    HALF_LIFE_S,
    TTL_S,
    Feed,
    FeedKind,
    Listing,
    Verdict,
    Witness,
    combined,
    verdict,
    weight,
    witness,
)
from services.threat_intel.trust import (
    Cool,
    FeedSeen,
    Judged,
    JudgedValue,
    Observation,
    SetAgeing,
    SetGuard,
    SetTrust,
    StageSeen,
    Warm,
)


def feed(name: str = "a", **more: object) -> Feed:
    """A list with the usual settings."""
    return replace(Feed(name=name, kind=FeedKind.LIST, created_s=0.0, updated_s=0.0), **more)


def seen(one: Feed, right: int = 0, wrong: int = 0, **more: object) -> FeedSeen:
    """A feed with so many verdicts."""
    base = FeedSeen(
        feed=one, values=100, true_positives=right, false_positives=wrong, allowed=0, hits_per_s=1.0, idle_s=0.0
    )
    return replace(base, **more)


def observation(*feeds: FeedSeen, judged: tuple[JudgedValue, ...] = (), **more: object) -> Observation:
    """What the loop sees."""
    base = Observation(
        lookups_per_s=100.0,
        us_per_lookup=3.0,
        feeds=feeds,
        judged=Judged(judged),
        stages={},
        is_guarded=False,
        index_bytes=1_000_000,
    )
    return replace(base, **more)


def judged(by: tuple[str, ...], right: int, wrong: int, age_s: float = 0.0) -> tuple[JudgedValue, ...]:
    """Values that these feeds list, so many of them rightly."""
    witnesses = tuple(Witness(name, 80.0, age_s) for name in by)
    return (JudgedValue(True, witnesses),) * right + (JudgedValue(False, witnesses),) * wrong


# -- worth ------------------------------------------------------------------------------------------------


def test_confidence_is_halved_with_every_half_life() -> None:
    """And multiplied by the trust in the feed; the loop's ageing shortens the half-life."""
    assert weight(Witness("a", 80.0, 0.0), feed()) == pytest.approx(0.8)
    assert weight(Witness("a", 80.0, HALF_LIFE_S), feed()) == pytest.approx(0.4)
    assert weight(Witness("a", 80.0, HALF_LIFE_S), feed(ageing=0.5)) == pytest.approx(0.2)
    assert weight(Witness("a", 80.0, 0.0), feed(trust=0.5)) == pytest.approx(0.4)


def test_a_listing_ends() -> None:
    """At its valid_until, or a ttl after it was last listed; one that is seen lives on."""
    listing = Listing("a", 0.0, 100.0)
    assert witness(listing, feed(), 0.0, 100.0 + TTL_S - 1) is not None
    assert witness(listing, feed(), 0.0, 100.0 + TTL_S) is None
    assert witness(listing, feed(), 50 + TTL_S, 100.0 + TTL_S) == Witness("a", 80.0, 50.0)
    assert witness(replace(listing, until_s=200.0), feed(), 0.0, 200.0) is None
    early = replace(listing, indicator="indicator--1", first_s=500.0)
    assert [witness(early, feed(), 0.0, now_s) is None for now_s in (499.0, 500.0)] == [True, False]


def test_feeds_add_up_and_one_feed_does_not_with_itself() -> None:
    """Two independent witnesses at 50 % make 75 %; twice the same makes 50 %."""
    feeds = {"a": feed("a"), "b": feed("b")}
    assert combined([Witness("a", 50.0, 0.0), Witness("b", 50.0, 0.0)], feeds) == pytest.approx(75.0)
    assert combined([Witness("a", 50.0, 0.0), Witness("a", 50.0, 0.0)], feeds) == pytest.approx(50.0)
    assert combined([Witness("gone", 90.0, 0.0)], feeds) == 0.0


@pytest.mark.parametrize(
    ("points", "expected"),
    [(0.0, Verdict.UNKNOWN), (34.9, Verdict.UNKNOWN), (35.0, Verdict.SUSPICIOUS), (70.0, Verdict.MALICIOUS)],
)
def test_what_a_score_means(points: float, expected: Verdict) -> None:
    """The thresholds belong to what is above them."""
    assert verdict(points) is expected


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.floats(0, 1e9))),
    st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.floats(0, 1e9)),
)
def test_one_more_witness_never_lowers_a_score(
    others: list[tuple[str, float, float]], one: tuple[str, float, float]
) -> None:
    """And a score is a percentage."""
    feeds = {name: feed(name) for name in "abc"}
    without = combined([Witness(*other) for other in others], feeds)
    with_it = combined([Witness(*other) for other in [*others, one]], feeds)
    assert 0.0 <= without <= with_it + 1e-9 <= 100.0 + 1e-6


# -- the Beta distribution ----------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99), st.integers(1, 300), st.integers(1, 300))
def test_beta_below_is_what_the_binomial_says(x: float, a: int, b: int) -> None:
    """For whole numbers the incomplete beta function is a binomial tail."""
    n = a + b - 1
    tail = math.fsum(
        math.exp(
            math.lgamma(n + 1)
            - math.lgamma(k + 1)
            - math.lgamma(n - k + 1)
            + k * math.log(x)
            + (n - k) * math.log1p(-x)
        )
        for k in range(a, n + 1)
    )
    assert trust.beta_below(x, a, b) == pytest.approx(tail, abs=1e-8)


# -- decisions ----------------------------------------------------------------------------------------------


def decided(seen: Observation, held: frozenset[trust.Decision] = frozenset()) -> trust.Decision | None:
    """By what was seen."""
    return trust.decide(trust.orient(seen), held)


def test_nothing_is_done_about_feeds_that_are_right() -> None:
    """Nor about one that is wrong now and then, nor about one of which nobody has said anything."""
    everything = judged(("a",), 90, 10) + judged(("b",), 30, 0)
    assert (
        decided(observation(seen(feed("a"), 90, 10), seen(feed("b"), 30, 0), seen(feed("c")), judged=everything))
        is None
    )


def test_few_verdicts_are_no_evidence() -> None:
    """Nine of nine wrong: not yet."""
    assert decided(observation(seen(feed(), 0, 9), judged=judged(("a",), 0, 9))) is None
    assert decided(observation(seen(feed(), 0, 30), judged=judged(("a",), 0, 9))) is None


def test_a_poisoned_feed_is_trusted_as_far_as_it_is_right() -> None:
    """Its word alone is then worth its precision; what another feed lists as well is called what it was."""
    everything = judged(("bad",), 5, 60) + judged(("good", "bad"), 30, 0) + judged(("good",), 30, 0)
    saw = observation(seen(feed("good"), 60, 0), seen(feed("bad"), 35, 60), judged=everything)
    picture = trust.orient(saw)
    decision = trust.decide(picture, frozenset())
    assert isinstance(decision, SetTrust)
    assert decision.feed == "bad"
    assert 0.35 <= decision.to * 0.8 <= 0.40
    tuned = {"good": feed("good"), "bad": trust.after(feed("bad"), decision)}
    assert trust.errors(everything, tuned) == (0, 5)
    assert picture.error == pytest.approx(60 / 125)
    assert trust.before(tuned["bad"], decision) == feed("bad")


def test_it_is_not_lowered_if_that_would_not_help() -> None:
    """A feed that is right six times of ten is below what malicious means; silenced, it would miss more yet."""
    assert decided(observation(seen(feed(), 120, 80), judged=judged(("a",), 120, 80))) is None


def test_old_listings_that_are_wrong_shorten_the_half_life() -> None:
    """Where the fresh ones are right, ageing costs less than distrust."""
    # A confidence of 95 says malicious up to the age of 0.44 half-lives.
    fresh = tuple(JudgedValue(True, (Witness("a", 95.0, 0.0),)) for _ in range(60))
    old = tuple(JudgedValue(False, (Witness("a", 95.0, 0.3 * HALF_LIFE_S),)) for _ in range(60))
    decision = decided(observation(seen(feed(confidence=95.0), 60, 60), judged=fresh + old))
    assert decision == SetAgeing("a", 0.5, 1.0)


def test_trust_comes_back() -> None:
    """Once a feed is right again, with certainty, and its silence costs what it would have found."""
    saw = observation(seen(feed(trust=0.3), 120, 10), judged=judged(("a",), 60, 5))
    assert decided(saw) == SetTrust("a", 1.0, 0.3)


def test_values_that_a_person_allows_count_against_a_feed_that_lists_them() -> None:
    """As false positives, up to fifty."""
    few = trust.orient(observation(seen(feed(), allowed=40))).feeds[0]
    many = trust.orient(observation(seen(feed(), allowed=4_000))).feeds[0]
    assert few.precision < 0.15
    assert many.verdicts == trust.ALLOWED_MAX


def test_what_was_undone_is_not_tried_again_at_once() -> None:
    """The next best is."""
    everything = judged(("a",), 5, 60, age_s=0.1 * HALF_LIFE_S)
    saw = observation(seen(feed(), 5, 60), judged=everything)
    first = decided(saw)
    assert isinstance(first, SetTrust | SetAgeing)
    second = decided(saw, frozenset({first}))
    assert second != first


@pytest.mark.parametrize(
    ("guard_us", "passes", "networks_us", "per_s", "is_guarded", "expected"),
    [
        (0.3, 0.01, 1.4, 50_000.0, False, SetGuard(True)),
        (0.3, 0.01, 1.4, 50_000.0, True, None),
        (0.3, 0.95, 1.4, 50_000.0, False, None),
        (0.3, 0.95, 1.4, 50_000.0, True, SetGuard(False)),
        (0.3, 0.01, 1.4, 100.0, False, None),
    ],
)
def test_the_guard(
    guard_us: float, passes: float, networks_us: float, per_s: float, is_guarded: bool, expected: SetGuard | None
) -> None:
    """Is put up where it keeps most from the tree, taken away where it does not, left alone where it hardly matters."""
    stages = {"guard": StageSeen(us=guard_us, pass_rate=passes), "networks": StageSeen(us=networks_us, pass_rate=0.0)}
    assert decided(observation(seen(feed()), stages=stages, is_guarded=is_guarded, lookups_per_s=per_s)) == expected


def test_large_idle_feeds_are_cooled_and_cold_ones_that_are_hit_are_warmed() -> None:
    """A small one, one that was hit lately, and one that is seldom hit stay as they are."""
    idle: dict[str, Any] = {"values": 50_000, "idle_s": 1_000.0, "hits_per_s": 0.0}
    assert decided(observation(seen(feed("a"), **idle))) == Cool("a")
    assert decided(observation(seen(feed("a"), **idle | {"values": 500}))) is None
    assert decided(observation(seen(feed("a"), **idle | {"idle_s": 100.0}))) is None
    assert decided(observation(seen(feed("a", is_cold=True), **idle))) is None
    assert decided(observation(seen(feed("a", is_cold=True), **idle | {"hits_per_s": 5.0, "idle_s": 0.0}))) == Warm("a")
