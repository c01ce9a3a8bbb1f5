"""The whole: store, keeper, scraper, rules, and what questions of them yield."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from bus.messages import AlertState
from cdn_daemon.api import RefusedError
from cdn_daemon.service import ConfigurationError
from services.monitoring import evaluate, promql, rules
from services.monitoring.disk import Change, Reader
from services.monitoring.evaluate import Question
from services.monitoring.exposition import NAME, STALE, FormatError, Labels, Sample, parse_series, read
from services.monitoring.feed import Feed
from services.monitoring.fetching import url_problem
from services.monitoring.keeper import FLUSH_S, Keeper
from services.monitoring.limits import Limits
from services.monitoring.promql import Node, QueryError, Selector
from services.monitoring.rules import Alert, Rule
from services.monitoring.samples import Columns, unpacked
from services.monitoring.scraper import HOST, Scraper, Spec
from services.monitoring.store import FullError, Series, Store
from services.sqlite import DiskError

log = logging.getLogger(__name__)
T = TypeVar("T")
Told = Callable[[rules.Change, Rule, str], None]
"""Called with each change of an alert, and the id that its event is to have."""


@dataclass
class RuleState:
    """A rule, what it was read as, and how it stands."""

    rule: Rule
    node: Node
    alerts: dict[Labels, Alert] = field(default_factory=dict)
    error: str = ""
    evaluated_s: float | None = None
    took_s: float = 0.0
    present: set[Series] = field(default_factory=set)
    """Its series of ALERTS."""


class Monitor:
    """Everything that the service does but HTTP."""

    def __init__(
        self, directory: Path, feed: str | None, hostname: str, limits: Limits, flush_s: float = FLUSH_S
    ) -> None:
        self.limits = limits
        self.store = Store(limits.series)
        self.keeper = Keeper(self.store, directory, limits, flush_s=flush_s)
        self.scraper = Scraper(self.store, limits)
        self.rules: dict[str, RuleState] = {}
        self.static: list[Spec] = []
        self.tell: Told = lambda change, rule, id: None
        self._hostname = hostname
        self._feed = Feed(feed, self._found) if feed is not None else None
        self._feed_thread = ThreadPoolExecutor(1, "monitoring-feed")
        self._following: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: queue.SimpleQueue[Reader] = queue.SimpleQueue()
        self._asked = asyncio.Semaphore(limits.queries)
        self._evaluation: asyncio.Task[None] | None = None
        self._rules_lock = asyncio.Lock()
        self._closing = False
        self._opened = asyncio.Event()
        self.queries = self.evaluations = self.alert_changes = 0

    # -- begin and end ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read what is on disk, and begin to scrape; raises ConfigurationError."""
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self.keeper.open)
        except DiskError as error:
            raise ConfigurationError(str(error)) from error
        for _ in range(self.limits.queries + 1):
            self._readers.put(Reader(self.keeper.path))
        kept = self.keeper.kept
        self.static = [msgspec.json.decode(content, type=Spec) for content in kept["target"].values()]
        for name, content in kept["rule"].items():
            try:
                rule = msgspec.json.decode(content, type=Rule)
                self.rules[name] = RuleState(rule=rule, node=promql.parse(rule.expr))
            except (msgspec.MsgspecError, QueryError) as error:
                raise ConfigurationError(f"cannot read rule {name} in {self.keeper.path}: {error}") from error
        for name, content in kept["alert"].items():
            if name in self.rules:
                self.rules[name].alerts = dict(msgspec.json.decode(content, type=list[tuple[Labels, Alert]]))
        self.scraper.set("host", [Spec(HOST, (("instance", self._hostname), ("job", "node")))])
        self.scraper.set("static", self.static)
        if self._feed is not None:
            found = {
                name: msgspec.json.decode(content, type=tuple[str, str]) for name, content in kept["found"].items()
            }
            self._feed.recall(found)
            self._place(found)
            self._following = self._loop.run_in_executor(self._feed_thread, self._feed.follow)
        self._evaluation = asyncio.create_task(self._evaluate_always())
        self._opened.set()

    async def close(self) -> None:
        """End what runs, and write everything."""
        self._closing = True
        if self._evaluation is not None:
            self._evaluation.cancel()
            await asyncio.gather(self._evaluation, return_exceptions=True)
        await self.scraper.close()
        if self._feed is not None and self._following is not None:
            self._feed.stop()
            await asyncio.gather(self._following, return_exceptions=True)
        await asyncio.to_thread(self.keeper.close)
        while not self._readers.empty():
            self._readers.get().close()

    async def background(self) -> None:
        """Until something has ended that should not; what it raised."""
        await self._opened.wait()
        assert self._evaluation is not None
        every: list[asyncio.Future[None]] = [asyncio.wrap_future(self.keeper.ended), self._evaluation]
        if self._following is not None:
            every.append(self._following)
        ended, _ = await asyncio.wait([asyncio.shield(one) for one in every], return_when=asyncio.FIRST_COMPLETED)
        if self._closing:
            return
        for one in ended:
            one.result()
        raise RuntimeError("a part of the service has ended")

    # -- targets ----------------------------------------------------------------------------------------

    def _found(self, known: Mapping[str, tuple[str, str]]) -> None:
        """On the feed's thread."""
        if self._loop is not None and not self._closing:
            try:
                self._loop.call_soon_threadsafe(self._heard, dict(known))
            except RuntimeError:  # the loop was closed meanwhile
                self._loop = None

    def _heard(self, known: dict[str, tuple[str, str]]) -> None:
        if self._closing:
            return
        self._place(known)
        changes = [Change("found", name, msgspec.json.encode(place)) for name, place in known.items()]
        gone = [Change("found", name, None) for name in self.keeper.kept["found"] if name not in known]
        self.keeper.kept["found"] = dict.fromkeys(known, b"")
        self.keeper.submit(changes + gone).add_done_callback(_noted)

    def _place(self, known: Mapping[str, tuple[str, str]]) -> None:
        self.scraper.set(
            "fleet",
            [
                Spec(f"{address}/metrics", (("instance", address.partition("//")[2]), ("job", service)))
                for service, address in known.values()
                if url_problem(f"{address}/metrics") is None
            ],
        )

    async def set_static(self, specs: list[Spec]) -> None:
        """These, and no others; on disk when it returns. Raises RefusedError."""
        kept = [Change("target", name, None) for name in self.keeper.kept["target"]]
        encoded = {hashlib.sha256(msgspec.json.encode(one)).hexdigest(): msgspec.json.encode(one) for one in specs}
        changes = kept + [Change("target", name, content) for name, content in encoded.items()]
        await asyncio.wrap_future(self.keeper.submit(changes))
        self.keeper.kept["target"] = encoded
        self.static = specs
        self.scraper.set("static", specs)

    # -- samples in -------------------------------------------------------------------------------------

    async def take(self, body: bytes) -> tuple[int, int]:
        """Samples of another; (all, of which were there already), on disk. All or, with RefusedError, none."""
        taken = await asyncio.to_thread(self._take, body)
        await asyncio.wrap_future(self.keeper.submit([]))
        return taken

    def _take(self, body: bytes) -> tuple[int, int]:
        try:
            samples, _ = read(body.decode())
            labels = {one.series: parse_series(one.series) for one in samples}
        except (FormatError, UnicodeDecodeError) as error:
            raise RefusedError(400, f"cannot read the samples: {error}", next="none was taken") from error
        for raw, who in labels.items():
            if len(who) > self.limits.labels or len(raw) > self.limits.label_bytes:
                raise RefusedError(422, "cannot take a series of so many labels, or so long ones", value=raw)
        now_ms = int(time.time() * 1000)
        ordered = sorted((now_ms if one.at_ms is None else one.at_ms, at, one) for at, one in enumerate(samples))
        for at_ms, _, one in ordered[:1] + ordered[-1:]:
            if not 0 <= at_ms <= 253_402_300_799_999:
                raise RefusedError(
                    422, "cannot take a sample of that time", value=f"{one.series} {at_ms}", limit="to 9999"
                )
        reader = self._readers.get()  # before the lock, which those who have a reader wait for
        try:
            return self._take_ordered(ordered, labels, reader)
        finally:
            self._readers.put(reader)

    def _take_ordered(
        self, ordered: list[tuple[int, int, Sample]], labels: Mapping[str, Labels], reader: Reader
    ) -> tuple[int, int]:
        store = self.store
        known = 0
        with store.lock:
            news = sum(one not in store.by_labels for one in set(labels.values()))
            if len(store.by_labels) + news > self.limits.series:
                raise RefusedError(507, "cannot take so many series", value=news, limit=f"{self.limits.series} in all")
            last: dict[Labels, tuple[int, float]] = {}
            fresh = []
            for at_ms, _, one in ordered:
                who = labels[one.series]
                series = store.by_labels.get(who)
                before = last.get(who)
                if before is None and series is not None and at_ms <= series.last_ms:
                    if not _has(series, at_ms, one.value, reader):
                        raise _late(one.series, at_ms, series.last_ms)
                    known += 1
                    continue
                if before is not None and at_ms == before[0]:
                    if one.value != before[1]:
                        raise _late(one.series, at_ms, before[0])
                    known += 1
                    continue
                last[who] = (at_ms, one.value)
                fresh.append((who, at_ms, one.value))
            for who, at_ms, value in fresh:
                store.take(store.series(who), at_ms, value)
        return len(ordered), known

    # -- questions --------------------------------------------------------------------------------------

    async def ask(self, work: Callable[[Question], T], steps: Iterable[int]) -> T:
        """Have a thread work on a question; raises QueryError, and RefusedError where too many are asked."""
        try:
            async with asyncio.timeout(1.0):
                await self._asked.acquire()
        except TimeoutError:
            limit = f"{self.limits.queries} at once"
            raise RefusedError(503, "cannot answer now: too many questions", limit=limit, next="try again") from None
        try:
            self.queries += 1
            return await asyncio.to_thread(self._answered, work, list(steps))
        finally:
            self._asked.release()

    def _answered(self, work: Callable[[Question], T], steps: list[int]) -> T:
        reader = self._readers.get()
        try:
            budget = _Budget(self.limits)

            def fetch(selector: Selector, begin_ms: int, end_ms: int) -> Iterable[tuple[Labels, Columns]]:
                return self._fetch(reader, selector, begin_ms, end_ms, budget.spend)

            return work(Question(steps, fetch, budget.spend, int(self.limits.lookback_s * 1000)))
        except RecursionError:
            raise QueryError("it is nested too deeply") from None
        finally:
            self._readers.put(reader)

    def _fetch(
        self, reader: Reader, selector: Selector, begin_ms: int, end_ms: int, spend: Callable[[int], None]
    ) -> Iterable[tuple[Labels, Columns]]:
        chosen = self.store.find(selector.matchers)
        for at in range(0, len(chosen), 256):
            some = chosen[at : at + 256]
            # What is in memory is looked at first: it may become a chunk meanwhile, and is then seen twice, not never.
            heads = self.store.heads(some, begin_ms, end_ms)
            for one, head in zip(some, heads, strict=True):
                columns = Columns()
                for content in reader.chunks(one.id, begin_ms, end_ms):
                    part = unpacked(content)
                    spend(len(part))
                    columns.extend(part.between(begin_ms, end_ms))
                columns.extend(head)
                spend(1)
                if len(columns):
                    yield one.labels, columns

    def series(self, question: Question, selectors: list[Selector], begin_ms: int, end_ms: int) -> list[Labels]:
        """Series that have samples in a stretch."""
        found: set[Labels] = set()
        for selector in selectors:
            found.update(labels for labels, _ in question.fetch(selector, begin_ms, end_ms))
        return sorted(found)

    # -- rules ------------------------------------------------------------------------------------------

    async def set_rule(self, name: str, rule: Rule) -> None:
        """A rule, new or in place of another; on disk when it returns. Raises RefusedError, QueryError."""
        node = promql.parse(rule.expr)
        if promql.kind(node) != "vector":
            raise QueryError("a rule's expression has to be a vector")
        if name not in self.rules and len(self.rules) >= self.limits.rules:
            raise RefusedError(422, "cannot keep more rules", limit=self.limits.rules)
        async with self._rules_lock:
            await asyncio.wrap_future(self.keeper.submit([Change("rule", name, msgspec.json.encode(rule))]))
            before = self.rules.get(name)
            self.rules[name] = RuleState(rule=rule, node=node)
            if before is not None and before.rule.expr == rule.expr and before.rule.labels == rule.labels:
                self.rules[name].alerts, self.rules[name].present = before.alerts, before.present
            elif before is not None:
                self._over(name, before)

    async def drop_rule(self, name: str) -> None:
        """A rule is no more, and what it had firing is resolved; raises RefusedError."""
        async with self._rules_lock:
            if name not in self.rules:
                raise RefusedError(404, "cannot find this rule", value=name, next="GET /rules lists them")
            await asyncio.wrap_future(self.keeper.submit([Change("rule", name, None), Change("alert", name, None)]))
            self._over(name, self.rules.pop(name))

    def _over(self, name: str, state: RuleState) -> None:
        _, changes = rules.step(name, state.rule, state.alerts, {}, time.time())
        for change in changes:
            self._tell(change, state, state.alerts[change.labels].since_s)
        self._write_alerts(state, {}, int(time.time() * 1000))

    def _tell(self, change: rules.Change, state: RuleState, since_s: float) -> str:
        said = f"{change.rule} {change.labels} {change.state} {since_s}"
        id = hashlib.sha256(said.encode()).hexdigest()[:32]
        self.alert_changes += 1
        self.tell(change, state.rule, id)
        return id

    async def _evaluate_always(self) -> None:
        for name, state in self.rules.items():  # what the process before may not have been able to tell
            for labels, alert in state.alerts.items():
                self._tell(
                    rules.Change(rule=name, labels=labels, state=alert.state, value=alert.value), state, alert.since_s
                )
        while True:
            await asyncio.sleep(self.limits.rules_every_s)
            if not self.rules:
                continue
            async with self._rules_lock:
                await self._evaluate_all()

    async def _evaluate_all(self) -> None:
        now_s = time.time()
        now_ms = int(now_s * 1000)
        changed: list[Change] = []
        for name, state in list(self.rules.items()):
            began_s = time.perf_counter()
            try:
                found = await asyncio.to_thread(
                    self._answered, lambda q, node=state.node: evaluate.evaluate(node, q), [now_ms]
                )
                assert isinstance(found, dict)
                after, changes = rules.step(name, state.rule, state.alerts, found, now_s)
                others = sum(len(one.alerts) for one in self.rules.values()) - len(state.alerts)
                if len(after) + others > self.limits.alerts:
                    raise QueryError(f"it has {len(after)} alerts; all rules together may have {self.limits.alerts}")
                state.error = ""
            except QueryError as error:
                if not state.error:
                    log.warning("cannot evaluate rule %s: %s; its alerts stay as they are", name, error)
                state.error = str(error)
                continue
            finally:
                state.evaluated_s, state.took_s = now_s, time.perf_counter() - began_s
            for change in changes:
                since_s = (after.get(change.labels) or state.alerts[change.labels]).since_s
                id = self._tell(change, state, since_s)
                if change.labels in after:
                    after[change.labels] = msgspec.structs.replace(after[change.labels], event=id)
            state.alerts = after
            self._write_alerts(state, after, now_ms)
            if changes:
                content = msgspec.json.encode(list(after.items())) if after else None
                changed.append(Change("alert", name, content))
        self.evaluations += 1
        if changed:
            self.keeper.submit(changed).add_done_callback(_noted)

    def _write_alerts(self, state: RuleState, alerts: Mapping[Labels, Alert], now_ms: int) -> None:
        """The series ALERTS, as Prometheus has it."""
        present: set[Series] = set()
        with self.store.lock:
            for labels, alert in alerts.items():
                named = dict(labels) | {NAME: "ALERTS", "alertstate": alert.state.value}
                try:
                    one = self.store.series(tuple(sorted(named.items())))
                except FullError:
                    break  # it is counted by the store; the alerts themselves are told all the same
                self.store.take(one, now_ms, 1.0)
                present.add(one)
            for one in state.present - present:
                self.store.take(one, now_ms, STALE)
        state.present = present

    # -- how it is --------------------------------------------------------------------------------------

    def firing(self) -> int:
        """How many alerts are."""
        return sum(one.state is AlertState.FIRING for state in self.rules.values() for one in state.alerts.values())

    def metrics(self) -> dict[str, float]:
        """What the service measures, for its status and for Prometheus."""
        scraper, keeper, store = self.scraper, self.keeper, self.store
        return {
            "targets": len(scraper.targets),
            "scrapes_total": scraper.scrapes,
            "scrapes_failed_total": scraper.failed,
            "scrape_seconds": scraper.took_s,
            "samples_total": store.samples,
            "samples_late_total": store.late,
            "samples_lost_total": keeper.samples_lost,
            "series": len(store.by_labels),
            "series_refused_total": store.refused,
            "store_bytes": keeper.bytes,
            "chunks_dropped_total": keeper.chunks_dropped,
            "flushes_total": keeper.flushes,
            "flushes_failed_total": keeper.flushes_failed,
            "flush_seconds": keeper.flush_s,
            "seal_seconds": keeper.seal_s,
            "queries_total": self.queries,
            "rules": len(self.rules),
            "rule_evaluations_total": self.evaluations,
            "alerts_firing": self.firing(),
            "alert_changes_total": self.alert_changes,
            "surprises_total": scraper.schedule.surprises,
            "further_looks_total": scraper.schedule.further_looks,
        }


