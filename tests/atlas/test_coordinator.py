"""Orders become commands, and every command has exactly one outcome."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import (
    Accepted,
    Band,
    DisableProcess,
    EnableProcess,
    ForgetFailures,
    HealthCheck,
    Hello,
    LifecyclePhase,
    Limits,
    OodaMode,
    OrderAccepted,
    OrderOutcome,
    OrderRequest,
    Outcome,
    OutcomeKind,
    ProcessState,
    Refusal,
    Restart,
    RestartProcess,
    Resume,
    ScaleProcess,
    SetLimits,
    SetLoopMode,
    SetMaintenance,
    Shed,
    SignalProcess,
    StartProcess,
    StopProcess,
    Verb,
)
from services.atlas.coordinator import ACCEPT_S, Action, CDNCoordinator, ToAgent, ToOperator
from services.atlas.fleet import Fleet
from tests.atlas.test_fleet import node, row, status

ME, DAEMON, WARDEN = b"operator", b"daemon", b"warden"


NEEDED: dict[Verb, dict[str, Any]] = {
    Verb.SIGNAL: {"signal": 1},
    Verb.MAINTENANCE: {"on": True},
    Verb.SCALE: {"instances": 3},
    Verb.LOOP_MODE: {"mode": OodaMode.SHADOW},
    Verb.SET_LIMITS: {"limits": Limits(fds=Band(soft=100.0))},
}
"""What a verb cannot do without."""


class World:
    """A coordinator over a fleet of one web-1 on h1, with its daemon and its warden connected."""

    def __init__(self, state: ProcessState = ProcessState.RUNNING, *, daemon: bool = True) -> None:
        self.fleet = Fleet()
        ids: Iterator[int] = count(1)
        self.coordinator = CDNCoordinator(self.fleet, lambda: f"c{next(ids)}")
        self.now_s = 0.0
        self.seq = 0
        self.actions: list[Action] = []
        if daemon:
            self.fleet.hear(status(1, 1), 0.0)
        self.table(state, pid=1001 if state in (ProcessState.RUNNING, ProcessState.STARTING) else None)
        self.greet(daemon=daemon)

    def greet(self, *, daemon: bool = True) -> None:
        if daemon:
            hello = Hello(target="web-1", role="daemon", host="h1", incarnation=1, pid=1001)
            self.coordinator.hear(hello, DAEMON, self.now_s)
        self.coordinator.hear(Hello(target="h1", role="warden", host="h1", incarnation=1, pid=9), WARDEN, self.now_s)

    def table(self, state: ProcessState, **changes: Any) -> None:
        self.seq += 1
        uptime_s = 5.0 if changes.get("pid") else None
        self.fleet.hear_node(node(self.seq, web=row(state, uptime_s=uptime_s, **changes)), self.now_s)

    def order(self, verb: Verb, *names: str, timeout_s: float = 30.0, **arguments: Any) -> list[Action]:
        request = OrderRequest(
            id="o",
            verb=verb,
            names=names or ("web-1",),
            timeout_s=timeout_s,
            asked_by="me",
            **{**NEEDED.get(verb, {}), **arguments},
        )
        return self.take(self.coordinator.order(request, ME, self.now_s, 1e9))

    def hear(self, message: Accepted | Outcome) -> list[Action]:
        return self.take(self.coordinator.hear(message, DAEMON, self.now_s))

    def tick(self, after_s: float = 0.1) -> list[Action]:
        self.now_s += after_s
        return self.take(self.coordinator.tick(self.now_s))

    def take(self, actions: list[Action]) -> list[Action]:
        self.actions += actions
        return actions

    def sent(self) -> list[tuple[bytes, Any]]:
        """To whom which bodies went."""
        return [(a.routing_id, a.command.body) for a in self.actions if isinstance(a, ToAgent)]

    def outcomes(self) -> list[tuple[str, OutcomeKind, str]]:
        """Of the names ordered."""
        replies = [a.reply for a in self.actions if isinstance(a, ToOperator)]
        return [(r.name, r.kind, r.reason) for r in replies if isinstance(r, OrderOutcome)]

    def refusals(self) -> list[str]:
        """Of whole orders, with nothing done."""
        replies = [a.reply for a in self.actions if isinstance(a, ToOperator)]
        return [r.reason for r in replies if isinstance(r, Refusal)]


def test_restart_by_the_daemon() -> None:
    """Asked, accepted, gone, back as a later incarnation that serves: done, and not before."""
    world = World()
    assert isinstance(next(a.reply for a in world.order(Verb.RESTART) if isinstance(a, ToOperator)), OrderAccepted)
    assert world.sent() == [(DAEMON, Restart())]
    world.hear(Accepted(id="c1", incarnation=1))
    world.fleet.hear(status(1, 2, phase=LifecyclePhase.DRAINING), 0.2)
    world.tick()
    world.table(ProcessState.STARTING, pid=1002)
    world.tick()
    world.fleet.hear(status(2, 1, phase=LifecyclePhase.STARTING), 0.4)
    world.tick()
    assert world.outcomes() == []
    world.fleet.hear(status(2, 2), world.now_s)
    world.table(ProcessState.RUNNING, pid=1002)
    world.tick()
    assert world.outcomes() == [("web-1", OutcomeKind.DONE, "")]
    assert world.coordinator.open_commands == 0


def test_a_daemon_that_does_not_accept() -> None:
    """It is asked again, then the warden is, and the warden's word is followed."""
    world = World()
    world.order(Verb.RESTART)
    for _ in range(round(ACCEPT_S * 10) + 1):
        world.tick()
    bodies = [body for _, body in world.sent()]
    assert bodies.count(Restart()) > 1
    assert world.sent()[-1] == (WARDEN, RestartProcess(name="web-1", pid=1001))
    world.hear(Accepted(id="c1w", incarnation=1))
    world.hear(Outcome(id="c1w", kind=OutcomeKind.DONE))
    assert world.outcomes() == []  # the fleet still shows the old process
    world.table(ProcessState.RUNNING, pid=1002)
    world.fleet.hear(status(2, 1), world.now_s)
    world.tick()
    assert world.outcomes() == [("web-1", OutcomeKind.DONE, "")]


