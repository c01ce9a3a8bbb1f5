"""A post-mortem of every incarnation: ``postmortems/<name>/<when>-<pid>.json`` in the run directory.

Bounded in number and size; written under another name first, so that one cut
short is never taken for a whole one. Nothing here is waited for: no fsync on
supervisord's loop.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import msgspec

KEPT = 20
"""Post-mortems kept of one program; the oldest go."""

MAX_LOG_BYTES = 8192
MAX_STACKS_BYTES = 32768


class PostMortem(msgspec.Struct, kw_only=True):
    """What is known of one life of a process, after its end."""

    name: str
    host: str
    start: int
    """1 is the program's first start under this supervisord."""
    pid: int
    ended_at: str
    """UTC, ISO 8601."""
    lived_s: float
    ready_after_s: float | None
    """None: it never was ready."""
    wait_status: int
    """Raw status of waitpid(2)."""
    end: str
    """How it ended, in words."""
    verdict: str = ""
    """Why it was killed by the warden, with the evidence; empty if it was not."""
    spared: str = ""
    """A silence over its limit that had been excused before."""
    ordered_by: str = ""
    """Who ordered its end; empty if nobody did."""
    follows: str = ""
    """What the warden decided: the state it went to, and when it is to be started again."""
    last_status: str = ""
    """Its last STATUS=."""
    errno: int | None = None
    stacks: str = ""
    """Of all its threads, if it could write them."""
    log_tail: str = ""


def file_name(name: str) -> str:
    """A program's name as the name of a directory."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "_"


def new_path(directory: Path, name: str, pid: int) -> Path:
    """Where the report of a process that ends now is to be written; it can be told before it is there."""
    now_ns = time.time_ns()
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // 1_000_000_000))
    return directory / file_name(name) / f"{when}.{now_ns % 1_000_000_000:09d}-{pid}.json"


def write(path: Path, report: PostMortem) -> None:
    """Write one report, and remove what is too many beside it. OSError if the disk will not have it."""
    of_program = path.parent
    of_program.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    try:
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    for old in sorted(of_program.iterdir())[:-KEPT]:
        old.unlink(missing_ok=True)


def read(directory: Path, name: str) -> list[PostMortem]:
    """The reports of one program, oldest first; files that are none are passed over."""
    reports: list[PostMortem] = []
    of_program = directory / file_name(name)
    for path in sorted(of_program.glob("*.json")) if of_program.is_dir() else []:
        try:
            reports.append(msgspec.json.decode(path.read_bytes(), type=PostMortem))
        except (OSError, msgspec.MsgspecError):
            continue
    return reports


def tail(path: str | None, max_bytes: int) -> str:
    """The last of a file, from the beginning of a line; empty if there is none."""
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            content = file.read(max_bytes)
    except OSError:
        return ""
    if size > max_bytes:
        content = content.partition(b"\n")[2] or content
    return content.decode(errors="replace")


def take_stacks(directory: Path, pid: int) -> str:
    """What that process left of its stacks in ``stacks/``; the file is taken away."""
    if not directory.is_dir():
        return ""
    texts: list[str] = []
    for path in directory.glob(f"*.{pid}.txt"):
        texts.append(tail(str(path), MAX_STACKS_BYTES))
        path.unlink(missing_ok=True)
    return "\n".join(texts)
