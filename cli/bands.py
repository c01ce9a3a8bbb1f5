"""Limits on the command line: what is in effect beside what is used, and changes to it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from bus.messages import Band, DaemonStatus, Limits
from cli.answers import Column, Listing
from cli.rendering import Cell, clean, duration, quantity

DIMENSIONS = tuple(Limits.__struct_fields__)
_FIELDS = ("soft", "hard", "for_s")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(?:([kmgt])(?:i?b)?)?", re.IGNORECASE | re.ASCII)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class BandError(ValueError):
    """A change that cannot be; the text says what, its value and what it may be."""


class Row(NamedTuple):
    """One quantity of one service."""

    name: str
    dimension: str
    used: float | None
    band: Band | None

    @property
    def colour(self) -> str:
        """Red above hard, yellow above soft."""
        if self.used is None or self.band is None:
            return ""
        if self.band.hard is not None and self.used > self.band.hard:
            return "red"
        return "yellow" if self.used > self.band.soft else "green"

    @property
    def plain(self) -> dict[str, object]:
        """For JSON: raw bytes, cores and seconds; null where there is no limit or nothing is known."""
        band = self.band
        return {
            "name": self.name,
            "limit": self.dimension,
            "used": self.used,
            "soft": band.soft if band else None,
            "hard": band.hard if band else None,
            "for_s": band.for_s if band else None,
        }


def _bound(field: str) -> Column:
    return Column(
        field.upper(),
        lambda row: Cell(quantity(row.dimension, getattr(row.band, field) if row.band else None)),
        lambda row: getattr(row.band, field) if row.band else None,
    )


LIMITS = Listing(
    "limits",
    (
        Column("NAME", lambda row: Cell(clean(row.name), "bold"), lambda row: row.name),
        Column("LIMIT", lambda row: Cell(row.dimension), lambda row: row.dimension),
        Column("USED", lambda row: Cell(quantity(row.dimension, row.used), row.colour), lambda row: row.used),
        _bound("soft"),
        _bound("hard"),
        Column(
            "FOR",
            lambda row: Cell(duration(row.band.for_s if row.band else None)),
            lambda row: row.band.for_s if row.band else None,
        ),
    ),
    lambda row: str(row.name),
    lambda row: row.plain,
)


def rows(status: DaemonStatus) -> list[Row]:
    """Every quantity, limited or not."""
    limits = status.limits or Limits()
    return [
        Row(status.instance, name, getattr(status.metrics.vitals, name), getattr(limits, name)) for name in DIMENSIONS
    ]


def changed(limits: Limits, changes: Sequence[str]) -> Limits:
    """Only the bands that the changes are about, as they are then. Raises BandError.

    A change is ``rss_bytes.hard=1G`` for one bound, or ``rss_bytes=512M:1G:10`` for soft, hard and seconds.
    """
    bands: dict[str, Band] = {}
    for change in changes:
        target, equals, value = change.partition("=")
        dimension, _, field = target.partition(".")
        if dimension not in DIMENSIONS or not equals or (field and field not in _FIELDS):
            raise BandError(
                f"cannot set {change!r}: write LIMIT.soft=, LIMIT.hard= or LIMIT.for_s=, with LIMIT one of "
                f"{', '.join(DIMENSIONS)}"
            )
        held = bands.get(dimension) or getattr(limits, dimension)
        bands[dimension] = _bounded(held, field, value, change) if field else _whole(value, change)
        band = bands[dimension]
        if band.hard is not None and band.hard < band.soft:
            raise BandError(f"cannot set {change!r}: hard would be {band.hard:g}, below soft, which is {band.soft:g}")
    return Limits(**bands)


def _bounded(held: Band | None, field: str, value: str, change: str) -> Band:
    amount = None if field == "hard" and value.lower() in ("", "none") else _amount(value, change)
    if held is not None:
        return replace(held, **{field: amount})
    if field == "for_s" or amount is None:
        raise BandError(f"cannot set {change!r}: there is no such limit yet; set it whole, as LIMIT=SOFT:HARD:SECONDS")
    return Band(soft=amount, hard=amount if field == "hard" else None)  # where nothing was, there is no step before


def _whole(value: str, change: str) -> Band:
    soft, *more = value.split(":")
    if len(more) > 2:
        raise BandError(f"cannot set {change!r}: at most SOFT:HARD:SECONDS")
    return Band(
        soft=_amount(soft, change),
        hard=_amount(more[0], change) if more and more[0] else None,
        for_s=_amount(more[1], change) if len(more) > 1 else 0.0,
    )


def _amount(text: str, change: str) -> float:
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise BandError(f"cannot set {change!r}: {text!r} is no number; write it as 120, 0.5, 512M or 1G")
    return float(found[1]) * _FACTORS[(found[2] or "").lower()]
