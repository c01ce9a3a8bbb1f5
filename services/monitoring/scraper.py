"""Scrapes every target in its own time, never twice at once, and puts what it tells into the store."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Struct

from services.monitoring import host
from services.monitoring.exposition import (
    NAME,
    STALE,
    Described,
    FormatError,
    Labels,
    Sample,
    parse_series,
    read,
    within,
)
from services.monitoring.fetching import ScrapeError, get
from services.monitoring.limits import Limits
from services.monitoring.schedule import Schedule
from services.monitoring.store import FullError, Series, Store

log = logging.getLogger(__name__)

INLINE_BYTES = 64 * 1024
"""A body up to this is read on the event loop, in about a millisecond."""
HOST = "host"
"""The target that is no URL: this host's /proc."""
METADATA_MAX = 20_000


class Spec(Struct, frozen=True):
    """What is to be scraped, and the labels that all of it gets."""

    url: str
    labels: Labels


@dataclass
class Target:
    """One target, and how its last scrape went."""

    spec: Spec
    origin: str
    """fleet, static or host."""
    series: dict[str, Series] = field(default_factory=dict)
    """By how a line writes it."""
    present: set[Series] = field(default_factory=set)
    """Told at the last scrape."""
    own: dict[str, Series] = field(default_factory=dict)
    """up, and the like."""
    task: asyncio.Task[None] | None = None
    scraped_s: float | None = None
    """Unix time."""
    took_s: float = 0.0
    error: str | None = None
    scrapes: int = 0
    pending: tuple[list[tuple[int, float]], int] = field(default_factory=lambda: ([], 0))


