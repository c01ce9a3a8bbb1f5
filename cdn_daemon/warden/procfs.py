"""What Linux says of another process: a few reads of /proc, proc(5). None where there is no such process."""

from __future__ import annotations

import os

_MAX_GENERATIONS = 64
"""How far up a chain of parents is followed; a chain this long is no honest child's."""


def belongs_to(pid: int, root_pid: int) -> bool:
    """Whether pid is root_pid, in its process group or session, or one of its descendants."""
    if pid == root_pid:
        return True
    try:
        if os.getpgid(pid) == root_pid or os.getsid(pid) == root_pid:
            return True
    except (ProcessLookupError, PermissionError):
        return False
    for _ in range(_MAX_GENERATIONS):
        ancestor = parent(pid)
        if ancestor == root_pid:
            return True
        if ancestor is None or ancestor <= 1:
            return False
        pid = ancestor
    return False


def parent(pid: int) -> int | None:
    """Its parent's pid."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def _stat(pid: int) -> list[bytes] | None:
    """/proc/pid/stat from its third field, the state, on; the second, the name, may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None
