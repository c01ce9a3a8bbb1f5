"""After the death of supervisord there is no second copy of a program that takes no lock of its own either."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.endpoints import RunDir
from cdn_daemon.warden.orphans import Orphans
from tests.support import Supervisord, is_running, kill_tree, until
from tests.warden.programs import FakeAtlas, python

SLEEP = {"command": "sleep 1000"}


@contextmanager
def orphaned(
    run_dir: Path, atlas: FakeAtlas, programs: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[Supervisord, dict[str, int]]]:
    """A supervisord to be started, and by program the processes that its predecessor has left."""
    fleet = Supervisord(run_dir, programs)
    fleet.start()
    assert fleet.process is not None
    for name in programs:
        until(lambda n=name: "RUNNING" in fleet.ctl("start", n).stdout or fleet.states().get(n) == "RUNNING")  # type: ignore[misc]
    pids = {name: atlas.row(name, "RUNNING").pid or 0 for name in programs}
    fleet.process.kill()
    fleet.process.wait()
    try:
        yield fleet, pids
    finally:
        for pid in pids.values():
            kill_tree(pid)


def test_an_orphan_ends_before_its_program_is_started(run_dir: Path, atlas: FakeAtlas) -> None:
    """One that is stopped, and one that does not listen, too; what a program has set free stays."""
    frees = "if os.fork(): os.execvp('sleep', ['sleep', '1000'])\nos.setsid()\n"
    frees += "open(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    programs = {
        "plain": SLEEP,
        "stopped": SLEEP,
        "deaf": {
            "command": "sh -c 'trap \"\" TERM; while :; do sleep 1; done'",
            "stopwaitsecs": "1",
            "killasgroup": "true",
        },
        "frees": {"command": python(run_dir, "frees", frees) + f" {run_dir}/free"},
    }
    with orphaned(run_dir, atlas, programs) as (fleet, pids):
        freed = int(until(lambda: (run_dir / "free").exists() and (run_dir / "free").read_text()))
        os.kill(pids["stopped"], signal.SIGSTOP)
        try:
            with fleet:
                for name, pid in pids.items():
                    until(lambda n=name, p=pid: atlas.row(n, "RUNNING").pid != p, what=name)  # type: ignore[misc]
                    assert not is_running(pid), name
                assert is_running(freed)
                assert "orphan pid" in fleet.log()
                assert atlas.counts().get("errors", 0) == 0
        finally:
            kill_tree(freed)


def test_an_orphan_may_be_waited_for(run_dir: Path, atlas: FakeAtlas) -> None:
    with orphaned(run_dir, atlas, {"web": {**SLEEP, "environment": 'CDN_ORPHANS="adopt"'}}) as (fleet, pids), fleet:
        until(lambda: f"waiting for the end of pid {pids['web']}, left" in atlas.row("web", "STOPPED").reason)
        assert is_running(pids["web"])
        os.kill(pids["web"], signal.SIGTERM)
        until(lambda: atlas.row("web", "RUNNING").pid != pids["web"], what="its successor")


def test_one_that_nobody_starts_is_left_until_somebody_does(run_dir: Path, atlas: FakeAtlas) -> None:
    with orphaned(run_dir, atlas, {"web": {**SLEEP, "autostart": "false"}}) as (fleet, pids), fleet:
        until(lambda: atlas.rows() and atlas.statuses[-1].incarnation == 2, what="the successor is at work")
        assert atlas.row("web", "STOPPED").pid is None
        assert is_running(pids["web"])
        assert "web: started" in fleet.ctl("start", "web").stdout
        assert atlas.row("web", "RUNNING").pid != pids["web"]
        assert not is_running(pids["web"])


@pytest.mark.faults
def test_what_an_orphan_has_started_goes_with_it(run_dir: Path, atlas: FakeAtlas) -> None:
    """Also if the orphan has ended before there is a supervisord again; supervisord's own ancestor is spared."""
    child = "if not os.fork():\n    os.setsid()\n    open(sys.argv[1], 'w').write(str(os.getpid()))\n"
    child += "    time.sleep(1000)\ntell('READY=1')\ntime.sleep(1000)"
    programs = {
        name: {"command": python(run_dir, name, child, notifies=True) + f" {run_dir}/{name}", "type": "notify"}
        for name in ("web", "gone")
    }
    with orphaned(run_dir, atlas, programs) as (fleet, pids):
        left: dict[str, int] = {}
        for name in programs:
            path = run_dir / name
            left[name] = int(until(lambda p=path: p.exists() and p.read_text()))  # type: ignore[misc]
        os.kill(pids["gone"], signal.SIGKILL)
        fleet.env["CDN_LIFE"] = f"{pids['web']}/gone/1"  # as if somebody had started it from there
        try:
            with fleet:
                for name, pid in left.items():
                    until(lambda p=pid: not is_running(p), what=name)  # type: ignore[misc]
                for name in programs:
                    until(lambda n=name: atlas.row(n, "RUNNING").pid != pids[n], what=name)  # type: ignore[misc]
                assert atlas.counts()["swept"] == 2
                assert atlas.counts().get("errors", 0) == 0
        finally:
            for pid in left.values():
                kill_tree(pid)


@pytest.mark.parametrize("has_lock", [True, False])
def test_who_has_the_lock_is_not_swept_away(run_dir: Path, has_lock: bool) -> None:
    """Its successor has it drain, though the shell that supervisord had started it by is gone; what has none goes."""
    life = {**os.environ, "CDN_LIFE": "4194305/web/1", "CDN_RUN_DIR": str(run_dir)}  # beyond the largest pid there is
    with subprocess.Popen(["sleep", "1000"], env=life, start_new_session=True) as process:
        try:
            lock = RunDir(run_dir).lock("web")
            lock.parent.mkdir(exist_ok=True)
            lock.write_text(f'{{"incarnation": 1, "pid": {process.pid if has_lock else 1}}}')
            orphans = Orphans(run_dir, lambda _: None)
            assert orphans.sweep({"web"}, 0.0) == (0 if has_lock else 1)
            orphans.close()
            until(lambda: is_running(process.pid) is has_lock, what="its end, or none")
        finally:
            process.kill()
