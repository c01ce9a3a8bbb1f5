"""What ATLAS makes of what it hears, and what it never concludes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.codec import Decoder, encode
from bus.messages import (
    DaemonStatus,
    FleetReply,
    HealthStatus,
    LifecyclePhase,
    NodeStatus,
    OperatorReply,
    ProcessRow,
    ProcessState,
    Telemetry,
)
from services.atlas.fleet import FORGOTTEN_S, UNREACHABLE_S, Fleet, Happening, Refused, is_newer
from tests.bus.samples import STATUS


def status(incarnation: int = 1, seq: int = 1, **changes: Any) -> DaemonStatus:
    """A healthy, serving web-1."""
    plain: dict[str, Any] = {
        "service": "web",
        "instance": "web-1",
        "host": "h1",
        "pid": 1000 + incarnation,
        "phase": LifecyclePhase.SERVING,
        "health": HealthStatus.HEALTHY,
        "reasons": (),
        "uptime_s": 1.0,
    }
    return replace(STATUS, incarnation=incarnation, seq=seq, **(plain | changes))


def node(seq: int = 1, incarnation: int = 1, host: str = "h1", **rows: ProcessRow) -> NodeStatus:
    """A warden's table."""
    return NodeStatus(
        host=host,
        incarnation=incarnation,
        seq=seq,
        pid=9,
        time_s=0.0,
        monotonic_s=0.0,
        processes=tuple(rows.values()),
    )


def row(state: ProcessState = ProcessState.RUNNING, name: str = "web-1", **changes: Any) -> ProcessRow:
    """A row of that table."""
    return ProcessRow(name=name, state=state, **changes)


def kinds(happenings: Sequence[Happening]) -> list[str]:
    """Of the happenings."""
    return [happening.kind for happening in happenings]


@pytest.mark.parametrize(
    ("held", "new", "newer"),
    [
        ((5, 7, 0.0), (5, 8), True),
        ((5, 7, 0.0), (5, 7), False),
        ((5, 7, 0.0), (5, 6), False),
        ((5, 7, 0.0), (6, 1), True),
        ((5, 7, 0.0), (4, 99), False),
        ((5, 7, -UNREACHABLE_S - 1), (1, 1), True),
        ((5, 7, -UNREACHABLE_S - 1), (5, 7), False),
    ],
)
def test_is_newer(held: tuple[int, int, float], new: tuple[int, int], newer: bool) -> None:
    """By seq within an incarnation, by incarnation otherwise, unless the held one has fallen silent."""
    assert is_newer(held, new, 0.0) is newer


def test_a_reason_is_told_once() -> None:
    """The warden has it from the daemon, which says it too."""
    fleet = Fleet()
    fleet.hear(status(reasons=("not ready: warming up", "store is slow")), 0.0)
    fleet.hear_node(
        node(a=row(ProcessState.STARTING, pid=1001, uptime_s=1.0, reason="not ready yet: not ready: warming up")), 0.0
    )
    seen = fleet.view("web-1", 0.0)
    assert seen is not None
    assert seen.reason == "not ready yet: not ready: warming up; store is slow"


def test_a_life() -> None:
    """Appears, falls ill, heals, dies, starts anew: each is told once."""
    fleet = Fleet()
    assert kinds(fleet.hear(status(1, 1), 0.0)) == ["appeared"]
    assert kinds(fleet.hear(status(1, 2), 1.0)) == []
    ill = status(1, 3, health=HealthStatus.UNHEALTHY, reasons=("store is gone",))
    (happening,) = fleet.hear(ill, 2.0)
    assert (happening.kind, happening.text) == ("health", "healthy → unhealthy: store is gone")
    assert kinds(fleet.hear(status(1, 4), 3.0)) == ["health"]
    assert kinds(fleet.hear(status(2, 1), 4.0)) == ["restart"]
    assert kinds(fleet.tick(4.0 + UNREACHABLE_S)) == []
    assert kinds(fleet.tick(4.1 + UNREACHABLE_S)) == ["unreachable"]
    assert kinds(fleet.tick(5.0 + UNREACHABLE_S)) == []
    assert kinds(fleet.hear(status(2, 2), 10.0)) == ["reachable"]


