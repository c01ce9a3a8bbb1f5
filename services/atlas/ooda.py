"""ATLAS's own loop over the fleet: it holds restarts that cannot help, and says why.

Two pictures make it act. What a service depends on is down while the service
fails: its restarts wait until that is ready. Many of one host fail within
seconds: the host is at fault, and those that flap wait. A lone crash, a rolling
restart, an operator's stop are none of its business; nor is it what restarts
anything: the wardens do, and hold for a minute at most, whatever becomes of ATLAS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from msgspec import Struct

from bus.messages import NodeStatus, ProcessRow, ProcessState
from cdn_daemon.ooda import OodaLoop
from services.atlas.fleet import instance_of

FAILED_LATELY_S = 10.0
"""So long after its end a service counts as failing."""
TOGETHER_S = 5.0
"""Ends within this time are one matter."""
MANY = 3
ATLAS = "atlas"
"""Never held: nobody would be there to release the others."""
FOR_DEPENDENCY_S = 30.0
FOR_HOST_S = 10.0
RENEW_AT = 0.5
"""A hold is renewed when this part of it is left."""
_NO_FAILURE = (0, 75)
"""Exit codes: it was told to end, or asked to be restarted."""
_MEANT_TO_BE_DOWN = (ProcessState.STOPPED, ProcessState.STOPPING)


class Switches(Protocol):
    """What the loop needs of the switchboard."""

    def tables(self) -> tuple[NodeStatus, ...]:
        """The process tables of all wardens that are heard."""

    def ordered(self, within_s: float) -> frozenset[str]:
        """Instances that an operator's command is about, or was that lately."""

    def hold(self, name: str, for_s: float, reason: str, *, renewed: bool) -> None:
        """Have restarts of it wait; 0 ends that."""


class Failing(Struct, frozen=True, kw_only=True):
    """A service that has failed lately."""

    name: str
    host: str
    at_s: float
    """When it was last seen to have failed."""
    needs_down: tuple[str, ...] = ()
    """What it depends on that is not ready."""


class Seen(Struct, frozen=True, kw_only=True):
    """What there is to go on."""

    at_s: float
    failing: tuple[Failing, ...]
    up_on: dict[str, int]
    """Host → how many of its services are meant to be up; of hosts where any fails."""
    holding: dict[str, tuple[str, float]]
    """Name → why it is held by us, and until when."""
    still: tuple[tuple[str, str], ...]
    """Those held whose dependency is still down, with that."""
    failed_again: tuple[str, ...]
    """Those that have failed more than once since they are held."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What that means: name → for how long it should be held, and why."""

    at_s: float
    holds: dict[str, tuple[float, str]]
    holding: dict[str, tuple[str, float]]
    failed_again: tuple[str, ...]


class Hold(Struct, frozen=True):
    """Restarts of one service wait so long; 0: they do not any more."""

    name: str
    for_s: float
    reason: str


Decision = tuple[Hold, ...]


