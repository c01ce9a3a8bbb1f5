"""Where an error of the warden ends: counted, logged with its traceback, shown in NodeStatus; supervisord goes on."""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MAX_LOGGED = 100
"""Tracebacks written in full; what fails ten times a second for a week must not fill the disk."""


class Boundary:
    """Survives errors on behalf of supervisord."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.counts: Counter[str] = Counter()
        self.last_error = ""

    def survived(self, where: str, error: Exception) -> None:
        """Take note of an error; call it in the except clause."""
        self.counts["errors"] += 1
        self.last_error = f"{where}: {type(error).__name__}: {error}"[:500]
        if self.counts["errors"] <= _MAX_LOGGED:
            self._log(f"warden: error survived in {self.last_error}\n{traceback.format_exc()}")


class _Bounded(Protocol):
    boundary: Boundary


Self = TypeVar("Self", bound=_Bounded)


def guarded(default: T) -> Callable[[Callable[Concatenate[Self, P], T]], Callable[Concatenate[Self, P], T]]:
    """Decorate a method that supervisord calls: it never raises, and returns default where it would have."""

    def decorate(method: Callable[Concatenate[Self, P], T]) -> Callable[Concatenate[Self, P], T]:
        def bounded(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - the one place where anything may end
                self.boundary.survived(method.__name__, error)
                return default

        functools.update_wrapper(bounded, method)
        return bounded

    return decorate
