"""The post-mortems that wardens leave in the run directory: ``postmortems/<program>/<when>-<pid>.json``.

Here is who reads them; the warden alone writes (cdn_daemon/warden/postmortem.py),
each under another name first, so that what is found is whole.
"""

from __future__ import annotations

import calendar
import os
import re
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from bus.endpoints import RunDir
from bus.messages import PostMortem

MAX_BYTES = 1 << 20
"""The largest that a warden writes is a tenth of that; what is larger is something else."""

_NAME = re.compile(r"(\d{8}T\d{6})\.(\d{9})-\d+\.json")


class Filed(Struct, frozen=True):
    """A post-mortem, and what its file says."""

    path: Path
    ended_s: float
    """Unix time."""
    report: PostMortem

    @property
    def instance(self) -> str:
        """Whose end it was: the process's name without its group."""
        return self.report.name.rpartition(":")[2]

    @property
    def key(self) -> str:
        """A name for it that no other end of the instance has."""
        return self.path.stem


def directory_of(run_dir: RunDir) -> Path:
    """Where they are, in a directory for each program."""
    return run_dir.path / "postmortems"


def file_name(name: str) -> str:
    """A program's name as the name of a directory."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "_"


def name_at(time_ns: int, pid: int) -> str:
    """The file name for an end at that Unix time; in order of names is in order of time."""
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(time_ns // 1_000_000_000))
    return f"{when}.{time_ns % 1_000_000_000:09d}-{pid}.json"


def listed(of_program: Path) -> list[str]:
    """The files in one program's directory, oldest first; nothing if there is no such directory."""
    try:
        return sorted(entry.name for entry in os.scandir(of_program) if _NAME.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def load(path: Path) -> Filed | None:
    """One of them; None if it is none, or has gone meanwhile."""
    named = _NAME.fullmatch(path.name)
    if named is None:
        return None
    try:
        with path.open("rb") as file:
            report = msgspec.json.decode(file.read(MAX_BYTES), type=PostMortem)
        ended_s = calendar.timegm(time.strptime(named[1], "%Y%m%dT%H%M%S")) + int(named[2]) / 1e9
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):  # the 31st of February has a name too
        return None
    return Filed(path, ended_s, report)


def of(directory: Path, name: str) -> list[Filed]:
    """Those of one process, by supervisor's name of it, oldest first; files that are none are passed over."""
    of_program = directory / file_name(name)
    return [filed for file in listed(of_program) if (filed := load(of_program / file)) is not None]


def read(directory: Path, name: str) -> list[PostMortem]:
    """The same, without what their files say."""
    return [filed.report for filed in of(directory, name)]
