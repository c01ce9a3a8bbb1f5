"""Processes that belong to a run directory, by what /proc shows of them: for when nobody is there to ask.

Only those count of which it is certain, as they may be told to end: a
supervisord that has a file of the run directory open; a process that has one of
its locks open; and one that a supervisord started for that run directory. That
CDN_RUN_DIR is in its environment is not enough: that is so in an operator's
editor, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bus.endpoints import RunDir

UP_LOCK = "cdnctl-up"
"""Held by a cdnctl that starts or ends the fleet."""


class Belonging(NamedTuple):
    """A process of the run directory."""

    pid: int
    parent: int
    name: str
    """What it is, as far as that can be seen."""
    is_supervisord: bool


def belonging(run_dir: RunDir) -> list[Belonging]:
    """Every one that this user may look into, but this process and those that it descends from."""
    place = Path(os.path.realpath(run_dir.path))
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    own = set(_ancestors(os.getpid(), parents))
    found = []
    for pid, parent in parents.items():
        if pid in own:
            continue
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            environ = _variables(Path(f"/proc/{pid}/environ").read_bytes())
            opened = list(_opened(pid))
        except OSError:  # another user's, or gone
            continue
        if is_supervisord(words) and any(path.parent == place for path in opened):
            found.append(Belonging(pid, parent, "supervisord", True))
        elif (name := name_of(environ, opened, place)) is not None:
            found.append(Belonging(pid, parent, name or f"pid {pid}", False))
    return found


def supervisords(run_dir: RunDir) -> list[int]:
    """The pids of those that run there, whether they can be reached or not."""
    return [process.pid for process in belonging(run_dir) if process.is_supervisord]


def topmost(processes: Sequence[Belonging]) -> dict[str, int]:
    """Name → pid of those to be told to end: not the children of another, which ends its own in order. Pure."""
    pids = {process.pid for process in processes}
    told: dict[str, int] = {}
    for process in processes:
        if process.parent not in pids:
            told[f"{process.name} (pid {process.pid})" if process.name in told else process.name] = process.pid
    return told


def is_supervisord(words: Sequence[bytes]) -> bool:
    """Whether that command line is a supervisord's, started by its script or by python -m. Pure."""
    return any(word.rpartition(b"/")[2] == b"supervisord" or word == b"supervisor.supervisord" for word in words[:3])


def name_of(environ: Mapping[str, str], opened: Sequence[Path], place: Path) -> str | None:
    """The service that a process is, by its locks or by what supervisord told it; None if it is none.

    ``place`` is the run directory, without links.
    """
    for path in opened:
        if path.parent == place / "locks" and path.suffix == ".lock" and path.stem not in (UP_LOCK, "bus"):
            return path.stem
    told = environ.get("SUPERVISOR_ENABLED") and environ.get("CDN_RUN_DIR")
    if not told or os.path.realpath(told) != str(place):  # which may have been told by way of a link
        return None
    return environ.get("SUPERVISOR_PROCESS_NAME", "")


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _parent(pid: int) -> int | None:
    """None if it is gone, or ended and not yet reaped."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(parent) if state not in "ZX" else None


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    """It, and those that it descends from."""
    while pid:
        yield pid
        pid = parents.get(pid, 0)


def _variables(content: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(word).partition("=") for word in content.split(b"\0"))
    return {name: value for name, _, value in pairs}


def _opened(pid: int) -> Iterator[Path]:
    """The files that it has open."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield Path(os.readlink(f"/proc/{pid}/fd/{fd}").removesuffix(" (deleted)"))
        except FileNotFoundError:  # closed meanwhile
            continue
