"""Orders from ATLAS: what each does next, from the state of its program. Pure; node.py brings and answers them.

An order takes effect at most once: its id is remembered with its outcome, and a
second copy is answered from memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

from bus.messages import OutcomeKind, ProcessState

_MEMORY = 1000
"""Outcomes remembered. ATLAS repeats a command for seconds; this many are hours of orders."""

_DOWN = (ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL)


class Goal(Enum):
    """What an order wants next of its program."""

    DOWN = "down"
    UP = "up"


class Order(Struct, frozen=True):
    """An order under way."""

    id: str
    name: str
    asked_by: str
    goals: tuple[Goal, ...]
    """A restart is DOWN, then UP."""
    deadline_s: float
    begun: bool = False
    """The first goal's action has been taken; what remains is to wait."""
    note: str = ""
    """What there is to say when it is done."""


class Act(Struct, frozen=True):
    """Start or stop the program now, then go on with that order."""

    goal: Goal
    order: Order


class Wait(Struct, frozen=True):
    """Nothing to do yet."""


class Ended(Struct, frozen=True):
    """The order is over."""

    kind: OutcomeKind
    reason: str = ""


Move = Act | Wait | Ended


def next_move(order: Order, state: ProcessState, will_start: bool, reason: str, now_s: float) -> Move:
    """What the order does now. will_start: it is down, but about to be started again; reason: why it is not running."""
    goal, rest = order.goals[0], order.goals[1:]
    reached = state is ProcessState.RUNNING if goal is Goal.UP else state in _DOWN and (order.begun or not will_start)
    if reached:
        if not rest:
            was_so = "" if order.begun or len(order.goals) > 1 else f"it was {goal.value} already"
            return Ended(OutcomeKind.DONE, order.note or was_so)
        return Act(rest[0], replace(order, goals=rest, begun=True))
    if now_s >= order.deadline_s:
        words = f"{state.value}: {reason}" if reason else state.value
        return Ended(OutcomeKind.FAILED, f"not {goal.value} in time; {words}")
    if not order.begun:
        if goal is Goal.UP and state in (ProcessState.STARTING, ProcessState.STOPPING):
            return Wait()
        if goal is Goal.DOWN and state is ProcessState.STOPPING:
            return Wait()
        return Act(goal, replace(order, begun=True))
    if goal is Goal.UP and state in _DOWN and not will_start:
        return Ended(OutcomeKind.FAILED, reason or f"it is {state.value}")
    if state is ProcessState.UNKNOWN:
        return Ended(OutcomeKind.FAILED, f"supervisord has lost track of it: {reason}" if reason else state.value)
    return Wait()


# -- scaling: the instances of a program --------------------------------------------------------------------


class Scaling(Struct, frozen=True):
    """An order for so many instances of a program, under way."""

    id: str
    asked_by: str
    names: tuple[str, ...]
    """Those that there are to be."""
    deadline_s: float
    started: frozenset[str] = frozenset()
    note: str = ""


class Standing(Struct, frozen=True):
    """How one instance is."""

    state: ProcessState
    will_start: bool
    """It is down, but about to be started by itself."""
    reason: str
    disabled: bool = False
    """It stays down, by an operator's word, and is not waited for."""


class StartOne(Struct, frozen=True):
    """Start that instance now, then go on with that order."""

    name: str
    order: Scaling


def next_scaling(order: Scaling, there: Mapping[str, Standing], now_s: float) -> StartOne | Wait | Ended:
    """What the order does now. there: every instance that there is of the program."""
    waits_for = [f"{name} {each.state}: {each.reason}" for name, each in there.items() if name not in order.names]
    for name in order.names:
        one = there.get(name)
        if one is not None and (one.state is ProcessState.RUNNING or (one.disabled and one.state in _DOWN)):
            continue
        if one is not None and one.state in _DOWN and not one.will_start:
            if name not in order.started:
                return StartOne(name, replace(order, started=order.started | {name}))
            return Ended(OutcomeKind.FAILED, f"{name}: {one.reason or one.state}")
        waits_for.append(f"{name} {one.state}: {one.reason}" if one is not None else f"{name} is not there yet")
    if not waits_for:
        return Ended(OutcomeKind.DONE, order.note)
    if now_s >= order.deadline_s:
        return Ended(OutcomeKind.FAILED, f"not {len(order.names)} in time; {', '.join(waits_for)}")
    return Wait()


class Memory:
    """Which orders have been seen, and how those that are over ended."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, Ended | None] = OrderedDict()

    def knows(self, id_: str) -> bool:
        """Whether that order came before."""
        return id_ in self._seen

    def outcome(self, id_: str) -> Ended | None:
        """How it ended; None while it is under way."""
        return self._seen[id_]

    def begin(self, id_: str) -> None:
        """Remember that it came; forget the oldest that is over, if there are too many."""
        self._seen[id_] = None
        if len(self._seen) > _MEMORY:
            oldest_over = next((key for key, ended in self._seen.items() if ended is not None), None)
            if oldest_over is not None:
                del self._seen[oldest_over]

    def end(self, id_: str, ended: Ended) -> None:
        """Remember how it ended."""
        self._seen[id_] = ended
