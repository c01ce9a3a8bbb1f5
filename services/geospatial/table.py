"""What is in memory of each feature of a collection: its number, bounds and time, side by side in arrays.

A slot is a feature's place in them. Slots are given in the order of numbers, so that sorting slots sorts by number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.geospatial.geojson import Bounds

Floats = NDArray[np.float64]
Slots = NDArray[np.int64]
NOWHERE = (np.nan, np.nan, np.nan, np.nan)
"""Compares as false with everything, so whoever looks for a place never finds it."""
_FIRST = 16


class Table:
    """Whoever changes it holds the collection's lock, as does whoever reads."""

    def __init__(self) -> None:
        self.size = 0
        """Slots that were given."""
        self.live = 0
        self.numbers: Slots = np.zeros(_FIRST, np.int64)
        self.bounds: Floats = np.full((4, _FIRST), np.nan)
        """West, south, east and north: each contiguous, as each is compared by itself."""
        self.times: Floats = np.full((2, _FIRST), np.nan)
        self.is_live: NDArray[np.bool_] = np.zeros(_FIRST, np.bool_)
        self.is_point: NDArray[np.bool_] = np.zeros(_FIRST, np.bool_)

    @classmethod
    def of(cls, numbers: Slots, bounds: Floats, times: Floats, is_point: NDArray[np.bool_]) -> Table:
        """All at once; numbers ascend."""
        table = cls()
        table.size = table.live = len(numbers)
        table.numbers, table.bounds, table.times, table.is_point = numbers, bounds, times, is_point
        table.is_live = np.ones(len(numbers), np.bool_)
        if not len(numbers):
            table._grow(_FIRST)
        return table

    def slot(self, number: int) -> int | None:
        """Of a feature that is there."""
        slot = int(np.searchsorted(self.numbers[: self.size], number))
        return slot if slot < self.size and self.numbers[slot] == number and self.is_live[slot] else None

    def put(self, number: int, bounds: Bounds | None, time: tuple[float, float] | None, *, is_point: bool) -> int:
        """Have the feature be there, and so; its slot. A new number is larger than all before."""
        slot = self.slot(number)
        if slot is None:
            if self.size and number <= self.numbers[self.size - 1]:
                raise ValueError(f"cannot add number {number}: {self.numbers[self.size - 1]} is there")
            slot = self.size
            if slot == len(self.numbers):
                self._grow(2 * slot)
            self.numbers[slot] = number
            self.is_live[slot] = True
            self.size += 1
            self.live += 1
        self.bounds[:, slot] = NOWHERE if bounds is None else bounds
        self.times[:, slot] = (np.nan, np.nan) if time is None else time
        self.is_point[slot] = is_point
        return slot

    def drop(self, number: int) -> int | None:
        """Have it be gone; the slot that it had."""
        slot = self.slot(number)
        if slot is not None:
            self.is_live[slot] = False
            self.bounds[:, slot] = NOWHERE
            self.live -= 1
        return slot

    def _grow(self, room: int) -> None:
        def grown(old: NDArray[np.generic], fill: object) -> NDArray[np.generic]:
            new = np.full((*old.shape[:-1], room), fill, old.dtype)
            new[..., : old.shape[-1]] = old
            return new

        self.numbers = grown(self.numbers, 0)  # type: ignore[assignment]
        self.bounds = grown(self.bounds, np.nan)  # type: ignore[assignment]
        self.times = grown(self.times, np.nan)  # type: ignore[assignment]
        self.is_live = grown(self.is_live, False)  # type: ignore[assignment]
        self.is_point = grown(self.is_point, False)  # type: ignore[assignment]

    def extent(self) -> Bounds | None:
        """What holds all; None if nothing is anywhere."""
        west, south, east, north = self.bounds[:, : self.size]
        placed = ~np.isnan(west)
        if not placed.any():
            return None
        return (
            float(west[placed].min()),
            float(south[placed].min()),
            float(east[placed].max()),
            float(north[placed].max()),
        )

    def span(self) -> tuple[float, float] | None:
        """From the first to the last time; None if nothing has any."""
        begin, end = self.times[:, : self.size][:, self.is_live[: self.size]]
        timed = ~np.isnan(begin)
        return (float(begin[timed].min()), float(end[timed].max())) if timed.any() else None
