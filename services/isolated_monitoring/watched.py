"""One target while it is watched: what was learned of it, and the judgement on it. Reads no clock and opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.isolated_monitoring.supervisor import Facts
from services.isolated_monitoring.suspicion import Instant, Outcome, Suspicion
from services.isolated_monitoring.target import Condition, Kind, Target

FROZEN_S = 0.3
"""A signal has stopped it for so long: longer than a debugger or a job control hiccup takes to look."""
NOT_READY_S = 10.0
"""How long it may be alive without being ready: as long as a drain may take."""
SILENT_S = 2.5
"""Honest work may block a service's loop for a while; the warden waits for ten seconds."""
NOT_LISTENING_S = 12.0
"""Its process lives and nobody listens: it may be draining."""


@dataclass
class Watched:
    """A target, and what is known of it. Times ending in _s are monotonic, but for the two that say so."""

    target: Target
    suspicion: Suspicion = field(default_factory=Suspicion)
    next_s: float = 0.0
    is_probing: bool = False
    sent: Instant = field(default_factory=lambda: Instant(0.0, 0.0))
    """When the probe was that is under way."""
    last_probe_s: float | None = None
    last_answer_s: float | None = None
    took_s: float | None = None
    probes: int = 0

    # of a process of supervisord's
    facts: Facts | None = None
    pid: int | None = None
    pidfd: int = -1
    address: tuple[str, int] | None = None
    looked_for_address_s: float = -1e9
    candidates: list[tuple[str, int]] = field(default_factory=list)
    """Where it may be answering, until it has answered somewhere."""
    speaks_http: bool = False
    ended: bool = False
    """Its process has ended, and why is still being found out."""
    crash: str = ""
    """How it ended, if nobody wanted that; until another one runs."""
    crash_was_seen: bool = False
    frozen_since_s: float | None = None
    """Of a FairClock, seen; as is the next."""
    not_ready_since_s: float | None = None
    not_ready: str = ""

    # the judgement
    condition: Condition = Condition.UNKNOWN
    reason: str = ""
    since_s: float = 0.0
    up_s: float = 0.0
    judged_s: float = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return self.target.name

    def begin_anew(self, pid: int | None) -> None:
        """It is another process."""
        self.pid = pid
        self.address = None
        self.candidates = []
        self.looked_for_address_s = -1e9
        self.ended = False
        self.frozen_since_s = self.not_ready_since_s = None
        self.suspicion.forget()


def judge_service(
    watched: Watched, now: Instant, waited_s: float | None, *, supervised: bool = True
) -> tuple[Condition, str]:
    """How a process of supervisord's is. supervised: whether supervisord answers, and its table holds."""
    facts = watched.facts
    if facts is None:
        return Condition.UNKNOWN, "supervisord has not been asked yet"
    if watched.crash:
        is_back = facts.state == "RUNNING" and not watched.ended and watched.pid == facts.pid
        if not (is_back and watched.crash_was_seen):
            watched.crash_was_seen = True
            return Condition.DOWN, watched.crash
        watched.crash, watched.crash_was_seen = "", False
    if supervised and facts.state != "RUNNING":
        return _by_state(facts)
    if watched.ended:
        return Condition.SUSPECT, "its process has ended"
    if watched.frozen_since_s is not None and now.seen_s - watched.frozen_since_s >= FROZEN_S:
        return Condition.DOWN, "its process is stopped by a signal (state T)"
    if facts.state != "RUNNING":
        return _by_state(facts)
    patience_s = NOT_LISTENING_S if watched.suspicion.outcome is Outcome.REFUSED else SILENT_S
    verdict = watched.suspicion.judge(now, patience_s, waited_s)
    if verdict is not Condition.UP:
        return verdict, watched.suspicion.text
    if watched.not_ready_since_s is not None:
        lasted_s = now.seen_s - watched.not_ready_since_s
        if lasted_s >= NOT_READY_S:
            return Condition.DOWN, f"alive and not ready: {watched.not_ready}"
        return Condition.SUSPECT, f"alive and not ready: {watched.not_ready}"
    return Condition.UP, ""


def _by_state(facts: Facts) -> tuple[Condition, str]:
    why = facts.reason or facts.exit_text
    match facts.state:
        case "STOPPED" | "STOPPING":
            return Condition.STOPPED, facts.reason or facts.state.lower()
        case "STARTING":
            return Condition.STARTING, facts.reason or "not ready yet"
        case "EXITED" | "BACKOFF" if facts.exit_code == 75:
            return Condition.STARTING, why or "restarting"
        case "EXITED" if facts.exit_code == 0:
            return Condition.STOPPED, why or "it ended by itself, as it was meant to"
        case "EXITED" | "BACKOFF" | "FATAL":
            return Condition.DOWN, f"{facts.state}: {why}" if why else facts.state
        case _:
            return Condition.UNKNOWN, facts.state


def judge_plain(watched: Watched, now: Instant, waited_s: float | None = None) -> tuple[Condition, str]:
    """How anything is that is only probed."""
    if not watched.probes:
        return Condition.UNKNOWN, "not looked at yet"
    pending_s = now.seen_s - watched.sent.seen_s if watched.is_probing else 0.0
    condition = watched.suspicion.judge(now, watched.target.patience_s, waited_s, pending_s)
    return condition, watched.suspicion.text


def follow(own: tuple[Condition, str], host: Watched | None) -> tuple[Condition, str]:
    """The judgement on what lives within a service's process: while that is away on purpose, so is this."""
    if host is None:
        return own
    if host.condition in (Condition.STOPPED, Condition.STARTING, Condition.UNKNOWN):
        return host.condition, f"{host.name}: {host.reason}"
    if host.condition is not Condition.UP and own[0] is Condition.DOWN and host.ended:
        return Condition.SUSPECT, own[1]  # whether that end was wanted is being found out
    return own


def kind_of(watched: Watched) -> str:
    """For people."""
    return "process" if watched.target.kind is Kind.SERVICE else watched.target.kind.value
