"""The control loop of a service: observe, orient, decide, act. Pure: time comes in as now_s.

A service subclasses OodaLoop. Its hooks say what is measured, what that means,
what to do and how to undo it; the loop keeps what every loop needs: one change
per settling window, its effect measured and undone if it did not help, no
second try of what was just undone, and the last cycles for ``GET /ooda``.

The daemon takes one step per tick, and a step is one phase, so hooks must be
quick. Only ``act`` and ``undo`` may block: a step hands them out as Work, which
the daemon runs on a thread of its own before it reports back with ``finished``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct

from bus.messages import OodaMode, OodaPhase

Observation = TypeVar("Observation")
Picture = TypeVar("Picture")
Decision = TypeVar("Decision", bound=Hashable)

CYCLES_KEPT = 50
BASELINE_CYCLES = 5
"""The cost before an action is the median over this many cycles."""
PATIENCE_WINDOWS = 5
"""An effect that could not be measured within this many settling windows counts as none."""


class Effect(Struct, kw_only=True):
    """What an action did to the cost that it was to lower; the unit is the loop's own."""

    before: float | None
    after: float | None = None
    verdict: str = "settling"
    """settling, kept, undone, or failed (act or undo raised)."""
    reason: str = ""


class Cycle(Struct, kw_only=True):
    """One turn of the loop, as ``GET /ooda`` shows it."""

    at_s: float
    """Monotonic."""
    mode: OodaMode
    observation: Any
    picture: Any
    decision: Any = None
    acted: bool = False
    effect: Effect | None = None


@dataclass(frozen=True)
class Work:
    """An act or undo, to be run off the tick; its end is told to OodaLoop.finished."""

    name: str
    run: Callable[[], None]


