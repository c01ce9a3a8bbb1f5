"""Follows the fleet's statuses on a thread of its own, and tells which services there are and where."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from bus.messages import DaemonStatus
from bus.subscriber import Subscriber
from bus.topics import STATUS

WAIT_S = 0.2
FORGET_S = 300.0
"""Who was not heard for so long is no target any more, as long as others are heard: else the silence is ATLAS's."""
ALIVE_S = 5.0


class Feed:
    """Tells ``found`` of {instance: (service, address)} whenever that is another; on its own thread."""

    def __init__(self, endpoint: str, found: Callable[[Mapping[str, tuple[str, str]]], None]) -> None:
        self._endpoint = endpoint
        self._found = found
        self._known: dict[str, tuple[str, str]] = {}
        self._heard_s: dict[str, float] = {}
        self._stop = threading.Event()

    def recall(self, known: Mapping[str, tuple[str, str]]) -> None:
        """Begin with these."""
        self._known = dict(known)
        self._heard_s = dict.fromkeys(known, time.monotonic())

    def follow(self) -> None:
        """Read the feed until stop is called; runs on the thread that is to own the socket."""
        subscriber = Subscriber(self._endpoint, (STATUS,))
        last_s = float("-inf")
        try:
            while not self._stop.is_set():
                message = subscriber.receive(WAIT_S)
                now_s = time.monotonic()
                changed = False
                if isinstance(message, DaemonStatus) and message.address is not None:
                    last_s = now_s
                    self._heard_s[message.instance] = now_s
                    place = (message.service, message.address)
                    changed = self._known.get(message.instance) != place
                    self._known[message.instance] = place
                if now_s - last_s < ALIVE_S:
                    gone = [name for name, heard_s in self._heard_s.items() if now_s - heard_s > FORGET_S]
                    for name in gone:
                        del self._heard_s[name]
                        self._known.pop(name, None)
                    changed = changed or bool(gone)
                if changed:
                    self._found(dict(self._known))
        finally:
            subscriber.close()

    def stop(self) -> None:
        """Have follow return; from any thread."""
        self._stop.set()
