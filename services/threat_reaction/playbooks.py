"""Playbooks: a start, conditions, actions, an end. What they may say, and the way through one. Pure.

A playbook is a graph of named steps. A sighting of a kind that its start names goes through it: each condition
sends it one way or the other, each action on the way is taken, an end ends it. It is checked when it is
put: one start, every step that is named is there, no way leads in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

Kind = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
StepName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Seconds = Annotated[float, Meta(gt=0, le=604800)]
"""Up to a week."""
Verb = Literal["hunt", "detect", "disrupt", "disable", "dominate"]

STEPS_MAX = 32
POINTS_MAX = 200.0
CONTAINING: dict[str, str] = {"disrupt": "throttle", "disable": "ban", "dominate": "ban"}
"""Verbs that take something from somebody, and so need approval; and what CrowdSec's bouncers call it."""


class BadPlaybookError(ValueError):
    """The playbook cannot be followed; the text says where."""


class Start(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="start"):
    """Which sightings it is about."""

    on: Annotated[list[Kind], Meta(min_length=1, max_length=32)]
    confidence_at_least: Annotated[int, Meta(ge=0, le=100)] = 0
    next: StepName


class Condition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="condition"):
    """Whether enough was seen of the address, or of its prefix, within a time."""

    points: Annotated[dict[Kind, Annotated[float, Meta(gt=0, le=POINTS_MAX)]], Meta(min_length=1, max_length=32)]
    """What one sighting of each kind is worth."""
    at_least: Annotated[float, Meta(gt=0, le=POINTS_MAX)]
    within_s: Seconds
    per: Literal["address", "prefix"] = "address"
    addresses_at_least: Annotated[int, Meta(ge=1, le=256)] = 1
    """Of the prefix, that have any points."""
    then: StepName
    otherwise: StepName


class Action(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="action"):
    """What is done: hunt and detect tell, disrupt slows the address, disable bans it, dominate bans its prefix."""

    action: Verb
    for_s: Seconds | None = None
    """None: PAUSE_S for disrupt, and for bans what escalation says."""
    next: StepName


class End(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="end"):
    """Nothing more."""


Step = Start | Condition | Action | End


class Playbook(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do when."""

    description: Annotated[str, Meta(max_length=1000)] = ""
    enabled: bool = True
    approve_within_s: Seconds = 3600.0
    """A proposal that nobody approves by then expires."""
    steps: Annotated[dict[StepName, Step], Meta(min_length=2, max_length=STEPS_MAX)]

    def start(self) -> Start:
        """Where it begins."""
        return next(step for step in self.steps.values() if isinstance(step, Start))

    def verbs(self) -> set[Verb]:
        """All that it may do."""
        return {step.action for step in self.steps.values() if isinstance(step, Action)}


def following(step: Step) -> tuple[str, ...]:
    """The names of the steps that it may lead to."""
    match step:
        case Start() | Action():
            return (step.next,)
        case Condition():
            return (step.then, step.otherwise)
        case End():
            return ()


def check(playbook: Playbook) -> None:
    """Raises BadPlaybookError unless every way through it ends."""
    starts = [name for name, step in playbook.steps.items() if isinstance(step, Start)]
    if len(starts) != 1:
        raise BadPlaybookError(f"it has {len(starts)} steps of type start; one is needed")
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            raise BadPlaybookError(f"its steps lead in a circle: {' → '.join((*way[way.index(name) :], name))}")
        if name in done:
            return
        step = playbook.steps.get(name)
        if step is None:
            raise BadPlaybookError(f"step {way[-1]!r} leads to {name!r}, which there is not")
        for onward in following(step):
            visit(onward, (*way, name))
        done.add(name)

    visit(starts[0], ())
    if unreached := sorted(playbook.steps.keys() - done):
        raise BadPlaybookError(f"no way leads to step {unreached[0]!r}")
    if not playbook.verbs():
        raise BadPlaybookError("it has no step of type action")


def walk(playbook: Playbook, holds: Callable[[Condition], bool]) -> list[Action]:
    """The actions on the way that the conditions point out."""
    step: Step = playbook.start()
    actions = []
    while True:
        match step:
            case Start():
                step = playbook.steps[step.next]
            case Condition():
                step = playbook.steps[step.then if holds(step) else step.otherwise]
            case Action():
                actions.append(step)
                step = playbook.steps[step.next]
            case End():
                return actions


def _simple(
    description: str, on: list[str], points: dict[str, float], at_least: float, within_s: float, confidence: int = 0
) -> Playbook:
    return Playbook(
        description=description,
        steps={
            "start": Start(on=on, confidence_at_least=confidence, next="enough"),
            "enough": Condition(points=points, at_least=at_least, within_s=within_s, then="tell", otherwise="end"),
            "tell": Action(action="detect", next="ban"),
            "ban": Action(action="disable", next="end"),
            "end": End(),
        },
    )


SSH_POINTS = {"ssh_failed": 1.0, "ssh_invalid_user": 3.0, "ssh_root_failed": 2.0}
PREFIX_PLAYBOOK = "repeated-prefix"
"""The one that the loop acts by."""

DEFAULTS: Mapping[str, Playbook] = {
    "ssh-brute-force": _simple(
        "Guessing log-ins: six failures within an hour, three as root, or two under names that there are not.",
        list(SSH_POINTS),
        SSH_POINTS,
        6,
        3600,
    ),
    "http-scan": _simple(
        "Asking for what is not there or not allowed: forty refusals within a minute.",
        ["http_refused"],
        {"http_refused": 1.0},
        40,
        60,
    ),
    "listed": _simple(
        "An address that threat intelligence lists, with a confidence of 75 or more.",
        ["indicator"],
        {"indicator": 1.0},
        1,
        3600,
        confidence=75,
    ),
    PREFIX_PLAYBOOK: Playbook(
        description="A neighbourhood with several offenders and nobody who does well. The loop decides when.",
        steps={
            "start": Start(on=["prefix_offends"], next="ban"),
            "ban": Action(action="dominate", next="end"),
            "end": End(),
        },
    ),
}
"""What there is until somebody changes it. Each asks before it bans."""


def read(body: bytes) -> Playbook:
    """A playbook from JSON, checked; raises BadPlaybookError or msgspec's errors."""
    playbook = msgspec.json.decode(body, type=Playbook)
    check(playbook)
    return playbook
