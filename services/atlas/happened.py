"""The newest events, at hand; history keeps them for longer."""

from __future__ import annotations

import time
from collections import deque

from msgspec import structs

from bus.messages import Event
from services.atlas.history import History

EVENTS_KEPT = 2000
TEXT_CHARS = 2000
FIELD_CHARS = 256
"""Whoever can publish may send events, and a message may have a MiB."""
AHEAD_S = 60.0


class Happened:
    """What happened last, oldest first; each is told to history as it comes."""

    def __init__(self, history: History | None) -> None:
        self._history = history
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.dropped = 0
        """Too large to be honest."""

    def append(self, event: Event) -> None:
        """It has happened."""
        kept = bounded(event, time.time())
        if kept is None:
            self.dropped += 1
            return
        self._events.append(kept)
        if self._history is not None:
            self._history.tell(kept)

    def restore(self, events: list[Event]) -> None:
        """These had happened before any that are here."""
        self._events = deque([*events, *self._events], maxlen=EVENTS_KEPT)

    def newest(self, limit: int) -> tuple[Event, ...]:
        """The newest, oldest first."""
        return tuple(self._events)[-limit:] if limit > 0 else ()


def bounded(event: Event, now_s: float) -> Event | None:
    """The event with its text cut, and a time that others can be put in order by; None if it is too large otherwise."""
    if max(len(event.id), len(event.kind), len(event.cause or "")) > FIELD_CHARS:
        return None
    if len(event.text) > TEXT_CHARS:
        event = structs.replace(event, text=event.text[:TEXT_CHARS])
    return event if 0 <= event.time_s <= now_s + AHEAD_S else structs.replace(event, time_s=now_s)
