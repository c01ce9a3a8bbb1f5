"""One copy: who may be an instance, and how its starts are counted."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bus.endpoints import RunDir
from cdn_daemon.claim import Orphaned, Record, claim, is_alive, next_record, supervisor_of
from cdn_daemon.vitals import start_ticks
from tests.support import ROOT, ServiceProcess, environment, is_running, kill_tree, until

TINY = ("-m", "tests.cdn_daemon.tiny")


@pytest.mark.parametrize(
    ("last", "supervisor", "incarnation", "restarts"),
    [
        (Record(), "", 1, 0),
        (Record(incarnation=5, supervisor="", first=5), "", 6, 0),
        (Record(), "9@1.0", 1, 0),
        (Record(incarnation=5, supervisor="9@1.0", first=3), "9@1.0", 6, 3),
        (Record(incarnation=5, supervisor="9@1.0", first=3), "9@2.0", 6, 0),
        (Record(incarnation=5, supervisor="9@1.0", first=3), "", 6, 0),
    ],
)
def test_next_record(last: Record, supervisor: str, incarnation: int, restarts: int) -> None:
    """Incarnations never repeat; restarts count within one run of one supervisor."""
    record = next_record(last, pid=1, began=3, parent=2, supervisor=supervisor)
    assert (record.incarnation, record.incarnation - record.first) == (incarnation, restarts)


def test_supervisor_of() -> None:
    """Who the warden says it is, else the parent; only under supervisord."""
    me, parent = (f"{pid}@{start_ticks(pid)}" for pid in (os.getpid(), os.getppid()))
    told = {"CDN_LIFE": f"{os.getpid()}/x/1"}
    assert supervisor_of({}, os.getppid()) == ""
    assert supervisor_of(told, os.getppid()) == ""
    assert supervisor_of({"SUPERVISOR_ENABLED": "1"}, os.getppid()) == parent
    assert supervisor_of({"SUPERVISOR_ENABLED": "1", "CDN_LIFE": "nonsense"}, os.getppid()) == parent
    assert supervisor_of({"SUPERVISOR_ENABLED": "1", **told}, os.getppid()) == me


def test_a_supervisor_that_has_died(run_path: Path) -> None:
    """Whoever was started by it has no business to begin; a dead process is not alive for not being reaped."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        name = f"{ended.pid}@{start_ticks(ended.pid)}"
        until(lambda: start_ticks(ended.pid) is None)  # a zombie, as nobody has waited for it
        assert not is_alive(name)
        with pytest.raises(Orphaned, match=f"supervisord pid {ended.pid}, which started this, has died"):
            supervisor_of({"SUPERVISOR_ENABLED": "1", "CDN_LIFE": f"{ended.pid}/tiny/1"}, 1)
        env = {"SUPERVISOR_ENABLED": "1", "CDN_LIFE": f"{ended.pid}/tiny/1"}
        with ServiceProcess(run_path, *TINY, **env) as late:
            assert late.wait() == 70
            assert "has died" in late.log()


def orphan(run_path: Path) -> int:
    """Pid of a tiny service whose parent, like a killed supervisord, has gone."""
    log = run_path / "orphan.log"
    spawner = (
        "import subprocess, sys; log = open(sys.argv[1], 'w');"
        "child = subprocess.Popen([sys.executable, *sys.argv[2:]], stderr=log, stdout=log);"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", spawner, str(log), *TINY],
        env=environment(run_path, CDN_PORT="0"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: "serving" in log.read_text())
        parent.kill()
    return pid


@pytest.mark.parametrize("is_stopped", [False, True])
def test_an_orphan_is_replaced(run_path: Path, is_stopped: bool) -> None:
    """The default: the orphan is drained, then the new process serves; never both. Stopped or not."""
    old = orphan(run_path)
    if is_stopped:
        os.kill(old, signal.SIGSTOP)
    with ServiceProcess(run_path, *TINY) as new:
        assert new.get("/") == (200, b"hello")
        assert not is_running(old)
        assert f"replacing orphan pid {old} of tiny: asked it to drain" in new.log()
        assert "draining" in (run_path / "orphan.log").read_text()


def test_a_pid_that_is_anothers_by_now(run_path: Path, run_dir: RunDir) -> None:
    """The holder has died and left its lock to a child, and its pid has come round: nobody is told to end."""
    with subprocess.Popen(["sleep", "600"]) as innocent, open(run_dir.lock("tiny"), "w+b") as lock:
        began = start_ticks(innocent.pid)
        assert began is not None
        record = Record(incarnation=1, pid=innocent.pid, began=began - 1, parent=1, supervisor="1@0")
        lock.write(msgspec.json.encode(record))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        told: list[str] = []

        def waiting(text: str) -> None:
            told.append(text)
            fcntl.flock(lock, fcntl.LOCK_UN)

        mine = claim(run_dir, "tiny", waiting=waiting)
        os.close(mine.fd)
        assert mine.incarnation == 2
        assert told == [f"standing by: what pid {innocent.pid} of tiny has left is being ended"]
        assert is_running(innocent.pid)
        innocent.kill()


def test_an_orphan_is_adopted(run_path: Path) -> None:
    """CDN_ORPHANS=adopt: the new process stands by for as long as the orphan lives, and can be ended meanwhile."""
    old = orphan(run_path)
    try:
        with ServiceProcess(run_path, *TINY, CDN_ORPHANS="adopt") as idle:
            until(lambda: f"standing by: orphan pid {old} is tiny" in idle.log())
            os.kill(idle.pid, signal.SIGTERM)
            assert idle.wait() == -signal.SIGTERM
        with ServiceProcess(run_path, *TINY, CDN_ORPHANS="adopt") as new:
            until(lambda: "standing by" in new.log())
            assert is_running(old)
            os.kill(old, signal.SIGKILL)
            assert new.get("/") == (200, b"hello")
    finally:
        kill_tree(old)


def test_the_lock_goes_with_its_holder(run_path: Path, run_dir: RunDir) -> None:
    """SIGKILL leaves nothing that hinders the next."""
    with ServiceProcess(run_path, *TINY) as first:
        first.url()
        first.process.kill()
        first.wait()
    assert run_dir.lock("tiny").exists()
    with ServiceProcess(run_path, *TINY) as second:
        assert second.get("/")[0] == 200
