"""The loop: chooses each collection's index, when its tree is packed anew, and whether answers are kept.

The arithmetic is in costs.py; a new index is built beside the one in use, and swapped in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from cdn_daemon.ooda import OodaLoop
from services.geospatial import costs
from services.geospatial.cache import Asked
from services.geospatial.costs import Decision, KeepAnswers, Load, UseIndex, Weighed
from services.geospatial.layer import Layer, Tally
from services.geospatial.store import Store

SHOWN = 20
"""Collections, of those that are used most."""


class Observation(Struct, frozen=True):
    """The collections that were used since the last time."""

    loads: tuple[Load, ...]


class Picture(Struct, frozen=True):
    """What they cost, and might."""

    weighed: tuple[Weighed, ...]


class IndexChooser(OodaLoop[Observation, Picture, Decision]):
    """Observes reads, writes and what they cost; chooses index, delta and cache."""

    period_s = 1.0
    settle_s = 4.0
    min_gain = 0.1
    hold_off_s = 120.0

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._before: dict[str, tuple[Layer, float, Tally, Asked]] = {}

    def observe(self) -> Observation | None:
        """What was done since the last time; None if nothing was."""
        if not self._store.is_open:
            return None
        now_s = self._clock()
        loads, kept = [], {}
        for name, one in self._store.collections.items():
            layer = one.layer
            tally, asked = msgspec.structs.replace(layer.tally), msgspec.structs.replace(layer.answers.asked)
            kept[name] = (layer, now_s, tally, asked)
            before = self._before.get(name)
            if before is None or before[0] is not layer:
                continue
            load = _load(layer, before, (now_s, tally, asked))
            if load.reads_per_s or load.writes_per_s or load.requests_per_s:
                loads.append(load)
        self._before = kept
        loads.sort(key=lambda load: -(load.reads_per_s + load.writes_per_s))
        return Observation(tuple(loads[:SHOWN])) if loads or self._settling is not None else None

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
