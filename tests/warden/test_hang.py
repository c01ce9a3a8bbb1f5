"""Hung or not, in a real supervisord: what is stuck is replaced, with evidence; what is merely slow is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus.messages import PostMortem, ProcessState
from bus.postmortems import read
from cdn_daemon.warden.judge import LEAST_SILENCE_S
from cdn_daemon.warden.program import Incarnation, Program
from cdn_daemon.warden.settings import Settings
from cdn_daemon.warden.watch import limit_s
from tests.support import Supervisord, until
from tests.warden.programs import FakeAtlas, beating, python

HOG = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Uses a core for as long as its parent lives, and no longer."""

HOLDS = (
    "import ctypes, re, signal\n"
    "signal.signal(signal.SIGUSR1, lambda *_: re.match('(a+)+$', 'a' * 40 + 'b'))\n"
    "signal.signal(signal.SIGUSR2, lambda *_: ctypes.PyDLL(None).sleep(1000))\n"
)


def replaced(atlas: FakeAtlas, run_dir: Path, name: str, pid: int) -> PostMortem:
    """Wait until that process is replaced; its post-mortem."""
    until(lambda: atlas.row(name, "RUNNING").pid != pid, what=f"{name} is replaced")
    return read(run_dir / "postmortems", name)[-1]


