"""How much speaks against a target. Pure: time comes in as ``fair_s``, see FairClock.

What cannot be an accident of scheduling, a refused connection, has to be seen
twice. Silence is judged by phi accrual (Hayashibara et al. 2004): how unlikely it
is, by the answers that came before, that one is still on its way.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from services.isolated_monitoring.target import Condition

PHI_CONVICTS = 8.0
"""Wrong once in 10⁸ by the target's own distribution; the usual choice (Akka, Cassandra)."""
DEVIATION_LEAST_S = 0.25
"""Round trips on one host vary by too little to judge by: a page fault would convict."""
CONFIRM_S = 0.25
"""Hard evidence is looked at again after this."""
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


class FairClock:
    """Time as far as it may be held against anybody: what the judge missed, or the host was short of, counts less."""

    def __init__(self) -> None:
        self.fair_s = 0.0
        self.late_s = 0.0
        """What was not charged as the judge itself was late, in all."""

    def tick(self, passed_s: float, pressure: float) -> None:
        """Advance. pressure is the part of that time, 0 to 1, in which somebody waited for a CPU."""
        charged_s = min(passed_s, TICK_MAX_S)
        self.late_s += passed_s - charged_s
        self.fair_s += charged_s * (1.0 - PRESSURE_DISCOUNT * min(1.0, max(0.0, pressure)))


class Suspicion:
    """The evidence against one target."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=100)
        self.failures = 0
        """In a row."""
        self.outcome = Outcome.ANSWERED
        """The last."""
        self.text = ""
        self._first_s = 0.0
        """Fair time when the first probe was sent that failed."""
        self._waited_s: float | None = None
        self._suspected_s = 0.0
        self.spared = 0
        """How often it would have been convicted had it not been starved."""

    def hear(self, answer: Answer, sent_s: float, now_s: float, waited_s: float | None = None) -> None:
        """Take in what a probe brought that was sent at that fair time.

        waited_s: how long the target's process has waited for a CPU so far.
        """
        self.outcome, self.text = answer.outcome, answer.text
        if answer.outcome is Outcome.ANSWERED:
            self._took.append(answer.took_s)
            self.failures = 0
            return
        if not self.failures:
            self._first_s, self._suspected_s, self._waited_s = sent_s, now_s, waited_s
        self.failures += 1

    def forget(self) -> None:
        """It is another process from now on."""
        self.failures = 0
        self.outcome, self.text = Outcome.ANSWERED, ""

    def usual_s(self) -> float | None:
        """Its median round trip."""
        return sorted(self._took)[len(self._took) // 2] if self._took else None

    def phi(self, now_s: float) -> float:
        """How unlikely its silence is, as minus the decimal logarithm; 0 for who answers."""
        if not self.failures:
            return 0.0
        mean_s = sum(self._took) / len(self._took) if self._took else 0.1
        variance = sum((took - mean_s) ** 2 for took in self._took) / len(self._took) if self._took else 0.0
        y = (now_s - self._first_s - mean_s) / max(DEVIATION_LEAST_S, math.sqrt(variance))
        # The logistic approximation of the normal distribution's tail.
        exponent = y * (1.5976 + 0.070566 * y * y)
        if exponent > 700:
            return 300.0
        tail = math.exp(-exponent)
        return -math.log10(tail / (1.0 + tail)) if y > 0 else -math.log10(1.0 - 1.0 / (1.0 + tail) + 1e-300)

    def judge(self, now_s: float, patience_s: float = 0.0, waited_s: float | None = None) -> Condition:
        """UP, SUSPECT or DOWN. patience_s: how much longer evidence has to last for this target."""
        if not self.failures:
            return Condition.UP
        lasted_s = now_s - self._first_s
        match self.outcome:
            case Outcome.REFUSED:
                convicted = self.failures >= 2 and lasted_s >= max(CONFIRM_S, patience_s)
            case Outcome.WRONG:
                convicted = self.failures >= 2 and lasted_s >= max(WRONG_S, patience_s)
            case _:
                convicted = self.failures >= 2 and lasted_s >= patience_s and self.phi(now_s) >= PHI_CONVICTS
        if not convicted:
            return Condition.SUSPECT
        if self.outcome is Outcome.SILENT and self._was_starved(now_s, waited_s):
            self.spared += 1
            self._first_s = self._suspected_s = now_s
            self._waited_s = waited_s
            return Condition.SUSPECT
        return Condition.DOWN

    def _was_starved(self, now_s: float, waited_s: float | None) -> bool:
        if waited_s is None or self._waited_s is None:
            return False
        return waited_s - self._waited_s > STARVED_PART * max(now_s - self._suspected_s, CONFIRM_S)
