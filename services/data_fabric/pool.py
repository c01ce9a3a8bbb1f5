"""Statements on threads: so many at once, so many waiting, the rest refused; answers fed to the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import apsw

from cdn_daemon.api import RefusedError
from services.data_fabric import plans
from services.data_fabric.reader import Batch, CancelledError, Query, Reader
from services.data_fabric.sql_text import shape
from services.data_fabric.store import Store
from services.data_fabric.workload import Plan, Sample

CHUNKS_AHEAD = 4
"""Chunks of a stream that may wait for the client; the statement pauses meanwhile."""

SWEEP_S = 0.05
"""Between looks for statements whose time is over."""

Encode = Callable[[Batch], bytes]
Join = Callable[[list[bytes], Batch, int, bool], bytes]
"""The encoded batches, the last batch, the number of rows, and whether the result was cut short by its size."""


class Pool:
    """Readers and the threads they run on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._limits = store.limits
        self._threads = ThreadPoolExecutor(self._limits.readers, thread_name_prefix="fabric-reader")
        self._idle: list[Reader] = []
        self._at_work: set[Reader] = set()
        self._sweeping = False
        self._busy = 0
        self._streams = 0
        self.refused = 0
        self.cancelled = 0
        self.broken_streams = 0

    async def run(self, query: Query, encode: Encode, join: Join) -> bytes:
        """Run the statement to its end, or until the result is as large as may be; return what join makes of it.

        Who is cancelled while waiting for it takes the statement along.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()
        gone = threading.Event()

        def collect(reader: Reader, measured: Callable[[Sample], None]) -> None:
            chunks: list[bytes] = []
            size, rows, cut = 0, 0, False
            with closing(reader.run(query, measured, gone)) as batches:
                for batch in batches:
                    chunks.append(encode(batch))
                    size += len(chunks[-1])
                    if size > self._limits.result_bytes:
                        chunks.pop()
                        cut = True
                        break
                    rows += len(batch.rows)
            answer = join(chunks, batch, rows, cut)
            loop.call_soon_threadsafe(_settle, done, answer, None)

        work = self._submit(query, collect, lambda error: loop.call_soon_threadsafe(_settle, done, b"", error), gone)
        try:
            return await done
        except asyncio.CancelledError:
            self.cancelled += 1
            self._abandon(gone, work)
            raise

    async def stream(self, query: Query, encode: Encode) -> AsyncGenerator[bytes, None]:
        """Run the statement, yielding encoded batches as the client takes them.

        What is wrong with the statement is raised before the first chunk; later, time running out is.
        """
        if self._streams >= self._limits.streams:
            self.refused += 1
            raise RefusedError(
                503, "cannot stream now: others do", limit=f"{self._limits.streams} streams", next="try again"
            )
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        room = threading.Semaphore(CHUNKS_AHEAD)
        gone = threading.Event()

        def feed(reader: Reader, measured: Callable[[Sample], None]) -> None:
            deadline_s = time.monotonic() + query.timeout_s
            with closing(reader.run(query, measured, gone)) as batches:
                for batch in batches:
                    if gone.is_set() or not room.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
                        raise CancelledError("the client did not take it in time")
                    loop.call_soon_threadsafe(chunks.put_nowait, encode(batch))
            loop.call_soon_threadsafe(chunks.put_nowait, None)

        work = self._submit(query, feed, lambda error: loop.call_soon_threadsafe(chunks.put_nowait, error), gone)
        self._streams += 1
        begun = ended = False
        try:
            while (chunk := await chunks.get()) is not None:
                if isinstance(chunk, Exception):
                    ended = not begun
                    raise chunk
                room.release()
                begun = True
                yield chunk
            ended = True
        finally:
            self._streams -= 1
            if not ended:
                self.broken_streams += 1
                self._abandon(gone, work)
                room.release()

    def _submit(
        self,
        query: Query,
        use: Callable[[Reader, Callable[[Sample], None]], None],
        fail: Callable[[Exception], object],
        gone: threading.Event,
    ) -> Future[None]:
        if self._busy >= self._limits.readers + self._limits.waiting:
            self.refused += 1
            raise RefusedError(
                503,
                "cannot run one more statement now",
                limit=f"{self._limits.readers} running and {self._limits.waiting} waiting",
                next="try again",
            )
        loop = asyncio.get_running_loop()

        def work() -> None:
            reader: Reader | None = None
            sample: Sample | None = None

            def measured(taken: Sample) -> None:
                nonlocal sample
                sample = taken

            try:
                if gone.is_set():
                    raise CancelledError("the client is gone")
                reader = self._reader()
                self._at_work.add(reader)
                reader.follow(self._store.catalogue)
                use(reader, measured)
                if sample is not None and query.tuned:
                    self._learn(reader, query, sample)
            except Exception as error:  # noqa: BLE001 - the request that waits for it gets it
                fail(error)
            finally:
                if reader is not None:
                    self._at_work.discard(reader)
                    self._idle.append(reader)
                loop.call_soon_threadsafe(self._freed)

        self._busy += 1
        submitted = self._threads.submit(work)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_S, self._sweep, loop)
        return submitted

    def _abandon(self, gone: threading.Event, work: Future[None]) -> None:
        """Nobody waits any more for the statement with that event: end it if it runs, and do not begin it."""
        gone.set()
        if work.cancel():  # it had not begun: its place is another's at once
            self._freed()
            return
        for reader in list(self._at_work):
            reader.stop_if_late()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        for reader in list(self._at_work):
            reader.stop_if_late()
        self._sweeping = self._busy > 0
        if self._sweeping:
            loop.call_later(SWEEP_S, self._sweep, loop)

    def _reader(self) -> Reader:
        try:
            return self._idle.pop()
        except IndexError:
            return self._store.reader()

    def _freed(self) -> None:
        self._busy -= 1

    def _learn(self, reader: Reader, query: Query, sample: Sample) -> None:
        """Tell the workload; ask the planner about a shape that comes often. The client has its answer by now."""
        workload, catalogue = self._store.workload, self._store.catalogue
        form = shape(query.sql)
        workload.ran(form, sample)
        if workload.wants_plan(form, catalogue.generation):
            try:
                plan = plans.plan(reader.connection, query.sql, query.params, catalogue.tables)
            except (apsw.Error, RecursionError):  # the schema has changed under it: it will come again
                plan = Plan()
            workload.planned(form, catalogue.generation, plan)

    def running(self) -> int:
        """Statements that run or wait."""
        return self._busy

    def close(self) -> None:
        """Wait for what runs, and close every reader."""
        self._threads.shutdown(wait=True)
        for reader in self._idle:
            reader.close()
        self._idle.clear()


def _settle(done: asyncio.Future[bytes], answer: bytes, error: Exception | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(answer)
