"""A full disk: nothing is half stored, the sender is told, reading goes on, and writing when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.data_fabric.support import Client, as_csv, process, serving

DISK_BYTES = 8 << 20
KEPT = as_csv([["n", "text"], *[[n, f"text {n}"] for n in range(100)]])
FILE_BYTES = 512 << 10
LARGE_SORT = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 100000) "
    "SELECT hex(randomblob(100)) AS h FROM c ORDER BY h"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs; test_a_file_that_may_not_grow covers the rest")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def text_file(size: int) -> str:
    """A CSV of about so many bytes."""
    line = "x" * 99 + "\n"
    return "text\n" + line * (size // len(line))


def refused(client: Client, body: str) -> None:
    """The upload is told that there is no room, and has left nothing; all else is as before."""
    reason = client.load("large", body).error
    assert reason["status"] == 507
    assert "no space left" in reason["what"]
    assert reason["limit"].endswith(" bytes free")
    assert client.call("GET", "/sources/large").status == 404
    assert [source["name"] for source in client.call("GET", "/sources").json["sources"]] == ["kept"]
    assert client.sql("SELECT count(*), sum(n) FROM kept").json["rows"][0][0] >= 100


def test_an_upload_that_does_not_fit(small_disk: Path) -> None:
    """Neither into the spool, nor from there into the database; one that fits is loaded afterwards."""
    with serving(small_disk / "state") as (client, store):
        assert client.load("kept", KEPT).status == 201
        refused(client, text_file(2 * DISK_BYTES))
        assert list(store.spool.iterdir()) == []
        refused(client, text_file(DISK_BYTES * 5 // 8))
        assert list(store.spool.iterdir()) == []
        assert client.load("large", text_file(DISK_BYTES // 8)).status == 201
        checked = store.writer.submit(lambda connection: connection.pragma("integrity_check"))
        assert checked.result() == "ok"


def test_inserts_into_a_full_disk(small_disk: Path) -> None:
    """Those that are acknowledged are there, the others not; reading goes on; with room again, so does writing."""
    with serving(small_disk / "state") as (client, store):
        assert client.load("kept", KEPT).status == 201
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            while file.write(b"x" * (DISK_BYTES // 16)) == DISK_BYTES // 16:
                continue
        rows, status = 100, 201
        while status == 201:
            answer = client.call("POST", "/tables/kept/rows", {"rows": [[0, "y" * 1000]] * 100})
            status = answer.status
            rows += 100 if status == 201 else 0
            assert rows * 1000 < DISK_BYTES
        assert answer.error["status"] == 507
        assert client.sql("SELECT count(*) FROM kept").json["rows"] == [[rows]]
        assert client.call("GET", "/sources/kept").json["tables"][0]["rows"] == rows
        assert client.call("GET", "/tables/kept/rows?limit=1").status == 200
        store.answers()
        filler.unlink()
        assert client.call("POST", "/tables/kept/rows", {"rows": [[1, "z"]]}).json["last_rowid"] == rows + 1


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """RLIMIT_FSIZE, which SQLite has no name for, set and lifted under the running service."""
    with process(run_path) as (client, service):
        assert client.load("kept", KEPT).status == 201
        limited = psutil.Process(service.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (FILE_BYTES, hard))
        refused(client, text_file(2 * FILE_BYTES))
        fits_the_spool = as_csv([["n"], *[[n] for n in range(60_000)]])
        assert len(fits_the_spool) < FILE_BYTES
        refused(client, fits_the_spool)
        reason = client.sql(LARGE_SORT, timeout_s=30).error
        assert reason["status"] == 507
        assert "temporary files" in reason["what"]
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        assert client.sql(LARGE_SORT, timeout_s=30).status == 200
        assert client.load("large", fits_the_spool).json["tables"][0]["rows"] == 60_000
