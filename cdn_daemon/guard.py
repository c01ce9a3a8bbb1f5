"""Watches its own process: the limits, the pulse of the service's loop, and the vitals.

What may run away within a second is looked at more often: memory, if it is limited,
five times a second, and the pulse at every tick for as long as a beat is late. The
rest is read once a second, and hardly two things that let go of the interpreter lock
in one tick, so that none is long even beside a busy main thread. What follows is a
demand: drain and restart, or replace at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from bus.messages import Band, HealthStatus, Limits
from cdn_daemon.health import HealthMonitor
from cdn_daemon.limits import LimitKeeper, Rung, bands, merge
from cdn_daemon.long_calls import LONG_CALLS
from cdn_daemon.pulse import Pulse
from cdn_daemon.vitals import TickTimes, VitalsSampler, machine
from cdn_daemon.works import WORKS

TURNS = 10
"""Ticks in which everything has been read once."""
_PULSES = (1, 6)
"""Turns in which the lag of the service's loop is looked at, whatever it is."""
_BEAT_LATE_S = 0.05
"""A beat that is later than this is looked at in every turn: timers are never quite on time."""
TREND_SAID_S = 5.0
"""How often it is looked whether something approaches its limit, while there is nothing else to be said."""
STUCK_FACTOR = 4.0
"""A loop that lags so many times its soft limit is unhealthy, not only degraded."""

DEFAULT_LOOP_LAG = Band(soft=0.5, hard=10.0)
FDS_SOFT, FDS_HARD = 0.8, 0.95
"""Of what the process may open at most."""


class Demand(Enum):
    """What has to be done about the process."""

    RESTART = "restart"
    """Drain, and end with 75."""
    REPLACE = "replace"
    """Leave the stacks, and have it killed: it cannot drain, or must not be waited for."""


def with_defaults(limits: Limits) -> Limits:
    """The limits, with those that every process has where none are set."""
    most_fds = machine().get("fds")
    defaults = Limits(
        loop_lag_s=DEFAULT_LOOP_LAG,
        fds=Band(soft=FDS_SOFT * most_fds, hard=FDS_HARD * most_fds) if most_fds else None,
    )
    return merge(defaults, limits)


