"""What a soak will do, and when: from its seed alone. Pure.

Faults are drawn like cards: each once, in random order, before any comes again. So two minutes have them all; but what
ends supervisord or ATLAS comes ever more seldom.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from msgspec import Struct

CALM_FIRST_S = 5.0
"""From the fleet's being ready to the first fault."""
CALM_LAST_S = 25.0
"""From the last fault to the end: what is still to be restarted, waited for and told has that long."""
COMMAND_EVERY_S = 1.5
"""On average."""
STOPPED_S = 5.0
"""How long a service that is stopped is left so, at most."""


class Fault(Struct, frozen=True, kw_only=True):
    """A kind of fault. All that is not named for the host or the framework is done to one service."""

    deadly: bool = False
    """The process is to end of it."""
    kills: bool = False
    """By a signal that the soak itself sends."""
    notice_s: float = 0.0
    """How soon it is to be acted upon, on an idle machine: what is declared of it, and the tick in which it is seen."""
    lasts_s: float = 0.0
    """How long the soak lets it go on."""
    spacing_s: float = 0.9
    """Until the next fault, on average."""
    everybodys: bool = False
    """It is done to the host or the framework."""
    busy_s: float = 12.0
    """How long nothing else is done to that service."""


STALL_S = 3.0
"""The limit of loop_lag_s that the soak's services have; a declared call goes on for longer."""

FAULTS: dict[str, Fault] = {
    # -- of a process: what ends it
    "crash": Fault(deadly=True, kills=True, notice_s=0.1),
    "frozen": Fault(deadly=True, notice_s=0.2 + 0.3),
    "held_burning": Fault(deadly=True, notice_s=0.5 + 0.2 + 0.5),
    "held_sleeping": Fault(deadly=True, notice_s=0.5 + 0.2 + 0.5),
    "blocked_loop": Fault(deadly=True, notice_s=STALL_S + 0.2 + 1.3),
    "deadlock": Fault(deadly=True, notice_s=1.0 + 1.0 + 0.2 + 0.5),
    "daemon_dies": Fault(deadly=True, notice_s=1.5),
    "leak": Fault(deadly=True, notice_s=5.0),
    "burst": Fault(deadly=True, notice_s=3.0),
    "leak_files": Fault(deadly=True, notice_s=2.5),
    "leak_threads": Fault(deadly=True, notice_s=2.5),
    "fork_storm": Fault(deadly=True, kills=True, notice_s=1.0),
    "leave_heir": Fault(deadly=True, kills=True, notice_s=1.0),
    "crash_loop": Fault(deadly=True, kills=True, lasts_s=60.0, busy_s=75.0),
    "slow_crash_loop": Fault(deadly=True, kills=True, lasts_s=60.0, busy_s=75.0),
    "stubborn": Fault(busy_s=25.0),
    "crash_under_order": Fault(deadly=True, kills=True, notice_s=0.1, busy_s=25.0),
    # -- of a process: what must not end it
    "declared_call": Fault(lasts_s=STALL_S + 1.0),
    "debugged": Fault(lasts_s=2.0),
    # -- of the host
    "overload": Fault(lasts_s=8.0, spacing_s=12.0, everybodys=True),
    # -- of the framework
    "supervisord_killed": Fault(spacing_s=12.0, everybodys=True),
    "supervisord_stopped": Fault(lasts_s=3.0, spacing_s=5.0, everybodys=True),
    "atlas_killed": Fault(deadly=True, kills=True, notice_s=0.1, spacing_s=3.0, everybodys=True),
    "atlas_stopped": Fault(deadly=True, notice_s=0.2 + 0.3, spacing_s=3.0, everybodys=True),
    "second_atlas": Fault(lasts_s=2.0, everybodys=True),
    "socket_unlinked": Fault(everybodys=True),
    "garbage": Fault(lasts_s=1.0, everybodys=True),
    "stopped_subscriber": Fault(lasts_s=8.0, everybodys=True),
    "spoofed_status": Fault(everybodys=True),
}

