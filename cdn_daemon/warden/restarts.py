"""What supervisord's process objects ask and tell: reach.Keeper, on behalf of the policy.

It decides nothing itself: whether and when a program starts again is policy.py's,
whom it waits for is the table's. Every entry is guarded: it never raises.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from bus.endpoints import RunDir
from bus.messages import PostMortem, ProcessState
from cdn_daemon.warden import policy, postmortem, reach
from cdn_daemon.warden.boundary import Boundary, guarded
from cdn_daemon.warden.orphans import Orphans
from cdn_daemon.warden.program import Incarnation, Program
from cdn_daemon.warden.reach import Process, Step, Supervisord
from cdn_daemon.warden.table import Table

OPERATOR = "an operator"

HELD_GRACE_S = 1.0
"""An operator's start waits so long for a dependency that nobody is starting: it may be next in a ``start all``."""

FIRST_BEAT_S = 1.0
"""From READY=1 to the first WATCHDOG=1, beside the silence that it may keep then."""

_NOTHING_MORE: Mapping[str, str] = MappingProxyType({})


class Restarts:
    """Decides for the adopted processes, by the policy."""

    def __init__(
        self,
        supervisord: Supervisord,
        table: Table,
        boundary: Boundary,
        *,
        run_dir: Path,
        host: str,
        hear: Callable[[], None],
        touched: Callable[[], None],
        environment: Callable[[Program], Mapping[str, str]],
        ended: Callable[[Program, int], None],
    ) -> None:
        """hear: take in what programs have said; touched: the table has changed; ended: that process of it has."""
        self.boundary = boundary
        self.ordered_by = ""
        """In whose name a start or stop happens just now; empty if it is an operator's at supervisord itself."""
        self.orphans: Orphans | None = None
        """What an earlier supervisord has left, once that is known."""
        self._supervisord = supervisord
        self._logger = supervisord.options.logger
        self._table = table
        self._run_dir = run_dir
        self._host = host
        self._hear = hear
        self._touched = touched
        self._environment = environment
        self._ended = ended
        self._ended_now: list[tuple[Path, PostMortem]] = []
        self._ended_before: list[tuple[Path, PostMortem]] = []

    # -- starts -------------------------------------------------------------------------------------------

    @guarded(Step.STOCK)
    def next_step(self, process: Process) -> Step:
        """What the process does this turn of the loop."""
        program: Program = process.program
        if program.removed:
            return Step.WAIT
        if program.stock:
            return Step.STOCK
        now_s = time.monotonic()
        is_up = reach.is_up(self._supervisord)
        match program.state:
            case ProcessState.STARTING if program.held_since_s is not None:
                may_go = is_up and self._is_alone(process, now_s) and self._may_go(program, now_s)
                return Step.SPAWN if may_go else Step.WAIT
            case ProcessState.STARTING:
                return Step.WAIT if program.notifies else Step.STOCK
            case ProcessState.EXITED | ProcessState.BACKOFF:
                start_s = program.next_start_s
                is_due = start_s is not None and now_s >= start_s
                return Step.SPAWN if is_due and is_up else Step.WAIT
            case ProcessState.STOPPED:
                is_first = is_up and not program.disabled and reach.wants_first_start(process)
                if not is_first or self._table.waits_for(program.name):
                    return Step.WAIT
                return Step.SPAWN if self._is_alone(process, now_s) else Step.WAIT
            case ProcessState.STOPPING:
                # Stock counts by the wall clock: stepped by an hour, it would kill whoever is draining.
                grace_is_over = now_s - program.stopping_since_s >= reach.stop_wait_s(process)
                return Step.STOCK if grace_is_over else Step.WAIT
            case _:
                return Step.STOCK

    def _is_alone(self, process: Process, now_s: float) -> bool:
        """Whether no orphan of it lives any more; if one does, it is told to end."""
        program: Program = process.program
        program.orphan = ""
        if self.orphans is not None and program.name in self.orphans:
            program.orphan = self.orphans.in_the_way(program.name, reach.how_to_stop(process), now_s)
        return not program.orphan

    def _may_go(self, program: Program, now_s: float) -> bool:
        waits_for = self._table.waits_for(program.name)
        if any(self._table.is_on_its_way(each) for each in waits_for):
            return False
        if not waits_for:
            return True
        if program.held_since_s is None or now_s - program.held_since_s < HELD_GRACE_S:
            return False
        self._logger.warn(f"starting '{program.name}' though nobody is starting {', '.join(waits_for)}")
        return True

    @guarded("")
    def refusal(self, process: Process) -> str:
        """Why nobody may start it; empty if it may be started."""
        program: Program = process.program
        return "supervisord has it no more" if program.removed else program.disabled

    @guarded(True)
    def may_spawn(self, process: Process) -> bool:
        """An operator starts it: what was held against it is forgotten, and what it depends on is waited for."""
        program: Program = process.program
        program.history = policy.History()
        program.due_s = program.hold = None
        program.stock = False
        now_s = time.monotonic()
        waits = not self._is_alone(process, now_s) or bool(self._table.waits_for(program.name))
        program.held_since_s = now_s if waits else None
        return program.held_since_s is None

    @guarded(None)
    def log_lost(self, process: Process, error: OSError) -> None:
        """Its log cannot be opened: it is started without, and that is told."""
        self.boundary.survived(f"opening the log of {process.program.name}", error)

    @guarded(_NOTHING_MORE)
    def child_environment(self, process: Process) -> Mapping[str, str]:
        """What tells the child where we are."""
        return self._environment(process.program)

    @guarded(None)
    def spawned(self, process: Process) -> None:
        """A spawn was tried."""
        program: Program = process.program
        now_s = time.monotonic()
        program.starts += 1
        program.due_s = None
        program.held_since_s = None
        program.stock = False
        program.stopped_by = program.forgotten_by = ""
        program.history = policy.started(program.history, now_s, program.settings.limits)
        program.now = Incarnation(pid=process.pid or None, spawned_s=now_s, was_pid=process.pid or None)
        if not process.pid:
            program.wait_status = None
            self._decide(process, policy.Ending(None, cause=process.spawnerr or ""), now_s)

    # -- ends ---------------------------------------------------------------------------------------------

    @guarded(True)
    def ending(self, process: Process) -> bool:
        """Hear its last words; whether it was ready. What does not notify counts as ready."""
        self._hear()
        program: Program = process.program
        return not program.notifies or program.is_ready

    def finished(self, process: Process, pid: int, wait_status: int) -> None:
        """It has ended: ask the policy what follows, unless it was told to stop."""
        try:
            self._finished(process, pid, wait_status)
        except Exception as error:  # noqa: BLE001 - supervisord decides this time
            self.boundary.survived("finished", error)
            process.program.stock = True
        self._after_end(process.program, pid, wait_status)

    def _finished(self, process: Process, pid: int, wait_status: int) -> None:
        program: Program = process.program
        now_s = time.monotonic()
        life = program.now or Incarnation(pid=None, spawned_s=now_s)
        life.pid = None
        life.postmortem = postmortem.new_path(self._run_dir / "postmortems", program.name, pid)
        program.wait_status = wait_status
        self._touched()
        ending = self._ending(process, life, wait_status, now_s)
        life.end = policy.describe(ending)
        if program.state is not ProcessState.STOPPED:
            self._decide(process, ending, now_s)

    def _ending(self, process: Process, life: Incarnation, wait_status: int, now_s: float) -> policy.Ending:
        exit_code = os.WEXITSTATUS(wait_status) if os.WIFEXITED(wait_status) else None
        too_soon = process.program.state is ProcessState.BACKOFF  # supervisor's own judgement, by startsecs
        cause = life.verdict
        if not cause and (life.errno is not None or exit_code == policy.EX_CONFIG):
            cause = life.status
        return policy.Ending(
            wait_status,
            ready_for_s=None if life.ready_s is None else now_s - life.ready_s,
            expected=not too_soon and not life.verdict and reach.ended_as_expected(process, exit_code),
            ordered=bool(life.ordered_by),
            cause=cause,
        )

    def _decide(self, process: Process, ending: policy.Ending, now_s: float) -> None:
        program: Program = process.program
        limits = program.settings.limits
        program.history, decision = policy.ended(program.history, ending, now_s, limits, random.random())
        program.reason = program.ending = decision.reason + self._where_to_read_on(program)
        program.due_s = None
        if ending.ordered:
            program.hold = None
        match decision:
            case policy.Restart(after_s):
                program.due_s = now_s + after_s
                self._wait(process, now_s)
            case policy.Quarantine():
                program.reason += self._last_words(process, ending)
                reach.set_fatal(process, program.reason)
                self._logger.warn(f"gave up: {program.name} {program.reason}")
            case policy.StayDown():
                reach.set_exited(process)

    def _wait(self, process: Process, now_s: float) -> None:
        """Show until when it is not started, and why; by a hold, if that is longer than the policy's wait."""
        program: Program = process.program
        start_s = program.next_start_s
        if start_s is None or start_s <= now_s:
            program.reason = program.ending
            reach.set_exited(process)
            return
        # As a time of day it stays true, in supervisorctl too, which keeps what it was told.
        next_try = time.strftime("%H:%M:%S", time.localtime(time.time() + start_s - now_s))
        why = program.ending if program.hold is None or start_s == program.due_s else program.hold.reason
        program.reason = f"{why}; next try at {next_try}"
        reach.set_backoff(process, program.reason, start_s - now_s)

    def hold(self, name: str, hold: policy.Hold | None) -> None:
        """From now on have that process not started again before then; None: release it."""
        program = self._table.programs[name]
        program.hold = hold
        if program.due_s is not None and program.state in (ProcessState.EXITED, ProcessState.BACKOFF):
            self._wait(self._table.processes[name], time.monotonic())
        self._touched()

    @guarded("")
    def _last_words(self, process: Process, ending: policy.Ending) -> str:
        """What the program wrote last, where nobody else tells why it ended: mostly its exception."""
        if ending.wait_status is None or ending.cause or not os.WIFEXITED(ending.wait_status):
            return ""
        program: Program = process.program
        words = postmortem.last_words((program.error_log, program.log), reach.started_at(process) - 1.0)
        return f": {words}" if words else ""

    def _where_to_read_on(self, program: Program) -> str:
        """For one that was killed by us: its stacks, wherever its log says that they are, are in its post-mortem."""
        life = program.now
        if life is None or not life.verdict or life.postmortem is None:
            return ""
        return f" ({life.postmortem.relative_to(self._run_dir.parent)})"

    @guarded(None)
    def _after_end(self, program: Program, pid: int, wait_status: int) -> None:
        life = program.now
        if life is None:
            return
        self._ended(program, pid)
        if life.postmortem is None:
            return
        now_s = time.monotonic()
        follows = program.state.value
        if program.next_start_s is not None:
            follows += f", to be started again in {max(0.0, program.next_start_s - now_s):.1f} s"
        report = PostMortem(
            name=program.name,
            host=self._host,
            start=program.starts,
            pid=pid,
            incarnation=self._incarnation_of(program, pid),
            ended_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            lived_s=round(now_s - life.spawned_s, 3),
            ready_after_s=None if life.ready_s is None else round(life.ready_s - life.spawned_s, 3),
            wait_status=wait_status,
            end=life.end,
            verdict=life.verdict,
            spared="; ".join(filter(None, (life.spared, life.withheld and f"in maintenance: {life.withheld}"))),
            ordered_by=program.stopped_by or life.ordered_by,
            follows=follows,
            last_status=life.status,
            errno=life.errno,
            stacks=postmortem.take_stacks(self._run_dir / "stacks", pid),
            log_tail=postmortem.tails(program.log, program.error_log),
        )
        self._ended_now.append((life.postmortem, report))

    def write_postmortems(self) -> bool:
        """Write those of the ends before this turn of the loop, in which restarts go first; whether there are more."""
        ready, self._ended_before, self._ended_now = self._ended_before, self._ended_now, []
        for path, report in ready:
            self._write(path, report)
        return bool(self._ended_before)

    @guarded(None)
    def _write(self, path: Path, report: PostMortem) -> None:
        postmortem.write(path, report)
        if not report.ordered_by:
            self._logger.info(f"post-mortem of '{report.name}' ({report.pid}): {path}")

    def _incarnation_of(self, program: Program, pid: int) -> int | None:
        """The number of the start that its own daemon has counted, if there was one."""
        from cdn_daemon.claim import incarnation_of  # not while programs are being spawned: see Warden._join_bus

        main_pid = program.now.main_pid if program.now is not None else None
        return incarnation_of(RunDir(self._run_dir).lock(program.name.rpartition(":")[2]), {pid, main_pid})

    # -- states -------------------------------------------------------------------------------------------

    @guarded(None)
    def changed(self, process: Process, old: ProcessState, new: ProcessState) -> None:
        """It is in another state: the loop turns once more, and the table goes out."""
        program: Program = process.program
        now_s = time.monotonic()
        program.state = new
        program.orphan = ""
        if new is ProcessState.RUNNING and program.now is not None:
            program.now.ready_s = now_s
            if program.settings.must_beat and program.now.heard_s is None:
                program.now.heard_s = now_s + FIRST_BEAT_S
        elif new is ProcessState.STOPPING:
            program.stopping_since_s = now_s
            program.stopped_by = self._whoever()
        elif new is ProcessState.STOPPED and old is not ProcessState.STOPPING:
            program.due_s = None
            program.held_since_s = None
            program.stopped_by = self._whoever()
        elif new is ProcessState.FATAL:
            program.due_s = None
        self._touched()

    def _whoever(self) -> str:
        return self.ordered_by or (OPERATOR if reach.is_up(self._supervisord) else "shutdown")