@pytest.mark.parametrize(
    ("late", "cause"),
    [
        (status(2, 3), "old"),
        (status(2, 2), "old"),
        (status(1, 99), "old"),
        (status(2, 4, pid=77), "name_clash"),
        (status(2, 4, service="other"), "name_clash"),
        (status(3, 1, service="no/name"), "malformed"),
        (status(3, 1, host="elsewhere"), "name_clash"),
    ],
)
def test_refused(late: DaemonStatus, cause: str) -> None:
    """What is no news, and what claims another's name, changes nothing."""
    fleet = Fleet()
    fleet.hear(status(2, 3), 0.0)
    before = fleet.views(0.5)
    with pytest.raises(Refused) as refused:
        fleet.hear(late, 0.5)
    assert refused.value.cause == cause
    assert fleet.views(0.5) == before


@pytest.mark.parametrize("field", ["service", "instance", "host"])
@pytest.mark.parametrize("name", ["a/b", "web\n", ".hidden", "häst", " ", "../x", "a" * 128 + "\0"])
def test_what_is_no_name_is_not_followed(field: str, name: str) -> None:
    """It would become part of topics, file names and URLs."""
    fleet = Fleet()
    with pytest.raises(Refused) as refused:
        fleet.hear(replace(status(), **{field: name}), 0.0)
    assert refused.value.cause == "malformed"
    assert fleet.views(0.0) == ()


def test_invented_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are known are heard all the same."""
    monkeypatch.setattr("services.atlas.fleet.MAX_MEMBERS", 3)
    fleet = Fleet()
    for number in range(3):
        fleet.hear(status(instance=f"web-{number}"), 0.0)
    with pytest.raises(Refused) as refused:
        fleet.hear(status(instance="web-3"), 0.0)
    assert refused.value.cause == "too_many"
    assert fleet.hear(status(1, 2, instance="web-0"), 1.0) == ()
    monkeypatch.setattr("services.atlas.fleet.MAX_NODES", 1)
    fleet.hear_node(node(1), 0.0)
    with pytest.raises(Refused) as refused:
        fleet.hear_node(node(1, host="h2"), 0.0)
    assert refused.value.cause == "too_many"
    assert fleet.hear_node(node(2), 1.0) == []


@pytest.mark.parametrize("clock_s", [0.0, 1e9, 253_402_300_799.0])
def test_a_sender_whose_clock_is_wrong(clock_s: float) -> None:
    """Nothing is reckoned by it: what is said is as old as ATLAS's own clock says, and the next is news."""
    fleet = Fleet()
    fleet.hear(status(1, 1, time_s=clock_s, monotonic_s=clock_s), 10.0)
    fleet.hear(status(1, 2, time_s=0.0, monotonic_s=0.0), 11.0)
    (view,) = fleet.views(11.5)
    assert (view.seen_s, view.state) == (0.5, ProcessState.RUNNING)
    assert json.loads(msgspec.json.encode(view))["seen_s"] == 0.5


def test_a_clock_that_was_set_back() -> None:
    """supervisord then reckons that a process is younger than nothing; nobody is told so."""
    fleet = Fleet()
    fleet.hear_node(node(web=row(pid=1, uptime_s=-3600.0)), 0.0)
    (view,) = fleet.views(1.0)
    assert view.uptime_s == 0.0


def test_a_service_may_move() -> None:
    """Another host's claim is taken once the first has fallen silent."""
    fleet = Fleet()
    fleet.hear(status(2, 3), 0.0)
    fleet.hear(status(1, 1, host="h2"), UNREACHABLE_S + 1)
    assert fleet.members["web-1"].status.host == "h2"


def test_a_stopped_one_is_not_unreachable() -> None:
    """It said goodbye, and stays for as long as supervisord has it, even if that is silent."""
    fleet = Fleet()
    fleet.hear(status(1, 1), 0.0)
    fleet.hear_node(node(web=row(ProcessState.EXITED, pid=None)), 0.0)
    fleet.hear(status(1, 2, phase=LifecyclePhase.STOPPED), 0.0)
    assert [happening.instance for happening in fleet.tick(1000.0)] == ["warden@h1"]
    assert fleet.members.keys() == {"web-1"}


