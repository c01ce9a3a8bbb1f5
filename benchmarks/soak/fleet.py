"""The fleet of a soak: a real supervisord with the warden, ATLAS and services, in a run directory of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.soak.history import Left
from benchmarks.soak.observer import locks, marked
from benchmarks.soak.plan import STALL_S
from bus.endpoints import RunDir, prepare
from tests.faults.fleet import ATLAS, faulty
from tests.support import BIN, Supervisord, kill_tree, until

DRAIN_S, STOP_WAIT_S = 3.0, 6.0
_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h"""


def names_of(services: int) -> tuple[str, ...]:
    """What the services are called."""
    return tuple(f"s{number:02}" for number in range(1, services + 1))


class Fleet:
    """supervisord runs as a child of this process, and what it leaves when it is killed comes here, too."""

    def __init__(self, run_path: Path, services: int) -> None:
        self.run_dir = prepare(RunDir(run_path))
        self.names = names_of(services)
        one = faulty(
            stopwaitsecs=f"{STOP_WAIT_S:g}",
            CDN_DRAIN_S=f"{DRAIN_S:g}",
            CDN_LIMIT_RSS_BYTES="120m:160m",
            CDN_LIMIT_FDS="150:200",
            CDN_LIMIT_THREADS="40:60",
            CDN_LIMIT_LOOP_LAG_S=f"0.5:{STALL_S:g}",
        )
        self._written = Supervisord(run_path, {"atlas": ATLAS, **dict.fromkeys(self.names, one)}, env={"CDN_PORT": "0"})
        self.environment = self._written.env
        self.process: subprocess.Popen[bytes] | None = None
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def launch(self) -> int:
        """Start a supervisord; its pid."""
        self.process = subprocess.Popen(
            [sys.executable, str(BIN / "supervisord"), "-n", "-c", str(self._written.conf)],
            env=self.environment,
            cwd=self.run_dir.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the soak, which ends the fleet in order
        )
        return self.process.pid

    def kill_supervisord(self) -> None:
        """SIGKILL, and gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def down(self) -> int:
        """End it as an operator would; the exit code of that."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        command = [str(BIN / "cdnctl"), "down", "--timeout", "90s"]
        done = subprocess.run(command, env=self.environment, cwd=self.run_dir.path, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
        if self.process is not None and done.returncode == 0:
            self.process.wait(timeout=30)
        return done.returncode

    def left(self, down_exit: int) -> Left:
        """What there is of it now that it is down."""
        path = self.run_dir.path
        reap()
        inodes = {each.stat().st_ino: each.name for each in (path / "locks").iterdir()}
        unix = [line.split()[7:] for line in Path("/proc/net/unix").read_text().splitlines()]
        bound = {words[0] for words in unix if words and words[0].startswith(f"{path}/")}
        files = [each for each in path.rglob("*") if not each.is_dir()]
        bound |= {str(each) for each in files if stat.S_ISSOCK(each.lstat().st_mode)}
        return Left(
            at_s=time.monotonic(),
            down_exit=down_exit,
            processes=tuple(f"{pid} {words}" for pid, words in marked(path).items()),
            sockets=tuple(sorted(bound)),
            locks=tuple(inodes[inode] for inode in locks() if inode in inodes),
            files=tuple(sorted(str(each.relative_to(path)) for each in files)),
        )

    def force_down(self) -> None:
        """Whatever state it is in, nothing of it lives afterwards."""
        if self.process is not None and self.process.poll() is None:
            kill_tree(self.process.pid)
            self.process.wait()
        for _ in range(50):
            pids = list(marked(self.run_dir.path))
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            reap()
            if not pids:
                return
            time.sleep(0.1)


def reap() -> None:
    """Take note of what has come to us and ended."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def wait_until_up(answering: dict[str, int], names: tuple[str, ...], within_s: float) -> None:
    """Until all of these answer; raises NotInTime."""

    def up() -> bool:
        return all(answering.get(name) for name in names)

    until(up, within_s=within_s, every_s=0.1, what="the fleet answers")
