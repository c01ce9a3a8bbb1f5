"""How many different members a set has, and which come most often, in a few kilobytes.

Apache DataSketches: HyperLogLog, and frequent items (Misra-Gries). Both merge, and their bytes are
read by DataSketches for C++, Java and Go as well. The library takes 70 ms and 19 MiB to load, so it is
loaded with the first set that there is.
"""

from __future__ import annotations

import math
import random
from typing import Any

from msgspec import Struct

LG_REGISTERS = 11
"""2,048 registers of 4 bits: 1 KiB, and a standard error of 2.3 %."""
LG_ITEMS = 8
"""Counters for 192 members; what comes more often than 1/192 of the time is sure to be among them."""
SIGMAS = 2
TOP_MAX = 100


class Count(Struct, frozen=True):
    """An estimate, and between what it lies with 95 % confidence."""

    estimate: float
    low: float
    high: float


class Frequent(Struct, frozen=True):
    """A member, and how often it came: at least, at most."""

    member: str
    low: int
    high: int


class Distinct:
    """Members of a set."""

    __slots__ = ("_frequent", "_hll", "_lib")

    def __init__(self, hll: bytes = b"", frequent: bytes = b"") -> None:
        self._lib: Any = _library()
        if not hll:
            self._hll = self._lib.hll_sketch(LG_REGISTERS, self._lib.HLL_4)
            self._frequent = self._lib.frequent_strings_sketch(LG_ITEMS)
            return
        try:
            self._hll = self._lib.hll_sketch.deserialize(hll)
            self._frequent = self._lib.frequent_strings_sketch.deserialize(frequent)
        except Exception as error:  # the library's exceptions are of many kinds
            raise ValueError(f"it is no sketch of DataSketches: {error}") from error
        if not 4 <= self._hll.lg_config_k <= 14:
            raise ValueError(f"its lg_k is {self._hll.lg_config_k}, not 4 to 14")

    def add(self, member: str, weight: float = 1.0) -> None:
        """One member, which stands for so many of its kind."""
        self._hll.update(member)
        whole = int(weight + random.random()) if weight != 1.0 else 1
        if whole:
            self._frequent.update(member, whole)

    def merge(self, other: Distinct) -> None:
        """Take in another, which stays as it is."""
        union = self._lib.hll_union(min(self._hll.lg_config_k, other._hll.lg_config_k))
        union.update(self._hll)
        union.update(other._hll)
        self._hll = union.get_result(self._lib.HLL_4)
        self._frequent.merge(other._frequent)

    def count(self) -> Count:
        """How many different members."""
        hll = self._hll
        return Count(
            round(hll.get_estimate(), 1),
            math.floor(hll.get_lower_bound(SIGMAS)),
            math.ceil(hll.get_upper_bound(SIGMAS)),
        )

    def top(self, most: int) -> list[Frequent]:
        """Those that came most often, the most frequent first; all that are sure to be."""
        found = self._frequent.get_frequent_items(self._lib.frequent_items_error_type.NO_FALSE_NEGATIVES)
        return [Frequent(member, low, high) for member, _, low, high in found[:most]]

    def state(self) -> tuple[bytes, bytes]:
        """The two sketches in DataSketches' own form."""
        return bytes(self._hll.serialize_compact()), bytes(self._frequent.serialize())

    @property
    def bytes(self) -> int:
        """What it takes up at rest; a little more in memory."""
        return len(self._hll.serialize_compact()) + int(self._frequent.get_serialized_size_bytes())


def _library() -> Any:
    import datasketches

    return datasketches
