"""A second look at what was started and cannot say that it is ready, as a person would take it.

A program that does not notify runs from the moment it was spawned. If it ends again
at once, that its start is done is true and of no use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from msgspec.structs import replace

from bus.endpoints import RunDir
from bus.messages import OrderOutcome, OutcomeKind, ProcessState, ServiceView, Verb
from cli.atlas import AtlasSilent, Refused, ask_fleet
from cli.fallback import NoSupervisord, Process, Supervisord, SupervisordRefused, SupervisordSilent, instance_of
from cli.progress import Progress
from cli.selection import has_daemon
from cli.supervised import DONE_AND_ENDED

LATER_S = 1.0
"""As supervisor's own startsecs."""
_FRAME_S = 0.1


def looked_again(
    run_dir: RunDir, verb: Verb, before: Sequence[ServiceView], ended: Sequence[OrderOutcome], show: Progress
) -> list[OrderOutcome]:
    """The outcomes, and what has become since of those that are done; takes LATER_S where there are such.

    Those whose daemon speaks, or has spoken before, are believed; so are all of them where nobody can be asked.
    """
    done = {each.name for each in ended if is_doubtful(verb, each)} - _with_daemon(before)
    if done:
        with suppress(AtlasSilent, Refused):  # nobody knows who has a daemon: a second too many is the lesser evil
            done -= _with_daemon(ask_fleet(run_dir).services)
    if not done:
        return list(ended)
    for name in done:
        show.show(name, "runs; looking again")
    first = _rows(run_dir)
    due_s = time.monotonic() + LATER_S
    while (left_s := due_s - time.monotonic()) > 0:
        show.tick()
        time.sleep(min(_FRAME_S, left_s))
    later = _rows(run_dir)
    return [
        revised(each, first[each.name], later[each.name])
        if each.name in done and each.name in first and each.name in later
        else each
        for each in ended
    ]


def is_doubtful(verb: Verb, outcome: OrderOutcome) -> bool:
    """Whether the outcome is that of a start just now."""
    is_start = verb in (Verb.START, Verb.RESTART) and outcome.kind is OutcomeKind.DONE
    return is_start and not outcome.reason.startswith("already ")


def revised(outcome: OrderOutcome, first: Process, later: Process) -> OrderOutcome:
    """The outcome of a start, by what supervisord's table showed at once and later. Pure.

    What has ended with 0, and is not started again, has done its work.
    """
    if later.state is ProcessState.RUNNING and first.pid == later.pid:
        return outcome
    if later.state is ProcessState.EXITED and later.exit_code == 0:
        return replace(outcome, reason=DONE_AND_ENDED)
    if later.state in (ProcessState.STOPPING, ProcessState.STOPPED):
        return replace(outcome, reason=later.reason or "it was stopped since")
    why = later.reason or f"it is {later.state}, and has another process"
    return replace(outcome, kind=OutcomeKind.FAILED, reason=f"it started, and ended again: {why}")


def _rows(run_dir: RunDir) -> dict[str, Process]:
    try:
        return {instance_of(row): row for row in Supervisord(run_dir).processes()}
    except (NoSupervisord, SupervisordSilent, SupervisordRefused):
        return {}


def _with_daemon(views: Sequence[ServiceView]) -> set[str]:
    return {view.instance for view in views if has_daemon(view)}