def test_one_run_by_hand_is_forgotten() -> None:
    """It said goodbye, and no supervisord has it: shown for a minute, as nobody could ever take it from the table."""
    fleet = Fleet()
    fleet.hear(status(1, 1), 0.0)
    fleet.hear(status(1, 2, phase=LifecyclePhase.STOPPED), 0.0)
    assert fleet.tick(FORGOTTEN_S) == []
    assert kinds(fleet.tick(FORGOTTEN_S + 1)) == ["removed"]
    assert fleet.views(FORGOTTEN_S + 1) == ()
    assert kinds(fleet.hear(status(2, 1), FORGOTTEN_S + 2)) == ["appeared"]


def test_atlas_was_away() -> None:
    """Silence while ATLAS itself slept proves nothing."""
    fleet = Fleet()
    fleet.hear(status(), 0.0)
    fleet.hear_node(node(web=row()), 0.0)
    fleet.restart_windows(60.0)
    assert fleet.tick(61.0) == []


def test_never_dead_on_hearsay() -> None:
    """Silence alone makes it unreachable, and its state unknown; only a warden's word makes it stopped."""
    fleet = Fleet()
    fleet.hear(status(), 0.0)
    fleet.tick(100.0)
    view = fleet.view("web-1", 100.0)
    assert view is not None
    assert (view.state, view.health) == (ProcessState.UNKNOWN, HealthStatus.UNKNOWN)
    assert view.reason == "unreachable: silent for 100.0 s"
    fleet.hear_node(node(web=row(ProcessState.RUNNING, pid=1001, uptime_s=101.0)), 100.0)
    view = fleet.view("web-1", 100.0)
    assert view is not None
    assert (view.state, view.health) == (ProcessState.RUNNING, HealthStatus.UNKNOWN)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (row(pid=1001, uptime_s=2.0, restarts=4), ("RUNNING", "healthy", 1001, 4, "")),
        (row(ProcessState.STARTING, pid=2002, uptime_s=0.1), ("STARTING", "unknown", 2002, 0, "")),
        (row(ProcessState.FATAL, reason="exit 3"), ("FATAL", "unknown", None, 0, "exit 3")),
        (row(ProcessState.STOPPED), ("STOPPED", "unknown", None, 0, "")),
        # a shell in between: the daemon is a child of the process that supervisord knows
        (row(pid=1000, uptime_s=2.0), ("RUNNING", "healthy", 1000, 0, "")),
    ],
)
def test_the_warden_has_the_state_and_the_daemon_the_health(process: ProcessRow, expected: tuple[Any, ...]) -> None:
    """A daemon's word counts for the process that runs now, not for the one before it."""
    fleet = Fleet()
    fleet.hear(status(uptime_s=1.0), 10.0)
    fleet.hear_node(node(web=process), 10.0)
    view = fleet.view("web-1", 10.0)
    assert view is not None
    assert (view.state, view.health, view.pid, view.restarts, view.reason) == expected


def test_a_plain_program() -> None:
    """One without a daemon is known by its warden alone; a group's prefix is not part of its name."""
    fleet = Fleet()
    fleet.hear_node(node(nginx=row(name="front:nginx", pid=5, uptime_s=3.0)), 0.0)
    (view,) = fleet.views(1.0)
    assert (view.instance, view.state, view.health, view.uptime_s) == ("nginx", "RUNNING", "unknown", 4.0)
    assert (view.phase, view.seen_s, view.incarnation) == (None, None, None)


def test_any_name_that_supervisor_allows() -> None:
    """One odd program does not hide the others."""
    fleet = Fleet()
    table = node(odd=row(name="we'ird$x&y"), plain=row(name="plain"))
    fleet.hear_node(Decoder[Any](Telemetry).decode(encode(table)), 0.0)
    names = [view.instance for view in fleet.views(0.0)]
    assert names == ["plain", "we'ird$x&y"]
    reply = FleetReply(id="r", services=fleet.views(0.0))
    assert Decoder[Any](OperatorReply).decode(encode(reply)) == reply


