"""The loop that chooses the intervals of scrapes, in a fixed budget of samples. The arithmetic is in schedule.py."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from cdn_daemon.ooda import OodaLoop
from services.monitoring.schedule import Demand, Schedule, shared, unseen_s

WORTH = 0.9
"""A plan has to promise that anomalies go unseen for less than this part of the time."""
KNOWN = 3
"""Surprises that have to be known before there is anything to share out."""
SHOWN = 20


class Seen(Struct, frozen=True, kw_only=True):
    """One target."""

    name: str
    interval_s: float
    samples: int
    forecast_error: float
    """The largest of a scrape, in errors of the usual size; mean of the last scrapes."""
    surprises_per_h: float


class Observation(Struct, frozen=True, kw_only=True):
    """One look."""

    targets: int
    budget_samples_per_s: float
    samples_per_s: float
    surprises: int
    further_looks: int
    scrape_ms: float
    cpu_cores: float
    worst: tuple[Seen, ...]
    gap_s: float | None
    """Between a scrape that surprised and the one before it, in the mean since the last look; None: none did."""


class Picture(Struct, frozen=True, kw_only=True):
    """What it means."""

    unseen_s: float
    """How long an anomaly goes unseen, in the mean, if they come as they did."""
    promised_s: float
    """With the best plan."""
    surprises: int
    gap_s: float | None


class Share(Struct, frozen=True):
    """Share the budget out by what each target's samples have been worth.

    All are the same change to the framework: where one did not help, another does not either for a while.
    """


class IntervalLoop(OodaLoop[Observation, Picture, Share]):
    """Observes how often each target surprises, and shares the budget out anew where that is worth it."""

    period_s = 10.0
    settle_s = 120.0
    min_gain = 0.05
    hold_off_s = 600.0

    def __init__(self, schedule: Schedule, lock: threading.Lock, scraped: Callable[[], tuple[int, float]]) -> None:
        self._schedule = schedule
        self._lock = lock
        self._scraped = scraped
        """Samples so far, and the mean ms of a scrape."""
        self._samples = 0
        self._cpu_s = 0.0
        self._at_s: float | None = None
        self._gaps = (0.0, 0)
        self._demands: list[Demand] = []
        self._before: dict[str, float] | None = None

    def observe(self) -> Observation | None:
        """What has surprised since the last look; None while there are no targets."""
        now_s = time.monotonic()
        schedule = self._schedule
        samples, scrape_ms = self._scraped()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        with self._lock:
            demands = schedule.demands(now_s)
            seen = [
                Seen(
                    name=demand.name,
                    interval_s=schedule.interval(demand.name),
                    samples=demand.samples,
                    forecast_error=schedule.targets[demand.name].error,
                    surprises_per_h=demand.rate * 3600,
                )
                for demand in demands
            ]
            gap_s, gaps = schedule.gap_sum_s - self._gaps[0], schedule.gap_count - self._gaps[1]
            self._gaps = (schedule.gap_sum_s, schedule.gap_count)
            budget, surprises, looks = schedule.budget(), schedule.surprises, schedule.further_looks
        elapsed_s = now_s - self._at_s if self._at_s is not None else 0.0
        rate = (samples - self._samples) / elapsed_s if elapsed_s else 0.0
        cores = (cpu_s - self._cpu_s) / elapsed_s if elapsed_s else 0.0
        self._samples, self._cpu_s, self._at_s = samples, cpu_s, now_s
        if not demands:
            return None
        self._demands = demands
        return Observation(
            targets=len(demands),
            budget_samples_per_s=budget,
            samples_per_s=rate,
            surprises=surprises,
            further_looks=looks,
            scrape_ms=scrape_ms,
            cpu_cores=cores,
            worst=tuple(sorted(seen, key=lambda one: -one.surprises_per_h)[:SHOWN]),
            gap_s=gap_s / gaps if gaps else None,
        )

    def orient(self, observation: Observation) -> Picture:
        """How long an anomaly goes unseen, and how short that could be."""
        with self._lock:
            plan = self._schedule.plan
        best = shared(self._demands, observation.budget_samples_per_s)
        return Picture(
            unseen_s=unseen_s(self._demands, plan, self._schedule.interval_s),
            promised_s=unseen_s(self._demands, best, self._schedule.interval_s),
            surprises=observation.surprises,
            gap_s=observation.gap_s,
        )

    def decide(self, picture: Picture) -> Share | None:
        """Share out anew, if that promises enough; else, and mostly, nothing."""
        if picture.surprises < KNOWN or picture.promised_s > WORTH * picture.unseen_s:
            return None
        return Share()

    def cost(self, picture: Picture, decision: Share) -> float | None:
        """For how long what surprised had gone unseen: half the time since the scrape before."""
        return picture.gap_s / 2 if picture.gap_s is not None else picture.unseen_s

    def act(self, decision: Share) -> None:
        """From each target's next scrape on."""
        now_s = time.monotonic()
        with self._lock:
            schedule = self._schedule
            self._before = dict(schedule.plan) if schedule.plan is not None else None
            schedule.plan = shared(schedule.demands(now_s), schedule.budget())

    def undo(self, decision: Share) -> None:
        """As it was before."""
        with self._lock:
            self._schedule.plan = self._before
