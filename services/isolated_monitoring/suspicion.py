"""How much speaks against a target. Pure: time comes in as an Instant, of a FairClock.

What cannot be an accident of scheduling, a refused connection, has to be seen
twice. Silence is judged by phi accrual (Hayashibara et al. 2004): how unlikely it
is, by the answers that came before, that one is still on its way.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from services.isolated_monitoring.target import Condition

PHI_CONVICTS = 8.0
"""Wrong once in 10⁸ by the target's own distribution; the usual choice (Akka, Cassandra)."""
DEVIATION_LEAST_S = 0.25
"""Round trips on one host vary by too little to judge by: a page fault would convict."""
CONFIRM_S = 0.25
"""Hard evidence is looked at again after this."""
PENDING_S = 0.4
"""A probe after a silent one need not run out: this long without an answer, and it is silent too."""
WRONG_S = 1.0
"""An answer that is wrong has to stay wrong for this long."""
TICK_MAX_S = 0.3
"""Of one tick of the judge no more is charged, however long it took."""
PRESSURE_DISCOUNT = 0.8
"""While somebody waits for a CPU all the time, a second counts for a fifth of one."""
STARVED_PART = 0.5
"""Who waited for a CPU for this part of the time since it was suspected is spared."""


class Outcome(Enum):
    """How a probe ended."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """Nobody listens, there is no such socket or process: hard evidence."""
    WRONG = "wrong"
    """It answers, and not as it should."""
    SILENT = "silent"
    """No answer in time."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a probe brought."""

    outcome: Outcome
    took_s: float
    text: str = ""


class Instant(NamedTuple):
    """A moment of the judge's time."""

    seen_s: float
    """By a clock that stands still while the judge is late."""
    fair_s: float
    """By one that goes slower, besides, while the host is short of CPU."""


class FairClock:
    """Time as far as it may be held against anybody: what the judge missed, or the host was short of, counts less."""

    def __init__(self) -> None:
        self.now = Instant(0.0, 0.0)
        self.late_s = 0.0
        """What was not charged as the judge itself was late, in all."""

    def tick(self, passed_s: float, pressure: float) -> None:
        """Advance. pressure is the part of that time, 0 to 1, in which somebody waited for a CPU."""
        charged_s = min(passed_s, TICK_MAX_S)
        self.late_s += passed_s - charged_s
        # Squared, as on a busy host somebody waits for a moment most of the time, and nobody is late by it.
        short = min(1.0, max(0.0, pressure)) ** 2
        self.now = Instant(self.now.seen_s + charged_s, self.now.fair_s + charged_s * (1 - PRESSURE_DISCOUNT * short))


class Suspicion:
    """The evidence against one target."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=100)
        self.failures = 0
        """In a row."""
        self.outcome = Outcome.ANSWERED
        """The last."""
        self.text = ""
        self._first = Instant(0.0, 0.0)
        """When the first probe was sent that failed."""
        self._waited_s: float | None = None
        self._suspected = self._first
        self.spared = 0
        """How often it would have been convicted had it not been starved."""

    def hear(self, answer: Answer, sent: Instant, now: Instant, waited_s: float | None = None) -> None:
        """Take in what a probe brought that was sent at that time.

        waited_s: how long the target's process has waited for a CPU so far.
        """
        self.outcome, self.text = answer.outcome, answer.text
        if answer.outcome is Outcome.ANSWERED:
            self._took.append(answer.took_s)
            self.failures = 0
            return
        if not self.failures:
            self._first, self._suspected, self._waited_s = sent, now, waited_s
        self.failures += 1

    def forget(self) -> None:
        """It is another process from now on."""
        self.failures = 0
        self.outcome, self.text = Outcome.ANSWERED, ""

    def usual_s(self) -> float | None:
        """Its median round trip."""
        return sorted(self._took)[len(self._took) // 2] if self._took else None

    def phi(self, now: Instant) -> float:
        """How unlikely its silence is, as minus the decimal logarithm; 0 for who answers."""
        if not self.failures:
            return 0.0
        mean_s = sum(self._took) / len(self._took) if self._took else 0.1
        variance = sum((took - mean_s) ** 2 for took in self._took) / len(self._took) if self._took else 0.0
        y = (now.fair_s - self._first.fair_s - mean_s) / max(DEVIATION_LEAST_S, math.sqrt(variance))
        # The logistic approximation of the normal distribution's tail.
        exponent = y * (1.5976 + 0.070566 * y * y)
        if exponent > 700:
            return 300.0
        tail = math.exp(-exponent)
        return -math.log10(tail / (1.0 + tail)) if y > 0 else -math.log10(1.0 - 1.0 / (1.0 + tail) + 1e-300)

    def judge(
        self, now: Instant, patience_s: float = 0.0, waited_s: float | None = None, pending_s: float = 0.0
    ) -> Condition:
        """UP, SUSPECT or DOWN. patience_s: how much longer evidence has to last for this target.

        pending_s: how long a probe has been under way; one that should have been answered long ago counts.
        """
        if not self.failures:
            return Condition.UP
        failures = self.failures + (pending_s >= max(PENDING_S, 10 * (self.usual_s() or 0.0)))
        lasted_s = now.seen_s - self._first.seen_s
        match self.outcome:
            case Outcome.REFUSED:
                convicted = self.failures >= 2 and lasted_s >= max(CONFIRM_S, patience_s)
            case Outcome.WRONG:
                convicted = self.failures >= 2 and lasted_s >= max(WRONG_S, patience_s)
            case _:
                convicted = failures >= 2 and lasted_s >= patience_s and self.phi(now) >= PHI_CONVICTS
        if not convicted:
            return Condition.SUSPECT
        if self.outcome is Outcome.SILENT and self._was_starved(now, waited_s):
            self.spared += 1
            self._first = self._suspected = now
            self._waited_s = waited_s
            return Condition.SUSPECT
        return Condition.DOWN

    def _was_starved(self, now: Instant, waited_s: float | None) -> bool:
        if waited_s is None or self._waited_s is None:
            return False
        return waited_s - self._waited_s > STARVED_PART * max(now.seen_s - self._suspected.seen_s, CONFIRM_S)
