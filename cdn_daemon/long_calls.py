"""Declared long work: a call that holds up the event loop, or the whole interpreter, and is no hang.

    with long_call(5):
        model.fit(rows)

Until it ends, or its time is over, neither the daemon nor the warden takes the
silence for a fault. Prefer a thread or a process for work that need not block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Lock

from cdn_daemon.notify import Notifier

MAX_S = 3600.0


class LongCalls:
    """The long calls under way in this process; any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._until_s: dict[int, float] = {}
        self._ids = count()
        self.notifier: Notifier | None = None
        """Set by the host; tells the supervisor, which would otherwise judge the silence."""

    def until_s(self) -> float:
        """Monotonic time until which nobody is to be accused; 0.0 when nothing is under way."""
        with self._lock:
            return max(self._until_s.values(), default=0.0)

    def begin(self, seconds: float) -> int:
        """A call begins that may take so long; raises ValueError if that is not over 0 and at most MAX_S."""
        if not 0 < seconds <= MAX_S:
            raise ValueError(f"cannot declare a call of {seconds} s: it must be over 0 and at most {MAX_S:g}")
        call = next(self._ids)
        with self._lock:
            self._until_s[call] = time.monotonic() + seconds
        self._tell()
        return call

    def end(self, call: int) -> None:
        """It is over."""
        with self._lock:
            del self._until_s[call]
        self._tell()

    def _tell(self) -> None:
        if self.notifier is not None:
            left_s = max(0.0, self.until_s() - time.monotonic())
            self.notifier.send(WATCHDOG=1, EXTEND_TIMEOUT_USEC=max(1, int(left_s * 1e6)))


LONG_CALLS = LongCalls()


@contextmanager
def long_call(seconds: float) -> Iterator[None]:
    """Declare that what follows may silence the loop or the process for up to ``seconds``."""
    call = LONG_CALLS.begin(seconds)
    try:
        yield
    finally:
        LONG_CALLS.end(call)
