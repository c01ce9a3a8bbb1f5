"""The warden itself: what supervisord's process objects ask and tell (reach.Keeper), and its turn of the loop.

It decides nothing by itself: restarts are policy.py's, orders are orders.py's.
It brings what happened to them, and does what they say by reach.py. Nothing in
here may raise into supervisord: every entry is guarded by the boundary.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from bus.endpoints import RunDir, host_name
from bus.messages import NodeStatus, ProcessState
from cdn_daemon.warden import policy, reach
from cdn_daemon.warden.boundary import Boundary, guarded
from cdn_daemon.warden.inbox import Inbox
from cdn_daemon.warden.judge import LATE_S, Finding
from cdn_daemon.warden.loop import Listener, Waker
from cdn_daemon.warden.node import Node
from cdn_daemon.warden.orders import Goal
from cdn_daemon.warden.procfs import belongs_to
from cdn_daemon.warden.program import Incarnation, Program
from cdn_daemon.warden.reach import Process, Step, Supervisord
from cdn_daemon.warden.sdnotify import Notice
from cdn_daemon.warden.settings import read, settings_of
from cdn_daemon.warden.watch import Watch

TICK_S = 0.1
BUSY_TICK_S = 0.02
"""The tick while somebody waits: a program for its READY to be heard, or an order for its end."""
REPORT_S = 1.0
ABORT_GRACE_S = 0.2
"""From SIGABRT to SIGKILL: enough for the stacks of a hundred threads, not for a core dump of gigabytes."""

_OPERATOR = "an operator"
_NOTHING_MORE: Mapping[str, str] = MappingProxyType({})


class Warden:
    """One for each run of supervisord."""

    def __init__(self, supervisord: Supervisord, run_dir: RunDir, defaults: Mapping[str, str]) -> None:
        """Adopt all programs; SettingsError if supervisord.conf says something impossible of one."""
        self.boundary = Boundary(supervisord.options.logger.error)
        self._supervisord = supervisord
        self._logger = supervisord.options.logger
        self._run_dir = run_dir
        self._host = host_name()
        self._defaults = dict(defaults)
        self._programs: dict[str, Program] = {}
        self._processes: dict[str, Process] = {}
        self._watch = Watch(self._logger.warn)
        self._waker: Waker | None = None
        self._inbox: Inbox | None = None
        self._node: Node | None = None
        self._pid = os.getpid()
        self._changed = False
        self._ticked_s = 0.0
        self._reported_s = 0.0
        self._ordered_by = ""
        for process in reach.processes(supervisord):
            self._add(process)
        reach.subscribe("SupervisorRunningEvent", self._running)
        reach.subscribe("ProcessGroupAddedEvent", self._group_added)
        reach.subscribe("ProcessGroupRemovedEvent", self._group_removed)
        reach.at_end(supervisord, self.close)

    # -- beginning and end ------------------------------------------------------------------------------

    @guarded(None)
    def _running(self, _event: object) -> None:
        """supervisord has daemonised and begins its loop: now timers, sockets and ZeroMQ's thread will last."""
        self._pid = os.getpid()
        self._waker = Waker(self._woken)
        reach.socket_map(self._supervisord)[self._waker.fileno()] = self._waker
        self._waker.every(BUSY_TICK_S)
        reach.calm_waiting_stops(self._supervisord)
        self._inbox = Inbox(self._run_dir.path / "notify")
        for name in self._programs:
            self._inbox.open(name)
        self._node = Node(self._run_dir, self._host, act=self._act, signal=self._send_signal)
        reach.socket_map(self._supervisord)[self._node.fd] = Listener(self._node.fd, self._orders_came)
        self._logger.info(f"warden #{self._node.incarnation} of {self._host} watches {len(self._programs)} programs")

    @guarded(None)
    def close(self) -> None:
        """Give back what supervisord's loop and the kernel hold for us."""
        if self._node is not None:
            reach.forget_fd(self._supervisord, self._node.fd)
            self._node.publish(self.status())
            self._node.close()
            self._node = None
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
        if self._waker is not None:
            reach.forget_fd(self._supervisord, self._waker.fileno())
            self._waker.close()
            self._waker = None

    def _add(self, process: Process) -> Program:
        name = reach.full_name(process)
        told = read(*reach.conf_file(self._supervisord))
        settings = settings_of(name, process.config.command, told.get(process.config.name, {}), self._defaults)
        program = Program(name=name, settings=settings, log=reach.log_path(process), state=reach.state(process))
        self._programs[name] = program
        self._processes[name] = process
        process.program = program
        reach.adopt(process, self)
        return program

    @guarded(None)
    def _group_added(self, event: object) -> None:
        for process in reach.group_processes(self._supervisord, getattr(event, "group", "")):
            program = self._add(process)
            if self._inbox is not None:
                self._inbox.open(program.name)

    @guarded(None)
    def _group_removed(self, event: object) -> None:
        present = {reach.full_name(process) for process in reach.processes(self._supervisord)}
        for name in set(self._programs) - present:
            del self._programs[name]
            del self._processes[name]
            if self._inbox is not None:
                self._inbox.close_one(name)

    # -- what supervisord's processes ask (reach.Keeper) --------------------------------------------------

    @guarded(Step.STOCK)
    def next_step(self, process: Process) -> Step:
        """What the process does this turn of the loop."""
        program = _program(process)
        if program.stock:
            return Step.STOCK
        now_s = time.monotonic()
        match program.state:
            case ProcessState.STARTING:
                return Step.WAIT if program.settings.notifies else Step.STOCK
            case ProcessState.EXITED | ProcessState.BACKOFF:
                is_due = program.due_s is not None and now_s >= program.due_s
                return Step.SPAWN if is_due and reach.is_up(self._supervisord) else Step.WAIT
            case ProcessState.STOPPED:
                wanted = reach.wants_first_start(process) and reach.is_up(self._supervisord)
                return Step.SPAWN if wanted else Step.WAIT
            case ProcessState.STOPPING:
                # Stock counts by the wall clock: stepped by an hour, it would kill whoever is draining.
                grace_is_over = now_s - program.stopping_since_s >= reach.stop_wait_s(process)
                return Step.STOCK if grace_is_over else Step.WAIT
            case _:
                return Step.STOCK

    @guarded(True)
    def may_spawn(self, process: Process) -> bool:
        """An operator starts it: what was held against it is forgotten."""
        program = _program(process)
        program.history = policy.History()
        program.due_s = None
        program.stock = False
        return True

    @guarded(None)
    def spawned(self, process: Process) -> None:
        """A spawn was tried."""
        program = _program(process)
        now_s = time.monotonic()
        program.starts += 1
        program.due_s = None
        program.stock = False
        program.stopped_by = ""
        program.history = policy.started(program.history, now_s, program.settings.limits)
        program.now = Incarnation(pid=process.pid or None, spawned_s=now_s)
        if not process.pid:
            program.wait_status = None
            self._decide(process, program, policy.Ending(None, cause=process.spawnerr or ""), now_s)

    @guarded(_NOTHING_MORE)
    def child_environment(self, process: Process) -> Mapping[str, str]:
        """What tells the child where we are."""
        program = _program(process)
        told = {"CDN_RUN_DIR": str(self._run_dir.path)}
        if self._inbox is not None and self._inbox.has(program.name):
            told["NOTIFY_SOCKET"] = str(self._inbox.path(program.name))
            if program.settings.watchdog_s:
                told["WATCHDOG_USEC"] = str(int(program.settings.watchdog_s * 1e6))
        return told

    @guarded(True)
    def ending(self, process: Process) -> bool:
        """Hear its last words; whether it was ready. What does not notify counts as ready."""
        program = _program(process)
        self._hear(time.monotonic())
        return not program.settings.notifies or program.is_ready

    def finished(self, process: Process, pid: int, wait_status: int) -> None:
        """It has ended: ask the policy what follows, unless it was told to stop."""
        try:
            self._finished(process, wait_status)
        except Exception as error:  # noqa: BLE001 - supervisord decides this time
            self.boundary.survived("finished", error)
            _program(process).stock = True

    def _finished(self, process: Process, wait_status: int) -> None:
        program = _program(process)
        now_s = time.monotonic()
        life = program.now or Incarnation(pid=None, spawned_s=now_s)
        life.pid = None
        program.wait_status = wait_status
        self._touched()
        if program.state is ProcessState.STOPPED:
            return
        exit_code = os.WEXITSTATUS(wait_status) if os.WIFEXITED(wait_status) else None
        too_soon = program.state is ProcessState.BACKOFF  # supervisor's own judgement, by startsecs
        cause = life.verdict
        if not cause and (life.errno is not None or exit_code == policy.EX_CONFIG):
            cause = life.status
        ending = policy.Ending(
            wait_status,
            ready_for_s=None if life.ready_s is None else now_s - life.ready_s,
            expected=not too_soon and not life.verdict and reach.ended_as_expected(process, exit_code),
            cause=cause,
        )
        self._decide(process, program, ending, now_s)

    def _decide(self, process: Process, program: Program, ending: policy.Ending, now_s: float) -> None:
        program.history, decision = policy.ended(
            program.history, ending, now_s, program.settings.limits, random.random()
        )
        program.reason = decision.reason
        program.due_s = None
        match decision:
            case policy.Restart(after_s, reason):
                program.due_s = now_s + after_s
                if after_s > 0.0:
                    reach.set_backoff(process, reason, after_s)
                else:
                    reach.set_exited(process)
            case policy.Quarantine(reason):
                reach.set_fatal(process, reason)
                self._logger.warn(f"gave up: {program.name} {reason}")
            case policy.StayDown():
                reach.set_exited(process)

    @guarded(None)
    def changed(self, process: Process, old: ProcessState, new: ProcessState) -> None:
        """It is in another state: the loop turns once more, and the table goes out."""
        program = _program(process)
        now_s = time.monotonic()
        program.state = new
        if new is ProcessState.RUNNING and program.now is not None:
            program.now.ready_s = now_s
        elif new is ProcessState.STOPPING:
            program.stopping_since_s = now_s
            program.stopped_by = self._ordered_by or (_OPERATOR if reach.is_up(self._supervisord) else "shutdown")
        elif new is ProcessState.STOPPED and old is not ProcessState.STOPPING:
            program.due_s = None
            program.stopped_by = self._ordered_by or _OPERATOR
        elif new is ProcessState.FATAL:
            program.due_s = None
        self._touched()

    def _touched(self) -> None:
        self._changed = True
        if self._waker is not None:
            self._waker.wake()

    # -- our turn of the loop -----------------------------------------------------------------------------

    def _woken(self, signals: bytes) -> None:
        """A signal came, a state has changed, or the timer went off."""
        now_s = time.monotonic()
        if signal.SIGCHLD in signals:
            self._note_stops(now_s)
        if signal.SIGALRM in signals or now_s - self._ticked_s >= TICK_S:
            period_s = self._waker.period_s if self._waker is not None else TICK_S
            late_s = max(0.0, now_s - self._ticked_s - period_s)
            self._ticked_s = now_s
            self._hear(now_s)
            self._look(late_s, now_s)
        self._tell(now_s)

    @guarded(None)
    def _note_stops(self, now_s: float) -> None:
        self._watch.stopped(self._programs.values(), now_s)

    @guarded(None)
    def _hear(self, now_s: float) -> None:
        """Take what the programs have said."""
        if self._inbox is None:
            return
        for name, _pid, notice in self._inbox.drain(self._pid_of):
            self._heard(self._programs[name], notice, now_s)

    def _pid_of(self, name: str) -> int | None:
        life = self._programs[name].now
        return life.pid if life is not None else None

    def _heard(self, program: Program, notice: Notice, now_s: float) -> None:
        life = program.now
        assert life is not None
        root_pid = life.pid or 0
        life.hear(notice, lambda pid: belongs_to(pid, root_pid), now_s)
        if notice.malformed:
            self.boundary.counts["notify_malformed_lines"] += notice.malformed
        if notice.ready and program.settings.notifies and program.state is ProcessState.STARTING:
            reach.set_running(self._processes[program.name])

    @guarded(None)
    def _look(self, late_s: float, now_s: float) -> None:
        """Who has had its time, and who is hung?"""
        programs = self._programs.values()
        if late_s > LATE_S:
            self.boundary.counts["late_ticks"] += 1
            self._watch.excuse(programs, late_s, now_s)
        is_busy = self._node is not None and self._node.is_waiting
        for program in programs:
            life = program.now
            if life is None or life.pid is None:
                continue
            if life.kill_due_s is not None and now_s >= life.kill_due_s:
                life.kill_due_s = None
                self._signal_group(life.pid, signal.SIGKILL)
            overdue = program.overdue(now_s, reach.stop_wait_s(self._processes[program.name]))
            if overdue:
                self._convict(program, overdue, signal.SIGABRT, now_s)
            is_busy = is_busy or life.kill_due_s is not None or program.is_awaited
        for verdict in self._watch.tick(programs, late_s, now_s):
            first = signal.SIGKILL if verdict.finding is Finding.STOPPED else signal.SIGABRT
            self._convict(self._programs[verdict.name], verdict.text, first, now_s)
        if self._waker is not None:
            self._waker.every(BUSY_TICK_S if is_busy or self._watch.has_suspects else TICK_S)

    def _convict(self, program: Program, verdict: str, first: signal.Signals, now_s: float) -> None:
        """End a process by our judgement; its end is then treated as a crash.

        SIGABRT comes first where it can: faulthandler then writes the stacks of all threads to the log,
        even while the interpreter is held.
        """
        life = program.now
        assert life is not None
        assert life.pid is not None
        life.verdict = verdict
        self.boundary.counts["verdicts"] += 1
        self._logger.warn(f"killing '{program.name}' ({life.pid}) with {first.name}: {verdict}")
        if first is signal.SIGKILL:
            self._signal_group(life.pid, first)
        else:
            life.kill_due_s = now_s + ABORT_GRACE_S
            os.kill(life.pid, first)

    def _signal_group(self, pid: int, number: signal.Signals) -> None:
        try:
            os.killpg(pid, number)  # supervisor makes every child the leader of its own group
        except ProcessLookupError:
            os.kill(pid, number)  # it has not got so far yet, or has left for a session of its own

    @guarded(None)
    def _tell(self, now_s: float) -> None:
        """Go on with orders, and publish what has changed."""
        is_due = now_s - self._reported_s >= REPORT_S
        if not self._changed and not is_due:
            if self._node is not None and self._node.is_waiting:
                self._node.advance(self._programs, now_s)
            return
        if self._changed:
            reach.hurry_answers(self._supervisord)
        self._changed = False
        if self._node is None:
            return
        self._node.advance(self._programs, now_s)
        if is_due:
            self._reported_s = now_s
            self._node.greet()
            self._node.receive(self._programs, reach.is_up(self._supervisord), now_s)
        self._node.publish(self.status())

    def status(self) -> NodeStatus:
        """The process table as of now; counts as one of the statuses sent."""
        assert self._node is not None
        now_s = time.monotonic()
        refused = self._inbox.refused if self._inbox is not None else {}
        counts = {**self.boundary.counts, **{f"notify_{cause}": many for cause, many in refused.items()}}
        rows = tuple(program.row(now_s) for program in self._programs.values())
        return self._node.status(rows, counts, self.boundary.last_error)

    # -- orders -------------------------------------------------------------------------------------------

    @guarded(None)
    def _orders_came(self) -> None:
        if self._node is not None:
            self._node.receive(self._programs, reach.is_up(self._supervisord), time.monotonic())
            if self._node.is_waiting and self._waker is not None:
                self._waker.every(BUSY_TICK_S)

    def _act(self, name: str, goal: Goal, asked_by: str) -> str | None:
        """Start or stop a program for somebody; None, or why that cannot be."""
        process = self._processes[name]
        self._ordered_by = asked_by
        try:
            if goal is Goal.DOWN:
                program = self._programs[name]
                if program.due_s is not None and program.state is ProcessState.EXITED:
                    program.due_s = None  # about to be restarted; it is not, then
                    return None
                return reach.stop(process)
            reach.start(process)
        finally:
            self._ordered_by = ""
        return None

    def _send_signal(self, name: str, number: int) -> str | None:
        if self._pid_of(name) is None:
            return f"{name} is not running"
        try:
            signal.Signals(number)
        except ValueError:
            return f"there is no signal {number}"
        return reach.send_signal(self._processes[name], number)


def _program(process: Process) -> Program:
    program: Program = process.program
    return program


def private_run_dir(supervisord: Supervisord) -> Path:
    """The run directory: ``$CDN_RUN_DIR``, else the one of supervisord's Unix socket, else ./run."""
    configured, socket_path = reach.run_dir_settings(supervisord)
    if configured:
        return Path(configured).absolute()
    return Path(socket_path).absolute().parent if socket_path else Path("run").absolute()
