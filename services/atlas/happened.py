"""The newest events, at hand; history keeps them for longer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection

import msgspec
from msgspec import structs

from bus.messages import Event
from services.atlas.history import History

EVENTS_KEPT = 2000
"""Of all, and once more of those that services tell each other: others may not push them out."""
KNOWN = 20_000
TEXT_CHARS = 2000
FIELD_CHARS = 256
FACTS_BYTES = 4096
"""Whoever can publish may send events, and a message may have a MiB."""
AHEAD_S = 60.0
NAMES_NUMBERED = 50_000


class Numbering:
    """1, 2, 3 … for each name. Of too many names the one not used for longest is forgotten, and yet never goes back."""

    def __init__(self, most: int = NAMES_NUMBERED) -> None:
        self._most = most
        self._last: dict[str, int] = {}
        """In the order of their use."""
        self._forgotten = 0
        """The largest number of a name that has been forgotten."""

    def next(self, name: str) -> int:
        """The name's next number; after it was forgotten a larger one than it ever had, which looks like a gap."""
        number = self._last.pop(name, self._forgotten) + 1
        self._last[name] = number
        if len(self._last) > self._most:
            self._forgotten = max(self._forgotten, self._last.pop(next(iter(self._last))))
        return number


class Happened:
    """What happened last, oldest first; each is told to history as it comes."""

    def __init__(self, history: History | None) -> None:
        self._history = history
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._told: deque[Event] = deque(maxlen=EVENTS_KEPT)
        """Those with facts."""
        self._known: dict[str, bool] = {}
        """Id → whether it came in this ATLAS's life, rather than out of history."""
        self.dropped = 0
        """Too large to be honest."""
        self.repeated = 0

    def append(self, event: Event) -> Event | None:
        """It has happened: the event as it is kept, for all who hear ATLAS; None if it is no news, or none that may be.

        What ATLAS only remembers from its life before is news once more: who hears may not have heard that life's.
        """
        kept = bounded(event, time.time())
        if kept is None:
            self.dropped += 1
            return None
        came = self._known.pop(kept.id, None)
        self._know(kept.id, True)
        if came:
            self.repeated += 1
            return None
        if came is None:
            self._events.append(kept)
            if kept.facts:
                self._told.append(kept)
            if self._history is not None:
                self._history.tell(kept)
        return kept

    def _know(self, id: str, came: bool) -> None:
        self._known[id] = came
        if len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]

    def restore(self, events: list[Event]) -> None:
        """These had happened before any that are here, as far as they are not here."""
        before = [event for event in events if event.id not in self._known]
        self._events = deque([*before, *self._events], maxlen=EVENTS_KEPT)
        self._told = deque([*(event for event in before if event.facts), *self._told], maxlen=EVENTS_KEPT)
        for event in before:
            self._know(event.id, False)

    def newest(self, limit: int, kinds: Collection[str] = ()) -> tuple[Event, ...]:
        """The newest, of these kinds if any are given, oldest first."""
        if limit <= 0:
            return ()
        if not kinds:
            return tuple(self._events)[-limit:]
        found = {event.id: event for event in (*self._told, *self._events) if event.kind in kinds}
        return tuple(sorted(found.values(), key=lambda event: event.time_s))[-limit:]


def bounded(event: Event, now_s: float) -> Event | None:
    """The event with its text cut, and a time that others can be put in order by; None if it is too large otherwise.

    Or if its facts cannot be told in JSON, as history and the HTTP API do.
    """
    if max(len(event.id), len(event.kind), len(event.cause or "")) > FIELD_CHARS:
        return None
    if event.facts:
        try:
            if len(msgspec.json.encode(event.facts)) > FACTS_BYTES:
                return None
        except (TypeError, ValueError, RecursionError):
            return None
    if len(event.text) > TEXT_CHARS:
        event = structs.replace(event, text=event.text[:TEXT_CHARS])
    return event if 0 <= event.time_s <= now_s + AHEAD_S else structs.replace(event, time_s=now_s)
