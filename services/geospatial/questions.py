"""What a request for features asks for, read from its query string as OGC API Features Part 1 has it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from msgspec import Struct
from starlette.requests import Request

from cdn_daemon.api import RefusedError, whole_number
from services.geospatial import sphere
from services.geospatial.geojson import Bounds
from services.geospatial.limits import Limits
from services.geospatial.times import Interval, NoTime, interval

ITEMS = ("bbox", "datetime", "limit", "offset", "after", "f")
FORMATS = ("json", "geojson")


class Question(Struct, frozen=True, kw_only=True):
    """Which features, and which page of them."""

    windows: tuple[Bounds, ...] | None
    during: Interval | None
    wanted: dict[str, str]
    """Values of properties."""
    limit: int
    offset: int
    after: int
    """Number of the last feature of the page before."""


def only(request: Request, *names: str, also: Collection[str] = ()) -> None:
    """Raises RefusedError 400 if the query string has other parameters, or one of them twice."""
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in names and name not in also:
            limit = ", ".join([*names, *sorted(also)[:20]]) or "none"
            raise RefusedError(400, "cannot use this parameter", value=name, limit=limit)
        if name in seen:
            raise RefusedError(400, "cannot use this parameter twice", value=name)
        seen.add(name)
    if request.query_params.get("f", "json") not in FORMATS:
        raise RefusedError(
            400, "cannot answer in this format", value=request.query_params["f"], limit=" or ".join(FORMATS)
        )


def read_items(request: Request, names: Sequence[str], limits: Limits) -> Question:
    """The question of GET …/items; raises RefusedError 400."""
    # A property that is called as one of the parameters is hidden by it.
    properties = [name for name in names if name not in ITEMS]
    only(request, *ITEMS, also=properties)
    params = request.query_params
    return Question(
        windows=None if "bbox" not in params else read_bbox(params["bbox"]),
        during=None if "datetime" not in params else read_time(params["datetime"]),
        wanted={name: params[name] for name in properties if name in params},
        limit=_limit(request, limits),
        offset=whole_number(request, "offset", default=0, low=0, high=2**53),
        after=whole_number(request, "after", default=0, low=0, high=2**53),
    )


def _limit(request: Request, limits: Limits) -> int:
    """More than the most is not an error: the most is answered (Requirement 21)."""
    return min(whole_number(request, "limit", default=limits.page_default, low=1, high=2**53), limits.page)


def read_bbox(text: str) -> tuple[Bounds, ...]:
    """Four or six numbers as one or two boxes; heights are read and not used. Raises RefusedError 400."""
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
        if len(numbers) not in (4, 6) or not all(map(math.isfinite, numbers)):
            raise ValueError
        west, south, *_, east, north = numbers if len(numbers) == 4 else [*numbers[:2], *numbers[3:5]]
        if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
            raise ValueError
        if len(numbers) == 6 and numbers[2] > numbers[5]:
            raise ValueError
    except ValueError as error:
        limit = "west,south,east,north, or with heights west,south,low,east,north,high; degrees, south <= north"
        raise RefusedError(400, "cannot use this bbox", value=text, limit=limit) from error
    return tuple(sphere.split(west, south, east, north))


def read_time(text: str) -> Interval:
    """Raises RefusedError 400."""
    try:
        return interval(text)
    except NoTime as error:
        raise RefusedError(
            400,
            f"cannot use this datetime: {error}",
            value=text,
            limit="an instant, or instant/instant with .. for open",
        ) from error


def number(request: Request, name: str, low: float, high: float, default: float | None = None) -> float:
    """A number from the query string; raises RefusedError 400."""
    text = request.query_params.get(name)
    if text is None and default is not None:
        return default
    try:
        value = float((text or "")[:40])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise RefusedError(400, f"cannot use this {name}", value=text, limit=f"{low:g} to {high:g}")
    return value
