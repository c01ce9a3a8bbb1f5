"""Who answers a question: SQLite, the snapshot, or what was kept ready; and what keeps the snapshot new enough.

What the loop may set is here: uses_snapshot, refresh_s, and what is pinned. Whatever it sets, no answer misses a change
that is older than limits.staleness_s: a question that would catches the snapshot up first.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import apsw
import msgspec
from msgspec import Struct
from starlette.requests import Request

from cdn_daemon.api import RefusedError
from services.graph.api import SnapshotState
from services.graph.store import Store
from services.graph.views import STEP, Snapshot, SqlView, TimeIsUp, View
from services.graph.workload import Answered, Question, Workload
from services.json_path import member

log = logging.getLogger(__name__)

T = TypeVar("T")
BREATH_S = 0.002
READ_LATELY_S = 10.0
"""While nobody has read for so long, the snapshot does not follow the writes."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Budget:
    """The time that a question may take; it lets others run meanwhile."""

    def __init__(self, timeout_s: float) -> None:
        self.ends_s = time.monotonic() + timeout_s
        self.cancelled = False
        self.visited = 0
        self._breathed_s = time.monotonic()

    def spend(self, visited: int) -> None:
        """So many were looked at; raises TimeIsUp."""
        self.visited += visited
        self.breathe()
        if self.is_over():
            raise TimeIsUp

    def is_over(self) -> bool:
        """Whether it is spent, or nobody waits."""
        return self.cancelled or time.monotonic() > self.ends_s

    def breathe(self) -> None:
        """Give the interpreter away, now and then, so that the event loop is never long without."""
        now_s = time.monotonic()
        if now_s - self._breathed_s > BREATH_S:
            time.sleep(0)
            self._breathed_s = now_s


class Pin(Struct):
    """A question whose answer is kept ready."""

    answer: Callable[[], Awaitable[Answered]]
    found: Answered | None = None


class Reading:
    """What a question is answered from: one view, and a connection for what is not in it."""

    def __init__(self, view: View, db: apsw.Connection, budget: Budget) -> None:
        self.view = view
        self.db = db
        self.budget = budget
        self.returned = 0
        self.depth = 0

    def key(self, id: str) -> int:
        """Of a node that must be there; raises RefusedError."""
        found = self.db.execute("SELECT key FROM nodes WHERE id = ?", (id,)).get
        if found is None or self.view.node(found) is None:
            raise RefusedError(404, "cannot find this node", value=id, next="max_staleness_s=0 asks the newest graph")
        return int(found)


