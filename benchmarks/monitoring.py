"""What cdn-monitoring is worth: anomalies found with its loop off and on, at equal samples; speed; room on disk.

    python -m benchmarks.monitoring [--only loop|speed] [--nab DIRECTORY] [--json]

The loop runs in virtual time over labelled series, drawn with a seed; with --nab over those of the Numenta Anomaly
Benchmark (a clone of github.com/numenta/NAB, AGPL), five minutes of it as --nab-step seconds. Both arms have the same
detector: an anomaly is found when three samples in a row are unlike what was expected.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from services.monitoring.evaluate import Question, evaluate
from services.monitoring.keeper import Keeper
from services.monitoring.limits import Limits
from services.monitoring.promql import parse
from services.monitoring.samples import unpacked
from services.monitoring.schedule import SURPRISE, Forecast, Schedule, shared
from services.monitoring.scraper import Scraper, Spec, Target
from services.monitoring.store import Store
from tests.support import short_dir

IN_A_ROW = 3
INTERVAL_S = 10.0


class Labelled(Struct):
    """A series whose anomalies are known."""

    name: str
    value: Callable[[float], float]
    """At a moment in s."""
    anomalies: list[tuple[float, float]]
    """From, to."""
    end_s: float


class Found(Struct):
    """Of one arm."""

    arm: str
    samples: int
    anomalies: int
    found: int
    median_s: float
    """From an anomaly's beginning until it was found; of those that both arms have found."""
    mean_s: float
    false_alarms: int
    further_looks: int


def drawn(seed: int, targets: int, end_s: float) -> list[Labelled]:
    """Most targets are quiet, some are ill every few minutes: their level moves for one to five minutes."""
    rng = random.Random(seed)
    made = []
    for number in range(targets):
        every_s = 900.0 if number % 5 == 0 else 14_400.0
        level, noise, swing = rng.uniform(10, 1000), rng.uniform(0.01, 0.1), rng.uniform(0, 0.2)
        anomalies: list[tuple[float, float]] = []
        at_s = 600 + rng.expovariate(1 / every_s)
        while at_s < end_s - 600:
            anomalies.append((at_s, at_s + rng.uniform(60, 300)))
            at_s = anomalies[-1][1] + 300 + rng.expovariate(1 / every_s)
        height = [rng.choice((-1, 1)) * rng.uniform(10, 30) * noise for _ in anomalies]
        salt = rng.random()

        def value(
            now_s: float,
            level: float = level,
            noise: float = noise,
            swing: float = swing,
            anomalies: list[tuple[float, float]] = anomalies,
            height: list[float] = height,
            salt: float = salt,
        ) -> float:
            # The noise is a function of the moment, so that both arms see the same world.
            chance = random.Random(f"{salt} {now_s:.1f}").gauss(0, noise)
            moved = sum(h for (begin, end), h in zip(anomalies, height, strict=True) if begin <= now_s < end)
            return level * (1 + chance + moved + swing * math.sin(now_s / 1800))

        made.append(Labelled(f"t{number}", value, anomalies, end_s))
    return made


def of_nab(directory: Path, step_s: float) -> list[Labelled]:
    """Its real series, with its labelled windows."""
    windows = json.loads((directory / "labels" / "combined_windows.json").read_text())
    made = []
    for name, labelled in sorted(windows.items()):
        if not name.startswith("real"):
            continue
        with (directory / "data" / name).open() as file:
            rows = list(csv.DictReader(file))
        times = [datetime.fromisoformat(row["timestamp"]) for row in rows]
        values = [float(row["value"]) for row in rows]
        at = {moment: number * step_s for number, moment in enumerate(times)}
        anomalies = [tuple(at[datetime.fromisoformat(one.partition(".")[0])] for one in window) for window in labelled]

        def value(now_s: float, values: list[float] = values) -> float:
            return values[min(len(values) - 1, int(now_s / step_s))]

        made.append(Labelled(name, value, [(begin, end) for begin, end in anomalies], len(values) * step_s))
    return made


