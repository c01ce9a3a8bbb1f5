"""ATLAS holds restarts that cannot help, says why, releases them, and else does nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import (
    FleetReply,
    FleetRequest,
    NodeStatus,
    OodaMode,
    OrderOutcome,
    OrderRequest,
    OutcomeKind,
    ProcessRow,
    ProcessState,
    ServiceView,
    Verb,
)
from bus.operators import OperatorLink
from cdn_daemon.ooda import OodaLoop
from services.atlas.ooda import FOR_DEPENDENCY_S, FleetLoop, Hold, Wanted, has_failed
from tests.support import Supervisord, until

CRASHED, ASKED, KILLED = 3 << 8, 75 << 8, 9
RUNNING, BACKOFF, STOPPED = ProcessState.RUNNING, ProcessState.BACKOFF, ProcessState.STOPPED


class World:
    """One host's process table, a clock, and what the loop has had held."""

    def __init__(self, many: int = 4) -> None:
        self.now_s = 100.0
        self.seq = 0
        self.pids = iter(range(1000, 100_000))
        self.rows = {"db": ProcessRow(name="db", state=RUNNING, pid=next(self.pids))}
        for number in range(many):
            name = f"web-{number}"
            self.rows[name] = ProcessRow(name=name, state=RUNNING, pid=next(self.pids), depends_on=("db",))
        self.commanded: frozenset[str] = frozenset()
        self.held: list[Hold] = []
        self.told_anew: list[str] = []
        self.loop = FleetLoop(self, clock=lambda: self.now_s)
        self.table = self._table()
        self.run(1.0)

    # Switches

    def tables(self) -> tuple[NodeStatus, ...]:
        return (self.table,)

    def ordered(self, within_s: float) -> frozenset[str]:
        return self.commanded

    def hold(self, name: str, for_s: float, reason: str, *, renewed: bool) -> None:
        self.held.append(Hold(name, for_s, reason))
        if not renewed:
            self.told_anew.append(name)

    # what happens

    def _table(self) -> NodeStatus:
        self.seq += 1
        return NodeStatus(
            host="h1",
            incarnation=1,
            seq=self.seq,
            pid=9,
            time_s=0.0,
            monotonic_s=0.0,
            processes=tuple(self.rows.values()),
        )

    def becomes(self, name: str, state: ProcessState, wait_status: int | None = CRASHED, restarts: int = 0) -> None:
        """A service is in another state; RUNNING is with another process."""
        self.rows[name] = ProcessRow(
            name=name,
            state=state,
            pid=next(self.pids) if state is RUNNING else None,
            wait_status=wait_status,
            restarts=restarts,
            depends_on=self.rows[name].depends_on,
        )

    def run(self, for_s: float) -> None:
        """The wardens report every second, the loop is stepped ten times a second, and its work done at once."""
        for turn in range(round(for_s * 10)):
            self.now_s += 0.1
            if turn % 5 == 0:
                self.table = self._table()
            work = self.loop.step(self.now_s)
            if work is not None:
                work.run()
                self.loop.finished(self.now_s, None)

    def holding(self) -> dict[str, str]:
        """Who is held now, and why."""
        now: dict[str, str] = {}
        for hold in self.held:
            now.pop(hold.name, None)
            if hold.for_s:
                now[hold.name] = hold.reason
        return now


def test_names_that_are_gone_are_forgotten() -> None:
    """A thousand programs that came and went cost nothing, and nothing is concluded from their going."""
    world = World()
    for number in range(1000):
        name = f"job-{number}"
        world.rows[name] = ProcessRow(name=name, state=RUNNING, pid=next(world.pids))
        world.run(0.1)
        world.becomes(name, BACKOFF)
        world.run(0.1)
        del world.rows[name]
    world.run(1.0)
    assert world.loop.remembered <= 10
    assert world.holding() == {}


def test_it_is_a_loop_like_any_other() -> None:
    """Stepped by the daemon, shown by GET /ooda, switched by the same command."""
    assert issubclass(FleetLoop, OodaLoop)