class OodaLoop(Generic[Observation, Picture, Decision]):
    """A loop that observes nothing and decides nothing, until a service says otherwise."""

    period_s: float = 1.0
    """From the start of one cycle to the next."""
    settle_s: float = 10.0
    """From an action to the measurement of its effect; nothing else is changed meanwhile."""
    min_gain: float = 0.1
    """An action is kept if it lowers the cost by at least this part of it."""
    hold_off_s: float = 300.0
    """How long a decision that was undone is not tried again; doubles each time."""

    # -- a service's hooks: plain methods, to be called in tests -------------------------------------

    def observe(self) -> Observation | None:
        """Read what was measured since the last call; None when there is nothing to go on."""
        return None

    def orient(self, observation: Observation) -> Picture:
        """What the observation means. Pure."""
        raise NotImplementedError(f"{type(self).__name__} observes, so it must say what that means: orient()")

    def decide(self, picture: Picture) -> Decision | None:
        """What to change, or None. Pure. Decisions are hashable values: equal ones are the same change.

        Those in ``self.held`` were undone or failed lately and would not be tried now: choose another.
        """
        return None

    def act(self, decision: Decision) -> None:
        """Make the change. May block; runs on a thread of its own."""
        raise NotImplementedError(f"{type(self).__name__} decides, so it must be able to act()")

    def undo(self, decision: Decision) -> None:
        """Take the change back. May block; runs on a thread of its own."""
        raise NotImplementedError(f"{type(self).__name__} acts, so it must be able to undo()")

    def cost(self, picture: Picture, decision: Decision) -> float | None:
        """What the decision is to lower, as seen in this picture; None if it shows nothing of it. Pure."""
        return None

    # -- the loop itself ----------------------------------------------------------------------------

    mode: OodaMode = OodaMode.ON
    _phase: OodaPhase = OodaPhase.OBSERVE

    def __new__(cls, *args: Any, **kwargs: Any) -> OodaLoop[Observation, Picture, Decision]:
        """State of the loop, so that a subclass's __init__ need not call this class's."""
        loop = super().__new__(cls)
        loop.cycles = deque(maxlen=CYCLES_KEPT)
        loop.actions = deque(maxlen=CYCLES_KEPT)
        loop._pictures = deque(maxlen=BASELINE_CYCLES)
        loop._next_s = None
        loop._observation = loop._picture = None
        loop._settling = None
        loop._working = None
        loop._held = {}
        loop.held = frozenset()
        loop._observes = cls.observe is not OodaLoop.observe
        loop.kept = loop.undone = loop.failed = 0
        return loop

    cycles: deque[Cycle]
    """The last ones, whatever they decided."""
    actions: deque[Cycle]
    """The last ones that acted; they outlive the uneventful."""
    _pictures: deque[Picture]
    _next_s: float | None
    _observation: Observation | None
    _picture: Picture | None
    _settling: _Settling[Decision] | None
    _working: tuple[Decision, Cycle, bool] | None  # what Work is out, and whether it undoes
    _held: dict[Decision, _Hold]
    _observes: bool
    held: frozenset[Decision]
    """Decisions that would not be tried now."""
    kept: int
    undone: int
    failed: int

    def current_phase(self) -> OodaPhase:
        """The phase that the loop is in; ACT for as long as an action is under way."""
        return self._phase

    def next_s(self) -> float:
        """Before it ``step`` would do nothing."""
        if self._phase is not OodaPhase.OBSERVE:
            return -math.inf
        if not self._observes:
            return math.inf
        return -math.inf if self._next_s is None else self._next_s

    def step(self, now_s: float) -> Work | None:
        """Go through one phase; return what is to be done, if anything is."""
        if self._working is not None:
            return None
        if self.mode is OodaMode.OFF and self._settling is None:
            self._phase = OodaPhase.OBSERVE
            return None
        match self._phase:
            case OodaPhase.OBSERVE:
                if self._next_s is not None and now_s < self._next_s:
                    return None
                self._next_s = now_s + self.period_s
                self._observation = self.observe()
                if self._observation is not None:
                    self._phase = OodaPhase.ORIENT
            case OodaPhase.ORIENT:
                assert self._observation is not None
                self._picture = self.orient(self._observation)
                self._phase = OodaPhase.DECIDE
            case OodaPhase.DECIDE:
                self._phase = OodaPhase.OBSERVE
                return self._conclude(now_s)
            case OodaPhase.ACT:
                self._phase = OodaPhase.OBSERVE
        return None

    def _conclude(self, now_s: float) -> Work | None:
        picture = self._picture
        assert picture is not None
        cycle = Cycle(at_s=now_s, mode=self.mode, observation=self._observation, picture=picture)
        self._pictures.append(picture)
        if self._settling is not None:
            self.cycles.append(cycle)
            return self._verify(self._settling, picture, now_s)
        self.held = frozenset(one for one, hold in self._held.items() if now_s < hold.until_s)
        decision = self.decide(picture)
        if decision is not None and decision not in self.held:
            cycle.decision = decision
            if self.mode is OodaMode.ON:
                cycle.acted = True
                cycle.effect = Effect(before=self._baseline(decision))
                self._working = (decision, cycle, False)
                self._phase = OodaPhase.ACT
                self.actions.append(cycle)
        self.cycles.append(cycle)
        return Work(f"act {decision}", lambda: self.act(decision)) if cycle.acted and decision is not None else None

    def _baseline(self, decision: Decision) -> float | None:
        costs = [cost for picture in self._pictures if (cost := self.cost(picture, decision)) is not None]
        return _median(costs) if costs else None

    def _verify(self, settling: _Settling[Decision], picture: Picture, now_s: float) -> Work | None:
        cost = self.cost(picture, settling.decision)
        if cost is not None:
            settling.costs.append(cost)
        waited_s = now_s - settling.since_s
        if waited_s < self.settle_s:
            return None
        effect = settling.cycle.effect
        assert effect is not None
        if not settling.costs and waited_s < PATIENCE_WINDOWS * self.settle_s:
            return None
        self._settling = None
        if settling.costs:
            effect.after = _median(settling.costs)
            if effect.before is None:
                helped, reason = False, "nothing to compare with"
            else:
                helped = effect.after <= effect.before * (1 - self.min_gain)
                reason = f"cost {effect.before:.6g} → {effect.after:.6g}"
        else:
            helped, reason = False, f"not measurable within {waited_s:.0f} s"
        effect.reason = reason
        if helped:
            effect.verdict = "kept"
            self.kept += 1
            self._held.pop(settling.decision, None)
            self._pictures.clear()
            return None
        self._hold(settling.decision, now_s)
        self._working = (settling.decision, settling.cycle, True)
        self._phase = OodaPhase.ACT
        return Work(f"undo {settling.decision}", lambda: self.undo(settling.decision))

    def finished(self, now_s: float, error: BaseException | None) -> None:
        """The Work of the last step is over; error is what it raised."""
        assert self._working is not None
        decision, cycle, undoing = self._working
        self._working = None
        self._phase = OodaPhase.OBSERVE
        self._pictures.clear()  # they show the world before the change
        assert cycle.effect is not None
        if error is not None:
            cycle.effect.verdict = "failed"
            cycle.effect.reason = f"{'undo' if undoing else 'act'} raised {type(error).__name__}: {error}"
            self.failed += 1
            self._hold(decision, now_s)
        elif undoing:
            cycle.effect.verdict = "undone"
            self.undone += 1
        else:
            self._settling = _Settling(decision=decision, cycle=cycle, since_s=now_s, costs=[])

    def reset(self, now_s: float) -> None:
        """A hook raised: begin again with an observation, a period from now."""
        self._phase = OodaPhase.OBSERVE
        self._next_s = now_s + self.period_s

    def _hold(self, decision: Decision, now_s: float) -> None:
        earlier = self._held.get(decision)
        for_s = self.hold_off_s if earlier is None else earlier.for_s * 2
        self._held[decision] = _Hold(until_s=now_s + for_s, for_s=for_s)


def _median(values: list[float]) -> float:
    """Middle value; of an even number the lower one. The statistics module would cost every service's start 3 ms."""
    return sorted(values)[(len(values) - 1) // 2]


@dataclass
class _Settling(Generic[Decision]):
    decision: Decision
    cycle: Cycle
    since_s: float
    costs: list[float]


@dataclass(frozen=True)
class _Hold:
    until_s: float
    for_s: float
