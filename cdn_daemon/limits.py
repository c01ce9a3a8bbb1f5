"""Resource limits as bands with hysteresis, and a ladder. Pure: readings and now_s in, steps out.

    fine ──above soft for for_s──▶ soft ──above hard──▶ hard ──still growing while it drains──▶ beyond
      ▲                             │  report, shed        drain and restart         replaced at once
      └──below CLEAR × soft for for_s┘

What does not go down by itself (memory, descriptors, threads, children) is acted
on the moment it is above hard; what fluctuates (CPU, loop lag) after for_s.

Does not read anything, and does not cover what the kernel enforces: see Backstops.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto

from msgspec.structs import asdict

from bus.messages import Band, Limits

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

DIMENSIONS = ("rss_bytes", "cpu_cores", "fds", "threads", "children", "loop_lag_s")
FLUCTUATING = frozenset({"cpu_cores", "loop_lag_s"})
CLEAR = 0.9
"""Of soft: below it for for_s, a band is fine again."""
BEYOND = 1.25
"""Of hard: what grows on to this while it drains is not waited for."""

TREND_WINDOW_S = 60.0
TREND_LEAST_S = 15.0
TREND_WARNS_S = 600.0
"""A hard limit that is nearer than this, at the pace of the last minute, is warned of."""
_TREND_EVERY_S = 1.0


class LimitError(ValueError):
    """Limits that contradict themselves; the text names the band, the value and the limit."""


class Rung(Enum):
    """Where a quantity stands on the ladder."""

    FINE = auto()
    SOFT = auto()
    HARD = auto()
    BEYOND = auto()


_FINE = Rung.FINE  # in Python 3.11 a member of an enum costs as much as ten attributes


@dataclass(frozen=True)
class Step:
    """A quantity went to another rung."""

    dimension: str
    rung: Rung
    text: str


def check_limits(limits: Limits) -> None:
    """Raise LimitError at the first band that contradicts itself."""
    for dimension, band in bands(limits).items():
        for what, value in (("soft", band.soft), ("hard", band.hard)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise LimitError(f"cannot limit {dimension} with {what}={value:g}: it must be over 0")
        if band.hard is not None and band.hard < band.soft:
            raise LimitError(f"cannot limit {dimension}: soft={band.soft:g} is over hard={band.hard:g}")
        if not 0 <= band.for_s <= 86400:
            raise LimitError(f"cannot limit {dimension} with for_s={band.for_s:g}: it must be 0 to 86400")


def bands(limits: Limits) -> dict[str, Band]:
    """The bands that are set, by dimension."""
    return {name: band for name in DIMENSIONS if (band := getattr(limits, name)) is not None}


def merge(limits: Limits, changes: Limits) -> Limits:
    """The limits with those bands replaced that the changes set."""
    return Limits(**{**_by_name(limits), **{k: v for k, v in _by_name(changes).items() if v is not None}})


def _by_name(limits: Limits) -> dict[str, Band | None]:
    return {name: getattr(limits, name) for name in asdict(limits)}


_FACTORS = {"k": KiB, "m": MiB, "g": GiB}


def parse_band(text: str) -> Band:
    """``SOFT[:HARD[:SECONDS]]``, with k, m or g for powers of 1024, such as ``512m:768m:10``. Raises LimitError."""
    parts = text.split(":")
    if not 1 <= len(parts) <= 3:
        raise LimitError(f"cannot read {text!r}: it must be SOFT[:HARD[:SECONDS]], such as 512m:768m:10")
    soft = _parse_number(parts[0], text)
    hard = _parse_number(parts[1], text) if len(parts) > 1 and parts[1] else None
    for_s = _parse_number(parts[2], text) if len(parts) > 2 else 0.0
    return Band(soft=soft, hard=hard, for_s=for_s)


def _parse_number(part: str, whole: str) -> float:
    factor = _FACTORS.get(part[-1:].lower(), 1)
    try:
        return float(part[:-1] if factor != 1 else part) * factor
    except ValueError:
        raise LimitError(f"cannot read {part!r} in {whole!r}: it must be a number, with k, m or g at most") from None


def show(dimension: str, value: float) -> str:
    """A quantity for people: ``512 MiB``, ``0.35 s``, ``120``."""
    match dimension:
        case "rss_bytes":
            return f"{value / MiB:.0f} MiB"
        case "loop_lag_s":
            return f"{value:.2g} s"
        case "cpu_cores":
            return f"{value:.2f} cores"
        case _:
            return f"{value:.0f}"


class LimitKeeper:
    """Where each limited quantity stands; ``look`` is told a reading, and says what changed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._gauges = {name: _Gauge(name, band) for name, band in bands(limits).items()}

    def change(self, changes: Limits) -> None:
        """Use other bands; a quantity whose band changes starts on the rung of its next reading."""
        self.limits = merge(self.limits, changes)
        for name, band in bands(changes).items():
            self._gauges[name] = _Gauge(name, band)

    def look(self, now_s: float, dimension: str, value: float | None) -> Step | None:
        """Take a reading (None is unknown, and changes nothing); return the step that follows, if any."""
        gauge = self._gauges.get(dimension)
        return gauge.look(now_s, value) if gauge is not None and value is not None else None

    def calm_below(self, dimension: str) -> float:
        """Readings up to here would change nothing now, but for the trend; infinite without a limit."""
        gauge = self._gauges.get(dimension)
        if gauge is None:
            return math.inf
        return gauge.band.soft if gauge.is_calm else -math.inf

    def findings(self, now_s: float) -> dict[str, str]:
        """What is to be said of each quantity that is above its soft limit or soon will be above its hard one."""
        found = {name: gauge.finding(now_s) for name, gauge in self._gauges.items()}
        return {name: text for name, text in found.items() if text}

    def value(self, dimension: str) -> float:
        """The last reading of a limited quantity; 0.0 before the first."""
        gauge = self._gauges.get(dimension)
        return gauge.value if gauge is not None else 0.0

    def restart_windows(self, now_s: float) -> None:
        """The observer was away: what it was waiting out begins anew."""
        for gauge in self._gauges.values():
            gauge.since_s = None if gauge.since_s is None else now_s


