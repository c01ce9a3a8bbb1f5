"""Stretches of time: which are kept, and which make up a window. Pure."""

from __future__ import annotations

from typing import NamedTuple

WIDTHS = (1, 6, 360)
"""Of the three tiers, in slots: with slots of 10 s a minute and an hour."""
KEPT = (48, 390, 9_000)
"""How far back each tier reaches, in slots: 8 minutes, 65 minutes, 25 hours."""
REACH = (30, 360, 8_640)
"""The longest window that begins in a tier: what is kept, less what may be waiting to be joined."""


class Stretch(NamedTuple):
    """Slots of one tier from ``begin`` to before ``end``, in slots since 1970."""

    tier: int
    begin: int
    end: int


def cover(begin: int, end: int, now: int, joined: tuple[int, int, int]) -> list[Stretch]:
    """The stretches that make up the slots from begin to before end, by the coarsest tiers that there are.

    ``joined[tier]`` is up to where that tier is complete. The first stretch may begin earlier than asked
    for, and the last end later: at borders of their tiers.
    """
    first = next((tier for tier in range(len(WIDTHS)) if now - begin <= REACH[tier]), len(WIDTHS) - 1)
    at = begin // WIDTHS[first] * WIDTHS[first]
    stretches = []
    for tier in range(first, 0, -1):
        border = min(joined[tier], end) // WIDTHS[tier] * WIDTHS[tier]
        if now - border > REACH[tier - 1]:  # the finer slots are gone
            border = min(joined[tier], -(-end // WIDTHS[tier]) * WIDTHS[tier])
        if border > at:
            stretches.append(Stretch(tier, at, border))
            at = border
    if end > at:
        stretches.append(Stretch(0, at, end))
    return stretches