def test_a_stopped_program_is_replaced(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": beating(run_dir, "web")}):
        pid = atlas.row("web", "RUNNING").pid or 0
        os.kill(pid, signal.SIGSTOP)
        report = replaced(atlas, run_dir, "web", pid)
        assert report.verdict.startswith("stopped by a signal (state T)")
        assert report.end == f"killed by SIGKILL: {report.verdict}"
        assert report.last_status == "serving"


def test_a_program_that_is_stopped_before_it_is_ready_is_replaced(run_dir: Path, atlas: FakeAtlas) -> None:
    """It is not waited for until its ready_s is over: stopped, it does not get ready."""
    begun = run_dir / "begun"
    before = f"begun = {str(begun)!r}\nif not os.path.exists(begun): open(begun, 'w'); time.sleep(1000)\n"
    with Supervisord(run_dir, {"web": beating(run_dir, "web", before=before, ready_s="1000")}):
        until(begun.exists, what="it is started")
        pid = atlas.row("web", "STARTING").pid or 0
        os.kill(pid, signal.SIGSTOP)
        assert replaced(atlas, run_dir, "web", pid).verdict.startswith("stopped by a signal (state T)")


@pytest.mark.parametrize("how", [signal.SIGUSR1, signal.SIGUSR2], ids=["burning", "sleeping"])
def test_a_held_interpreter_is_replaced_and_leaves_its_stacks(
    run_dir: Path, atlas: FakeAtlas, how: signal.Signals
) -> None:
    with Supervisord(run_dir, {"web": beating(run_dir, "web", before=HOLDS)}):
        pid = atlas.row("web", "RUNNING").pid or 0
        os.kill(pid, how)
        report = replaced(atlas, run_dir, "web", pid)
        assert report.verdict.startswith("silent for ")
        assert "of CPU and waited" in report.verdict
        assert "most recent call first" in report.log_tail  # faulthandler, at SIGABRT
        assert "<lambda>" in report.log_tail


def test_one_that_asks_for_it_is_replaced_with_its_reason(run_dir: Path, atlas: FakeAtlas) -> None:
    body = "time.sleep(0.5)\ntell('STATUS=loop is stuck\\nWATCHDOG=trigger')\nwhile True: time.sleep(1)"
    with Supervisord(run_dir, {"web": beating(run_dir, "web", body)}):
        first = atlas.row("web", "RUNNING").pid or 0
        assert replaced(atlas, run_dir, "web", first).verdict == "asked for it: loop is stuck"


def test_one_that_asks_for_it_before_it_is_ready_is_replaced_too(run_dir: Path, atlas: FakeAtlas) -> None:
    body = "tell('STATUS=no quorum\\nWATCHDOG=trigger')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "web", body, notifies=True), "type": "notify", "restart_budget": "1"}
    with Supervisord(run_dir, {"web": program}):
        assert "asked for it: no quorum" in atlas.row("web", "FATAL").reason


def test_a_program_cannot_ask_for_a_limit_that_its_own_beats_would_break() -> None:
    hasty = Incarnation(pid=1, spawned_s=0.0, watchdog_s=1e-6)
    assert limit_s(Program(name="web", settings=Settings(watchdog_s=0.5), log=None), hasty) == LEAST_SILENCE_S


def test_one_that_declared_a_long_call_is_left_alone(run_dir: Path, atlas: FakeAtlas) -> None:
    body = "import ctypes\ntell('EXTEND_TIMEOUT_USEC=60000000')\nctypes.PyDLL(None).sleep(3)\nopen(sys.argv[1], 'w')\n"
    program = beating(run_dir, "web", body + "while True: time.sleep(1)")
    program["command"] += f" {run_dir}/done"
    with Supervisord(run_dir, {"web": program}):
        atlas.row("web", "RUNNING")
        until((run_dir / "done").exists, what="the long call is over")
        assert atlas.row("web").restarts == 0


def test_one_that_never_beats_is_not_judged_and_one_may_ask_for_more_time(run_dir: Path, atlas: FakeAtlas) -> None:
    """Its own WATCHDOG_USEC counts; as proof that the judge was at work, a third one is replaced meanwhile."""
    own_limit = "tell('WATCHDOG_USEC=100000000')\nwhile True: time.sleep(1)"
    programs = {
        "plain": {"command": "sleep 1000"},
        "patient": beating(run_dir, "patient", own_limit),
        "web": beating(run_dir, "web", before=HOLDS),
    }
    with Supervisord(run_dir, programs):
        plain, patient, web = (atlas.row(name, "RUNNING").pid or 0 for name in programs)
        os.kill(plain, signal.SIGSTOP)
        os.kill(web, signal.SIGUSR2)
        replaced(atlas, run_dir, "web", web)
        assert atlas.row("plain").pid == plain
        assert atlas.row("patient").pid == patient
        os.kill(plain, signal.SIGCONT)


@pytest.mark.parametrize("told", [{}, {"type": "notify"}], ids=["auto", "notify"])
def test_one_that_beats_is_judged_with_no_key_at_all(run_dir: Path, atlas: FakeAtlas, told: dict[str, str]) -> None:
    """It is told a limit by WATCHDOG_USEC, and who beats once is judged by it; explicitly never is never."""
    body = "open(sys.argv[1], 'w').write(os.environ.get('WATCHDOG_USEC', 'none'))\n"
    body += "tell('WATCHDOG=1\\nWATCHDOG_USEC=600000')\nwhile True: time.sleep(1)"
    programs = {}
    for name, keys in {"never": {"watchdog_s": "0"}, "simple": {"type": "simple"}, "judged": {}}.items():
        command = beating(run_dir, name, body, before=HOLDS)["command"] + f" {run_dir}/{name}.told"
        programs[name] = {"command": command, **told, **keys}
    with Supervisord(run_dir, programs):
        pids = {name: atlas.row(name, "RUNNING").pid or 0 for name in programs}
        limits = {name: until(lambda n=name: read_text(run_dir / f"{n}.told")) for name in programs}  # type: ignore[misc]
        assert limits == {"never": "none", "simple": "none", "judged": "500000"}
        for pid in pids.values():
            os.kill(pid, signal.SIGUSR2)
        replaced(atlas, run_dir, "judged", pids["judged"])
        heard = len(atlas.statuses)
        until(lambda: atlas.rows() and len(atlas.statuses) > heard + 2, what="ticking")
        assert {name: atlas.row(name).pid for name in ("never", "simple")} == {
            name: pids[name] for name in ("never", "simple")
        }


def read_text(path: Path) -> str:
    """What is in that file; empty if there is none yet."""
    return path.read_text() if path.exists() else ""


def test_a_process_under_a_debugger_is_left_alone(run_dir: Path, atlas: FakeAtlas) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("no gdb here")
    with Supervisord(run_dir, {"web": beating(run_dir, "web")}):
        pid = atlas.row("web", "RUNNING").pid or 0
        debugger = subprocess.Popen(
            [gdb, "-q", "-nx", "-p", str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: "(tracing stop)" in Path(f"/proc/{pid}/status").read_text(), what="traced")
            seen = time.monotonic()
            until(lambda: time.monotonic() - seen > 3.0, what="five limits have passed")
            assert atlas.row("web").pid == pid
            assert "(tracing stop)" in Path(f"/proc/{pid}/status").read_text()
        finally:
            debugger.kill()
            debugger.wait()
        until(lambda: "(tracing stop)" not in Path(f"/proc/{pid}/status").read_text(), what="let go")


def test_a_supervisord_that_was_stopped_itself_accuses_nobody(run_dir: Path, atlas: FakeAtlas) -> None:
    names = ("one", "two", "three")
    with Supervisord(run_dir, {name: beating(run_dir, name) for name in names}) as fleet:
        before = {name: atlas.row(name, "RUNNING").pid for name in names}
        assert fleet.process is not None
        for _ in range(3):
            os.kill(fleet.process.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            until(lambda since=stopped: time.monotonic() - since > 2.0, what="a while")  # type: ignore[misc]
            os.kill(fleet.process.pid, signal.SIGCONT)
            heard = len(atlas.statuses)
            until(lambda since=heard: atlas.rows() and len(atlas.statuses) > since + 2, what="ticking")  # type: ignore[misc]
        assert {name: atlas.row(name).pid for name in names} == before
        assert atlas.counts().get("verdicts", 0) == 0
        assert atlas.counts()["late_ticks"] >= 3


def test_overload_kills_nobody(run_dir: Path, atlas: FakeAtlas) -> None:
    """The 60 s of 8 × cores busy processes are benchmarks/recovery.py's; this is a shorter one."""
    names = ("one", "two")
    with Supervisord(run_dir, {name: beating(run_dir, name) for name in names}):
        before = {name: atlas.row(name, "RUNNING").pid for name in names}
        hogs = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(8 * (os.cpu_count() or 2))]
        try:
            since = time.monotonic()
            until(lambda: time.monotonic() - since > 8.0, what="a while of overload", every_s=0.5)
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()
        assert {name: atlas.row(name).pid for name in names} == before
        assert atlas.counts().get("verdicts", 0) == 0


def test_a_start_that_waits_for_a_cpu_has_time_to_get_ready(run_dir: Path, atlas: FakeAtlas) -> None:
    """One of nine on a processor, it takes three times its ready_s: it is not to blame, and not killed."""
    pinned = "import os, time\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    before = f"{pinned}began_s = time.process_time()\nwhile time.process_time() - began_s < 0.3: pass\n"
    program = beating(run_dir, "web", before=before, ready_s="1", watchdog_s="0")
    hogs = [subprocess.Popen([sys.executable, "-c", pinned + HOG]) for _ in range(8)]
    try:
        with Supervisord(run_dir, {"web": program}) as fleet:
            until(lambda: fleet.states()["web"] == "RUNNING", within_s=100.0, every_s=0.2, what="web is ready")
            assert read(run_dir / "postmortems", "web") == []
    finally:
        for each in hogs:
            each.kill()
            each.wait()


def test_only_waiting_for_a_cpu_is_given_back() -> None:
    """What sleeps beyond its ready_s is late, and the verdict tells both."""
    life = Incarnation(pid=1, spawned_s=100.0, waited_s=4.0)
    program = Program(name="web", settings=Settings(notifies=True, ready_s=30.0), log=None, now=life)
    program.state = ProcessState.STARTING
    assert program.overdue(133.9, 15.0) == ""
    assert program.overdue(134.1, 15.0) == "not ready within 30 s and 4.0 s of waiting for a CPU"