class _Gauge:
    def __init__(self, dimension: str, band: Band) -> None:
        self.dimension = dimension
        self.band = band
        self.rung = Rung.FINE
        self.value = 0.0
        self.since_s: float | None = None
        """Since when it has been on the other side of what it would have to cross."""
        self._heading = Rung.FINE
        self._trend: deque[tuple[float, float]] = deque()

    @property
    def is_calm(self) -> bool:
        return self.rung is _FINE and self.since_s is None

    def look(self, now_s: float, value: float) -> Step | None:
        self.value = value
        self._remember(now_s, value)
        if value <= self.band.soft and self.is_calm:
            return None
        heading = self._heads_for(value)
        if heading is self.rung:
            self.since_s, self._heading = None, heading
            return None
        if heading is not self._heading or self.since_s is None:
            self.since_s, self._heading = now_s, heading
        if now_s - self.since_s < self._patience_s(heading):
            return None
        self.rung, self.since_s = heading, None
        return Step(self.dimension, heading, self._text())

    def _heads_for(self, value: float) -> Rung:
        """The rung on which this value would be; going up from hard to beyond needs hard to be reached first."""
        band = self.band
        if band.hard is not None and value > band.hard:
            past = value > BEYOND * band.hard and self.rung in (Rung.HARD, Rung.BEYOND)
            return Rung.BEYOND if past and self.dimension not in FLUCTUATING else Rung.HARD
        if self.rung in (Rung.HARD, Rung.BEYOND):
            return self.rung  # it is being replaced: there is no way back down
        if value > band.soft or (self.rung is Rung.SOFT and value >= CLEAR * band.soft):
            return Rung.SOFT
        return Rung.FINE

    def _patience_s(self, heading: Rung) -> float:
        at_once = heading in (Rung.HARD, Rung.BEYOND) and self.dimension not in FLUCTUATING
        return 0.0 if at_once else self.band.for_s

    def _text(self) -> str:
        value, band = show(self.dimension, self.value), self.band
        match self.rung:
            case Rung.FINE:
                return f"{self.dimension} {value}: below its limit again"
            case Rung.SOFT:
                return f"{self.dimension} {value}: over the soft limit of {show(self.dimension, band.soft)}"
            case _:
                return f"{self.dimension} {value}: over the hard limit of {show(self.dimension, band.hard or 0.0)}"

    def finding(self, now_s: float) -> str:
        """For people; empty when there is nothing to say."""
        parts = [self._text()] if self.rung is not _FINE else []
        left_s = self.left_s()
        if left_s is not None and left_s < TREND_WARNS_S:
            when = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
            parts.append(f"{self.dimension} hard limit in {when}")
        return ", ".join(parts)

    def _remember(self, now_s: float, value: float) -> None:
        if self.band.hard is None or self.dimension in FLUCTUATING:
            return
        if self._trend and now_s - self._trend[-1][0] < _TREND_EVERY_S:
            return
        self._trend.append((now_s, value))
        while now_s - self._trend[0][0] > TREND_WINDOW_S:
            self._trend.popleft()

    def left_s(self) -> float | None:
        """Time to the hard limit at the pace of the last minute (least squares); None if it is not approached."""
        hard, trend = self.band.hard, self._trend
        # As nearly always it is not, that is found out first.
        if hard is None or len(trend) < 3 or trend[-1][1] <= trend[0][1] or self.rung in (Rung.HARD, Rung.BEYOND):
            return None
        begin_s = trend[0][0]
        if trend[-1][0] - begin_s < TREND_LEAST_S:
            return None
        times = [at_s - begin_s for at_s, _ in trend]
        values = [value for _, value in trend]
        mean_t, mean_v = math.fsum(times) / len(times), math.fsum(values) / len(values)
        spread = math.fsum((t - mean_t) ** 2 for t in times)
        slope = math.fsum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True)) / spread
        rising = all(later >= earlier for earlier, later in zip(values, values[len(values) // 3 :], strict=False))
        if slope <= 0 or not rising:
            return None
        return max(0.0, (hard - values[-1]) / slope)
