"""Incidents: what is down, grouped to one root cause, from opening to resolved. Pure: time comes in as now_s.

One incident is one alert. It opens a moment after the first of its targets went
down, so that a cause that shows itself later than its consequence is named all
the same; what fails while it is open, and depends on its root, joins it silently.
It ends when all of it has been well for a while, longer for what keeps falling.

Invariants, held by the tests after every step: a target is in one open incident
at most; the root is one of the targets; what was told has been told once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from services.isolated_monitoring.target import HOST, Condition, View

GATHER_S = 0.5
"""From the first that is down to the alert."""
SUSPECT_S = 1.5
"""A cause that is suspected, and not convicted, is waited for this much longer at most."""
REROOT_S = 60.0
"""A cause that is found this long after its consequence still becomes the root."""
SETTLE_S = 5.0
"""From the last recovery to resolved, by default; doubles with each relapse."""
SETTLE_MAX_S = 300.0
FLAP_MEMORY_S = 600.0
"""What was resolved this recently and falls again is the same incident's relapse."""
HOST_LEAST = 3
HOST_PART = 0.5
"""At least so many, and so much of all that is watched, down within GATHER_S: that is the host."""
RESOLVED_KEPT = 200


class Change(Enum):
    """What happened to an incident."""

    OPENED = "opened"
    RESOLVED = "resolved"
    MERGED = "merged"
    """It was told, and turned out to be part of another that was told as well."""
    REMINDED = "reminded"


@dataclass(kw_only=True)
class Member:
    """A target's part in an incident."""

    reason: str
    since_s: float
    is_down: bool = True
    relapses: int = 0


