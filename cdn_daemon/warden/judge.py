"""Which silent processes are hung. Pure: observations in, verdicts with their evidence out.

A wrong kill is worse than a late one: zero kills of healthy processes under
overload outranks speed. So silence alone convicts nobody:

- time in which the judge itself did not look is charged to no one (excuse);
- a process that waits for a CPU is starved, not hung: only time in which none of its threads had to wait counts;
- one that is being traced is under a debugger, and has its limit again when that lets it go; one blocked in the kernel
  (state D) waits for a disk;
- many silent at once are the host's fault, not theirs.

Two things need no such care: a process that was stopped by a signal and stays
stopped (state T) cannot come back by itself, and WATCHDOG=trigger is its own word.

Who samples /proc and kills is watch.py. Times are monotonic.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct
from msgspec.structs import replace

DEFAULT_SILENCE_S = 0.5
"""Innocent silences measured: 0.19 s with eight busy threads, 0.22 s in json.loads of 23 MiB."""

LEAST_SILENCE_S = 0.3
"""A shorter limit is no limit: who beats ten times a second is heard every 0.1 s, and a beat may come late."""

STOPPED_S = 0.2
"""How long a process may be stopped by a signal: longer than a stray SIGSTOP and SIGCONT."""

SUSPECT_FRACTION = 0.4
"""Of its limit: a silence this long is worth looking at in /proc, and what is seen then is what counts."""

LATE_S = 0.25
"""A tick later than this was late: the host is busy, and everybody may be."""

HOST_SILENT_LEAST = 3
HOST_SILENT_FRACTION = 0.5
"""So many silent at once, and so large a part of all, are the host's fault."""

HOST_PATIENCE_S = 30.0
"""For so long; then they are judged one by one after all."""

BLOCKED_PATIENCE = 10.0
"""A process in state D gets its limit so many times."""

BLIND_PATIENCE = 10.0
"""So does one of which /proc tells no run delay."""


class ThreadSample(Struct, frozen=True):
    """One thread as the kernel accounts for it, schedstat and stat in proc(5)."""

    state: str
    cpu_s: float
    waited_s: float | None
    """How long it has been runnable and not run, in all its life; None where the kernel does not count it."""


class Sample(Struct, frozen=True):
    """A process at one moment."""

    at_s: float
    state: str
    traced: bool
    threads: Mapping[int, ThreadSample]


class Evidence(Struct, frozen=True):
    """What a process did between two samples."""

    span_s: float
    cpu_s: float
    """CPU used by all its threads."""
    waited_s: float | None
    """The longest that any one thread waited for a CPU."""
    starving: bool
    """A thread is runnable right now and has hardly run."""
    blocked: bool
    """A thread is in state D right now."""
    traced: bool
    state: str
    """Of its main thread."""

    @property
    def fair_s(self) -> float:
        """Time in which it could have run had it wanted to."""
        return self.span_s - (self.waited_s or 0.0)


def compare(before: Sample, after: Sample) -> Evidence:
    """What happened between two samples of one process."""
    span_s = after.at_s - before.at_s
    cpu_s = 0.0
    waits_s: list[float] = []
    starving = False
    for tid, thread in after.threads.items():
        first = before.threads.get(tid, ThreadSample("S", 0.0, None if thread.waited_s is None else 0.0))
        used_s = max(0.0, thread.cpu_s - first.cpu_s)
        cpu_s += used_s
        if thread.waited_s is not None and first.waited_s is not None:
            waits_s.append(max(0.0, thread.waited_s - first.waited_s))
        # The kernel adds a wait only when it is over; who is still in one shows as runnable without running.
        starving = starving or (thread.state == "R" and used_s < 0.1 * span_s)
    return Evidence(
        span_s=span_s,
        cpu_s=cpu_s,
        waited_s=max(waits_s, default=None),
        starving=starving,
        blocked=any(thread.state == "D" for thread in after.threads.values()),
        traced=after.traced,
        state=after.state,
    )


class Watched(Struct, frozen=True):
    """One process that is expected to beat."""

    name: str
    limit_s: float
    """The silence that it may keep."""
    heard_s: float
    """When it was last heard, or excused until."""
    extended_until_s: float = 0.0
    """It has said that it will be busy until then."""
    trigger: str | None = None
    """It has said WATCHDOG=trigger; its last STATUS."""
    stopped_since_s: float | None = None
    """When the kernel reported that a signal has stopped it."""
    evidence: Evidence | None = None
    """Since it became a suspect; None if it is none yet."""
    traced_s: float = float("-inf")
    """When it was last seen under a tracer."""
    held: bool = False
    """An operator has asked that it be not judged: it is in maintenance."""


class Observations(Struct, frozen=True):
    """All that the judge looks at in one tick."""

    watched: tuple[Watched, ...]
    late_s: float = 0.0
    """How much too late this tick began."""


