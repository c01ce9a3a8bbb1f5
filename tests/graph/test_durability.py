"""Acknowledged means on disk: the real process, killed in the middle; a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.graph.support import Client, process, serving
from tests.support import until

DISK_BYTES = 8 << 20


def test_what_was_acknowledged_survives_sigkill(run_path: Path) -> None:
    """Three clients write without pause; the process is killed, and started again: all acknowledged is there."""
    created: list[str] = []
    deleted: list[str] = []

    def write(client: Client, mine: str) -> None:
        for number in range(100_000):
            node, other = f"{mine}{number}", f"{mine}{number}-other"
            try:
                made = {"relationships": [{"from": node, "to": other, "type": "x"}], "create_nodes": True}
                if client.call("POST", "/relationships", made).status == 201:
                    created.append(node)
                if number % 3 == 0 and client.call("DELETE", f"/nodes/{node}?detach=true").status == 200:
                    deleted.append(node)
            except OSError:
                return

    with process(run_path) as (client, service):
        threads = [threading.Thread(target=write, args=(client, mine)) for mine in "abc"]
        for thread in threads:
            thread.start()
        until(lambda: len(created) > 60, what="some were written")
        os.kill(service.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(60)
    gone = set(deleted)
    with process(run_path) as (client, _):
        for node in created:
            if node in gone:
                assert client.call("GET", f"/nodes/{node}").status == 404
            elif client.call("GET", f"/nodes/{node}").status == 200:
                assert client.khop(node, 1)["reached"] == 1
            else:  # being deleted when the process was killed, and unacknowledged
                assert int(node[1:]) % 3 == 0
                assert node in {max((one for one in created if one[0] == node[0]), key=lambda one: int(one[1:]))}
        about = client.call("GET", "/graph").json
        assert about["types"].get("x", 0) == about["relationships"]


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


def filled(client: Client) -> int:
    """Write until nothing more is taken; how many nodes were."""
    for number in range(10_000):
        made = [{"id": f"large-{number}-{at}", "properties": {"text": "y" * 10_000}} for at in range(10)]
        answer = client.call("POST", "/nodes", {"nodes": made})
        if answer.status != 201:
            reason = answer.error
            assert reason["status"] == 507
            assert "no space left" in reason["what"]
            return number * 10
    raise AssertionError("it is never full")


def test_a_full_disk(small_disk: Path) -> None:
    """What was acknowledged is there, the rest not; reading goes on; with room again, so does writing."""
    with serving(small_disk / "state") as (client, _):
        client.relate(("a", "x", "b"))
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (DISK_BYTES // 2))
        kept = filled(client)
        assert client.call("GET", "/graph").json["nodes"] == kept + 2
        assert client.khop("a", 1)["reached"] == 1
        filler.unlink()
        until(lambda: client.call("POST", "/nodes", {"nodes": [{"id": "later"}]}).status == 201)
        assert client.call("GET", "/graph").json["nodes"] == kept + 3


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """RLIMIT_FSIZE, set and lifted under the running service."""
    with process(run_path) as (client, service):
        client.relate(("a", "x", "b"))
        limited = psutil.Process(service.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, hard))
        kept = filled(client)
        assert client.call("GET", "/graph").json["nodes"] == kept + 2
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        assert client.nodes("later")["created"] == 1
        assert client.call("GET", "/readyz").status == 200
