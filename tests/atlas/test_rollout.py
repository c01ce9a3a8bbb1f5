"""Orders of many names: whose turn it is, what ends a rollout, and what a new ATLAS makes of one."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from msgspec.structs import replace

from bus.messages import (
    Band,
    HealthStatus,
    Hello,
    Limits,
    OodaMode,
    OrderAccepted,
    OrderOutcome,
    OrderProgress,
    OrderRequest,
    Outcome,
    OutcomeKind,
    ProcessState,
    Refusal,
    RestartProcess,
    Verb,
)
from services.atlas.coordinator import (
    FIRST_GREETING_S,
    LOOK_S,
    MAX_OPEN,
    NOBODY,
    Action,
    CDNCoordinator,
    Record,
    ToAgent,
    ToOperator,
)
from services.atlas.fleet import Fleet
from services.atlas.journal import line, replay
from services.atlas.rollout import waits
from services.atlas.verbs import FRESH_S, RULES, for_daemon, for_warden, objection
from tests.atlas.test_fleet import node, row, status

DONE, FAILED, REJECTED, UNKNOWN = OutcomeKind.DONE, OutcomeKind.FAILED, OutcomeKind.REJECTED, OutcomeKind.UNKNOWN
RUNNING, STOPPED = ProcessState.RUNNING, ProcessState.STOPPED


NEEDS: dict[str, tuple[str, ...]] = {"web": ("app",), "app": ("db",), "db": (), "lone": ()}


class World:
    """web needs app needs db, and lone; all of one host, whose warden does as it is told when the test says so."""

    def __init__(self, state: ProcessState = RUNNING) -> None:
        self.needs = dict(NEEDS)
        self.now_s, self.seq = 0.0, 0
        self.ids, self.pids = count(1), count(1000)
        self.actions: list[Action] = []
        self.states = dict.fromkeys(self.needs, state)
        self.pid_of = {name: next(self.pids) for name in self.needs}
        self.boot()

    def boot(self, boot_id: str = "b1") -> None:
        """A new ATLAS, with what the journal of the one before holds."""
        lines = [line(action.entry) for action in self.actions if isinstance(action, Record)]
        book, _ = replay(lines)
        self.fleet = Fleet()
        self.coordinator = CDNCoordinator(self.fleet, lambda: f"c{next(self.ids)}", boot_id=boot_id, book=book)
        self.take(self.coordinator.resume(self.now_s))
        self.table()

    def table(self) -> None:
        self.seq += 1
        rows = {
            name: row(
                state,
                name,
                pid=self.pid_of[name] if state is RUNNING else None,
                uptime_s=1.0 if state is RUNNING else None,
                depends_on=self.needs[name],
            )
            for name, state in self.states.items()
        }
        self.fleet.hear_node(replace(node(self.seq), processes=tuple(rows.values())), self.now_s)
        hello = Hello(target="h1", role="warden", host="h1", incarnation=1, pid=9)
        self.coordinator.hear(hello, b"warden", self.now_s)

    def becomes(self, name: str, state: ProcessState) -> None:
        """With another process, if it runs."""
        self.states[name] = state
        self.pid_of[name] = next(self.pids)
        self.tick()

    def fails(self, name: str, reason: str = "exit 3") -> None:
        """The warden says so of the command that it was sent last for it."""
        command = [c for c in self.commands() if c.body.name == name][-1]
        self.take(
            self.coordinator.hear(Outcome(id=command.id, kind=FAILED, reason=reason, incarnation=1), b"w", self.now_s)
        )
        self.tick()

    def tick(self, after_s: float = 0.1) -> None:
        self.now_s += after_s
        self.table()
        self.take(self.coordinator.tick(self.now_s))
        for command in {c.id: c for c in self.commands()}.values():  # the warden has done what is so
            self.take(
                self.coordinator.hear(Outcome(id=command.id, kind=DONE, incarnation=1), b"warden", self.now_s)
                if self.is_done(command.body)
                else []
            )

    def is_done(self, body: Any) -> bool:
        if isinstance(body, RestartProcess):
            return self.states[body.name] is RUNNING and self.pid_of[body.name] != body.pid
        wanted = RUNNING if type(body).__name__ == "StartProcess" else STOPPED
        return self.states[body.name] is wanted

    def order(self, verb: Verb, *names: str, timeout_s: float = 10.0, **arguments: Any) -> OrderRequest:
        request = OrderRequest(
            id="o", verb=verb, names=names or tuple(self.needs), timeout_s=timeout_s, asked_by="me", **arguments
        )
        self.take(self.coordinator.order(request, b"me", self.now_s, 1e9))
        return request

    def take(self, actions: list[Action]) -> None:
        self.actions += actions

    def commands(self) -> list[Any]:
        return [action.command for action in self.actions if isinstance(action, ToAgent)]

    def asked(self) -> list[str]:
        """Names whose turn has come, in order."""
        return list(dict.fromkeys(command.body.name for command in self.commands()))

    def replies(self, kind: type) -> list[Any]:
        return [a.reply for a in self.actions if isinstance(a, ToOperator) and isinstance(a.reply, kind)]

    def outcomes(self) -> dict[str, tuple[OutcomeKind, str]]:
        return {reply.name: (reply.kind, reply.reason) for reply in self.replies(OrderOutcome)}


# -- turns ------------------------------------------------------------------------------------------------


def test_one_at_a_time() -> None:
    """What others depend on first; the next when the one before is ready, with its time from then on."""
    world = World()
    world.order(Verb.RESTART, batch=1, timeout_s=3.0)
    for name in ("db", "app", "web", "lone"):
        assert world.asked()[-1] == name
        world.tick(2.0)
        world.becomes(name, RUNNING)
        world.tick()
    assert set(world.outcomes().values()) == {(DONE, "")}


def test_two_at_a_time() -> None:
    """Never more, never fewer while there are any."""
    world = World()
    world.order(Verb.RESTART, "db", "lone", "web", batch=2)
    assert world.asked() == ["db", "lone"]
    world.becomes("lone", RUNNING)
    world.tick()
    assert world.asked() == ["db", "lone"]  # web needs db
    world.becomes("db", RUNNING)
    world.tick()
    assert world.asked() == ["db", "lone", "web"]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (FAILED, "not tried: db failed: exit 3"),
        (UNKNOWN, "not tried: db is not known to be done: no answer within 10 s from the warden on h1"),
    ],
)
def test_the_first_failure_ends_it(kind: OutcomeKind, why: str) -> None:
    """What was not begun is not begun, and says whose fault it is."""
    world = World()
    world.order(Verb.RESTART, batch=1)
    if kind is FAILED:
        world.fails("db")
    else:
        world.tick(11.0)
    assert world.asked() == ["db"]
    assert world.outcomes()["db"][0] is kind
    assert [world.outcomes()[name] for name in ("app", "web", "lone")] == [(REJECTED, why)] * 3
    assert world.coordinator.open_commands == 0


def test_an_unhealthy_one_ends_it() -> None:
    """It runs and serves and says that it is unwell: that is not ready, so the next keeps the old release."""
    world = World()
    world.order(Verb.RESTART, "db", "lone", batch=1, timeout_s=3.0)
    said = status(2, 1, service="db", instance="db", pid=5555, health=HealthStatus.UNHEALTHY, reasons=("no disk",))
    world.pid_of["db"] = said.pid
    world.fleet.hear(said, world.now_s)
    world.tick(1.0)
    assert world.outcomes() == {}
    world.tick(2.5)
    assert world.outcomes() == {
        "db": (UNKNOWN, "not restarted within 3 s: it is RUNNING and unhealthy, no disk"),
        "lone": (
            REJECTED,
            "not tried: db is not known to be done: not restarted within 3 s: it is RUNNING and unhealthy, no disk",
        ),
    }


def test_all_at_once() -> None:
    """A restart without batch waits for nobody."""
    world = World()
    world.order(Verb.RESTART)
    assert sorted(world.asked()) == sorted(NEEDS)


def test_starts_follow_dependencies() -> None:
    """Near and far: web needs app, which is not in the order, which needs db."""
    world = World(STOPPED)
    world.order(Verb.START, "web", "db", "lone")
    assert world.asked() == ["db", "lone"]
    world.becomes("db", RUNNING)
    world.tick()
    assert world.asked() == ["db", "lone", "web"]


def test_a_start_whose_dependency_fails() -> None:
    """Is not tried, nor what needs it in turn; others go on."""
    world = World(STOPPED)
    world.order(Verb.START)
    world.fails("db")
    why = "not tried: db failed: exit 3; it depends on that"
    assert world.outcomes()["app"] == world.outcomes()["web"] == (REJECTED, why)
    world.becomes("lone", RUNNING)
    world.tick()
    assert world.outcomes()["lone"] == (DONE, "")


def test_stops_go_the_other_way() -> None:
    """Who depends on it first; if that cannot be stopped, the rest is stopped all the same."""
    world = World()
    world.order(Verb.STOP)
    assert sorted(world.asked()) == ["lone", "web"]
    world.fails("web")
    assert world.asked()[-1] == "app"
    world.becomes("app", STOPPED)
    world.tick()
    assert world.asked()[-1] == "db"


def test_a_circle_does_not_wait_for_ever() -> None:
    """Wardens refuse such; whatever a table says, every command ends."""
    world = World(STOPPED)
    world.needs["db"] = ("web",)
    world.table()
    world.order(Verb.START, "web", "app", "db")
    assert world.asked() == ["web"]
    for name in ("web", "db", "app"):
        world.becomes(name, RUNNING)
        world.tick()
    assert {kind for kind, _ in world.outcomes().values()} == {DONE}


def test_waits() -> None:
    """By verb; only for names of the order."""
    needs = {"web": {"app", "db"}, "app": {"db"}, "db": set[str]()}
    names = ("web", "db")
    assert waits(Verb.START, None, names, needs) == {"web": ("db",), "db": ()}
    assert waits(Verb.STOP, None, names, needs) == {"web": (), "db": ("web",)}
    assert waits(Verb.RESTART, 1, names, needs) == {"web": ("db",), "db": ()}
    assert waits(Verb.RESTART, None, names, needs) == {"web": (), "db": ()}


# -- whole orders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        (Verb.SIGNAL, {}, "cannot signal without signal: 1 to 64"),
        (Verb.SIGNAL, {"signal": 65}, "cannot signal with signal=65: 1 to 64"),
        (Verb.SCALE, {"instances": 0}, "cannot scale with instances=0: 1 to 64"),
        (Verb.SCALE, {}, "cannot scale without instances: 1 to 64"),
        (Verb.MAINTENANCE, {}, "cannot maintenance without on: true begins it, false ends it"),
        (Verb.MAINTENANCE, {"on": True, "for_s": float("nan")}, "cannot maintenance with for_s=nan: 1 to 2.592e+06"),
        (Verb.MAINTENANCE, {"on": False, "for_s": 5.0}, "cannot end maintenance with for_s: it ends at once"),
        (Verb.LOOP_MODE, {}, "cannot loop-mode without mode: off, shadow or on"),
        (Verb.SET_LIMITS, {}, "cannot set-limits without limits: the bands to be used"),
        (Verb.STOP, {"batch": 2}, "cannot stop with batch=2: only restart takes it"),
        (Verb.RESTART, {"batch": 0}, "cannot restart with batch=0: 1 to 1000"),
        (Verb.STOP, {"names": ()}, "cannot stop 0 names at once: 1 to 2000"),
        (Verb.STOP, {"names": ("",)}, "cannot stop '': a name has 1 to 256 characters"),
        (Verb.STOP, {"names": ("x" * 257,)}, f"cannot stop '{'x' * 40}': a name has 1 to 256 characters"),
        (Verb.STOP, {"id": "x" * 129}, "id up to 128"),
    ],
)
def test_a_senseless_order(verb: Verb, arguments: dict[str, Any], said: str) -> None:
    """Refused as a whole, with what would make sense; nothing is written down."""
    world = World()
    request = OrderRequest(
        **{"id": "o", "names": ("db",), "timeout_s": 5.0, "asked_by": "me", "verb": verb, **arguments}
    )
    world.take(world.coordinator.order(request, b"me", 0.0, 1e9))
    (refusal,) = world.replies(Refusal)
    assert said in refusal.reason
    assert not refusal.again
    assert not [action for action in world.actions if isinstance(action, Record)]


GIVEN: dict[Verb, dict[str, Any]] = {
    Verb.SIGNAL: {"signal": 1},
    Verb.SCALE: {"instances": 2},
    Verb.MAINTENANCE: {"on": True, "for_s": 60.0},
    Verb.LOOP_MODE: {"mode": OodaMode.OFF},
    Verb.SET_LIMITS: {"limits": Limits(fds=Band(soft=1.0))},
}


@pytest.mark.parametrize("verb", Verb)
def test_every_verb_has_a_rule(verb: Verb) -> None:
    """And a command for whoever carries it out."""
    request = OrderRequest(id="o", verb=verb, names=("db",), timeout_s=5.0, asked_by="me", **GIVEN.get(verb, {}))
    assert objection(request) == ""
    assert (for_daemon(request) if RULES[verb].by_daemon else for_warden(request, "db", 7)) is not None


def test_an_order_that_lay_somewhere() -> None:
    """ATLAS was stopped; whoever asked has given it to supervisord meanwhile. Nothing is done, and that is said."""
    world = World()
    world.now_s = 60.0
    world.table()
    world.order(Verb.STOP, "db", asked_s=60.0 - FRESH_S - 0.1)
    (refusal,) = world.replies(Refusal)
    assert refusal.again
    assert refusal.reason == "cannot stop what was asked 0.9 s ago: limit 0.8"
    world.order(Verb.STOP, "db", asked_s=60.0 - FRESH_S + 0.1)
    assert world.asked() == ["db"]


def test_too_many() -> None:
    """The limit is said, and none of it is taken."""
    world = World()
    for number in range(MAX_OPEN // 2000):
        names = tuple(f"n{number}-{each}" for each in range(2000))
        request = OrderRequest(id=f"o{number}", verb=Verb.START, names=names, timeout_s=5.0, asked_by="me", batch=None)
        entries = world.coordinator.order(request, NOBODY, 0.0, 1e9)
        assert entries
    assert world.coordinator.open_commands == 0  # they are unknown services, and over at once
    world.coordinator.book.open.update(dict.fromkeys(map(str, range(MAX_OPEN)), world.coordinator.book.latest(1)[0]))
    world.order(Verb.STOP, "db")
    (refusal,) = world.replies(Refusal)
    assert refusal.reason == f"cannot take 1 commands: {MAX_OPEN} are open, limit {MAX_OPEN}"


def test_attaching() -> None:
    """Whoever sends the order again hears where it stands, and then what becomes of it; it is not given again."""
    world = World()
    request = world.order(Verb.STOP, "web", "lone")
    world.becomes("lone", STOPPED)
    world.tick()
    before, world.actions = world.actions, []
    world.take(world.coordinator.order(request, b"other", world.now_s, 1e9))
    (accepted,), (outcome,), (progress,) = (
        world.replies(kind) for kind in (OrderAccepted, OrderOutcome, OrderProgress)
    )
    assert (outcome.name, progress.name, accepted.commands.keys()) == ("lone", "web", {"web", "lone"})
    assert {action.routing_id for action in world.actions if isinstance(action, ToOperator)} == {b"other"}
    assert not [action for action in world.actions if isinstance(action, ToAgent | Record)]
    world.actions = before + world.actions
    world.becomes("web", STOPPED)
    world.tick()
    heard = [
        action.routing_id
        for action in world.actions
        if isinstance(action, ToOperator) and isinstance(action.reply, OrderOutcome) and action.reply.name == "web"
    ]
    assert sorted(heard) == [b"me", b"other"]


def test_attaching_to_what_is_not_known() -> None:
    """Refused, and not begun."""
    world = World()
    world.order(Verb.STOP, "web", attach=True)
    assert [reply.reason for reply in world.replies(Refusal)] == ["there is no order o"]
    assert world.asked() == []


# -- a new ATLAS --------------------------------------------------------------------------------------------


def test_a_new_atlas_goes_on_with_a_rollout() -> None:
    """What is under way is asked again under its id, and the rest has its turn."""
    world = World()
    world.order(Verb.RESTART, "db", "lone", "app", batch=1)
    sent = world.commands()[-1]
    world.boot()
    world.tick()
    again = world.commands()[-1]
    assert (again.id, again.body) == (sent.id, sent.body)
    for name in ("db", "lone", "app"):
        world.becomes(name, RUNNING)
        world.tick(FIRST_GREETING_S)
        world.tick()
    assert {view.name: view.kind for view in world.coordinator.commands(10)} == dict.fromkeys(
        ("db", "lone", "app"), DONE
    )


@pytest.mark.parametrize("is_warden_heard", [True, False])
def test_an_order_before_the_warden_is_heard(is_warden_heard: bool) -> None:
    """A new ATLAS hears daemons a moment before their warden: what depends on what is waited for, but not for ever."""
    world = World()
    world.fleet = Fleet()
    world.coordinator = CDNCoordinator(world.fleet, lambda: f"c{next(world.ids)}", boot_id="b1")
    world.take(world.coordinator.resume(world.now_s))
    for name in ("web", "db"):
        world.fleet.hear(status(service=name, instance=name, pid=world.pid_of[name]), world.now_s)
    world.order(Verb.RESTART, "web", "db", batch=1)
    stages = {view.name: view.stage for view in world.coordinator.commands(10)}
    assert stages == {"web": "waiting", "db": "waiting"}
    assert len(world.replies(OrderAccepted)) == 1
    if is_warden_heard:
        world.table()
    world.now_s += 0.1 if is_warden_heard else FIRST_GREETING_S
    for _ in range(2):
        world.take(world.coordinator.tick(world.now_s))
    stages = {view.name: view.stage for view in world.coordinator.commands(10)}
    assert stages == ({"web": "waiting", "db": "asked"} if is_warden_heard else {"web": "asked", "db": "waiting"})


@pytest.mark.parametrize("is_warden_heard", [True, False])
def test_an_order_for_what_is_stopped_before_the_warden_is_heard(is_warden_heard: bool) -> None:
    """Only the warden's table tells of it, so it is not unknown before that could come."""
    world = World(STOPPED)
    world.fleet = Fleet()
    world.coordinator = CDNCoordinator(world.fleet, lambda: f"c{next(world.ids)}", boot_id="b1")
    world.take(world.coordinator.resume(world.now_s))
    world.order(Verb.START, "web")
    assert [view.stage for view in world.coordinator.commands(10)] == ["waiting"]
    if is_warden_heard:
        world.table()
    world.now_s += 0.1 if is_warden_heard else FIRST_GREETING_S
    for _ in range(2):
        world.take(world.coordinator.tick(world.now_s))
    (view,) = world.coordinator.commands(10)
    assert (view.stage, view.kind) == (("asked", None) if is_warden_heard else ("ended", REJECTED))
    assert view.reason == ("" if is_warden_heard else "unknown service web")