def test_a_silent_supervisord() -> None:
    """Its table is no longer believed; what the daemons say still is."""
    fleet = Fleet()
    fleet.hear_node(node(web=row(pid=1001, uptime_s=1.0), other=row(name="other")), 0.0)
    assert kinds(fleet.tick(UNREACHABLE_S + 1)) == ["unreachable"]
    fleet.hear(status(), UNREACHABLE_S + 1)
    other, web = fleet.views(UNREACHABLE_S + 1)
    assert (other.state, other.reason) == (ProcessState.UNKNOWN, "supervisord on h1 is silent for 4.0 s")
    assert (web.state, web.health) == (ProcessState.RUNNING, HealthStatus.HEALTHY)


def test_notes() -> None:
    """A warden that is silent, or that has survived errors, is for operators to know."""
    fleet = Fleet()
    fleet.hear_node(node(), 0.0)
    assert fleet.notes(0.0) == ()
    fleet.hear_node(replace(node(2), counts={"errors": 2}, last_error="tick: OSError: no"), 1.0)
    (note,) = fleet.notes(1.0)
    assert note == "the warden on h1 has survived 2 errors, the last in tick: OSError: no; see supervisord.log"
    fleet.tick(10.0)
    assert fleet.notes(10.0)[0] == "supervisord on h1 is silent for 9.0 s"


def test_states_of_the_table_are_told() -> None:
    """Each change of state of a known process, with its reason."""
    fleet = Fleet()
    assert fleet.hear_node(node(1, web=row()), 0.0) == []
    (happening,) = fleet.hear_node(node(2, web=row(ProcessState.BACKOFF, reason="exit 3")), 1.0)
    assert (happening.instance, happening.kind, happening.text) == ("web-1", "state", "BACKOFF: exit 3")
    with pytest.raises(Refused):
        fleet.hear_node(node(2, web=row()), 1.0)
    assert kinds(fleet.hear_node(node(1, 2, web=row()), 1.0)) == ["state"]


def test_what_supervisord_has_no_more_is_forgotten() -> None:
    """As the instances of a program that was scaled down; their last words, come late, do not bring them back."""
    fleet = Fleet()
    fleet.hear(status(), 0.0)
    fleet.hear_node(node(1, web=row(), other=row(name="web-2")), 0.0)
    assert kinds(fleet.hear_node(node(2, other=row(name="web-2")), 1.0)) == ["removed"]
    assert [view.instance for view in fleet.views(1.0)] == ["web-2"]
    assert fleet.hear(status(seq=2, phase=LifecyclePhase.STOPPED), 1.0) == []
    assert [view.instance for view in fleet.views(1.0)] == ["web-2"]
    assert kinds(fleet.hear(status(incarnation=2), 2.0)) == ["appeared"]


class Model:
    """The smallest thing that knows what the fleet should: the newest status heard, and when."""

    def __init__(self) -> None:
        self.newest: tuple[int, int] | None = None
        self.heard_s = 0.0


@given(
    st.lists(
        st.tuples(
            st.integers(1, 4),  # incarnation
            st.integers(1, 6),  # seq
            st.sampled_from(HealthStatus),
            st.floats(0.0, 1.0),  # seconds since the last message
        ),
        max_size=60,
    )
)
def test_any_history(messages: list[tuple[int, int, HealthStatus, float]]) -> None:
    """Lost, doubled and reordered messages: the newest heard wins, nothing goes back, nothing is unreachable."""
    fleet, model, now_s = Fleet(), Model(), 0.0
    for incarnation, seq, health, after_s in messages:
        now_s += after_s
        silent_s = now_s - model.heard_s
        message = status(incarnation, seq, health=health)
        is_news = model.newest is None or (incarnation, seq) > model.newest
        if is_news or (silent_s > UNREACHABLE_S and model.newest is not None and incarnation != model.newest[0]):
            fleet.hear(message, now_s)
            model.newest, model.heard_s = (incarnation, seq), now_s
            view = fleet.view("web-1", now_s)
            assert view is not None
            assert (view.incarnation, view.health) == (incarnation, health)
        else:
            with pytest.raises(Refused):
                fleet.hear(message, now_s)
        for happening in fleet.tick(now_s):
            assert happening.kind == "unreachable"
            assert now_s - model.heard_s > UNREACHABLE_S
    held = fleet.members.get("web-1")
    assert (held and (held.status.incarnation, held.status.seq)) == model.newest
