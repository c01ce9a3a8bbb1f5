"""Whether the service's own loop still turns.

A daemon thread that ticks proves nothing about the event loop beside it, so the
loop has to answer a pulse. The age of an unanswered one is the loop's lag.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Pulse:
    """One pulse at a time; ``send`` and ``lag_s`` are the daemon's, the answer comes from the loop."""

    def __init__(self, call_soon_threadsafe: Callable[..., Any]) -> None:
        self._call = call_soon_threadsafe
        self.sent_s: float | None = None
        """When, if it is still unanswered."""
        self._last_lag_s: float | None = None

    def send(self, now_s: float) -> None:
        """Send one unless the last is still unanswered; quiet once the loop has closed."""
        if self.sent_s is not None:
            return
        self.sent_s = now_s
        try:
            self._call(self._answer)
        except RuntimeError:  # the loop is closed: the process is on its way out
            self.sent_s = None

    def _answer(self) -> None:
        sent_s = self.sent_s
        if sent_s is not None:
            self._last_lag_s = time.monotonic() - sent_s
            self.sent_s = None

    def lag_s(self, now_s: float) -> float | None:
        """How long the loop takes to answer, or has not answered for; None before its first answer."""
        sent_s, last_s = self.sent_s, self._last_lag_s
        if sent_s is None:
            return last_s
        return max(now_s - sent_s, last_s or 0.0)

    def restart_window(self, now_s: float) -> None:
        """The observer itself was away: what it waits for gets its full time again."""
        if self.sent_s is not None:
            self.sent_s = now_s
        self._last_lag_s = None
