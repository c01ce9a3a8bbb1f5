"""What runs beside the tick: health checks, the loop's act and undo, shedding.

All of it is the service's own code and may block; here it is started on a
thread or on the service's loop, and collected when it is over.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cdn_daemon.health import Check, HealthMonitor, fit
from cdn_daemon.ooda import OodaLoop, Work

log = logging.getLogger(__name__)

MAX_THREADS = 4


class Beside:
    """One per daemon, on its thread; ``loop`` is the service's, where async functions run."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._threads = ThreadPoolExecutor(max_workers=MAX_THREADS, thread_name_prefix="cdn-work")

    def start(self, function: Callable[..., Any], *arguments: Any, is_async: bool = False) -> Future[Any]:
        """Call a function: an async one on the loop, a plain one on a thread."""
        if is_async:
            assert self.loop is not None
            return asyncio.run_coroutine_threadsafe(function(*arguments), self.loop)
        return self._threads.submit(function, *arguments)

    def start_and_forget(self, what: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function whose result nobody waits for; its failure is logged."""

        def ended(future: Future[Any]) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                log.error("%s failed", what, exc_info=error)

        is_async = inspect.iscoroutinefunction(function)
        self.start(function, *arguments, is_async=is_async).add_done_callback(ended)

    def close(self) -> None:
        """Start nothing more; what runs is left to run."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Checks:
    """Starts the health checks that are due, and tells the monitor how they ended."""

    def __init__(self, monitor: HealthMonitor, beside: Beside) -> None:
        self._monitor = monitor
        self._beside = beside
        self._running: dict[str, Future[Any]] = {}
        self.next_s = -math.inf
        """Before it ``run`` would do nothing."""

    def all_now(self) -> None:
        """Make every check due."""
        self._monitor.all_due()
        self.next_s = -math.inf

    def run(self, now_s: float, *, start: bool) -> None:
        """Collect what has ended, fail what takes too long, and start what is due, if asked to."""
        for name, future in list(self._running.items()):
            if future.done():
                del self._running[name]
                self._monitor.finished(name, _failure(future))
        if start:
            for check in self._monitor.due(now_s):
                self._start(check, now_s)
        self._monitor.tick(now_s)
        self.next_s = -math.inf if self._running else self._monitor.next_s()

    def _start(self, check: Check, now_s: float) -> None:
        self._monitor.started(check.name, now_s)
        self._running[check.name] = self._beside.start(check.function, is_async=check.is_async)


class LoopWork:
    """Steps a control loop, and does what a step hands out; one thing at a time."""

    def __init__(self, loop: OodaLoop[Any, Any, Any], beside: Beside) -> None:
        self._loop = loop
        self._beside = beside
        self._working: Future[Any] | None = None
        self.next_s = -math.inf
        """Before it ``step`` would do nothing."""

    def step(self, now_s: float, *, go_on: bool) -> None:
        """Collect the work that has ended, and take one step if asked to; raises what the loop's hooks raise."""
        self._step(now_s, go_on=go_on)
        self.next_s = -math.inf if self._working is not None else self._loop.next_s()

    def _step(self, now_s: float, *, go_on: bool) -> None:
        if self._working is not None:
            if not self._working.done():
                return
            error = self._working.exception()
            self._working = None
            self._loop.finished(now_s, error)
            if error is not None:
                log.error("the loop's work failed", exc_info=error)
        if go_on and (work := self._loop.step(now_s)) is not None:
            self._working = self._beside.start(_logged(work))


def _logged(work: Work) -> Callable[[], None]:
    def run() -> None:
        log.info("loop: %s", work.name)
        work.run()

    return run


def _failure(future: Future[Any]) -> str | None:
    """Why a finished check failed; None if it passed. It passes by returning None or True."""
    if future.cancelled():
        return "cancelled"
    error = future.exception()
    if error is not None:
        return brief(error)
    answer = future.result()
    if answer is None or answer is True:
        return None
    try:
        return str(answer or "said no")
    except Exception as nonsense:  # noqa: BLE001 - an author's value, such as an array, may be neither true nor false
        return brief(nonsense)


def brief(error: BaseException) -> str:
    """An exception in one line, fit to be told."""
    return fit(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
