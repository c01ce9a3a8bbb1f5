"""Faults of a process, each done to a real one in a real fleet, and read off the history afterwards."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from bus.messages import IncarnationView, OutcomeKind, Verb
from cdn_daemon import ExitCode
from tests.cli.support import cdnctl, services_of
from tests.faults import injections
from tests.faults.fleet import Fleet, faulty
from tests.faults.injections import Injection, ask
from tests.support import free_port, is_running, until
from tests.warden.programs import python

pytestmark = pytest.mark.faults

BUDGET = 5
"""restart_budget's default: starts in 60 s."""


def exit_code(end: IncarnationView) -> int:
    """Of that life; negative for a signal."""
    assert end.wait_status is not None
    return os.waitstatus_to_exitcode(end.wait_status)


def test_crash(run_path: Path) -> None:
    """Replaced; the signal is in the post-mortem."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        injections.crash(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert (end.pid, end.end, end.wait_status) == (victim.pid, "killed by SIGKILL", signal.SIGKILL)
        assert (end.verdict, end.ordered_by) == ("", "")
        until(lambda: len(fleet.events("web", "restart")) == 1, what="its restart is in history, once")


def logged(fleet: Fleet, text: str) -> list[float]:
    """When supervisord wrote lines with that text."""
    lines = [line for line in fleet.supervisord.log().splitlines() if text in line]
    return [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in lines]


def test_frozen(run_path: Path) -> None:
    """Noticed and replaced; the post-mortem says that it was stopped."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        injections.freeze(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert end.pid == victim.pid
        assert end.verdict.startswith("stopped by a signal (state T)")


@pytest.mark.parametrize(
    ("hold", "frame"),
    [(injections.hold_by_regex, "in hold_by_regex"), (injections.hold_by_sleep, "in hold_by_sleep")],
    ids=["burning", "sleeping"],
)
def test_held_gil(run_path: Path, hold: Injection, frame: str) -> None:
    """Silent with evidence; replaced, and the stacks are in the post-mortem, burning and sleeping alike."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        hold(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert end.pid == victim.pid
        assert end.verdict.startswith("silent for ")
        assert frame in end.stacks
        assert frame in end.guilty


def test_declared_long_call(run_path: Path) -> None:
    """It is not killed: neither for a silence of four times its limit, nor for a loop blocked for long over its own."""
    with Fleet(run_path, {"web": faulty(CDN_LIMIT_LOOP_LAG_S="0.3:0.8")}) as fleet:
        victim = fleet.serving("web")
        assert ask(victim, "/fault/hold-by-sleep?s=2&may=60") == b"held"
        assert ask(victim, "/fault/declared?s=1.5&may=60") == b"long but declared"
        fleet.assert_undisturbed(victim)


def replaced_by_its_daemon(run_path: Path, stall: Injection) -> IncarnationView:
    """The end of a service with that fault, whose event loop may be blocked for a second."""
    with Fleet(run_path, {"web": faulty(CDN_LIMIT_LOOP_LAG_S="0.5:1")}) as fleet:
        victim = fleet.serving("web")
        stall(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert end.pid == victim.pid
        return end


def test_blocked_loop(run_path: Path) -> None:
    """Replaced at its limit, and the stacks say where it was."""
    end = replaced_by_its_daemon(run_path, injections.block_loop)
    assert "over the hard limit of 1 s" in end.verdict
    assert "in block" in end.stacks


def test_deadlock(run_path: Path) -> None:
    """Two locks in two orders: replaced when the declared deadline is over, and the stacks have both threads."""
    end = replaced_by_its_daemon(run_path, injections.deadlock)
    assert "take both" in end.verdict
    assert end.stacks.count("in take") >= 2


def test_daemon_thread_dies(run_path: Path) -> None:
    """The process ends with it, loudly, and is replaced."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        injections.end_daemon(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert (end.pid, exit_code(end)) == (victim.pid, ExitCode.BUG)
        assert "the daemon is broken" in end.log_tail


def test_ignores_sigterm(run_path: Path) -> None:
    """SIGKILL after its grace; the order is done, and the post-mortem names who gave it."""
    with Fleet(run_path, {"web": faulty(stopwaitsecs="1")}) as fleet:
        victim = fleet.serving("web")
        assert ask(victim, "/fault/ignore-sigterm") == b"deaf"
        assert fleet.order(Verb.STOP, "web").kind is OutcomeKind.DONE
        assert not is_running(victim.pid)
        end = fleet.end("web")
        assert (end.wait_status, end.ordered_by) == (signal.SIGKILL, "test")


