"""The requests and answers of the HTTP interface, TAXII's aside."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Short = Annotated[str, Meta(max_length=256)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class CorrelateRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /correlate``."""

    values: list[str]
    seen_by: Short = ""
    """Who saw them, for the sighting that a malicious one becomes."""
    cause: Name | None = None
    """Id of the event that made the client ask."""


class MatchAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One listing that a value matches."""

    feed: str
    how: str
    """exact, network, suffix, host, inside."""
    listed: str
    """What is listed."""
    score: float
    """What this one listing alone is worth now, per cent."""
    first_s: float
    last_s: float
    indicator: str | None = None


class Technique(Struct, frozen=True, omit_defaults=True):
    """Of ATT&CK."""

    id: str
    name: str


class ValueAnswer(Struct, kw_only=True, omit_defaults=True):
    """What is known of one value. Times are by the wall clock."""

    value: str
    verdict: str
    key: str | None = None
    """The value as it is looked up."""
    type: str | None = None
    score: float = 0.0
    feeds: tuple[str, ...] = ()
    matches: tuple[MatchAnswer, ...] = ()
    matches_total: int = 0
    """Given if there are more than are shown."""
    techniques: tuple[Technique, ...] = ()
    first_s: float | None = None
    last_s: float | None = None
    allowed_by: str | None = None
    """The entry of the allow-list."""
    error: str | None = None
    """Why it could not be looked up."""
    event: str | None = None
    """Id of the sighting that was told on the bus."""


class CorrelateAnswer(Struct, kw_only=True):
    """In the order of the request."""

    values: list[ValueAnswer]
    elapsed_ms: float


class FeedAnswer(Struct, frozen=True, kw_only=True):
    """A feed, what it holds, and how it does."""

    name: str
    kind: str
    collection: str
    """Its id as a TAXII collection."""
    confidence: float
    half_life_s: float
    ttl_s: float
    created_s: float
    updated_s: float
    values: int
    hits: int
    """Look-ups that matched it, since this process began."""
    malicious: int
    """Of those, how many were called malicious."""
    true_positives: int
    false_positives: int
    precision: float
    """As the verdicts have it so far, beginning from what a feed is taken for: 4 of 5."""
    trust: float
    ageing: float
    is_cold: bool


class FeedsAnswer(Struct, frozen=True, kw_only=True):
    """All feeds, by name."""

    feeds: tuple[FeedAnswer, ...]


class RejectedAnswer(Struct, frozen=True):
    """What was not taken, and why."""

    what: str
    why: str


class LoadedAnswer(Struct, frozen=True, kw_only=True):
    """It is on disk, and looked up from now on."""

    feed: str
    accepted: int
    indexed: int
    not_indexed: int
    """Indicators whose pattern stands for no plain value: stored, given out by TAXII, not correlated."""
    removed: int
    rejected: int
    examples: tuple[RejectedAnswer, ...]
    elapsed_ms: float


class AllowRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /allow``."""

    values: Annotated[list[Text], Meta(min_length=1, max_length=10_000)]
    note: Short = ""


class AllowedAnswer(Struct, frozen=True):
    """An entry of the allow-list."""

    value: str
    type: str
    note: str
    at_s: float


class AllowListAnswer(Struct, frozen=True):
    """All of it."""

    allowed: tuple[AllowedAnswer, ...]


class SightingRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /sightings``, or one of several."""

    value: Text
    seen_by: Short = ""
    count: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 1
    at_s: Annotated[float, Meta(ge=0, le=253402300799)] | None = None
    """By the wall clock; None is now."""
    cause: Name | None = None
    """Id of the event that led to this."""
    id: Name | None = None
    """The sender's own: sent again, it is the same sighting."""


class SightingsRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /sightings`` of several."""

    sightings: Annotated[list[SightingRequest], Meta(min_length=1, max_length=1_000)]


class SightingAnswer(Struct, frozen=True, kw_only=True):
    """A sighting, as it is kept and streamed."""

    number: int
    id: str
    value: str
    key: str
    type: str
    seen_by: str
    count: int
    at_s: float
    score: float
    verdict: str
    feeds: tuple[str, ...]
    cause: str | None
    event: str | None = None
    """Id of what was told on the bus."""


class SightingsAnswer(Struct, frozen=True, kw_only=True):
    """In the order in which they were kept."""

    sightings: tuple[SightingAnswer, ...]
    known: int = 0
    """Sent before, and not counted again."""
    next: str | None = None
    """Where the next page is."""


class VerdictRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /verdicts``: a person's word on a value."""

    value: Text
    verdict: Literal["true_positive", "false_positive"]
    feed: Short | None = None
    """Of this feed; None: of all that list the value."""
    judged_by: Short = ""


class VerdictAnswer(Struct, frozen=True, kw_only=True):
    """It is on disk, and counts from now on."""

    value: str
    feeds: tuple[str, ...]
    """Whose precision it counts for; none if no feed lists the value."""


class Related(Struct, frozen=True, omit_defaults=True):
    """Something that a technique has to do with."""

    relationship: str
    type: str
    name: str
    id: str | None = None
    """ATT&CK's."""


class TechniqueAnswer(Struct, frozen=True, kw_only=True):
    """A technique of ATT&CK, from the bundles that were loaded."""

    id: str
    name: str
    description: str
    tactics: tuple[str, ...]
    url: str | None
    stix_id: str
    feed: str
    related: tuple[Related, ...]
    indicators: int
    """That indicate it."""
