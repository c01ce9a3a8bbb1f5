"""Carries out what was judged: kills, and sees that nothing of a process's tree is left behind.

Children that a process leaves behind come to supervisord, which makes itself
their subreaper (prctl(2)); they are known by the ``CDN_LIFE`` in their
environment, which each spawn gets anew. A child that has wiped its environment
is not found. Only programs of type notify are swept: others may mean it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable

from cdn_daemon.warden import procfs
from cdn_daemon.warden.program import Incarnation, Program

ABORT_GRACE_S = 0.2
"""From SIGABRT to SIGKILL: enough for the stacks of a hundred threads, not for a core dump of gigabytes."""

_SWEEP_S = 5.0
"""How long after an end its leftovers are looked for: a fork bomb's last children may come late."""

_LAST_SWEEPS, _LAST_SWEEP_S = 50, 0.01

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h"""


class Bailiff:
    """Kills processes and sweeps up after them."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._sweeping: dict[str, float] = {}
        self.swept = 0
        """Leftover processes killed."""

    @staticmethod
    def become_subreaper() -> bool:
        """Have orphaned descendants come to this process; False where the kernel will not."""
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)

    @property
    def is_busy(self) -> bool:
        """Whether there may be leftovers."""
        return bool(self._sweeping)

    def convict(
        self, program: Program, life: Incarnation, verdict: str, *, first: signal.Signals, now_s: float
    ) -> None:
        """End a process by our judgement; its end is then treated as a crash.

        SIGABRT comes first where it can: faulthandler then writes the stacks of all threads to the log,
        even while the interpreter is held.
        """
        assert life.pid is not None
        life.verdict = verdict
        self._log(f"killing '{program.name}' ({life.pid}) with {first.name}: {verdict}")
        if first is signal.SIGKILL:
            kill_group(life.pid)
        else:
            life.kill_due_s = now_s + ABORT_GRACE_S
            os.kill(life.pid, first)

    def follow_up(self, life: Incarnation, now_s: float) -> None:
        """SIGKILL to one that has not ended of the first signal."""
        if life.kill_due_s is not None and life.pid is not None and now_s >= life.kill_due_s:
            life.kill_due_s = None
            kill_group(life.pid)

    def ended(self, pid: int, mark: str, now_s: float) -> None:
        """A process has ended: kill the rest of its group, and look for the rest of its tree."""
        try:
            os.killpg(pid, signal.SIGKILL)
            self.swept += 1
        except (ProcessLookupError, PermissionError):
            pass  # the group is empty: it left nothing behind
        self._sweeping[mark] = now_s + _SWEEP_S

    def sweep(self, known_pids: Iterable[int], now_s: float) -> int:
        """Kill what has come to us from those that ended, with all below it; how many there were."""
        if not self._sweeping:
            return 0
        known, before = set(known_pids), self.swept
        for pid in procfs.children(os.getpid()):
            if pid not in known:
                self._sweep_one(pid)
        self._sweeping = {mark: until_s for mark, until_s in self._sweeping.items() if now_s < until_s}
        return self.swept - before

    def sweep_out(self, known_pids: Iterable[int], now_s: float) -> None:
        """As supervisord ends: sweep until nothing is left, and reap it; half a second at most."""
        for _ in range(_LAST_SWEEPS):
            found = self.sweep(known_pids, now_s)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return  # no children at all are left
            if not found:
                return
            time.sleep(_LAST_SWEEP_S)

    def _sweep_one(self, pid: int) -> None:
        mark = procfs.environment(pid, "CDN_LIFE")  # a zombie has none: it is not killed twice
        if mark not in self._sweeping:
            return
        for each in (pid, *procfs.descendants(pid)):
            try:
                os.kill(each, signal.SIGKILL)
                self.swept += 1
            except ProcessLookupError:
                continue


def kill_group(pid: int) -> None:
    """SIGKILL to a child of supervisord and its group."""
    try:
        os.killpg(pid, signal.SIGKILL)  # supervisor makes every child the leader of its own group
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # it has not got so far yet, or has left for a session of its own
