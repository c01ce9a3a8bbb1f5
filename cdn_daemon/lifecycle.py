"""A process from its start to its end, as a table. Pure: time comes in as now_s.

    starting ──listening──▶ serving ──restart, shutdown──▶ draining ──drained, hurry──▶ stopped
        │                      │                              ▲  │
        └──restart, shutdown───┼──────────────────────────────┘  └──expired──▶ stopped
                               └──failed, misconfigured (from anywhere)──▶ stopped

The exit code is the contract with whoever supervises: see ExitCode.
"""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum, auto

from bus.messages import LifecyclePhase

STARTING, SERVING, DRAINING, STOPPED = LifecyclePhase


class ExitCode(IntEnum):
    """What the end of the process asks of its supervisor."""

    STAY_DOWN = 0
    """Stopped on purpose."""
    BUG = 70
    """Start me again: something broke. EX_SOFTWARE, sysexits.h."""
    RESTART = 75
    """Start me again: I was told to restart. EX_TEMPFAIL, sysexits.h."""
    CONFIGURATION = 78
    """Do not start me again until a person has changed something. EX_CONFIG, sysexits.h."""


class LifecycleEvent(StrEnum):
    """What happens to a process."""

    LISTENING = "listening"
    RESTART = "restart"
    SHUTDOWN = "shutdown"
    HURRY = "hurry"
    """Told a second time to end."""
    DRAINED = "drained"
    EXPIRED = "expired"
    FAILED = "failed"
    MISCONFIGURED = "misconfigured"


class Instruction(Enum):
    """What the shell around the table has to do."""

    ANNOUNCE_READY = auto()
    DRAIN = auto()
    """Stop accepting, finish what is in flight."""
    END = auto()
    """What is still in flight is given up."""


_E, _I = LifecycleEvent, Instruction

TRANSITIONS: dict[tuple[LifecyclePhase, LifecycleEvent], tuple[LifecyclePhase, Instruction | None]] = {
    (STARTING, _E.LISTENING): (SERVING, _I.ANNOUNCE_READY),
    (STARTING, _E.RESTART): (DRAINING, _I.DRAIN),
    (STARTING, _E.SHUTDOWN): (DRAINING, _I.DRAIN),
    (STARTING, _E.HURRY): (DRAINING, _I.DRAIN),
    (STARTING, _E.DRAINED): (STOPPED, _I.END),
    (STARTING, _E.EXPIRED): (STARTING, None),
    (STARTING, _E.FAILED): (STOPPED, _I.END),
    (STARTING, _E.MISCONFIGURED): (STOPPED, _I.END),
    (SERVING, _E.LISTENING): (SERVING, None),
    (SERVING, _E.RESTART): (DRAINING, _I.DRAIN),
    (SERVING, _E.SHUTDOWN): (DRAINING, _I.DRAIN),
    (SERVING, _E.HURRY): (DRAINING, _I.DRAIN),
    (SERVING, _E.DRAINED): (STOPPED, _I.END),
    (SERVING, _E.EXPIRED): (SERVING, None),
    (SERVING, _E.FAILED): (STOPPED, _I.END),
    (SERVING, _E.MISCONFIGURED): (STOPPED, _I.END),
    (DRAINING, _E.LISTENING): (DRAINING, None),
    (DRAINING, _E.RESTART): (DRAINING, None),
    (DRAINING, _E.SHUTDOWN): (DRAINING, None),
    (DRAINING, _E.HURRY): (STOPPED, _I.END),
    (DRAINING, _E.DRAINED): (STOPPED, _I.END),
    (DRAINING, _E.EXPIRED): (STOPPED, _I.END),
    (DRAINING, _E.FAILED): (STOPPED, _I.END),
    (DRAINING, _E.MISCONFIGURED): (STOPPED, _I.END),
    (STOPPED, _E.LISTENING): (STOPPED, None),
    (STOPPED, _E.RESTART): (STOPPED, None),
    (STOPPED, _E.SHUTDOWN): (STOPPED, None),
    (STOPPED, _E.HURRY): (STOPPED, None),
    (STOPPED, _E.DRAINED): (STOPPED, None),
    (STOPPED, _E.EXPIRED): (STOPPED, None),
    (STOPPED, _E.FAILED): (STOPPED, None),
    (STOPPED, _E.MISCONFIGURED): (STOPPED, None),
}


class LifecycleManager:
    """Holds the phase, the exit code that the end will have, and the deadline of a drain."""

    def __init__(self, *, drain_s: float) -> None:
        self.phase = STARTING
        self.exit_code: ExitCode | None = None
        """None until the end is decided."""
        self._drain_s = drain_s
        self.drain_until_s: float | None = None

    def on(self, event: LifecycleEvent, now_s: float) -> Instruction | None:
        """Take one event; return what is to be done."""
        before = self.phase
        self.phase, instruction = TRANSITIONS[before, event]
        if before is not STOPPED:
            self._decide_exit(event)
        if instruction is Instruction.DRAIN:
            self.drain_until_s = now_s + self._drain_s
        return instruction

    def _decide_exit(self, event: LifecycleEvent) -> None:
        """The first order to end decides, except that a shutdown overrides a restart and a failure both."""
        match event:
            case LifecycleEvent.SHUTDOWN | LifecycleEvent.HURRY:
                self.exit_code = ExitCode.STAY_DOWN
            case LifecycleEvent.RESTART if self.exit_code is None:
                self.exit_code = ExitCode.RESTART
            case LifecycleEvent.FAILED:
                self.exit_code = ExitCode.BUG
            case LifecycleEvent.MISCONFIGURED:
                self.exit_code = ExitCode.CONFIGURATION
            case LifecycleEvent.DRAINED if self.exit_code is None:
                self.exit_code = ExitCode.BUG  # a server that ends by itself is broken

    def tick(self, now_s: float) -> Instruction | None:
        """End a drain whose time is over."""
        if self.phase is DRAINING and self.drain_until_s is not None and now_s >= self.drain_until_s:
            return self.on(LifecycleEvent.EXPIRED, now_s)
        return None

    def restart_windows(self, late_s: float) -> None:
        """The daemon itself was away for late_s; a drain under way gets that time back."""
        if self.drain_until_s is not None:
            self.drain_until_s += late_s
