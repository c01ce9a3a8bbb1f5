"""What goes in and out by HTTP. Times are seconds since 1970, names are as GET /series lists them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from services.statistical.aggregates import AnyState
from services.statistical.compare import Verdict
from services.statistical.keeper import Noted
from services.statistical.sets import Count, Frequent
from services.statistical.statsd import NAME_CHARS, Kind

BatchId = Annotated[str, Meta(min_length=1, max_length=100)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS)]


class Sample(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value, or one member of a set."""

    name: Name
    kind: Kind
    value: float | str
    delta: bool = False
    """Of a gauge: move it by the value."""
    rate: float = 1.0
    """The part of such samples that is sent."""
    tags: dict[str, str] = {}


class SamplesRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /samples``."""

    samples: list[Sample]
    id: BatchId | None = None
    """A batch of an id that was taken already is not taken again."""


class SamplesAnswer(Struct, frozen=True, kw_only=True):
    """All of them are on disk."""

    taken: int


class Sent(Struct, frozen=True, kw_only=True):
    """A series at rest: ``GET /series/NAME/sketch``, and what ``POST /merge`` takes."""

    name: Name
    kind: Kind
    state: AnyState
    from_s: float | None = None
    until_s: float | None = None


class MergeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /merge``."""

    series: list[Sent]
    id: BatchId | None = None


class MergeAnswer(Struct, frozen=True, kw_only=True):
    """All of them are on disk."""

    merged: int


class Listed(Struct, frozen=True, kw_only=True):
    """A series in ``GET /series``."""

    name: str
    kind: Kind
    seen_s: float | None
    bytes: int
    """Of its open slot."""


class SeriesAnswer(Struct, frozen=True, kw_only=True):
    """``GET /series``."""

    series: list[Listed]
    next: str | None = None


class Quantile(Struct, frozen=True, kw_only=True):
    """The true one is between low and high."""

    q: float
    value: float | None
    low: float | None
    high: float | None


class SeriesNow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``GET /series/NAME``: only what its kind has."""

    name: str
    kind: Kind
    from_s: float
    until_s: float
    received: int
    """Samples that were looked at."""
    count: float | None = None
    """Samples that were sent."""
    rate_per_s: float | None = None
    total: float | None = None
    total_error: float | None = None
    """Standard error of the total, where not all samples were looked at."""
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    last: float | None = None
    last_s: float | None = None
    quantiles: list[Quantile] | None = None
    relative_error: float | None = None
    """The most that a quantile may be off, as part of the true value."""
    distinct: Count | None = None
    distinct_is_complete: bool | None = None
    """False where members may have been dropped unseen: then there were more."""
    top: list[Frequent] | None = None


class Side(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of two samples: the values of a distribution in a stretch of time."""

    series: Name
    window_s: Annotated[float, Meta(gt=0)] = 60.0
    ago_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long ago the window has ended."""


class CompareRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /compare``."""

    first: Side
    second: Side
    test: str = "ks"
    """ks or mann-whitney."""


class SideAnswer(Struct, frozen=True, kw_only=True):
    """What was compared."""

    series: str
    from_s: float
    until_s: float
    count: float
    effective: float
    """So many equally weighted values would tell as much."""
    median: float


class CompareAnswer(Struct, frozen=True, kw_only=True):
    """``POST /compare``."""

    verdict: Verdict
    first: SideAnswer
    second: SideAnswer
    relative_error: float
    """Values closer together than this count as equal."""
    comparisons: int
    """Asked for within the last hour, this one included."""
    p_value_adjusted: float
    """Times that number (Bonferroni)."""
    warning: str | None = None


class ChangeAnswer(Struct, frozen=True, kw_only=True):
    """A change point and its number."""

    id: int
    point: Noted


class ChangesAnswer(Struct, frozen=True, kw_only=True):
    """``GET /changes``."""

    changes: list[ChangeAnswer]
    next: str | None = None


class Listening(Struct, frozen=True, kw_only=True):
    """``GET /``."""

    service: str
    statsd_udp: str
    statsd_tcp: str
    series: int
    slot_s: int
    longest_window_s: int
    sampled: float
    """The part of datagrams that is looked at now."""


class Value(Struct, frozen=True):
    """The rate of a counter, or the mean of a distribution, in one second."""

    name: str
    kind: Kind
    value: float


class Flush(Struct, frozen=True, kw_only=True, tag="flush"):
    """``/ws/stream``: one second."""

    at_s: float
    values: list[Value]
    more: int
    """Series that had values, and are not among these."""


class Changed(Struct, frozen=True, kw_only=True, tag="change_point"):
    """``/ws/stream``: a change point."""

    point: Noted