def test_a_dependency_is_down() -> None:
    """Who fails meanwhile waits for it, the others are left alone; renewed while it lasts, released when it is over."""
    world = World()
    world.becomes("db", BACKOFF)
    world.becomes("web-0", BACKOFF)
    world.becomes("web-1", RUNNING)
    world.run(2.0)
    reason = "db, which it depends on, is down"
    assert world.holding() == {"web-0": reason, "web-1": reason}
    world.becomes("web-1", BACKOFF)
    world.run(60.0)
    assert world.holding() == {"web-0": reason, "web-1": reason}
    times = [hold for hold in world.held if hold.name == "web-0"]
    assert {hold.for_s for hold in times} == {FOR_DEPENDENCY_S}
    assert world.told_anew.count("web-0") == 1
    assert len(times) <= 1 + 60 / (FOR_DEPENDENCY_S / 2)
    world.becomes("db", RUNNING)
    world.run(2.0)
    assert world.holding() == {}


def test_many_of_a_host_fail() -> None:
    """Three, and at least half of what is meant to be up: those are held, with the count; released when it is over."""
    world = World(many=5)
    for name in ("web-0", "web-1", "web-2"):
        world.becomes(name, RUNNING)
    world.run(2.0)
    assert world.holding() == dict.fromkeys(("web-0", "web-1", "web-2"), "3 of 6 on h1 failed within 5 s")
    world.run(10.0)
    assert world.holding() == {}


@pytest.mark.parametrize("many", [1, 2])
def test_a_lone_crash(many: int) -> None:
    """One, or two, of many: the warden starts them again, and that is all."""
    world = World(many=6)
    for number in range(many):
        world.becomes(f"web-{number}", RUNNING, KILLED)
    world.run(10.0)
    assert world.held == []


def test_few_of_a_large_host() -> None:
    """Three of twenty is not the host's fault."""
    world = World(many=19)
    for number in range(3):
        world.becomes(f"web-{number}", RUNNING, KILLED)
    world.run(10.0)
    assert world.held == []


def test_one_fails_again_and_again() -> None:
    """Its dependency is well: the warden's own backoff is for that."""
    world = World()
    for _ in range(10):
        world.becomes("web-0", BACKOFF)
        world.run(1.0)
        world.becomes("web-0", RUNNING)
        world.run(1.0)
    assert world.held == []


def test_a_rolling_restart() -> None:
    """All are replaced, one after the other: by exit 75, or killed at their grace while a command is about them."""
    world = World()
    for number in range(4):
        world.becomes(f"web-{number}", RUNNING, ASKED)
        world.run(0.5)
    world.commanded = frozenset(world.rows)
    for name in world.rows:
        world.becomes(name, RUNNING, KILLED)
        world.run(0.5)
    assert world.held == []


def test_an_operator_stops_them() -> None:
    """Whatever signal they end by."""
    world = World()
    for name in world.rows:
        world.becomes(name, STOPPED, KILLED)
    world.run(10.0)
    assert world.held == []


def test_a_dependency_is_replaced_at_once() -> None:
    """It crashed and is back before anybody has failed by it."""
    world = World()
    world.becomes("db", RUNNING, KILLED)
    world.run(10.0)
    assert world.held == []


@pytest.mark.parametrize("mode", [OodaMode.OFF, OodaMode.SHADOW])
def test_modes(mode: OodaMode) -> None:
    """off: nothing; shadow: what it would do is in its cycles, and nobody is told."""
    world = World()
    world.loop.mode = mode
    world.becomes("db", BACKOFF)
    world.becomes("web-0", BACKOFF)
    world.run(2.0)
    assert world.held == []
    assert any(cycle.decision for cycle in world.loop.cycles) is (mode is OodaMode.SHADOW)


def test_a_hold_that_does_not_help() -> None:
    """Its warden starts it all the same: released, and not tried again soon."""
    world = World()
    world.becomes("db", BACKOFF)
    world.becomes("web-0", BACKOFF)
    world.run(0.6)
    for restarts in range(1, 60):
        world.becomes("web-0", BACKOFF, restarts=restarts)
        world.run(0.5)
    assert world.loop.undone == 1
    assert world.holding() == {}


def test_atlas_itself_is_never_held() -> None:
    """Who would release it?"""
    world = World()
    world.rows["atlas"] = ProcessRow(name="atlas", state=RUNNING, pid=1, depends_on=("db",))
    world.run(1.0)
    world.becomes("db", BACKOFF)
    world.becomes("atlas", RUNNING)
    world.run(5.0)
    assert world.held == []


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from([RUNNING, BACKOFF, STOPPED, ProcessState.STARTING, ProcessState.FATAL]),
            st.sampled_from([CRASHED, ASKED, KILLED, 0, None]),
        ),
        max_size=20,
    )
)
def test_any_history(happenings: list[tuple[int, ProcessState, int | None]]) -> None:
    """When all is well again, nobody is held; and nobody was ever held for longer than half a minute at once."""
    world = World()
    names = list(world.rows)
    for which, state, wait_status in happenings:
        world.becomes(names[which], state, wait_status)
        world.run(0.7)
    for name in names:
        world.becomes(name, RUNNING, 0)
    world.run(15.0)
    assert world.holding() == {}
    assert all(hold.for_s <= FOR_DEPENDENCY_S for hold in world.held)


