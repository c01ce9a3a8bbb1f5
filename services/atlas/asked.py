"""What a request of the HTTP API asks for: its parameters, read and held to their limits. Pure.

Times are Unix seconds or RFC 3339 with an offset, both ways in; answers give Unix seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import urlencode

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_LATEST_S = 1e11
"""The year 5138; what is later is in other units."""
_SHOWN_CHARS = 100


class BadQuery(ValueError):
    """A parameter that cannot be; the text says what, and beside it stand its value and what it may be."""

    def __init__(self, what: str, value: str, limit: str) -> None:
        super().__init__(what)
        self.what = what
        self.value = value[:_SHOWN_CHARS]
        self.limit = limit


def only(query: Mapping[str, str], *known: str) -> None:
    """Raise BadQuery at a parameter that is none of these: a misspelt one would be taken for the default."""
    for key in query:
        if key not in known:
            raise BadQuery("cannot use this parameter", key, f"one of {', '.join(known)}" if known else "none")


def moment(query: Mapping[str, str], key: str, default_s: float) -> float:
    """Unix time; raises BadQuery."""
    text = query.get(key)
    if not text:
        return default_s
    what, limit = f"cannot use {key} as a time", "Unix seconds, or RFC 3339 such as 2026-11-23T16:20:13Z"
    value = _number(text)
    told = re.sub(r" (\d\d:\d\d)$", r"+\1", text)  # a + that was not escaped has become a blank
    if _RFC_3339.fullmatch(told):
        try:
            value = datetime.fromisoformat(told.upper()).timestamp()
        except (ValueError, OverflowError) as error:
            raise BadQuery(what, text, limit) from error
    if not 0 <= value <= _LATEST_S:
        raise BadQuery(what, text, limit)
    return value


def whole(query: Mapping[str, str], key: str, default: int, least: int, most: int) -> int:
    """A whole number within limits; raises BadQuery."""
    text = query.get(key)
    if not text:
        return default
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else least - 1
    if not least <= value <= most:
        raise BadQuery(f"cannot use {key}", text, f"a whole number from {least} to {most}")
    return value


def place(query: Mapping[str, str]) -> tuple[float, int] | None:
    """``before``, as ``next`` of an answer has it: a time, and a number among those of that time; raises BadQuery."""
    text = query.get("before")
    if not text:
        return None
    time_s, _, number = text.partition("_")
    value = _number(time_s)
    if not 0 <= value <= _LATEST_S or not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise BadQuery("cannot use before", text, "what next of the answer before has")
    return value, int(number)


def next_page(path: str, query: Mapping[str, str], time_s: float, number: int = 0) -> str:
    """The same question, for what is before that place."""
    return f"{path}?{urlencode({**query, 'before': f'{time_s!r}_{number}'})}"


def _number(text: str) -> float:
    """-1 if it is none."""
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,20})?(e-\d{1,2})?", text, re.ASCII) else -1.0
