"""What cdn-statistical is worth: quantiles with its loop off and on, totals in an overload, speed, false alarms.

    python -m benchmarks.statistical [--only quantiles|overload|speed|changes] [--statsd DIRECTORY] [--json]

The peer is npm's statsd (StatsD itself), where --statsd says that it is: a directory with its stats.js. Sender and
service share the machine: the figures compare within a run, and promise nothing for another machine.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

from bus.messages import OodaMode
from services.statistical.aggregates import Distribution
from services.statistical.changes import Detector
from services.statistical.intake import Intake
from services.statistical.limits import Limits
from services.statistical.ooda import BudgetLoop
from services.statistical.store import Store
from tests.statistical.support import process
from tests.support import free_port, short_dir, until

SERIES = 200
SLOT_S = 10
BINS_EACH = 64


class Quantiles(Struct):
    """Of one arm, over the last slots."""

    arm: str
    mean_error: float
    """Of p99.9, relative to the true one, over all series."""
    worst_error: float
    mean_bound: float
    kib: float
    actions: list[str]


def draw(n: int, rng: random.Random) -> list[float]:
    """One slot's values of a series: most are rare or constant, some narrow, some wide, some of two humps."""
    match n % 20:
        case 0:
            return [rng.lognormvariate(9, 1) if rng.random() < 0.1 else rng.lognormvariate(0, 1) for _ in range(2000)]
        case 1 | 2:
            return [rng.lognormvariate(3, 1) for _ in range(2000)]
        case 3 | 4 | 5 | 6 | 7:
            return [rng.lognormvariate(3, 0.2) for _ in range(2000)]
        case 8 | 9 | 10:
            return [100.0] * 2000
        case _:
            return [rng.lognormvariate(3, 1) for _ in range(10)]


