"""Follows the fleet's statuses on a thread of its own, and swaps the routing table.

The thread is needed because a ZeroMQ socket belongs to one thread, and the
table is immutable because the server's loop reads it while the thread goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from bus.messages import DaemonStatus
from bus.subscriber import Subscriber
from bus.topics import STATUS
from services.gateway.routes import Known, Table, hear, restore
from services.gateway.snapshot import SnapshotError, load, save

log = logging.getLogger(__name__)

WAIT_S = 0.2
"""The longest that stopping waits for the thread to look."""
GATHER_S = 0.02
"""Statuses that come within this time are folded in together: a fleet of 1,000 sends as many a second."""
BATCH = 2000
SAVE_EVERY_S = 1.0


class Feed:
    """The routing table, kept current; ``table`` may be read from any thread."""

    def __init__(self, endpoint: str, snapshot: Path, hidden: frozenset[str]) -> None:
        self._endpoint = endpoint
        self._snapshot = snapshot
        self.table = Table(hidden=hidden)
        self.dropped = 0
        """Frames on the feed that were no messages."""
        self.saves_failed = 0
        self._saved: Mapping[str, object] = {}
        self._saved_s = float("-inf")
        self._stop = threading.Event()

    def recall(self) -> None:
        """Begin with the routes that the last process left; what is unusable is logged and passed over."""
        try:
            known = load(self._snapshot)
        except SnapshotError as error:
            log.warning("%s; beginning without", error)
            return
        self.table = restore(self.table.hidden, known)
        self._saved = _essence(known)
        if known:
            log.info("%d instances recalled from %s", len(known), self._snapshot)

    def follow(self) -> None:
        """Read the feed until stop is called; runs on the thread that is to own the socket."""
        subscriber = Subscriber(self._endpoint, (STATUS,))
        try:
            while not self._stop.is_set():
                statuses = _gather(subscriber)
                self.dropped = sum(subscriber.dropped.values())
                if statuses:
                    self.table = hear(self.table, statuses, time.monotonic())
                self._keep()
        finally:
            subscriber.close()

    def stop(self) -> None:
        """Have follow return; from any thread."""
        self._stop.set()

    def _keep(self) -> None:
        """Write the table to disk if routing by it would differ from routing by the one there."""
        now_s = time.monotonic()
        if now_s - self._saved_s < SAVE_EVERY_S:
            return
        essence = _essence(self.table.known)
        self._saved_s = now_s
        if essence == self._saved:
            return
        try:
            save(self._snapshot, self.table.known)
        except OSError as error:
            if not self.saves_failed:
                log.warning("cannot keep the routes in %s: %s; routing goes on", self._snapshot, error.strerror)
            self.saves_failed += 1
            return
        self._saved = essence


def _gather(subscriber: Subscriber) -> list[DaemonStatus]:
    statuses: list[DaemonStatus] = []
    message = subscriber.receive(WAIT_S)
    if message is None:
        return statuses
    time.sleep(GATHER_S)
    while message is not None:
        if isinstance(message, DaemonStatus):
            statuses.append(message)
        message = subscriber.receive(0) if len(statuses) < BATCH else None
    return statuses


def _essence(known: Mapping[str, Known]) -> dict[str, object]:
    return {name: (held.target, held.incarnation, held.phase, held.health) for name, held in known.items()}
