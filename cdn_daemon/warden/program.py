"""What the warden holds of one program of supervisord's table."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, field

from bus.messages import ProcessRow, ProcessState
from cdn_daemon.warden.judge import Sample
from cdn_daemon.warden.policy import History, Hold
from cdn_daemon.warden.sdnotify import Notice
from cdn_daemon.warden.settings import Settings

TOLD_TO_RESTART = "draining: told to restart by "
"""What the embedded daemon says (cdn_daemon/daemon.py) when it obeys an order, not a limit of its own."""


class Incarnation(Struct):
    """One life of a program's process; a new one begins with every spawn."""

    pid: int | None
    """None once it has ended."""
    spawned_s: float
    was_pid: int | None = None
    """The same, and it stays."""
    ready_s: float | None = None
    """When it became ready; None until then."""
    status: str = ""
    """Its last STATUS=."""
    errno: int | None = None
    stopping: bool = False
    """It has said STOPPING=1."""
    ordered_by: str = ""
    """Whoever told it to restart, by what it said with STOPPING=1; empty if nobody did."""
    extended_until_s: float = 0.0
    """By its EXTEND_TIMEOUT_USEC=, start and silence are not judged before."""
    stopping_since_s: float = 0.0
    """When it said STOPPING=1."""
    main_pid: int | None = None
    """By its MAINPID=, if that is one of its processes: whom to look at when it is silent."""
    watchdog_s: float | None = None
    """By its WATCHDOG_USEC=, in place of what supervisord.conf says."""
    waited_s: float = 0.0
    """How long it had waited for a CPU when its time to get ready seemed to be over: that is given back to it."""
    heard_s: float | None = None
    """Its last WATCHDOG=1, or excused until; None before the first."""
    trigger: str | None = None
    """It has said WATCHDOG=trigger, with its last STATUS."""
    stopped_since_s: float | None = None
    traced_s: float = -math.inf
    """When it was last seen under a tracer."""
    """When the kernel reported that a signal has stopped it."""
    suspected: Sample | None = None
    """What /proc said of it when it became suspect."""
    spared: str = ""
    """Why a silence over its limit was excused, the first time."""
    withheld: str = ""
    """What it would have been killed for, had it not been in maintenance."""
    verdict: str = ""
    """Why it was killed by us; empty if it was not."""
    end: str = ""
    """How it ended, in words."""
    postmortem: Path | None = None
    """Where its post-mortem is, once it has ended."""
    kill_due_s: float | None = None
    """When SIGKILL follows on what was sent to it first."""

    def hear(self, notice: Notice, sender_belongs: Callable[[int], bool], now_s: float) -> None:
        """Take in what it says of itself. READY=1 is the Program's matter."""
        if notice.status is not None:
            self.status = notice.status
        if notice.errno is not None:
            self.errno = notice.errno
        if notice.stopping and not self.stopping:
            self.stopping = True
            self.stopping_since_s = now_s
            self.ordered_by = orderer(notice.status or "")
        if notice.main_pid is not None and sender_belongs(notice.main_pid):
            self.main_pid = notice.main_pid
        if notice.watchdog_s is not None:
            self.watchdog_s = notice.watchdog_s
        if notice.extend_s is not None:
            self.extended_until_s = now_s + notice.extend_s
        if notice.beat:
            self.heard_s = now_s
            self.suspected = None
            self.spared = self.withheld = ""
        if notice.trigger:
            self.trigger = self.status

    def judge_anew(self, until_s: float, now_s: float) -> None:
        """Its maintenance is over: nothing from before counts against it but its own word."""
        self.heard_s = None if self.heard_s is None else now_s
        self.stopped_since_s = None if self.stopped_since_s is None else now_s
        self.extended_until_s = max(self.extended_until_s, until_s)
        self.suspected = None
        self.spared = self.withheld = ""


def orderer(status: str) -> str:
    """Who told a daemon to restart, by the STATUS= that goes with its STOPPING=1; empty if it drains of itself."""
    return status.removeprefix(TOLD_TO_RESTART) if status.startswith(TOLD_TO_RESTART) else ""


