"""What is asked and what that costs, counted between two looks of the loop. Any thread."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from msgspec import Struct

QUESTIONS = 500
"""Different ones that are counted by themselves between two looks."""
LATENCIES = 2_000


class Question(NamedTuple):
    """Whoever asks the same gets the same, of one version."""

    kind: str
    text: str
    """JSON."""


class Answered(NamedTuple):
    """What an answer is, and what it took."""

    body: bytes
    """JSON without its end, where the state of the snapshot belongs."""
    version: int
    engine: str
    cpu_ms: float
    visited: int
    returned: int
    depth: int


class Asked(Struct):
    """One question between two looks."""

    answer: Callable[[], Awaitable[Answered]] | None
    """Asks it again."""
    times: int = 0
    cpu_ms: float = 0.0


class Counts(Struct):
    """Between two looks."""

    sql_reads: int = 0
    sql_ms: float = 0.0
    snapshot_reads: int = 0
    snapshot_ms: float = 0.0
    pinned_reads: int = 0
    visited: int = 0
    returned: int = 0
    depth: int = 0
    age_s: float = 0.0
    """Of all answers together."""
    refreshes: int = 0
    upkeep_ms: float = 0.0
    pins_ms: float = 0.0
    wall_ms: list[float] = []


class Workload:
    """The counts, and the sums for /metrics that only grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()
        self._questions: dict[Question, Asked] = {}
        self.reads = 0
        self.refreshes = 0
        self.timeouts = 0
        self.p95_ms: float | None = None

    def read(
        self,
        question: Question,
        found: Answered,
        wall_ms: float,
        age_s: float,
        *,
        pinned: bool,
        again: Callable[[], Awaitable[Answered]] | None,
    ) -> None:
        """A question was answered."""
        with self._lock:
            counts = self._counts
            self.reads += 1
            if pinned:
                counts.pinned_reads += 1
            elif found.engine == "sql":
                counts.sql_reads += 1
                counts.sql_ms += found.cpu_ms
            else:
                counts.snapshot_reads += 1
                counts.snapshot_ms += found.cpu_ms
            counts.visited += 0 if pinned else found.visited
            counts.returned += 0 if pinned else found.returned
            counts.depth += 0 if pinned else found.depth
            counts.age_s += age_s
            if len(counts.wall_ms) < LATENCIES:
                counts.wall_ms.append(wall_ms)
            asked = self._questions.get(question)
            if asked is None and len(self._questions) < QUESTIONS:
                asked = self._questions[question] = Asked(again)
            if asked is not None:
                asked.times += 1
                asked.cpu_ms += 0.0 if pinned else found.cpu_ms

    def refreshed(self, cpu_ms: float) -> None:
        """The snapshot has caught up."""
        with self._lock:
            self.refreshes += 1
            self._counts.refreshes += 1
            self._counts.upkeep_ms += cpu_ms

    def kept_ready(self, cpu_ms: float) -> None:
        """A pinned question was asked again."""
        with self._lock:
            self._counts.pins_ms += cpu_ms

    def take(self) -> tuple[Counts, dict[Question, Asked]]:
        """What there was since the last look."""
        with self._lock:
            counts, questions = self._counts, self._questions
            self._counts, self._questions = Counts(), {}
        if counts.wall_ms:
            counts.wall_ms.sort()
            self.p95_ms = counts.wall_ms[int(len(counts.wall_ms) * 0.95)]
        return counts, questions
