"""Processes that a supervisord which was killed has left alive: each is to end before its program is started again.

They are known by ``CDN_LIFE`` and ``CDN_RUN_DIR`` in their environment, and by
having lost their parent. Those that hold the lock of their instance (claim.py)
are passed over: their successor replaces them by itself, or stands by.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from bus.endpoints import RunDir
from cdn_daemon.warden import procfs


class Stop(Struct, frozen=True):
    """How supervisord.conf has a program told to end."""

    signal: int
    wait_s: float
    whole_group: bool
    """``stopasgroup``"""
    kill_whole_group: bool
    """``killasgroup``"""
    adopt: bool
    """``CDN_ORPHANS=adopt``: it is waited for, not told."""


class _Orphan(Struct):
    pid: int
    pidfd: int
    asked_s: float | None = None
    killed: bool = False


class Orphans:
    """Found once, when supervisord begins; create it after daemonising, close it before supervisord reloads."""

    def __init__(self, run_dir: Path, log: Callable[[str], None]) -> None:
        self._log = log
        self._left: dict[str, list[_Orphan]] = {}
        for pid in procfs.everyone():
            name = _program_of(pid, run_dir)
            if name and not _has_claimed(run_dir, name, pid):
                try:
                    self._left.setdefault(name, []).append(_Orphan(pid, os.pidfd_open(pid)))
                except ProcessLookupError:
                    continue

    def close(self) -> None:
        """Let go of what is left."""
        for orphan in [orphan for orphans in self._left.values() for orphan in orphans]:
            os.close(orphan.pidfd)
        self._left.clear()

    def __contains__(self, name: str) -> bool:
        """Whether there may be one of that program."""
        return bool(self._left.get(name))

    def in_the_way(self, name: str, how: Stop, now_s: float) -> str:
        """Whom a start of that program has to wait for; empty if nobody. They are told to end, when first asked."""
        for orphan in list(self._left.get(name, ())):
            if _has_ended(orphan.pidfd):
                os.close(orphan.pidfd)
                self._left[name].remove(orphan)
            else:
                self._press(name, orphan, how, now_s)
        pids = ", ".join(str(orphan.pid) for orphan in self._left.get(name, ()))
        return f"pid {pids}, left by a supervisord that was killed" if pids else ""

    def _press(self, name: str, orphan: _Orphan, how: Stop, now_s: float) -> None:
        if orphan.asked_s is None:
            orphan.asked_s = now_s
            self._log(f"orphan pid {orphan.pid} of '{name}': {'waiting for' if how.adopt else 'asked for'} its end")
            if not how.adopt:
                _send(orphan, how.signal, how.whole_group)
                _send(orphan, signal.SIGCONT, how.whole_group)  # one that is stopped would not learn of it
        elif not how.adopt and not orphan.killed and now_s - orphan.asked_s >= how.wait_s:
            orphan.killed = True
            self._log(f"orphan pid {orphan.pid} of '{name}' has not ended within {how.wait_s:g} s: killing it")
            _send(orphan, signal.SIGKILL, how.whole_group or how.kill_whole_group)


def _program_of(pid: int, run_dir: Path) -> str:
    """The program whose process it is, if it is an orphan of this run directory; else empty.

    supervisord makes each process the leader of a group in its own session, which tells it from its descendants.
    """
    try:
        if os.getpgid(pid) != pid or os.getsid(pid) == pid:
            return ""
    except (ProcessLookupError, PermissionError):
        return ""
    supervisord, _, rest = procfs.environment(pid, "CDN_LIFE").partition("/")
    if not rest or str(procfs.parent(pid)) == supervisord:
        return ""
    return rest.rpartition("/")[0] if procfs.environment(pid, "CDN_RUN_DIR") == str(run_dir) else ""


def _has_claimed(run_dir: Path, name: str, pid: int) -> bool:
    from cdn_daemon.claim import incarnation_of  # takes its time, and mostly there are no orphans

    return incarnation_of(RunDir(run_dir).lock(name.rpartition(":")[2]), {pid}) is not None


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _send(orphan: _Orphan, number: int, whole_group: bool) -> None:
    try:
        if whole_group:
            os.killpg(orphan.pid, number)
        else:
            signal.pidfd_send_signal(orphan.pidfd, number)
    except ProcessLookupError:
        return  # it has ended just now