class FleetLoop(OodaLoop[Seen, Wanted, Decision]):
    """Holds restarts where they cannot help. ``clock`` is monotonic."""

    period_s = 0.5
    settle_s = 1.0

    def __init__(self, switches: Switches, clock: Callable[[], float] = time.monotonic) -> None:
        self._switches = switches
        self._clock = clock
        self._tables: dict[str, NodeStatus] = {}
        self._rows: dict[str, ProcessRow] = {}
        self._ends: dict[str, tuple[float, str]] = {}
        """Name → when it was last seen to have failed, and on which host."""
        self._holding: dict[str, tuple[str, float]] = {}
        self._failures_held: dict[str, int] = {}

    @property
    def remembered(self) -> int:
        """How many services it holds anything about."""
        return len(self._rows.keys() | self._failures_held.keys())

    def observe(self) -> Seen | None:
        """Who has failed since the last look."""
        now_s = self._clock()
        tables = self._switches.tables()
        if any(self._tables.get(table.host) is not table for table in tables):
            self._take(tables, self._switches.ordered(FAILED_LATELY_S), now_s)
        self._ends = {name: end for name, end in self._ends.items() if now_s - end[0] <= FAILED_LATELY_S}
        self._holding = {name: held for name, held in self._holding.items() if held[1] > now_s}
        if not (self._ends or self._holding):
            return None
        hosts = {host for _, host in self._ends.values()}
        return Seen(
            at_s=now_s,
            failing=tuple(
                Failing(name=name, host=host, at_s=at_s, needs_down=self._needs_down(name))
                for name, (at_s, host) in self._ends.items()
            ),
            up_on={table.host: _meant_to_be_up(table) for table in tables if table.host in hosts},
            holding=dict(self._holding),
            still=tuple(
                (name, down[0])
                for name in self._holding
                if (down := self._needs_down(name)) and self._rows[name].state is not ProcessState.RUNNING
            ),
            failed_again=tuple(name for name in self._holding if self._failures_held.get(name, 0) > 1),
        )

    def _take(self, tables: Iterable[NodeStatus], ordered: Collection[str], now_s: float) -> None:
        for table in tables:
            if self._tables.get(table.host) is table:
                continue
            old = self._tables.get(table.host)
            self._tables[table.host] = table
            if old is not None:
                for name in {instance_of(row) for row in old.processes} - {instance_of(row) for row in table.processes}:
                    self._rows.pop(name, None)
                    self._failures_held.pop(name, None)
            for row in table.processes:
                name = instance_of(row)
                before = self._rows.get(name)
                self._rows[name] = row
                if before is None or name == ATLAS or name in ordered:
                    continue
                if has_failed(before, row):
                    self._ends[name] = (now_s, table.host)
                    self._failures_held[name] = self._failures_held.get(name, 0) + 1

    def _needs_down(self, name: str) -> tuple[str, ...]:
        row = self._rows.get(name)
        needs = (each.rpartition(":")[2] for each in row.depends_on) if row is not None else ()
        return tuple(
            each
            for each in needs
            if (other := self._rows.get(each)) is not None and other.state is not ProcessState.RUNNING
        )

    def orient(self, observation: Seen) -> Wanted:
        """Whose restarts cannot help. Pure."""
        holds: dict[str, tuple[float, str]] = {}
        by_host: dict[str, list[str]] = {}
        for failing in observation.failing:
            if not failing.needs_down and observation.at_s - failing.at_s <= TOGETHER_S:
                by_host.setdefault(failing.host, []).append(failing.name)
        for host, names in by_host.items():
            up = max(observation.up_on.get(host, 0), len(names))
            if len(names) >= MANY and 2 * len(names) >= up:
                reason = f"{len(names)} of {up} on {host} failed within {TOGETHER_S:g} s"
                # The count may grow; what is held already keeps its words.
                holds |= {name: (FOR_HOST_S, _same(observation.holding.get(name), host) or reason) for name in names}
        for name, down in observation.still:
            holds[name] = (FOR_DEPENDENCY_S, _because(down))
        for failing in observation.failing:
            if failing.needs_down:
                holds[failing.name] = (FOR_DEPENDENCY_S, _because(failing.needs_down[0]))
        return Wanted(
            at_s=observation.at_s,
            holds=holds,
            holding=observation.holding,
            failed_again=observation.failed_again,
        )

    def decide(self, picture: Wanted) -> Decision | None:
        """Hold those that are not held, renew what is half over, release the rest. Pure."""
        decision = []
        for name, (for_s, reason) in sorted(picture.holds.items()):
            held_for, until_s = picture.holding.get(name, ("", 0.0))
            if held_for != reason or until_s - picture.at_s <= for_s * RENEW_AT:
                decision.append(Hold(name, for_s, reason))
        for name, (reason, _) in sorted(picture.holding.items()):
            if name not in picture.holds:
                decision.append(Hold(name, 0.0, reason))
        return tuple(decision) or None

    def act(self, decision: Decision) -> None:
        """Tell the wardens."""
        now_s = self._clock()
        for hold in decision:
            held_for, _ = self._holding.pop(hold.name, ("", 0.0))
            renewed = bool(hold.for_s) and held_for == hold.reason
            self._switches.hold(hold.name, hold.for_s, hold.reason, renewed=renewed)
            if hold.for_s:
                self._holding[hold.name] = (hold.reason, now_s + hold.for_s)
                if not renewed:
                    self._failures_held[hold.name] = 0

    def undo(self, decision: Decision) -> None:
        """Release what it held."""
        self.act(tuple(Hold(hold.name, 0.0, hold.reason) for hold in decision if hold.for_s))

    def cost(self, picture: Wanted, decision: Decision) -> float | None:
        """How many of those held have failed more than once since: they are started all the same. Pure."""
        return float(sum(hold.name in picture.failed_again for hold in decision if hold.for_s))


def has_failed(before: ProcessRow, now: ProcessRow) -> bool:
    """Whether a process has ended between two looks, other than by being told to. Pure."""
    if now.state in _MEANT_TO_BE_DOWN or before.state is ProcessState.STOPPING:
        return False
    is_another = before.pid is not None and now.pid != before.pid
    was_short = now.restarts > before.restarts and now.pid is None
    if not (is_another or was_short) or now.wait_status is None:
        return False
    return not (os.WIFEXITED(now.wait_status) and os.WEXITSTATUS(now.wait_status) in _NO_FAILURE)


def _meant_to_be_up(table: NodeStatus) -> int:
    return sum(row.enabled and row.state not in _MEANT_TO_BE_DOWN for row in table.processes)


def _because(down: str) -> str:
    return f"{down}, which it depends on, is down"


def _same(held: tuple[str, float] | None, host: str) -> str:
    return held[0] if held is not None and f" on {host} failed within " in held[0] else ""
