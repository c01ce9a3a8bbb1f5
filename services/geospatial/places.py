"""The service as one thing: the store, positions as they come, and whom crossings are told to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bus.messages import Fence
from cdn_daemon.api import Token
from services.geospatial.fences import Crossing, Position
from services.geospatial.limits import Limits
from services.geospatial.store import Moved, Store
from services.stream import Watchers

log = logging.getLogger(__name__)

PACK_EVERY_S = 0.1
TOLD_AGAIN = 200
TOLD_AGAIN_S = 600.0
"""What was crossed so short before a restart is told again, under the same id: it may not have got out."""


class Places:
    """What the server and the loop share."""

    def __init__(self, directory: Path, token: Path, limits: Limits | None = None) -> None:
        self.limits = limits if limits is not None else Limits()
        self.store = Store(directory, self.limits)
        self.token = Token(token)
        self.watchers: Watchers[Crossing] = Watchers(self.limits.watchers, self.limits.watcher_waiting)
        self.emit: Callable[..., str] | None = None
        """Tells the other services; set by whoever runs this as a service."""
        self.told = 0

    def open(self) -> None:
        """Open the store, see that there is a token, and tell again what may not have got out."""
        self.store.open()
        self.token.arm()
        since_s = time.time() - TOLD_AGAIN_S
        for one in self.store.crossings(max(self.store.crossing - TOLD_AGAIN, 0), TOLD_AGAIN):
            if one.at_s >= since_s:
                self._tell(one)

    async def background(self) -> None:
        """Pack trees anew whose deltas have grown, until cancelled."""
        while True:
            await asyncio.sleep(PACK_EVERY_S)
            for one in self.store.collections.values():
                if one.layer.is_due():
                    await asyncio.to_thread(one.layer.pack)

    async def move(self, positions: Sequence[Position]) -> Moved:
        """Objects were there: on disk, found, and told, in this order. Raises RefusedError."""
        moved = await asyncio.wrap_future(self.store.move(positions))
        for one in moved.crossings:
            self._tell(one)
            self.watchers.tell(one)
        return moved

    def _tell(self, one: Crossing) -> None:
        if self.emit is None:
            return
        said = "entered" if one.crossing == "enter" else "left"
        facts = Fence(object=one.object, fence=one.fence, crossing=one.crossing, lon=one.lon, lat=one.lat)
        try:
            self.emit(facts, f"{one.object} has {said} {one.fence}", id=one.id)
            self.told += 1
        except ValueError as error:
            log.warning("cannot tell that %s has %s %s: %s", one.object, said, one.fence, error)
