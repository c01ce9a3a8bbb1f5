"""How well a service does: its checks and the daemon's own findings, as one status. Pure.

The daemon runs the checks; here is only what their results mean. A check that
hangs is a failed one, and is not started again until it has ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bus.messages import HealthStatus

REASON_CHARS = 1000
_WORST_FIRST = (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.UNKNOWN, HealthStatus.HEALTHY)


def fit(text: str) -> str:
    """A reason as it can be told, whatever an author's code has put into it: not without end, of real characters."""
    return text[:REASON_CHARS].encode(errors="replace").decode()


@dataclass(frozen=True, kw_only=True)
class Check:
    """A health check as its author declared it."""

    name: str
    function: Callable[[], Any]
    is_async: bool
    every_s: float
    timeout_s: float
    fails_after: int | None
    """Failures in a row that make the service unhealthy; fewer make it degraded. None: none ever make it unhealthy."""


@dataclass
class _Record:
    check: Check
    due_s: float | None = None
    started_s: float | None = None
    timed_out_s: float | None = None
    """When it last counted as failed for taking too long."""
    failures: int = 0
    passed: bool = False
    reason: str = ""


class HealthMonitor:
    """Knows when each check is due, and what all of them together say."""

    def __init__(self, checks: Iterable[Check]) -> None:
        self._records = {check.name: _Record(check) for check in checks}
        self._findings: dict[str, tuple[HealthStatus, str]] = {}
        self.version = 0
        """Grows with whatever may change status or reasons, so that nobody need ask for those in vain."""
        self._said: tuple[int, HealthStatus, tuple[str, ...]] = (-1, HealthStatus.UNKNOWN, ())
        """Status and reasons as of a version."""

    def due(self, now_s: float) -> list[Check]:
        """The checks to start now; call ``started`` for each."""
        return [
            record.check
            for record in self._records.values()
            if record.started_s is None and (record.due_s is None or now_s >= record.due_s)
        ]

    def next_s(self) -> float:
        """When there is something to look at next: a check to start, or one that runs to time out."""
        moments = [
            record.due_s if record.started_s is None else record.started_s
            for record in self._records.values()
            if record.due_s is not None
        ]
        return min(moments, default=math.inf) if len(moments) == len(self._records) else -math.inf

    def all_due(self) -> None:
        """Make every check due now, as an operator wants to know."""
        for record in self._records.values():
            record.due_s = None

    def started(self, name: str, now_s: float) -> None:
        """The check runs."""
        record = self._records[name]
        record.started_s = now_s
        record.timed_out_s = None
        record.due_s = now_s + record.check.every_s

    def finished(self, name: str, failure: str | None) -> None:
        """The check ended; failure is the reason if it failed. A result after the time-out only ends the waiting."""
        record = self._records[name]
        record.started_s = None
        if record.timed_out_s is not None:
            return
        if failure is None:
            if record.failures or not record.passed:
                self.version += 1
            record.failures, record.passed, record.reason = 0, True, ""
        else:
            self._fail(record, failure)

    def tick(self, now_s: float) -> None:
        """Fail the checks that have taken too long, and once more for every period that they go on."""
        for record in self._records.values():
            if record.started_s is None:
                continue
            check = record.check
            if record.timed_out_s is None:
                late = now_s - record.started_s >= check.timeout_s
            else:
                late = now_s - record.timed_out_s >= check.every_s
            if late:
                record.timed_out_s = now_s
                self._fail(record, f"no answer within {check.timeout_s:g} s")

    def restart_windows(self, now_s: float) -> None:
        """The observer itself was away: what ran meanwhile gets its full time again."""
        for record in self._records.values():
            if record.started_s is not None:
                record.started_s = now_s
            if record.timed_out_s is not None:
                record.timed_out_s = now_s

    def _fail(self, record: _Record, reason: str) -> None:
        self.version += 1
        record.failures += 1
        record.reason = fit(reason)

    def running(self) -> bool:
        """Whether a check is under way that has not yet timed out, or one is still to be started."""
        return any(
            (record.started_s is not None and record.timed_out_s is None) or record.due_s is None
            for record in self._records.values()
        )

    def find(self, name: str, status: HealthStatus, reason: str) -> None:
        """Put down a finding of the daemon's own, replacing an earlier one of that name."""
        reason = fit(reason)
        if self._findings.get(name) != (status, reason):
            self._findings[name] = (status, reason)
            self.version += 1

    def finding(self, name: str) -> tuple[HealthStatus, str] | None:
        """The daemon's finding of that name, if there is one."""
        return self._findings.get(name)

    def clear(self, name: str) -> None:
        """Take a finding back, if there is one."""
        if self._findings.pop(name, None) is not None:
            self.version += 1

    def _opinions(self) -> list[tuple[HealthStatus, str]]:
        opinions = list(self._findings.values())
        for name, record in self._records.items():
            check = record.check
            if record.failures and check.fails_after is None:
                opinions.append((HealthStatus.DEGRADED, f"{name}: {record.reason}"))
            elif check.fails_after is not None and record.failures >= check.fails_after:
                opinions.append((HealthStatus.UNHEALTHY, f"{name}: {record.reason}"))
            elif record.failures:
                count = f"{record.failures} of {check.fails_after}"
                opinions.append((HealthStatus.DEGRADED, f"{name} ({count}): {record.reason}"))
            elif not record.passed:
                opinions.append((HealthStatus.UNKNOWN, f"{name}: not yet known"))
        return opinions

    def status(self) -> HealthStatus:
        """The worst of what is known; healthy when nothing speaks against it."""
        return self._as_of_now()[1]

    def reasons(self) -> tuple[str, ...]:
        """Why it is not healthy, the worst first."""
        return self._as_of_now()[2]

    def _as_of_now(self) -> tuple[int, HealthStatus, tuple[str, ...]]:
        version = self.version  # first, as another thread may put down a finding meanwhile
        if self._said[0] != version:
            opinions = sorted(self._opinions(), key=lambda opinion: _WORST_FIRST.index(opinion[0]))
            status = opinions[0][0] if opinions else HealthStatus.HEALTHY
            self._said = (version, status, tuple(reason for _, reason in opinions))
        return self._said
