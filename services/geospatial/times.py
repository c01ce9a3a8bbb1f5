"""Instants and intervals as RFC 3339 and OGC API Features write them, in seconds since 1970. Pure."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime
from typing import Any

Interval = tuple[float, float]
"""From, until; both included, and infinite where it is open."""

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)?")
DAY_S = 86_400.0
ALWAYS: Interval = (-math.inf, math.inf)
FIRST_S, LAST_S = -62_135_596_800.0, 253_402_300_799.9995
"""The years 1 to 9999, in UTC: RFC 3339 has no other. With an offset an instant may lie beyond them."""


class NoTime(ValueError):
    """What was sent is no time; the text says why."""


def moment(text: str) -> Interval:
    """An instant as an interval of no length, a date as its whole day in UTC; raises NoTime."""
    try:
        if _DATE.fullmatch(text):
            at = date.fromisoformat(text)
            begin_s = datetime(at.year, at.month, at.day, tzinfo=UTC).timestamp()
            return begin_s, begin_s + DAY_S - 1e-6
        if _INSTANT.fullmatch(text):
            instant = datetime.fromisoformat(text.upper())
            # Without an offset it is taken for UTC, never for the zone that this machine happens to be in.
            at_s = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
            return at_s, at_s
    except (ValueError, OverflowError) as error:
        raise NoTime(str(error)) from error
    raise NoTime("it must be like 2026-11-23T20:00:00Z or 2026-11-23")


def interval(text: str) -> Interval:
    """``t``, ``t/t``, ``../t``, ``t/..``; an empty end is an open one too. Raises NoTime."""
    first, slash, last = text.partition("/")
    if not slash:
        return moment(first)
    if first in ("", "..") and last in ("", ".."):
        return ALWAYS
    begin = -math.inf if first in ("", "..") else moment(first)[0]
    end = math.inf if last in ("", "..") else moment(last)[1]
    if begin > end:
        raise NoTime("it ends before it begins")
    return begin, end


def _or_none(value: Any) -> Interval | None:
    if not isinstance(value, str):
        return None
    try:
        return moment(value)
    except NoTime:
        return None


NAMES = ("datetime", "time", "timestamp", "date")
SPANS = (("start_datetime", "end_datetime"), ("start", "end"))


def of_properties(properties: dict[str, Any]) -> Interval | None:
    """When a feature is, by the first of the usual names that holds a time; None if none does."""
    for name in NAMES:
        if name in properties and (found := _or_none(properties[name])):
            return found
    for first, last in SPANS:
        begin, end = _or_none(properties.get(first)), _or_none(properties.get(last))
        if begin or end:
            return begin[0] if begin else -math.inf, end[1] if end else math.inf
    return None


def written(at_s: float) -> str:
    """RFC 3339, in UTC, to the millisecond; of what it has no words for, the nearest that it has."""
    return (
        datetime.fromtimestamp(min(max(at_s, FIRST_S), LAST_S), UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def written_or_open(at_s: float) -> str | None:
    """The same; None if there is no such end."""
    return written(at_s) if math.isfinite(at_s) else None
