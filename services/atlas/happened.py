"""The newest events, at hand; history keeps them for longer."""

from __future__ import annotations

from collections import deque

from bus.messages import Event
from services.atlas.history import History

EVENTS_KEPT = 2000


class Happened:
    """What happened last, oldest first; each is told to history as it comes."""

    def __init__(self, history: History | None) -> None:
        self._history = history
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)

    def append(self, event: Event) -> None:
        """It has happened."""
        self._events.append(event)
        if self._history is not None:
            self._history.tell(event)

    def restore(self, events: list[Event]) -> None:
        """These had happened before any that are here."""
        self._events = deque([*events, *self._events], maxlen=EVENTS_KEPT)

    def newest(self, limit: int) -> tuple[Event, ...]:
        """The newest, oldest first."""
        return tuple(self._events)[-limit:] if limit > 0 else ()