class _Budget:
    """What one question may look at, and for how long."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.query_samples
        self._deadline_s = time.monotonic() + limits.query_s
        self._since = 0

    def spend(self, samples: int) -> None:
        self._left -= samples
        self._since += samples
        if self._left < 0:
            raise QueryError(
                f"it looks at more than {self._limits.query_samples} samples; ask for fewer series or steps"
            )
        if self._since > 2_000:
            self._since = 0
            if time.monotonic() > self._deadline_s:
                raise TooLongError(f"it takes more than {self._limits.query_s:g} s; ask for fewer series or steps")


class TooLongError(QueryError):
    """The question took too long."""


def _has(series: Series, at_ms: int, value: float, reader: Reader) -> bool:
    """Whether there is that sample. With the store's lock held."""
    found = series.head.between(at_ms, at_ms)
    if not len(found):
        for content in reader.chunks(series.id, at_ms, at_ms):
            found.extend(unpacked(content).between(at_ms, at_ms))
    return bool(len(found)) and (found.values[0] == value or (found.values[0] != found.values[0] and value != value))


def _late(series: str, at_ms: int, last_ms: int) -> RefusedError:
    return RefusedError(
        409,
        "cannot take a sample that is not later than the last of its series, unless it is the same",
        value=f"{series} at {at_ms} ms",
        limit=f"after {last_ms} ms",
        next="none was taken",
    )


def _noted(done: Future[None]) -> None:
    """Look at how it ended: what failed was logged by the keeper, and is in its check."""
    done.exception()