def arm(mode: str, series: Sequence[Labelled], interval_s: float) -> tuple[Found, dict[tuple[str, float], float]]:
    """One arm; and when each anomaly was found."""
    schedule = Schedule(interval_s)
    detectors = {one.name: (Forecast(), [0]) for one in series}
    rng = random.Random(1)
    due = [(rng.uniform(0, interval_s), number) for number in range(len(series))]
    heapq.heapify(due)
    next_plan_s, samples, false_alarms = 300.0, 0, 0
    found: dict[tuple[str, float], float] = {}
    alarmed: set[tuple[str, float]] = set()
    while due:
        now_s, number = heapq.heappop(due)
        one = series[number]
        if now_s >= one.end_s:
            continue
        if mode == "on" and now_s >= next_plan_s:
            next_plan_s = now_s + 120.0
            if schedule.surprises >= 3:
                schedule.plan = shared(schedule.demands(now_s), schedule.budget())
        samples += 1
        value = one.value(now_s)
        wait_s = schedule.heard(one.name, now_s, [(0, value)], 1)
        forecast, row = detectors[one.name]
        row[0] = row[0] + 1 if forecast.error(now_s, value) > SURPRISE else 0
        if row[0] >= IN_A_ROW:
            inside = [begin for begin, end in one.anomalies if begin <= now_s < end + 60]
            if inside:
                found.setdefault((one.name, inside[0]), now_s - inside[0])
            elif (one.name, now_s // 300) not in alarmed:
                alarmed.add((one.name, now_s // 300))
                false_alarms += 1
        heapq.heappush(due, (now_s + wait_s, number))
    anomalies = sum(len(one.anomalies) for one in series)
    return Found(mode, samples, anomalies, len(found), 0.0, 0.0, false_alarms, schedule.further_looks), found


def loop(series: Sequence[Labelled]) -> list[Found]:
    """Off at the interval that gives it as many samples as on has spent; both judged on what both have found."""
    on, found_on = arm("on", series, INTERVAL_S)
    length_s = sum(one.end_s for one in series)
    off, found_off = arm("off", series, length_s / on.samples)
    both = sorted(found_on.keys() & found_off.keys())
    for told, delays in ((off, found_off), (on, found_on)):
        if both:
            told.median_s = statistics.median(delays[one] for one in both)
            told.mean_s = statistics.mean(delays[one] for one in both)
    return [off, on]


class Speed(Struct):
    """Scrapes of 100 series, taken, written, packed and asked for."""

    series: int
    taken_per_s: float
    """Samples read and put into the store, by one core."""
    journal_per_s: float
    sealed_per_s: float
    bytes_a_sample: float
    rate_ms: float
    """rate over all counters of one name, 240 steps."""


def speed(targets: int, scrapes: int) -> Speed:
    """The parts that a sample goes through, one after the other, as fast as they can."""
    rng = random.Random(3)
    with short_dir() as directory:
        limits = Limits(series=10**6)
        store = Store(limits.series)
        keeper = Keeper(store, directory, limits, flush_s=3600)
        keeper.open()
        scraper = Scraper(store, limits)
        every = [
            Target(Spec(f"http://10.0.{n // 256}.{n % 256}/", (("instance", f"h{n}"), ("job", "j"))), "static")
            for n in range(targets)
        ]
        counters = [[rng.random() * 1e4 for _ in range(100)] for _ in every]
        begin_ms = int(time.time() * 1000) - scrapes * 10_000
        took_s = journal_s = 0.0
        for scrape in range(scrapes):
            for target, values in zip(every, counters, strict=True):
                for n in range(100):
                    values[n] += rng.randrange(100) if n % 2 else rng.gauss(0, 1)
                text = "".join(
                    f'm{n % 10}_total{{path="/p{n}",code="200"}} {value:.6g}\n' for n, value in enumerate(values)
                )
                began_s = time.perf_counter()
                scraper.take(target, text, begin_ms + scrape * 10_000)
                took_s += time.perf_counter() - began_s if scrape else 0.0
            began_s = time.perf_counter()
            keeper.submit([]).result()
            journal_s += time.perf_counter() - began_s
        count = targets * scrapes * 100
        began_s = time.perf_counter()
        keeper.seal()  # its thread waits for an order meanwhile
        sealed_s = time.perf_counter() - began_s
        size = keeper.bytes
        assert keeper._disk is not None
        node = parse("sum(rate(m1_total[1m]))")
        from services.monitoring.disk import Reader
        from services.monitoring.samples import Columns

        reader = Reader(keeper.path)

        def fetch(selector, begin, end):  # type: ignore[no-untyped-def]
            for one in store.find(selector.matchers):
                columns = Columns()
                for content in reader.chunks(one.id, begin, end):
                    columns.extend(unpacked(content).between(begin, end))
                yield one.labels, columns

        end_ms = begin_ms + scrapes * 10_000
        steps = range(begin_ms, end_ms, max(1, (end_ms - begin_ms) // 240))
        began_s = time.perf_counter()
        evaluate(node, Question(steps, fetch, lambda _: None))
        rate_ms = (time.perf_counter() - began_s) * 1e3
        reader.close()
        keeper.close()
        return Speed(
            series=targets * 100,
            taken_per_s=(count - targets * 100) / took_s,
            journal_per_s=count / journal_s,
            sealed_per_s=count / sealed_s,
            bytes_a_sample=size / count,
            rate_ms=rate_ms,
        )


def main() -> None:
    """Run what was asked for, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("loop", "speed"))
    parser.add_argument("--nab", type=Path, help="where a clone of NAB is")
    parser.add_argument("--nab-step", type=float, default=10.0, help="seconds that stand for five minutes of it")
    parser.add_argument("--targets", type=int, default=50)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    told: dict[str, object] = {}
    if asked.only in (None, "loop"):
        worlds = {f"seed {seed}": drawn(seed, asked.targets, asked.hours * 3600) for seed in range(1, asked.seeds + 1)}
        if asked.nab:
            worlds = {"NAB": of_nab(asked.nab, asked.nab_step)}
        for name, series in worlds.items():
            told[name] = arms = loop(series)
            for one in arms if not asked.json else ():
                print(
                    f"{name}, loop {one.arm:3}: {one.samples} samples, found {one.found} of {one.anomalies}; of those "
                    f"that both found after {one.median_s:.1f} s in the median, {one.mean_s:.1f} s in the mean; "
                    f"{one.false_alarms} false alarms, {one.further_looks} further looks"
                )
    if asked.only in (None, "speed"):
        told["speed"] = fast = speed(asked.targets, 60)
        if not asked.json:
            print(
                f"{fast.series} series: {fast.taken_per_s:,.0f} samples/s taken, {fast.journal_per_s:,.0f}/s into the "
                f"journal, {fast.sealed_per_s:,.0f}/s packed, {fast.bytes_a_sample:.2f} bytes each on disk; "
                f"a rate over {fast.series // 10} series at 240 steps {fast.rate_ms:.0f} ms"
            )
    if asked.json:
        print(json.dumps(msgspec.to_builtins(told)))


if __name__ == "__main__":
    main()
