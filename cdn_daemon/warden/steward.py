"""Keeps what operators want to last, and has it so: disabled programs, maintenance, instances. desired.py decides.

Whoever asks, ATLAS or somebody at supervisord's XML-RPC, asks here. It is read
once, when supervisord begins, and written when it changes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from bus.messages import ProcessState
from cdn_daemon.warden import desired, policy, reach
from cdn_daemon.warden.boundary import Boundary
from cdn_daemon.warden.desired import Add, Desired, Disabled, Instance, Maintenance, Remove, Stop
from cdn_daemon.warden.orders import Goal, Standing
from cdn_daemon.warden.program import Program
from cdn_daemon.warden.reach import Supervisord
from cdn_daemon.warden.restarts import Restarts
from cdn_daemon.warden.table import Table

MAINTENANCE_MAX_S = 366 * 86400.0

_SCALE = "scale"
"""In whose name an instance that is one too many is stopped."""

_DOWN = (ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL)


class Refused(Exception):
    """It cannot be, and nothing was done; the text says why."""


class Steward:
    """One per warden. What changes answers what else there is to say, mostly nothing."""

    def __init__(
        self,
        supervisord: Supervisord,
        table: Table,
        restarts: Restarts,
        boundary: Boundary,
        path: Path,
        *,
        act: Callable[[str, Goal, str], str | None],
        touched: Callable[[], None],
    ) -> None:
        """act brings a program up or down for somebody; touched: the table has changed."""
        self._supervisord = supervisord
        self._logger = supervisord.options.logger
        self._table = table
        self._restarts = restarts
        self._boundary = boundary
        self._path = path
        self._act = act
        self._touched = touched
        self._desired = Desired()
        self._ends_s: dict[str, float] = {}
        """When maintenance ends by itself; monotonic."""
        self._made: dict[str, str] = {}
        """Instance → its program."""
        self._unsettled = False
        """What instances there are may not be what is wanted."""
        reach.keep_instances(supervisord, self._made.__contains__)

    # -- beginning ----------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Take up what was wanted when supervisord ended; what is unusable is set aside."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            self._desired = desired.decode(content)
        except desired.UnusableError as error:
            aside = self._path.with_name(f"{self._path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            self._path.rename(aside)
            self._boundary.counts["desired_set_aside"] += 1
            self._logger.error(
                f"warden: cannot use {self._path}: {error}; it is {aside.name} now, and nobody is disabled, in "
                "maintenance or scaled"
            )
            return
        for name in {**self._desired.disabled, **self._desired.maintenance, **self._desired.instances}:
            if name in self._table.programs:
                self.apply(self._table.programs[name])
        self._settle()

    def apply(self, program: Program) -> None:
        """A program is in the table: what is wanted of it holds."""
        disabled = self._desired.disabled.get(program.name)
        program.disabled = desired.why_disabled(program.name, disabled) if disabled is not None else ""
        maintenance = self._desired.maintenance.get(program.name)
        program.maintenance = desired.why_maintained(maintenance) if maintenance is not None else ""
        self._ends_s.pop(program.name, None)
        if maintenance is not None and maintenance.until_s is not None:
            self._ends_s[program.name] = time.monotonic() + maintenance.until_s - time.time()

    def program_of(self, name: str) -> str | None:
        """Of which program that is a further instance; None if it is none."""
        return self._made.get(name)

    def table_changed(self) -> None:
        """Groups were added or removed, by us or by hand."""
        for name in [name for name in self._made if name not in self._table.programs]:
            del self._made[name]
        self._unsettled = bool(self._desired.instances or self._made)

    # -- what may be asked --------------------------------------------------------------------------------

    def enable(self, name: str, by: str) -> str:
        """Let it be started again."""
        program = self._known(name)
        if not program.disabled:
            return "it was enabled already"
        note = self._keep(self._desired.disable(name, None))
        self._logger.info(f"'{name}' is enabled by {by}")
        self.apply(program)
        self._touched()
        return note

    def disable(self, name: str, by: str) -> str:
        """Stop it, and have it stay down."""
        program = self._known(name)
        note = self._keep(self._desired.disable(name, Disabled(by=by, at_s=time.time())))
        self._logger.info(f"'{name}' is disabled by {by}")
        self.apply(program)
        program.stock = False
        self._put_down(program, by)
        self._touched()
        return note

    def forget_failures(self, name: str, by: str) -> str:
        """Count its failures anew; one that was given up is STOPPED."""
        program = self._known(name)
        program.history = policy.History()
        if program.state is ProcessState.FATAL:
            program.forgotten_by = by
            self._put_down(program, by)
        self._logger.info(f"failures of '{name}' are forgotten, by {by}")
        self._touched()
        return ""

    def set_maintenance(self, name: str, *, on: bool, for_s: float | None, by: str) -> str:
        """Do not judge it, for so long or until that is ended; or judge it again."""
        program = self._known(name)
        if not on:
            if not program.maintenance:
                return "it was not in maintenance"
            return self._end_maintenance(program, f"ended by {by}")
        if for_s is not None and not (math.isfinite(for_s) and 0.0 < for_s <= MAINTENANCE_MAX_S):
            limit = f"over 0, and {MAINTENANCE_MAX_S:g} at most, which is a year"
            raise Refused(f"cannot keep {name} in maintenance for {for_s:g} s: it must be {limit}")
        until_s = time.time() + for_s if for_s is not None else None
        note = self._keep(self._desired.maintain(name, Maintenance(by=by, until_s=until_s)))
        self.apply(program)
        self._logger.warn(f"'{name}' is not judged: {program.maintenance}")
        if program.now is not None:
            program.now.spared = program.now.withheld = ""
        self._touched()
        return note

    def scale(self, name: str, instances: int, by: str) -> str:
        """Have so many of a program; they are there, or gone, only after a while."""
        program = self._known(name)
        problem = (
            f"it is an instance of {program.of}: scale that"
            if program.of is not None
            else f"it must be 1 to {desired.INSTANCES_MAX}"
            if not 1 <= instances <= desired.INSTANCES_MAX
            else reach.why_not_scalable(self._table.processes[name])
        )
        taken = [each for each in desired.names(name, instances)[1:] if self._is_taken(each)] if not problem else []
        if taken:
            problem = f"there is another program {taken[0]}"
        if not problem and instances > 1:
            problem = program.disabled
        if problem:
            raise Refused(f"cannot scale {name} to {instances}: {problem}")
        note = self._keep(self._desired.scale(name, instances))
        self._logger.info(f"'{name}' is scaled to {instances} by {by}")
        self._settle()
        return note

    def hold(self, name: str, for_s: float, reason: str, by: str) -> str:
        """Should it end, do not start it again so soon; 0 releases it."""
        self._known(name)
        try:
            hold = policy.hold(by, for_s, reason, time.monotonic())
        except ValueError as error:
            raise Refused(str(error)) from error
        self._restarts.hold(name, hold)
        return ""

    def refusal(self, name: str) -> str:
        """Why it may not be started; empty if it may."""
        return self._known(name).disabled

    def starts_by_itself(self, name: str) -> bool:
        """Whether supervisord.conf has it started with supervisord."""
        return reach.starts_by_itself(self._table.processes[name])

    def standings(self, program: str) -> dict[str, Standing]:
        """How each instance of it is, itself among them."""
        names = (program, *(name for name, of in self._made.items() if of == program))
        now_s = time.monotonic()
        return {
            name: Standing(
                one.state, self._table.is_on_its_way(name), one.row(now_s).reason, disabled=bool(one.disabled)
            )
            for name in names
            if (one := self._table.programs.get(name)) is not None
        }

    # -- our turn of the loop -----------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """End what has had its time, and go on towards the instances that are wanted."""
        for name in [name for name, end_s in self._ends_s.items() if now_s >= end_s]:
            program = self._table.programs.get(name)
            if program is not None:
                self._end_maintenance(program, "is over")
            else:
                del self._ends_s[name]
        if self._unsettled:
            self._settle()

    def _settle(self) -> None:
        """Take the next step towards the instances that are wanted, if there is one to take."""
        if not reach.is_up(self._supervisord):
            return
        scalable = [name for name in self._desired.instances if self._may_scale(name)]
        present = {*scalable, *(set(self._made.values()) & self._table.programs.keys())}
        steps = desired.plan(self._desired.instances, self._there(), present)
        for step in steps:
            match step:
                case Add(name, program):
                    self._made[name] = program
                    self._logger.info(f"making '{name}', an instance of '{program}'")
                    reach.add_instance(self._supervisord, self._table.processes[program], name)
                case Stop(name):
                    self._act(name, Goal.DOWN, _SCALE)
                case Remove(name):
                    self._remove(name)
        there = self._there()
        self._unsettled = bool(desired.plan(self._desired.instances, there, present)) or any(
            each.is_stopping for each in there.values()
        )
        if steps:
            self._touched()

    def _remove(self, name: str) -> None:
        program = self._table.programs[name]
        if program.state is not ProcessState.STOPPED:
            reach.set_stopped(self._table.processes[name])
        if reach.remove_group(self._supervisord, name):
            self._logger.info(f"'{name}' is gone")

    def _there(self) -> dict[str, Instance]:
        there: dict[str, Instance] = {}
        for name, of in self._made.items():
            program, first = self._table.programs[name], self._table.processes.get(of)
            state = program.state
            there[name] = Instance(
                of,
                is_current=first is not None and reach.is_current(first, self._table.processes[name]),
                is_down=state in _DOWN,
                is_stopping=state is ProcessState.STOPPING,
                is_surplus=program.stopped_by == _SCALE and state in (ProcessState.STOPPING, ProcessState.STOPPED),
            )
        return there

    def _may_scale(self, name: str) -> bool:
        """Whether a program that was scaled still can be; supervisord.conf may be another one now."""
        process = self._table.processes.get(name)
        if process is None or name in self._made:
            return False
        wanted = desired.names(name, self._desired.instances[name])[1:]
        taken = [f"there is another program {each}" for each in wanted if self._is_taken(each)]
        problem = reach.why_not_scalable(process) or next(iter(taken), "")
        if problem:
            self._logger.error(f"cannot scale {name} as it was: {problem}")
        return not problem

    def _is_taken(self, name: str) -> bool:
        return name not in self._made and reach.has_group(self._supervisord, name)

    # -- parts --------------------------------------------------------------------------------------------

    def _known(self, name: str) -> Program:
        program = self._table.programs.get(name)
        if program is None:
            raise Refused(f"supervisord has no process {name}")
        return program

    def _put_down(self, program: Program, by: str) -> None:
        if program.state in (ProcessState.EXITED, ProcessState.FATAL):
            self._restarts.ordered_by = by
            try:
                reach.set_stopped(self._table.processes[program.name])
            finally:
                self._restarts.ordered_by = ""
        elif program.state not in (ProcessState.STOPPED, ProcessState.STOPPING):
            self._act(program.name, Goal.DOWN, by)

    def _end_maintenance(self, program: Program, how: str) -> str:
        note = self._keep(self._desired.maintain(program.name, None))
        self._logger.warn(f"'{program.name}' is judged again: {program.maintenance} {how}")
        self.apply(program)
        now_s = time.monotonic()
        if program.now is not None:
            program.now.judge_anew(now_s + (program.settings.ready_s if program.is_awaited else 0.0), now_s)
        self._touched()
        return note

    def _keep(self, wanted: Desired) -> str:
        """Write it beside and rename it; what to say if that failed. What is wanted holds in either case.

        Not synced: it is to outlive supervisord, and a disk that takes its time would stop its loop.
        """
        self._desired = wanted
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(desired.encode(wanted))
            fresh.replace(self._path)
        except OSError as error:
            self._boundary.counts["desired_not_kept"] += 1
            text = f"it holds until supervisord ends, as it cannot be kept in {self._path}: {error.strerror}"
            self._logger.error(f"warden: {text}")
            return text
        return ""
