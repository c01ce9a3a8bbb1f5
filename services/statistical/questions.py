"""Answers about series: what is in memory and what is on disk, put together. Blocks; runs on threads."""

from __future__ import annotations

import math
import queue
from pathlib import Path

import msgspec

from cdn_daemon.api import RefusedError
from services.statistical import aggregates
from services.statistical.aggregates import Aggregate, AnyState, Counter, Distribution, Gauge, Set
from services.statistical.api import ChangeAnswer, Quantile, SeriesNow
from services.statistical.disk import Reader
from services.statistical.keeper import Keeper, Noted
from services.statistical.series import Series
from services.statistical.statsd import Kind
from services.statistical.store import Store
from services.statistical.windows import REACH, cover

WAIT_S = 1.0
QUANTILES = (0.5, 0.9, 0.99, 0.999)
TOP = 10
_noted = msgspec.msgpack.Decoder(Noted)


class Window:
    """What a series was between two moments."""

    def __init__(self, series: Series, from_s: float, until_s: float, aggregate: Aggregate | None) -> None:
        self.series = series
        self.from_s = from_s
        self.until_s = until_s
        self.aggregate = aggregate


class Questions:
    """Answers, so many at once as there are readers."""

    def __init__(self, store: Store, keeper: Keeper) -> None:
        self._store = store
        self._keeper = keeper
        self._readers: queue.Queue[Reader] = queue.Queue()

    def open(self, path: Path) -> None:
        """Once the keeper has made the database."""
        for _ in range(self._store.limits.questions):
            self._readers.put(Reader(path))

    def close(self) -> None:
        """When nobody asks any more."""
        while not self._readers.empty():
            self._readers.get_nowait().close()

    def find(self, name: str, kind: Kind | None = None) -> Series:
        """The series of that name; raises RefusedError if there is none, or of several kinds one each."""
        with self._store.lock:
            found = [one for each in Kind if (one := self._store.series.get((each, name))) is not None]
        if kind is not None:
            found = [one for one in found if one.kind is kind]
        if not found:
            raise RefusedError(404, "cannot find this series", value=name, next="GET /series lists them")
        if len(found) > 1:
            kinds = ", ".join(one.kind for one in found)
            raise RefusedError(
                409, "cannot tell which: there is one of each kind", value=name, limit=kinds, next="add ?kind="
            )
        return found[0]

    def window(self, series: Series, window_s: float, ago_s: float = 0.0) -> Window:
        """The slots that the window touches; raises RefusedError if it reaches too far back."""
        store, width = self._store, self._store.limits.slot_s
        with store.lock:  # before the disk: a slot leaves memory only once it is there
            now = store.clock.slot()
            end_s = store.clock.now_s() - ago_s
            end = now + 1 if ago_s == 0 else max(math.ceil(end_s / width), 1)
            begin = math.floor((end_s - window_s) / width)
            if now - begin > REACH[-1]:
                limit = f"{REACH[-1] * width} s"
                raise RefusedError(400, "cannot look so far back", value=f"{window_s + ago_s:g} s", limit=limit)
            stretches = cover(begin, end, now, self._keeper.joined)
            held: dict[int, list[AnyState]] = {}
            for closed in (*store.closing, *store.closed):
                if closed.series is series:
                    held[closed.slot] = [closed.aggregate.state()]
            if series.aggregate is not None:
                held[series.slot] = [series.aggregate.state()]
        found: dict[int, Aggregate] = {}
        try:
            reader = self._readers.get(timeout=WAIT_S)
        except queue.Empty:
            limit = f"{store.limits.questions} at once"
            raise RefusedError(503, "cannot answer now: too many questions", limit=limit, next="try again") from None
        try:
            for stretch in stretches:
                for slot, state in reader.slots(series.id, stretch):
                    if stretch.tier or slot not in held:
                        found[slot] = aggregates.unpacked(state)
        finally:
            self._readers.put(reader)
        last = stretches[-1] if stretches else None
        for slot, states in held.items():
            if last is not None and not last.tier and last.begin <= slot < last.end:
                found[slot] = aggregates.of(states[0])
        whole: Aggregate | None = None
        for slot in sorted(found):
            if whole is None:
                whole = found[slot]
            else:
                aggregates.merged(whole, found[slot])
        first = stretches[0].begin if stretches else begin
        return Window(series, first * width, min(end * width, self._store.clock.now_s()), whole)

    def now(self, window: Window, quantiles: tuple[float, ...], top: int) -> SeriesNow:
        """The window in numbers."""
        series, aggregate = window.series, window.aggregate
        aggregate = series.fresh() if aggregate is None else aggregate
        seconds = max(window.until_s - window.from_s, 1e-3)
        answer = SeriesNow(
            name=series.name,
            kind=series.kind,
            from_s=window.from_s,
            until_s=window.until_s,
            received=aggregate.received,
        )
        match aggregate:
            case Counter():
                return msgspec.structs.replace(
                    answer,
                    total=aggregate.total,
                    rate_per_s=aggregate.total / seconds,
                    total_error=math.sqrt(aggregate.variance) if aggregate.variance else None,
                )
            case Gauge():
                return msgspec.structs.replace(
                    answer,
                    count=aggregate.count,
                    last=aggregate.last,
                    last_s=aggregate.last_s or None,
                    low=aggregate.low if aggregate.count else None,
                    high=aggregate.high if aggregate.count else None,
                    mean=aggregate.total / aggregate.count if aggregate.count else None,
                )
            case Distribution(sketch=of):
                error = of.error
                return msgspec.structs.replace(
                    answer,
                    count=of.count,
                    rate_per_s=of.count / seconds,
                    total=of.total,
                    mean=of.total / of.count if of.count else None,
                    low=of.low if of.count else None,
                    high=of.high if of.count else None,
                    quantiles=[
                        _quantile(q, value, error, of.low, of.high)
                        for q, value in zip(quantiles, of.quantiles(quantiles), strict=True)
                    ],
                    relative_error=error,
                )
            case Set():
                return msgspec.structs.replace(
                    answer,
                    count=aggregate.count,
                    rate_per_s=aggregate.count / seconds,
                    distinct=aggregate.distinct.count(),
                    distinct_is_complete=math.isclose(aggregate.count, aggregate.received),
                    top=aggregate.distinct.top(top),
                )

    def changes(self, after: int, limit: int) -> list[ChangeAnswer]:
        """Change points that came after that number."""
        reader = self._readers.get(timeout=WAIT_S)
        try:
            return [ChangeAnswer(id=id, point=_noted.decode(content)) for id, content in reader.changes(after, limit)]
        finally:
            self._readers.put(reader)


def _quantile(q: float, value: float, error: float, low: float, high: float) -> Quantile:
    """With the bounds of the true value: the estimate is off by at most ``error`` of it."""
    if math.isnan(value):
        return Quantile(q=q, value=None, low=None, high=None)
    ends = sorted((value / (1 - error), value / (1 + error))) if error < 1 else (low, high)
    return Quantile(q=q, value=value, low=max(low, ends[0]), high=min(high, ends[1]))
