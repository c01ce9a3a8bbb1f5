"""The loop's own beats tell how late it is; nobody wakes it for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path

import pytest
import uvloop

from cdn_daemon.pulse import EVERY_S, Pulse


def on_a_loop(coroutine: Coroutine[None, None, None]) -> None:
    """Run it as a service's server is run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(coroutine)


async def beating() -> Pulse:
    """A pulse after its second beat, which is the first that can be late."""
    pulse = Pulse(asyncio.get_running_loop())
    while pulse.lag_s(time.monotonic()) is None:
        await asyncio.sleep(0)
    return pulse


async def next_beat(pulse: Pulse) -> None:
    """Until it has come."""
    due_s = pulse.due_s
    while pulse.due_s == due_s:
        await asyncio.sleep(0)


def test_lag_grows_while_the_loop_is_held_up_and_ends_with_it() -> None:
    """The lag of a blocked loop goes on growing, is the beat's lateness when that comes, and is then over."""

    async def run() -> None:
        pulse = await beating()
        time.sleep(2 * EVERY_S)
        first_s = pulse.lag_s(time.monotonic())
        time.sleep(EVERY_S / 5)
        second_s = pulse.lag_s(time.monotonic())
        assert first_s is not None
        assert second_s is not None
        assert EVERY_S - 0.1 < first_s < second_s
        await next_beat(pulse)
        assert second_s < (pulse.lag_s(time.monotonic()) or 0.0)
        while (pulse.lag_s(time.monotonic()) or 0.0) > EVERY_S / 2:
            await next_beat(pulse)

    on_a_loop(run())


def test_an_excused_loop_has_its_full_time_again() -> None:
    """What was late before the window began anew counts for nothing, also when the beat comes."""

    async def run() -> None:
        pulse = await beating()
        time.sleep(2 * EVERY_S)
        excused_s = time.monotonic()
        pulse.restart_window(excused_s)
        assert pulse.lag_s(excused_s) is None
        await next_beat(pulse)
        lag_s = pulse.lag_s(time.monotonic())
        assert lag_s is not None
        assert lag_s <= time.monotonic() - excused_s

    on_a_loop(run())


def test_no_lag_is_known_before_the_second_beat() -> None:
    """There is nothing to compare the first one with."""

    async def run() -> None:
        pulse = Pulse(asyncio.get_running_loop())
        assert pulse.lag_s(time.monotonic()) is None
        await next_beat(pulse)
        assert pulse.lag_s(time.monotonic()) is None

    on_a_loop(run())


def test_waiting_for_a_cpu_is_not_its_own_lag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the kernel says that its thread waited is charged to nobody, and not twice after an excuse."""

    def says(cpu_s: float, waited_s: float, state: str = "S") -> None:
        (tmp_path / "schedstat").write_text(f"{round(cpu_s * 1e9)} {round(waited_s * 1e9)} 1\n")
        (tmp_path / "stat").write_text(f"1 (a b) {state} 1")

    async def run() -> None:
        pulse = await beating()
        used_s, waited_s = 1.0, 1.0
        says(used_s, waited_s)
        monkeypatch.setattr(pulse, "_task", str(tmp_path))
        await next_beat(pulse)
        pulse.restart_window(pulse.due_s)
        due_s = pulse.due_s

        def own_s(late_s: float) -> object:
            return pytest.approx(pulse.own_lag_s(due_s + late_s), abs=0.1)

        assert own_s(3.0) == 3.0
        says(used_s, waited_s + 2.0)
        assert own_s(3.0) == 1.0
        assert pulse.lag_s(due_s + 3.0) == pytest.approx(3.0, abs=0.1)
        pulse.restart_window(due_s + 3.0)
        assert own_s(4.0) == 1.0
        says(used_s, waited_s + 2.5)
        assert own_s(4.0) == 0.5
        (tmp_path / "schedstat").unlink()
        assert own_s(5.0) == 2.0

        says(used_s, waited_s + 2.5, "R")
        pulse.restart_window(due_s + 5.0)
        assert own_s(6.0) == 0.0, "it may have waited all along: the next look tells"
        assert own_s(7.0) == 0.0, "runnable, and uses nothing: it waits"
        says(used_s + 0.5, waited_s + 3.5, "R")
        assert own_s(7.0) == 1.0, "it ran, and the wait before is known now"
        assert own_s(8.0) == 1.0, "it waits again"
        says(used_s + 0.5, waited_s + 3.5, "S")
        assert own_s(8.0) == 2.0, "asleep it waits for something else than a CPU"

    on_a_loop(run())


def test_what_a_tick_slept_through_is_told_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat that comes after a tick began says nothing in it: what made both late excuses the loop in the next."""

    async def run() -> None:
        pulse = await beating()
        monkeypatch.setattr(pulse, "_task", "/nowhere")  # so that nothing is excused for want of a CPU
        tick_s = time.monotonic()
        time.sleep(2 * EVERY_S)  # stopped by a signal, or a declared call that holds the interpreter
        await next_beat(pulse)
        assert pulse.own_lag_s(tick_s) is None
        assert pulse.lag_s(tick_s) is None
        assert (pulse.own_lag_s(time.monotonic()) or 0.0) > EVERY_S - 0.1

    on_a_loop(run())