TO_THE_DAEMON: dict[Verb, Any] = {
    Verb.SHED: Shed(),
    Verb.RESUME: Resume(),
    Verb.LOOP_MODE: SetLoopMode(mode=OodaMode.SHADOW),
    Verb.SET_LIMITS: SetLimits(limits=Limits(fds=Band(soft=100.0))),
    Verb.HEALTH_CHECK: HealthCheck(),
}


@pytest.mark.parametrize("verb", TO_THE_DAEMON)
def test_what_goes_to_the_daemon(verb: Verb) -> None:
    """It has one incarnation to do it, is not escalated, and its outcome is the command's."""
    world = World()
    world.order(verb)
    (sent,) = [action for action in world.actions if isinstance(action, ToAgent)]
    assert (sent.routing_id, sent.command.body, sent.command.incarnation) == (DAEMON, TO_THE_DAEMON[verb], 1)
    for _ in range(20):
        world.fleet.hear_node(node(world.seq + 2, web=row(ProcessState.RUNNING, pid=1001, uptime_s=5.0)), world.now_s)
        world.seq += 2
        world.tick()
    assert {routing_id for routing_id, _ in world.sent()} == {DAEMON}
    world.hear(Accepted(id="c1", incarnation=1))
    assert world.outcomes() == []
    world.hear(Outcome(id="c1", kind=OutcomeKind.DONE, reason="healthy", incarnation=1))
    assert world.outcomes() == [("web-1", OutcomeKind.DONE, "healthy")]


@pytest.mark.parametrize("verb", TO_THE_DAEMON)
def test_a_daemon_that_there_is_not(verb: Verb) -> None:
    """Rejected at once, with why."""
    world = World(ProcessState.STOPPED)
    world.order(verb)
    assert world.outcomes() == [("web-1", OutcomeKind.REJECTED, f"cannot {verb} web-1: it is STOPPED")]
    world = World(daemon=False)
    world.order(verb)
    assert world.outcomes() == [("web-1", OutcomeKind.REJECTED, f"cannot {verb} web-1: it has no daemon that is heard")]
    assert world.sent() == []


