"""The PyPI statsd client, unchanged, against the real process."""

from __future__ import annotations

from pathlib import Path

import statsd

from tests.statistical.support import Client, process
from tests.support import until


def used(client: Client, one: statsd.StatsClient | statsd.TCPStatsClient, name: str) -> None:
    """All that it can send, and that it has arrived."""
    one.incr("hits", 3)
    one.decr("hits")
    one.gauge("load", 7)
    one.gauge("load", -2, delta=True)
    one.gauge("below", -5)  # sent as a 0 and a move, as StatsD has no other way
    one.set("who", "alice")
    one.timing("took", 320)
    with one.timer("timed"):
        pass
    with one.pipeline() as pipe:
        for n in range(100):
            pipe.incr("many")
            pipe.timing("took", n)
    for _ in range(200):
        one.incr("last")
    until(lambda: client.total(f"{name}.last") == 200, what="the last has arrived")
    assert client.total(f"{name}.hits") == 2
    assert client.total(f"{name}.many") == 100
    assert client.series(f"{name}.load", window=3600)["last"] == 5
    assert client.series(f"{name}.below", window=3600)["last"] == -5
    assert client.series(f"{name}.who", window=3600)["distinct"]["estimate"] == 1
    took = client.series(f"{name}.took", window=3600)
    assert (took["count"], took["low"], took["high"]) == (101, 0, 320)
    assert client.series(f"{name}.timed", window=3600)["count"] == 1


def test_by_udp_and_by_tcp(run_path: Path) -> None:
    """Counters, gauges, sets, timers, pipelines; and SIGTERM loses none of it."""
    with process(run_path) as (client, service):
        used(client, statsd.StatsClient("127.0.0.1", client.statsd_port, prefix="udp"), "udp")
        tcp = statsd.TCPStatsClient("127.0.0.1", client.statsd_port, prefix="tcp")
        used(client, tcp, "tcp")
        tcp.close()
        with client.udp() as socket:
            for _ in range(500):
                socket.send(b"at_the_end:1|c")
        service.process.terminate()
        assert service.wait() == 0
    with process(run_path) as (client, _):
        assert client.total("udp.many") == client.total("tcp.many") == 100
        assert client.total("at_the_end") == 500
        assert client.series("udp.took", window=3600)["count"] == 101


def test_a_sampled_counter_stands_for_all(run_path: Path) -> None:
    """The client's own sampling, undone: within six standard errors, which are told."""
    with process(run_path) as (client, _):
        one = statsd.StatsClient("127.0.0.1", client.statsd_port)
        for _ in range(5000):
            one.incr("hits", rate=0.1)
        one.incr("end")
        until(lambda: client.total("end") == 1, what="the last has arrived")
        hits = client.series("hits", window=3600)
        assert abs(hits["total"] - 5000) <= 6 * hits["total_error"]
        assert 100 < hits["total_error"] < 400