@dataclass(kw_only=True)
class Incident:
    """One root cause and its consequences. Times ending in _s are monotonic, unix_s is for people."""

    id: str
    root: str
    opened_s: float
    """When the first of it went down."""
    unix_s: float
    members: dict[str, Member] = field(default_factory=dict)
    takes_along: list[str] = field(default_factory=list)
    """What lives within its root and needs no evidence of its own."""
    told: bool = False
    told_s: float = 0.0
    well_s: float | None = None
    """Since when all of it is well; None while it is not."""
    resolved_s: float | None = None
    relapses: int = 0
    part_of: str = ""
    """The incident that it was merged into."""

    @property
    def reason(self) -> str:
        """Of its root."""
        return self.members[self.root].reason if self.root in self.members else ""

    @property
    def duration_s(self) -> float | None:
        """From the first that went down to the last that recovered; None while it lasts."""
        return None if self.resolved_s is None else max(0.0, self.resolved_s - self.opened_s)

    @property
    def consequences(self) -> list[str]:
        """All that is down but the root."""
        return [name for name in dict.fromkeys([*self.members, *self.takes_along]) if name != self.root]

    @property
    def title(self) -> str:
        """A line for people."""
        along = self.consequences
        shown = ", ".join(along[:8]) + (f" and {len(along) - 8} more" if len(along) > 8 else "")
        return f"{self.root} is down: {self.reason}" + (f"; with it {shown}" if along else "")

    def settle_s(self, first_s: float = SETTLE_S) -> float:
        """How long it has to be well; first_s as long as it has not relapsed."""
        return float(min(SETTLE_MAX_S, first_s * 2 ** min(self.relapses, 10)))

    def plain(self) -> dict[str, Any]:
        """For the store."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Incident:
        """From the store."""
        members = {name: Member(**member) for name, member in plain["members"].items()}
        return cls(**{**plain, "members": members})


class Incidents:
    """All open incidents, and the last that were resolved."""

    def __init__(self, new_id: Callable[[], str], realert_s: float = 0.0, settle_s: float = SETTLE_S) -> None:
        self._new_id = new_id
        self._realert_s = realert_s
        self._settle_s = settle_s
        self._merged: list[Incident] = []
        self.open: dict[str, Incident] = {}
        self.resolved: list[Incident] = []

    def restore(self, incidents: Iterable[Incident], now_s: float) -> None:
        """Take over what an earlier process of this monitor left; nothing of it is told again."""
        for incident in sorted(incidents, key=lambda each: each.opened_s):
            if incident.resolved_s is None:
                incident.well_s = now_s if incident.well_s is not None else None
                self.open[incident.id] = incident
            else:
                self.resolved.append(incident)

    def of(self, name: str) -> Incident | None:
        """The open incident that a target is in."""
        return next((each for each in self.open.values() if name in each.members), None)

    def step(
        self, now_s: float, unix_s: float, views: Mapping[str, View], quiet: Collection[str] = ()
    ) -> list[tuple[Change, Incident]]:
        """What follows from how everything is now. quiet: targets in maintenance, of whom nothing is told."""
        changes: list[tuple[Change, Incident]] = []
        self._merged = []
        down = {name: view for name, view in views.items() if view.condition is Condition.DOWN and name not in quiet}
        self._refresh(now_s, views, down, quiet)
        for name in sorted(down, key=lambda each: len(_causes(each, views))):
            if self.of(name) is None:
                self._place(name, now_s, unix_s, views, down)
        self._find_the_host(now_s, views)
        changes.extend((Change.MERGED, incident) for incident in self._merged)
        for incident in list(self.open.values()):
            change = self._conclude(incident, now_s, views)
            if change is not None:
                changes.append((change, incident))
        return changes

    def _refresh(
        self, now_s: float, views: Mapping[str, View], down: Mapping[str, View], quiet: Collection[str]
    ) -> None:
        for incident in self.open.values():
            for name, member in incident.members.items():
                if name == HOST:
                    continue
                view = views.get(name)
                if name in down:
                    if not member.is_down:
                        member.relapses += 1
                        incident.relapses += 1
                    member.is_down, member.reason = True, down[name].reason or member.reason
                elif view is None or name in quiet or view.condition in (Condition.UP, Condition.STOPPED):
                    member.is_down = False
            others = [member for name, member in incident.members.items() if name != HOST]
            if HOST in incident.members and others:
                incident.members[HOST].is_down = any(member.is_down for member in others)
            if any(member.is_down for member in incident.members.values()):
                incident.well_s = None
            elif incident.well_s is None:
                incident.well_s = now_s

    def _place(
        self, name: str, now_s: float, unix_s: float, views: Mapping[str, View], down: Mapping[str, View]
    ) -> None:
        view = down[name]
        member = Member(reason=view.reason, since_s=view.since_s)
        causes = _causes(name, views)
        for incident in self.open.values():
            if causes & set(incident.members) or name in incident.takes_along:
                incident.members[name] = member
                incident.well_s = None
                return
        # A cause that shows itself after its consequences takes over their incidents.
        explained = [
            each
            for each in self.open.values()
            if now_s - each.opened_s <= REROOT_S and name in _causes(each.root, views)
        ]
        relapse = self._lately(name, now_s)
        incident = (
            explained[0]
            if explained
            else Incident(id=self._new_id(), root=name, opened_s=view.since_s, unix_s=unix_s - (now_s - view.since_s))
        )
        for other in explained[1:]:
            if other.told and not incident.told:
                incident, other = other, incident
            incident.members.update(other.members)
            incident.opened_s = min(incident.opened_s, other.opened_s)
            del self.open[other.id]
            if other.told:
                other.part_of, other.resolved_s = incident.id, now_s
                self.resolved.append(other)
                self._merged.append(other)
        incident.root = name
        incident.members[name] = member
        incident.well_s = None
        incident.relapses += relapse
        incident.takes_along = [each for each, other in views.items() if _lives_within(other, name, views)]
        self.open[incident.id] = incident

    def _lately(self, name: str, now_s: float) -> int:
        """How often it has failed lately."""
        return sum(
            1 + each.relapses
            for each in self.resolved
            if each.root == name
            and not each.part_of
            and each.resolved_s is not None
            and now_s - each.resolved_s < FLAP_MEMORY_S
        )

    def _find_the_host(self, now_s: float, views: Mapping[str, View]) -> None:
        young = [
            each for each in self.open.values() if not each.told and each.root in views and views[each.root].is_probed
        ]
        roots = [each for each in young if not _causes(each.root, views) & {each.root for each in young}]
        probed = sum(view.is_probed and not view.within for view in views.values())
        if len(roots) < HOST_LEAST or len(roots) < HOST_PART * probed:
            return
        first, *others = sorted(young, key=lambda each: each.opened_s)
        for other in others:
            first.members.update(other.members)
            first.takes_along = list(dict.fromkeys([*first.takes_along, *other.takes_along]))
            del self.open[other.id]
        first.root = HOST
        first.members[HOST] = Member(
            reason=f"{len(roots)} of {probed} targets fell within a moment", since_s=first.opened_s
        )

    def _conclude(self, incident: Incident, now_s: float, views: Mapping[str, View]) -> Change | None:
        if not incident.told:
            # since when it is known here, not since when it was so: a restarted monitor gathers anew
            age_s = now_s - incident.opened_s
            suspects = any(
                views[name].condition is Condition.SUSPECT for name in _causes(incident.root, views) if name in views
            )
            if age_s >= GATHER_S + (SUSPECT_S if suspects else 0.0):
                incident.told, incident.told_s = True, now_s
                return Change.OPENED
            return None
        if incident.well_s is not None and now_s - incident.well_s >= incident.settle_s(self._settle_s):
            incident.resolved_s = incident.well_s
            del self.open[incident.id]
            self.resolved.append(incident)
            del self.resolved[:-RESOLVED_KEPT]
            return Change.RESOLVED
        if self._realert_s and incident.well_s is None and now_s - incident.told_s >= self._realert_s:
            incident.told_s = now_s
            return Change.REMINDED
        return None


def _causes(name: str, views: Mapping[str, View]) -> set[str]:
    """All that it depends on, at however many removes."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        view = views.get(waiting.pop())
        for each in (*view.depends_on, *((view.within,) if view.within else ())) if view else ():
            if each not in found and each != name:
                found.add(each)
                waiting.append(each)
    return found


def _lives_within(view: View, name: str, views: Mapping[str, View]) -> bool:
    return view.within == name or (view.within in views and bool(view.within) and views[view.within].within == name)
