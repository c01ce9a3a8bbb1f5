"""The loop: sees what is asked and written, and has the engine answer otherwise where that pays.

The arithmetic is in tuning.py. No request waits for it.
"""

from __future__ import annotations

import time

from cdn_daemon.ooda import OodaLoop
from services.graph import tuning
from services.graph.engine import Engine
from services.graph.tuning import Asked, Decision, Observation, Picture, Precompute, Rebuild, Refresh
from services.graph.workload import Asked as Counted
from services.graph.workload import Question

SHOWN = 20
QUIET_S = 60.0
"""While nothing is asked or written, it looks so often."""


class GraphTuner(OodaLoop[Observation, Picture, Decision]):
    """Builds the snapshot, sets how often it catches up, and pins answers."""

    period_s = 1.0
    settle_s = 5.0
    min_gain = 0.1
    hold_off_s = 120.0

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at_s = time.monotonic()
        self._written = 0
        self._read_s = self._at_s
        self._asked_s: dict[Question, float] = {}
        self._known: dict[Question, Counted] = {}

    def observe(self) -> Observation | None:
        """What happened since the last time; None while nothing does."""
        engine, now_s = self._engine, time.monotonic()
        store, commits = engine.store, engine.store.commits
        if not store.is_open:
            return None
        elapsed_s = now_s - self._at_s
        counts, questions = engine.workload.take()
        reads = counts.sql_reads + counts.snapshot_reads + counts.pinned_reads
        writes = commits.newest - self._written
        is_quiet = not reads and not writes and not counts.refreshes and self._settling is None
        if is_quiet and elapsed_s < QUIET_S:
            return None
        if self._written == 0:  # what was there before is no write of now
            writes = 0
        if elapsed_s > 5 * self.period_s:  # it was quiet: what came, came lately
            elapsed_s = self.period_s
        self._at_s, self._written = now_s, commits.newest
        self._read_s = now_s if reads else self._read_s
        for question, one in questions.items():
            self._asked_s[question] = now_s
            if one.answer is not None:
                self._known[question] = one
        self._known = {
            question: one for question, one in self._known.items() if question in questions or question in engine.pinned
        }
        self._asked_s = {question: at_s for question, at_s in self._asked_s.items() if question in self._known}
        snapshot = engine.snapshot
        size, entries = self._size()
        answered = counts.sql_reads + counts.snapshot_reads
        if not engine.uses_snapshot and counts.sql_reads:
            engine.sql_ms = counts.sql_ms / counts.sql_reads
        return Observation(
            elapsed_s=round(elapsed_s, 3),
            reads_per_s=round(reads / elapsed_s, 3),
            writes_per_s=round(writes / elapsed_s, 3),
            sql_reads=counts.sql_reads,
            sql_ms=counts.sql_ms,
            snapshot_reads=counts.snapshot_reads,
            snapshot_ms=counts.snapshot_ms,
            pinned_reads=counts.pinned_reads,
            refreshes=counts.refreshes,
            upkeep_ms=counts.upkeep_ms,
            pins_ms=counts.pins_ms,
            p95_ms=round(engine.workload.p95_ms, 3) if counts.wall_ms and engine.workload.p95_ms is not None else None,
            depth=round(counts.depth / answered, 2) if answered else None,
            visited_per_returned=round(counts.visited / counts.returned, 2) if counts.returned else None,
            age_s=round(counts.age_s / reads, 4) if reads else 0.0,
            uses_snapshot=engine.uses_snapshot,
            snapshot_bytes=snapshot.size_bytes() if snapshot is not None else size,
            entries=entries,
            refresh_s=engine.refresh_s,
            staleness_s=engine.limits.staleness_s,
            idle_s=round(now_s - self._read_s, 1),
            sql_ms_before=engine.sql_ms,
            pinned_most=engine.limits.pinned,
            questions=self._questions(questions, elapsed_s, now_s),
        )

    def _questions(self, questions: dict[Question, Counted], elapsed_s: float, now_s: float) -> tuple[Asked, ...]:
        pinned = self._engine.pinned
        found = [
            Asked(
                question=question,
                per_s=round(one.times / elapsed_s, 3),
                ms=one.cpu_ms / one.times if one.cpu_ms else None,
                pinned=question in pinned,
            )
            for question, one in questions.items()
        ]
        found.sort(key=lambda one: -(one.ms or 0.0) * one.per_s)
        pins = [one for one in found if one.pinned]
        unasked = [
            Asked(question=one, per_s=0.0, ms=None, pinned=True, unasked_s=now_s - self._asked_s.get(one, now_s))
            for one in [*pinned]
            if one not in questions
        ]
        return (*[one for one in found if not one.pinned][:SHOWN], *pins, *unasked)

    def _size(self) -> tuple[int, int]:
        """Bytes and entries of a snapshot of all that is there now."""
        engine = self._engine
        with engine.store.reading() as db:
            nodes, relationships = db.execute("SELECT nodes, relationships FROM totals").get
        return nodes * 500 + relationships * 90, 3 * nodes

    def orient(self, observation: Observation) -> Picture:
        """What it means."""
        return tuning.orient(observation)

    def decide(self, picture: Picture) -> Decision | None:
        """One thing, or none."""
        return tuning.decide(picture, self.held)

    def cost(self, picture: Picture, decision: Decision) -> float | None:
        """What it is to lower."""
        return tuning.cost(picture, decision)

    def act(self, decision: Decision) -> None:
        """Have the engine do so."""
        engine = self._engine
        match decision:
            case Rebuild(snapshot):
                engine.use_snapshot(yes=snapshot)
            case Refresh(every_s):
                engine.refresh_s = every_s
                engine.wake()
            case Precompute(question, pinned):
                self._pin(question, pinned=pinned)

    def undo(self, decision: Decision) -> None:
        """Have it do as before."""
        match decision:
            case Rebuild(snapshot):
                self._engine.use_snapshot(yes=not snapshot)
            case Refresh(_, was_s):
                self._engine.refresh_s = was_s
            case Precompute(question, pinned):
                self._pin(question, pinned=not pinned)

    def _pin(self, question: Question, *, pinned: bool) -> None:
        if not pinned:
            self._engine.unpin(question)
            return
        known = self._known.get(question)
        if known is not None and known.answer is not None:
            self._engine.pin(question, known.answer)
