"""Series in memory, by labels, with the samples that are in no chunk yet. Any thread; ``lock`` is held for moments."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable

from services.monitoring.exposition import NAME, Labels
from services.monitoring.pattern import Matcher
from services.monitoring.samples import Columns


class Series:
    """One series. Its labels never change."""

    __slots__ = ("dropped", "head", "id", "labels", "last_ms")

    def __init__(self, id: int, labels: Labels) -> None:
        self.id = id
        self.labels = labels
        self.head = Columns()
        self.last_ms = -(2**62)
        self.dropped = False
        """It was forgotten; who holds it has to ask for it anew."""


class FullError(Exception):
    """There are as many series as there may be."""


class Batch:
    """Samples on their way to the disk, in three columns."""

    def __init__(self) -> None:
        self.ids: array[int] = array("L")
        self.times: array[int] = array("q")
        self.values: array[float] = array("d")

    def __len__(self) -> int:
        """How many there are."""
        return len(self.ids)

    def bytes(self) -> int:
        """What they take."""
        return 24 * len(self.ids)


class Store:
    """Every series, and the batch that is to be written next."""

    def __init__(self, series_max: int) -> None:
        self.lock = threading.Lock()
        self._max = series_max
        self.by_labels: dict[Labels, Series] = {}
        self.by_id: dict[int, Series] = {}
        self._by_name: dict[str, dict[int, Series]] = {}
        self._next_id = 1
        self.met: list[Series] = []
        """Series that are not on disk yet."""
        self.batch = Batch()
        self.samples = 0
        self.late = 0
        """Samples that were no later than the last of their series, and were not taken."""
        self.refused = 0

    # -- all of these with the lock held ------------------------------------------------------------------

    def series(self, labels: Labels) -> Series:
        """The series of these labels; raises FullError where it would be one too many."""
        known = self.by_labels.get(labels)
        if known is not None:
            return known
        if len(self.by_labels) >= self._max:
            self.refused += 1
            raise FullError
        one = self.admit(self._next_id, labels)
        self.met.append(one)
        return one

    def admit(self, id: int, labels: Labels) -> Series:
        """A series with its number."""
        one = Series(id, labels)
        self.by_labels[labels] = one
        self.by_id[id] = one
        self._by_name.setdefault(dict(labels).get(NAME, ""), {})[id] = one
        self._next_id = max(self._next_id, id + 1)
        return one

    def forget(self, one: Series) -> None:
        """Take a series out."""
        one.dropped = True
        self.by_labels.pop(one.labels, None)
        self.by_id.pop(one.id, None)
        name = dict(one.labels).get(NAME, "")
        named = self._by_name.get(name, {})
        named.pop(one.id, None)
        if not named:
            self._by_name.pop(name, None)

    def take(self, one: Series, at_ms: int, value: float) -> bool:
        """A sample; False, and not taken, if it is no later than the last of its series."""
        if at_ms <= one.last_ms:
            self.late += 1
            return False
        one.last_ms = at_ms
        one.head.times.append(at_ms)
        one.head.values.append(value)
        batch = self.batch
        batch.ids.append(one.id)
        batch.times.append(at_ms)
        batch.values.append(value)
        self.samples += 1
        return True

    # -- questions: take the lock themselves --------------------------------------------------------------

    def find(self, matchers: Iterable[Matcher]) -> list[Series]:
        """Every series that all of them are true of."""
        tests: list[tuple[str, Callable[[str], bool]]] = []
        name = None
        for matcher in matchers:
            if matcher.label == NAME and matcher.operator == "=" and name is None:
                name = matcher.text
            else:
                tests.append((matcher.label, matcher.test()))
        with self.lock:
            chosen = list((self.by_id if name is None else self._by_name.get(name, {})).values())
        if not tests:
            return chosen
        found = []
        for one in chosen:
            labels = dict(one.labels)
            if all(test(labels.get(label, "")) for label, test in tests):
                found.append(one)
        return found

    def heads(self, chosen: Iterable[Series], begin_ms: int, end_ms: int) -> list[Columns]:
        """What is in memory of each."""
        with self.lock:
            return [one.head.between(begin_ms, end_ms) for one in chosen]
