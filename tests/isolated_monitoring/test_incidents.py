"""One incident, one alert: histories of what is down, and what is told of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.isolated_monitoring.incidents import GATHER_S, HOST_LEAST, SETTLE_S, Change, Incident, Incidents
from services.isolated_monitoring.target import HOST, SUPERVISORD, Condition, View

GRAPH = {
    SUPERVISORD: ((), ""),
    "atlas": ((SUPERVISORD,), ""),
    "bus feed": ((), "atlas"),
    "bus agents": ((), "atlas"),
    "fabric": ((SUPERVISORD,), ""),
    "gateway": ((SUPERVISORD, "fabric"), ""),
    "web": ((), ""),
    "check nightly": ((), ""),
}
TICK_S = 0.2


class World:
    """Targets whose state the test sets, a clock, and all that was told."""

    def __init__(self) -> None:
        ids = itertools.count()
        self.incidents = Incidents(lambda: f"i{next(ids)}")
        self.now_s = 100.0
        self.how: dict[str, Condition] = dict.fromkeys(GRAPH, Condition.UP)
        self.since_s: dict[str, float] = {}
        self.told: list[tuple[Change, str]] = []
        self.quiet: set[str] = set()

    def put(self, condition: Condition, *names: str) -> None:
        """They are so from now on."""
        for name in names:
            self.how[name] = condition
            self.since_s[name] = self.now_s

    def views(self) -> dict[str, View]:
        """As the monitor shows them."""
        return {
            name: View(
                name=name,
                condition=self.how[name],
                reason=f"{name} broke",
                since_s=self.since_s.get(name, 0.0),
                depends_on=depends_on,
                within=within,
                is_probed=not name.startswith("check"),
            )
            for name, (depends_on, within) in GRAPH.items()
        }

    def run(self, seconds: float, tick_s: float = TICK_S) -> World:
        """Let time pass, and check what must always hold."""
        for _ in range(round(seconds / tick_s)):
            self.now_s += tick_s
            for change, incident in self.incidents.step(self.now_s, 1e9 + self.now_s, self.views(), self.quiet):
                self.told.append((change, incident.root))
            self.check()
        return self

    def check(self) -> None:
        """The invariants."""
        members = [name for incident in self.incidents.open.values() for name in incident.members]
        assert len(members) == len(set(members)), "in one open incident at most"
        for incident in self.incidents.open.values():
            assert incident.root in incident.members
            assert Incident.of(incident.plain()) == incident
        down = {name for name, how in self.how.items() if how is Condition.DOWN and name not in self.quiet}
        assert down <= set(members), "what is down is in an incident"

    def opened(self) -> list[str]:
        """Roots that were told."""
        return [root for change, root in self.told if change is Change.OPENED]


@pytest.fixture
def world() -> World:
    """All is well."""
    return World()


def test_nothing_is_told_of_what_is_well(world: World) -> None:
    """Suspicion, starts and stops on purpose are no incidents."""
    for condition in (Condition.SUSPECT, Condition.STARTING, Condition.STOPPED, Condition.UNKNOWN, Condition.UP):
        world.put(condition, *GRAPH)
        world.run(3)
    assert not world.told


def test_a_cause_and_its_consequences(world: World) -> None:
    """ATLAS and the bus within it: one incident, named after ATLAS; it is over when all are well for a while."""
    world.put(Condition.DOWN, "atlas", "bus feed")
    world.run(GATHER_S + 2 * TICK_S)
    assert world.told == [(Change.OPENED, "atlas")]
    (incident,) = world.incidents.open.values()
    assert set(incident.consequences) == {"bus feed", "bus agents"}  # the latter without evidence of its own
    world.put(Condition.DOWN, "bus agents")
    world.run(10)
    world.put(Condition.UP, *GRAPH)
    world.run(SETTLE_S / 2)
    assert len(world.told) == 1
    world.run(SETTLE_S)
    assert world.told == [(Change.OPENED, "atlas"), (Change.RESOLVED, "atlas")]
    assert incident.duration_s == pytest.approx(10 + GATHER_S + 2 * TICK_S, abs=2 * TICK_S)


def test_a_moment_is_told_as_well(world: World) -> None:
    """Who was down has been down, though it is back before anybody could be told."""
    world.put(Condition.DOWN, "atlas")
    world.run(TICK_S)
    world.put(Condition.UP, "atlas")
    world.run(2)
    assert world.opened() == ["atlas"]


@pytest.mark.parametrize("later_s", [0.2, 1.0, 20.0])
def test_the_cause_shows_itself_later(world: World, later_s: float) -> None:
    """The consequence first: one incident all the same, and its root is the cause in the end."""
    world.put(Condition.DOWN, "bus feed")
    world.run(later_s)
    world.put(Condition.DOWN, "atlas")
    world.run(5)
    assert len(world.opened()) == 1
    (incident,) = world.incidents.open.values()
    assert incident.root == "atlas"


def test_one_cause_of_two_that_were_told(world: World) -> None:
    """What was told and is no incident of its own any more is taken back."""
    world.put(Condition.DOWN, "fabric")
    world.put(Condition.DOWN, "atlas")
    world.run(2)
    assert sorted(world.opened()) == ["atlas", "fabric"]
    world.put(Condition.DOWN, SUPERVISORD)
    world.run(2)
    (incident,) = world.incidents.open.values()
    assert (incident.root, set(incident.members)) == (SUPERVISORD, {SUPERVISORD, "atlas", "fabric"})
    assert [change for change, _ in world.told] == [Change.OPENED, Change.OPENED, Change.MERGED]


def test_a_suspected_cause_is_waited_for(world: World) -> None:
    """The alert names the cause, if that is convicted soon; and goes out without it, if it is not."""
    world.put(Condition.SUSPECT, "atlas")
    world.put(Condition.DOWN, "bus feed")
    world.run(1.0)
    assert not world.told
    world.put(Condition.DOWN, "atlas")
    world.run(2)
    assert world.opened() == ["atlas"]

    other = World()
    other.put(Condition.SUSPECT, "atlas")
    other.put(Condition.DOWN, "bus feed")
    other.run(3)
    assert other.opened() == ["bus feed"]


def test_what_has_nothing_in_common(world: World) -> None:
    """Two incidents, two alerts."""
    world.put(Condition.DOWN, "web")
    world.run(3)
    world.put(Condition.DOWN, "gateway")
    world.run(3)
    assert world.opened() == ["web", "gateway"]


def test_much_at_once_is_the_host(world: World) -> None:
    """Most of what has no cause in common falls in one moment: one alert, of the host; switches do not count."""
    world.put(Condition.DOWN, "atlas", "fabric", "web", "check nightly")
    world.run(3)
    assert sorted(world.opened()) == ["check nightly", HOST]
    assert HOST_LEAST == 3
    world.put(Condition.UP, *GRAPH)
    world.run(30)
    assert not world.incidents.open


def test_flapping_is_damped(world: World) -> None:
    """Falls within an incident are not told; it settles for longer each time, also after it was resolved."""
    for _ in range(5):
        world.put(Condition.DOWN, "web")
        world.run(1)
        world.put(Condition.UP, "web")
        world.run(SETTLE_S - 1)
    assert world.opened() == ["web"]
    (incident,) = world.incidents.open.values()
    assert incident.relapses == 4
    assert incident.settle_s() == SETTLE_S * 16
    world.run(200)
    assert not world.incidents.open
    world.put(Condition.DOWN, "web")
    world.run(1)
    (again,) = world.incidents.open.values()
    assert again.settle_s() > 100


def test_maintenance(world: World) -> None:
    """Nothing is told of what is in maintenance; what is still down when that ends is told then."""
    world.quiet = {"web"}
    world.put(Condition.DOWN, "web")
    world.run(20)
    assert not world.told
    world.quiet = set()
    world.run(2)
    assert world.opened() == ["web"]
    world.quiet = {"web"}
    world.run(20)
    assert world.told[-1] == (Change.RESOLVED, "web")


def test_restored_is_not_told_again(world: World) -> None:
    """A monitor that was restarted goes on with what its predecessor had."""
    world.put(Condition.DOWN, "atlas", "bus feed")
    world.run(3)
    left = [Incident.of(each.plain()) for each in world.incidents.open.values()]
    world.incidents = Incidents(lambda: "new")
    world.incidents.restore(left, world.now_s)
    world.run(3)
    assert world.opened() == ["atlas"]
    world.put(Condition.UP, *GRAPH)
    world.run(20)
    assert world.told[-1] == (Change.RESOLVED, "atlas")


def test_reminders() -> None:
    """Only where they are asked for."""
    world = World()
    world.incidents = Incidents(lambda: "one", realert_s=10.0)
    world.put(Condition.DOWN, "web")
    world.run(35)
    assert [change for change, _ in world.told] == [Change.OPENED, *[Change.REMINDED] * 3]


_STEPS = st.lists(
    st.tuples(st.sampled_from(sorted(GRAPH)), st.sampled_from(list(Condition)), st.sampled_from([0.0, 0.4, 2.0, 15.0])),
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(_STEPS)
def test_any_history(steps: list[tuple[str, Condition, float]]) -> None:
    """Whatever happens: the invariants hold, each opening is resolved once, and in the end there is nothing open."""
    world = World()
    for name, condition, for_s in steps:
        world.put(condition, name)
        world.run(for_s)
    world.put(Condition.UP, *GRAPH)
    world.run(700, tick_s=5.0)
    assert not world.incidents.open
    changes: Callable[[Change], int] = lambda wanted: sum(change is wanted for change, _ in world.told)  # noqa: E731
    assert changes(Change.OPENED) == changes(Change.RESOLVED) + changes(Change.MERGED)