@pytest.mark.parametrize(
    ("verb", "state", "body"),
    [
        (Verb.START, ProcessState.STOPPED, StartProcess(name="web-1")),
        (Verb.START, ProcessState.FATAL, StartProcess(name="web-1")),
        (Verb.START, ProcessState.BACKOFF, StartProcess(name="web-1")),
        (Verb.STOP, ProcessState.RUNNING, StopProcess(name="web-1")),
        (Verb.STOP, ProcessState.BACKOFF, StopProcess(name="web-1")),
        (Verb.RESTART, ProcessState.STOPPED, StartProcess(name="web-1")),
        (Verb.RESTART, ProcessState.STARTING, RestartProcess(name="web-1", pid=1001)),
        (Verb.SIGNAL, ProcessState.RUNNING, SignalProcess(name="web-1", signal=1, pid=1001)),
        (Verb.ENABLE, ProcessState.STOPPED, EnableProcess(name="web-1")),
        (Verb.DISABLE, ProcessState.RUNNING, DisableProcess(name="web-1")),
        (Verb.RESET_FAILED, ProcessState.FATAL, ForgetFailures(name="web-1")),
        (Verb.MAINTENANCE, ProcessState.RUNNING, SetMaintenance(name="web-1", on=True)),
        (Verb.SCALE, ProcessState.RUNNING, ScaleProcess(name="web-1", instances=3)),
    ],
)
def test_what_goes_to_the_warden(verb: Verb, state: ProcessState, body: object) -> None:
    """Starts and stops, the restart of what has no living daemon, and what only supervisord can do."""
    world = World(state, daemon=state is not ProcessState.STARTING)
    world.order(verb)
    assert world.sent() == [(WARDEN, body)]


@pytest.mark.parametrize(
    ("verb", "state", "reason"),
    [
        (Verb.START, ProcessState.RUNNING, "already running"),
        (Verb.STOP, ProcessState.STOPPED, "already stopped"),
        (Verb.STOP, ProcessState.FATAL, "already fatal"),
    ],
)
def test_nothing_to_do(verb: Verb, state: ProcessState, reason: str) -> None:
    """What is so already is done."""
    world = World(state)
    world.order(verb)
    assert (world.sent(), world.outcomes()) == ([], [("web-1", OutcomeKind.DONE, reason)])


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb not in TO_THE_DAEMON])
def test_a_silent_supervisord(verb: Verb) -> None:
    """Who is told to end would stay down: rejected at once, and nobody is asked."""
    world = World()
    world.now_s += 3.0
    world.fleet.hear(status(1, 2), world.now_s)
    world.order(verb)
    assert world.sent() == []
    ((_, kind, reason),) = world.outcomes()
    assert kind is OutcomeKind.REJECTED
    assert reason.startswith("supervisord on h1 is silent for 3.0 s, so no")


def test_stopped_by_somebody_else_meanwhile() -> None:
    """A restart that meets a stop fails at once, not at its deadline."""
    world = World()
    world.order(Verb.RESTART)
    world.hear(Accepted(id="c1", incarnation=1))
    world.table(ProcessState.STOPPED, reason="stopped by root@vm")
    world.tick()
    assert world.outcomes() == [("web-1", OutcomeKind.FAILED, "stopped by root@vm")]


def test_unknown_service() -> None:
    """Rejected, and the others of the order are not disturbed."""
    world = World()
    world.order(Verb.STOP, "nope", "web-1")
    assert world.outcomes() == [("nope", OutcomeKind.REJECTED, "unknown service nope")]
    assert world.sent() == [(WARDEN, StopProcess(name="web-1"))]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 1e9, float("nan")])
def test_wrong_time_limits(timeout_s: float) -> None:
    """Refused with the limit."""
    world = World()
    world.order(Verb.STOP, timeout_s=timeout_s)
    assert world.refusals() == [f"cannot stop with timeout_s={timeout_s:g}: over 0, at most 3600"]
    assert (world.sent(), world.outcomes()) == ([], [])


