"""The budget loop, in virtual time: what it does, that it mostly does nothing, what it takes back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bus.messages import OodaMode
from services.statistical.intake import Intake
from services.statistical.limits import Limits
from services.statistical.ooda import BudgetLoop
from services.statistical.store import Store

SLOT_S = 10


class World:
    """A store that is fed slot by slot, and its loop."""

    def __init__(self, mode: OodaMode = OodaMode.ON) -> None:
        self.store = Store(Limits(quantile_bytes=100 * 64 * 8))
        self.loop = BudgetLoop(self.store, Intake(self.store, "127.0.0.1", 0))
        self.loop.mode = mode
        self.now_s = 1000.0
        self.errors: list[float] = []

    def live(self, slots: int, spread: Callable[[int], float]) -> None:
        """100 series; over how many powers of e the values of each are spread, by its number."""
        rng = random.Random(1)
        spans = [spread(n) for n in range(100)]
        for _ in range(slots):
            self.now_s += SLOT_S
            slot = int(self.now_s // SLOT_S)
            self.store.clock._ahead_s += self.now_s - self.store.clock.now_s()
            with self.store.lock:
                for n, span in enumerate(spans):
                    for _ in range(60):
                        value = math.exp(3 + span * rng.uniform(-0.5, 0.5))
                        self.store.fold(b"s%d:%r|ms" % (n, value), 1.0, slot, self.now_s)
            for at in range(5):
                work = self.loop.step(self.now_s + at / 10)
                if work is not None:
                    work.run()
                    self.loop.finished(self.now_s + at / 10, None)
            measured = [one.error for one in self.store.measured(slot) if one.error is not None]
            if measured:
                self.errors.append(sum(measured) / len(measured))


@pytest.fixture(autouse=True)
def _same_reservoirs() -> None:
    """Which values are kept is drawn."""
    random.seed(1)


def skewed(n: int) -> float:
    """Most are constant, some wide."""
    return 12.0 if n % 10 == 0 else 0.0


def test_memory_goes_to_the_wide() -> None:
    """Once, and kept; the error of the upper quantiles falls to less than half, within the same memory."""
    world = World()
    world.live(20, skewed)
    assert (world.loop.kept, world.loop.undone, len(world.loop.actions)) == (1, 0, 1)
    assert sum(world.errors[-3:]) < 0.5 * sum(world.errors[1:4])
    assert all(len(msgspec.json.encode(cycle, enc_hook=repr)) < 2000 for cycle in world.loop.cycles)
    assert world.store.shares is not None
    assert sum(world.store.shares.values()) + 32 * (100 - len(world.store.shares)) <= world.store.bins


def test_off_changes_nothing() -> None:
    """The control arm."""
    world = World(OodaMode.OFF)
    world.live(10, skewed)
    assert world.store.shares is None
    assert not world.loop.actions


def test_where_all_are_alike_nothing_is_done() -> None:
    """Each has room for its values at one level, and nobody for those of the next."""
    world = World()
    world.live(25, lambda n: 1.7)
    assert not world.loop.actions
    assert len(world.loop.cycles) >= 20


def test_what_did_not_help_is_taken_back() -> None:
    """The values change as soon as it has acted, so that its allocation is for those that were."""
    world = World()
    while not world.loop.actions:
        world.live(1, skewed)
    assert world.store.shares is not None
    world.live(20, lambda n: 12.0 if n % 10 else 0.0)
    assert world.loop.undone == 1
    assert world.store.shares is None
    assert world.loop.actions[0].effect is not None
    assert world.loop.actions[0].effect.verdict == "undone"


def test_a_change_point_is_told_to_the_other_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an event with facts, and in words."""
    monkeypatch.setenv("CDN_RUN_DIR", str(tmp_path))
    import services.statistical.__main__ as main
    from services.statistical.changes import Change
    from services.statistical.keeper import Beat, Noted
    from services.statistical.statsd import Kind

    change = Change(direction="up", before=0.0, after=50.0, ago=7, p_value=1e-9)
    noted = Noted(
        series="logins.failed",
        kind=Kind.COUNTER,
        at_s=1.8e9,
        noticed_s=1.8e9,
        change=change,
        unit="per second",
        source="203.0.113.9",
    )
    main.tell(Beat(now_s=1.8e9, elapsed_s=1.0, values=[], changes=[noted]))
    assert main.service.outbox.emitted == 1
