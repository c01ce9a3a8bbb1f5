"""Orders from ATLAS: each ends once, with an outcome; in a real supervisord, and the pure part by itself."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from bus.messages import (
    Accepted,
    OutcomeKind,
    ProcessState,
    Restart,
    RestartProcess,
    SignalProcess,
    StartProcess,
    StopProcess,
)
from cdn_daemon.warden.orders import Act, Ended, Goal, Memory, Order, Wait, next_move
from tests.support import BIN, Supervisord, until
from tests.warden.programs import FakeAtlas, python


def test_restart_stop_and_start_end_when_the_state_is_reached(run_dir: Path, atlas: FakeAtlas) -> None:
    body = "tell('READY=1')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "web", body, notifies=True), "type": "notify"}
    with Supervisord(run_dir, {"web": program}) as fleet:
        until(lambda: fleet.states()["web"] == "RUNNING", what="ready")
        before = fleet.pid("web")
        restart = atlas.send(RestartProcess(name="web"))
        assert atlas.outcome(restart).kind is OutcomeKind.DONE
        assert any(isinstance(each, Accepted) and each.id == restart for each in atlas.said)
        assert fleet.pid("web") not in (0, before)
        assert atlas.outcome(atlas.send(StopProcess(name="web"))).kind is OutcomeKind.DONE
        assert fleet.states()["web"] == "STOPPED"
        assert atlas.row("web", "STOPPED").reason == "stopped by tester"
        assert atlas.outcome(atlas.send(StartProcess(name="web"))).kind is OutcomeKind.DONE
        assert fleet.states()["web"] == "RUNNING"


def test_a_start_that_cannot_succeed_fails_with_the_reason(run_dir: Path, atlas: FakeAtlas) -> None:
    program = {
        "command": python(run_dir, "bad", "sys.exit(4)"),
        "type": "notify",
        "autostart": "false",
        "restart_budget": "2",
    }
    with Supervisord(run_dir, {"bad": program}):
        outcome = atlas.outcome(atlas.send(StartProcess(name="bad")))
        assert outcome.kind is OutcomeKind.FAILED
        assert outcome.reason == "quarantined: 2 starts in 60 s, last: exit 4"


def test_an_order_that_is_not_reached_in_time_says_so(run_dir: Path, atlas: FakeAtlas) -> None:
    program = {"command": "sleep 1000", "type": "notify", "autostart": "false"}
    with Supervisord(run_dir, {"slow": program}):
        outcome = atlas.outcome(atlas.send(StartProcess(name="slow"), timeout_s=0.3))
        assert outcome.kind is OutcomeKind.FAILED
        assert outcome.reason == "not up in time; STARTING: not ready yet"


def test_the_same_order_twice_has_one_effect_and_one_answer(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": {"command": "sleep 1000"}}) as fleet:
        first = atlas.send(RestartProcess(name="web"), id_="the-same")
        atlas.outcome(first)
        pid = fleet.pid("web")
        atlas.send(RestartProcess(name="web"), id_="the-same")
        assert atlas.outcome(first, count=2) == atlas.outcome(first, count=1)
        assert fleet.pid("web") == pid


def test_orders_that_cannot_be_are_rejected(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": {"command": "sleep 1000"}}):
        unknown = atlas.outcome(atlas.send(StopProcess(name="nobody")))
        assert (unknown.kind, unknown.reason) == (OutcomeKind.REJECTED, "supervisord has no process nobody")
        assert atlas.outcome(atlas.send(StopProcess(name="web"), incarnation=99)).kind is OutcomeKind.REJECTED
        assert atlas.outcome(atlas.send(Restart())).kind is OutcomeKind.REJECTED


def test_a_signal_is_sent(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": {"command": "sleep 1000"}}) as fleet:
        pid = fleet.pid("web")
        assert atlas.outcome(atlas.send(SignalProcess(name="web", signal=signal.SIGKILL))).kind is OutcomeKind.DONE
        until(lambda: fleet.pid("web") not in (0, pid), what="replaced")
        assert atlas.outcome(atlas.send(SignalProcess(name="web", signal=9999))).kind is OutcomeKind.FAILED


def test_an_order_is_for_one_process(run_dir: Path, atlas: FakeAtlas) -> None:
    """Whatever its id: what has restarted since is neither restarted nor signalled again, nor started once stopped."""
    with Supervisord(run_dir, {"web": {"command": "sleep 1000"}}) as fleet:
        before = fleet.pid("web")
        assert atlas.outcome(atlas.send(RestartProcess(name="web", pid=before))).kind is OutcomeKind.DONE
        after = fleet.pid("web")
        assert after not in (0, before)
        assert atlas.outcome(atlas.send(RestartProcess(name="web", pid=before))).kind is OutcomeKind.DONE
        late = atlas.outcome(atlas.send(SignalProcess(name="web", signal=signal.SIGKILL, pid=before)))
        assert (late.kind, late.reason) == (OutcomeKind.REJECTED, f"web is no longer pid {before}")
        assert fleet.pid("web") == after
        assert atlas.outcome(atlas.send(StopProcess(name="web"))).kind is OutcomeKind.DONE
        late = atlas.outcome(atlas.send(RestartProcess(name="web", pid=before)))
        assert (late.kind, late.reason) == (OutcomeKind.REJECTED, "web has restarted already, and is STOPPED since")
        assert atlas.outcome(atlas.send(RestartProcess(name="web", pid=after))).kind is OutcomeKind.DONE
        assert fleet.states()["web"] == "RUNNING"


@pytest.mark.parametrize("name", ["slow", "slow:*", "all"])
def test_a_stop_that_is_overtaken_by_a_restart_answers_all_the_same(run_dir: Path, atlas: FakeAtlas, name: str) -> None:
    """Stock would wait for ever for a stopped state that the next start has passed over."""
    body = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(0)))\n"
    command = python(run_dir, "slow", body + "tell('READY=1')\ntime.sleep(1000)", notifies=True)
    with Supervisord(run_dir, {"slow": {"command": command, "type": "notify"}}) as fleet:
        pid = atlas.row("slow", "RUNNING").pid
        stopping = subprocess.Popen(
            [str(BIN / "supervisorctl"), "-c", str(fleet.conf), "stop", name],
            env=fleet.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            atlas.row("slow", "STOPPING")
            assert atlas.outcome(atlas.send(RestartProcess(name="slow"))).kind is OutcomeKind.DONE
            output, _ = stopping.communicate(timeout=20)
        finally:
            stopping.kill()
            stopping.wait()
        assert output.strip() == "slow: stopped"
        assert atlas.row("slow", "RUNNING").pid != pid


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_waiting_spins_no_cpu(run_dir: Path, verb: str) -> None:
    """supervisord uses little CPU while supervisorctl waits: stock burns a core in a waiting stop."""
    body = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(0)))\n"
    body += "if sys.argv[1:] == ['start']: time.sleep(2)\ntell('READY=1')\ntime.sleep(1000)"
    command = python(run_dir, "slow", body, notifies=True) + f" {verb}"
    program = {"command": command, "type": "notify", "autostart": "false" if verb == "start" else "true"}
    with Supervisord(run_dir, {"slow": program}) as fleet:
        if verb == "stop":
            until(lambda: fleet.states()["slow"] == "RUNNING", what="ready")
        assert fleet.process is not None
        supervisord = psutil.Process(fleet.process.pid)
        before = supervisord.cpu_times()
        fleet.ctl(verb, "slow")  # takes over two seconds
        after = supervisord.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5


# -- the pure part -----------------------------------------------------------------------------------------

S = ProcessState
START = Order(id="1", name="x", asked_by="me", goals=(Goal.UP,), deadline_s=100.0)
STOP = Order(id="1", name="x", asked_by="me", goals=(Goal.DOWN,), deadline_s=100.0)


@pytest.mark.parametrize(
    ("order", "state", "will_start", "expected"),
    [
        (START, S.STOPPED, False, Act),
        (START, S.EXITED, False, Act),
        (START, S.FATAL, False, Act),
        (START, S.BACKOFF, True, Act),
        (START, S.STARTING, False, Wait),
        (START, S.STOPPING, False, Wait),
        (START, S.RUNNING, False, Ended),
        (STOP, S.STOPPED, False, Ended),
        (STOP, S.EXITED, False, Ended),
        (STOP, S.EXITED, True, Act),
        (STOP, S.FATAL, False, Ended),
        (STOP, S.BACKOFF, True, Act),
        (STOP, S.STARTING, False, Act),
        (STOP, S.STOPPING, False, Wait),
        (STOP, S.RUNNING, False, Act),
    ],
)
def test_first_move(order: Order, state: ProcessState, will_start: bool, expected: type) -> None:
    assert isinstance(next_move(order, state, will_start, "", 0.0), expected)


def test_every_move_after_the_deadline_ends_the_order() -> None:
    for order in (START, STOP):
        for state in S:
            move = next_move(order, state, False, "why", 100.0)
            assert isinstance(move, Ended | Act)


def test_memory_forgets_the_oldest_that_is_over_and_none_under_way() -> None:
    memory = Memory()
    memory.begin("under way")
    for number in range(2000):
        memory.begin(str(number))
        memory.end(str(number), Ended(OutcomeKind.DONE))
    assert memory.knows("under way")
    assert memory.knows("1999")
    assert not memory.knows("0")
