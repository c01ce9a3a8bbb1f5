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
from threading import Event, Thread
from typing import Any, TypeVar

import uvloop

from cdn_daemon.ending import ENDING_SIGNALS
from cdn_daemon.service import Ended

T = TypeVar("T")


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
        # Written to by C code, so that a signal is heard even while the function holds up this thread.
        self._woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in ENDING_SIGNALS:
            signal.signal(number, lambda *_: None)
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

        def signalled() -> None:
            for number in os.read(self._woken, 64):
                if number in ENDING_SIGNALS:
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


def _serve(serve: Callable[[], Coroutine[Any, Any, T]], served: Future[T]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            served.set_result(runner.run(serve()))
    except BaseException as error:  # noqa: BLE001 - raised again on the main thread
        served.set_exception(error)
