"""One copy: the instance's lock, in the same file and form as every service's (cdn_daemon/claim.py), by flock(2).

A holder whose supervisord has died is an orphan: it is told to end and its place is
taken, or with CDN_ORPHANS=adopt its end is waited for. Any other holder was first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.isolated_monitoring.proc import parent_of, start_ticks

TERM_GRACE_S = 15.0
_POLL_S = 0.3


class Occupied(Exception):
    """Another process is this instance."""


class Orphaned(Exception):
    """The supervisord that started this process has died before it could begin."""


@dataclass(frozen=True)
class Claim:
    """This process is the instance, until it ends."""

    fd: int
    incarnation: int


def prepare(run_dir: Path) -> None:
    """Make the run directory, private; raises OSError."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if run_dir.stat().st_mode & 0o777 != 0o700:
        run_dir.chmod(0o700)
    for name in ("locks", "state"):
        (run_dir / name).mkdir(mode=0o700, exist_ok=True)


def claim(
    run_dir: Path, instance: str, environ: Mapping[str, str], *, adopt: bool, waiting: Callable[[str], None]
) -> Claim:
    """Become the instance; raises Occupied, Orphaned or OSError. waiting is called while an orphan is in the way."""
    fd = os.open(run_dir / "locks" / f"{instance}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    asked: dict[int, float] = {}
    while not _try_lock(fd):
        holder = read_record(fd)
        pid = int(holder.get("pid") or 0)
        if pid and start_ticks(pid) is not None and not _is_orphan(holder):
            os.close(fd)
            raise Occupied(
                f"cannot start {instance}: pid {pid} already is {instance} in {run_dir}; stop that one first, or set "
                f"CDN_RUN_DIR to another directory"
            )
        waiting(f"standing by: orphan pid {pid} still is {instance}")
        if pid and not adopt:
            _press(pid, asked)
        _wait(pid)
    supervisor = _supervisor_of(environ)
    last = read_record(fd)
    incarnation = int(last.get("incarnation") or 0) + 1
    same = bool(supervisor) and supervisor == last.get("supervisor")
    record = {
        "incarnation": incarnation,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "supervisor": supervisor,
        "first": int(last.get("first") or 1) if same else incarnation,
    }
    os.pwrite(fd, json.dumps(record).encode().ljust(256), 0)
    return Claim(fd, incarnation)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_record(fd: int) -> dict[str, Any]:
    """What the holder wrote of itself; nothing if that is damaged."""
    try:
        record = json.loads(os.pread(fd, 4096, 0).strip() or b"{}")
    except (ValueError, RecursionError):
        return {}
    numbers = ("pid", "parent", "incarnation", "first")
    is_one = isinstance(record, dict) and all(isinstance(record.get(key, 0), int) for key in numbers)
    return record if is_one else {}


def _is_orphan(holder: Mapping[str, Any]) -> bool:
    if supervisor := str(holder.get("supervisor") or ""):
        pid, _, began = supervisor.partition("@")
        return not (pid.isdigit() and str(start_ticks(int(pid))) == began)
    return parent_of(int(holder["pid"])) != holder.get("parent")


def _supervisor_of(environ: Mapping[str, str]) -> str:
    """Which run of which supervisord started this process, as ``pid@ticks``; empty without one."""
    if "SUPERVISOR_ENABLED" not in environ:
        return ""
    told = environ.get("CDN_LIFE", "").partition("/")[0]
    pid = int(told) if told.isdigit() else os.getppid()
    began = start_ticks(pid)
    if began is None:
        raise Orphaned(f"cannot start: supervisord pid {pid}, which started this, has died")
    return f"{pid}@{began}"


def _press(pid: int, asked: dict[int, float]) -> None:
    now_s = time.monotonic()
    with contextlib.suppress(ProcessLookupError):  # it ended by itself, which is what is wanted
        if pid not in asked:
            asked[pid] = now_s
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGCONT)  # one that is stopped would not learn of it
        elif now_s - asked[pid] > TERM_GRACE_S:
            os.kill(pid, signal.SIGKILL)


def _wait(pid: int) -> None:
    """Until it has ended, or a moment."""
    try:
        pidfd = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        pidfd = -1
    if pidfd < 0:
        time.sleep(0.02)  # its lock goes with the last of what it ran
        return
    try:
        select.select([pidfd], [], [], _POLL_S)
    finally:
        os.close(pidfd)