class Scraper:
    """Its targets; everything but ``take`` is for the event loop."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self.schedule = Schedule(limits.interval_s)
        self.lock = threading.Lock()
        """Of the schedule."""
        self.targets: dict[Spec, Target] = {}
        self.metadata: dict[str, Described] = {}
        self.scrapes = self.failed = self.samples = 0
        self.took_s = 0.0
        self._at_once = asyncio.Semaphore(limits.scrapes)

    def set(self, origin: str, wanted: Iterable[Spec]) -> None:
        """From now on these are the targets of that origin."""
        wanted = set(wanted)
        for spec, target in list(self.targets.items()):
            if target.origin == origin and spec not in wanted:
                self._end(target)
        for spec in wanted:
            if spec not in self.targets and len(self.targets) < self._limits.targets:
                target = self.targets[spec] = Target(spec=spec, origin=origin)
                target.task = asyncio.create_task(self._follow(target))

    def _end(self, target: Target) -> None:
        del self.targets[target.spec]
        with self.lock:
            self.schedule.forget(_key(target.spec))
        if target.task is not None:
            target.task.cancel()
        at_ms = int(time.time() * 1000)
        with self._store.lock:
            for one in (*target.present, *target.own.values()):
                if not one.dropped:
                    self._store.take(one, at_ms, STALE)

    async def close(self) -> None:
        """End every scrape."""
        tasks = [target.task for target in self.targets.values() if target.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, target: Target) -> None:
        key = _key(target.spec)
        clock = asyncio.get_running_loop().time
        with self.lock:
            interval_s = self.schedule.interval(key)
        # A place of its own in the interval for each, so that not all are scraped at once; the first is soon.
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
        due_s = clock() + min(1.0, interval_s) * share
        while True:
            await asyncio.sleep(max(0.0, due_s - clock()))
            async with self._at_once:
                began_s = clock()
                await self._scrape(target)
            values, samples = target.pending
            with self.lock:
                wait_s = self.schedule.heard(key, began_s, values, samples)
            due_s += wait_s
            if due_s < clock():  # late: rather less often than twice in a row
                due_s = clock() + (wait_s * share if wait_s > 1 else wait_s)

    async def _scrape(self, target: Target) -> None:
        at_ms = int(time.time() * 1000)
        began_s = time.perf_counter()
        error: str | None = None
        text = ""
        count = 0
        try:
            if target.spec.url == HOST:
                text = await asyncio.to_thread(host.exposition)
            else:
                text = await get(target.spec.url, self._limits.scrape_s, self._limits.scrape_bytes)
            if len(text) <= INLINE_BYTES:
                count = self.take(target, text, at_ms)
            else:
                count = await asyncio.to_thread(self.take, target, text, at_ms)
        except ScrapeError as failure:
            error = str(failure)
        except FormatError as failure:
            error = f"its metrics cannot be read: {failure}"
        except Exception as failure:  # that ends no scrapes but this one
            error = f"a fault of the scraper: {type(failure).__name__}: {failure}"
            if error != target.error:
                log.exception("cannot scrape %s", target.spec.url)
        took_s = time.perf_counter() - began_s
        target.scraped_s, target.took_s, target.error = at_ms / 1000, took_s, error
        target.scrapes += 1
        self.scrapes += 1
        self.failed += error is not None
        self.took_s += 0.1 * (took_s - self.took_s)
        if error is not None:
            self._end_series(target, at_ms)
            target.pending = ([(0, 0.0)], 1)
        self._own(
            target,
            at_ms,
            {"up": float(error is None), "scrape_duration_seconds": took_s, "scrape_samples_scraped": float(count)},
        )

    # -- into the store; any thread ---------------------------------------------------------------------

    def take(self, target: Target, text: str, at_ms: int) -> int:
        """Everything that a scrape tells; how many samples. All or, with FormatError or ScrapeError, nothing."""
        samples, described = read(text)
        if len(samples) > self._limits.scrape_samples:
            raise ScrapeError(f"it tells {len(samples)} samples; {self._limits.scrape_samples} are the most")
        known = target.series
        news = {one.series: self._labels(one, target) for one in samples if self._is_new(known.get(one.series))}
        if len(self.metadata) + len(described) <= METADATA_MAX:
            self.metadata.update(described)
        store = self._store
        present: set[Series] = set()
        values: list[tuple[int, float]] = [(0, 1.0)]
        with store.lock:
            for raw, labels in news.items():
                try:
                    known[raw] = store.series(labels)
                except FullError:
                    raise ScrapeError("there are as many series as there may be: CDN_MONITORING_SERIES") from None
            for sample in samples:
                one = known[sample.series]
                if one in present:
                    continue  # the same series twice: the first counts
                present.add(one)
                store.take(one, at_ms if sample.at_ms is None else sample.at_ms, sample.value)
                if len(values) < 200:
                    values.append((one.id, sample.value))
            for one in target.present - present:
                store.take(one, at_ms, STALE)
        target.present = present
        if len(known) > 2 * len(samples) + 100:  # names that come and go are not kept for ever
            told = {sample.series for sample in samples}
            target.series = {raw: one for raw, one in known.items() if raw in told}
        self.samples += len(samples)
        target.pending = (values, len(samples))
        return len(samples)

    def _is_new(self, one: Series | None) -> bool:
        return one is None or one.dropped

    def _labels(self, sample: Sample, target: Target) -> Labels:
        labels = parse_series(sample.series)
        if len(labels) > self._limits.labels or len(sample.series) > self._limits.label_bytes:
            raise ScrapeError(f"a series has too many labels, or too long ones: {sample.series[:80]!r}")
        return within(labels, target.spec.labels)

    def _end_series(self, target: Target, at_ms: int) -> None:
        with self._store.lock:
            for one in target.present:
                if not one.dropped:
                    self._store.take(one, at_ms, STALE)
        target.present = set()

    def _own(self, target: Target, at_ms: int, values: dict[str, float]) -> None:
        with self._store.lock:
            for name, value in values.items():
                one = target.own.get(name)
                try:
                    if one is None or one.dropped:
                        one = self._store.series(tuple(sorted((*target.spec.labels, (NAME, name)))))
                        target.own[name] = one
                except FullError:
                    continue  # it is counted by the store
                self._store.take(one, at_ms, value)


def _key(spec: Spec) -> str:
    return f"{spec.url} {spec.labels}"
