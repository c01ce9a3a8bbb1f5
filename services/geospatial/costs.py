"""What each way to find would cost under the load that was seen, and what to change because of it. Pure.

The prices are of one machine, in microseconds; what they are worth here is told by the ratio of what the index in use
has cost to what they foretold for it. Whether a change has helped is measured by the framework, which undoes it if not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec import Struct

from services.geospatial.indexes import KINDS, Kind

WORTH = 0.7
"""Another index has to promise to bring the cost below this part of what it is …"""
WORTH_US_PER_S = 500.0
"""… and to save this much, a two-thousandth of a core: for less nothing is built."""
TOO_MUCH_US = 20_000.0
"""Of so much waste in a second, a fiftieth of a core, no whole second is waited for."""
REPEATED, REPEATED_OUT = 0.3, 0.05
"""Answers are kept from so many repeats among the requests on, and no more below so many."""
ASKED_PER_S = 2.0
REBUILDS = (1_024, 4_096, 16_384, 65_536)


class Load(Struct, frozen=True, kw_only=True):
    """Of one collection, lately."""

    collection: str
    features: int
    index: Kind
    rebuild_at: int
    index_age_s: float
    delta: int
    """Changes since the tree was packed."""
    reads_per_s: float
    read_us: float | None
    """Of the index alone; None if nothing was read."""
    hits: float
    """That the index found, each read."""
    candidates_per_hit: float | None
    """Of what the index found, to one that was one."""
    area: float
    """Square degrees, of a window."""
    p95_ms: float | None
    writes_per_s: float
    write_us: float | None
    batch: float
    """Features in one write."""
    rebuilds_per_s: float
    requests_per_s: float
    request_ms: float | None
    repeats: float
    """Part of the requests."""
    is_cached: bool


class Cost(Struct, frozen=True, kw_only=True):
    """What an index would cost: microseconds of work in each second."""

    index: Kind
    rebuild_at: int
    us_per_s: float


class Weighed(Struct, frozen=True, kw_only=True):
    """A collection: what its index costs, and what others would."""

    load: Load
    now_us_per_s: float
    pace: float
    """This machine, to the one of the prices."""
    options: tuple[Cost, ...]
    """The cheapest first."""


@dataclass(frozen=True)
class UseIndex:
    """Have a collection use this index."""

    collection: str
    index: Kind
    rebuild_at: int
    was: tuple[Kind, int] = field(compare=False)
    reads_per_s: float = field(compare=False)
    writes_per_s: float = field(compare=False)


@dataclass(frozen=True)
class KeepAnswers:
    """Have a collection's answers be kept, or not."""

    collection: str
    is_on: bool


Decision = UseIndex | KeepAnswers


def read_us(kind: Kind, features: int, hits: float, delta: float) -> float:
    """One look."""
    match kind:
        case "scan":
            return 6.0 + 0.0023 * features + 0.002 * hits
        case "tree":
            return 12.0 + 0.018 * hits + (4.0 + 0.003 * delta if delta else 0.0)
        case "rtree":
            return 9.0 + 0.4 * hits


def write_us(kind: Kind, batch: float) -> float:
    """One feature of a write of so many. A write costs something, and each feature of it."""
    first, each = {"scan": (0.3, 0.0), "tree": (11.0, 0.08), "rtree": (12.0, 26.0)}[kind]
    return first / max(batch, 1.0) + each


def rebuild_us(features: int) -> float:
    """Packing a tree."""
    return 1_000.0 + 1.6 * features


def _delta(load: Load, rebuild_at: int) -> float:
    """Its mean size. What moves again and again is in it once, so that it never holds more than there is."""
    return min(rebuild_at, load.features) / 2


def rebuilds_us(load: Load, kind: Kind, rebuild_at: int, writes_per_s: float) -> float:
    """Microseconds of packing trees each second, in the mean of many."""
    if kind != "tree" or rebuild_at >= load.features:
        return 0.0
    # A feature that is chosen at random is new to the delta with the chance that it is not in it.
    new_per_s = writes_per_s * (1.0 - _delta(load, rebuild_at) / load.features)
    return new_per_s / rebuild_at * rebuild_us(load.features)


