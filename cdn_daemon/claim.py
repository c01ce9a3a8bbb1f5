"""One copy: a process claims its instance by flock(2) before it does anything else.

The lock file also counts the instance's starts, which is what an incarnation is.
A holder whose supervisord (or without one, whose parent) has died is an orphan:
the new process drains it and takes over (``CDN_ORPHANS=replace``), or stands by
until it ends (``adopt``). Any other holder is a second copy's rightful first, and
the second refuses.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from bus.endpoints import RunDir
from cdn_daemon.vitals import parent_of, start_ticks

log = logging.getLogger(__name__)

Orphans = Literal["replace", "adopt"]
TERM_GRACE_S = 15.0
"""From asking an orphan to end to killing it; over the longest default drain."""
_POLL_S = 0.5
_LEFT_POLL_S = 0.02
_DAMAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What comes of reading a lock file that was written over."""


class Occupied(Exception):
    """Another process is this instance."""


class Orphaned(Exception):
    """The supervisord that started this process has died before it could begin."""


class Record(msgspec.Struct, kw_only=True):
    """What a lock file holds."""

    incarnation: int = 0
    pid: int = 0
    began: int = 0
    """When that process did, in clock ticks since the boot; 0: it does not say. Another may have its pid by now."""
    parent: int = 0
    """Parent when the claim was made; a holder with another one now is an orphan."""
    supervisor: str = ""
    """Which run of which supervisor made this start; empty without one."""
    first: int = 1
    """Incarnation of the first start under that supervisor."""


@dataclass(frozen=True)
class Claim:
    """This process is the instance, until it ends."""

    fd: int
    incarnation: int
    restarts: int
    supervisor: str
    """Which run of which supervisord made this start; empty without one."""


def next_record(last: Record, *, pid: int, began: int, parent: int, supervisor: str) -> Record:
    """The record of a new start. Pure."""
    incarnation = last.incarnation + 1
    same = bool(supervisor) and supervisor == last.supervisor
    return Record(
        incarnation=incarnation,
        pid=pid,
        began=began,
        parent=parent,
        supervisor=supervisor,
        first=last.first if same else incarnation,
    )


def claim(
    run_dir: RunDir,
    instance: str,
    *,
    orphans: Orphans = "replace",
    waiting: Callable[[str], None] = lambda _: None,
) -> Claim:
    """Become the instance; raises Occupied if a process that is no orphan is it already, or Orphaned.

    ``waiting`` is called at least twice a second, with what is waited for, while an orphan is being replaced.
    """
    fd = os.open(run_dir.lock(instance), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not _try_lock(fd):
        holder = _read(fd)
        if _has_ended(holder):
            waiting(f"standing by: what pid {holder.pid} of {instance} has left is being ended")
            time.sleep(_LEFT_POLL_S)
            continue
        if not _is_orphan(holder):
            os.close(fd)
            raise Occupied(
                f"cannot start {instance}: pid {holder.pid} already is {instance} in {run_dir.path}; "
                f"stop that one first, or set CDN_RUN_DIR to another directory"
            )
        _wait_for_end(holder.pid, instance, orphans, waiting)
    supervisor = supervisor_of(os.environ, os.getppid())
    pid = os.getpid()
    record = next_record(_read(fd), pid=pid, began=start_ticks(pid) or 0, parent=os.getppid(), supervisor=supervisor)
    payload = msgspec.json.encode(record)
    os.pwrite(fd, payload.ljust(256), 0)
    return Claim(
        fd=fd, incarnation=record.incarnation, restarts=record.incarnation - record.first, supervisor=supervisor
    )


def incarnation_of(lock: Path, pids: Collection[int | None]) -> int | None:
    """Which start of the instance one of these processes was, by the lock file; None if it is another's by now."""
    try:
        record = msgspec.json.decode(lock.read_bytes().strip(), type=Record)
    except (OSError, *_DAMAGE):
        return None
    # A shell may have been in between, as the process that supervisord knows.
    return record.incarnation if record.pid in pids or record.parent in pids else None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> Record:
    content = os.pread(fd, 4096, 0).strip()
    try:
        return msgspec.json.decode(content, type=Record)
    except _DAMAGE:
        if content:
            log.warning("lock file is damaged, counting starts anew: %.200r", content)
        return Record()


def _has_ended(holder: Record) -> bool:
    """Whether it is no more, and its lock still with the kernel, or with whoever it has left behind."""
    if not holder.pid:
        return False
    began = start_ticks(holder.pid)
    return began is None or holder.began not in (0, began)


def _is_orphan(holder: Record) -> bool:
    if not holder.pid:  # it has the lock but has not written yet: it starts this very moment
        return False
    if holder.supervisor:
        return not is_alive(holder.supervisor)
    return parent_of(holder.pid) != holder.parent  # None, if it ends this very moment, will do as well


def supervisor_of(environ: Mapping[str, str], parent: int) -> str:
    """Which run of which supervisord started this process, as ``pid@ticks``; empty without one.

    The warden tells it in ``CDN_LIFE``; the parent may be a shell in between, or already somebody else.
    Raises Orphaned if that supervisord has died meanwhile.
    """
    if "SUPERVISOR_ENABLED" not in environ:
        return ""
    told = environ.get("CDN_LIFE", "").partition("/")[0]
    pid = int(told) if told.isdigit() else parent
    began = start_ticks(pid)
    if began is None:
        raise Orphaned(f"cannot start: supervisord pid {pid}, which started this, has died")
    return f"{pid}@{began}"


def is_alive(supervisor: str) -> bool:
    """Whether that run of supervisord, ``pid@ticks``, still runs."""
    pid, _, began = supervisor.partition("@")
    return pid.isdigit() and str(start_ticks(int(pid))) == began


def _wait_for_end(pid: int, instance: str, orphans: Orphans, waiting: Callable[[str], None]) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if orphans == "adopt":
            log.warning("standing by: orphan pid %d is %s; taking over when it ends", pid, instance)
        else:
            log.warning("replacing orphan pid %d of %s: asked it to drain", pid, instance)
            _send(pidfd, signal.SIGTERM)
            _send(pidfd, signal.SIGCONT)  # one that is stopped would not learn of it
        asked_s, killed = time.monotonic(), False
        while not select.select([pidfd], [], [], _POLL_S)[0]:
            waiting(f"standing by: orphan pid {pid} still is {instance}")
            if orphans == "replace" and not killed and time.monotonic() - asked_s > TERM_GRACE_S:
                log.warning("orphan pid %d of %s has not ended within %.0f s: killing it", pid, instance, TERM_GRACE_S)
                _send(pidfd, signal.SIGKILL)
                killed = True
    finally:
        os.close(pidfd)


def _send(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself, which is what is wanted
        signal.pidfd_send_signal(pidfd, number)
