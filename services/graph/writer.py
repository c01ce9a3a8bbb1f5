"""The one thread that writes. Writes that wait together are committed together, by one fsync.

A write is acknowledged after the COMMIT, which with WAL and synchronous=FULL returns when it is on disk. One that
fails takes nothing else with it.
"""

from __future__ import annotations

import errno
import queue
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import apsw
from msgspec import Struct

from cdn_daemon.api import RefusedError

T = TypeVar("T")
GROUP = 64
"""Writes in one transaction, at most."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The device, the user's quota, or the limit of a file's size (RLIMIT_FSIZE)."""


class _Write(Struct):
    run: Callable[[apsw.Connection], Any]
    done: Future[Any]


class Writer:
    """Runs functions of a connection, in order, each all or nothing, on a thread of its own."""

    def __init__(self, connection: apsw.Connection, look: Callable[[], None], *, waiting: int) -> None:
        self._connection = connection
        self._look = look
        self._waiting = waiting
        self._queue: queue.Queue[_Write | None] = queue.Queue()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="graph-writer", daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[apsw.Connection], T]) -> Future[T]:
        """Have run called with the connection, inside a transaction; the Future ends when that is on disk.

        Raises RefusedError if too many wait already.
        """
        done: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RefusedError(503, "cannot write: the store is closing", next="try again after the restart")
            if self._queue.qsize() >= self._waiting:
                raise RefusedError(
                    503, "cannot write now: too many writes wait", limit=f"{self._waiting} writes", next="try again"
                )
            self._queue.put(_Write(run, done))
        return done

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

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

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            group, last = [first], False
            while len(group) < GROUP:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                group.append(more)
            self._commit([write for write in group if write.done.set_running_or_notify_cancel()])
            if last:
                return

    def _commit(self, group: list[_Write]) -> None:
        answers: list[tuple[Future[Any], Any]] = []
        failed: list[tuple[Future[Any], BaseException]] = []
        connection = self._connection
        try:
            self._look()  # so that what this commits is known to be no older than now
            connection.execute("BEGIN IMMEDIATE")
            for write in group:
                connection.execute("SAVEPOINT one")
                try:
                    answers.append((write.done, write.run(connection)))
                except Exception as error:  # it is the asker's, who gets it
                    failed.append((write.done, error))
                    if not connection.in_transaction:  # a full disk ends the whole transaction
                        raise
                    connection.execute("ROLLBACK TO one")
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - nothing of the group was done, and each asker is told
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            told = {id(done) for done, _ in failed}
            failed += [(write.done, error) for write in group if id(write.done) not in told]
            answers = []
        if answers:
            self._look()
        for done, answer in answers:
            done.set_result(answer)
        for done, raised in failed:
            done.set_exception(_refusal(connection) if _is_full(raised, connection) else raised)


def _is_full(error: BaseException, connection: apsw.Connection) -> bool:
    match error:
        case apsw.FullError():
            return True
        case apsw.IOError():  # SQLite knows ENOSPC alone by name
            return connection.system_errno in FULL
    return False


def _refusal(connection: apsw.Connection) -> RefusedError:
    """What the sender is told. 507 is Insufficient Storage, RFC 4918."""
    directory = Path(connection.filename).parent
    return RefusedError(
        507,
        "cannot store this: no space left on device",
        value=directory,
        limit=f"{shutil.disk_usage(directory).free} bytes free",
        next="make room there, then try again",
    )
