"""A disk that is full: which errors say so, and what the sender is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import apsw

from cdn_daemon.api import RefusedError
from services.sqlite import FULL


def is_full(error: BaseException, connection: apsw.Connection | None = None) -> bool:
    """Whether the error, of the system or of that connection, says that nothing more can be stored."""
    match error:
        case OSError():
            return error.errno in FULL
        case apsw.FullError():
            return True
        case apsw.IOError() if connection is not None:  # SQLite knows ENOSPC alone by name
            return connection.system_errno in FULL
    return False


def no_room(directory: Path) -> RefusedError:
    """What the sender is told. 507 is Insufficient Storage, RFC 4918."""
    return RefusedError(
        507,
        "cannot store this: no space left on device",
        value=directory,
        limit=f"{shutil.disk_usage(directory).free} bytes free",
        next="make room there, then try again",
    )
