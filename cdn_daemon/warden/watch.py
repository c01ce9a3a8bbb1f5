"""Keeps the judge's books: who was heard when, and what /proc said of those who were not.

judge.py decides; this file samples, bounded in what it does in one tick. Watched is
who is said to beat, from READY=1 on, who has sent WATCHDOG=1, and who is stopped while
READY=1 is waited for; nobody whose ``watchdog_s`` is 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from bus.messages import ProcessState
from cdn_daemon.warden import procfs
from cdn_daemon.warden.judge import LEAST_SILENCE_S, Finding, Observations, Verdict, Watched, compare, excuse, judge
from cdn_daemon.warden.program import Incarnation, Program

_MAX_SAMPLED = 16
"""Processes looked at in /proc in one tick: about 0.2 ms each. The rest wait for the next."""


class Watch:
    """The judge's eyes."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.spared = 0
        """How often a silence over the limit was excused."""
        self.has_suspects = False
        """Somebody is under observation, so that looking more often helps; not so if nearly all are."""

    def stopped(self, programs: Iterable[Program], now_s: float) -> None:
        """Note which children a signal has stopped, as the kernel reports it with SIGCHLD."""
        while True:
            try:
                report = os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG)
            except ChildProcessError:
                return
            if report is None or not report.si_pid:
                return
            for program in programs:
                if program.now is not None and program.now.pid == report.si_pid:
                    program.now.stopped_since_s = now_s
                    self.has_suspects = True

    def excuse(self, programs: Iterable[Program], late_s: float, now_s: float) -> None:
        """Charge nobody for what was not looked at; late_s over a second starts all windows anew."""
        for program in programs:
            life = program.now
            if life is not None and life.heard_s is not None:
                life.heard_s = excuse(life.heard_s, late_s, now_s)
                life.suspected = None

    def tick(self, programs: Iterable[Program], late_s: float, now_s: float) -> list[Verdict]:
        """Judge those who are watched, in one tick; the convictions."""
        watched: list[Watched] = []
        lives: dict[str, Incarnation] = {}
        sampled = 0
        for program in programs:
            life = program.now
            if life is None or not _is_watched(program, life):
                continue
            silence_s = limit_s(program, life)
            evidence = None
            if life.suspected is not None and sampled < _MAX_SAMPLED:
                sampled += 1
                sample = procfs.sample(life.main_pid or life.pid or 0, now_s)
                if sample is not None:
                    evidence = compare(life.suspected, sample)
                    if sample.state != "T":
                        life.stopped_since_s = None
                    if sample.traced:
                        life.traced_s = now_s
            lives[program.name] = life
            watched.append(
                Watched(
                    name=program.name,
                    limit_s=silence_s,
                    heard_s=life.heard_s if life.heard_s is not None else now_s,
                    extended_until_s=life.extended_until_s,
                    trigger=life.trigger,
                    stopped_since_s=life.stopped_since_s,
                    evidence=evidence,
                    traced_s=life.traced_s,
                    held=bool(program.maintenance),
                )
            )
        convicted: list[Verdict] = []
        suspects = sum(each.evidence is not None or each.stopped_since_s is not None for each in watched)
        self.has_suspects = 0 < suspects <= _MAX_SAMPLED
        for verdict in judge(now_s, Observations(tuple(watched), late_s)):
            life = lives[verdict.name]
            if verdict.finding is Finding.SUSPECT and life.suspected is None:
                life.suspected = procfs.sample(life.main_pid or life.pid or 0, now_s)
            elif verdict.finding is Finding.SPARED:
                self._spare(life, verdict)
            elif verdict.finding is Finding.HELD:
                self.withhold(verdict.name, life, verdict.text)
            elif verdict.finding in (Finding.STOPPED, Finding.HUNG):
                convicted.append(verdict)
        return convicted

    def withhold(self, name: str, life: Incarnation, text: str) -> None:
        """Note, once, what a process in maintenance would be killed for."""
        if not life.withheld:
            life.withheld = text
            self._log(f"'{name}' is in maintenance, and not killed: {text}")

    def _spare(self, life: Incarnation, verdict: Verdict) -> None:
        if not life.spared:
            life.spared = verdict.text
            self.spared += 1
            self._log(f"'{verdict.name}' {verdict.text}")


def _is_watched(program: Program, life: Incarnation) -> bool:
    if life.pid is None or life.verdict:
        return False
    if life.trigger is not None and program.state in (ProcessState.STARTING, ProcessState.RUNNING):
        return True
    if program.is_awaited and life.stopped_since_s is not None and program.settings.watchdog_s > 0.0:
        return True  # it will not get ready
    return (
        program.state is ProcessState.RUNNING
        and life.heard_s is not None
        and not life.stopping
        and limit_s(program, life) > 0.0
    )


def limit_s(program: Program, life: Incarnation) -> float:
    """The silence that it may keep; 0.0: any."""
    own = program.settings.watchdog_s
    if own == 0.0 or life.watchdog_s is None:
        return own  # an operator's 0 is never
    return max(life.watchdog_s, LEAST_SILENCE_S) if life.watchdog_s else 0.0
