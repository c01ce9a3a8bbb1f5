"""Far more than there is time for: the queue is bounded, memory is, and totals stay what was sent."""

from __future__ import annotations

import contextlib
import math
import random
import socket
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from services.statistical import intake
from services.statistical.limits import Limits
from services.statistical.statsd import Kind
from services.statistical.store import Store
from tests.statistical.support import process
from tests.support import until

SENT = 300_000


def flood(port: int, seed: int) -> dict[str, int]:
    """As fast as it goes; how many of each name."""
    rng = random.Random(seed)
    sent = {"few": 0, "most": 0}
    order = [rng.random() < 0.2 for _ in range(SENT)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        for is_few in order:
            one.send(b"few:1|c" if is_few else b"most:1|c")
    sent["few"] = sum(order)
    sent["most"] = SENT - sent["few"]
    return sent


def test_over_ten_times_the_capacity(run_path: Path) -> None:
    """Each datagram that arrived is stood for, and each name by its own share.

    The filter of the kernel draws at random, so the error of a name's total is known: six times it is the bound,
    which is exceeded once in 5e8 runs.
    """
    with process(run_path, CDN_STATISTICAL_SHARE="0.01") as (client, service):
        resident = psutil.Process(service.pid).memory_info().rss
        sent = flood(client.statsd_port, 1)
        until(lambda: client.metric("statsd_sampled_ratio") == 1, what="all is looked at again")
        buffer = 4 << 20
        assert client.metric("statsd_queue_bytes") <= 2 * buffer
        assert psutil.Process(service.pid).memory_info().rss < resident + (64 << 20)

        def whole() -> bool:
            return client.total("few") + client.total("most") > SENT - 1

        until(whole, what="every datagram that was dropped is stood for")
        few, most = client.series("few", window=3600), client.series("most", window=3600)
        looked_at = few["received"] + most["received"]
        assert looked_at < SENT / 3
        for one, name in ((few, "few"), (most, "most")):
            assert abs(one["total"] - sent[name]) <= 6 * one["total_error"]
        assert few["total"] + most["total"] == pytest.approx(SENT)

        def dropped() -> bool:
            return bool(abs(client.metric("statsd_datagrams_dropped_total") - (SENT - looked_at)) < 1000)

        until(dropped, what="what was dropped is told")
        assert client.call("GET", "/livez").status == 200


def test_without_the_kernels_help(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no filter can be attached the thread draws by itself, and the totals are as right.

    A share's standard error follows from what each datagram that was drawn stands for: six times it is the bound.
    """
    store = Store(Limits(share_cores=0.01))
    taking = intake.Intake(store, "127.0.0.1", 0)
    stands_for: dict[int, float] = defaultdict(float)
    drawn: list[bytes] = []
    fold = store.fold

    def recorded(packet: bytes, weight: float, slot: int, now_s: float) -> None:
        drawn.append(packet)  # so that its id stays its own
        stands_for[id(packet)] += weight
        fold(packet, weight, slot, now_s)

    monkeypatch.setattr(store, "fold", recorded)
    monkeypatch.setattr(taking, "_filtered", False)
    taking.open()
    try:
        sent = flood(taking.port, 2)
        until(lambda: store.folded > SENT - 1, what="every datagram that was dropped is stood for")
    finally:
        taking.close()
    totals = {}
    for name in sent:
        series = store.series[Kind.COUNTER, name]
        series.turn(-1)
        totals[name] = series._carried
    total = sum(totals.values())
    assert total == pytest.approx(SENT)
    share_error = math.sqrt(0.2 * 0.8 * sum(weight**2 for weight in stands_for.values())) / total
    assert abs(totals["few"] / total - 0.2) <= 6 * share_error
    assert 0 < taking.dropped < SENT


def test_connections_are_not_sampled_and_lines_are_whole(run_path: Path) -> None:
    """Cut anywhere, and the last one without its end; a line without an end is refused, with its connection."""
    with process(run_path) as (client, _):
        text = b"hits:1|c\n" * 5000 + b"hits:1|c"
        with socket.create_connection(("127.0.0.1", client.statsd_port)) as one:
            at, rng = 0, random.Random(3)
            while at < len(text):
                step = rng.randrange(1, 4000)
                one.sendall(text[at : at + step])
                at += step
        until(lambda: client.total("hits") == 5001, what="all lines have arrived")
        with socket.create_connection(("127.0.0.1", client.statsd_port)) as one:
            one.sendall(b"x" * 20_000)
            one.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
        until(lambda: client.metric("statsd_garbage_total", 'cause="long"') >= 1, what="it is counted")
        assert client.call("GET", "/livez").status == 200