@pytest.mark.parametrize("is_down", [True, False])
def test_its_time_was_over_while_atlas_was_away(is_down: bool) -> None:
    """Nothing is sent any more. What has become of it is looked at; if that cannot be seen, it is unknown, and why."""
    world = World()
    world.order(Verb.STOP, "web", timeout_s=5.0)
    many = len(world.commands())
    world.now_s = 60.0
    if is_down:
        world.states["web"] = STOPPED
    world.boot()
    for _ in range(int(LOOK_S * 2) + 2):
        world.tick(0.5)
    (view,) = world.coordinator.commands(10)
    why = "ATLAS was away when its time of 5 s was over; it is RUNNING"
    assert (view.kind, view.reason) == ((DONE, "") if is_down else (UNKNOWN, why))
    assert len(world.commands()) == many


def test_the_rest_of_a_rollout_after_a_long_absence() -> None:
    """Is not begun an hour later."""
    world = World()
    world.order(Verb.RESTART, "db", "lone", batch=1, timeout_s=5.0)
    world.now_s = 3600.0
    world.pid_of["db"] += 1000
    world.boot()
    for _ in range(20):
        world.tick(0.5)
    views = {view.name: (view.kind, view.reason) for view in world.coordinator.commands(10)}
    assert views == {
        "db": (DONE, ""),
        "lone": (REJECTED, "not tried: ATLAS was away when its time of 5 s was over"),
    }


