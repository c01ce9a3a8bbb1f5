"""Who watches crossings by WebSocket. One that reads too slowly is let go; nobody waits for it."""

from __future__ import annotations

import asyncio

from services.geospatial.fences import Crossing
from services.geospatial.limits import Limits

Waiting = asyncio.Queue[Crossing | None]


class Watchers:
    """On the event loop alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: set[Waiting] = set()
        self.let_go = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> Waiting | None:
        """What comes from now on; None in it is the end. None instead of it if too many watch."""
        if len(self._waiting) >= self._limits.watchers:
            return None
        waiting: Waiting = asyncio.Queue()
        self._waiting.add(waiting)
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """It watches no more."""
        self._waiting.discard(waiting)

    def tell(self, crossing: Crossing) -> None:
        """Have every one sent this."""
        for waiting in [*self._waiting]:
            if waiting.qsize() < self._limits.watcher_waiting:
                waiting.put_nowait(crossing)
            else:
                waiting.put_nowait(None)
                self._waiting.discard(waiting)
                self.let_go += 1

    def end(self) -> None:
        """Let all go; the service ends."""
        for waiting in self._waiting:
            waiting.put_nowait(None)
        self._waiting.clear()
