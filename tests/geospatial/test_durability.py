"""Acknowledged means on disk: the real process, killed in the middle; files that may not grow; two processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.geospatial.places import Places
from services.geospatial.store import Store
from tests.geospatial.support import SQUARE, collection, feature, point, process, serving
from tests.support import ServiceProcess, until

MANY = collection(*(point(f"m{n}", n % 180, n % 90, text="x" * 100) for n in range(20_000)))


def test_what_was_acknowledged_survives_sigkill(run_path: Path) -> None:
    """Two clients write features and positions without pause; the process is killed, and started again.

    All that was acknowledged is there and found by place, and no crossing twice.
    """
    added: list[str] = []
    seen: list[str] = []

    def go_on(send: Callable[[int], None]) -> None:
        for number in range(100_000):
            try:
                send(number)
            except OSError:
                return

    with process(run_path) as (client, service):
        client.load("c", feature("s", SQUARE))
        client.call("PUT", "/fences/port", SQUARE)

        def add(number: int) -> None:
            if client.call("POST", "/collections/c/items", point(f"p{number}", 1, 1)).status == 201:
                added.append(f"p{number}")

        def move(number: int) -> None:
            if client.at(f"o{number}", (50, 50), (5, 5))["crossings"] == 1:
                seen.append(f"o{number}")

        threads = [threading.Thread(target=go_on, args=(send,)) for send in (add, move)]
        for thread in threads:
            thread.start()
        until(lambda: min(len(added), len(seen)) > 20, what="all are acknowledged", within_s=60)
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
        for thread in threads:
            thread.join()
    with process(run_path) as (client, _):
        assert {"s", *added} <= set(client.get("/collections/c/items?bbox=0,0,2,2&limit=10000").ids)
        crossed = [one["object"] for one in client.get("/crossings?limit=10000").json["crossings"]]
        assert set(seen) <= set(crossed)
        assert len(set(crossed)) == len(crossed)
        inside = client.get("/collections/tracks/items?bbox=4,4,6,6&limit=10000").ids
        assert set(seen) <= set(inside)
        assert client.at(seen[0], (6, 6))["crossings"] == 0
        assert client.at(seen[0], (50, 50))["crossings"] == 1


def test_a_collection_that_is_cut_by_sigkill_is_as_it_was(run_path: Path) -> None:
    """All of the new one, or all of the old one."""
    with process(run_path) as (client, service):
        client.load("c", point("old", 1, 1))

        def send() -> None:
            try:
                client.call("PUT", "/collections/c", MANY)
            except OSError:
                return  # as it was killed

        sender = threading.Thread(target=send)
        sender.start()
        wal = run_path / "state" / "cdn-geospatial" / "places.db-wal"
        until(lambda: wal.stat().st_size > 300_000, what="it is being written")
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
        sender.join()
    with process(run_path) as (client, _):
        page = client.get("/collections/c/items?limit=1")
        assert (page.json["numberMatched"], page.ids[0]) in {(1, "old"), (20_000, "m0")}


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """RLIMIT_FSIZE, set and lifted under the running service: what does not fit is refused whole, the rest goes on."""
    with process(run_path) as (client, service):
        client.load("c", point("a", 1, 1))
        limited = psutil.Process(service.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, hard))
        assert client.call("PUT", "/collections/c", MANY).error["status"] == 507
        assert client.get("/collections/c/items?bbox=0,0,2,2").ids == ["a"]
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        client.load("c", point("b", 1, 1))
        assert client.get("/collections/c/items?bbox=0,0,2,2").ids == ["b"]


def test_a_fence_that_could_not_be_written_is_none(tmp_path: Path) -> None:
    """The writer's own view of the fences follows what is on disk."""
    with serving(tmp_path) as (client, places):
        places.store.writer.submit(lambda db: db.execute("ALTER TABLE inside RENAME TO away")).result()
        client.call("PUT", "/fences/port", SQUARE)
        assert client.get("/fences").ids == []
        assert places.store._fences_now.shapes == {}
        places.store.writer.submit(lambda db: db.execute("ALTER TABLE away RENAME TO inside")).result()
        assert client.call("PUT", "/fences/port", SQUARE).status == 201


def test_the_service_as_it_is_started(run_path: Path) -> None:
    """Its check is well, its metrics are there, its state and token are private; it ends with 0."""
    with process(run_path) as (client, service):
        client.load("c", point("a", 1, 1))
        client.get("/collections/c/items?bbox=0,0,2,2")
        until(lambda: client.get("/readyz").json["health"] == "healthy")
        wanted = b'geo_reads_total{service="cdn-geospatial"'
        until(lambda: wanted in client.get("/metrics").body, what="the collection is in the metrics")
        assert (run_path / "state" / "cdn-geospatial").stat().st_mode & 0o777 == 0o700
        assert (run_path / "cdn-geospatial.token").stat().st_mode & 0o777 == 0o600
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0


@pytest.mark.parametrize("name", ["state/cdn-geospatial/places.db", "cdn-geospatial.token"])
def test_what_cannot_be_used_is_named_and_left_alone(run_path: Path, name: str) -> None:
    """A database that is none, a token that is none: the process ends with 78, which keeps it down, and says which."""
    path = run_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no database, and no token\n" * 100)
    path.chmod(0o600)
    with ServiceProcess(run_path, "-m", "services.geospatial") as service:
        assert service.wait() == 78
        assert f"cannot use {'the token in ' if 'token' in name else ''}{path}" in service.log()
    assert path.read_bytes().startswith(b"no database")


def test_a_second_process_over_the_same_database_is_refused(tmp_path: Path) -> None:
    """Two that each have the collections in memory would not see what the other writes."""
    with serving(tmp_path) as (_, places):
        second = Store(tmp_path, places.limits)
        with pytest.raises(Exception, match="another process has it"):
            second.open()


def test_what_was_crossed_just_before_the_end_is_told_again(tmp_path: Path) -> None:
    """Under the same id; what is long past is not."""
    with serving(tmp_path) as (client, _):
        client.call("PUT", "/fences/port", SQUARE)
        for datetime, lon in (("2020-01-01T00:00:00Z", 5), ("2020-01-02T00:00:00Z", 50), (None, 5)):
            client.call("PUT", "/tracks/ship", {"positions": [{"lon": lon, "lat": 5, "datetime": datetime}]})
        last = client.get("/crossings").json["crossings"][-1]
    told: list[str] = []
    again = Places(tmp_path, tmp_path / "token")

    def emit(facts: object, text: str, *, id: str, **_: object) -> str:
        told.append(id)
        return id

    again.emit = emit
    again.open()
    again.store.close()
    assert told == [last["id"]]
