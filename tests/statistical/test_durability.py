"""What was acknowledged is on disk, once: the real process, killed in the middle of it; and a disk that is full."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.statistical.changes import HISTORY_MIN
from services.statistical.keeper import Keeper
from services.statistical.limits import Limits
from services.statistical.statsd import Kind
from services.statistical.store import Clock, Store
from tests.statistical.support import Client, process
from tests.support import ServiceProcess, until


def test_every_acknowledged_sample_survives_sigkill_once(run_path: Path) -> None:
    """Killed twice, in the middle of batches and flushes. Of those under way at most one per client may count too."""
    acknowledged: list[int] = []
    unsure: list[int] = []

    def send(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while True:
            try:
                connection.request("POST", "/samples", b"hits:1|c\nlat:5|ms", {"content-type": "text/plain"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                unsure.append(1)
                return
            assert answer.status == 200
            acknowledged.append(1)

    for _ in range(2):
        with process(run_path) as (client, service):
            threads = [threading.Thread(target=send, args=(client.port,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            flushes = client.metric("flushes_total")
            enough = len(acknowledged) + 100

            def is_busy(client: Client = client, flushes: float = flushes, enough: int = enough) -> bool:
                return len(acknowledged) > enough and client.metric("flushes_total") > flushes

            until(is_busy, what="flushed")
            os.kill(service.pid, signal.SIGKILL)
            service.process.wait(30)
            for thread in threads:
                thread.join()
    with process(run_path) as (client, _):
        assert len(acknowledged) <= client.total("hits") <= len(acknowledged) + len(unsure)
        assert client.series("lat", window=3600)["count"] == client.total("hits")


def test_a_change_point_that_did_not_get_out_is_told_again(run_path: Path) -> None:
    """Killed with no ATLAS there to hear of it: the next process tells it; the one after that under the same id."""

    def noticed(client: Client) -> list[Any]:
        client.lines(f"logins:{next(rising)}|c")
        return list(client.call("GET", "/changes").json["changes"])

    rising = (int(10 * 1.1**n) for n in range(200))
    quick = ("-m", "tests.chain.quick")
    with ServiceProcess(run_path, *quick) as service:
        client = Client(int(service.url().rpartition(":")[2]))
        client.lines("logins:1|c")
        begun = client.metric("flushes_total")
        until(lambda: client.metric("flushes_total") > begun + 2 * HISTORY_MIN, what="it knows what is usual")
        (change, *_) = until(lambda: noticed(client), every_s=0.05, what="a change is noticed")
        os.kill(service.pid, signal.SIGKILL)
        service.wait()
    with ServiceProcess(run_path, "-m", "services.atlas", name="atlas") as atlas:

        def told() -> list[Any]:
            events = json.loads(atlas.get("/api/v1/events?limit=1000")[1])["events"]
            return [event for event in events if event["kind"] == "change_point"]

        for _ in range(2):
            with ServiceProcess(run_path, *quick) as service:
                client = Client(int(service.url().rpartition(":")[2]))
                until(told, what="ATLAS has it")
                changes = client.call("GET", "/changes").json["changes"]
                assert change in changes
                until(lambda client=client: client.metric("events_emitted_total") > 0, what="told")  # type: ignore[misc]
                os.kill(service.pid, signal.SIGKILL)
                service.wait()
        assert sorted(event["facts"]["at_s"] for event in told()) == sorted(one["point"]["at_s"] for one in changes)


def test_what_another_instance_says_does_not_bring_this_one_down(run_path: Path) -> None:
    """The most that is taken, more often than fits: neither the disk, a question nor a restart is beyond that."""
    most, large = 1 << 53, 1e100
    states: dict[str, dict[str, Any]] = {
        "counter": {"received": most, "total": large, "variance": large},
        "gauge": {"received": most, "count": large, "total": -large, "last": large, "low": -large, "high": large},
        "distribution": {
            "received": most,
            "sketch": {"count": 32.0, "zeros": 32.0, "squares": large, "low": 0, "high": 0},
        },
        "set": {"received": most, "count": large},
    }
    series = [{"name": "much", "kind": kind, "state": {"type": kind, **state}} for kind, state in states.items()] * 250
    with process(run_path) as (client, _):
        for _ in range(5):
            assert client.call("POST", "/merge", {"series": series}).json == {"merged": 1000}
        flushes = client.metric("flushes_total")
        until(lambda: client.metric("flushes_total") > flushes + 1, what="it is on disk")
        for kind, state in states.items():
            for name, value in (
                ("received", most + 1),
                ("received", 1 << 70),
                ("count", 2 * large),
                ("total", 2 * large),
            ):
                if name in state:
                    wrong = {"name": "much", "kind": kind, "state": {"type": kind, **state, name: value}}
                    assert client.call("POST", "/merge", {"series": [wrong]}).error["status"] == 422, (kind, name)
        empty = {"type": "distribution", "sketch": {"exact": "", "positive_low": 1 << 70}}
        wrong = {"name": "much", "kind": "distribution", "state": empty}
        assert client.call("POST", "/merge", {"series": [wrong]}).error["status"] == 422
    with process(run_path) as (client, _):
        for kind in states:
            assert client.series("much", kind=kind, window=3600)["received"] >= most


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """What cannot be written is refused, StatsD is taken all the same, and with room again everything goes on."""
    with process(run_path) as (client, service):
        assert client.lines("hits:1|c").status == 200
        limited = psutil.Process(service.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (4096, hard))

        taken = 1

        def refused() -> bool:
            nonlocal taken
            answer = client.lines("hits:1|c")
            taken += answer.status == 200
            if answer.status == 200:
                return False
            assert answer.error["status"] == 507
            return True

        until(refused, what="a batch is refused")
        with client.udp() as socket:
            socket.send(b"meanwhile:1|c")
        until(lambda: client.total("meanwhile") == 1, what="StatsD is taken")
        until(lambda: client.metric("flushes_failed_total") > 0, what="a flush has failed")
        assert client.total("hits") == taken
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        until(lambda: client.lines("again:1|c").status == 200, what="it is taken again")
        flushes = client.metric("flushes_total")
        until(lambda: client.metric("flushes_total") > flushes, what="it is flushed again")
        service.process.kill()
        service.process.wait(30)
    with process(run_path) as (client, _):
        assert client.total("hits") == taken
        assert client.total("meanwhile") == 1


class HeldClock(Clock):
    """A clock that a test moves."""

    def __init__(self, slot_s: int) -> None:
        super().__init__(slot_s)
        self.held_s = 1_800_000_000.0

    def now_s(self) -> float:
        """As it was set."""
        return self.held_s

    def at_least(self, slot: int) -> None:
        """Nothing is to be moved."""


def test_slots_become_minutes_and_hours_and_old_ones_go(tmp_path: Path) -> None:
    """A day in fast motion: every window tells what was sent in it, and the disk holds no more than it should."""
    from services.statistical.questions import Questions

    store = Store(Limits())
    clock = store.clock = HeldClock(10)
    keeper = Keeper(store, tmp_path, flush_s=0.005)
    keeper.open()
    questions = Questions(store, keeper)
    questions.open(keeper.path)
    try:
        with store.lock:
            store.fold(b"once:1|c", 1.0, clock.slot(), clock.now_s())
        for at in range(27 * 60 + 10):  # minutes
            clock.held_s += 60
            with store.lock:
                store.fold(b"hits:1|c\nlat:%d|ms" % (at % 7), 1.0, clock.slot(), clock.now_s())
            if at % 20 == 0:  # the others find several slots at once
                flushes = keeper.flushes
                until(lambda seen=flushes: keeper.flushes > seen + 1, every_s=0.001, what="flushed")  # type: ignore[misc]
        hits = questions.find("hits", Kind.COUNTER)
        for minutes in (5, 60, 600, 1440):
            window = questions.window(hits, minutes * 60 - 1)
            assert window.aggregate is not None
            lengths = (clock.held_s - window.from_s) / 60
            assert minutes - 1 <= lengths <= minutes + 60
            assert abs(window.aggregate.received - lengths) <= 1.5
        window = questions.window(questions.find("lat"), 86_000)
        assert window.aggregate is not None
        reader = questions._readers.get()
        (rows,) = reader._db.execute("SELECT count(*) FROM slots").fetchone()
        questions._readers.put(reader)
        assert (Kind.COUNTER, "once") not in store.series
        assert rows < 2 * (48 + 70 + 27) + 200
    finally:
        keeper.close()
        questions.close()


def test_what_a_full_disk_does_not_take_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots that wait for it, of all seconds together, are no more than CLOSED_MAX; what is beyond is counted."""
    monkeypatch.setattr("services.statistical.store.CLOSED_MAX", 2)
    store = Store(Limits())
    clock = store.clock = HeldClock(10)
    keeper = Keeper(store, tmp_path, flush_s=0.005)
    keeper.open()
    try:

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        assert keeper._disk is not None
        monkeypatch.setattr(keeper._disk, "flush", full)
        for _ in range(6):
            clock.held_s += 10
            with store.lock:
                store.fold(b"hits:1|c", 1.0, clock.slot(), clock.now_s())
            failed = keeper.flushes_failed
            until(lambda seen=failed: keeper.flushes_failed > seen + 1, every_s=0.001, what="tried")  # type: ignore[misc]
        assert (len(store.closing) + len(store.closed), store.lost_slots) == (2, 3)
    finally:
        monkeypatch.undo()
        keeper.close()
