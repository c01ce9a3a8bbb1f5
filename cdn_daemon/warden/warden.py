"""The warden: brought up and down with supervisord, and its turn of supervisord's loop.

Restarts are restarts.py's, silence is judged by judge.py, orders are orders.py's;
here they are given what has happened, turn by turn. Nothing in here may raise
into supervisord: every entry is guarded by the boundary.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bus.endpoints import RunDir, host_name, prepare
from bus.messages import NodeStatus, ProcessState
from cdn_daemon.warden import depends, procfs, reach
from cdn_daemon.warden.bailiff import Bailiff
from cdn_daemon.warden.boundary import Boundary, guarded
from cdn_daemon.warden.inbox import Inbox
from cdn_daemon.warden.judge import LATE_S, Finding
from cdn_daemon.warden.loop import Listener, Waker
from cdn_daemon.warden.orders import Goal
from cdn_daemon.warden.orphans import Orphans
from cdn_daemon.warden.procfs import belongs_to
from cdn_daemon.warden.program import Incarnation, Program
from cdn_daemon.warden.reach import Supervisord
from cdn_daemon.warden.restarts import OPERATOR, Restarts
from cdn_daemon.warden.sdnotify import Notice
from cdn_daemon.warden.steward import Steward
from cdn_daemon.warden.table import Table, next_incarnation
from cdn_daemon.warden.watch import Watch

if TYPE_CHECKING:
    from cdn_daemon.warden.node import Node

TICK_S = 0.1
BUSY_TICK_S = 0.02
"""The tick while somebody waits: a program for its READY to be heard, an order for its end, a suspect for its judge."""
REPORT_S = 1.0


class Warden:
    """One for each run of supervisord."""

    def __init__(self, supervisord: Supervisord, run_dir: RunDir, defaults: Mapping[str, str]) -> None:
        """Adopt all programs; SettingsError if supervisord.conf says something impossible of one."""
        self._supervisord = supervisord
        self._logger = supervisord.options.logger
        self._run_dir = run_dir
        self._host = host_name()
        self.boundary = Boundary(self._logger.error)
        self._table = Table(supervisord, defaults, self._logger.error)
        self._watch = Watch(self._logger.warn)
        self._bailiff = Bailiff(self._logger.warn)
        self._restarts = Restarts(
            supervisord,
            self._table,
            self.boundary,
            run_dir=run_dir.path,
            host=self._host,
            hear=self._hear,
            touched=self._touched,
            environment=self._environment,
            ended=self._ended,
        )
        self.steward = Steward(
            supervisord,
            self._table,
            self._restarts,
            self.boundary,
            run_dir.state("warden") / "desired.json",
            act=self._act,
            touched=self._touched,
        )
        self._waker: Waker | None = None
        self._inbox: Inbox | None = None
        self._node: Node | None = None
        self._incarnation = 0
        self._seq = 0
        self._changed = False
        self._give_back: Callable[[], None] | None = None
        self._ticked_s = 0.0
        self._reported_s = 0.0
        for process in self._table.processes.values():
            reach.adopt(process, self._restarts)
        reach.keep_descriptors()
        reach.subscribe("SupervisorRunningEvent", self._running)
        reach.subscribe("SupervisorStoppingEvent", self._stopping)
        reach.subscribe("ProcessGroupAddedEvent", self._group_added)
        reach.subscribe("ProcessGroupRemovedEvent", self._group_removed)
        reach.at_end(supervisord, self.close)

    # -- beginning and end --------------------------------------------------------------------------------

    @guarded(None)
    def _running(self, _event: object) -> None:
        """supervisord has daemonised and begins its loop: now timers, sockets and ZeroMQ's thread will last."""
        self._recall()
        self._find_orphans()
        self._waker = Waker(self._woken)
        reach.socket_map(self._supervisord)[self._waker.fileno()] = self._waker
        self._ticked_s = time.monotonic()
        self._reported_s = self._ticked_s
        self._waker.every(BUSY_TICK_S)
        reach.calm_waiting_stops(self._supervisord)
        if not self._bailiff.become_subreaper():
            self._logger.warn("warden: not a subreaper; children that leave their process group will not be swept")
        self._inbox = Inbox(self._run_dir.path / "notify")
        for name in self._table.programs:
            self._inbox.open(name)
        self._incarnation = next_incarnation(self._run_dir.state("warden"))
        many = len(self._table.programs)
        self._logger.info(f"warden #{self._incarnation} of {self._host} watches {many} programs")
        self._waker.wake()  # stock would sleep a second before it starts anything

    @guarded(None)
    def _recall(self) -> None:
        """Before the first start, as what is disabled must not have one."""
        self.steward.recall()

    @guarded(None)
    def _find_orphans(self) -> None:
        self._restarts.orphans = Orphans(self._run_dir.path, self._logger.warn)

    @guarded(None)
    def _join_bus(self) -> None:
        """Once nobody is starting, or a second after the first start: loading ZeroMQ takes 20 ms of CPU."""
        import cdn_daemon.claim  # noqa: F401 - for the first post-mortem; a program that has crashed is not to wait for it
        from cdn_daemon.warden.node import Node

        self._node = Node(
            self._run_dir, self._host, self._incarnation, self.steward, act=self._act, signal=self._send_signal
        )
        reach.socket_map(self._supervisord)[self._node.fd] = Listener(self._node.fd, self._orders_came)

    def _stopping(self, _event: object) -> None:
        """supervisord ends or reloads: stop everybody, dependents first. If that fails, supervisord does it."""
        self._give_back = reach.take_over_shutdown(self._supervisord)
        self._stop_next()

    def _stop_next(self) -> None:
        assert self._give_back is not None
        try:
            for name in depends.next_to_stop(self._table.still_up(), self._table.depends_on):
                if self._table.programs[name].state is not ProcessState.STOPPING:
                    reach.stop(self._table.processes[name])
        except Exception as error:  # noqa: BLE001 - then the stock way
            self.boundary.survived("_stop_next", error)
            self._give_back()
            self._give_back = None

    @guarded(None)
    def close(self) -> None:
        """Give back what supervisord's loop and the kernel hold for us."""
        while self._restarts.write_postmortems():
            continue
        self._leave_bus()
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
        if self._restarts.orphans is not None:
            self._restarts.orphans.close()
            self._restarts.orphans = None
        if self._waker is not None:
            reach.forget_fd(self._supervisord, self._waker.fileno())
            self._waker.close()
            self._waker = None
        self._bailiff.sweep_out(self._table.pids(), time.monotonic())

    @guarded(None)
    def _leave_bus(self) -> None:
        """With a last word, which may be too long for a frame."""
        node, self._node = self._node, None
        if node is None:
            return
        reach.forget_fd(self._supervisord, node.fd)
        try:
            node.publish(self.status())
        finally:
            node.close()  # whatever happens: under a living ZeroMQ context a reload would abort

    @guarded(None)
    def _group_added(self, _event: object) -> None:
        for process in reach.processes(self._supervisord):
            if reach.full_name(process) not in self._table.programs:
                program = self._table.add(process, self.steward.program_of(reach.full_name(process)))
                self.steward.apply(program)
                reach.adopt(process, self._restarts)
                if self._inbox is not None:
                    self._inbox.open(program.name)
        self.steward.table_changed()
        self._touched()

    @guarded(None)
    def _group_removed(self, _event: object) -> None:
        for name in self._table.forget_absent():
            if self._inbox is not None:
                self._inbox.close_one(name)
        self.steward.table_changed()
        self._touched()

    # -- what restarts.py asks ----------------------------------------------------------------------------

    def _environment(self, program: Program) -> Mapping[str, str]:
        """What a child is told: where to speak to us, and how often."""
        told = {"CDN_RUN_DIR": str(self._run_dir.path), "CDN_LIFE": self._mark(program, program.starts + 1)}
        if self._inbox is not None:
            if not self._inbox.has(program.name):
                self._mend(time.monotonic())
            told["NOTIFY_SOCKET"] = str(self._inbox.path(program.name))
            if program.settings.watchdog_s:
                told["WATCHDOG_USEC"] = str(int(program.settings.watchdog_s * 1e6))
        return told

    def _mark(self, program: Program, start: int) -> str:
        return f"{os.getpid()}/{program.name}/{start}"

    def _ended(self, program: Program, pid: int) -> None:
        if program.notifies:
            self._bailiff.ended(pid, self._mark(program, program.starts), time.monotonic())

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
            self._hear()
            self._look(late_s, now_s)
            self._orders_came()  # ZeroMQ's descriptor tells of a change only; one may be lost to our own sending
        if self._restarts.write_postmortems() and self._waker is not None:
            self._waker.wake()
        self._tell(now_s)

    @guarded(None)
    def _note_stops(self, now_s: float) -> None:
        self._watch.stopped(self._table.programs.values(), now_s)
        if self._watch.has_suspects and self._waker is not None:
            self._waker.every(BUSY_TICK_S)

    @guarded(None)
    def _hear(self) -> None:
        """Take what the programs have said."""
        if self._inbox is None:
            return
        now_s = time.monotonic()
        for name, _pid, notice in self._inbox.drain(self._table.pid_of):
            self._heard(self._table.programs[name], notice, now_s)

    def _heard(self, program: Program, notice: Notice, now_s: float) -> None:
        life = program.now
        assert life is not None
        root_pid = life.pid or 0
        life.hear(notice, lambda pid: belongs_to(pid, root_pid), now_s)
        if notice.malformed:
            self.boundary.counts["notify_malformed_lines"] += notice.malformed
        if notice.ready:
            program.has_notified = True
        if notice.ready and program.is_awaited:
            reach.set_running(self._table.processes[program.name])

    @guarded(None)
    def _look(self, late_s: float, now_s: float) -> None:
        """Who has had its time, and who is hung?"""
        programs = self._table.programs.values()
        if late_s > LATE_S:
            self.boundary.counts["late_ticks"] += 1
            self._watch.excuse(programs, late_s, now_s)
        is_busy = self._give_back is not None or (self._node is not None and self._node.is_waiting)
        for program in programs:
            life = program.now
            if life is None or life.pid is None:
                continue
            if program.is_ready and not life.stopping and life.kill_due_s is None:
                continue  # nothing has a deadline; this is nearly everybody, nearly always
            self._bailiff.follow_up(life, now_s)
            overdue = self._overdue(program, life, now_s)
            if overdue and program.maintenance:
                self._watch.withhold(program.name, life, overdue)
            elif overdue:
                self._convict(program, overdue, signal.SIGABRT, now_s)
            is_busy = is_busy or life.kill_due_s is not None or program.is_awaited
        verdicts = self._watch.tick(programs, late_s, now_s)
        if verdicts and self._mend(now_s):
            verdicts = []  # they may have spoken, with nobody there to hear it
        for verdict in verdicts:
            first = signal.SIGKILL if verdict.finding is Finding.STOPPED else signal.SIGABRT
            self._convict(self._table.programs[verdict.name], verdict.text, first, now_s)
        if self._bailiff.is_busy:
            self._bailiff.sweep(self._table.pids(), now_s)
        if self._waker is not None:
            self._waker.every(BUSY_TICK_S if is_busy or self._watch.has_suspects else TICK_S)
        if self._node is None and not is_busy:
            self._join_bus()

    def _overdue(self, program: Program, life: Incarnation, now_s: float) -> str:
        """What it should have done by now; a start that waits for a CPU gets as much more time as it has waited."""
        stop_wait_s = reach.stop_wait_s(self._table.processes[program.name])
        overdue = program.overdue(now_s, stop_wait_s)
        if overdue and program.is_awaited:
            life.waited_s = max(life.waited_s, procfs.waited_s(life.pid or 0))
            overdue = program.overdue(now_s, stop_wait_s)
        return overdue

    def _convict(self, program: Program, verdict: str, first: signal.Signals, now_s: float) -> None:
        assert program.now is not None
        self.boundary.counts["verdicts"] += 1
        self._bailiff.convict(program, program.now, verdict, first=first, now_s=now_s)

    @guarded(None)
    def _tell(self, now_s: float) -> None:
        """Go on with orders and with the end, and publish what has changed."""
        has_changed, self._changed = self._changed, False
        is_due = now_s - self._reported_s >= REPORT_S
        if has_changed:
            reach.hurry_answers(self._supervisord)
        if self._give_back is not None:
            self._stop_next()
        if has_changed or is_due:
            self.steward.tick(now_s)
        if is_due:
            self._reported_s = now_s
            self._mend(now_s)
            self._mend_server()
            self._sweep_orphans(now_s)
            if self._node is None:
                self._join_bus()
        if self._node is None:
            return
        self._node.advance(self._table.programs, now_s)
        if is_due:
            self._node.greet()
        if is_due or has_changed:
            self._node.publish(self.status())

    def _mend(self, now_s: float) -> bool:
        """Have the notify sockets where programs look for them; whether somebody had cleared the run directory."""
        missing = self._inbox.lost() if self._inbox is not None else []
        if self._inbox is None or not missing:
            return False
        self.boundary.counts["sockets_lost"] += len(missing)
        self._logger.error(f"warden: {len(missing)} notify sockets in {self._run_dir.path} are gone; making them anew")
        prepare(self._run_dir)
        for name in missing:
            self._inbox.open(name)
        self._watch.excuse(self._table.programs.values(), float("inf"), now_s)  # none of them could be heard
        return True

    @guarded(None)
    def _mend_server(self) -> None:
        for path in reach.reopen_unix_servers(self._supervisord):
            self.boundary.counts["sockets_lost"] += 1
            self._logger.error(f"warden: {path} is gone; listening there anew")

    @guarded(None)
    def _sweep_orphans(self, now_s: float) -> None:
        if self._restarts.orphans is not None:
            notifying = {program.name for program in self._table.programs.values() if program.notifies}
            self._bailiff.swept += self._restarts.orphans.sweep(notifying, now_s)

    def status(self) -> NodeStatus:
        """The process table as of now; counts as one of the statuses sent."""
        now_s = time.monotonic()
        self._seq += 1
        counts = dict(self.boundary.counts)
        if self._inbox is not None:
            counts |= {f"notify_{cause}": many for cause, many in self._inbox.refused.items()}
        if self._node is not None:
            counts |= {f"frames_{cause}": many for cause, many in self._node.dropped.items()}
        counts |= {key: many for key, many in (("spared", self._watch.spared), ("swept", self._bailiff.swept)) if many}
        return NodeStatus(
            host=self._host,
            incarnation=self._incarnation,
            seq=self._seq,
            pid=os.getpid(),
            time_s=time.time(),
            monotonic_s=now_s,
            processes=self._table.rows(now_s),
            counts=counts,
            last_error=self.boundary.last_error,
        )

    # -- orders -------------------------------------------------------------------------------------------

    @guarded(None)
    def _orders_came(self) -> None:
        if self._node is None:
            return
        self._node.receive(self._table.programs, reach.is_up(self._supervisord), time.monotonic())
        if self._node.is_waiting and self._waker is not None:
            self._waker.every(BUSY_TICK_S)

    def _act(self, name: str, goal: Goal, asked_by: str) -> str | None:
        """Start or stop a program for somebody; None, or why that cannot be."""
        program, process = self._table.programs[name], self._table.processes[name]
        self._restarts.ordered_by = asked_by
        try:
            if goal is Goal.UP:
                reach.start(process)
            elif program.state is ProcessState.EXITED:
                program.due_s = None  # about to be started again: it is not, then
            else:
                return reach.stop(process)
        finally:
            self._restarts.ordered_by = ""
        return None

    def _send_signal(self, name: str, number: int) -> str | None:
        if self._table.pid_of(name) is None:
            return f"{name} is not running"
        try:
            signal.Signals(number)
        except ValueError:
            return f"there is no signal {number}"
        return reach.send_signal(self._table.processes[name], number)

    def is_up(self) -> bool:
        """Whether supervisord is neither ending nor reloading."""
        return reach.is_up(self._supervisord)

    def start_enabled(self, name: str) -> None:
        """It is enabled again: it starts, if supervisord.conf has it start by itself and it is down."""
        if self._table.programs[name].state is ProcessState.STOPPED and self.steward.starts_by_itself(name):
            self._act(name, Goal.UP, OPERATOR)


def private_run_dir(supervisord: Supervisord) -> Path:
    """The run directory: ``$CDN_RUN_DIR``, else the one of supervisord's Unix socket, else ./run."""
    configured, socket_path = reach.run_dir_settings(supervisord)
    if configured:
        return Path(configured).absolute()
    return Path(socket_path).absolute().parent if socket_path else Path("run").absolute()
