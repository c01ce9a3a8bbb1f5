"""What history keeps of a service's metrics: rows of whole numbers, packed by columns, and rolled up. Pure.

A row is one status in a second (SECOND) or what many of them come to (ROLLUP).
Numbers are whole (CPU in 1/10,000 of a core, lag in microseconds, memory in KiB),
each column holds differences, and most of those are 0: a chunk of ten rows is
some 100 bytes, one of fifteen rollups some 200.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import isfinite

import msgspec
from msgspec import Struct

from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase, StatusSample

Row = tuple[int | None, ...]

SECOND = (
    "time_s",
    "cpu_cores",
    "rss_bytes",
    "loop_lag_s",
    "in_flight",
    "requests",
    "fds",
    "threads",
    "health",
    "phase",
    "restarts",
    "incarnation",
)
SPREAD = ("cpu_cores", "rss_bytes", "loop_lag_s", "in_flight")
"""Of these a rollup has least, mean and most; of the others what the line after it says."""
LAST = ("requests", "fds", "threads", "health", "phase", "restarts", "incarnation")
"""The most of fds, threads and health (the worst), the last of the others."""
ROLLUP = ("time_s", "samples", *(f"{name}_{which}" for name in SPREAD for which in ("min", "avg", "max")), *LAST)

_UNITS = {"cpu_cores": 1e-4, "rss_bytes": 1024, "loop_lag_s": 1e-6, "in_flight": 1}
_MOST = 1 << 53
_HEALTHS = (HealthStatus.HEALTHY, HealthStatus.UNKNOWN, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY)
"""From best to worst."""
_PHASES = tuple(LifecyclePhase)
_HEALTH_CODE = {health: code for code, health in enumerate(_HEALTHS)}
_PHASE_CODE = {phase: code for code, phase in enumerate(_PHASES)}
_UNPACKED_BYTES = 1 << 20

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(list[list[int | None]])


class Spread(Struct, frozen=True):
    """What a quantity was in a time."""

    min: float
    avg: float
    max: float


class MetricsPoint(Struct, frozen=True, kw_only=True):
    """One service in a time that began at ``time_s``."""

    time_s: float
    samples: int
    cpu_cores: Spread | None
    rss_bytes: Spread | None
    loop_lag_s: Spread | None
    in_flight: Spread | None
    requests: int
    """Answered since the process began, at the end of the time; a smaller one than before is a new process's."""
    fds: int | None
    """The most."""
    threads: int | None
    """The most."""
    health: HealthStatus
    """The worst."""
    phase: LifecyclePhase
    """The last."""
    restarts: int
    incarnation: int


# -- rows --------------------------------------------------------------------------------------------------


def row_of(status: DaemonStatus, time_s: float) -> Row:
    """The row of one status; what is no number is unknown, and what is beyond all bounds is clipped."""
    metrics = status.metrics
    vitals = metrics.vitals
    return (
        int(time_s),
        _whole(vitals.cpu_cores, 1e4),
        _whole(vitals.rss_bytes, 1 / 1024),
        _whole(vitals.loop_lag_s, 1e6),
        _whole(metrics.in_flight, 1),
        _whole(metrics.requests, 1),
        _whole(vitals.fds, 1),
        _whole(vitals.threads, 1),
        _HEALTH_CODE[status.health],
        _PHASE_CODE[status.phase],
        _whole(status.restarts, 1),
        _whole(status.incarnation, 1),
    )


def _whole(value: float | None, scale: float) -> int | None:
    if value is None or not isfinite(value):
        return None
    return min(_MOST, max(0, round(value * scale)))


def sample_of(row: Row) -> StatusSample:
    """The row in words and units."""
    told = dict(zip(SECOND, row, strict=True))
    return StatusSample(
        time_s=float(told["time_s"] or 0),
        health=_HEALTHS[told["health"] or 0],
        phase=_PHASES[told["phase"] or 0],
        cpu_cores=_real(told["cpu_cores"], 1e-4),
        rss_bytes=None if told["rss_bytes"] is None else told["rss_bytes"] * 1024,
        loop_lag_s=_real(told["loop_lag_s"], 1e-6),
        in_flight=told["in_flight"] or 0,
        requests=told["requests"] or 0,
        fds=told["fds"],
        threads=told["threads"],
        restarts=told["restarts"] or 0,
        incarnation=told["incarnation"],
    )


