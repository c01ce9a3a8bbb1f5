"""What cdn-threat-intel's look-ups cost, and what its loop is worth: the same traffic with the loop off and on.

    python -m benchmarks.threat_intel [--seconds 3] [--json]

120,000 listed addresses; one in ten that are asked for is listed. Load and service share the machine, so the figures
compare the arms and promise nothing for another machine. Look-ups by HTTP are what a client on
loopback gets, over one kept connection.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import radix
from msgspec import Struct

from services.threat_intel.intel import Intel
from services.threat_intel.scoring import FeedKind
from services.threat_intel.values import Value, read
from tests.support import short_dir
from tests.threat_intel.support import Client, addresses, process

LISTED = 120_000
ASKED = 50_000
BATCHES = (1, 100, 1_000, 10_000)
JUDGED = 200
"""Of the look-ups that were called malicious, so many are judged by a person …"""
MISTAKEN = 0.05
"""… who is wrong this often."""
PATIENCE_S = 60.0


class Cost(Struct):
    """Microseconds a look-up, the best of five runs: what disturbs only adds."""

    what: str
    us: float


class Rate(Struct):
    """By HTTP."""

    batch: int
    lookups_per_s: float
    ms_per_request: float


class Poisoned(Struct):
    """One arm."""

    mode: str
    false_positives_before: float
    """Part of the benign addresses that are called malicious."""
    true_positives_before: float
    false_positives_after: float
    true_positives_after: float
    trust: dict[str, float]
    acted_after_s: float | None


class Guarded(Struct):
    """One arm: many networks are listed, and none of what is asked for lies in one."""

    mode: str
    first_per_s: float
    last_per_s: float
    action: str | None
    effect: str | None


def best(run: Callable[[], object], count: int, runs: int = 5) -> float:
    """µs each."""
    took = []
    for _ in range(runs):
        begun_s = time.perf_counter()
        run()
        took.append(time.perf_counter() - begun_s)
    return round(min(took) / count * 1e6, 3)


def traffic(listed: list[str], count: int, seed: int) -> list[str]:
    """One in ten is listed."""
    drawn = random.Random(seed)
    others = addresses(count, seed=seed + 1)
    return [drawn.choice(listed) if drawn.random() < 0.1 else other for other in others]


def in_process(directory: Path) -> list[Cost]:
    """The parts, and the whole."""
    listed = addresses(LISTED, seed=1)
    asked = traffic(listed, ASKED, seed=2)
    intel = Intel(directory / "state", directory / "token")
    intel.open()
    intel.load("list", FeedKind.LIST, "\n".join(listed).encode(), {}, is_whole=True)
    members, tree = set(listed), radix.Radix()
    for address in listed:
        tree.add(address)
    values = [read(text) for text in asked]
    index, confirm = intel.store.index, intel.store.confirm

    def matching(some: list[Value]) -> None:
        for value in some:
            index.matches(value, confirm)

    costs = [
        Cost("a set of the addresses", best(lambda: [text in members for text in asked], ASKED)),
        Cost("a radix tree of them, best match", best(lambda: [tree.search_best(text) for text in asked], ASKED)),
        Cost("reading the text as a value", best(lambda: [read(text) for text in asked], ASKED)),
        Cost("the index: all that a value matches", best(lambda: matching(values), ASKED)),
        Cost("the whole answer", best(lambda: intel.correlator.correlate(asked), ASKED)),
    ]
    intel.store.close()
    return costs


class Connection:
    """A kept connection."""

    def __init__(self, client: Client) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)

    def look(self, body: bytes) -> Any:
        """POST /correlate."""
        self._connection.request("POST", "/correlate", body)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content


def bodies(values: list[str], batch: int) -> list[bytes]:
    """Requests of so many values each."""
    return [json.dumps({"values": values[at : at + batch]}).encode() for at in range(0, len(values), batch)]


def rate(connection: Connection, requests: list[bytes], batch: int, seconds: float) -> Rate:
    """As many as come back in the time."""
    for body in requests[:3]:
        connection.look(body)
    done, begun_s = 0, time.perf_counter()
    while (took_s := time.perf_counter() - begun_s) < seconds:
        connection.look(requests[done % len(requests)])
        done += 1
    return Rate(batch, round(done * batch / took_s), round(took_s / done * 1e3, 3))


def by_http(seconds: float, run_path: Path) -> list[Rate]:
    """In batches, through the real service."""
    listed = addresses(LISTED, seed=1)
    asked = traffic(listed, ASKED, seed=2)
    with process(run_path, CDN_OODA="off") as (client, _):
        client.put("list", *listed)
        connection = Connection(client)
        return [rate(connection, bodies(asked, batch), batch, seconds) for batch in BATCHES]


def called(client: Client, values: list[str]) -> list[str]:
    """Which of them are called malicious."""
    found: list[str] = []
    for at in range(0, len(values), 10_000):
        some = client.look(*values[at : at + 10_000])
        found += [one["value"] for one in some if one["verdict"] == "malicious"]
    return found


def poisoned(mode: str, run_path: Path) -> Poisoned:
    """Three feeds of 40,000; of the third, six in ten are somebody's customers.

    Half of what the third has right, the others list as well. A person judges 200 of what is called malicious,
    at random, and errs one time in twenty.
    """
    drawn = random.Random(5)
    everything = addresses(160_000, seed=3)
    evil, benign = everything[:90_000], everything[90_000:]
    feeds = {
        "first": evil[:40_000],
        "second": evil[38_000:78_000],
        "third": evil[70_000:86_000] + benign[:24_000],
    }
    evil = sorted(set().union(*feeds.values()) & set(evil))
    truth = dict.fromkeys(evil, True) | dict.fromkeys(benign, False)
    with process(run_path, CDN_OODA=mode) as (client, _):
        for name, values in feeds.items():
            drawn.shuffle(values)
            client.put(name, *values)
        alarms = called(client, benign)
        before = len(alarms) / len(benign), len(called(client, evil)) / len(evil)
        seen = alarms + called(client, evil)
        for value in drawn.sample(seen, JUDGED):
            client.judge(value, is_true=truth[value] != (drawn.random() < MISTAKEN))
        begun_s, acted_s = time.monotonic(), None
        while mode == "on" and time.monotonic() - begun_s < PATIENCE_S:
            actions = client.call("GET", "/ooda").json["actions"]
            if actions and acted_s is None:
                acted_s = round(time.monotonic() - begun_s, 1)
            if actions and all(action["effect"]["verdict"] != "settling" for action in actions):
                break
            time.sleep(0.5)
        after = len(called(client, benign)) / len(benign), len(called(client, evil)) / len(evil)
        trust = {feed["name"]: feed["trust"] for feed in client.call("GET", "/feeds").json["feeds"]}
        return Poisoned(
            mode=mode,
            false_positives_before=round(before[0], 4),
            true_positives_before=round(before[1], 4),
            false_positives_after=round(after[0], 4),
            true_positives_after=round(after[1], 4),
            trust=trust,
            acted_after_s=acted_s,
        )


def guarded(mode: str, seconds: float, run_path: Path) -> Guarded:
    """20,000 networks beside the addresses."""
    listed = addresses(LISTED, seed=1)
    drawn = random.Random(7)
    networks = {
        f"100.{drawn.randrange(64, 128)}.{drawn.randrange(256)}.{drawn.randrange(8) * 32}/27" for _ in range(20_000)
    }
    requests = bodies(addresses(ASKED, seed=11), 1_000)
    with process(run_path, CDN_OODA="off") as (client, _):
        client.put("list", *listed, *networks)
        connection = Connection(client)
        first = rate(connection, requests, 1_000, seconds)
        client.call("POST", "/ooda/mode", {"mode": mode}, token=False)
        begun_s = time.monotonic()
        actions: list[Any] = []
        while mode == "on" and time.monotonic() - begun_s < PATIENCE_S:
            rate(connection, requests, 1_000, 0.5)
            actions = client.call("GET", "/ooda").json["actions"]
            if actions and actions[-1]["effect"]["verdict"] != "settling":
                break
        last = rate(connection, requests, 1_000, seconds)
        effect = actions[-1]["effect"] if actions else None
        return Guarded(
            mode,
            first.lookups_per_s,
            last.lookups_per_s,
            json.dumps(actions[-1]["decision"]) if actions else None,
            f"{effect['verdict']}: {effect['reason']}" if effect else None,
        )


def main() -> None:
    """Run every arm, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement by HTTP")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with short_dir() as path:
        costs = in_process(path)
    with short_dir() as path:
        rates = by_http(asked.seconds, path)
    arms = []
    for mode in ("off", "on"):
        with short_dir() as path:
            arms.append(poisoned(mode, path))
    guards = []
    for mode in ("off", "on"):
        with short_dir() as path:
            guards.append(guarded(mode, asked.seconds, path))
    if asked.json:
        content = {"in_process": costs, "http": rates, "poisoned": arms, "networks": guards}
        print(msgspec.json.encode(content).decode())
        return
    print(f"{LISTED:,} listed addresses, one in ten asked for is listed; µs a look-up, in process")
    for cost in costs:
        print(f"  {cost.what:38}{cost.us:8.2f}")
    print("by HTTP, one connection")
    for one in rates:
        print(
            f"  batches of {one.batch:6,}{one.lookups_per_s:12,.0f} look-ups/s{one.ms_per_request:10.2f} ms a request"
        )
    print(f"three feeds of 40,000, 60 % of one of them benign; {JUDGED} verdicts, {MISTAKEN:.0%} of them mistaken")
    for arm in arms:
        print(
            f"  loop {arm.mode:4} false positives {arm.false_positives_before:.1%} → {arm.false_positives_after:.1%}, "
            f"true positives {arm.true_positives_before:.1%} → {arm.true_positives_after:.1%}; trust {arm.trust}"
            + ("" if arm.acted_after_s is None else f"; acted after {arm.acted_after_s} s")
        )
    print("20,000 networks listed as well, batches of 1,000; look-ups/s at first → at last")
    for guard in guards:
        print(
            f"  loop {guard.mode:4} {guard.first_per_s:,.0f} → {guard.last_per_s:,.0f}; {guard.action} {guard.effect}"
        )


if __name__ == "__main__":
    main()
