"""Readiness, in a real supervisord: RUNNING means ready, and only a program's own word counts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import BIN, Supervisord, until
from tests.warden.programs import fake_atlas, python

WAITED = r"( and [0-9.]+ s of waiting for a CPU)?"
"""What a verdict on a start has in it on a busy machine."""


def test_start_returns_when_ready_and_status_says_starting_until_then(run_dir: Path) -> None:
    body = "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\ntell('READY=1')\ntime.sleep(1000)"
    gate = run_dir / "gate"
    command = python(run_dir, "slow", body, notifies=True) + f" {gate}"
    programs = {"slow": {"command": command, "type": "notify", "autostart": "false"}}
    with Supervisord(run_dir, programs) as fleet:
        starting = subprocess.Popen(
            [str(BIN / "supervisorctl"), "-c", str(fleet.conf), "start", "slow"],
            env=fleet.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        until(lambda: fleet.states()["slow"] == "STARTING", what="starting")
        assert starting.poll() is None
        gate.touch()
        output, _ = starting.communicate(timeout=30)
        assert output.strip() == "slow: started"
        assert fleet.states()["slow"] == "RUNNING"


@pytest.mark.faults
def test_a_program_that_never_gets_ready_is_judged_failed(run_dir: Path) -> None:
    program = {"command": "sleep 1000", "type": "notify", "ready_s": "0.3", "restart_budget": "2"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"never": program}) as fleet:
        expected = "quarantined: 2 starts in 60 s, last: killed by SIGABRT: not ready within 0.3 s"
        row = atlas.row("never", "FATAL")
        said, _, where = row.reason.removesuffix(")").rpartition(" (")
        assert re.fullmatch(expected + WAITED, said)
        report = run_dir.parent / where
        until(report.exists, what="the post-mortem, which is written after what is urgent")
        assert report.read_text().count("not ready within") == 2  # the end, and the verdict
        assert f"): {run_dir.parent / where}\n" in fleet.log()


def test_what_it_was_waiting_for_is_in_the_verdict(run_dir: Path) -> None:
    body = "tell('STATUS=no answer from db')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "never", body, notifies=True), "type": "notify", "ready_s": "2"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"never": {**program, "restart_budget": "1"}}):
        reason = atlas.row("never", "FATAL").reason
        assert re.search(rf"not ready within 2 s{WAITED}: no answer from db \(", reason), reason


def test_a_start_that_says_it_needs_longer_gets_longer(run_dir: Path) -> None:
    body = "tell('EXTEND_TIMEOUT_USEC=20000000')\ntime.sleep(1)\ntell('READY=1')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "long", body, notifies=True), "type": "notify", "ready_s": "0.5"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"long": program}):
        assert atlas.row("long", "RUNNING").restarts == 0


def test_one_that_notifies_not_is_as_in_stock(run_dir: Path) -> None:
    with Supervisord(run_dir, {"plain": {"command": "sleep 1000"}}) as fleet:
        until(lambda: fleet.states()["plain"] == "RUNNING", what="running")


def test_a_shell_script_speaks_it_by_a_descendant(run_dir: Path) -> None:
    if shutil.which("systemd-notify") is None:
        pytest.skip("no systemd-notify here")
    script = run_dir / "service.sh"
    script.write_text("#!/bin/sh\nsystemd-notify --ready --status='up and well'\nexec sleep 1000\n")
    script.chmod(0o755)
    with Supervisord(run_dir, {"shell": {"command": str(script), "type": "notify"}}) as fleet:
        until(lambda: fleet.states()["shell"] == "RUNNING", what="ready")


def test_nobody_speaks_for_another_and_noise_is_counted(run_dir: Path) -> None:
    noise = (
        "import glob\n"
        "for path in glob.glob(os.environ['CDN_RUN_DIR'] + '/notify/*.sock'):\n"
        "    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "    for datagram in (b'READY=1', b'x' * 5000, bytes(range(256)), b'no equals sign', b''):\n"
        "        try: s.sendto(datagram, path)\n"
        "        except OSError: pass\n"
        "        time.sleep(0.15)\n"
        "time.sleep(1000)"
    )
    programs = {
        "victim": {"command": "sleep 1000", "type": "notify"},
        "noisy": {"command": python(run_dir, "noisy", noise, notifies=True)},
    }
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, programs) as fleet:
        atlas.hello()
        until(lambda: atlas.counts().get("notify_stranger", 0) >= 4, what="strangers refused")
        until(lambda: atlas.counts().get("notify_malformed", 0) >= 2, what="noise refused")
        until(lambda: atlas.counts().get("notify_too_large", 0) >= 2, what="large refused")
        assert fleet.states() == {"victim": "STARTING", "noisy": "RUNNING"}
        assert atlas.counts().get("errors", 0) == 0


def test_one_that_notifies_unasked_is_taken_for_one_that_does(run_dir: Path) -> None:
    """type=auto: stock the first time, as nobody could know; RUNNING is ready from then on."""
    body = "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\ntell('READY=1')\n"
    body += "open(sys.argv[1] + '.told', 'w')\ntime.sleep(1000)"
    gate = run_dir / "gate"
    program = {"command": python(run_dir, "learned", body, notifies=True) + f" {gate}"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"learned": program}) as fleet:
        pid = atlas.row("learned", "RUNNING").pid or 0
        gate.touch()
        until((run_dir / "gate.told").exists, what="told")
        gate.unlink()
        os.kill(pid, signal.SIGKILL)
        row = atlas.row("learned", "STARTING")
        assert row.reason == "not ready yet"
        until(lambda: fleet.states()["learned"] == "STARTING", what="shown")
        gate.touch()
        assert atlas.row("learned", "RUNNING").restarts == 1


def test_ready_twice_is_ready_once(run_dir: Path) -> None:
    body = "tell('READY=1')\ntell('READY=1\\nSTATUS=again')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "twice", body, notifies=True), "type": "notify"}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"twice": program}):
        atlas.row("twice", "RUNNING")
        assert atlas.counts().get("errors", 0) == 0
