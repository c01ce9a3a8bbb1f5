"""The loop: chooses each collection's index, when its tree is packed anew, and whether answers are kept.

The arithmetic is in costs.py; a new index is built beside the one in use, and swapped in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from bus.messages import OodaMode
from cdn_daemon.ooda import OodaLoop
from services.geospatial import costs
from services.geospatial.cache import Asked
from services.geospatial.costs import Decision, KeepAnswers, Load, UseIndex, Weighed
from services.geospatial.indexes import Kind
from services.geospatial.layer import Layer, Tally
from services.geospatial.store import Store

WINDOW_S = 0.95
"""Rates are over so long, unless more is wasted sooner than can be waited for."""
SHOWN = 20
"""Collections, of those that are used most."""


Looks = dict[str, tuple[Layer, float, Tally, Asked]]
"""By collection: when, and what there was up to then."""


class Observation(Struct, frozen=True):
    """The collections that were used since the last time."""

    loads: tuple[Load, ...]


class Picture(Struct, frozen=True):
    """What they cost, and might."""

    weighed: tuple[Weighed, ...]


class IndexChooser(OodaLoop[Observation, Picture, Decision]):
    """Observes reads, writes and what they cost; chooses index, delta and cache."""

    period_s = 0.2
    settle_s = 4.0
    min_gain = 0.1
    hold_off_s = 120.0

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._before: Looks = {}
        """As it was when the second began …"""
        self._since_s = -math.inf
        self._looked: Looks = {}
        """… and at the last look."""
        self._wanted: tuple[str, Kind] | None = None
        """What that would have had changed at once."""

    def observe(self) -> Observation | None:
        """What was done in the last second, or since the last look if that is urgent; None if nothing was."""
        if not self._store.is_open:
            return None
        now_s = self._clock()
        looks = {
            name: (
                one.layer,
                now_s,
                msgspec.structs.replace(one.layer.tally),
                msgspec.structs.replace(one.layer.answers.asked),
            )
            for name, one in self._store.collections.items()
        }
        lately = _loads(self._looked, looks)
        before, self._wanted = self._wanted, self._wanted_at_once(lately)
        self._looked = looks
        is_urgent = self._wanted is not None and self._wanted == before
        if not is_urgent:
            if now_s - self._since_s < WINDOW_S:
                return None
            if self._wanted is not None:  # the load has just become another: what has something of both says nothing
                self._before, self._since_s = looks, now_s
                return None
        loads = lately if is_urgent else _loads(self._before, looks)
        self._before, self._since_s, self._wanted = looks, now_s, None
        return Observation(tuple(loads[:SHOWN])) if loads or self._settling is not None else None

    def _wanted_at_once(self, lately: list[Load]) -> tuple[str, Kind] | None:
        """The index that would save so much that no whole second is to be waited for, if two looks agree on it."""
        if self.mode is not OodaMode.ON or self._settling is not None:
            return None
        costly = tuple(one for one in map(costs.weigh, lately) if costs.wasted_us(one) > costs.TOO_MUCH_US)
        match costs.decide(costly, self.held):
            case UseIndex() as found:
                return found.collection, found.index
        return None

    def orient(self, observation: Observation) -> Picture:
        """What each costs, and what others would."""
        return Picture(tuple(map(costs.weigh, observation.loads)))

    def decide(self, picture: Picture) -> Decision | None:
        """The one change that saves most, or none."""
        return costs.decide(picture.weighed, self.held)

    def cost(self, picture: Picture, decision: Decision) -> float | None:
        """Microseconds of work in a second, at the rates of the decision."""
        return costs.cost(picture.weighed, decision)

    def act(self, decision: Decision) -> None:
        """Build it, and swap it in. Reads and writes go on meanwhile."""
        self._set(decision, is_undone=False)

    def undo(self, decision: Decision) -> None:
        """Back to what it was."""
        self._set(decision, is_undone=True)

    def _set(self, decision: Decision, *, is_undone: bool) -> None:
        found = self._store.collections.get(decision.collection)
        if found is None:
            return  # it was deleted meanwhile
        match decision:
            case UseIndex():
                kind, at = decision.was if is_undone else (decision.index, decision.rebuild_at)
                found.layer.use(kind, at)
            case KeepAnswers():
                found.layer.answers.switch(is_on=decision.is_on != is_undone)


def _loads(before: Looks, now: Looks) -> list[Load]:
    """Of the collections that were used between the two looks; those that were used most first."""
    loads = []
    for name, look in now.items():
        if name in before and before[name][0] is look[0]:
            load = _load(look[0], before[name], look[1:])
            if load.reads_per_s or load.writes_per_s or load.requests_per_s:
                loads.append(load)
    return sorted(loads, key=lambda load: -(load.reads_per_s + load.writes_per_s))


def _load(layer: Layer, before: tuple[Layer, float, Tally, Asked], now: tuple[float, Tally, Asked]) -> Load:
    _, then_s, old, old_asked = before
    now_s, tally, asked = now
    elapsed_s = max(now_s - then_s, 1e-3)
    reads, writes, batches = tally.reads - old.reads, tally.writes - old.writes, tally.batches - old.batches
    requests = asked.requests - old_asked.requests
    hits, kept = tally.hits - old.hits, tally.kept - old.kept
    return Load(
        collection=layer.name,
        features=layer.table.live,
        index=layer.index.kind,
        rebuild_at=layer.rebuild_at,
        index_age_s=round(time.monotonic() - layer.built_s, 1),
        delta=layer.index.delta(),
        reads_per_s=round(reads / elapsed_s, 3),
        read_us=round((tally.read_ns - old.read_ns) / reads / 1e3, 3) if reads else None,
        hits=round(hits / reads, 2) if reads else 0.0,
        candidates_per_hit=round(hits / kept, 3) if kept else None,
        area=round((tally.area - old.area) / reads, 4) if reads else 0.0,
        p95_ms=layer.p95_ms(),
        writes_per_s=round(writes / elapsed_s, 3),
        write_us=round((tally.write_ns - old.write_ns) / writes / 1e3, 3) if writes and batches else None,
        batch=round(writes / batches, 2) if batches else 1.0,
        rebuilds_per_s=round((tally.rebuilds - old.rebuilds) / elapsed_s, 3),
        requests_per_s=round(requests / elapsed_s, 3),
        request_ms=round((asked.ms - old_asked.ms) / requests, 4) if requests else None,
        repeats=round((asked.repeats - old_asked.repeats) / requests, 3) if requests else 0.0,
        is_cached=layer.answers.is_on,
    )