@pytest.mark.parametrize(
    ("before", "now", "failed"),
    [
        ({"pid": 1}, {"pid": 2, "wait_status": CRASHED}, True),
        ({"pid": 1}, {"state": BACKOFF, "wait_status": KILLED}, True),
        ({"state": BACKOFF, "restarts": 1}, {"state": BACKOFF, "restarts": 2, "wait_status": CRASHED}, True),
        ({"pid": 1}, {"pid": 1, "wait_status": CRASHED}, False),
        ({"pid": 1}, {"pid": 2, "wait_status": ASKED}, False),
        ({"pid": 1}, {"pid": 2, "wait_status": 0}, False),
        ({"pid": 1}, {"state": STOPPED, "wait_status": KILLED}, False),
        ({"pid": 1, "state": ProcessState.STOPPING}, {"pid": 2, "wait_status": KILLED}, False),
        ({"state": BACKOFF}, {"pid": 2, "wait_status": CRASHED}, False),
    ],
)
def test_has_failed(before: dict[str, Any], now: dict[str, Any], failed: bool) -> None:
    """An end that nobody asked for."""
    rows = [ProcessRow(name="web", **{"state": RUNNING, **changes}) for changes in (before, now)]
    assert has_failed(rows[0], rows[1]) is failed


def test_decide_is_pure() -> None:
    """The same picture, the same decision; what is as wanted is left alone."""
    picture = Wanted(
        at_s=0.0,
        holds={"a": (30.0, "x"), "b": (30.0, "y")},
        holding={"a": ("x", 20.0), "b": ("y", 10.0), "c": ("z", 10.0)},
        failed_again=(),
    )
    loop = FleetLoop(World())
    assert loop.decide(picture) == loop.decide(picture) == (Hold("b", 30.0, "y"), Hold("c", 0.0, "z"))


FLEET = {
    "atlas": {"command": "python -m services.atlas"},
    "tiny": {"command": "python -m tests.cdn_daemon.tiny", "type": "notify"},
    "web": {
        "command": "sh -c 'test -e {run}/broken && exit 3; exec sleep 1000'",
        "type": "simple",
        "depends_on": "tiny",
        "restart_budget": "50",
        "stopasgroup": "true",
        "killasgroup": "true",
    },
}


def test_for_real(run_path: Path, run_dir: RunDir) -> None:
    """Its dependency is stopped, and it cannot do without: BACKOFF, held by atlas, until that is there again."""
    fleet = {
        name: {key: value.format(run=run_path) for key, value in options.items()} for name, options in FLEET.items()
    }
    with Supervisord(run_path, fleet, env={"CDN_PORT": "0"}) as supervisord:
        link = OperatorLink(run_dir.operators)

        def views() -> dict[str, ServiceView]:
            request = FleetRequest(id=new_id())
            link.request(request, timeout_s=30)
            reply = next(link.replies(request.id, timeout_s=30))
            assert isinstance(reply, FleetReply)
            return {each.instance: each for each in reply.services}

        def order(verb: Verb, name: str) -> OutcomeKind:
            request = OrderRequest(id=new_id(), verb=verb, names=(name,), timeout_s=60, asked_by="test")
            link.request(request, timeout_s=30)
            replies = link.replies(request.id, timeout_s=90)
            return next(reply.kind for reply in replies if isinstance(reply, OrderOutcome))

        def all_run() -> bool:
            shown = views()
            return shown.keys() == fleet.keys() and {view.state for view in shown.values()} == {RUNNING}

        until(all_run)
        assert order(Verb.STOP, "tiny") is OutcomeKind.DONE
        (run_path / "broken").touch()
        supervisord.ctl("signal", "KILL", "web")
        until(lambda: views()["web"].reason.startswith("held by atlas: tiny, which it depends on, is down"))
        assert views()["web"].state == BACKOFF
        (run_path / "broken").unlink()
        assert order(Verb.START, "tiny") is OutcomeKind.DONE
        until(lambda: views()["web"].state == RUNNING, within_s=25.0)  # a hold that nobody released takes 30 s
        link.close()
