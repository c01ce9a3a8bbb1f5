"""Acknowledged means on disk: the real process, killed in the middle of inserts."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
from pathlib import Path

from tests.data_fabric.support import process
from tests.support import until


def test_every_acknowledged_row_survives_sigkill(run_path: Path) -> None:
    """Four clients insert without pause, the process is killed, and started again on the same directory.

    Every acknowledged row is there, once. Of those that were under way at most one per client may be.
    """
    acknowledged: list[int] = []

    def insert(port: int, who: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for at in range(100_000):
            number = who * 1_000_000 + at
            try:
                connection.request("POST", "/tables/log/rows", json.dumps({"rows": [[number]]}))
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return
            assert answer.status == 201
            acknowledged.append(number)

    with process(run_path) as (client, service):
        assert client.load("log", "n\n0\n").status == 201
        threads = [threading.Thread(target=insert, args=(client.port, who)) for who in range(1, 5)]
        for thread in threads:
            thread.start()
        until(lambda: len(acknowledged) > 200, what="rows are acknowledged")
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
        for thread in threads:
            thread.join()
    with process(run_path) as (client, _):
        answer = client.sql("SELECT n FROM log WHERE n > 0", limit=100_000).json
        found = [row[0] for row in answer["rows"]]
        assert len(set(found)) == len(found)
        assert set(acknowledged) <= set(found)
        assert len(found) <= len(acknowledged) + 4


def test_an_upload_cut_by_sigkill_leaves_nothing(run_path: Path) -> None:
    """Neither a table nor a spooled file after the restart."""
    spool = run_path / "state" / "cdn-data-fabric" / "spool"
    with process(run_path) as (client, service):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        connection.putrequest("POST", "/sources/half?kind=csv")
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        connection.send(b"a,b\n1,2\n")
        until(lambda: list(spool.iterdir()), what="the upload has begun")
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
        connection.close()
        assert list(spool.iterdir())
    with process(run_path) as (client, _):
        assert list(spool.iterdir()) == []
        assert client.call("GET", "/sources").json["sources"] == []


def test_another_instance_leaves_the_uploads_of_the_first_alone(run_path: Path) -> None:
    """It has the same database, and another spool."""
    first = run_path / "state" / "cdn-data-fabric" / "spool" / "under-way"
    with process(run_path) as (client, _):
        assert client.load("peaks", "name\nZugspitze\n").status == 201
        first.write_text("an upload")
        with process(run_path, CDN_INSTANCE="cdn-data-fabric-2") as (second, _):
            assert second.sql("SELECT name FROM peaks").json["rows"] == [["Zugspitze"]]
            assert first.exists()
            assert (run_path / "state" / "cdn-data-fabric-2" / "spool").is_dir()


def test_two_instances_see_what_the_other_has_changed(run_path: Path) -> None:
    """With the next request: a source made, rows inserted, a source replaced and dropped."""
    with process(run_path) as (first, _), process(run_path, CDN_INSTANCE="cdn-data-fabric-2") as (second, _):
        for one, other in ((first, second), (second, first)):
            assert one.load("peaks", "name,metres\nZugspitze,2962\n").status == 201
            inserted = other.call("POST", "/tables/peaks/rows", {"rows": [["Watzmann", 2713]]})
            assert inserted.status == 201, inserted.body
            assert one.sql("SELECT count(*) FROM peaks").json["rows"] == [[2]]
            assert one.load("peaks", "title\nMont Blanc\n", method="PUT").status == 201
            assert other.call("GET", "/tables/peaks/rows").json["columns"] == ["_rowid_", "title"]
            assert other.call("DELETE", "/sources/peaks").status == 204
            assert one.call("GET", "/sources").json["sources"] == []
            assert one.call("GET", "/tables/peaks/rows").status == 404


def test_the_service_as_it_is_started(run_path: Path) -> None:
    """Its check is well, its metrics are there and count refusals, its state is private, its loop is switched off."""
    with process(run_path) as (client, service):
        assert client.load("t", "a\n1\n").status == 201
        assert client.sql("SELECT a FROM t").json["rows"] == [[1]]
        assert client.load("broken", "a,b\n1\n").status == 422
        assert client.sql("DELETE FROM t").status == 403
        endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
        assert client.sql(endless, timeout_s=0.1).status == 422
        until(lambda: client.call("GET", "/readyz").json["health"] == "healthy")
        until(lambda: re.search(rb"\nrequests_refused_total\{.*\} 3\.0\n", client.call("GET", "/metrics").body))
        assert (run_path / "state" / "cdn-data-fabric").stat().st_mode & 0o777 == 0o700
        assert client.call("POST", "/ooda/mode", {"mode": "off"}).status == 200
        assert client.call("GET", "/ooda").json["mode"] == "off"
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
