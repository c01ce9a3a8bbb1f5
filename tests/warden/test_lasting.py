"""What operators want to last, in a real supervisord: disabled, maintenance, failures forgotten, restarts held."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from xmlrpc.client import Fault

import pytest

from bus.messages import (
    DisableProcess,
    EnableProcess,
    ForgetFailures,
    HoldRestarts,
    OutcomeKind,
    ProcessRow,
    RestartProcess,
    SetMaintenance,
    StartProcess,
    StopProcess,
)
from bus.postmortems import read
from tests.support import Supervisord, until
from tests.warden.programs import FakeAtlas, beating, python, rpc

SLEEP = {"command": "sleep 1000"}


def desired(run_dir: Path) -> Path:
    """Where it is kept."""
    return run_dir / "state" / "warden" / "desired.json"


def done(atlas: FakeAtlas, id_: str) -> str:
    """The reason of a command that has to be done."""
    outcome = atlas.outcome(id_)
    assert outcome.kind is OutcomeKind.DONE, outcome.reason
    return outcome.reason


def shown(atlas: FakeAtlas, name: str, **fields: object) -> ProcessRow:
    """Wait until its row has these; a table is published after what it shows."""

    def row() -> ProcessRow | None:
        row = atlas.row(name)
        return row if all(getattr(row, field) == value for field, value in fields.items()) else None

    row_ = until(row, what=f"{name} is {fields}")
    assert row_ is not None
    return row_


# -- enable, disable -----------------------------------------------------------------------------------------


def test_what_is_disabled_is_started_by_nobody_until_it_is_enabled(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": SLEEP, "other": SLEEP}) as fleet:
        atlas.row("web", "RUNNING")
        assert done(atlas, atlas.send(DisableProcess(name="web"))) == ""
        row = atlas.row("web", "STOPPED")
        assert row.reason.startswith("disabled by tester at 20")
        assert row.reason.endswith("; cdnctl enable web")
        assert not row.enabled
        for body in (StartProcess(name="web"), RestartProcess(name="web")):
            refused = atlas.outcome(atlas.send(body))
            assert refused.kind is OutcomeKind.REJECTED
            assert refused.reason == f"cannot start web: {row.reason}"
        assert "ERROR" in fleet.ctl("start", "web").stdout
        assert "ERROR" in fleet.ctl("start", "all").stdout
        assert "ERROR" in fleet.ctl("restart", "web").stdout
        assert fleet.states() == {"web": "STOPPED", "other": "RUNNING"}
        assert f"spawnerr: {row.reason}" in fleet.log()
        assert done(atlas, atlas.send(EnableProcess(name="web"))) == ""
        assert atlas.row("web", "RUNNING").enabled
        assert done(atlas, atlas.send(EnableProcess(name="web"))) == "it was enabled already"


def test_it_is_not_started_with_the_next_supervisord_either(run_dir: Path, atlas: FakeAtlas) -> None:
    fleet = Supervisord(run_dir, {"web": SLEEP, "other": SLEEP, "leaning": {**SLEEP, "depends_on": "web"}})
    with fleet:
        done(atlas, atlas.send(DisableProcess(name="web")))
        assert not desired(run_dir).stat().st_mode & 0o077
    with fleet:
        until(lambda: atlas.statuses[-1].incarnation == 2 if atlas.rows() else False, what="the next supervisord")
        assert atlas.row("other", "RUNNING").enabled
        row = atlas.row("web")
        assert (row.state, row.enabled, row.pid) == ("STOPPED", False, None)
        assert row.reason.startswith("disabled by tester at ")
        assert atlas.row("leaning").reason == "waiting for web"
        fleet.ctl("reload")
        until(lambda: atlas.rows() and atlas.statuses[-1].incarnation == 3, what="reloaded")
        assert atlas.row("web", "STOPPED").enabled is False
        done(atlas, atlas.send(EnableProcess(name="web"), incarnation=3))
        atlas.row("leaning", "RUNNING")


@pytest.mark.parametrize("state", ["BACKOFF", "FATAL", "EXITED", "STARTING"])
def test_it_is_stopped_whatever_it_was(run_dir: Path, atlas: FakeAtlas, state: str) -> None:
    code, budget = {"BACKOFF": ("3", 4), "FATAL": ("3", 1), "EXITED": ("0", 5), "STARTING": ("", 5)}[state]
    body = "time.sleep(1000)" if state == "STARTING" else f"sys.exit({code})"
    program = {"command": python(run_dir, "web", body), "type": "notify", "restart_budget": str(budget)}
    with Supervisord(run_dir, {"web": program}) as fleet:
        atlas.row("web", state)
        done(atlas, atlas.send(DisableProcess(name="web")))
        atlas.row("web", "STOPPED")
        assert fleet.states() == {"web": "STOPPED"}


def test_what_does_not_start_by_itself_is_not_started_by_enabling_it(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": {**SLEEP, "autostart": "false"}}):
        done(atlas, atlas.send(DisableProcess(name="web")))
        done(atlas, atlas.send(EnableProcess(name="web")))
        shown(atlas, "web", state="STOPPED", enabled=True)
        done(atlas, atlas.send(StartProcess(name="web")))


def test_the_same_over_xmlrpc_for_those_without_atlas(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": SLEEP}) as fleet:
        rpc(fleet, "disableProcess", "web")
        assert atlas.row("web", "STOPPED").reason.startswith("disabled by an operator at ")
        rpc(fleet, "enableProcess", "web")
        atlas.row("web", "RUNNING")
        rpc(fleet, "setMaintenance", "web", True, 0)
        shown(atlas, "web", state="RUNNING", maintenance=True)
        rpc(fleet, "setMaintenance", "web", False, 0)
        shown(atlas, "web", state="RUNNING", maintenance=False)
        rpc(fleet, "forgetFailures", "web")
        rpc(fleet, "scaleProcess", "web", 2)
        assert atlas.row("web-2", "RUNNING").program == "web"
        with pytest.raises(Fault, match="supervisord has no process nobody"):
            rpc(fleet, "disableProcess", "nobody")
        with pytest.raises(Fault, match="cannot scale web to 0: it must be 1 to 64"):
            rpc(fleet, "scaleProcess", "web", 0)
        for name, *wrong in (
            ("scaleProcess", "web", "x"),
            ("scaleProcess", "web", 2.5),
            ("setMaintenance", "web", 1, 5),
        ):
            with pytest.raises(Fault, match=r"INCORRECT_PARAMETERS: .* is no "):
                rpc(fleet, name, *wrong)


@pytest.mark.parametrize(
    "content",
    [b'{"version": 1, "disabled": {"web": {"by"', b'{"version": 2, "disabled": ["web"]}', b"", b"\x00" * 100],
    ids=["cut short", "newer", "empty", "zeros"],
)
def test_what_is_unusable_is_set_aside(run_dir: Path, atlas: FakeAtlas, content: bytes) -> None:
    desired(run_dir).parent.mkdir(parents=True)
    desired(run_dir).write_bytes(content)
    with Supervisord(run_dir, {"web": SLEEP}) as fleet:
        atlas.row("web", "RUNNING")
        assert atlas.counts()["desired_set_aside"] == 1
        assert f"cannot use {desired(run_dir)}: " in fleet.log()
        (aside,) = desired(run_dir).parent.glob("desired.json.*")
        assert aside.read_bytes() == content
        done(atlas, atlas.send(DisableProcess(name="web")))
        assert json.loads(desired(run_dir).read_bytes())["disabled"].keys() == {"web"}


def test_what_cannot_be_kept_holds_all_the_same(run_dir: Path, atlas: FakeAtlas) -> None:
    desired(run_dir).with_suffix(".new").mkdir(parents=True)  # as an unwritable disk, for root too
    with Supervisord(run_dir, {"web": SLEEP}):
        reason = done(atlas, atlas.send(DisableProcess(name="web")))
        assert reason.startswith("it holds until supervisord ends, as it cannot be kept in ")
        assert not atlas.row("web", "STOPPED").enabled
        assert atlas.counts()["desired_not_kept"] == 1


# -- failures forgotten --------------------------------------------------------------------------------------


def test_what_was_given_up_is_stopped_when_its_failures_are_forgotten(run_dir: Path, atlas: FakeAtlas) -> None:
    program = {"command": python(run_dir, "bad", "sys.exit(4)"), "type": "notify", "restart_budget": "1"}
    with Supervisord(run_dir, {"bad": program}) as fleet:
        row = atlas.row("bad", "FATAL")
        done(atlas, atlas.send(ForgetFailures(name="bad")))
        after = atlas.row("bad", "STOPPED")
        assert after.reason.endswith("its failures are forgotten, by tester"), after.reason
        assert after.restarts == row.restarts
        assert fleet.states() == {"bad": "STOPPED"}


# -- maintenance ---------------------------------------------------------------------------------------------


def test_what_is_in_maintenance_is_not_killed_but_started_again(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": beating(run_dir, "web"), "other": beating(run_dir, "other")}) as fleet:
        pid, other = atlas.row("web", "RUNNING").pid or 0, atlas.row("other", "RUNNING").pid or 0
        done(atlas, atlas.send(SetMaintenance(name="web", on=True)))
        shown(atlas, "web", maintenance=True, reason="maintenance by tester")
        os.kill(pid, signal.SIGSTOP)
        os.kill(other, signal.SIGSTOP)
        until(lambda: atlas.row("other", "RUNNING").pid != other, what="the other is judged")
        until(lambda: "not killed for: stopped by a signal" in atlas.row("web").reason, what="noted")
        assert atlas.row("web").pid == pid
        assert fleet.log().count("'web' is in maintenance, and not killed: stopped by a signal (state T)") == 1
        os.kill(pid, signal.SIGKILL)
        until(lambda: atlas.row("web", "RUNNING").pid not in (None, pid), what="started again")
        assert "in maintenance" in read(run_dir / "postmortems", "web")[-1].spared
        again = atlas.row("web", "RUNNING").pid or 0
        os.kill(again, signal.SIGSTOP)
        done(atlas, atlas.send(SetMaintenance(name="web", on=False)))
        until(lambda: atlas.row("web", "RUNNING").pid not in (None, again), what="judged again")


def test_maintenance_ends_by_itself_and_outlives_supervisord(run_dir: Path, atlas: FakeAtlas) -> None:
    fleet = Supervisord(run_dir, {"web": beating(run_dir, "web"), "slow": {**SLEEP, "type": "notify", "ready_s": "1"}})
    with fleet:
        done(atlas, atlas.send(SetMaintenance(name="web", on=True, for_s=4.0)))
        done(atlas, atlas.send(SetMaintenance(name="slow", on=True)))
    with fleet:
        until(lambda: atlas.rows() and atlas.statuses[-1].incarnation == 2, what="the next supervisord")
        pid, slow = atlas.row("web", "RUNNING").pid or 0, atlas.row("slow", "STARTING").pid
        assert "maintenance by tester" in atlas.row("slow").reason
        os.kill(pid, signal.SIGSTOP)
        until(lambda: atlas.row("web", "RUNNING").pid not in (None, pid), what="its time is over")
        assert not atlas.row("web").maintenance
        until(lambda: "not killed for: not ready within 1 s" in atlas.row("slow").reason, what="noted")
        assert atlas.row("slow").pid == slow
        done(atlas, atlas.send(SetMaintenance(name="slow", on=False), incarnation=2))
        until(lambda: atlas.row("slow").pid != slow, what="its time to get ready has begun anew, and is over")
        for for_s in (-1.0, 0.0, float("nan"), 1e12):
            outcome = atlas.outcome(atlas.send(SetMaintenance(name="web", on=True, for_s=for_s)))
            assert outcome.kind is OutcomeKind.REJECTED
            assert outcome.reason.startswith("cannot keep web in maintenance for ")


# -- restarts held -------------------------------------------------------------------------------------------


def test_a_held_restart_waits_and_says_why_until_it_is_released(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": SLEEP}) as fleet:
        pid = atlas.row("web", "RUNNING").pid or 0
        done(atlas, atlas.send(HoldRestarts(name="web", for_s=1000.0, reason="db, which it depends on, is down")))
        assert atlas.row("web", "RUNNING").pid == pid
        os.kill(pid, signal.SIGKILL)
        row = atlas.row("web", "BACKOFF")
        assert row.reason.startswith("held by tester: db, which it depends on, is down; next try at ")
        assert row.next_try_s is not None
        assert 0 < row.next_try_s <= 60
        assert "held by tester" in fleet.ctl("status").stdout
        done(atlas, atlas.send(HoldRestarts(name="web", for_s=0.0, reason="")))
        again = atlas.row("web", "RUNNING").pid or 0
        done(atlas, atlas.send(HoldRestarts(name="web", for_s=60.0, reason="a storm")))
        os.kill(again, signal.SIGKILL)
        atlas.row("web", "BACKOFF")
        done(atlas, atlas.send(StartProcess(name="web")))  # an operator's is not held
        done(atlas, atlas.send(HoldRestarts(name="web", for_s=60.0, reason="a storm")))
        os.kill(atlas.row("web", "RUNNING").pid or 0, signal.SIGKILL)
        atlas.row("web", "BACKOFF")
        done(atlas, atlas.send(HoldRestarts(name="web", for_s=0.3, reason="a breeze")))
        atlas.row("web", "RUNNING")


def test_a_hold_reaches_what_waits_already_and_a_release_gives_back_the_policys_wait(
    run_dir: Path, atlas: FakeAtlas
) -> None:
    program = {"command": python(run_dir, "bad", "sys.exit(4)"), "type": "notify", "restart_budget": "50"}
    with Supervisord(run_dir, {"bad": program}):
        until(lambda: (atlas.row("bad").next_try_s or 0) > 3, what="a long wait", every_s=0.05)
        done(atlas, atlas.send(HoldRestarts(name="bad", for_s=60.0, reason="a storm")))
        until(lambda: atlas.row("bad").reason.startswith("held by tester: a storm; next try at "), what="held")
        done(atlas, atlas.send(HoldRestarts(name="bad", for_s=0.0, reason="")))
        until(lambda: atlas.row("bad").reason.startswith("backing off: exit 4, "), what="released")
        outcome = atlas.outcome(atlas.send(HoldRestarts(name="bad", for_s=-1.0, reason="?")))
        assert outcome.kind is OutcomeKind.REJECTED
        done(atlas, atlas.send(StopProcess(name="bad")))
