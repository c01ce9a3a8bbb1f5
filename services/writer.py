"""The one thread that writes. Writes that wait together are committed together, by one fsync.

A write is acknowledged (its Future has a result) after the COMMIT, which with WAL and
synchronous=FULL returns when the rows are on disk. One that fails takes nothing else with it.
What is in memory follows the disk: where it cannot, the process ends.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import apsw
from msgspec import Struct

from cdn_daemon.api import RefusedError
from cdn_daemon.ending import end_of_thread
from services.disk import is_full, no_room

T = TypeVar("T")
GROUP = 64
"""Writes in one transaction, at most."""


class _Write(Struct):
    run: Callable[[apsw.Connection], Any]
    then: Callable[[Any], None]
    done: Future[Any]


class Writer:
    """Runs functions of a connection, in order, each all or nothing, on a thread of its own."""

    def __init__(
        self,
        connection: apsw.Connection,
        *,
        waiting: int,
        look: Callable[[], None] = lambda: None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        """At most ``waiting`` writes wait.

        On the writer's thread ``look`` is called before a group of writes, ``committed`` once one of them is on disk.
        """
        self._connection = connection
        self._look = look
        self._committed = committed
        self._waiting = waiting
        self._queue: queue.Queue[_Write | None] = queue.Queue()
        self._closed = False
        self._lock = threading.Lock()
        self.commits = 0
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        run: Callable[[apsw.Connection], T],
        *,
        then: Callable[[T], None] = lambda _: None,
        urgent: bool = False,
    ) -> Future[T]:
        """Have run called with the connection, inside a transaction; the Future ends when that is on disk.

        then is called with what run returned, on the writer's thread, once it is on disk and before the Future ends.
        Raises RefusedError if too many wait already; urgent ones, the service's own, never.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RefusedError(503, "cannot write: the store is closing", next="try again after the restart")
            if not urgent and self._queue.qsize() >= self._waiting:
                raise RefusedError(
                    503, "cannot write now: too many writes wait", limit=f"{self._waiting} writes", next="try again"
                )
            self._queue.put(_Write(run, then, done))
        return done

    def waiting(self) -> int:
        """Writes that have not begun."""
        return self._queue.qsize()

    def close(self) -> None:
        """Do what is in the queue, then end the thread and close the connection."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:  # noqa: BLE001 - who waits would wait for ever
            end_of_thread("the writer's thread")

    def _work(self) -> None:
        is_last = False
        while not is_last:
            group = [self._queue.get()]
            while len(group) < GROUP and not self._queue.empty():
                group.append(self._queue.get())
            is_last = group[-1] is None
            self._commit([write for write in group if write and write.done.set_running_or_notify_cancel()])

    def _commit(self, group: list[_Write]) -> None:
        answers: list[tuple[_Write, Any]] = []
        failed: list[tuple[Future[Any], BaseException]] = []
        connection = self._connection
        try:
            self._look()
            connection.execute("BEGIN IMMEDIATE")
            for write in group:
                connection.execute("SAVEPOINT one")
                try:
                    answers.append((write, write.run(connection)))
                except Exception as error:  # it is the asker's, who gets it
                    failed.append((write.done, error))
                    if not connection.in_transaction:  # a full disk ends the whole transaction
                        raise
                    connection.execute("ROLLBACK TO one")
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
            self.commits += 1
        except Exception as error:  # noqa: BLE001 - nothing of the group was done, and each asker is told
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            told = {id(done) for done, _ in failed}
            failed += [(write.done, error) for write in group if id(write.done) not in told]
            answers = []
        if answers:
            self._committed()
        for write, answer in answers:
            write.then(answer)
            write.done.set_result(answer)
        for done, raised in failed:
            full = is_full(raised, connection)
            done.set_exception(no_room(Path(connection.filename).parent) if full else raised)