def quantiles(mode: OodaMode, slots: int, seed: int) -> Quantiles:
    """The store and its loop in virtual time, so that the true p99.9 of each slot is known."""
    random.seed(seed)
    rng = random.Random(seed)
    store = Store(Limits(quantile_bytes=SERIES * BINS_EACH * 8))
    loop = BudgetLoop(store, Intake(store, "127.0.0.1", 0))
    loop.mode = mode
    now_s, errors, bounds, size = 1000.0, list[float](), list[float](), 0
    for at in range(slots):
        now_s += SLOT_S
        slot = int(now_s // SLOT_S)
        store.clock._ahead_s += now_s - store.clock.now_s()
        true = {}
        for n in range(SERIES):
            values = draw(n, rng)
            true[f"s{n}"] = sorted(values)[math.ceil(0.999 * len(values)) - 1]
            for part in range(0, len(values), 50):
                line = b"s%d:%s|ms" % (n, b":".join(b"%r" % value for value in values[part : part + 50]))
                store.fold(line, 1.0, slot, now_s)
        if at >= slots - 3:
            for series in store.series.values():
                assert isinstance(series.aggregate, Distribution)
                sketch = series.aggregate.sketch
                errors.append(abs(sketch.quantiles([0.999])[0] / true[series.name] - 1))
                bounds.append(sketch.error)
            size = sum(series.bytes for series in store.series.values())
        for step in range(5):
            work = loop.step(now_s + step / 10)
            if work is not None:
                work.run()
                loop.finished(now_s + step / 10, None)
    verdicts = [one.effect.verdict for one in loop.actions if one.effect is not None]
    return Quantiles(mode.value, statistics.mean(errors), max(errors), statistics.mean(bounds), size / 1024, verdicts)


# -- the real process -------------------------------------------------------------------------------------


def flood(port: int, packets: list[bytes], seconds: float) -> int:
    """As fast as one sender can; how many datagrams."""
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for packet in packets:
                one.send(packet)
            sent += len(packets)
    return sent


class Overload(Struct):
    """Some runs of a flood."""

    times_capacity: float
    looked_at: float
    """The part of the samples."""
    bias: float
    """Mean of (told - sent) / sent of a name that is a fifth of all."""
    standard_error: float
    total_off: float
    """The most that the sum of all was off in any run, as part of it."""
    queue_mib: float
    """The longest seen."""
    rss_mib: float
    query_p95_ms: float
    """GET /series/NAME meanwhile."""


def overload(runs: int, seconds: float) -> Overload:
    """Ten times and more of what fits into a small share."""
    rng = random.Random(5)
    biases, off, looked, times, queue, queries = [], [], [], [], [0.0], []
    rss = 0.0
    for _ in range(runs):
        with short_dir() as run_path, process(run_path, CDN_STATISTICAL_SHARE="0.05") as (client, service):
            names = [b"few:1|c" if rng.random() < 0.2 else b"most:1|c" for _ in range(5000)]
            sender = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.statistical", "--flood", str(client.statsd_port), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert sender.stdin is not None
            assert sender.stdout is not None
            sender.stdin.write(b"\n".join(names))
            sender.stdin.close()
            while sender.poll() is None:
                began_s = time.perf_counter()
                client.call("GET", "/series/few")
                queries.append((time.perf_counter() - began_s) * 1e3)
                queue.append(client.metric("statsd_queue_bytes"))
            sent = int(sender.stdout.read())
            until(lambda c=client, s=sent: c.total("few") + c.total("most") > s - 1, what="all is stood for")  # type: ignore[misc]
            few, most = client.series("few", window=3600), client.series("most", window=3600)
            share = names.count(b"few:1|c") / len(names)
            biases.append(few["total"] / (sent * share) - 1)
            off.append(abs((few["total"] + most["total"]) / sent - 1))
            looked.append((few["received"] + most["received"]) / sent)
            times.append(sent / (few["received"] + most["received"]))
            rss = max(rss, psutil.Process(service.pid).memory_info().rss / 2**20)
    return Overload(
        times_capacity=statistics.mean(times),
        looked_at=statistics.mean(looked),
        bias=statistics.mean(biases),
        standard_error=statistics.stdev(biases) / math.sqrt(runs) if runs > 1 else math.nan,
        total_off=max(off),
        queue_mib=max(queue) / 2**20,
        rss_mib=rss,
        query_p95_ms=statistics.quantiles(queries, n=20)[18],
    )


class Speed(Struct):
    """One server, flooded."""

    server: str
    lines: int
    """In a datagram."""
    sent_per_s: float
    looked_at_per_s: float
    per_cpu_s: float
    """Samples looked at for a second of CPU time."""
    told: float
    """What it says was sent, as part of what was."""


def packets_of(lines: int) -> list[bytes]:
    """Counters and timers of 100 names each, and one that counts the datagrams."""
    rng = random.Random(3)

    def line(n: int) -> bytes:
        if n == 0:
            return b"packets:1|c"
        if rng.random() < 0.5:
            return b"requests.%d:1|c" % rng.randrange(100)
        return b"took.%d:%.3f|ms" % (rng.randrange(100), rng.lognormvariate(3, 1))

    return [b"\n".join(line(n) for n in range(lines)) for _ in range(1000)]


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def speed_of_ours(lines: int, seconds: float) -> Speed:
    """With a whole core to itself, as the peer has."""
    with short_dir() as run_path, process(run_path, CDN_STATISTICAL_SHARE="1.0") as (client, service):
        before_s = _cpu_s(service.pid)
        sent = _flooded(client.statsd_port, lines, seconds)
        until(lambda: client.total("packets") > sent - 1, what="all is stood for")
        spent_s = _cpu_s(service.pid) - before_s
        looked_at = client.metric("samples_total")
        return Speed(
            "cdn-statistical",
            lines,
            sent * lines / seconds,
            looked_at / seconds,
            looked_at / spent_s,
            client.total("packets") / sent,
        )


@contextmanager
def peer(directory: Path) -> Iterator[tuple[int, int, int]]:
    """StatsD itself: its UDP port, the port of its management, its pid."""
    node = shutil.which("node")
    assert node is not None
    with short_dir() as path:
        port, management = free_port(), free_port()
        (path / "config.js").write_text(
            f'{{port: {port}, mgmt_port: {management}, address: "127.0.0.1", mgmt_address: "127.0.0.1", '
            f"flushInterval: 3600000, backends: []}}"
        )
        server = subprocess.Popen([node, "stats.js", str(path / "config.js")], cwd=directory, stdout=subprocess.DEVNULL)
        try:
            until(lambda: _managed(management, "counters"), what="statsd answers")
            yield port, management, server.pid
        finally:
            server.kill()
            server.wait()


def _managed(port: int, command: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
            one.sendall(command.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"END\n\n"):
                if not (chunk := one.recv(65536)):
                    break
                answer += chunk
            return answer.decode()
    except ConnectionError:
        return ""


def speed_of_peer(directory: Path, lines: int, seconds: float) -> Speed:
    """What it has counted, by its own counter."""
    with peer(directory) as (port, management, pid):
        before_s = _cpu_s(pid)
        sent = _flooded(port, lines, seconds)
        found: list[str] = []

        def counted() -> bool:
            found.append(_managed(management, "counters"))
            return len(found) > 2 and found[-1] == found[-2]

        until(counted, every_s=0.3, what="it has counted what it got")
        spent_s = _cpu_s(pid) - before_s
        (told,) = [
            float(line.partition(":")[2].strip(" ,"))
            for line in found[-1].splitlines()
            if "packets:" in line and "statsd" not in line
        ]
        return Speed(
            "statsd (npm)", lines, sent * lines / seconds, told * lines / seconds, told * lines / spent_s, told / sent
        )


def _flooded(port: int, lines: int, seconds: float) -> int:
    """By another process, so that it does not wait for this one's interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.statistical", "--flood", str(port), str(seconds)],
        input=b"\0".join(packets_of(lines)),
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout)


# -- change points ----------------------------------------------------------------------------------------


class Alarms(Struct):
    """Values until a false alarm, at one threshold."""

    threshold: float
    siegmund: float
    measured: dict[str, float]
    """By distribution; over all values where there was none."""


SHAPES: dict[str, Callable[[random.Random], float]] = {
    "normal": lambda rng: rng.gauss(0, 1),
    "lognormal": lambda rng: rng.lognormvariate(0, 2),
    "Pareto": lambda rng: rng.paretovariate(1),
    "counts": lambda rng: float(sum(rng.random() < 0.03 for _ in range(10))),
}


def false_alarms(threshold: float, values: int) -> Alarms:
    """Of values that do not change."""
    measured = {}
    for name, shape in SHAPES.items():
        rng, detector, found = random.Random(2), Detector(threshold), 0
        for _ in range(values):
            found += detector.hear(shape(rng)) is not None
        measured[name] = values / max(1, found)
    width = threshold + 1.166
    return Alarms(threshold, (math.exp(2 * width) - 2 * width - 1) / 4, measured)


def delays(shift: float, runs: int) -> tuple[float, float]:
    """Median and p95 of the values until a shift by so many deviations is told, at the usual threshold."""
    rng, waited = random.Random(4), []
    for _ in range(runs):
        detector = Detector()
        for _ in range(120):
            detector.hear(rng.gauss(0, 1))
        at = 1
        while detector.hear(rng.gauss(shift, 1)) is None and at < 600:
            at += 1
        waited.append(at)
    waited.sort()
    return waited[runs // 2], waited[runs * 95 // 100]


def main() -> None:
    """Run what was asked for, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("quantiles", "overload", "speed", "changes"))
    parser.add_argument("--statsd", type=Path, help="where npm's statsd is: the directory with stats.js")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each flood")
    parser.add_argument("--runs", type=int, default=8, help="of the overload")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--flood", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.flood:
        content = sys.stdin.buffer.read()
        print(flood(int(asked.flood[0]), content.split(b"\0" if b"\0" in content else b"\n"), float(asked.flood[1])))
        return
    found: dict[str, Any] = {}
    if asked.only in (None, "quantiles"):
        found["quantiles"] = [quantiles(mode, 14, 1) for mode in (OodaMode.OFF, OodaMode.ON)]
    if asked.only in (None, "overload"):
        found["overload"] = overload(asked.runs, asked.seconds)
    if asked.only in (None, "speed"):
        found["speed"] = []
        for lines in (1, 10):
            found["speed"].append(speed_of_ours(lines, asked.seconds))
            if asked.statsd:
                found["speed"].append(speed_of_peer(asked.statsd, lines, asked.seconds))
    if asked.only in (None, "changes"):
        found["changes"] = [false_alarms(threshold, 500_000) for threshold in (4.0, 5.0)]
        found["delays"] = {str(shift): delays(shift, 400) for shift in (2, 3, 10)}
    if asked.json:
        import msgspec

        print(json.dumps(msgspec.to_builtins(found)))
        return
    for one in found.get("quantiles", ()):
        print(
            f"p99.9 of {SERIES} series in {one.kib:.0f} KiB, loop {one.arm:3}: off by {one.mean_error:.3%} in the "
            f"mean, {one.worst_error:.2%} at worst; guaranteed {one.mean_bound:.3%}; actions: {one.actions or 'none'}"
        )
    if told := found.get("overload"):
        print(
            f"overload, {told.times_capacity:.0f} × what is looked at, {told.looked_at:.2%} of the samples: a name's "
            f"total is off by {told.bias:+.3%} ± {told.standard_error:.3%} (mean of {asked.runs} runs),\n"
            f"  the sum of all by {told.total_off:.0e}; queue at most {told.queue_mib:.1f} MiB, "
            f"RSS {told.rss_mib:.0f} MiB, p95 of a query {told.query_p95_ms:.1f} ms"
        )
    for fast in found.get("speed", ()):
        print(
            f"{fast.server:16} {fast.lines:3} lines a datagram, {fast.sent_per_s:10,.0f} lines/s sent: looked at "
            f"{fast.looked_at_per_s:9,.0f}/s, {fast.per_cpu_s:9,.0f} per CPU second; told {fast.told:.2%}"
        )
    for alarm in found.get("changes", ()):
        words = ", ".join(f"{name} {values:,.0f}" for name, values in alarm.measured.items())
        print(f"values to a false alarm, threshold {alarm.threshold:g}: by Siegmund {alarm.siegmund:,.0f}; {words}")
    for shift, (median, late) in found.get("delays", {}).items():
        print(f"a shift by {shift} deviations is told after {median:.0f} values, p95 {late:.0f}")


if __name__ == "__main__":
    main()
