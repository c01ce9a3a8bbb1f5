"""What the warden holds of one program of supervisord's table."""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.messages import ProcessRow, ProcessState
from cdn_daemon.warden.policy import History
from cdn_daemon.warden.settings import Settings


@dataclass
class Incarnation:
    """One life of a program's process; a new one begins with every spawn."""

    pid: int | None
    spawned_s: float
    ready_s: float | None = None
    """When it became ready; None until then."""
    status: str = ""
    """Its last STATUS=."""
    errno: int | None = None
    stopping: bool = False
    """It has said STOPPING=1."""
    extended_until_s: float = 0.0
    """By its EXTEND_TIMEOUT_USEC=, start and silence are not judged before."""
    verdict: str = ""
    """Why it was killed by us; empty if it was not."""


@dataclass
class Program:
    """A program: its settings, its history, and its present or last incarnation. Times are monotonic."""

    name: str
    settings: Settings
    log: str | None
    state: ProcessState = ProcessState.STOPPED
    starts: int = 0
    history: History = field(default_factory=History)
    now: Incarnation | None = None
    """The present incarnation, or the last one."""
    wait_status: int | None = None
    reason: str = ""
    """Why it is not running, as of its last end."""
    due_s: float | None = None
    """When it is to be started again; None if it is not."""
    stopping_since_s: float = 0.0
    stopped_by: str = ""
    held: bool = False
    """An operator's start that waits for what it depends on."""
    stock: bool = False
    """Our own decision failed with an error: supervisor decides until the next start."""

    @property
    def is_ready(self) -> bool:
        """Whether its present incarnation does what it is for, as far as we are told."""
        return self.state is ProcessState.RUNNING

    def why(self, waiting_for: tuple[str, ...]) -> str:
        """Why it is not running, in words; empty when it is."""
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
            case ProcessState.STOPPED if self.starts:
                return f"stopped by {self.stopped_by}" if self.stopped_by else "stopped"
            case ProcessState.STOPPED:
                return f"waiting for {', '.join(waiting_for)}" if waiting_for else "not started"
            case _:
                return self.reason

    def row(self, now_s: float, waiting_for: tuple[str, ...] = ()) -> ProcessRow:
        """Its line of the process table."""
        alive = self.now is not None and self.now.pid is not None
        return ProcessRow(
            name=self.name,
            state=self.state,
            pid=self.now.pid if self.now else None,
            uptime_s=now_s - self.now.spawned_s if self.now and alive else None,
            restarts=max(0, self.starts - 1),
            wait_status=self.wait_status,
            reason=self.why(waiting_for),
            next_try_s=max(0.0, self.due_s - now_s)
            if self.due_s is not None and self.state is ProcessState.BACKOFF
            else None,
            log=self.log,
        )