def point_of(row: Row) -> MetricsPoint:
    """The rollup in words and units."""
    told = dict(zip(ROLLUP, row, strict=True))

    def spread(name: str) -> Spread | None:
        values = [_real(told[f"{name}_{which}"], _UNITS[name]) for which in ("min", "avg", "max")]
        least, mean, most = values
        return None if least is None or mean is None or most is None else Spread(least, mean, most)

    return MetricsPoint(
        time_s=float(told["time_s"] or 0),
        samples=told["samples"] or 0,
        cpu_cores=spread("cpu_cores"),
        rss_bytes=spread("rss_bytes"),
        loop_lag_s=spread("loop_lag_s"),
        in_flight=spread("in_flight"),
        requests=told["requests"] or 0,
        fds=told["fds"],
        threads=told["threads"],
        health=_HEALTHS[told["health"] or 0],
        phase=_PHASES[told["phase"] or 0],
        restarts=told["restarts"] or 0,
        incarnation=told["incarnation"] or 0,
    )


def _real(value: int | None, unit: float) -> float | None:
    return None if value is None else round(value * unit, 6)


# -- rolling up --------------------------------------------------------------------------------------------


def roll_up(rows: Iterable[Row], step_s: int) -> list[Row]:
    """SECOND rows, in order of time, as one ROLLUP row for each step in which there are any."""
    rolled: list[Row] = []
    for begin_s, group in _steps(rows, step_s):
        columns = dict(zip(SECOND, zip(*group, strict=True), strict=True))
        weights = [1] * len(group)
        spreads = [_spread(columns[name], columns[name], columns[name], weights) for name in SPREAD]
        rolled.append((begin_s, len(group), *sum(spreads, ()), *_last(columns)))
    return rolled


def merge(rollups: Iterable[Row], step_s: int) -> list[Row]:
    """ROLLUP rows, in order of time, as one for each longer step. Means are weighted by samples."""
    merged: list[Row] = []
    for begin_s, group in _steps(rollups, step_s):
        columns = dict(zip(ROLLUP, zip(*group, strict=True), strict=True))
        weights = [samples or 0 for samples in columns["samples"]]
        spreads = [
            _spread(columns[f"{name}_min"], columns[f"{name}_avg"], columns[f"{name}_max"], weights) for name in SPREAD
        ]
        merged.append((begin_s, sum(weights), *sum(spreads, ()), *_last(columns)))
    return merged


def _steps(rows: Iterable[Row], step_s: int) -> Iterator[tuple[int, list[Row]]]:
    for step, group in groupby(rows, key=lambda row: (row[0] or 0) // step_s):
        yield step * step_s, list(group)


def _spread(
    least: Sequence[int | None], means: Sequence[int | None], most: Sequence[int | None], weights: Sequence[int]
) -> Row:
    known = [(mean, weight) for mean, weight in zip(means, weights, strict=True) if mean is not None and weight]
    if not known:
        return (None, None, None)
    mean = sum(mean * weight for mean, weight in known) / sum(weight for _, weight in known)
    return (
        min(value for value in least if value is not None),
        round(mean),
        max(value for value in most if value is not None),
    )


def _last(columns: Mapping[str, Sequence[int | None]]) -> Row:
    def most(name: str) -> int | None:
        return max((value for value in columns[name] if value is not None), default=None)

    return tuple(most(name) if name in ("fds", "threads", "health") else columns[name][-1] for name in LAST)


# -- packing -----------------------------------------------------------------------------------------------


def pack(rows: Sequence[Row]) -> bytes:
    """Rows of one kind as a chunk."""
    return zlib.compress(_encode([list(_differences(column)) for column in zip(*rows, strict=True)]), 1)


def unpack(chunk: bytes, columns: int) -> list[Row]:
    """The rows of a chunk; ValueError if it is none of so many columns."""
    try:
        inflater = zlib.decompressobj()
        packed = _decoder.decode(inflater.decompress(chunk, _UNPACKED_BYTES))
        if len(packed) != columns:
            raise ValueError(f"{len(packed)} columns, not {columns}")
        return list(zip(*(_sums(column) for column in packed), strict=True))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"not a chunk: {error}") from error


def _differences(column: Sequence[int | None]) -> Iterator[int | None]:
    held = 0
    for value in column:
        if value is None:
            yield None
        else:
            yield value - held
            held = value


def _sums(column: Sequence[int | None]) -> Iterator[int | None]:
    held = 0
    for difference in column:
        if difference is None:
            yield None
        else:
            held += difference
            yield held
