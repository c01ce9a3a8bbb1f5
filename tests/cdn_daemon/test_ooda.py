"""The loop keeps what every loop needs: one change at a time, verified, undone if it did not help."""

from __future__ import annotations

import pytest

from bus.messages import OodaMode, OodaPhase
from cdn_daemon.ooda import OodaLoop, Work


class Thermostat(OodaLoop[float, float, str]):
    """Cools when it is hot; whether that helps is the test's affair."""

    period_s = 1.0
    settle_s = 5.0
    hold_off_s = 100.0

    def __init__(self) -> None:
        self.heat: float | None = 10.0
        self.done: list[str] = []

    def observe(self) -> float | None:
        return self.heat

    def orient(self, observation: float) -> float:
        return observation

    def decide(self, picture: float) -> str | None:
        return "cool" if picture > 5 else None

    def act(self, decision: str) -> None:
        self.done.append(decision)

    def undo(self, decision: str) -> None:
        self.done.append(f"undo {decision}")

    def cost(self, picture: float, decision: str) -> float | None:
        return picture


class Clock:
    """Steps a loop as the daemon does, ten times a second, doing its work at once."""

    def __init__(self, loop: OodaLoop[float, float, str]) -> None:
        self.loop, self.now_s = loop, 0.0
        self.phases: list[OodaPhase] = []

    def run(self, for_s: float, error: BaseException | None = None) -> None:
        for _ in range(round(for_s * 10)):
            self.now_s += 0.1
            work = self.loop.step(self.now_s)
            self.phases.append(self.loop.current_phase())
            if work is not None:
                if error is None:
                    work.run()
                self.loop.finished(self.now_s, error)


def verdicts(loop: Thermostat) -> list[str]:
    """Of every action so far."""
    return [cycle.effect.verdict for cycle in loop.actions if cycle.effect is not None]


def test_phases_come_in_order() -> None:
    """One a tick: observe, orient, decide, act."""
    clock = Clock(Thermostat())
    clock.run(0.4)
    assert clock.phases[:2] == [OodaPhase.ORIENT, OodaPhase.DECIDE]
    loop = Thermostat()
    loop.step(0.0), loop.step(0.1)
    assert isinstance(loop.step(0.2), Work)
    assert loop.current_phase() is OodaPhase.ACT
    assert loop.step(0.3) is None


def test_an_action_that_helps_is_kept() -> None:
    """The cost fell by more than min_gain."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(1.0)
    loop.heat = 3.0
    clock.run(20.0)
    assert loop.done == ["cool"]
    assert verdicts(loop) == ["kept"]
    assert (loop.kept, loop.undone) == (1, 0)


@pytest.mark.parametrize("after", [10.0, 9.5, 30.0])
def test_an_action_that_does_not_help_is_undone(after: float) -> None:
    """Not better by min_gain, or worse; and it is not tried again while held off."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(1.0)
    loop.heat = after
    clock.run(60.0)
    assert loop.done == ["cool", "undo cool"]
    assert verdicts(loop) == ["undone"]


def test_the_second_hold_off_is_longer() -> None:
    """What failed twice is left alone for twice as long."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(300.0)
    assert loop.done == ["cool", "undo cool"] * 2


def test_one_change_per_settling_window() -> None:
    """However much there is to do, nothing is changed while the last change settles."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(4.5)
    assert loop.done == ["cool"]


def test_an_effect_that_cannot_be_measured_is_none() -> None:
    """Nobody uses what was changed: after PATIENCE_WINDOWS it is taken back."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(0.5)
    loop.cost = lambda picture, decision: None  # type: ignore[method-assign]
    clock.run(4 * 5.0)
    assert loop.done == ["cool"]
    clock.run(10.0)
    assert loop.done == ["cool", "undo cool"]
    effect = loop.actions[0].effect
    assert effect is not None
    assert "not measurable" in effect.reason


def test_an_action_that_raises() -> None:
    """It is recorded as failed and held off; the loop goes on."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(50.0, OSError("disk full"))
    assert verdicts(loop) == ["failed"]
    assert loop.failed == 1
    assert loop.current_phase() is not OodaPhase.ACT


@pytest.mark.parametrize(("mode", "decisions"), [(OodaMode.OFF, 0), (OodaMode.SHADOW, 3)])
def test_modes(mode: OodaMode, decisions: int) -> None:
    """off does nothing at all; shadow decides and records, and touches nothing."""
    loop = Thermostat()
    loop.mode = mode
    Clock(loop).run(3.0)
    assert loop.done == []
    assert sum(cycle.decision is not None for cycle in loop.cycles) == decisions


def test_off_still_finishes_what_settles() -> None:
    """A change under way is verified, and undone if need be, though the loop was switched off."""
    loop = Thermostat()
    clock = Clock(loop)
    clock.run(1.0)
    loop.mode = OodaMode.OFF
    clock.run(20.0)
    assert loop.done == ["cool", "undo cool"]


def test_nothing_to_do() -> None:
    """A workload that needs nothing gets nothing."""
    loop = Thermostat()
    loop.heat = 3.0
    Clock(loop).run(100.0)
    assert loop.done == []
    assert len(loop.cycles) == 50


def test_the_plain_loop_rests() -> None:
    """A service without a loop of its own has one that only observes nothing."""
    loop: OodaLoop[float, float, str] = OodaLoop()
    Clock(loop).run(3.0)
    assert loop.current_phase() is OodaPhase.OBSERVE
    assert not loop.cycles