class Finding(Enum):
    """What follows for a process that is not beyond suspicion."""

    SUSPECT = "suspect"
    """Take a sample now, to compare with later."""
    SPARED = "spared"
    """It was silent too long, but is not to blame."""
    STOPPED = "stopped"
    """Kill it; it is stopped, and only SIGKILL reaches it."""
    HUNG = "hung"
    """Kill it; first so that it can leave its stacks."""
    HELD = "held"
    """It would be killed, if it were not in maintenance."""


class Verdict(Struct, frozen=True):
    """A finding about one process, and why, in words for people."""

    name: str
    finding: Finding
    text: str


def excuse(heard_s: float, late_s: float, now_s: float) -> float:
    """When a process counts as last heard, after a tick that was late_s late.

    What the judge did not see is not charged: the window moves on by as much,
    and after a whole second starts anew.
    """
    return now_s if late_s > 1.0 else min(now_s, heard_s + late_s)


def judge(now_s: float, observations: Observations) -> list[Verdict]:
    """Verdicts on all those about whom there is something to say. A judge that is late convicts nobody."""
    if observations.late_s > LATE_S:
        return []
    silent = [each for each in observations.watched if not each.held and _silence_s(each, now_s) >= each.limit_s]
    many = len(silent) >= HOST_SILENT_LEAST and len(silent) >= HOST_SILENT_FRACTION * len(observations.watched)
    verdicts = (_judge(each, now_s, len(silent), len(observations.watched), many) for each in observations.watched)
    held = {each.name for each in observations.watched if each.held}
    return [_held(verdict) if verdict.name in held else verdict for verdict in verdicts if verdict is not None]


def _held(verdict: Verdict) -> Verdict:
    return replace(verdict, finding=Finding.HELD) if verdict.finding in (Finding.STOPPED, Finding.HUNG) else verdict


def _judge(each: Watched, now_s: float, silent: int, watched: int, many: bool) -> Verdict | None:
    if each.trigger is not None:
        return Verdict(each.name, Finding.HUNG, f"asked for it: {each.trigger}" if each.trigger else "asked for it")
    evidence = each.evidence
    if each.stopped_since_s is not None and (evidence is None or evidence.state == "T"):
        stopped_s = now_s - each.stopped_since_s
        if evidence is None:
            return Verdict(each.name, Finding.SUSPECT, "stopped by a signal")
        if stopped_s >= STOPPED_S and not evidence.traced:
            return Verdict(each.name, Finding.STOPPED, f"stopped by a signal (state T) for {stopped_s:.2f} s")
        return None
    silence_s = _silence_s(each, now_s)
    if silence_s < SUSPECT_FRACTION * each.limit_s:
        return None
    if evidence is None:
        return Verdict(each.name, Finding.SUSPECT, f"silent for {silence_s:.2f} s")
    if silence_s < each.limit_s:
        return None
    said = f"silent for {silence_s:.2f} s (limit {each.limit_s:g})"
    mercy = _mercy(each, evidence, silence_s, many, now_s)
    if mercy:
        return Verdict(each.name, Finding.SPARED, f"{said}, but {mercy}")
    if evidence.fair_s < (1.0 - SUSPECT_FRACTION) * each.limit_s - 0.1:
        waited_s = evidence.waited_s or 0.0
        return Verdict(
            each.name, Finding.SPARED, f"{said}, but it waited {waited_s:.2f} of {evidence.span_s:.2f} s for a CPU"
        )
    waited = "unknown" if evidence.waited_s is None else f"{evidence.waited_s:.2f} s"
    return Verdict(
        each.name,
        Finding.HUNG,
        f"{said}; in the last {evidence.span_s:.2f} s it used {evidence.cpu_s:.2f} s of CPU and waited "
        f"{waited} for one; state {evidence.state}; {silent} of {watched} silent",
    )


def _mercy(each: Watched, evidence: Evidence, silence_s: float, many: bool, now_s: float) -> str:
    """Why it is not to blame, whatever the accounts of its time; empty if nothing speaks for it."""
    if evidence.traced:
        return "it is being traced"
    if now_s - each.traced_s < each.limit_s:
        return "it was being traced until just now"
    if evidence.starving:
        return "it is waiting for a CPU"
    if evidence.blocked and silence_s < BLOCKED_PATIENCE * each.limit_s:
        return "it is blocked in the kernel (state D)"
    if evidence.waited_s is None and silence_s < BLIND_PATIENCE * each.limit_s:
        return "the kernel does not tell how long it waited for a CPU"
    if many and silence_s < HOST_PATIENCE_S:
        return "so are many others"
    return ""


def _silence_s(each: Watched, now_s: float) -> float:
    return now_s - max(each.heard_s, each.extended_until_s)
