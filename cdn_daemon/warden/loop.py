"""Two ways to wake supervisord's loop: a pipe that every signal and every change of state writes to, and a timer.

No thread. The loop sees a signal at once (stock polls on for up to a second, as
poll(2) is restarted after a signal), and turns once more after each change of
state, as it moves processes on before it reaps them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType


class Waker:
    """A dispatcher for supervisord's socket map. Arm it after daemonising: a fork drops timers."""

    def __init__(self, woken: Callable[[bytes], None]) -> None:
        """woken is called in the loop, with the numbers of the signals that woke it; it must not raise."""
        self._woken = woken
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._period_s = 0.0
        self._old_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGALRM, _ignore)

    def fileno(self) -> int:
        """The end that the loop listens to."""
        return self._reader

    @property
    def period_s(self) -> float:
        """The timer's period."""
        return self._period_s

    def every(self, period_s: float) -> None:
        """Have the timer go off at that period."""
        if period_s != self._period_s:
            self._period_s = period_s
            signal.setitimer(signal.ITIMER_REAL, period_s, period_s)

    def wake(self) -> None:
        """Have the loop turn once more."""
        try:
            os.write(self._writer, b"\0")
        except BlockingIOError:
            return  # full: the loop is about to turn anyway

    def close(self) -> None:
        """Give signals, timer and pipe back."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.set_wakeup_fd(self._old_fd)
        signal.signal(signal.SIGALRM, self._old_handler)
        os.close(self._reader)
        os.close(self._writer)

    # What supervisord's loop asks of a dispatcher:

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Never."""
        return False

    def handle_read_event(self) -> None:
        """Something woke the loop."""
        try:
            woken_by = os.read(self._reader, 65536)
        except BlockingIOError:
            return
        self._woken(woken_by)

    def handle_write_event(self) -> None:
        """Never asked for."""

    def handle_error(self) -> None:
        """woken does not raise, and nothing else here is worth ending supervisord for."""


class Listener:
    """A dispatcher that reads from somebody else's descriptor, such as ZeroMQ's."""

    def __init__(self, fd: int, readable: Callable[[], None]) -> None:
        """readable is called in the loop when there may be something; it must not raise."""
        self._fd = fd
        self._on_readable = readable

    def fileno(self) -> int:
        """The descriptor listened to."""
        return self._fd

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Never."""
        return False

    def handle_read_event(self) -> None:
        """There may be something."""
        self._on_readable()

    def handle_write_event(self) -> None:
        """Never asked for."""

    def handle_error(self) -> None:
        """readable does not raise."""


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler there must be, or SIGALRM would end supervisord."""