def test_under_a_debugger(run_path: Path) -> None:
    """Silent for as long as one looks at it, and not killed for it: the warden says why it spares it."""
    with Fleet(run_path, {"web": faulty(), "other": faulty()}) as fleet:
        victim, other = fleet.serving("web"), fleet.serving("other")
        try:
            with injections.debugged(victim.pid):
                until(lambda: "'web' silent for" in fleet.supervisord.log(), within_s=60.0)
                injections.freeze(other)  # so long that the judge has condemned another meanwhile
                fleet.serving("other", after=other)
                assert is_running(victim.pid)
        except PermissionError as error:
            pytest.skip(f"ptrace is not permitted here: {error}")
        fleet.assert_undisturbed(victim)


# -- what it takes ----------------------------------------------------------------------------------------------


def test_leak(run_path: Path) -> None:
    """50 MB/s: drained and restarted, before it has 1.1 × its hard limit."""
    hard_mib = 500
    with Fleet(run_path, {"web": faulty(CDN_LIMIT_RSS_BYTES=f"450m:{hard_mib}m")}) as fleet:
        victim = fleet.serving("web")
        ask(
            victim, "/fault/leak?mb=10&every=0.01&times=37"
        )  # what is there already; one piece would hold the interpreter
        injections.leak(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert (end.pid, exit_code(end)) == (victim.pid, ExitCode.RESTART)
        over = re.search(r"rss_bytes (\d+) MiB: over the hard limit", end.limit)
        assert over, end
        assert hard_mib <= int(over[1]) < 1.1 * hard_mib
        until(lambda: "serving → draining" in str(fleet.events("web", "phase")), what="that it drained is in history")


@pytest.mark.parametrize("pieces", [1, 16])
def test_burst_allocation(run_path: Path, pieces: int) -> None:
    """A gigabyte at once costs that process only; its neighbour is undisturbed."""
    with Fleet(run_path, {"web": faulty(CDN_LIMIT_RSS_BYTES="200m:300m"), "other": faulty()}) as fleet:
        victim, other = fleet.serving("web"), fleet.serving("other")
        injections.burst(victim, pieces=pieces)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert end.pid == victim.pid
        # One piece holds the interpreter until the system has found it all: half a second and more, on some machines.
        assert end.verdict.startswith("silent for ") or "over the hard limit of 300 MiB" in end.limit, end
        fleet.assert_undisturbed(other)


@pytest.mark.parametrize(
    ("leak", "limit"),
    [(injections.leak_files, {"CDN_LIMIT_FDS": "100:200"}), (injections.leak_threads, {"CDN_LIMIT_THREADS": "30:50"})],
    ids=["files", "threads"],
)
def test_fd_and_thread_leak(run_path: Path, leak: Injection, limit: Mapping[str, str]) -> None:
    """Drained and restarted over the hard limit, which is long before there are none left."""
    with Fleet(run_path, {"web": faulty(**limit)}) as fleet:
        victim = fleet.serving("web")
        leak(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert (end.pid, exit_code(end)) == (victim.pid, ExitCode.RESTART)
        assert "over the hard limit" in end.limit


def test_fork_storm(run_path: Path) -> None:
    """200 descendants, half of them gone from the group by setsid: over the limit, and then none is left."""
    with Fleet(run_path, {"web": faulty(CDN_LIMIT_CHILDREN="50:150")}) as fleet:
        victim = fleet.serving("web")
        top = psutil.Process(victim.pid)
        injections.fork_storm(victim, many=200)
        storm: set[psutil.Process] = set()

        def gone() -> bool:
            storm.update(injections.descendants(victim.pid))
            return not top.is_running()

        until(gone, within_s=60.0)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert end.pid == victim.pid
        assert "over the hard limit of 150" in end.limit
        assert storm
        until(lambda: not [each.pid for each in storm if each.is_running()], what="the whole tree is gone")
        assert not [each for each in psutil.process_iter() if is_of(each, "web", run_path)]


def is_of(process: psutil.Process, name: str, run_path: Path) -> bool:
    """Whether it is a descendant of that service, and not the service itself, by its environment."""
    try:
        env = process.environ()
        wanted = {"SUPERVISOR_PROCESS_NAME": name, "CDN_RUN_DIR": str(run_path)}
        return process.name() == "sleep" and wanted.items() <= env.items()
    except psutil.Error:
        return False


def test_grandchild_holds_the_port_and_the_log(run_path: Path) -> None:
    """It has the listening socket, the log, and a session of its own: the next one has the port all the same."""
    port = free_port()
    with Fleet(run_path, {"web": faulty(CDN_PORT=str(port))}) as fleet:
        victim = fleet.serving("web")
        heir = psutil.Process(int(ask(victim, "/fault/heir")))
        assert heir.is_running()
        injections.crash(victim)
        new = fleet.serving("web", after=victim)
        assert new.address.endswith(f":{port}")
        assert fleet.end("web").end == "killed by SIGKILL"
        until(lambda: not heir.is_running(), what="the heir is gone")


# -- what cannot start ------------------------------------------------------------------------------------------


def seen_by_atlas(programs: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """The same, started when ATLAS is there to see it."""
    return {name: {**program, "depends_on": "atlas"} for name, program in programs.items()}


def assert_given_up(fleet: Fleet, name: str, *reasons: str) -> None:
    """FATAL, after no more starts than the budget allows; the reason is in the table and in history."""
    view = fleet.shown(name, "FATAL", within_s=100.0)
    for reason in reasons:
        assert reason in view.reason
    until(lambda: len(fleet.ends(name)) >= len(fleet.post_mortems(name)) > 0)
    ends = fleet.ends(name)
    assert len(ends) <= BUDGET
    assert max(end.start or 0 for end in ends) == len(ends) == (view.restarts or 0) + 1
    assert ends[-1].follows.startswith("FATAL")
    until(lambda: "FATAL" in str(fleet.events(name, "state")), what="ATLAS has seen it given up")


def test_crash_loop(run_path: Path) -> None:
    """Before it is ready or after: at most five starts in 60 s, then quarantined with its reason."""
    (run_path / "late.exits").write_text("1.2")
    programs = {"early": {"command": python(run_path, "early", "time.sleep(0.05)\nsys.exit(3)")}, "late": faulty()}
    with Fleet(run_path, seen_by_atlas(programs)) as fleet:
        for name in programs:
            assert_given_up(fleet, name, "5 starts in 60 s, last: exit 3")
            begun, ended = logged(fleet, f"spawned: '{name}'"), logged(fleet, f"exited: {name} ")
            waits_s = [start_s - end_s for end_s, start_s in zip(ended, begun[1:], strict=False)]
            for wait_s, least_s in zip(waits_s, (0.0, 0.4, 0.8, 1.6), strict=True):  # doubled, less a fifth
                assert wait_s >= least_s - 0.01
        assert all(end.ready_after_s is not None for end in fleet.ends("late"))


def test_cannot_start(run_path: Path) -> None:
    """Import error, missing executable, port in use, in any program and in one of ours: down, and told why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        programs = {
            "imports": {"command": f"{sys.executable} -c 'import a_module_that_is_not'"},
            "missing": {"command": "/nowhere/to-be-found"},
            "port": {
                "command": python(run_path, "port", f"import socket; socket.create_server(('127.0.0.1', {port}))")
            },
            "ours": faulty(CDN_PORT=str(port)),
        }
        with Fleet(run_path, seen_by_atlas(programs)) as fleet:
            assert_given_up(fleet, "imports", "No module named 'a_module_that_is_not'")
            assert_given_up(fleet, "port", "Address already in use")
            assert "/nowhere/to-be-found" in fleet.shown("missing", "FATAL").reason  # it has no lives to end
            assert exit_code(fleet.end("ours")) == ExitCode.CONFIGURATION
            status = services_of(cdnctl(run_path, "status", "--json"))
            assert "a_module_that_is_not" in status["imports"]["reason"]
            assert "/nowhere/to-be-found" in status["missing"]["reason"]
            assert "Address already in use" in status["port"]["reason"]
            assert {status[name]["state"] for name in ("imports", "missing", "port")} == {"FATAL"}
            assert f"cannot listen on 127.0.0.1 port {port}" in status["ours"]["reason"]
            assert (status["ours"]["state"], len(fleet.lives("ours"))) == (
                "EXITED",
                1,
            )  # it will not get better by itself
