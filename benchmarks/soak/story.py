"""A history, put in order by whom it is about: lives, outages, orders, and what was measured beside them. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from benchmarks.soak.history import (
    Answered,
    Appeared,
    Asked,
    Bare,
    Began,
    Ceased,
    Died,
    Ending,
    Event,
    Holds,
    Injected,
    Late,
    Row,
    Silent,
    Told,
    Vanished,
)

SLACK = 4.0
"""A start may take so many times as long as bare starts beside it: the worst was hardly among those."""
LEAST_BARE_S = 0.1
"""A bare start counts as that long at least: below it, it is the scheduler that is measured."""
STEP_S = 0.5
"""How finely it is told when things were slow."""
SUPERVISORD, ATLAS = "supervisord", "atlas"


class Life(Struct, kw_only=True):
    """One process of a program, from its start to its end."""

    name: str
    pid: int
    mark: str
    began_s: float
    ended_s: float | None = None
    served_s: float = math.inf
    """When it first answered, or ended without; until then it is starting."""
    held: bool = False
    report: Died | None = None
    faults: list[Injected] = []

    @property
    def supervisor(self) -> int:
        """The pid of the supervisord that has started it."""
        return int(self.mark.partition("/")[0] or 0)


class Outage(Struct, frozen=True):
    """A time in which nobody answered for a service."""

    name: str
    from_s: float
    to_s: float


class Span(Struct, frozen=True):
    """From then till then."""

    from_s: float
    to_s: float

    def overlap_s(self, from_s: float, to_s: float) -> float:
        """How much of it lies there."""
        return max(0.0, min(self.to_s, to_s) - max(self.from_s, from_s))


class Story:
    """A history, put in order by whom it is about."""

    def __init__(self, history: Sequence[Event]) -> None:
        self.began = next(event for event in history if isinstance(event, Began))
        self.over_s = max(event.at_s for event in history)
        self.ending_s = next((event.at_s for event in history if isinstance(event, Ending)), self.over_s)
        self.lives: dict[str, list[Life]] = defaultdict(list)
        self.children: list[Life] = []
        self.faults = [event for event in history if isinstance(event, Injected)]
        self.ceased = {event.number: event.at_s for event in history if isinstance(event, Ceased)}
        self.asked: dict[str, Asked] = {}
        self.told: dict[str, list[Told]] = defaultdict(list)
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.died: list[Died] = []
        self.bare = [event for event in history if isinstance(event, Bare) and event.name != ATLAS]
        self.late = [event for event in history if isinstance(event, Late)]
        self.bare_cpu_s = max(LEAST_BARE_S, statistics.median([each.cpu_s for each in self.bare] or [0.0]))
        atlas_cpu_s = [event.cpu_s for event in history if isinstance(event, Bare) and event.name == ATLAS]
        self.atlas_weight = max(1.0, statistics.median(atlas_cpu_s or [0.0]) / self.bare_cpu_s)
        """Its start takes so many times as much as a service's."""
        self.outages: list[Outage] = []
        self._starting: list[Life] = []
        self._slowness: dict[int, float] = {}
        self._gather(history)
        self._match()
        self.unsupervised = list(self._without_supervisord())
        self.overloads = [Span(*self.span_of(each)) for each in self.faults if each.fault == "overload"]

    def _gather(self, history: Sequence[Event]) -> None:
        living: dict[int, Life] = {}
        silent: dict[str, float] = {}
        for event in history:
            match event:
                case Appeared():
                    life = Life(name=event.name, pid=event.pid, mark=event.mark, began_s=event.at_s, faults=[])
                    living[event.pid] = life
                    (self.children if event.child else self.lives[event.name]).append(life)
                    if not event.child and event.name != SUPERVISORD:
                        self._starting.append(life)
                case Holds() if event.pid in living:
                    living[event.pid].held = True
                case Vanished() if event.pid in living:
                    life = living.pop(event.pid)
                    life.ended_s = event.at_s
                    life.served_s = min(event.at_s, life.served_s)
                case Silent():
                    silent.setdefault(event.name, event.last_s)
                case Answered():
                    if event.pid in living:
                        living[event.pid].served_s = min(event.at_s, living[event.pid].served_s)
                    if event.name in silent:
                        self.outages.append(Outage(event.name, silent.pop(event.name), event.at_s))
                case Asked():
                    self.asked.setdefault(event.id, event)
                case Told():
                    self.told[event.id].append(event)
                case Row():
                    self.rows[event.name].append(event)
                case Died():
                    self.died.append(event)
                case _:
                    continue
        self.outages += [
            Outage(name, from_s, self.ending_s) for name, from_s in silent.items() if from_s < self.ending_s
        ]

    def _match(self) -> None:
        """Give each life its post-mortem, and what was done to it."""
        for report in self.died:
            theirs = [life for life in self.lives[report.name] if life.pid == report.pid and life.report is None]
            if theirs:  # who lived too shortly was never seen
                min(theirs, key=lambda life: abs((life.ended_s or self.over_s) - report.at_s)).report = report
        for fault in self.faults:
            from_s, to_s = self.span_of(fault)
            for life in self.lives[fault.name]:
                is_it = fault.pid == life.pid and life.began_s <= from_s <= (life.ended_s or self.over_s)
                is_looped = (
                    fault.fault == "crash_loop"
                    and from_s - 1.0 <= (life.ended_s or self.over_s)
                    and life.began_s <= to_s
                )
                if is_it or is_looped:
                    life.faults.append(fault)

    def _without_supervisord(self) -> Iterator[Span]:
        """When there was none that could have acted."""
        lives = self.lives[SUPERVISORD]
        for one, other in zip(lives, [*lives[1:], None], strict=False):
            if one.ended_s is not None and one.ended_s < self.ending_s:
                yield Span(one.ended_s, other.began_s if other is not None else self.over_s)
        for fault in self.faults:
            if fault.fault == "supervisord_stopped":
                yield Span(*self.span_of(fault))

    def span_of(self, fault: Injected) -> tuple[float, float]:
        """From when to when it goes on."""
        return fault.at_s, self.ceased.get(fault.number, fault.at_s + fault.lasts_s)

    # -- what was measured, and what is declared ---------------------------------------------------------------

    def bare_s(self, from_s: float, to_s: float) -> float:
        """The longest bare start at that time; the one nearest to it, if there was none."""
        near = [
            each.took_s for each in self.bare if each.at_s <= to_s + 3.0 and each.at_s + each.took_s >= from_s - 3.0
        ]
        if not near and self.bare:
            near = [min(self.bare, key=lambda each: abs(each.at_s - from_s)).took_s]
        return max([LEAST_BARE_S, *near])

    def slowness(self, from_s: float, to_s: float) -> float:
        """How many times as long things took as they would have with a processor to themselves."""
        return max(1.0, self.bare_s(from_s, to_s) / self.bare_cpu_s)

    def stretched_s(self, from_s: float, seconds: float) -> float:
        """How long what takes so many seconds with a processor to itself may take, begun then.

        Twice as long as by how slow things were at each moment of it; what was slow after that excuses nothing.
        """
        at_s, left_s = from_s, 2.0 * seconds
        while left_s > 0.0:
            left_s -= STEP_S / self._slowness_about(int(at_s / STEP_S))
            at_s += STEP_S
        return at_s - from_s

    def _slowness_about(self, step: int) -> float:
        if step not in self._slowness:
            self._slowness[step] = self.slowness(step * STEP_S, (step + 1) * STEP_S)
        return self._slowness[step]

    def start_s(self, name: str, from_s: float, to_s: float) -> float:
        """How long a start may take in that time: others that are starting then share the processors."""
        beside = sum(life.began_s < to_s and life.served_s > from_s for life in self._starting)
        weight = self.atlas_weight if name == ATLAS else 1.0
        return SLACK * weight * self.bare_s(from_s, to_s) * (1.0 + beside / self.began.cores)

    def settled_s(self, from_s: float) -> float:
        """When, from then on, at most two processes of the fleet were starting at once."""
        changes = sorted(
            change for life in self._starting for change in ((life.began_s, 1), (min(life.served_s, self.over_s), -1))
        )
        starting, since_s = 0, 0.0
        for at_s, more in changes:
            if starting <= 2 and at_s > from_s:
                return max(since_s, from_s)
            starting += more
            since_s = at_s if starting <= 2 else since_s
        return max(since_s, from_s)

    def late_s(self, from_s: float, to_s: float) -> float:
        """How much of that time the recorder did not see."""
        return sum(each.took_s for each in self.late if from_s <= each.at_s <= to_s + each.took_s)

    def overlap_s(self, spans: Iterable[Span], from_s: float, to_s: float) -> float:
        """How much of these spans lies there."""
        return sum(span.overlap_s(from_s, to_s) for span in spans)

    def orders(self, name: str, *verbs: str) -> list[Span]:
        """When commands of these verbs were under way."""
        return [
            Span(asked.at_s, min((told.at_s for told in self.told[asked.id]), default=self.over_s))
            for asked in self.asked.values()
            if asked.name == name and asked.verb in verbs
        ]

    def put_down(self, name: str) -> list[Span]:
        """When an operator wanted it down: from a stop that was asked to the outcome of the start after it."""
        starts = self.orders(name, "start", "restart")
        found = []
        for stop in self.orders(name, "stop"):
            after = [start.to_s for start in starts if start.from_s >= stop.from_s]
            found.append(Span(stop.from_s, min(after, default=self.over_s)))
        return found

    def given_up(self, name: str) -> list[Span]:
        """When it was quarantined, till the outcome of the start that ended that; or held by ATLAS."""
        starts = self.orders(name, "start", "restart")
        rows = self.rows[name]
        found = []
        for row, following in zip(rows, [*rows[1:], None], strict=False):
            until_s = following.at_s if following is not None else self.over_s
            if row.state == "FATAL":
                found.append(
                    Span(row.at_s, min((each.to_s for each in starts if each.to_s >= row.at_s), default=until_s))
                )
            elif row.state == "BACKOFF" and row.reason.startswith("held by"):
                found.append(Span(row.at_s, until_s))
        return found

    def was_killed(self, supervisor: int, by_s: float) -> bool:
        """Whether that supervisord had ended by then."""
        return any(
            life.pid == supervisor and life.ended_s is not None and life.ended_s <= by_s
            for life in self.lives[SUPERVISORD]
        )

    def failures_before(self, life: Life) -> int:
        """How many ends in a row, this one included, the policy may have counted against it."""
        lives = self.lives[life.name]
        count = 0
        for each in reversed(lives[: lives.index(life) + 1]):
            if each is not life and (
                each.supervisor != life.supervisor
                or (each.ended_s or self.over_s) - each.began_s >= self.began.healthy_s + 5.0
            ):
                break
            count += 1
        return count

    def backoff_s(self, life: Life) -> float:
        """The longest wait that the declared policy has after the end of this life."""
        began, failures = self.began, self.failures_before(life)
        if failures <= 1:
            return 0.0
        return min(began.first_wait_s * 2.0 ** (failures - 2), began.longest_wait_s) * (1.0 + began.jitter)
