"""A service that is a plain function: it has the main thread, and the server beside it another.

The daemon's pulse goes through the server's loop. It tells a held interpreter, and
nothing of the function itself, which may wait for hours in good health.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread
from typing import Any, TypeVar

import uvloop

from cdn_daemon.ending import ENDING_SIGNALS
from cdn_daemon.service import Ended

T = TypeVar("T")

_BY_HANDLER = 128
"""Set in the byte that a handler writes; signal numbers are below it."""


class MainThread:
    """One function, run once beside one server."""

    def __init__(self, function: Callable[[Event], Any]) -> None:
        self._function = function
        self._stop = Event()
        self._may_begin = Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._returned: Callable[[BaseException | None], None] | None = None
        self._over = asyncio.Event()
        self._woken = -1

    # -- the main thread ------------------------------------------------------------------------------

    def run_beside(self, serve: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Serve on another thread; once it listens call the function; return what serving returns."""
        # Told twice of each signal: by C code, so that it is heard even while the function holds up this thread,
        # and by a handler, as an event loop that the function runs has the C code tell that loop instead.
        self._woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda number, _: _tell(wake, number | _BY_HANDLER))
        served: Future[T] = Future()
        served.add_done_callback(lambda _: self._may_begin.set())
        Thread(target=_serve, args=(serve, served), name="cdn-server", daemon=True).start()
        self._may_begin.wait()
        if not served.done():
            error = self._call()
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._end, error)
        return served.result()

    def _call(self) -> BaseException | None:
        try:
            self._function(self._stop)
        except SystemExit as end:
            if end.code in (None, 0):
                return None
            code = end.code if isinstance(end.code, int) else 1
            return Ended((code & 255) << 8, f"the service's main function ended with sys.exit({end.code!r})")
        except BaseException as error:  # noqa: BLE001 - an author's code may raise anything; it is told to the host
            return error
        return None

    # -- the server's thread --------------------------------------------------------------------------

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        told_to_end: Callable[[], None],
        returned: Callable[[BaseException | None], None],
    ) -> None:
        """Whom to tell of signals, and of the function's end."""
        self._loop, self._returned = loop, returned

        by_code = by_handler = told = 0

        def signalled() -> None:
            nonlocal by_code, by_handler, told
            for byte in os.read(self._woken, 512):
                by_code += byte in ENDING_SIGNALS
                by_handler += byte & ~_BY_HANDLER in ENDING_SIGNALS and bool(byte & _BY_HANDLER)
            while told < max(by_code, by_handler):
                told += 1
                told_to_end()

        loop.add_reader(self._woken, signalled)

    def begin(self) -> None:
        """The server listens."""
        self._may_begin.set()

    async def stop(self) -> None:
        """Tell the function to return, and wait until it has."""
        self._stop.set()
        await self._over.wait()

    def _end(self, error: BaseException | None) -> None:
        self._over.set()
        assert self._returned is not None
        self._returned(error)


def _tell(wake: int, byte: int) -> None:
    with suppress(BlockingIOError):  # thousands are waiting to be read: one more would change nothing
        os.write(wake, bytes([byte]))


def _serve(serve: Callable[[], Coroutine[Any, Any, T]], served: Future[T]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            served.set_result(runner.run(serve()))
    except BaseException as error:  # noqa: BLE001 - raised again on the main thread
        served.set_exception(error)