class Guard:
    """One per daemon, on its thread; ``reason`` says why the last demand was made."""

    def __init__(
        self, limits: Limits, health: HealthMonitor, now_s: float, *, shed: Callable[[str], None] = lambda _: None
    ) -> None:
        self.keeper = LimitKeeper(with_defaults(limits))
        self.pulse: Pulse | None = None
        self.ticks = TickTimes()
        self.reason = ""
        self._health = health
        self._shed = shed
        self._sampler = VitalsSampler(now_s)
        self.vitals = self._sampler.vitals(loop_lag_s=None, ticks=self.ticks)
        """As last put together, once a second."""
        memory = self._look_at_memory
        self._looks: list[Callable[[float], Demand | None] | None] = [None] * TURNS
        self._looks[1::2] = [memory, memory, memory, self._put_together, memory]
        self._looks[2], self._looks[6] = self._look_at_cpu_and_threads, self._look_at_fds_and_children
        self._calm_below = -math.inf
        """Of memory: what is read between two of once a second need not be followed."""
        self._says = False
        self._say_s = -math.inf
        self._replace = False
        for problem in beyond_machine(limits):
            health.find("limits", HealthStatus.DEGRADED, problem)

    def change(self, limits: Limits) -> None:
        """Use these bands; those that are None stay as they are."""
        self.keeper.change(limits)
        self._calm_below = -math.inf

    def tick(self, now_s: float, turn: int) -> Demand | None:
        """Look, and say what has to be done; REPLACE is said again at every tick. Turns go from 0 to TURNS - 1."""
        demand, pulse, look = None, self.pulse, self._looks[turn]
        if pulse is not None and (turn in _PULSES or now_s - pulse.due_s > _BEAT_LATE_S):
            demand = self._look_at_loop(pulse, now_s)
        if look is not None:
            demand = look(now_s) or demand
        return Demand.REPLACE if self._replace else demand

    def _look_at_loop(self, pulse: Pulse, now_s: float) -> Demand | None:
        if now_s < LONG_CALLS.until_s():
            pulse.restart_window(now_s)
        return self._follow(now_s, "loop_lag_s", pulse.own_lag_s(now_s))

    def _look_at_memory(self, now_s: float) -> Demand | None:
        """Whether it runs away; its trend is followed once a second."""
        calm_below = self._calm_below
        if calm_below == math.inf or self._sampler.peak_bytes() <= calm_below:
            return None
        value = self._sampler.read_memory()
        return self._follow(now_s, "rss_bytes", value) if value is None or value > calm_below else None

    def _look_at_cpu_and_threads(self, now_s: float) -> Demand | None:
        sampler = self._sampler
        sampler.read_cpu(now_s)
        sampler.read_threads()
        demand = self._follow(now_s, "cpu_cores", sampler.cpu_cores)
        return self._follow(now_s, "threads", sampler.threads) or demand

    def _look_at_fds_and_children(self, now_s: float) -> Demand | None:
        sampler = self._sampler
        sampler.read_fds()
        sampler.read_children()
        demand = self._follow(now_s, "fds", sampler.fds)
        return self._follow(now_s, "children", sampler.children) or demand

    def _put_together(self, now_s: float) -> Demand | None:
        """Once a second: memory whatever it is, the vitals, and what is to be said."""
        demand = self._follow(now_s, "rss_bytes", self._sampler.read_memory())
        self._calm_below = self.keeper.calm_below("rss_bytes")
        lag_s = self.pulse.lag_s(now_s) if self.pulse is not None else None
        self.vitals = self._sampler.vitals(loop_lag_s=lag_s, ticks=self.ticks)
        if self._says or now_s >= self._say_s:
            self._say(now_s)
        self._find_overdue(now_s)
        return demand

    def _find_overdue(self, now_s: float) -> None:
        late = WORKS.overdue(now_s)
        if late is not None and not self._replace:
            self.reason = f"deadlock: {late.name} on thread {late.thread} is past its deadline of {late.deadline_s:g} s"
            self._replace = True

    def _follow(self, now_s: float, dimension: str, value: float | None) -> Demand | None:
        step = self.keeper.look(now_s, dimension, value)
        if step is None:
            return None
        self._calm_below = -math.inf
        demand = None
        match step.rung:
            case Rung.SOFT:
                self._shed(dimension)
            case Rung.HARD if dimension != "loop_lag_s":
                self.reason, demand = step.text, Demand.RESTART
            case Rung.HARD | Rung.BEYOND:
                self.reason, self._replace = _stall_text(step.text), True
            case Rung.FINE:
                pass
        self._say(now_s)
        return demand

    def _say(self, now_s: float) -> None:
        """Put down for each limited quantity what there is to be said of it."""
        self._say_s = now_s + TREND_SAID_S
        found = self.keeper.findings(now_s)
        self._says = bool(found)
        for name in bands(self.keeper.limits):
            if name in found:
                self._health.find(f"limit {name}", self._severity(name), found[name])
            else:
                self._health.clear(f"limit {name}")

    def _severity(self, name: str) -> HealthStatus:
        band, value = self.keeper.limits.loop_lag_s, self.keeper.value(name)
        stuck = name == "loop_lag_s" and band is not None and value >= STUCK_FACTOR * band.soft
        return HealthStatus.UNHEALTHY if stuck else HealthStatus.DEGRADED

    def restart_windows(self, late_s: float, now_s: float) -> None:
        """The daemon was away for late_s: what was being waited out begins anew."""
        WORKS.postpone(late_s)
        self.keeper.restart_windows(now_s)
        if self.pulse is not None:
            self.pulse.restart_window(now_s)


def _stall_text(text: str) -> str:
    return f"blocked loop: {text}" if text.startswith("loop_lag_s") else text


def beyond_machine(limits: Limits) -> list[str]:
    """Bands that this machine can never reach, and so never hold; each in words."""
    most = machine()
    return [
        f"limit of {name} is over what this machine has: {band.soft:g} of {most[name]:g}"
        for name, band in bands(limits).items()
        if name in most and band.soft > most[name]
    ]
