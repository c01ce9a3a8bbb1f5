"""Processes that a supervisord which was killed has left alive: each is to end before its program is started again.

They are known by ``CDN_LIFE`` and ``CDN_RUN_DIR`` in their environment, and by
having lost their parent. Those that hold the lock of their instance (claim.py)
are not told to end here: their successor replaces them by itself, or stands by.
What one of them has started goes when it has ended, as bailiff.py has it for the
living: it may hold the lock or the port that the successor needs.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from msgspec import Struct

from bus.endpoints import RunDir
from cdn_daemon.warden import procfs

SWEEP_S = 5.0
"""How long after an end its leftovers are looked for; as bailiff.py."""


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
        self._run_dir = run_dir
        self._log = log
        self._left: dict[str, list[_Orphan]] = {}
        self._leaders: dict[str, list[int]] = {}
        """By the CDN_LIFE of an earlier supervisord: pidfds of what it has started itself, and of who has the lock."""
        self._sweeping: dict[str, float] = {}
        """CDN_LIFE of those that have ended → until when their leftovers are looked for."""
        for pid, life in _of_earlier(run_dir):
            leaders = self._leaders.setdefault(life, [])
            name = _program_of(life)
            has_claimed = _has_claimed(run_dir, name, pid)
            if not (has_claimed or _is_leader(pid)):
                continue
            try:
                leaders.append(os.pidfd_open(pid))
                if str(procfs.parent(pid)) != life.partition("/")[0] and not has_claimed:
                    self._left.setdefault(name, []).append(_Orphan(pid, os.pidfd_open(pid)))
            except ProcessLookupError:
                continue

    def close(self) -> None:
        """Let go of what is left."""
        for orphan in [orphan for orphans in self._left.values() for orphan in orphans]:
            os.close(orphan.pidfd)
        self._left.clear()
        for pidfd in [pidfd for leaders in self._leaders.values() for pidfd in leaders]:
            os.close(pidfd)
        self._leaders.clear()

    def sweep(self, programs: Container[str], now_s: float) -> int:
        """Kill what processes of these programs have left that have ended meanwhile; how many. For once a second."""
        for life, leaders in list(self._leaders.items()):
            for pidfd in [pidfd for pidfd in leaders if _has_ended(pidfd)]:
                leaders.remove(pidfd)
                os.close(pidfd)
            if not leaders:
                del self._leaders[life]
                if _program_of(life) in programs:
                    self._sweeping[life] = now_s + SWEEP_S
        swept = 0
        for pid, life in _of_earlier(self._run_dir) if self._sweeping else ():
            if life in self._sweeping:
                swept += 1
                self._log(f"killing pid {pid}, left by an orphan of '{_program_of(life)}' that has ended")
                _kill(pid)
        self._sweeping = {life: until_s for life, until_s in self._sweeping.items() if now_s < until_s}
        return swept

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


def _of_earlier(run_dir: Path) -> Iterator[tuple[int, str]]:
    """(pid, CDN_LIFE) of what earlier supervisords of this run directory have started, and of what that has started.

    But for whom this supervisord itself descends from: somebody may have started it there.
    """
    own = {os.getpid(), *procfs.ancestors(os.getpid())}
    for pid in procfs.everyone():
        life = procfs.environment(pid, "CDN_LIFE") if pid not in own else ""
        supervisord, _, rest = life.partition("/")
        if rest and supervisord != str(os.getpid()) and procfs.environment(pid, "CDN_RUN_DIR") == str(run_dir):
            yield pid, life


def _program_of(life: str) -> str:
    return life.partition("/")[2].rpartition("/")[0]


def _is_leader(pid: int) -> bool:
    """supervisord makes each process the leader of a group in its own session, which tells it from its descendants."""
    try:
        return os.getpgid(pid) == pid and os.getsid(pid) != pid
    except (ProcessLookupError, PermissionError):
        return False


def _has_claimed(run_dir: Path, name: str, pid: int) -> bool:
    from cdn_daemon.claim import incarnation_of  # takes its time, and mostly there are no orphans

    return incarnation_of(RunDir(run_dir).lock(name.rpartition(":")[2]), {pid}) is not None


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # it has ended just now, or has become somebody else's


def _send(orphan: _Orphan, number: int, whole_group: bool) -> None:
    try:
        if whole_group:
            os.killpg(orphan.pid, number)
        else:
            signal.pidfd_send_signal(orphan.pidfd, number)
    except ProcessLookupError:
        return  # it has ended just now
