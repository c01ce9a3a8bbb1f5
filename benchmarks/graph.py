"""What three hops cost in glaf-graph-server, and what its loop is worth: the same traffic with the loop off and on.

    python -m benchmarks.graph [--seconds 5] [--bundle enterprise-attack.json] [--json]

Enterprise ATT&CK if --bundle names it (github.com/mitre-attack/attack-stix-data, © The MITRE Corporation), else a graph
of its counts and shape, made up. Load and service share the machine, so the figures compare the arms and promise
nothing for another machine. Staleness is measured from outside: how long before a question another client's write had
been acknowledged that is not in the answer.
"""

from __future__ import annotations

import argparse
import bisect
import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from services.graph.limits import Limits
from services.graph.stix import read_import
from services.graph.store import Store
from services.graph.views import Snapshot, SqlView
from services.graph.walk import khop
from tests.graph.support import attack_bundle, process
from tests.support import short_dir

SOURCES = 50
READERS = 2
HOT = 3
"""Sources that most ask for, in the second phase."""
BURST_S = 0.5
BATCH = 50
PATIENCE_S = 60.0
RECURSIVE = """
WITH RECURSIVE reached (node, hops) AS (
    SELECT ?, 0
    UNION
    SELECT r.target, hops + 1 FROM reached JOIN relationships r ON r.source = node WHERE hops < 3
    UNION
    SELECT r.source, hops + 1 FROM reached JOIN relationships r ON r.target = node WHERE hops < 3
)
SELECT count(DISTINCT node) FROM reached
"""


class Cost(Struct):
    """Milliseconds a neighbourhood, in process."""

    what: str
    median_ms: float
    p95_ms: float


class Phase(Struct):
    """What clients saw."""

    what: str
    reads_per_s: float
    median_ms: float
    p95_ms: float
    writes_per_s: float = 0.0
    staleness_p95_s: float = 0.0
    staleness_max_s: float = 0.0


class Arm(Struct):
    """One mode of the loop."""

    mode: str
    phases: list[Phase]
    actions: list[str]


def p95(values: list[float]) -> float:
    """Of so many values."""
    return sorted(values)[int(len(values) * 0.95)]


def in_process(bundle: bytes, directory: Path, ids: list[str]) -> list[Cost]:
    """Three hops, in either direction."""
    store = Store(directory)
    store.open()
    brought = read_import(bundle, "stix", Limits())
    store.bring_in(brought.nodes, brought.relationships).result()

    def nothing(_: int = 0) -> None:
        return

    costs = []
    with store.reading() as db:
        keys = [int(db.execute("SELECT key FROM nodes WHERE id = ?", (id,)).get) for id in ids]
        rows, snapshot = SqlView(db), Snapshot.of(db, nothing)
        walks: list[tuple[str, Callable[[int], int]]] = [
            ("one recursive SQL query", lambda key: int(db.execute(RECURSIVE, (key,)).get) - 1),
            ("SQL, hop by hop", lambda key: sum(map(len, khop(rows, key, 3, "both", frozenset(), nothing).layers))),
            ("snapshot", lambda key: sum(map(len, khop(snapshot, key, 3, "both", frozenset(), nothing).layers))),
        ]
        answers = []
        for what, walk in walks:
            took, found = [], []
            for key in keys:
                begun_s = time.perf_counter()
                found.append(walk(key))
                took.append((time.perf_counter() - begun_s) * 1e3)
            answers.append(found)
            costs.append(Cost(what, round(statistics.median(took), 3), round(p95(took), 3)))
        assert answers[0] == answers[1] == answers[2]
        begun_s = time.perf_counter()
        Snapshot.of(db, nothing)
        took_ms = round((time.perf_counter() - begun_s) * 1e3, 3)
        costs.append(Cost("making the snapshot", took_ms, took_ms))
    store.close()
    return costs


