"""Letting go of the GIL of one's own accord, so that the event loop gets it.

A thread busy in Python gives it up only after the interpreter's switch interval, and one that fetches rows
from SQLite gives it up for each row and has it back before another has woken up. The event loop waited up to
1.2 s for a 60 MB upload that way, and for 60 ms at a time while four readers fetched 100,000 rows each.
"""

from __future__ import annotations

import time

BREATH_S = 0.0002


def breathe() -> None:
    """To be called by a busy thread, every millisecond or so."""
    time.sleep(BREATH_S)
