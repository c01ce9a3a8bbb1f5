"""What cdn-monitoring is worth: anomalies found with its loop off and on, at equal samples; speed; room on disk.

    python -m benchmarks.monitoring [--only loop|speed] [--nab DIRECTORY] [--json]

The loop runs in virtual time over labelled series, drawn with a seed; with --nab over those of the Numenta Anomaly
Benchmark (a clone of github.com/numenta/NAB, AGPL), five minutes of it as --nab-step seconds. Both arms have the same
detector: an anomaly is found when three samples in a row are unlike what was expected; how unlike, is set for each arm
so that it gives no more false alarms than the other: who samples more where it is restless finds more there anyhow.
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
    unseen: float
    """Part of the time of all anomalies that passed before they were found; those that were not count whole."""
    false_alarms: int
    """Series' stretches of five minutes in which there was an alarm and no anomaly."""
    threshold: float
    """Errors of the usual size."""
    further_looks: int


class Watched(Struct):
    """What one arm has seen."""

    arm: str
    samples: int
    further_looks: int
    scores: dict[str, list[tuple[float, float]]]
    """Of each series: when, and how unlike what was expected, in errors of the usual size."""


Delays = dict[tuple[str, float], float]
"""By series and beginning of the anomaly: until it was found."""


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


def arm(mode: str, series: Sequence[Labelled], interval_s: float) -> Watched:
    """One arm, from the first sample to the last."""
    schedule = Schedule(interval_s)
    forecasts = {one.name: Forecast() for one in series}
    watched = Watched(mode, 0, 0, {one.name: [] for one in series})
    rng = random.Random(1)
    due = [(rng.uniform(0, interval_s), number) for number in range(len(series))]
    heapq.heapify(due)
    next_plan_s = 300.0
    while due:
        now_s, number = heapq.heappop(due)
        one = series[number]
        if now_s >= one.end_s:
            continue
        if mode == "on" and now_s >= next_plan_s:
            next_plan_s = now_s + 120.0
            if schedule.surprises >= 3:
                schedule.plan = shared(schedule.demands(now_s), schedule.budget())
        watched.samples += 1
        value = one.value(now_s)
        wait_s = schedule.heard(one.name, now_s, [(0, value)], 1)
        watched.scores[one.name].append((now_s, forecasts[one.name].error(now_s, value)))
        heapq.heappush(due, (now_s + wait_s, number))
    watched.further_looks = schedule.further_looks
    return watched


def judged(series: Sequence[Labelled], watched: Watched, threshold: float) -> tuple[Delays, int]:
    """When each anomaly was found, and how many false alarms there were."""
    delays: Delays = {}
    false_alarms = set()
    for one in series:
        row = 0
        for now_s, score in watched.scores[one.name]:
            row = row + 1 if score > threshold else 0
            if row < IN_A_ROW:
                continue
            inside = [begin for begin, end in one.anomalies if begin <= now_s < end + 60]
            if inside:
                delays.setdefault((one.name, inside[0]), now_s - inside[0])
            else:
                false_alarms.add((one.name, now_s // 300))
    return delays, len(false_alarms)


def threshold(series: Sequence[Labelled], watched: Watched, false_alarms: int) -> float:
    """The lowest, from SURPRISE on, at which there are no more false alarms than that."""
    low, high = SURPRISE, SURPRISE
    while judged(series, watched, high)[1] > false_alarms:
        low, high = high, 2 * high
    for _ in range(12 if high > low else 0):
        middle = math.sqrt(low * high)
        if judged(series, watched, middle)[1] > false_alarms:
            low = middle
        else:
            high = middle
    return high


def loop(series: Sequence[Labelled]) -> list[Found]:
    """Off at the interval that gives it as many samples as on has spent, each with no more false alarms than the other.

    Delays are those of what both have found.
    """
    on = arm("on", series, INTERVAL_S)
    off = arm("off", series, sum(one.end_s for one in series) / on.samples)
    allowed = min(judged(series, one, SURPRISE)[1] for one in (on, off))
    thresholds = [threshold(series, one, allowed) for one in (off, on)]
    results = [judged(series, one, at) for one, at in zip((off, on), thresholds, strict=True)]
    both = sorted(results[0][0].keys() & results[1][0].keys())
    anomalies = [(one.name, begin, end - begin) for one in series for begin, end in one.anomalies]
    return [
        Found(
            arm=watched.arm,
            samples=watched.samples,
            anomalies=len(anomalies),
            found=len(delays),
            median_s=statistics.median(delays[one] for one in both) if both else 0.0,
            mean_s=statistics.mean(delays[one] for one in both) if both else 0.0,
            unseen=statistics.mean(
                min(delays.get((name, begin), long_s), long_s) / long_s for name, begin, long_s in anomalies
            ),
            false_alarms=false_alarms,
            threshold=at,
            further_looks=watched.further_looks,
        )
        for watched, at, (delays, false_alarms) in zip((off, on), thresholds, results, strict=True)
    ]


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
                    f"{one.unseen:.1%} of all their time unseen; {one.false_alarms} false alarms at "
                    f"{one.threshold:.1f}, {one.further_looks} further looks"
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
