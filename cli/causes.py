"""How events hang together, for people: which is because of which. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from bus.messages import Event

ID_CHARS = 8
"""Of an id are shown, which is enough for ``cdnctl events --chain``."""
_DEEPEST = 20
_REMEMBERED = 10_000


def depth_first(events: Sequence[Event]) -> list[Event]:
    """Each after what it is because of, before whatever else happened meanwhile."""
    ids = {event.id for event in events}
    of: dict[str | None, list[Event]] = defaultdict(list)
    for event in events:
        of[event.cause if event.cause in ids and event.cause != event.id else None].append(event)
    found: dict[str, Event] = {}
    waiting = of[None][::-1]
    while waiting:
        event = waiting.pop()
        if event.id not in found:
            found[event.id] = event
            waiting += of[event.id][::-1]
    return [*found.values(), *(event for event in events if event.id not in found)]  # the latter are in a circle


class Branches:
    """Says of one event after another, as they are shown, how it hangs on those before."""

    def __init__(self) -> None:
        self._depths: dict[str, int] = {}
        """Of what is shown."""
        self._branch: list[str] = []
        """The last that was shown, after all that led to it."""

    def text(self, event: Event) -> str:
        """The event's text: below what it is because of, or with that after it; and its id, if others may hang on it.

        What is because of nothing that is shown is as it is.
        """
        text = f"{event.text} [{event.id[:ID_CHARS]}]" if event.facts else event.text
        cause = event.cause
        if cause is None or cause not in self._depths:
            self._show(event, 0, [])
            return text
        depth = min(self._depths[cause] + 1, _DEEPEST)
        if cause in self._branch:
            self._show(event, depth, self._branch[: self._branch.index(cause) + 1])
        else:
            text = f"{text} (because of {cause[:ID_CHARS]})"
            self._show(event, depth, [cause])
        return f"{'  ' * (depth - 1)}└ {text}"

    def _show(self, event: Event, depth: int, before: list[str]) -> None:
        self._depths[event.id] = depth
        self._branch = [*before, event.id][-_DEEPEST:]
        if len(self._depths) > _REMEMBERED:
            del self._depths[next(iter(self._depths))]
