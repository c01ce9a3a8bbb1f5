"""Declared work: what has to be over by a deadline, or its process is stuck.

    with work("refresh the cache", deadline_s=30):
        with lock_a, lock_b:
            …

An event loop that turns and a daemon that ticks do not show that a thread waits
for a lock for ever; its missed deadline does. The process then leaves the stacks
of all its threads and is replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

MAX_S = 86400.0


@dataclass(frozen=True)
class Work:
    """One piece under way."""

    name: str
    thread: str
    deadline_s: float
    """As declared, from its beginning."""
    due_s: float
    """Monotonic."""


class Works:
    """All that is under way in this process; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[int, Work] = {}
        self._ids = count()

    def begin(self, name: str, deadline_s: float) -> int:
        """Work begins; raises ValueError for a deadline that is not over 0 and at most MAX_S."""
        if not 0 < deadline_s <= MAX_S:
            raise ValueError(f"cannot begin {name} with deadline_s={deadline_s}: it must be over 0, at most {MAX_S:g}")
        one = Work(name, threading.current_thread().name, deadline_s, time.monotonic() + deadline_s)
        id_ = next(self._ids)
        with self._lock:
            self._under_way[id_] = one
        return id_

    def end(self, id_: int) -> None:
        """It is over."""
        with self._lock:
            self._under_way.pop(id_, None)

    def overdue(self, now_s: float) -> Work | None:
        """What should have been over first; None if nothing is late."""
        if not self._under_way:
            return None
        with self._lock:
            late = [one for one in self._under_way.values() if now_s > one.due_s]
        return min(late, key=lambda one: one.due_s, default=None)

    def postpone(self, late_s: float) -> None:
        """The whole process was away for late_s: all under way gets that time again."""
        with self._lock:
            for id_, one in self._under_way.items():
                self._under_way[id_] = Work(one.name, one.thread, one.deadline_s, one.due_s + late_s)


WORKS = Works()


@contextmanager
def work(name: str, *, deadline_s: float) -> Iterator[None]:
    """Declare that what follows is over within ``deadline_s``, or else the process is stuck."""
    id_ = WORKS.begin(name, deadline_s)
    try:
        yield
    finally:
        WORKS.end(id_)
