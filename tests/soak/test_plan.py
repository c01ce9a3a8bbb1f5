"""What the soak will do follows from its seed."""

from __future__ import annotations

import pytest

from benchmarks.soak.doing import SIMPLE, Doer
from benchmarks.soak.fleet import names_of
from benchmarks.soak.plan import CALM_LAST_S, FAULTS, plan

SERVICES = names_of(50)


def test_the_same_seed_is_the_same_sequence() -> None:
    assert plan(3, 2.0, SERVICES) == plan(3, 2.0, SERVICES)
    assert plan(3, 2.0, SERVICES) != plan(4, 2.0, SERVICES)


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    """So what went wrong in the first minutes of a long run is found again in a short one."""
    short = [step for step in plan(3, 2.0, SERVICES) if step.is_fault]
    long = [step for step in plan(3, 9.0, SERVICES) if step.is_fault]
    assert [(step.at_s, step.what, step.name) for step in short] == [
        (step.at_s, step.what, step.name) for step in long[: len(short)]
    ]


@pytest.mark.parametrize("seed", range(1, 21))
def test_two_minutes_have_every_fault(seed: int) -> None:
    steps = plan(seed, 2.0, SERVICES)
    assert {step.what for step in steps} >= FAULTS.keys()
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)
    assert steps[-1].at_s < 120.0 - CALM_LAST_S
    assert all((step.name in SERVICES) != (step.is_fault and FAULTS[step.what].everybodys) for step in steps)


def test_every_fault_can_be_done() -> None:
    assert {what for what in FAULTS if what not in SIMPLE and not hasattr(Doer, f"_{what}")} == set()
