"""Further instances of a program, in a real supervisord: made, kept, made anew, and gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.messages import (
    DisableProcess,
    OutcomeKind,
    ProcessState,
    ScaleProcess,
    StopProcess,
)
from cdn_daemon.warden.orders import Ended, Scaling, Standing, StartOne, Wait, next_scaling
from tests.support import Supervisord, until
from tests.warden.programs import FakeAtlas, python, rpc

SAYS = (
    'print(os.environ["CDN_INSTANCE"], os.environ["CDN_PORT"], os.environ["SUPERVISOR_PROCESS_NAME"], flush=True)\n'
    'tell("READY=1")\n'
    "time.sleep(1000)"
)


def says(run_dir: Path, **more: str) -> dict[str, str]:
    """A program that logs who it is told to be."""
    environment = 'CDN_INSTANCE="web",CDN_PORT="1234"'
    command = python(run_dir, "says", SAYS, notifies=True)
    return {"command": command, "type": "notify", "environment": environment, **more}


def scaled(atlas: FakeAtlas, name: str, instances: int) -> None:
    """Scale it, and wait until that is done."""
    outcome = atlas.outcome(atlas.send(ScaleProcess(name=name, instances=instances)))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.DONE, "")


def test_instances_are_made_and_gone_again(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": says(run_dir), "other": {"command": "sleep 1000"}}) as fleet:
        first = atlas.row("web", "RUNNING").pid
        scaled(atlas, "web", 3)
        assert fleet.states() == dict.fromkeys(("web", "web-2", "web-3", "other"), "RUNNING")
        assert [atlas.row(name).program for name in ("web", "web-2", "web-3")] == [None, "web", "web"]
        assert fleet.log("web-2").splitlines() == ["web-2 0 web-2"]
        assert fleet.log("web").splitlines() == ["web 1234 web"]
        assert (atlas.row("web-3").log or "").endswith("/web-3.log")
        second = atlas.row("web-2", "RUNNING").pid
        scaled(atlas, "web", 2)
        assert fleet.states() == dict.fromkeys(("web", "web-2", "other"), "RUNNING")
        scaled(atlas, "web", 2)
        assert (atlas.row("web").pid, atlas.row("web-2").pid) == (first, second)
        scaled(atlas, "web", 1)
        assert fleet.states() == dict.fromkeys(("web", "other"), "RUNNING")
        assert atlas.row("web").pid == first
        until(lambda: "web-2" not in atlas.rows(), what="gone from the table")


def test_one_that_is_wanted_again_while_it_drains_is_made_anew(run_dir: Path, atlas: FakeAtlas) -> None:
    gate = run_dir / "gate"
    drains = "import signal\ndef end(*_):\n while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n sys.exit()\n"
    body = drains + "signal.signal(signal.SIGTERM, end)\ntell('READY=1')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "web", body, notifies=True) + f" {gate}", "type": "notify"}
    with Supervisord(run_dir, {"web": program}) as fleet:
        scaled(atlas, "web", 2)
        first = atlas.row("web-2", "RUNNING").pid
        rpc(fleet, "scaleProcess", "web", 1)
        atlas.row("web-2", "STOPPING")
        rpc(fleet, "scaleProcess", "web", 2)
        gate.touch()
        until(lambda: atlas.row("web-2", "RUNNING").pid != first, what="made anew")


def test_instances_outlive_supervisord_and_come_with_what_is_wanted_of_them(run_dir: Path, atlas: FakeAtlas) -> None:
    fleet = Supervisord(run_dir, {"web": says(run_dir, depends_on="base"), "base": {"command": "sleep 1000"}})
    with fleet:
        scaled(atlas, "web", 3)
        assert atlas.outcome(atlas.send(DisableProcess(name="web-2"))).kind is OutcomeKind.DONE
        assert atlas.row("web-3").depends_on == ("base",)
    with fleet:
        until(lambda: atlas.rows() and atlas.statuses[-1].incarnation == 2, what="the next supervisord")
        assert atlas.row("web-3", "RUNNING").program == "web"
        assert atlas.row("web-2", "STOPPED").enabled is False
        fleet.ctl("reload")
        until(lambda: atlas.rows() and atlas.statuses[-1].incarnation == 3, what="reloaded")
        atlas.row("web-3", "RUNNING")


def test_instances_outlive_update_and_follow_their_program(run_dir: Path, atlas: FakeAtlas) -> None:
    programs = {"web": says(run_dir), "gone": says(run_dir), "other": {"command": "sleep 1000"}}
    fleet = Supervisord(run_dir, programs)
    with fleet:
        scaled(atlas, "web", 2)
        scaled(atlas, "gone", 2)
        pids = {name: atlas.row(name, "RUNNING").pid for name in ("web", "web-2", "gone-2")}
        assert fleet.ctl("update").stdout == ""
        assert {name: atlas.row(name).pid for name in pids} == pids
        changed = says(run_dir, environment='CDN_INSTANCE="web",CDN_PORT="4321",MORE="1"')
        fleet.conf.write_text(Supervisord(run_dir, {"web": changed, "other": programs["other"]}).conf.read_text())
        update = fleet.ctl("update")
        assert "gone: removed process group" in update.stdout
        assert "web: updated process group" in update.stdout
        assert "web-2" not in update.stdout
        until(lambda: not {"gone", "gone-2"} & set(atlas.rows()), what="gone")
        until(lambda: atlas.row("web-2", "RUNNING").pid not in (None, pids["web-2"]), what="made anew")
        assert atlas.row("web", "RUNNING").pid != pids["web"]
        assert fleet.states() == dict.fromkeys(("web", "web-2", "other"), "RUNNING")


def test_supervisord_conf_may_come_to_have_a_program_of_an_instances_name(run_dir: Path, atlas: FakeAtlas) -> None:
    fleet = Supervisord(run_dir, {"web": says(run_dir)})
    with fleet:
        scaled(atlas, "web", 2)
        programs = {"web": says(run_dir), "web-2": {"command": "sleep 1000"}}
        fleet.conf.write_text(Supervisord(run_dir, programs).conf.read_text())
        assert fleet.ctl("update").stdout == "web-2: stopped\nweb-2: updated process group\n"
        until(lambda: atlas.row("web-2", "RUNNING").program is None, what="it is its own")
        assert "cannot scale web as it was: there is another program web-2" in fleet.log()
        scaled(atlas, "web", 1)
        assert fleet.states() == {"web": "RUNNING", "web-2": "RUNNING"}


def test_one_that_is_removed_by_hand_is_made_again(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": says(run_dir)}) as fleet:
        scaled(atlas, "web", 2)
        pid = atlas.row("web-2", "RUNNING").pid
        fleet.ctl("stop", "web-2")
        fleet.ctl("remove", "web-2")
        until(lambda: atlas.row("web-2", "RUNNING").pid != pid, what="made again")


def test_what_is_not_to_be_started_by_itself_is_started_by_scaling_it(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": says(run_dir, autostart="false")}) as fleet:
        scaled(atlas, "web", 3)
        assert fleet.states() == dict.fromkeys(("web", "web-2", "web-3"), "RUNNING")
        assert atlas.outcome(atlas.send(StopProcess(name="web-2"))).kind is OutcomeKind.DONE
        scaled(atlas, "web", 1)
        assert fleet.states() == {"web": "RUNNING"}


def test_an_instance_that_cannot_start_fails_the_order_with_its_reason(run_dir: Path, atlas: FakeAtlas) -> None:
    body = 'if os.environ["SUPERVISOR_PROCESS_NAME"] != "web": sys.exit(4)\ntell("READY=1")\ntime.sleep(1000)'
    command = python(run_dir, "web", body, notifies=True)
    with Supervisord(run_dir, {"web": {"command": command, "type": "notify", "restart_budget": "2"}}) as fleet:
        outcome = atlas.outcome(atlas.send(ScaleProcess(name="web", instances=2)))
        assert outcome.kind is OutcomeKind.FAILED
        assert outcome.reason == "web-2: quarantined: 2 starts in 60 s, last: exit 4"
        scaled(atlas, "web", 1)
        assert fleet.states() == {"web": "RUNNING"}


def test_one_removed_before_it_was_ever_started_leaves_nothing_behind(run_dir: Path, atlas: FakeAtlas) -> None:
    """Its process object is asked once more after it was removed; it must not be started then."""
    programs = {"web": says(run_dir, depends_on="never"), "never": {"command": "sleep 1000", "autostart": "false"}}
    with Supervisord(run_dir, programs) as fleet:
        slow = atlas.send(ScaleProcess(name="web", instances=3), timeout_s=0.2)
        assert atlas.outcome(slow).kind is OutcomeKind.FAILED
        assert atlas.outcome(atlas.send(StopProcess(name="web"))).kind is OutcomeKind.DONE
        outcome = atlas.outcome(atlas.send(ScaleProcess(name="web", instances=1), timeout_s=1.0))
        assert outcome.kind is OutcomeKind.FAILED
        assert outcome.reason.startswith("not 1 in time; web STOPPED: ")
        until(lambda: set(atlas.rows()) == {"web", "never"}, what="gone")
        assert "spawned: 'web-2'" not in fleet.log()
        assert "spawned: 'web-3'" not in fleet.log()


@pytest.mark.parametrize(
    ("name", "instances", "why"),
    [
        ("web", 0, "cannot scale web to 0: it must be 1 to 64"),
        ("web", 65, "cannot scale web to 65: it must be 1 to 64"),
        ("many:many_0", 2, "cannot scale many:many_0 to 2: its group many has 2 processes: set its numprocs"),
        (
            "team:member",
            2,
            "cannot scale team:member to 2: it is a process of the group team: only a program by itself can be scaled",
        ),
        ("taken", 2, "cannot scale taken to 2: there is another program taken-2"),
        ("web-2", 2, "cannot scale web-2 to 2: it is an instance of web: scale that"),
        (
            "atlas",
            2,
            "cannot scale atlas to 2: there is one ATLAS in a run directory: "
            "the second would not start, or keep the first from it",
        ),
        ("nobody", 2, "supervisord has no process nobody"),
    ],
)
def test_what_cannot_be_scaled_is_refused(fleet: FakeAtlas, name: str, instances: int, why: str) -> None:
    outcome = fleet.outcome(fleet.send(ScaleProcess(name=name, instances=instances)))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.REJECTED, why)


@pytest.fixture
def fleet(run_dir: Path, atlas: FakeAtlas) -> Iterator[FakeAtlas]:
    sleep = {"command": "sleep 1000"}
    many = {**sleep, "numprocs": "2", "process_name": "%(program_name)s_%(process_num)d"}
    programs = {"web": sleep, "many": many, "member": sleep, "taken": sleep, "taken-2": sleep}
    programs["atlas"] = {"command": "python -m services.atlas", "autostart": "false"}
    supervisord = Supervisord(run_dir, programs)
    with supervisord.conf.open("a") as conf:
        conf.write("[group:team]\nprograms=member\n")
    with supervisord:
        scaled(atlas, "web", 2)
        yield atlas


def test_what_is_disabled_is_not_scaled_up(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": says(run_dir)}):
        scaled(atlas, "web", 2)
        atlas.outcome(atlas.send(DisableProcess(name="web")))
        outcome = atlas.outcome(atlas.send(ScaleProcess(name="web", instances=3)))
        assert outcome.kind is OutcomeKind.REJECTED
        assert outcome.reason.startswith("cannot scale web to 3: disabled by tester at ")
        scaled(atlas, "web", 1)
        assert atlas.row("web", "STOPPED").enabled is False


# -- the pure part -----------------------------------------------------------------------------------------

TWO = Scaling(id="1", asked_by="me", names=("web", "web-2"), deadline_s=100.0, note="noted")
STARTED = Scaling(id="1", asked_by="me", names=("web", "web-2"), deadline_s=100.0, started=frozenset({"web-2"}))
UP = Standing(ProcessState.RUNNING, False, "")
DOWN = Standing(ProcessState.STOPPED, False, "not started")
DISABLED = Standing(ProcessState.STOPPED, False, "disabled", disabled=True)
FATAL = Standing(ProcessState.FATAL, False, "exit 3")
BACK = Standing(ProcessState.BACKOFF, True, "backing off")


@pytest.mark.parametrize(
    ("order", "there", "now_s", "move"),
    [
        (TWO, {"web": UP, "web-2": UP}, 0.0, Ended(OutcomeKind.DONE, "noted")),
        (TWO, {"web": UP}, 0.0, Wait()),
        (
            TWO,
            {"web": UP, "web-2": DOWN},
            0.0,
            StartOne("web-2", Scaling("1", "me", TWO.names, 100.0, STARTED.started, "noted")),
        ),
        (STARTED, {"web": UP, "web-2": FATAL}, 0.0, Ended(OutcomeKind.FAILED, "web-2: exit 3")),
        (STARTED, {"web": UP, "web-2": BACK}, 0.0, Wait()),
        (TWO, {"web": UP, "web-2": DISABLED}, 0.0, Ended(OutcomeKind.DONE, "noted")),
        (TWO, {"web": UP, "web-2": UP, "web-3": UP}, 0.0, Wait()),
        (
            STARTED,
            {"web": UP, "web-2": BACK},
            100.0,
            Ended(OutcomeKind.FAILED, "not 2 in time; web-2 BACKOFF: backing off"),
        ),
        (TWO, {"web": UP}, 100.0, Ended(OutcomeKind.FAILED, "not 2 in time; web-2 is not there yet")),
        (TWO, {"web": UP, "web-2": UP}, 100.0, Ended(OutcomeKind.DONE, "noted")),
    ],
)
def test_next_scaling(order: Scaling, there: dict[str, Standing], now_s: float, move: object) -> None:
    assert next_scaling(order, there, now_s) == move
