"""Restarts, in a real supervisord: immediate, bounded, explained."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from bus.postmortems import read
from tests.support import BIN, Supervisord, until
from tests.warden.programs import fake_atlas, python


def test_a_killed_program_is_replaced_and_the_table_says_how_it_ended(run_dir: Path) -> None:
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"web": {"command": "sleep 1000"}}) as fleet:
        before = atlas.row("web", "RUNNING")
        os.kill(fleet.pid("web"), signal.SIGKILL)
        until(lambda: atlas.rows()["web"].restarts == 1 and atlas.rows()["web"].state == "RUNNING", what="restarted")
        after = atlas.rows()["web"]
        assert after.pid != before.pid
        assert after.wait_status == signal.SIGKILL
        assert after.reason == ""
        assert after.log == str(run_dir / "web.log")


def test_a_crash_loop_ends_in_quarantine_with_its_reason_and_start_clears_it(run_dir: Path) -> None:
    count = run_dir / "count"
    command = python(run_dir, "loop", f"open({str(count)!r}, 'a').write('x')\nsys.exit(3)")
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"loop": {"command": command}}) as fleet:
        assert atlas.row("loop", "FATAL").reason == "quarantined: 5 starts in 60 s, last: exit 3"
        assert len(count.read_text()) == 5
        assert "quarantined: 5 starts in 60 s, last: exit 3" in fleet.ctl("status").stdout
        fleet.ctl("start", "loop")
        until(lambda: len(count.read_text()) > 5, what="started again")
        until(lambda: fleet.states()["loop"] == "FATAL", what="quarantined again")
        assert len(count.read_text()) == 10


def test_backing_off_is_shown_with_reason_and_next_try(run_dir: Path) -> None:
    command = python(run_dir, "loop", "time.sleep(0.05)\nos.kill(os.getpid(), 11)")
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"loop": {"command": command}}):
        row = atlas.row("loop", "BACKOFF")
        assert row.reason.startswith("backing off: killed by SIGSEGV")
        assert "starts in 60 s" in row.reason
        assert row.next_try_s is not None
        assert 0 <= row.next_try_s < 10


@pytest.mark.parametrize(
    ("body", "state", "reason"),
    [
        ("sys.exit(0)", "EXITED", "exit 0"),
        ("tell('STATUS=no such port')\nsys.exit(78)", "EXITED", "configuration error (78): no such port"),
        ("tell('ERRNO=2\\nSTATUS=disk is full')\nsys.exit(9)", "FATAL", "5 starts in 60 s, last: exit 9: disk is full"),
        ("sys.exit(75)", "FATAL", "5 starts in 60 s, last: asked to be restarted (exit 75)"),
    ],
)
def test_exit_codes_are_the_contract(run_dir: Path, body: str, state: str, reason: str) -> None:
    program = {"command": python(run_dir, "ends", body, notifies=True), "type": "notify"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"ends": program}):
        until(lambda: atlas.row("ends", state).reason.endswith(reason), what=reason)


def test_75_restarts_at_once_though_crashes_would_wait(run_dir: Path) -> None:
    command = python(run_dir, "again", "tell('READY=1')\ntime.sleep(0.3)\nsys.exit(75)", notifies=True)
    program = {"command": command, "type": "notify"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"again": program}):
        until(lambda: atlas.row("again").restarts == 4, what="restarted")
        states = {row.state for status in atlas.statuses for row in status.processes}
        assert "BACKOFF" not in states
        # The sixth start in a minute would be one too many, yet it served in between: held back, not given up.
        row = atlas.row("again", "BACKOFF")
        assert 0 < (row.next_try_s or 0) <= 0.6
        assert re.fullmatch(r"backing off: asked .*, 5 starts in 60 s; next try at \d\d:\d\d:\d\d", row.reason)
        until(lambda: atlas.row("again").restarts > 5, what="goes on")


def test_restarts_that_an_operator_orders_are_no_crashes(run_dir: Path) -> None:
    """Told so by the program itself, in the words of the embedded daemon."""
    body = (
        "tell('READY=1')\ntime.sleep(0.05)\ntell('STOPPING=1\\nSTATUS=draining: told to restart by me')\nsys.exit(75)"
    )
    program = {"command": python(run_dir, "again", body, notifies=True), "type": "notify"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"again": program}):
        until(lambda: atlas.row("again").restarts >= 12, what="restarted")
        states = {row.state for status in atlas.statuses for row in status.processes}
        assert not states & {"BACKOFF", "FATAL"}
    assert {report.ordered_by for report in read(run_dir / "postmortems", "again")[:-1]} == {"me"}


@pytest.mark.parametrize("redirect", ["true", "false"])
def test_what_a_program_wrote_last_is_the_reason_that_it_was_given_up_for(run_dir: Path, redirect: str) -> None:
    """Wherever its standard error goes; the post-mortem has both its logs. What was there before is passed over."""
    logs = {"redirect_stderr": redirect, "stderr_logfile": f"{run_dir}/%(program_name)s.err", "restart_budget": "2"}
    programs = {
        "wrong": {"command": python(run_dir, "wrong", "print('hello', flush=True)\nimport nosuchmodule"), **logs},
        "mute": {"command": python(run_dir, "mute", "sys.exit(4)"), **logs},
    }
    for suffix in ("log", "err"):
        (run_dir / f"mute.{suffix}").write_text("from another life\n")
        os.utime(run_dir / f"mute.{suffix}", (1e9, 1e9))
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, programs):
        said = "quarantined: 2 starts in 60 s, last: exit 1: ModuleNotFoundError: No module named 'nosuchmodule'"
        assert atlas.row("wrong", "FATAL").reason == said
        assert atlas.row("mute", "FATAL").reason == "quarantined: 2 starts in 60 s, last: exit 4"
        report = until(lambda: read(run_dir / "postmortems", "wrong")[1:])[0]
        assert "hello\n" in report.log_tail
        assert report.log_tail.endswith("No module named 'nosuchmodule'\n")


def test_a_missing_executable_is_quarantined_with_its_name(run_dir: Path) -> None:
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"gone": {"command": "/nonexistent/thing"}}):
        assert "cannot spawn: can't find command '/nonexistent/thing'" in atlas.row("gone", "FATAL").reason


def test_a_stopped_program_stays_down_and_says_by_whom(run_dir: Path) -> None:
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"web": {"command": "sleep 1000"}}) as fleet:
        fleet.ctl("stop", "web")
        assert atlas.row("web", "STOPPED").reason == "stopped by an operator"
        assert fleet.ctl("start", "web").stdout.strip() == "web: started"


def test_python_is_the_one_of_supervisords_environment(run_dir: Path) -> None:
    body = "print(sys.executable, os.environ['CDN_RUN_DIR'], flush=True)\ntime.sleep(1000)"
    python(run_dir, "who", body)
    program = {"command": f"python {run_dir}/who.py"}
    with Supervisord(run_dir, {"who": program}, env={"PATH": "/usr/bin:/bin"}) as fleet:
        said = until(lambda: fleet.log("who").split(), what="output")
        assert Path(said[0]).parent == BIN
        assert said[1] == str(run_dir)
