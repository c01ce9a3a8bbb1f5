"""Samples of one series: in two columns, and packed as a chunk. Pure."""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left, bisect_right

_LEVEL = 6


class Columns:
    """Times in ms since 1970, rising, and values."""

    __slots__ = ("times", "values")

    def __init__(self, times: array[int] | None = None, values: array[float] | None = None) -> None:
        self.times: array[int] = times if times is not None else array("q")
        self.values: array[float] = values if values is not None else array("d")

    def __len__(self) -> int:
        """How many there are."""
        return len(self.times)

    def append(self, at_ms: int, value: float) -> None:
        """One more, later than the last."""
        self.times.append(at_ms)
        self.values.append(value)

    def between(self, begin_ms: int, end_ms: int) -> Columns:
        """Those from begin to end, both included."""
        low, high = bisect_left(self.times, begin_ms), bisect_right(self.times, end_ms)
        return Columns(self.times[low:high], self.values[low:high])

    def extend(self, later: Columns) -> None:
        """Put others after these, as far as they are later."""
        skip = bisect_right(later.times, self.times[-1]) if self.times else 0
        self.times.extend(later.times[skip:])
        self.values.extend(later.values[skip:])


def packed(columns: Columns) -> bytes:
    """The columns, small: differences of times, bytes of like weight together, deflated.

    Two series of regular scrapes differ in their values only, and those of one in their low bytes.
    """
    times, values = columns.times, columns.values
    deltas = array("q", [times[0]])
    previous, step = times[0], 0
    for at_ms in times[1:]:
        delta = at_ms - previous
        deltas.append(delta - step)
        previous, step = at_ms, delta
    return zlib.compress(_shuffled(deltas.tobytes()) + _shuffled(values.tobytes()), _LEVEL)


def unpacked(content: bytes) -> Columns:
    """What packed was given."""
    raw = zlib.decompress(content)
    half = len(raw) // 2
    deltas, values = array("q"), array("d")
    deltas.frombytes(_unshuffled(raw[:half]))
    values.frombytes(_unshuffled(raw[half:]))
    times = array("q", [deltas[0]])
    at_ms, step = deltas[0], 0
    for change in deltas[1:]:
        step += change
        at_ms += step
        times.append(at_ms)
    return Columns(times, values)


def _shuffled(raw: bytes) -> bytes:
    return b"".join(raw[part::8] for part in range(8))


def _unshuffled(raw: bytes) -> bytes:
    count = len(raw) // 8
    out = bytearray(len(raw))
    for part in range(8):
        out[part::8] = raw[part * count : (part + 1) * count]
    return bytes(out)
