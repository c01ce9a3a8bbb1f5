"""How many connections ATLAS takes in: every service is two, every connection a file descriptor. Pure."""

from __future__ import annotations

_LEFT = 400
_LEFT_PART = 5


def full_at(limit: int) -> int:
    """Of so many descriptors, how many may be open when the bus lets nobody else connect.

    A fifth is kept, or 400, for all else that ATLAS opens, and for who connects before it is noticed; but never
    more than half.
    """
    return limit - min(limit // 2, max(_LEFT, limit // _LEFT_PART))
