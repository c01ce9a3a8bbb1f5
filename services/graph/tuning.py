"""The loop's arithmetic: when a snapshot pays, how often it is to catch up, and which answers to keep ready. Pure."""

from __future__ import annotations

from collections.abc import Set

from msgspec import Struct

from services.graph.workload import Question

WORTH_MS = 20.0
"""Milliseconds of processor time a second, 2 % of a core: what is less is not worth a change."""
DEEP_MS = 0.5
"""Cheaper questions gain nothing from a snapshot: an answer by HTTP takes as long."""
SAVED = 0.7
"""Part of a question's cost by SQL that a snapshot saves, at the least, in what was measured (docs/graph.md)."""
ENTRY_MS = 40e-6
"""Copying one entry of the adjacency, when the snapshot catches up."""
CHANGE_MS = 0.05
"""Reading one change."""
MOST_BYTES = 1 << 30
"""No larger snapshot is made."""
IDLE_S = 900.0
"""A snapshot that nobody has read for so long is let go."""
BUSY_MS = 50.0
"""Catching up may take so much of a second; above it, it is done less often, …"""
EASY_MS = 5.0
"""… and below that more often again."""
OFTEN = 2.0
"""A question that is kept ready is asked so often a second, at least …"""
UNASKED_S = 60.0
"""… and is not, when it was not asked for so long."""
STEPS_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)


class Asked(Struct, frozen=True, kw_only=True):
    """One question."""

    question: Question
    per_s: float
    ms: float | None
    """Processor time, each; None if it was only answered from what was kept ready."""
    pinned: bool
    unasked_s: float = 0.0


class Observation(Struct, frozen=True, kw_only=True):
    """What happened since the last look."""

    elapsed_s: float
    reads_per_s: float
    writes_per_s: float
    sql_reads: int
    sql_ms: float
    """All of them together; likewise the others."""
    snapshot_reads: int
    snapshot_ms: float
    pinned_reads: int
    refreshes: int
    upkeep_ms: float
    pins_ms: float
    p95_ms: float | None
    depth: float | None
    visited_per_returned: float | None
    age_s: float
    """Mean, of what was answered."""
    uses_snapshot: bool
    snapshot_bytes: int
    """What it takes, or would take."""
    entries: int
    refresh_s: float
    staleness_s: float
    idle_s: float
    sql_ms_before: float | None
    """What a question took by SQL, before there was a snapshot."""
    pinned_most: int
    questions: tuple[Asked, ...] = ()
    """Those that cost the most."""


class Picture(Struct, frozen=True, kw_only=True):
    """What that means, in milliseconds of processor time a second."""

    reading_ms: float
    upkeep_ms: float
    ms_per_question: float | None
    """With its share of the upkeep."""
    would_save_ms: float
    """A snapshot, if there is none."""
    would_cost_ms: float
    seen: Observation


class Rebuild(Struct, frozen=True, tag=True):
    """Answer from a snapshot in memory, or go back to SQL."""

    snapshot: bool


class Refresh(Struct, frozen=True, tag=True):
    """Have the snapshot catch up so long after the last time."""

    every_s: float
    was_s: float


class Precompute(Struct, frozen=True, tag=True):
    """Keep an answer ready, or no more."""

    question: Question
    pinned: bool


Decision = Rebuild | Refresh | Precompute


def orient(seen: Observation) -> Picture:
    """What is spent on what, and what a snapshot would change."""
    elapsed_s = seen.elapsed_s
    reading = (seen.sql_ms + seen.snapshot_ms) / elapsed_s
    upkeep = (seen.upkeep_ms + seen.pins_ms) / elapsed_s
    reads = seen.sql_reads + seen.snapshot_reads
    each = None
    if reads:
        each = (seen.sql_ms + seen.snapshot_ms + seen.upkeep_ms) / reads
    catching_up = min(seen.writes_per_s, 1 / max(seen.refresh_s, 1e-3))
    return Picture(
        reading_ms=round(reading, 3),
        upkeep_ms=round(upkeep, 3),
        ms_per_question=each,
        would_save_ms=round(seen.sql_ms / elapsed_s * SAVED, 3),
        would_cost_ms=round(catching_up * seen.entries * ENTRY_MS + seen.writes_per_s * CHANGE_MS, 3),
        seen=seen,
    )


def decide(picture: Picture, held: Set[Decision]) -> Decision | None:
    """One change that pays, or none."""
    return next((one for one in _wishes(picture) if one not in held), None)


def _wishes(picture: Picture) -> list[Decision]:
    seen = picture.seen
    if not seen.uses_snapshot:
        deep = seen.sql_reads > 0 and seen.sql_ms / seen.sql_reads >= DEEP_MS
        pays = picture.would_save_ms >= WORTH_MS + picture.would_cost_ms
        return [Rebuild(True)] if deep and pays and seen.snapshot_bytes <= MOST_BYTES else []
    wishes: list[Decision] = []
    if seen.idle_s >= IDLE_S:
        wishes.append(Rebuild(False))
    before_ms = (seen.sql_ms_before or 0.0) * seen.snapshot_reads / seen.elapsed_s
    if seen.snapshot_reads and picture.reading_ms + picture.upkeep_ms > 2 * max(before_ms, WORTH_MS):
        wishes.append(Rebuild(False))
    slower = [step for step in STEPS_S if seen.refresh_s < step <= seen.staleness_s / 2]
    faster = [step for step in STEPS_S if step < seen.refresh_s]
    if seen.upkeep_ms / seen.elapsed_s > BUSY_MS and slower:
        wishes.insert(0, Refresh(slower[0], seen.refresh_s))
    elif seen.upkeep_ms / seen.elapsed_s < EASY_MS and seen.age_s > 0.01 and faster:
        wishes.append(Refresh(faster[-1], seen.refresh_s))
    pinned = sum(one.pinned for one in seen.questions)
    refreshes_per_s = seen.refreshes / seen.elapsed_s
    for one in sorted(seen.questions, key=lambda one: -(one.ms or 0.0) * one.per_s):
        if one.pinned:
            if one.unasked_s >= UNASKED_S:
                wishes.append(Precompute(one.question, False))
        elif one.ms is not None and one.per_s >= OFTEN and pinned < seen.pinned_most:
            saved = one.ms * (one.per_s - refreshes_per_s)
            if saved >= WORTH_MS:
                wishes.append(Precompute(one.question, True))
    return wishes


def cost(picture: Picture, decision: Decision) -> float | None:
    """What the decision is to lower."""
    seen = picture.seen
    match decision:
        case Rebuild(snapshot=False) if seen.idle_s >= IDLE_S / 2 or not (seen.sql_reads or seen.snapshot_reads):
            return float(seen.snapshot_bytes if seen.uses_snapshot else 0)
        case Rebuild():
            return picture.ms_per_question
        case Refresh(every_s, was_s):
            if every_s < was_s:
                return seen.age_s if seen.snapshot_reads or seen.pinned_reads else None
            return seen.upkeep_ms / seen.elapsed_s / seen.writes_per_s if seen.writes_per_s else None
        case Precompute(question, pinned):
            if not pinned:
                return float(sum(one.pinned for one in seen.questions))
            found = next((one for one in seen.questions if one.question == question), None)
            if found is None or not found.per_s:
                return None
            if found.pinned:  # what is spent on keeping it ready, at the worst on it alone
                return ((found.ms or 0.0) * found.per_s + seen.pins_ms / seen.elapsed_s) / found.per_s
            return found.ms
