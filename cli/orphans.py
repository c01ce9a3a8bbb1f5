"""Services that outlived their supervisord: they still hold their locks in the run directory."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from bus.endpoints import RunDir

_FLOCK = re.compile(r"^\d+: FLOCK\s+\S+\s+WRITE\s+(\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+)\s", re.MULTILINE)
_NOT_SERVICES = frozenset({"cdnctl-up"})


def orphans(run_dir: RunDir) -> dict[str, int]:
    """Name → pid of every service that holds its lock; asked only where no supervisord runs.

    Reads /proc/locks, as trying a lock could keep the service that just starts from it.
    """
    inodes = {}
    for path in (run_dir.path / "locks").glob("*.lock"):
        try:
            status = path.stat()
        except OSError:
            continue  # removed meanwhile, so nobody can hold it
        inodes[(os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)] = path.stem
    try:
        table = Path("/proc/locks").read_text()
    except OSError:
        return {}
    return {name: pid for name, pid in holders(table, inodes).items() if name not in _NOT_SERVICES}


def holders(table: str, inodes: Mapping[tuple[int, int, int], str]) -> dict[str, int]:
    """Who holds which of those files, by the text of proc(5)'s /proc/locks. Pure."""
    found = {}
    for pid, major, minor, inode in _FLOCK.findall(table):
        name = inodes.get((int(major, 16), int(minor, 16), int(inode)))
        if name is not None and int(pid) > 0:
            found[name] = int(pid)
    return found
