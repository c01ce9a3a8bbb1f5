"""For services that keep their state by Python's own sqlite3: a transaction, and what a sender is told of a failure."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from pathlib import Path

from cdn_daemon.api import RefusedError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The device, the user's quota, or the limit of a file's size (RLIMIT_FSIZE)."""


class Transaction:
    """BEGIN IMMEDIATE to COMMIT, or to ROLLBACK on an error, even one of COMMIT's own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:  # a full disk may have ended it already
                self._connection.execute("ROLLBACK")


def refusal(directory: Path, error: Exception) -> RefusedError:
    """What the sender is told of what could not be written; 507 is Insufficient Storage, RFC 4918."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # A quota, or a limit on the size of a file, SQLite knows as an I/O error only.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or (isinstance(error, OSError) and error.errno in FULL):
        free = f"{shutil.disk_usage(directory).free} bytes free"
        return RefusedError(
            507, f"cannot store this: {error}", value=directory, limit=free, next="make room there, then try again"
        )
    return RefusedError(503, f"cannot store this: {error}", value=directory, next="see the log, then try again")
