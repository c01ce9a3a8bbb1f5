"""Durations on the command line: 500ms, 30s, 2m, 1h; a bare number is seconds."""

from __future__ import annotations

import re

import click

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h|)", re.ASCII)

LONGEST_S = 3600.0
"""ATLAS follows no command for longer."""


class Duration(click.ParamType[float]):
    """A duration in seconds, over 0 and at most ``longest_s``."""

    name = "duration"

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self._longest_s = longest_s

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; a usage error if it is none."""
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a duration; write it as 500ms, 30s or 2m", param, ctx)
        seconds = float(found[1]) * _UNITS_S[found[2]]
        if not 0 < seconds <= self._longest_s:
            self.fail(f"{value!r} must be over 0 and at most {self._longest_s / 3600:g}h", param, ctx)
        return seconds