class Traffic:
    """Clients of one process."""

    def __init__(self, port: int, ids: list[str], every: list[str]) -> None:
        self._port = port
        self._ids = ids
        self._every = every
        self._acknowledged: list[tuple[int, float]] = [(0, 0.0)]
        self._drawn = random.Random(4)

    def phase(self, what: str, seconds: float, *, hot: bool = False, writes: bool = False) -> Phase:
        """So long."""
        end_s = time.monotonic() + seconds
        took: list[float] = []
        stale: list[float] = []
        written: list[int] = []
        threads = [threading.Thread(target=self._read, args=(n, end_s, hot, took, stale)) for n in range(READERS)]
        if writes:
            threads.append(threading.Thread(target=self._write, args=(end_s, written)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Phase(
            what=what,
            reads_per_s=round(len(took) / seconds, 1),
            median_ms=round(statistics.median(took), 2),
            p95_ms=round(p95(took), 2),
            writes_per_s=round(sum(written) / seconds, 1),
            staleness_p95_s=round(p95(stale), 3),
            staleness_max_s=round(max(stale), 3),
        )

    def _read(self, number: int, end_s: float, hot: bool, took: list[float], stale: list[float]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        drawn = random.Random(number)
        while time.monotonic() < end_s:
            some = self._ids[:HOT] if hot and drawn.random() < 0.9 else self._ids
            asked_s = time.monotonic()
            connection.request("GET", f"/nodes/{quote(drawn.choice(some))}/khop?k=3&limit=10")
            answer = connection.getresponse()
            content = answer.read()
            took.append((time.monotonic() - asked_s) * 1e3)
            assert answer.status == 200, content
            stale.append(self._staleness(json.loads(content)["snapshot"]["version"], asked_s))

    def _staleness(self, version: int, asked_s: float) -> float:
        at = bisect.bisect_right(self._acknowledged, (version, float("inf")))
        return max(0.0, asked_s - self._acknowledged[at][1]) if at < len(self._acknowledged) else 0.0

    def _write(self, end_s: float, written: list[int]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        number = 0
        while time.monotonic() < end_s:
            burst_s = time.monotonic() + BURST_S
            while time.monotonic() < burst_s:
                made = []
                for _ in range(BATCH):
                    number += 1
                    ends = self._drawn.sample(self._every, 2)
                    id = f"b{len(self._acknowledged)}-{number}"
                    made.append({"id": id, "from": ends[0], "to": ends[1], "type": "saw"})
                connection.request("POST", "/relationships", json.dumps({"relationships": made}))
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == 201, content
                self._acknowledged.append((json.loads(content)["version"], time.monotonic()))
                written.append(BATCH)
            time.sleep(BURST_S)


def settled(client: Any, traffic: Traffic, mode: str, seconds: float, **more: bool) -> None:
    """Go on until the loop has nothing more to do; without it, as long as that takes at the least."""
    deadline_s = time.monotonic() + PATIENCE_S
    acted = -1
    while time.monotonic() < deadline_s:
        traffic.phase("", seconds if mode == "off" else 8.0, **more)
        actions = client.call("GET", "/ooda").json["actions"]
        if mode == "off" or (
            len(actions) == acted and all(action["effect"]["verdict"] != "settling" for action in actions)
        ):
            return
        acted = len(actions)


def arm(mode: str, seconds: float, bundle: bytes, ids: list[str], every: list[str], run_path: Path) -> Arm:
    """Many sources, then few, then bursts of writes beside them."""
    with process(run_path, CDN_OODA=mode) as (client, _):
        client.call("POST", "/import", bundle)
        traffic = Traffic(client.port, ids, every)
        phases = [traffic.phase("first", seconds)]
        settled(client, traffic, mode, seconds)
        phases.append(traffic.phase("any source", seconds))
        settled(client, traffic, mode, seconds, hot=True)
        phases.append(traffic.phase("few sources", seconds, hot=True))
        settled(client, traffic, mode, seconds, hot=True, writes=True)
        phases.append(traffic.phase("bursts of writes", seconds, hot=True, writes=True))
        actions = [
            f"{json.dumps(action['decision'])[:90]} {action['effect']['verdict']}: {action['effect']['reason']}"
            for action in client.call("GET", "/ooda").json["actions"]
        ]
        return Arm(mode, phases, actions)


def main() -> None:
    """Run every arm, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement by HTTP")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    bundle = asked.bundle.read_bytes() if asked.bundle else json.dumps(attack_bundle()).encode()
    objects = json.loads(bundle)["objects"]
    every = [one["id"] for one in objects if one["type"] in ("attack-pattern", "malware", "intrusion-set")]
    ids = [one["id"] for one in objects if one["type"] == "intrusion-set"]
    random.Random(1).shuffle(ids)
    ids = ids[:SOURCES]
    relationships = sum(one["type"] == "relationship" for one in objects)
    with short_dir() as path:
        costs = in_process(bundle, path, ids)
    arms = []
    for mode in ("off", "on"):
        with short_dir() as path:
            arms.append(arm(mode, asked.seconds, bundle, ids, every, path))
    if asked.json:
        print(msgspec.json.encode({"in_process": costs, "arms": arms}).decode())
        return
    print(
        f"{len(objects) - relationships:,} nodes, {relationships:,} relationships; three hops from {len(ids)} of them"
    )
    for cost in costs:
        print(f"  {cost.what:26}median {cost.median_ms:8.2f} ms   p95 {cost.p95_ms:8.2f} ms")
    print(f"by HTTP, {READERS} clients; no answer may be staler than {Limits().staleness_s:g} s")
    for one in arms:
        for phase in one.phases:
            print(
                f"  loop {one.mode:4}{phase.what:18}{phase.reads_per_s:8.1f} reads/s  "
                f"median {phase.median_ms:6.2f} ms  p95 {phase.p95_ms:6.2f} ms  {phase.writes_per_s:7.1f} writes/s  "
                f"staleness p95 {phase.staleness_p95_s:.3f} s, most {phase.staleness_max_s:.3f} s"
            )
        for action in one.actions:
            print(f"    {action}")


if __name__ == "__main__":
    main()
