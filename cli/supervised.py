"""Orders through supervisord alone, followed by asking it what has become of each process.

The rules are pure (``advance``); ``perform`` asks, acts and waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bus.messages import OrderOutcome, OutcomeKind, ProcessState, Verb
from cli.fallback import ALREADY_STARTED, NOT_RUNNING, Process, Supervisord, SupervisordRefused

_POLL_S = 0.1
SETTLE_S = 1.5
"""A process that ended and is to be started again is EXITED for up to a lap of supervisord, about 1 s."""

_UP = {ProcessState.RUNNING, ProcessState.STARTING, ProcessState.BACKOFF}
DOWN = {ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL, ProcessState.UNKNOWN}

DONE_AND_ENDED = "it has ended since, with exit code 0"
"""Of what has done its work, and is not started again."""


class Stage(StrEnum):
    """What a pursuit is at."""

    BEGIN = "begin"
    STOPPING = "stopping"
    STARTING = "starting"


@dataclass(frozen=True)
class Pursuit:
    """One process on its way to what was ordered."""

    verb: Verb
    name: str
    stage: Stage = Stage.BEGIN
    down_since_s: float | None = None
    """Since when it is EXITED although it was started."""


Step = tuple[Pursuit, Verb | None, OutcomeKind | None, str]
"""What it is now, what to tell supervisord, how it ended if it has, and a word on that."""


def advance(pursuit: Pursuit, process: Process, now_s: float) -> Step:
    """The next step, from what supervisord's table says now. Pure."""
    state = process.state
    if pursuit.stage is Stage.STARTING:
        return _advance_start(pursuit, process, now_s)
    if pursuit.verb is Verb.STOP:
        if state in DOWN:
            return pursuit, None, OutcomeKind.DONE, f"already {state.lower()}" if pursuit.stage is Stage.BEGIN else ""
        if pursuit.stage is Stage.BEGIN and state in _UP:
            return replace(pursuit, stage=Stage.STOPPING), Verb.STOP, None, "stopping"
        return replace(pursuit, stage=Stage.STOPPING), None, None, "stopping"
    if pursuit.stage is Stage.BEGIN and state in _UP:
        if pursuit.verb is Verb.RESTART:
            return replace(pursuit, stage=Stage.STOPPING), Verb.STOP, None, "stopping"
        if state is ProcessState.RUNNING:
            return pursuit, None, OutcomeKind.DONE, "already running"
        return replace(pursuit, stage=Stage.STARTING), None, None, "starting"
    if state in DOWN:
        return replace(pursuit, stage=Stage.STARTING), Verb.START, None, "starting"
    return pursuit, None, None, "stopping"


def _advance_start(pursuit: Pursuit, process: Process, now_s: float) -> Step:
    match process.state:
        case ProcessState.RUNNING:
            return pursuit, None, OutcomeKind.DONE, ""
        case ProcessState.FATAL | ProcessState.UNKNOWN:
            return pursuit, None, OutcomeKind.FAILED, process.reason or f"it is {process.state}"
        case ProcessState.STOPPED | ProcessState.EXITED:
            since_s = now_s if pursuit.down_since_s is None else pursuit.down_since_s
            if now_s - since_s >= SETTLE_S:
                if process.state is ProcessState.EXITED and process.exit_code == 0:
                    return pursuit, None, OutcomeKind.DONE, DONE_AND_ENDED
                return pursuit, None, OutcomeKind.FAILED, process.reason or f"it is {process.state}"
            return replace(pursuit, down_since_s=since_s), None, None, "ended; waiting for its next start"
        case ProcessState.BACKOFF:
            return replace(pursuit, down_since_s=None), None, None, f"backing off: {process.reason}"
        case _:
            return replace(pursuit, down_since_s=None), None, None, "starting"


def perform(
    supervisord: Supervisord,
    verb: Verb,
    names: Sequence[str],
    timeout_s: float,
    *,
    watch: Callable[[str, str], None],
    tick: Callable[[], None],
) -> Iterator[OrderOutcome]:
    """Do it, and yield the outcome of each name as it is there; unknown for those not there in time.

    Raises what Supervisord raises if supervisord itself fails.
    """
    began_s = time.monotonic()
    pursuits = {name: Pursuit(verb, name) for name in names}
    states: dict[str, ProcessState] = {}
    while pursuits:
        table = {process.name: process for process in supervisord.processes()}
        for name, pursuit in list(pursuits.items()):
            took_s = time.monotonic() - began_s
            process = table.get(name)
            if process is None:
                del pursuits[name]
                yield OrderOutcome(
                    id="", name=name, kind=OutcomeKind.FAILED, reason="supervisord has it no more", took_s=took_s
                )
                continue
            states[name] = process.state
            pursuits[name], act, ended, text = advance(pursuit, process, time.monotonic())
            if act is not None and (refusal := tell(supervisord, act, name)):
                ended, text = OutcomeKind.FAILED, refusal
                if "SPAWN_ERROR" in refusal:  # which says nothing; the reason is in the table by now
                    after = next((row for row in supervisord.processes() if row.name == name), process)
                    text = after.reason or refusal
            if ended is not None:
                del pursuits[name]
                yield OrderOutcome(id="", name=name, kind=ended, reason=text, took_s=took_s)
            else:
                watch(name, text)
        if time.monotonic() - began_s > timeout_s:
            break
        if pursuits:
            tick()
            time.sleep(_POLL_S)
    for name in pursuits:
        reason = f"still {states[name]} when the time of {timeout_s:g} s was over"
        yield OrderOutcome(id="", name=name, kind=OutcomeKind.UNKNOWN, reason=reason, took_s=time.monotonic() - began_s)


def tell(supervisord: Supervisord, act: Verb, name: str) -> str:
    """Have supervisord start or stop it; return why it refuses, empty if it does not or the work is done already."""
    try:
        if act is Verb.START:
            supervisord.start(name)
        else:
            supervisord.stop(name)
    except SupervisordRefused as error:
        if error.code not in (ALREADY_STARTED, NOT_RUNNING):
            return str(error)
    return ""
