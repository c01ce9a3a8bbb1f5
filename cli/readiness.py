"""Whether a service that was started is ready, still on its way, or will not get there. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import NamedTuple

from bus.messages import HealthStatus, LifecyclePhase, ProcessState, ServiceView
from cli.selection import has_daemon, is_well

SETTLE_S = 1.5
"""Before an end is final, or silence means that there is no daemon: over one lap of a stock supervisord."""
HEARD_S = 0.5
"""Before silence means that, of what has said that it is ready: a daemon says so at the same time as to ATLAS."""


class Standing(StrEnum):
    """Where a service stands on its way up."""

    WAITING = "waiting"
    READY = "ready"
    FAILED = "failed"


class Verdict(NamedTuple):
    """Where it stands, and in words."""

    standing: Standing
    text: str


def judge(view: ServiceView, *, for_s: float, says_ready: bool = False) -> Verdict:
    """Of one service, which has been as it is (state, pid, phase and health) for ``for_s``.

    ``says_ready``: RUNNING means that it has said so itself.
    """
    why = f": {view.reason}" if view.reason else ""
    match view.state:
        case ProcessState.RUNNING if is_well(view):
            if has_daemon(view):
                return Verdict(Standing.READY, "ready")
            if for_s >= (HEARD_S if says_ready else SETTLE_S):
                return Verdict(Standing.READY, "running")
            return Verdict(Standing.WAITING, "running, not heard yet")
        case ProcessState.RUNNING if view.phase is LifecyclePhase.SERVING and view.health is not HealthStatus.UNKNOWN:
            return Verdict(Standing.WAITING, f"{view.health}{why}")
        case ProcessState.RUNNING:
            return Verdict(Standing.WAITING, f"{view.phase or 'not heard yet'}{why}")
        case ProcessState.FATAL:
            return Verdict(Standing.FAILED, f"FATAL{why}")
        case ProcessState.EXITED if for_s >= SETTLE_S:
            return Verdict(Standing.FAILED, f"EXITED{why}")
        case ProcessState.BACKOFF:
            return Verdict(Standing.WAITING, view.reason or "backing off")
        case _:
            return Verdict(Standing.WAITING, f"{view.state.lower()}{why}")


def stuck(verdicts: Mapping[str, Verdict], needs: Mapping[str, Collection[str]]) -> dict[str, Verdict]:
    """Those that wait, however indirectly, for what has failed; told with the root of it.

    ``needs`` has what each of those without a process waits for.
    """
    ways: dict[str, tuple[str, ...]] = {
        name: () for name, verdict in verdicts.items() if verdict.standing is Standing.FAILED
    }
    failed = set(ways)
    while fresh := {
        name: (each, *ways[each])
        for name, wanted in needs.items()
        for each in wanted
        if name not in ways and each in ways
    }:
        ways |= fresh
    return {
        name: Verdict(Standing.FAILED, f"not started: it needs {', which needs '.join(way)}: {verdicts[way[-1]].text}")
        for name, way in ways.items()
        if name not in failed
    }