def test_another_boot() -> None:
    """Its clock began anew, so no deadline means anything: looked at, then unknown; what waited is not begun."""
    world = World()
    world.order(Verb.RESTART, "db", "lone", batch=1, timeout_s=3600.0)
    world.now_s = 1.0
    world.boot("b2")
    for _ in range(20):
        world.tick(0.5)
    views = {view.name: (view.kind, view.reason) for view in world.coordinator.commands(10)}
    assert views["db"] == (UNKNOWN, "the machine was started anew meanwhile; it is RUNNING")
    assert views["lone"] == (REJECTED, "not tried: the machine was started anew meanwhile")


def test_nothing_could_be_written_down() -> None:
    """The order is carried out all the same, and its outcome says so."""
    world = World()
    world.coordinator.journal_problem = "no space left on device"
    world.order(Verb.STOP, "web")
    world.becomes("web", STOPPED)
    world.tick()
    assert world.outcomes() == {"web": (DONE, "not journaled: no space left on device")}


def test_who_asks_by_http_is_told_once() -> None:
    """That it is taken; the rest is in the list of commands, with who asked, of whom, and how long it took."""
    world = World()
    request = OrderRequest(id="o", verb=Verb.STOP, names=("web",), timeout_s=5.0, asked_by="http")
    world.take(world.coordinator.order(request, NOBODY, world.now_s, 1e9))
    world.becomes("web", STOPPED)
    world.tick()
    assert [type(action.reply) for action in world.actions if isinstance(action, ToOperator)] == [OrderAccepted]
    (view,) = world.coordinator.commands(10)
    assert (view.asked_by, view.asked_at_s, view.stage, view.kind) == ("http", 1e9, "ended", DONE)
    assert view.attempts == ("the warden on h1",)
    assert view.took_s == pytest.approx(0.1)
    assert world.coordinator.command(view.id) == view
    assert world.coordinator.commands(10, "db") == ()
