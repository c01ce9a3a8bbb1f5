"""What the index tuner is worth: the same traffic with the loop off and on, in one run, through the real service.

    python -m benchmarks.data_fabric [--seconds 5] [--json]

On 28,298 real airports (airportsdata). Load and service share the machine, so the
figures compare the arms and promise nothing for another machine. HTTP is what a
client on loopback waits; statement is the answer's own elapsed_ms.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.data_fabric.support import AIRPORTS, TOP_20, Client, process
from tests.support import short_dir

COUNTRIES = ["US", "DE", "FR", "BR", "CA", "AU", "GB", "ZA", "MX", "AR"]
NEIGHBOURS = (
    "SELECT a.icao, a.name, (SELECT count(*) FROM airports n WHERE n.city = a.city AND n.country = a.country) AS near "
    "FROM airports a WHERE a.country = ? ORDER BY a.elevation DESC LIMIT 20"
)
QUERIES = {"top 20 of a country by elevation": TOP_20, "the same, each with the airports of its city": NEIGHBOURS}
PATIENCE_S = 90.0
INSERT_ROWS = 500
INSERTS_PER_S = 8
QUERIES_PER_S = 5


class Latency(Struct):
    """Milliseconds."""

    calls: int
    http_p50_ms: float
    http_p95_ms: float
    statement_p50_ms: float
    statement_p95_ms: float


class Arm(Struct):
    """One run of the reading traffic."""

    query: str
    mode: str
    first: Latency
    """At the start, when no index is there in either arm."""
    last: Latency
    """At the end; in the arm `on` after the loop has acted."""
    indexes: list[str]
    acted_after_s: float | None


class Inserts(Struct):
    """One run of the insert-heavy mix."""

    mode: str
    rows_per_s: float
    insert_p95_ms: float
    query_p95_ms: float
    indexes: list[str]


class Connection:
    """A kept connection, and a clock beside it."""

    def __init__(self, client: Client) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        self._connection.connect()

    def post(self, path: str, body: Any) -> tuple[float, Any]:
        """(milliseconds, answer)."""
        data = json.dumps(body)
        begun_s = time.perf_counter()
        self._connection.request("POST", path, data)
        answer = self._connection.getresponse()
        text = answer.read()
        took_ms = (time.perf_counter() - begun_s) * 1e3
        assert answer.status < 300, text
        return took_ms, json.loads(text)


def _p(samples: list[float], percent: int) -> float:
    return round(statistics.quantiles(samples, n=100)[percent - 1], 3)


def _read(connection: Connection, sql: str, seconds: float) -> Latency:
    http_ms, statement_ms = [], []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for country in COUNTRIES:
            took_ms, answer = connection.post("/sql", {"sql": sql, "params": [country]})
            http_ms.append(took_ms)
            statement_ms.append(answer["elapsed_ms"])
    return Latency(len(http_ms), _p(http_ms, 50), _p(http_ms, 95), _p(statement_ms, 50), _p(statement_ms, 95))


def _indexes(client: Client) -> list[str]:
    (table,) = client.call("GET", "/sources/airports").json["tables"]
    return list(table["indexes"])


def _settled(client: Client) -> bool:
    """Whether the loop has acted and judged, and has not acted again for a settling window."""
    loop = client.call("GET", "/ooda").json
    acted = [action["at_s"] for action in loop["actions"]]
    judged = all(action["effect"]["verdict"] != "settling" for action in loop["actions"])
    return bool(acted) and judged and time.monotonic() - acted[-1] > 2.2 * loop["settle_s"]


def reading(name: str, sql: str, mode: str, seconds: float, run_path: Path) -> Arm:
    """The same query over and over, on a service of its own."""
    with process(run_path) as (client, _):
        client.call("POST", "/ooda/mode", {"mode": "off"})
        assert client.load("airports", AIRPORTS.read_bytes()).status == 201
        connection = Connection(client)
        first = _read(connection, sql, seconds)
        acted_after_s = None
        if mode == "on":
            client.call("POST", "/ooda/mode", {"mode": "on"})
            begun_s = time.monotonic()
            while not _settled(client) and time.monotonic() - begun_s < PATIENCE_S:
                _read(connection, sql, 1.0)
                if acted_after_s is None and _indexes(client):
                    acted_after_s = round(time.monotonic() - begun_s, 1)
        last = _read(connection, sql, seconds)
        return Arm(name, mode, first, last, _indexes(client), acted_after_s)


def inserting(mode: str, seconds: float, run_path: Path) -> Inserts:
    """Many rows in, few queries, paced."""
    row = ["XXXX", "", "Somewhere", "Nowhere", "", "ZZ", 1.0, 2.0, 3.0, "UTC", ""]
    with process(run_path) as (client, _):
        client.call("POST", "/ooda/mode", {"mode": mode})
        assert client.load("airports", AIRPORTS.read_bytes()).status == 201
        connection = Connection(client)
        insert_ms, query_ms, begun_s, rows = [], [], time.monotonic(), 0
        while (elapsed_s := time.monotonic() - begun_s) < seconds:
            second = int(elapsed_s) + 1
            for _ in range(INSERTS_PER_S):
                insert_ms.append(connection.post("/tables/airports/rows", {"rows": [row] * INSERT_ROWS})[0])
                rows += INSERT_ROWS
            for at in range(QUERIES_PER_S):
                query = {"sql": TOP_20, "params": [COUNTRIES[at]]}
                query_ms.append(connection.post("/sql", query)[0])
            time.sleep(max(0.0, begun_s + second - time.monotonic()))
        took_s = time.monotonic() - begun_s
        return Inserts(mode, round(rows / took_s), _p(insert_ms, 95), _p(query_ms, 95), _indexes(client))


def main() -> None:
    """Run every arm, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    arms, inserts = [], []
    for name, sql in QUERIES.items():
        for mode in ("off", "on"):
            with short_dir() as run_path:
                arms.append(reading(name, sql, mode, asked.seconds, run_path))
    for mode in ("off", "on"):
        with short_dir() as run_path:
            inserts.append(inserting(mode, 4 * asked.seconds, run_path))
    if asked.json:
        import msgspec

        print(msgspec.json.encode({"reading": arms, "inserting": inserts}).decode())
        return
    for arm in arms:
        print(f"\n{arm.query}; loop {arm.mode}")
        print(f"  {'':10}{'http p50':>12}{'p95':>10}{'statement p50':>16}{'p95':>10}   ms")
        for when, seen in (("first", arm.first), ("last", arm.last)):
            print(
                f"  {when:10}{seen.http_p50_ms:12.2f}{seen.http_p95_ms:10.2f}"
                f"{seen.statement_p50_ms:16.3f}{seen.statement_p95_ms:10.3f}"
            )
        http_ratio, ratio = (
            arm.first.http_p95_ms / arm.last.http_p95_ms,
            arm.first.statement_p95_ms / arm.last.statement_p95_ms,
        )
        after = "" if arm.acted_after_s is None else f" after {arm.acted_after_s} s"
        print(
            f"  p95 better by: http {http_ratio:.1f}×, statement {ratio:.1f}×; indexes{after}: {arm.indexes or 'none'}"
        )
    print(f"\ninsert-heavy mix: {INSERTS_PER_S} × {INSERT_ROWS} rows and {QUERIES_PER_S} queries a second")
    for part in inserts:
        print(
            f"  loop {part.mode:4} {part.rows_per_s:6.0f} rows/s, p95 of an insert {part.insert_p95_ms:.1f} ms, "
            f"of a query {part.query_p95_ms:.1f} ms; indexes: {part.indexes or 'none'}"
        )


if __name__ == "__main__":
    main()