ENDERS = ("supervisord_killed", "atlas_killed", "atlas_stopped")
"""They are in the first deck, the fourth, the tenth, the 28th …: what ATLAS and supervisord do not give back shows only
in lives that are long, and the longer the run, the longer these are."""

EARLY = 10
"""Among so many first ones of their deck."""

VERBS = ("restart", "restart", "stop", "health-check", "health-check", "loop-mode")


class Step(Struct, frozen=True, kw_only=True):
    """One thing to do. ``name`` is empty where it is done to the host or the framework."""

    at_s: float
    """Since the fleet was ready."""
    number: int
    what: str
    """A fault, or a verb."""
    name: str = ""
    luck: float = 0.0
    """In [0, 1): what else is left to chance."""

    @property
    def is_fault(self) -> bool:
        """Whether it is a fault; else it is a command."""
        return self.what in FAULTS


def plan(seed: int, minutes: float, services: Sequence[str]) -> list[Step]:
    """All steps of a run, in order of time."""
    last_s = 60.0 * minutes - CALM_LAST_S
    faults = list(_faults(seed, last_s, services))
    steps = sorted([*faults, *_commands(seed, last_s, services, faults)])
    return [
        Step(at_s=at_s, number=number, what=what, name=name, luck=luck)
        for number, (at_s, what, name, luck) in enumerate(steps, start=1)
    ]


_Draft = tuple[float, str, str, float]


def _faults(seed: int, last_s: float, services: Sequence[str]) -> Iterator[_Draft]:
    chance = random.Random(f"faults {seed}")
    at_s = CALM_FIRST_S
    deck: list[str] = []
    decks = 0
    busy_s: dict[str, float] = {}
    while at_s < last_s:
        if not deck:
            ends_all = decks == 0 or (decks >= 3 and 3 ** round(math.log(decks, 3)) == decks)
            deck = [what for what in FAULTS if what not in ENDERS]
            chance.shuffle(deck)
            for what in ENDERS if ends_all else ():
                deck.insert(len(deck) - chance.randrange(EARLY), what)  # drawn from the end
            decks += 1
        what = deck.pop()
        fault = FAULTS[what]
        name = ""
        if not fault.everybodys:
            free = [name for name in services if busy_s.get(name, 0.0) <= at_s] or list(services)
            # Half of the crashes come to who has just been harmed: what fails twice in a row has to wait.
            again = [name for name in services if 0.0 < busy_s.get(name, 0.0) - at_s < 12.0]
            name = chance.choice(again if what == "crash" and again and chance.random() < 0.5 else free)
            busy_s[name] = at_s + fault.busy_s
        yield at_s, what, name, chance.random()
        at_s += fault.spacing_s * chance.uniform(0.5, 1.5)


def _commands(seed: int, last_s: float, services: Sequence[str], faults: Sequence[_Draft]) -> Iterator[_Draft]:
    """Commands for anybody, also for what has just been harmed; but not for what is in the soak's own hands."""
    chance = random.Random(f"commands {seed}")
    ours = [
        (name, at_s - STOPPED_S - 5.0, at_s + FAULTS[what].busy_s)
        for at_s, what, name, _ in faults
        if FAULTS[what].busy_s > Fault().busy_s
    ]
    at_s = CALM_FIRST_S / 2
    stopped_s: dict[str, float] = {}
    while at_s < last_s:
        taken = {name for name, from_s, to_s in ours if from_s <= at_s <= to_s}
        taken |= {name for name, until_s in stopped_s.items() if at_s < until_s}
        name = chance.choice([name for name in services if name not in taken] or list(services))
        verb = chance.choice(VERBS)
        if verb == "stop":
            stopped_s[name] = at_s + STOPPED_S + 10.0
        yield at_s, verb, name, chance.random()
        at_s += COMMAND_EVERY_S * chance.uniform(0.3, 1.7)