class Engine:
    """Answers questions, on threads of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.limits = store.limits
        self.workload = Workload()
        self.uses_snapshot = False
        self.refresh_s = 0.2
        self.snapshot: Snapshot | None = None
        self.pinned: dict[Question, Pin] = {}
        self.sql_ms: float | None = None
        """What a question took before there was a snapshot."""
        self._threads = ThreadPoolExecutor(self.limits.reading, thread_name_prefix="graph-reader")
        self._under_way = 0
        self._catching_up = threading.Lock()
        self._weights: dict[str, tuple[int, dict[int, float]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._refreshed_s = 0.0
        self._read_s = 0.0

    # -- asking -------------------------------------------------------------------------------------------

    async def ask(
        self,
        question: Question,
        answer: Callable[[float], Awaitable[Answered]],
        *,
        max_staleness_s: float | None = None,
        request: Request | None = None,
    ) -> bytes:
        """The answer as JSON, with the state of the graph that it is of. Ends early if the client goes."""
        begun_s = time.perf_counter()
        bound_s = self.limits.staleness_s
        if max_staleness_s is not None:
            bound_s = min(bound_s, max_staleness_s)
        pin = self.pinned.get(question)
        found = pin.found if pin is not None else None
        self.store.look()
        is_pinned = found is not None and self.store.commits.age_s(found.version, time.monotonic()) <= bound_s
        if not is_pinned:
            found = await _attended(answer(bound_s), request)
        assert found is not None
        now_s = time.monotonic()
        state = self.state(found.version, "pinned" if is_pinned else found.engine, now_s)
        self._read_s = now_s
        if state.behind_writes:
            self._news.set()
        self.workload.read(
            question,
            found,
            (time.perf_counter() - begun_s) * 1e3,
            state.age_s,
            pinned=is_pinned,
            again=lambda: answer(self.limits.staleness_s),
        )
        return b'%s,"snapshot":%s}' % (found.body, msgspec.json.encode(state))

    def state(self, version: int, engine: str, now_s: float) -> SnapshotState:
        """Of a version, as of now."""
        commits = self.store.commits
        return SnapshotState(
            version=version,
            age_s=round(commits.age_s(version, now_s), 4),
            behind_writes=max(0, commits.newest - version),
            engine=engine,  # type: ignore[arg-type]
        )

    async def read(self, bound_s: float, timeout_s: float, work: Callable[[Reading], Any]) -> tuple[Any, Answered]:
        """What the work returned, and as JSON with what it took. Raises RefusedError; cancelled, it ends the work."""
        if self._under_way >= self.limits.reading + self.limits.reading_waiting:
            raise RefusedError(503, "cannot read now: too many questions wait", limit=self._under_way, next="try again")
        budget = Budget(timeout_s)
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, bound_s, budget, work)
        except TimeIsUp as error:
            self.workload.timeouts += 1
            raise out_of_time(timeout_s, self.limits.timeout_max_s) from error
        finally:
            budget.cancelled = True
            self._under_way -= 1

    def _read(self, bound_s: float, budget: Budget, work: Callable[[Reading], Any]) -> tuple[Any, Answered]:
        if budget.is_over():
            raise TimeIsUp
        cpu_s = time.thread_time()
        view = self._newest(bound_s, budget)
        with self.store.reading() as db:
            db.set_progress_handler(budget.is_over, STEP)
            reading = Reading(view if view is not None else SqlView(db), db, budget)
            try:
                found = work(reading)
            except apsw.InterruptError as error:
                raise TimeIsUp from error
        body = msgspec.json.encode(found)[:-1]
        took = Answered(
            body=body,
            version=reading.view.version,
            engine=reading.view.engine,
            cpu_ms=(time.thread_time() - cpu_s) * 1e3,
            visited=budget.visited,
            returned=reading.returned,
            depth=reading.depth,
        )
        return found, took

    def _newest(self, bound_s: float, budget: Budget) -> Snapshot | None:
        """The snapshot, no staler than that; None if questions go to SQLite."""
        if not self.uses_snapshot:
            return None
        snapshot = self.snapshot
        if snapshot is not None:
            self.store.look()
            if self.store.commits.age_s(snapshot.version, time.monotonic()) > bound_s:
                return self.catch_up(budget)
        return snapshot

    def weights(self, reading: Reading, name: str) -> dict[int, float]:
        """Of relationships by key, as a property of theirs says; raises RefusedError 422 for one that is negative."""
        db = reading.db
        version = SqlView(db).version
        known = self._weights.get(name)
        if known is None or known[0] != version:
            rows = db.execute(
                "SELECT key, json_extract(properties, ?1) AS w FROM relationships "
                "WHERE typeof(json_extract(properties, ?1)) IN ('integer', 'real')",
                (member(name),),
            )
            known = (version, dict(rows))
            if known[1] and min(known[1].values()) < 0:
                raise RefusedError(422, "cannot weigh by a property that is negative somewhere", value=name)
            if len(self._weights) >= 4:
                self._weights.clear()
            self._weights[name] = known
        return known[1]

    # -- the snapshot -------------------------------------------------------------------------------------

    def catch_up(self, budget: Budget | None = None) -> Snapshot | None:
        """Have a snapshot of what is there now. Blocks."""
        called_s = time.monotonic()
        with self._catching_up:
            snapshot = self.snapshot
            # Whoever waited for another's is served by that, if it began after the question came.
            if snapshot is not None and self._refreshed_s >= called_s:
                return snapshot
            begun_s, cpu_s = time.monotonic(), time.thread_time()
            breathe = Budget(3600.0).breathe
            with self.store.reading() as db:
                snapshot = Snapshot.of(db, breathe) if snapshot is None else snapshot.caught_up(db, breathe)
            if self.uses_snapshot:
                self.snapshot = snapshot
            self._refreshed_s = begun_s
            self.workload.refreshed((time.thread_time() - cpu_s) * 1e3)
            return snapshot

    def use_snapshot(self, *, yes: bool) -> None:
        """Have questions answered from memory, or from SQLite; blocks until it is so."""
        self.uses_snapshot = yes
        if yes:
            self.catch_up()
            return
        self.pinned.clear()
        self.snapshot = None

    def pin(self, question: Question, answer: Callable[[], Awaitable[Answered]]) -> None:
        """Keep the answer ready, from the next refresh on. Any thread."""
        self.pinned[question] = Pin(answer)
        self.wake()

    def unpin(self, question: Question) -> None:
        """No more."""
        self.pinned.pop(question, None)

    def wake(self) -> None:
        """There may be something to catch up with. Any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._news.set)

    async def follow(self) -> None:
        """Catch up with what is written, refresh_s after the last time, while somebody reads."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            if not self.uses_snapshot or not self.store.is_open:
                continue
            if time.monotonic() - self._read_s > READ_LATELY_S:
                continue
            await asyncio.sleep(max(0.0, self._refreshed_s + self.refresh_s - time.monotonic()))
            snapshot = self.snapshot
            if snapshot is None or snapshot.version < self.store.commits.newest:
                try:
                    await asyncio.to_thread(self.catch_up)
                except (apsw.Error, RefusedError):
                    log.exception("cannot catch up with what is written")
                    await asyncio.sleep(1.0)
                    self._news.set()
                    continue
            await self._ready()

    async def _ready(self) -> None:
        for question, pin in [*self.pinned.items()]:
            snapshot = self.snapshot
            if snapshot is None or (pin.found is not None and pin.found.version >= snapshot.version):
                continue
            try:
                found = await pin.answer()
            except (RefusedError, apsw.Error) as error:  # its node is gone, it takes too long by now, or the disk fails
                log.info("no longer kept ready: %s: %s", question.text, error)
                self.pinned.pop(question, None)
                continue
            held = sum(
                len(one.found.body) for one in [*self.pinned.values()] if one.found is not None and one is not pin
            )
            if held + len(found.body) > self.limits.pinned_bytes:
                self.pinned.pop(question, None)
                continue
            pin.found = found
            self.workload.kept_ready(found.cpu_ms)

    def close(self) -> None:
        """No more questions."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def out_of_time(timeout_s: float, most_s: float) -> RefusedError:
    """What who asked is told."""
    return RefusedError(
        422,
        "cannot answer this in time; it was stopped",
        limit=f"{timeout_s:g} s",
        next=f"narrow it, or ask for more with timeout_s, at most {most_s:g}",
    )


async def _attended(work: Awaitable[T], request: Request | None) -> T:
    """Its result, for as long as somebody waits for it; raises ClientGone."""
    if request is None:
        return await work
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        gone.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
