"""The loop that paces the probes: what it decides, what it keeps, and where it must do nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest

from services.isolated_monitoring.ooda import (
    BUDGET_CORES,
    HOLD_OFF_S,
    LADDER_S,
    PERIOD_S,
    SETTLE_S,
    Observation,
    Pace,
    PaceLoop,
    decide,
    orient,
)


class World:
    """A monitor whose cost the test sets: so much for each probe, and so much besides."""

    def __init__(self, targets: int, probe_s: float, base_cores: float = 0.001, mode: str = "on") -> None:
        self.targets, self.probe_s, self.base_cores = targets, probe_s, base_cores
        self.interval_s = 1.0
        self.gap_floor_s = 0.0
        self.pressure = 0.0
        self.suspects = 0
        self.paces: list[float] = []
        self.loop = PaceLoop(self.observe, self.pace, mode)
        self.now_s = 0.0

    def observe(self) -> Observation:
        """What the monitor would measure."""
        gap_s = max(self.interval_s, self.gap_floor_s)
        rate = self.targets / gap_s
        return Observation(
            interval_s=self.interval_s,
            gap_s=gap_s,
            cpu_cores=self.base_cores + rate * self.probe_s,
            probes_per_s=rate,
            round_trip_s=0.002,
            late_s=0.0,
            pressure=self.pressure,
            suspects=self.suspects,
        )

    def pace(self, interval_s: float) -> None:
        """What it does."""
        self.interval_s = interval_s
        self.paces.append(interval_s)

    def run(self, seconds: float) -> World:
        """Let time pass."""
        for _ in range(round(seconds / PERIOD_S)):
            self.now_s += PERIOD_S
            self.loop.step(self.now_s)
        return self


def test_few_targets_are_looked_at_more_often() -> None:
    """Within the budget it finds out sooner, and keeps it; at the end of the ladder there is nothing more to do."""
    world = World(targets=10, probe_s=0.0005).run(600)
    assert world.paces == [LADDER_S[0]]
    assert (world.loop.kept, world.loop.undone) == (1, 0)


def test_many_targets_are_looked_at_less_often() -> None:
    """Over the budget it goes step by step to where the cost is lowest."""
    world = World(targets=300, probe_s=0.0005).run(600)
    assert world.paces == [2.0, 5.0]
    assert world.loop.kept == 2
    assert orient(world.observe()).cpu_cores < orient(World(300, 0.0005).observe()).cpu_cores / 4


@pytest.mark.parametrize("targets", [22, 24, 26])
def test_where_it_must_do_nothing(targets: int) -> None:
    """Where sooner would cost too much, and later would find out too late, nothing is changed."""
    world = World(targets=targets, probe_s=0.0005).run(1200)
    assert not world.paces
    assert orient(world.observe()).cpu_cores < BUDGET_CORES


def test_what_does_not_help_is_undone() -> None:
    """The interval is halved and the gaps are not: undone, and not tried again for a while, then for twice that."""
    world = World(targets=10, probe_s=0.0005)
    world.gap_floor_s = 1.0
    world.run(4 * PERIOD_S + SETTLE_S + PERIOD_S)
    assert world.paces == [0.5, 1.0]
    assert world.loop.undone == 1
    world.run(HOLD_OFF_S - 2 * SETTLE_S)
    assert len(world.paces) == 2
    world.run(4 * SETTLE_S)
    assert world.paces == [0.5, 1.0, 0.5, 1.0]
    world.run(HOLD_OFF_S + 4 * SETTLE_S)
    assert len(world.paces) == 4


def test_one_change_at_a_time() -> None:
    """Between two changes lies a settling window at least."""
    world = World(targets=300, probe_s=0.0005)
    at_s: list[float] = []
    for _ in range(100):
        world.run(PERIOD_S)
        if len(world.paces) > len(at_s):
            at_s.append(world.now_s)
    assert all(late - early >= SETTLE_S for early, late in pairwise(at_s))


@pytest.mark.parametrize(("pressure", "suspects"), [(0.9, 0), (0.0, 1)])
def test_not_while_there_is_something_else(pressure: float, suspects: int) -> None:
    """A host short of CPU, or something suspect: what was measured then would not hold."""
    world = World(targets=10, probe_s=0.0005)
    world.pressure, world.suspects = pressure, suspects
    assert not world.run(300).paces


@pytest.mark.parametrize(("mode", "decided"), [("off", False), ("shadow", True)])
def test_modes(mode: str, decided: bool) -> None:
    """Off it decides nothing; in shadow it says what it would do."""
    world = World(targets=10, probe_s=0.0005, mode=mode).run(60)
    assert not world.paces
    assert any(cycle["decision"] for cycle in world.loop.cycles) is decided


def test_decide_is_by_the_promise() -> None:
    """The step with the lower promised cost, but for what is held."""
    picture = orient(World(10, 0.0005).observe())
    assert decide(picture, ()) == Pace(0.5)
    assert decide(picture, (Pace(0.5),)) is None
