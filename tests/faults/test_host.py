"""Faults of the host: everything may be late or unwritten, and nothing is killed for it, nor corrupt after it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from bus.messages import Verb
from tests.faults import injections
from tests.faults.fleet import Fleet, faulty
from tests.support import short_dir, until
from tests.warden.test_robust import STEPPED_CLOCK

pytestmark = pytest.mark.faults

OVERLOADED_S = float(os.environ.get("CDN_FAULT_SECONDS", "10"))
"""60 to have it in full."""


def test_overload(run_path: Path) -> None:
    """8 × cores of busy processes: nobody is killed, ATLAS included, nor who is nice and hardly runs at all.

    Who sleeps mostly gets its turn at once, so the nice one computes: whatever else it does waits for that.
    """
    with Fleet(run_path, {"web": faulty(), "other": faulty(), "nice": faulty(CDN_NICE="19")}) as fleet:
        victims = [fleet.serving(name) for name in ("web", "other", "nice")]
        atlas = fleet.supervisord.pid("atlas")
        since_s = time.monotonic()
        injections.keep_busy(victims[2])
        with injections.overload(times_cores=8):
            until(lambda: time.monotonic() - since_s > OVERLOADED_S, within_s=10 * OVERLOADED_S, every_s=0.5)
            until(lambda: "'nice' silent for" in fleet.supervisord.log(), within_s=60.0, what="it has starved")
        fleet.assert_undisturbed(*victims)
        assert fleet.supervisord.pid("atlas") == atlas
        assert fleet.post_mortems("atlas") == []


@pytest.mark.parametrize("step_s", [3600, -3600])
def test_clock_stepped(run_path: Path, step_s: int) -> None:
    """By an hour, for supervisord, ATLAS and services alike: nobody is killed, and what happens is seen as before."""
    (run_path / "sitecustomize.py").write_text(STEPPED_CLOCK)
    step = run_path / "step"
    fleet = Fleet(run_path, {"web": faulty(), "other": faulty()}, env={"TEST_CLOCK_STEP": str(step)})
    fleet.supervisord.env["PYTHONPATH"] = f"{run_path}{os.pathsep}{fleet.supervisord.env['PYTHONPATH']}"
    with fleet:
        victims = [fleet.serving(name) for name in ("web", "other")]
        until(lambda: fleet.lives("web"))
        step.write_text(str(step_s))
        since_s = time.monotonic()
        until(lambda: time.monotonic() - since_s > 2.0, every_s=0.1, what="four limits of silence have passed")
        fleet.assert_undisturbed(*victims)
        injections.crash(victims[0])  # it is replaced at once: no wait is an hour longer
        fleet.serving("web", after=victims[0])
        assert fleet.end("web").end == "killed by SIGKILL"
        assert fleet.order(Verb.RESTART, "other").kind == "done"
        assert fleet.end("other").ordered_by == "test"


# -- nowhere to write ---------------------------------------------------------------------------------------------


def mounted(*arguments: str) -> None:
    """mount(8), or skip."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount; tests/atlas/test_atlas.py's test_a_full_disk is by RLIMIT_FSIZE, for anybody")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here, as in a container without CAP_SYS_ADMIN: {done.stderr.strip()}")


@contextmanager
def unmounted_afterwards(path: Path) -> Iterator[None]:
    """Whatever is mounted there in the end is not any more."""
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A run directory with a file system of its own, of 16 MiB."""
    with short_dir() as path:
        mounted("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path))
        with unmounted_afterwards(path):
            yield path


def fill(path: Path) -> None:
    """Write there until there is no room for a byte."""
    with path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    continue


def assert_whole(run_path: Path) -> None:
    """What is on disk can be read, all of it."""
    with closing(sqlite3.connect(run_path / "state" / "atlas" / "history.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_disk_full(small_disk: Path) -> None:
    """Services are replaced as ever; ATLAS raises an alarm, and history has what was meanwhile once there is room."""
    with Fleet(small_disk, {"web": faulty(), "other": faulty()}) as fleet:
        victim, other = fleet.serving("web"), fleet.serving("other")
        until(lambda: fleet.lives("web"))
        filler = small_disk / "filler"

        def is_alarmed() -> bool:
            fill(filler)
            view = fleet.view("atlas")
            return view is not None and view.health == "degraded"

        until(is_alarmed, within_s=60.0, every_s=0.5, what="ATLAS is degraded")
        injections.crash(victim)
        fleet.serving("web", after=victim)
        assert fleet.serving("other") == other
        filler.unlink()

        def is_well() -> bool:
            view = fleet.view("atlas")
            return view is not None and view.health == "healthy"

        until(is_well, within_s=60.0, every_s=0.2, what="ATLAS is healthy again")
        until(lambda: "degraded" in str(fleet.events("atlas", "health")), what="the alarm is in history")
        until(lambda: len(fleet.events("web", "restart")) == 1, what="and what happened meanwhile")
        fleet.assert_undisturbed(other)
    assert_whole(small_disk)


def test_log_directory_read_only(run_path: Path) -> None:
    """Services go on, and one that ends is started again, though no log of it can be opened; ATLAS tells of that."""
    logs = run_path / "logs"
    logs.mkdir()
    log = {"stdout_logfile": f"{logs}/%(program_name)s.log"}
    with Fleet(run_path, {"web": faulty(**log), "other": faulty(**log)}) as fleet:
        victim, other = fleet.serving("web"), fleet.serving("other")
        mounted("-t", "tmpfs", "-o", "ro", "tmpfs", str(logs))
        with unmounted_afterwards(logs):
            injections.crash(victim)
            second = fleet.serving("web", after=victim)
            assert fleet.end("web").end == "killed by SIGKILL"
            reply = fleet.reply()
            assert reply is not None
            assert any("opening the log of web: OSError: [Errno 30]" in note for note in reply.notes), reply.notes
            fleet.assert_undisturbed(other)
        before = (logs / "web.log").read_text()
        injections.crash(second)
        fleet.serving("web", after=second)
        until(lambda: "serving" in (logs / "web.log").read_text()[len(before) :], what="its next start has a log again")