class Program(Struct):
    """A program: its settings, its history, and its present or last incarnation. Times are monotonic."""

    name: str
    settings: Settings
    log: str | None
    """Of its standard output, and mostly its standard error."""
    error_log: str | None = None
    """Of its standard error, if that has a file of its own."""
    state: ProcessState = ProcessState.STOPPED
    starts: int = 0
    history: History = field(default_factory=History)
    now: Incarnation | None = None
    """The present incarnation, or the last one."""
    wait_status: int | None = None
    ending: str = ""
    """How it ended last and what followed, by the policy."""
    reason: str = ""
    """Why it is not running, as of its last end."""
    due_s: float | None = None
    """When it is to be started again, by the policy; None if it is not."""
    hold: Hold | None = None
    """Somebody asks that it be not started again so soon."""
    disabled: str = ""
    """Why it may not be started; empty if it may."""
    maintenance: str = ""
    """Why it is not judged; empty if it is."""
    of: str | None = None
    """The program that this is a further instance of."""
    removed: bool = False
    """supervisord has it no more."""
    stopping_since_s: float = 0.0
    stopped_by: str = ""
    forgotten_by: str = ""
    """Who had its failures forgotten after it was given up; nobody has stopped it then."""
    held_since_s: float | None = None
    """Since when an operator's start waits for what it depends on: STARTING without a process."""
    orphan: str = ""
    """Whose end a start waits for: what a killed supervisord has left of this program. Empty if nobody's."""
    has_notified: bool = False
    """It has sent READY=1, in this or an earlier incarnation."""
    stock: bool = False
    """Our own decision failed with an error: supervisor decides until the next start."""

    @property
    def notifies(self) -> bool:
        """Whether READY=1 is to be expected of it: so it was said, or it has sent one before."""
        return self.settings.notifies or (self.settings.learns and self.has_notified)

    @property
    def is_ready(self) -> bool:
        """Whether its present incarnation does what it is for, as far as we are told."""
        return self.state is ProcessState.RUNNING

    @property
    def is_awaited(self) -> bool:
        """Whether its READY=1 is."""
        return self.notifies and self.state is ProcessState.STARTING

    @property
    def next_start_s(self) -> float | None:
        """When it is started again; None if it is not."""
        return self.due_s if self.due_s is None or self.hold is None else max(self.due_s, self.hold.until_s)

    def overdue(self, now_s: float, stop_wait_s: float) -> str:
        """What it should have done by now; empty if it has time, or has been convicted already."""
        life = self.now
        if life is None or life.pid is None or life.verdict or now_s < life.extended_until_s:
            return ""
        if self.is_awaited and now_s >= life.spawned_s + self.settings.ready_s + life.waited_s:
            waited = f" and {life.waited_s:.1f} s of waiting for a CPU" if life.waited_s >= 0.05 else ""
            said = f": {life.status}" if life.status else ""
            return f"not ready within {self.settings.ready_s:g} s{waited}{said}"
        if self.state is ProcessState.RUNNING and life.stopping and now_s >= life.stopping_since_s + stop_wait_s:
            return f"said STOPPING=1 and did not end within {stop_wait_s:g} s"
        return ""

    def why(self, waiting_for: tuple[str, ...]) -> str:
        """Why it is not running, or not judged, in words; empty when it is."""
        reason = self._why_not_running(waiting_for)
        if not self.maintenance:
            return reason
        withheld = self.now.withheld if self.now else ""
        return "; ".join(filter(None, (reason, self.maintenance, withheld and f"not killed for: {withheld}")))

    def _why_not_running(self, waiting_for: tuple[str, ...]) -> str:
        if self.orphan and not (self.now and self.now.pid):
            return f"waiting for the end of {self.orphan}"
        match self.state:
            case ProcessState.RUNNING:
                return ""
            case ProcessState.STARTING if waiting_for and not (self.now and self.now.pid):
                return f"waiting for {', '.join(waiting_for)}"
            case ProcessState.STARTING:
                status = self.now.status if self.now else ""
                return f"not ready yet: {status}" if status else "not ready yet"
            case ProcessState.STOPPING:
                return f"stopping, by {self.stopped_by}" if self.stopped_by else "stopping"
            case ProcessState.STOPPED if self.disabled:
                return self.disabled
            case ProcessState.STOPPED if self.forgotten_by:
                return f"had been given up, and is not started yet; its failures are forgotten, by {self.forgotten_by}"
            case ProcessState.STOPPED if self.starts:
                return f"stopped by {self.stopped_by}" if self.stopped_by else "stopped"
            case ProcessState.STOPPED:
                return f"waiting for {', '.join(waiting_for)}" if waiting_for else "not started"
            case _:
                return self.reason

    def row(self, now_s: float, waiting_for: tuple[str, ...] = (), depends_on: tuple[str, ...] = ()) -> ProcessRow:
        """Its line of the process table."""
        alive = self.now is not None and self.now.pid is not None
        next_start_s = self.next_start_s
        return ProcessRow(
            name=self.name,
            state=self.state,
            pid=self.now.pid if self.now else None,
            uptime_s=now_s - self.now.spawned_s if self.now and alive else None,
            restarts=max(0, self.starts - 1),
            wait_status=self.wait_status,
            reason=self.why(waiting_for),
            next_try_s=max(0.0, next_start_s - now_s)
            if next_start_s is not None and self.state is ProcessState.BACKOFF
            else None,
            log=self.log,
            enabled=not self.disabled,
            maintenance=bool(self.maintenance),
            program=self.of,
            depends_on=depends_on,
            says_ready=self.notifies,
        )
