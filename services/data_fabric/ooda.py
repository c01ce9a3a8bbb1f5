"""The index tuner: makes the indexes that the queries want, and drops its own that do not earn their keep.

It touches no index but its own. What it measures is in workload.py, the arithmetic
in benefit.py, SQLite's opinion in plans.py; this is only the loop.
"""

from __future__ import annotations

from cdn_daemon.ooda import OodaLoop
from services.data_fabric import benefit
from services.data_fabric.benefit import CreateIndex, Decision, DropIndex, Observation, Picture
from services.data_fabric.store import Store


class IndexTuner(OodaLoop[Observation, Picture, Decision]):
    """Observes what each query shape costs in CPU time, and makes or drops one index at a time."""

    period_s = 1.0
    settle_s = 10.0
    min_gain = 0.2
    hold_off_s = 600.0

    def __init__(self, store: Store, *, idle_s: float = benefit.IDLE_S) -> None:
        self._store = store
        self._idle_s = idle_s

    def observe(self) -> Observation | None:
        """The last ten periods; None while there is nothing to see and nothing to drop."""
        store = self._store
        if not store.is_open:
            return None
        seen = store.workload.take(dict(store.rows), store.catalogue.own_indexes)
        busy = seen.shapes or seen.indexes or any(row.writes_per_s for row in seen.tables)
        return seen if busy or self._settling is not None else None

    def orient(self, observation: Observation) -> Picture:
        """Weigh each index against its upkeep."""
        return benefit.orient(observation)

    def decide(self, picture: Picture) -> Decision | None:
        """The one change that helps most, or none."""
        return benefit.decide(picture, held=self.held, idle_s=self._idle_s)

    def cost(self, picture: Picture, decision: Decision) -> float | None:
        """CPU seconds per call of the queries concerned; see benefit.cost."""
        return benefit.cost(picture, decision)

    def act(self, decision: Decision) -> None:
        """Make or drop the index. Writes wait meanwhile, reads do not."""
        match decision:
            case CreateIndex(spec):
                self._store.create_index(spec)
            case DropIndex(spec):
                self._store.drop_index(spec)

    def undo(self, decision: Decision) -> None:
        """Take it back."""
        match decision:
            case CreateIndex(spec):
                self._store.drop_index(spec)
            case DropIndex(spec):
                self._store.create_index(spec)