def test_a_warden_that_is_away() -> None:
    """Nobody to ask until the deadline: unknown, with who was asked."""
    world = World(ProcessState.STOPPED)
    world.tick(60.0)
    world.table(ProcessState.STOPPED)
    world.order(Verb.START, timeout_s=2.0)
    world.tick(2.1)
    assert world.outcomes() == [("web-1", OutcomeKind.UNKNOWN, "no answer within 2 s from the warden on h1")]


def test_what_turns_out_fatal() -> None:
    """Restarted, and the new process is given up: failed with the warden's reason, before the deadline."""
    world = World()
    world.order(Verb.RESTART)
    world.hear(Accepted(id="c1", incarnation=1))
    world.table(ProcessState.FATAL, reason="quarantined: 5 starts in 60 s, last: exit 3")
    world.tick()
    assert world.outcomes() == [("web-1", OutcomeKind.FAILED, "quarantined: 5 starts in 60 s, last: exit 3")]


def test_what_does_not_come_up_in_time() -> None:
    """Unknown, with the state that it is in."""
    world = World()
    world.order(Verb.RESTART, timeout_s=1.0)
    world.hear(Accepted(id="c1", incarnation=1))
    world.table(ProcessState.STARTING, pid=1002, reason="not ready yet")
    world.tick(1.1)
    assert world.outcomes() == [
        ("web-1", OutcomeKind.UNKNOWN, "not restarted within 1 s: it is STARTING, not ready yet")
    ]


def test_rejected_by_the_agent() -> None:
    """Its reason is the operator's."""
    world = World()
    world.order(Verb.RESTART)
    world.hear(Outcome(id="c1", kind=OutcomeKind.REJECTED, reason="web-1 is #2, the command is for #1"))
    assert world.outcomes() == [("web-1", OutcomeKind.REJECTED, "web-1 is #2, the command is for #1")]


def test_atlas_was_away() -> None:
    """Its own absence is taken from nobody's time."""
    world = World()
    world.order(Verb.RESTART, timeout_s=1.0)
    world.coordinator.restart_windows(60.0)
    world.tick(60.5)
    assert world.outcomes() == []


EVENTS = (
    "accept",
    "accept_w",
    "done",
    "done_w",
    "failed",
    "reject",
    "greet",
    "tick",
    "long",
    "new",
    "gone",
    "fatal",
    "stop",
)


@settings(max_examples=300)
@given(st.sampled_from(Verb), st.sampled_from(ProcessState), st.lists(st.sampled_from(EVENTS), max_size=25))
def test_any_history(verb: Verb, state: ProcessState, events: list[str]) -> None:
    """Whatever agents say or do not say, in whichever order: by the deadline there is one outcome, and never two."""
    world = World(state)
    world.order(verb, timeout_s=5.0)
    seq, incarnation = 10, 1
    for event in events:
        match event:
            case "accept" | "accept_w":
                world.hear(Accepted(id="c1w" if event.endswith("w") else "c1", incarnation=1))
            case "done" | "done_w":
                world.hear(Outcome(id="c1w" if event.endswith("w") else "c1", kind=OutcomeKind.DONE))
            case "failed":
                world.hear(Outcome(id="c1w", kind=OutcomeKind.FAILED, reason="x"))
            case "reject":
                world.hear(Outcome(id="c1", kind=OutcomeKind.REJECTED, reason="x"))
            case "greet":
                world.greet()
            case "tick" | "long":
                world.tick(0.1 if event == "tick" else 2.0)
            case "new":
                incarnation += 1
                world.fleet.hear(status(incarnation, 1), world.now_s)
                world.table(ProcessState.RUNNING, pid=1000 + incarnation)
            case "gone":
                world.table(ProcessState.BACKOFF, reason="exit 3")
            case "fatal":
                world.table(ProcessState.FATAL, reason="x")
            case "stop":
                world.table(ProcessState.STOPPED)
        seq += 1
        assert len(world.outcomes()) + world.coordinator.open_commands == 1
    world.tick(10.0)
    assert len(world.outcomes()) == 1
    assert world.coordinator.open_commands == 0
