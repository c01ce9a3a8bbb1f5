"""Which services an operator means, and whether they are well. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from bus.messages import HealthStatus, LifecyclePhase, OutcomeKind, ProcessState, ServiceView
from cli.exits import Exit

ATLAS = "atlas"
"""The name under which the fleet's own daemon runs."""


class Selection(NamedTuple):
    """What the names on a command line stand for."""

    services: tuple[ServiceView, ...]
    """Each once, in the order of the fleet."""
    unknown: tuple[str, ...]
    """Names and globs that match nothing."""


def matches(pattern: str, *names: str) -> bool:
    """Whether one of the names is the pattern, or fits it as a glob."""
    return any(pattern == name or fnmatchcase(name, pattern) for name in names)


def select(fleet: Sequence[ServiceView], patterns: Iterable[str]) -> Selection:
    """The services that the patterns match, by instance or by service; all if there are no patterns."""
    wanted = tuple(dict.fromkeys(patterns))
    if not wanted:
        return Selection(tuple(fleet), ())
    services = tuple(view for view in fleet if any(matches(pattern, view.instance, view.service) for pattern in wanted))
    unknown = tuple(
        pattern for pattern in wanted if not any(matches(pattern, view.instance, view.service) for view in fleet)
    )
    return Selection(services, unknown)


def place_of(view: ServiceView, patterns: Sequence[str]) -> int:
    """Which of the patterns it is the first to match, to be sorted by; after all if none."""
    return next((n for n, each in enumerate(patterns) if matches(each, view.instance, view.service)), len(patterns))


def exactly(fleet: Sequence[ServiceView], names: Iterable[str]) -> Selection:
    """The instances of just these names."""
    wanted = tuple(dict.fromkeys(names))
    services = tuple(view for view in fleet if view.instance in wanted)
    return Selection(services, tuple(name for name in wanted if all(name != view.instance for view in services)))


def has_daemon(view: ServiceView) -> bool:
    """Whether a daemon was ever heard for it."""
    return view.seen_s is not None or view.phase is not None


def is_unsupervised(view: ServiceView) -> bool:
    """Whether ATLAS has only its daemon's word for it, since supervisord on its host fell silent.

    ATLAS says so in the reason alone.
    """
    return view.reason.startswith(f"supervisord on {view.host} is silent")


def is_well(view: ServiceView) -> bool:
    """Whether it runs, somebody would start it again, and nothing speaks against its health.

    Of a program whose daemon was never heard, because it has none or because
    supervisord was asked, that it runs is all there is to know.
    """
    if view.state is not ProcessState.RUNNING or is_unsupervised(view):
        return False
    if not has_daemon(view) and view.health is HealthStatus.UNKNOWN:
        return True
    return view.phase in (None, LifecyclePhase.SERVING) and view.health is HealthStatus.HEALTHY


def is_ready(view: ServiceView) -> bool:
    """Whether it runs and serves, be it badly."""
    serves = view.phase is LifecyclePhase.SERVING if has_daemon(view) else True
    return view.state is ProcessState.RUNNING and serves and view.health is not HealthStatus.UNHEALTHY


def is_healthy(view: ServiceView) -> bool:
    """Whether it is ready and well."""
    return is_ready(view) and is_well(view)


def is_stopped(view: ServiceView) -> bool:
    """Whether it has no process, and nobody is about to give it one."""
    return view.pid is None and view.state in (ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL)


def exit_of(views: Iterable[ServiceView]) -> Exit:
    """OK if all of them are well."""
    return Exit.OK if all(is_well(view) for view in views) else Exit.NOT_WELL


def exit_of_outcomes(kinds: Iterable[OutcomeKind]) -> Exit:
    """A failure outweighs a time-out, which outweighs success."""
    seen = set(kinds)
    if seen & {OutcomeKind.FAILED, OutcomeKind.REJECTED}:
        return Exit.FAILED
    return Exit.TIMED_OUT if OutcomeKind.UNKNOWN in seen else Exit.OK
