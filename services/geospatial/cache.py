"""Answers that are kept, while what they were made of stays as it is; and whether keeping them would be worth it."""

from __future__ import annotations

import threading
from collections import OrderedDict

from msgspec import Struct

REMEMBERED = 512


class Asked(Struct):
    """Since the beginning."""

    requests: int = 0
    repeats: int = 0
    """Requests that were the same as one of the last, with nothing changed in between."""
    hits: int = 0
    ms: float = 0.0
    """That all took, from the question to the bytes of the answer."""


class Answers:
    """Of one collection. Counts repeats also while it keeps nothing. For any thread."""

    def __init__(self, count: int, size_bytes: int) -> None:
        self._most = count
        self._most_bytes = size_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[str, int] = OrderedDict()
        """Questions that were asked lately, and the version of then."""
        self._kept: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0
        self.is_on = False
        self.asked = Asked()

    def switch(self, *, is_on: bool) -> None:
        """Keep answers from now on, or no more."""
        with self._lock:
            self.is_on = is_on
            if not is_on:
                self._kept.clear()
                self._bytes = 0

    def get(self, question: str, version: int) -> bytes | None:
        """The answer, if it is kept and still right."""
        with self._lock:
            self.asked.requests += 1
            self.asked.repeats += self._known.get(question) == version
            self._known[question] = version
            self._known.move_to_end(question)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            kept = self._kept.get(question)
            if kept is None:
                return None
            if kept[0] != version:
                del self._kept[question]
                self._bytes -= len(kept[1])
                return None
            self._kept.move_to_end(question)
            self.asked.hits += 1
            return kept[1]

    def put(self, question: str, version: int, content: bytes) -> None:
        """Keep an answer that was made of that version."""
        with self._lock:
            if not self.is_on or len(content) > self._most_bytes // 8:
                return
            old = self._kept.pop(question, None)
            self._bytes += len(content) - (len(old[1]) if old else 0)
            self._kept[question] = (version, content)
            while len(self._kept) > self._most or self._bytes > self._most_bytes:
                _, (_, gone) = self._kept.popitem(last=False)
                self._bytes -= len(gone)

    def took(self, ms: float) -> None:
        """That long one of them took."""
        with self._lock:
            self.asked.ms += ms
