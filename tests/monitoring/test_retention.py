"""What is too old or too much goes, on the real process; what is new stays, and the file does not grow for ever."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from tests.monitoring.support import Client, process
from tests.support import until

SHORT = {"CDN_MONITORING_SEAL_S": "1", "CDN_MONITORING_INTERVAL_S": "60"}


def metric(client: Client, name: str) -> float:
    """One of the service's own."""
    for line in client.call("GET", "/metrics").body.decode().splitlines():
        if line.startswith(f"{name}{{"):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_what_is_too_old_goes(run_path: Path) -> None:
    """Samples of before the retention, and series that have no others, also their names; the rest stays."""
    now_s = int(time.time())
    old = "".join(f"ended {n} {(now_s - 100_000 + n) * 1000}\n" for n in range(100))
    both = "".join(f"lasting {n} {(now_s - age_s) * 1000}\n" for n, age_s in enumerate((100_000, 90_000, 600, 300)))
    with process(run_path, **SHORT) as (client, _):
        assert client.take(old + both).json["taken"] == 104
        at = {"time": now_s}
        assert len(client.query("ended[200000s]", **at)[0]["values"]) == 100
    with process(run_path, CDN_MONITORING_RETENTION_S="3600", **SHORT) as (client, _):
        until(lambda: not client.query("ended[200000s]", **at), what="the old ones are gone")
        until(lambda: len(client.query("lasting[200000s]", **at)[0]["values"]) == 2, what="the young ones are there")
        names = {"match[]": "{__name__=~'ended|lasting'}", "start": 0, "end": now_s}
        assert [one["__name__"] for one in client.api("series", **names).json["data"]] == ["lasting"]
        until(lambda: metric(client, "chunks_dropped_total") > 0, what="it tells so")
        assert client.take(f"ended 1 {now_s * 1000}\n").json == {"taken": 1, "known": 0}
    with process(run_path, **SHORT) as (client, _):
        assert len(client.query("ended[200000s]", **at)[0]["values"]) == 1
        assert len(client.query("lasting[200000s]", **at)[0]["values"]) == 2


def test_the_file_does_not_grow_for_ever(run_path: Path) -> None:
    """Thrice what may be kept is taken: the newest is there, the oldest is not, and room is used again."""
    rng, now_ms = random.Random(4), int(time.time() * 1000)
    most = 1 << 20
    rounds, series, each = 5, 100, 600  # noise: 8 bytes a sample, and their times
    with process(run_path, CDN_MONITORING_RETENTION_BYTES=str(most), **SHORT) as (client, _):
        for turn in range(rounds):
            begin_ms = now_ms - (rounds - turn) * each * 1000
            dropped = metric(client, "chunks_dropped_total")
            text = "".join(
                f'noise{{n="{n}"}} {rng.random()!r} {begin_ms + at * 1000}\n'
                for at in range(each)
                for n in range(series)
            )
            assert client.take(text).json["taken"] == series * each
            if turn >= 2:
                until(lambda dropped=dropped: metric(client, "chunks_dropped_total") > dropped, what="some go")  # type: ignore[misc]
        until(lambda: metric(client, "store_bytes") <= most, what="there is no more than may be")
        newest = client.query("count(noise)", time=(now_ms - 1000) / 1000)
        assert newest[0]["value"][1] == str(series)
        oldest = client.query("noise[500s]", time=(now_ms - (rounds - 1) * each * 1000) / 1000)
        assert oldest == []
    (path,) = run_path.rglob("monitoring.db")
    with closing(sqlite3.connect(path)) as db:
        ((pages,), (page_bytes,)) = (db.execute(f"PRAGMA {what}").fetchone() for what in ("page_count", "page_size"))
    assert pages * page_bytes < 3 * most, "what was freed is not used again"
