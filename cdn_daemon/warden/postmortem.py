"""A post-mortem of every incarnation: ``postmortems/<name>/<when>-<pid>.json`` in the run directory.

Bounded in number and size; written under another name first, so that one cut
short is never taken for a whole one. Nothing here is waited for: no fsync on
supervisord's loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bus.messages import PostMortem
from bus.postmortems import file_name, name_at
from cdn_daemon.file_end import end_of

KEPT = 20
"""Post-mortems kept of one program; the oldest go."""

MAX_LOG_BYTES = 8192
MAX_STACKS_BYTES = 32768
_LAST_WORDS_BYTES, _LAST_WORDS_CHARS = 1024, 200


def new_path(directory: Path, name: str, pid: int) -> Path:
    """Where the report of a process that ends now is to be written; it can be told before it is there."""
    return directory / file_name(name) / name_at(time.time_ns(), pid)


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


def tail(path: str | None, max_bytes: int) -> str:
    """The last of a file, from the beginning of a line; empty if there is none, or it is no regular one."""
    if path is None:
        return ""
    try:
        return end_of(path, max_bytes)[1]
    except OSError:
        return ""


def tails(log: str | None, error_log: str | None) -> str:
    """The last of both logs, that of standard error last, as it tells more; half of the room each, if there are two."""
    if error_log is None:
        return tail(log, MAX_LOG_BYTES)
    said = tail(log, MAX_LOG_BYTES // 2)
    return said + ("\n" if said and not said.endswith("\n") else "") + tail(error_log, MAX_LOG_BYTES // 2)


def last_words(paths: Iterable[str | None], since: float) -> str:
    """The last line that it has written to any of these files since that Unix time; empty if there is none."""
    for path in paths:
        try:
            is_of_this_life = path is not None and os.stat(path).st_mtime >= since
        except OSError:
            continue
        lines = tail(path, _LAST_WORDS_BYTES).split("\n") if is_of_this_life else []
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if words:
            return "".join(char if char.isprintable() else "?" for char in words[:_LAST_WORDS_CHARS])
    return ""


def take_stacks(directory: Path, pid: int) -> str:
    """What that process left of its stacks in ``stacks/``; the file is taken away."""
    if not directory.is_dir():
        return ""
    texts: list[str] = []
    for path in directory.glob(f"*.{pid}.txt"):
        texts.append(tail(str(path), MAX_STACKS_BYTES))
        path.unlink(missing_ok=True)
    return "\n".join(texts)
