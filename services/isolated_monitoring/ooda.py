"""The control loop: observes what watching costs and how quickly it finds out, and paces the probes. Pure but for act.

The same loop as every service's (cdn_daemon/ooda.py), and the same answer to
``GET /ooda``, built anew since that one stands on the bus's messages: one change
per settling window, its effect measured and undone if it did not help, and no
second try of that for a while.

What has to be at once does not wait for it: what is suspect is looked at again
within CONFIRM_S (only while the loop is on), and alerts go out in any mode.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

LADDER_S = (0.5, 1.0, 2.0, 5.0)
"""Intervals that it chooses from; p95 of finding out must stay within seconds."""
BUDGET_CORES = 0.015
"""What watching may cost; 0.02 is promised."""
OVER_BUDGET_WEIGHT = 16.0
"""So that finding out in half the time is worth a fifth over the budget, and not a third."""
PERIOD_S = 2.0
SETTLE_S = 10.0
MIN_GAIN = 0.1
HOLD_OFF_S = 300.0
PRESSURE_MAX = 0.3
"""While the host is short of CPU nothing is measured that would hold afterwards."""
BASELINE_CYCLES = 5
CYCLES_KEPT = 50


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One period."""

    interval_s: float
    """As it is set."""
    gap_s: float | None
    """As it was: mean from one probe of a target to the next."""
    cpu_cores: float
    """Of this process."""
    probes_per_s: float
    round_trip_s: float | None
    late_s: float
    """How late this judge was, in all of the period."""
    pressure: float
    """Part of the period in which somebody on this host waited for a CPU."""
    suspects: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What that means."""

    detection_s: float
    """Expected from a failure that only a probe can see to the first evidence of it."""
    cpu_cores: float
    interval_s: float
    cost: float
    is_calm: bool
    """Whether anything may be changed now."""


@dataclass(frozen=True)
class Pace:
    """Probe at this interval."""

    interval_s: float


def cost(detection_s: float, cpu_cores: float) -> float:
    """Seconds of not knowing, dearer by the square of what is over the budget."""
    over = max(0.0, cpu_cores / BUDGET_CORES - 1.0)
    return detection_s * (1.0 + OVER_BUDGET_WEIGHT * over * over)


def orient(seen: Observation) -> Picture:
    """What the observation means."""
    detection_s = (seen.gap_s or seen.interval_s) / 2 + (seen.round_trip_s or 0.0)
    return Picture(
        detection_s=detection_s,
        cpu_cores=seen.cpu_cores,
        interval_s=seen.interval_s,
        cost=cost(detection_s, seen.cpu_cores),
        is_calm=seen.pressure <= PRESSURE_MAX and seen.late_s < 0.5 and not seen.suspects and seen.probes_per_s > 0,
    )


def decide(picture: Picture, held: Collection[Pace]) -> Pace | None:
    """One step along the ladder if it promises to be better, or nothing."""
    if not picture.is_calm:
        return None
    nearest = min(range(len(LADDER_S)), key=lambda at: abs(LADDER_S[at] - picture.interval_s))
    best: tuple[float, Pace] | None = None
    for at in (nearest - 1, nearest + 1):
        if not 0 <= at < len(LADDER_S) or Pace(LADDER_S[at]) in held:
            continue
        ratio = LADDER_S[at] / picture.interval_s
        promised = cost(picture.detection_s * ratio, picture.cpu_cores / ratio)
        if promised <= picture.cost * (1 - MIN_GAIN) and (best is None or promised < best[0]):
            best = (promised, Pace(LADDER_S[at]))
    return best[1] if best else None


@dataclass
class _Settling:
    decision: Pace
    before_s: float
    since_s: float
    costs: list[float]
    cycle: dict[str, Any]


class PaceLoop:
    """Takes one turn each PERIOD_S."""

    def __init__(self, observe: Callable[[], Observation | None], pace: Callable[[float], None], mode: str) -> None:
        self._observe = observe
        self._pace = pace
        self.mode = mode
        self.cycles: deque[dict[str, Any]] = deque(maxlen=CYCLES_KEPT)
        self.actions: deque[dict[str, Any]] = deque(maxlen=CYCLES_KEPT)
        self.kept = self.undone = 0
        self.phase = "observe"
        self._next_s = 0.0
        self._costs: deque[float] = deque(maxlen=BASELINE_CYCLES)
        self._settling: _Settling | None = None
        self._held: dict[Pace, tuple[float, float]] = {}
        """Until when, and for how long in all."""

    def step(self, now_s: float) -> None:
        """One turn, if one is due."""
        if now_s < self._next_s:
            return
        self._next_s = now_s + PERIOD_S
        seen = self._observe()
        if seen is None or (self.mode == "off" and self._settling is None):
            return
        picture = orient(seen)
        cycle: dict[str, Any] = {
            "at_s": now_s,
            "mode": self.mode,
            "observation": asdict(seen),
            "picture": asdict(picture),
            "decision": None,
            "acted": False,
            "effect": None,
        }
        self.cycles.append(cycle)
        if self._settling is not None:
            self._verify(self._settling, picture, now_s)
            return
        if picture.is_calm:
            self._costs.append(picture.cost)
        held = {one for one, (until_s, _) in self._held.items() if now_s < until_s}
        decision = decide(picture, held)
        if decision is None or len(self._costs) < 2:
            return
        cycle["decision"] = asdict(decision)
        if self.mode != "on":
            return
        before = sorted(self._costs)[(len(self._costs) - 1) // 2]
        cycle["acted"] = True
        cycle["effect"] = {"before": before, "after": None, "verdict": "settling", "reason": ""}
        self.actions.append(cycle)
        self._pace(decision.interval_s)
        self._settling = _Settling(decision, seen.interval_s, now_s, [], cycle)
        self.phase = "act"

    def _verify(self, settling: _Settling, picture: Picture, now_s: float) -> None:
        # The first half of the window still holds what was before.
        if picture.is_calm and now_s - settling.since_s >= SETTLE_S / 2:
            settling.costs.append(picture.cost)
        waited_s = now_s - settling.since_s
        if waited_s < SETTLE_S or (not settling.costs and waited_s < 5 * SETTLE_S):
            return
        self._settling = None
        self.phase = "observe"
        self._costs.clear()
        effect = settling.cycle["effect"]
        if settling.costs:
            effect["after"] = sorted(settling.costs)[(len(settling.costs) - 1) // 2]
            helped = effect["after"] <= effect["before"] * (1 - MIN_GAIN)
            effect["reason"] = f"cost {effect['before']:.6g} → {effect['after']:.6g}"
        else:
            helped, effect["reason"] = False, f"not measurable within {waited_s:.0f} s"
        if helped:
            effect["verdict"] = "kept"
            self.kept += 1
            return
        effect["verdict"] = "undone"
        self.undone += 1
        for_s = self._held.get(settling.decision, (0.0, HOLD_OFF_S / 2))[1] * 2
        self._held[settling.decision] = (now_s + for_s, for_s)
        self._pace(settling.before_s)

    def view(self, instance: str) -> dict[str, Any]:
        """Answer of ``GET /ooda``."""
        return {
            "service": "cdn-isolated-monitoring",
            "instance": instance,
            "mode": self.mode,
            "phase": self.phase,
            "period_s": PERIOD_S,
            "settle_s": SETTLE_S,
            "kept": self.kept,
            "undone": self.undone,
            "failed": 0,
            "actions": list(self.actions),
            "cycles": list(self.cycles),
        }
