"""For services that keep their state by sqlite3: its opening, a transaction, what a sender is told of a failure."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path

from cdn_daemon.api import RefusedError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The device, the user's quota, or the limit of a file's size (RLIMIT_FSIZE)."""


class DiskError(Exception):
    """The database cannot be used; the text says what to do."""


def opened(path: Path, tables: str, version: int) -> sqlite3.Connection:
    """A connection that writes, WAL and ``synchronous=FULL``, to a database (0600) with these tables; raises DiskError.

    What is not there is made, its directory (0700), too. The thread that uses it need not be this one.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found not in (0, version):
            raise DiskError(f"cannot use {path}: its version is {found}, this reads {version}; move it away")
        db.executescript(f"{tables} PRAGMA user_version={version};")
    except (OSError, sqlite3.Error) as error:
        raise DiskError(f"cannot use {path}: {error}; mend it, or move it away") from error
    return db


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