def cost_us(load: Load, kind: Kind, rebuild_at: int) -> float:
    """Microseconds of work each second, on the machine of the prices."""
    delta = _delta(load, rebuild_at) if load.writes_per_s > 0.0 else 0.0
    total = load.reads_per_s * read_us(kind, load.features, load.hits, delta)
    total += load.writes_per_s * write_us(kind, load.batch)
    return total + rebuilds_us(load, kind, rebuild_at, load.writes_per_s)


def measured_us(load: Load, reads_per_s: float, writes_per_s: float) -> float | None:
    """What the index in use has cost, at these rates; None if one of the two that matter was not measured."""
    if (load.read_us is None and reads_per_s > 0.0) or (load.write_us is None and writes_per_s > 0.0):
        return None
    total = reads_per_s * (load.read_us or 0.0) + writes_per_s * (load.write_us or 0.0)
    # A tree is packed so seldom that a few seconds show none, or one: both would mislead.
    return total + rebuilds_us(load, load.index, load.rebuild_at, writes_per_s)


def weigh(load: Load) -> Weighed:
    """What its index costs, and what others would."""
    foretold = cost_us(load, load.index, load.rebuild_at)
    measured = measured_us(load, load.reads_per_s, load.writes_per_s)
    pace = min(max(measured / foretold, 0.25), 4.0) if measured and foretold else 1.0
    # What it costs now is foretold too: a measurement that was disturbed must not make every other choice look better.
    options = [Cost(index=load.index, rebuild_at=load.rebuild_at, us_per_s=foretold * pace)]
    for kind in KINDS:
        for rebuild_at in REBUILDS if kind == "tree" else (load.rebuild_at,):
            if (kind, rebuild_at) != (load.index, load.rebuild_at):
                us = cost_us(load, kind, rebuild_at) * pace
                options.append(Cost(index=kind, rebuild_at=rebuild_at, us_per_s=us))
    # Of what costs the same the largest delta: it is what costs least when writes begin.
    options.sort(key=lambda option: (option.us_per_s, -option.rebuild_at))
    return Weighed(load=load, now_us_per_s=foretold * pace, pace=round(pace, 3), options=tuple(options))


def wasted_us(one: Weighed) -> float:
    """What the best index would save in a second."""
    return one.now_us_per_s - one.options[0].us_per_s


def decide(picture: tuple[Weighed, ...], held: frozenset[Decision]) -> Decision | None:
    """The one change that saves most, or none."""
    best: tuple[float, Decision] | None = None
    for one in picture:
        load = one.load
        for option in one.options:
            saved = one.now_us_per_s - option.us_per_s
            change: Decision = UseIndex(
                load.collection,
                option.index,
                option.rebuild_at,
                (load.index, load.rebuild_at),
                load.reads_per_s,
                load.writes_per_s,
            )
            if (
                (option.index, option.rebuild_at) == (load.index, load.rebuild_at)
                or saved < WORTH_US_PER_S
                or option.us_per_s > WORTH * one.now_us_per_s
                or change in held
            ):
                continue
            if best is None or saved > best[0]:
                best = (saved, change)
        keep = _answers(load)
        if keep is not None and keep not in held:
            saved = load.requests_per_s * (load.request_ms or 0.0) * 1e3 * load.repeats
            if best is None or saved > best[0]:
                best = (saved, keep)
    return best[1] if best else None


def _answers(load: Load) -> KeepAnswers | None:
    if not load.is_cached and load.repeats >= REPEATED and load.requests_per_s >= ASKED_PER_S:
        return KeepAnswers(load.collection, True)
    if load.is_cached and load.requests_per_s >= ASKED_PER_S and load.repeats < REPEATED_OUT:
        return KeepAnswers(load.collection, False)
    return None


def cost(picture: tuple[Weighed, ...], decision: Decision) -> float | None:
    """What the decision is to lower: of an index its work at the rates of then, of answers what a request takes."""
    load = next((one.load for one in picture if one.load.collection == decision.collection), None)
    if load is None:
        return None
    if isinstance(decision, UseIndex):
        us = measured_us(load, decision.reads_per_s, decision.writes_per_s)
        return us if us is not None and math.isfinite(us) else None
    if not decision.is_on:
        return 1.0 if load.is_cached else 0.0  # what is let go is memory
    return load.request_ms
