"""When a process that ended is started again. Pure: values and now_s in, a decision out.

The same rules before and after readiness:

- the first restart is at once; from the second failure on, each waits twice as long as the one before;
- at most ``budget`` starts in ``window_s``; the next one would be one too many, so the process is quarantined;
- a process that was ready for ``healthy_s`` starts with a clean slate;
- an end that was asked for (exit 75) is no failure. If an operator has ordered it, nothing is held against the
  process, as with supervisorctl's restart. If it asked by itself, its starts count too; over the budget it waits
  twice as long each time, but a process that served in between is not given up, nor down for long.

Who kills, spawns and shows states is warden.py and reach.py. now_s is monotonic.
"""

from __future__ import annotations

import math
import os
import signal

from msgspec import Struct
from msgspec.structs import replace

EX_TEMPFAIL = 75
"""sysexits.h: "try again later"; by our contract: restart me."""

EX_CONFIG = 78
"""sysexits.h: configuration error; starting again would not help."""


LONGEST_HOLD_S = 60.0
"""Whoever holds restarts may be gone by then."""


class Limits(Struct, frozen=True):
    """How often a program may be started."""

    budget: int = 5
    """Starts allowed in window_s."""
    window_s: float = 60.0
    healthy_s: float = 60.0
    """After so long ready, earlier failures are forgiven."""
    first_wait_s: float = 0.5
    """Wait after the second failure in a row."""
    longest_wait_s: float = 30.0
    longest_asked_wait_s: float = 5.0
    """The same for what served in between and asked to be restarted."""
    jitter: float = 0.2
    """Waits differ from the doubled ones by up to this fraction, so that a fleet does not restart in step."""


class History(Struct, frozen=True):
    """What the policy remembers of a program."""

    starts_s: tuple[float, ...] = ()
    """When it was started, oldest first; only those that may still count."""
    failures: int = 0
    """Failures in a row since it was last healthy."""


class Ending(Struct, frozen=True):
    """How one incarnation ended."""

    wait_status: int | None
    """Raw status of waitpid(2); None if it could not be spawned at all."""
    ready_for_s: float | None = None
    """How long it had been ready; None if it never was."""
    expected: bool = False
    """supervisord.conf says that this exit code is a normal end (``exitcodes``, ``autorestart``)."""
    ordered: bool = False
    """It asked to be restarted because an operator had told it to."""
    cause: str = ""
    """Why, where the status does not tell: the verdict that had it killed, the error of the spawn, its last words."""


class Restart(Struct, frozen=True):
    """Start it again in after_s; 0.0 is at once."""

    after_s: float
    reason: str


class StayDown(Struct, frozen=True):
    """It ended as it should; leave it."""

    reason: str


class Quarantine(Struct, frozen=True):
    """Starting it again does not help; leave it down until an operator says otherwise."""

    reason: str


Decision = Restart | StayDown | Quarantine


class Hold(Struct, frozen=True):
    """Somebody asks that a process which ends be not started before that."""

    reason: str
    until_s: float


def started(history: History, now_s: float, limits: Limits) -> History:
    """Record a start."""
    return replace(history, starts_s=(*_recent(history, now_s, limits), now_s))


def ended(history: History, ending: Ending, now_s: float, limits: Limits, luck: float) -> tuple[History, Decision]:
    """Decide what follows an end. luck is uniform in [0, 1): where in its jitter the wait falls."""
    what = describe(ending)
    if ending.expected:
        return History(), StayDown(what)
    asked_for = _exit_code(ending.wait_status) == EX_TEMPFAIL
    if asked_for and ending.ordered:
        return History(), Restart(0.0, what)
    if ending.ready_for_s is not None and ending.ready_for_s >= limits.healthy_s:
        history = History()
    recent = _recent(history, now_s, limits)
    failures = history.failures + (0 if asked_for else 1)
    history = History(starts_s=recent, failures=failures)
    in_window = f"{len(recent)} start{'' if len(recent) == 1 else 's'} in {limits.window_s:g} s"
    if len(recent) >= limits.budget:
        if asked_for and ending.ready_for_s is not None:
            over = len(recent) - limits.budget
            after_s = _wait_s(over, limits, limits.longest_asked_wait_s, luck)
            return history, Restart(after_s, f"backing off: {what}, {in_window}")
        return history, Quarantine(f"quarantined: {in_window}, last: {what}")
    if asked_for or failures <= 1:
        return history, Restart(0.0, what)
    after_s = _wait_s(failures - 2, limits, limits.longest_wait_s, luck)
    return history, Restart(after_s, f"backing off: {what}, {in_window}")


def hold(by: str, for_s: float, reason: str, now_s: float) -> Hold | None:
    """A hold from now on, no longer than LONGEST_HOLD_S; None, if it is for no time at all: a release.

    Raises ValueError for what is no time.
    """
    if not (math.isfinite(for_s) and for_s >= 0.0):
        raise ValueError(f"cannot hold restarts for {for_s} s: it must be 0, which releases them, or more")
    return Hold(f"held by {by}: {reason}", now_s + min(for_s, LONGEST_HOLD_S)) if for_s else None


def describe(ending: Ending) -> str:
    """How it ended, in a few words: ``exit 3``, ``killed by SIGKILL``, ``configuration error (78): no such port``."""
    status = ending.wait_status
    if status is None:
        return f"cannot spawn: {ending.cause or 'unknown error'}"
    code = _exit_code(status)
    if code is None:
        words = f"killed by {_signal_name(os.WTERMSIG(status))}"
        words += " (core dumped)" if os.WCOREDUMP(status) else ""
    elif code == EX_CONFIG:
        words = f"configuration error ({EX_CONFIG})"
    elif code == EX_TEMPFAIL:
        words = f"asked to be restarted (exit {EX_TEMPFAIL})"
    else:
        words = f"exit {code}"
    return f"{words}: {ending.cause}" if ending.cause else words


def _wait_s(doublings: int, limits: Limits, longest_s: float, luck: float) -> float:
    doubled_s = limits.first_wait_s * 2.0 ** min(doublings, 60)
    return min(doubled_s, longest_s) * (1.0 + limits.jitter * (2.0 * luck - 1.0))


def _recent(history: History, now_s: float, limits: Limits) -> tuple[float, ...]:
    return tuple(start_s for start_s in history.starts_s if now_s - start_s < limits.window_s)


def _exit_code(wait_status: int | None) -> int | None:
    if wait_status is None or not os.WIFEXITED(wait_status):
        return None
    return os.WEXITSTATUS(wait_status)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals between SIGRTMIN and SIGRTMAX have no names
