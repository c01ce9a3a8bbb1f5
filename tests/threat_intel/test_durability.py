"""Acknowledged means on disk: the real process, killed in the middle; a disk that is full; two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bus.messages import Facts
from services.threat_intel.intel import Intel
from tests.support import ServiceProcess, until
from tests.threat_intel.support import Client, bundle, indicator, process, serving

DISK_BYTES = 8 << 20
LARGE = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(120_000)]


def test_what_was_acknowledged_survives_sigkill(run_path: Path) -> None:
    """Three clients send sightings, lists and objects without pause; the process is killed, and started again.

    All that was acknowledged is there, and no sighting twice.
    """
    sighted: list[str] = []
    listed: list[str] = []
    stored: list[str] = []

    def go_on(send: object) -> None:
        assert callable(send)
        for number in range(100_000):
            try:
                send(number)
            except OSError:
                return

    with process(run_path) as (client, service):

        def sight(number: int) -> None:
            if client.call("POST", "/sightings", {"value": "203.0.113.7", "id": f"s{number}"}).status == 201:
                sighted.append(f"s{number}")

        def put(number: int) -> None:
            value = f"10.1.{number >> 8 & 255}.{number & 255}"
            if client.call("POST", "/feeds/list", value.encode()).status == 201:
                listed.append(value)

        def add(number: int) -> None:
            value = f"10.2.{number >> 8 & 255}.{number & 255}"
            made = bundle(indicator(f"[ipv4-addr:value = '{value}']"))
            if client.call("POST", "/feeds/stix", made).status == 201:
                stored.append(value)

        threads = [threading.Thread(target=go_on, args=(send,)) for send in (sight, put, add)]
        for thread in threads:
            thread.start()
        until(lambda: min(len(sighted), len(listed), len(stored)) > 20, what="all are acknowledged", within_s=60)
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
        for thread in threads:
            thread.join()
    with process(run_path) as (client, _):
        kept = [one["id"] for one in client.call("GET", "/sightings?limit=10000").json["sightings"]]
        assert len(set(kept)) == len(kept) <= len(sighted) + 1
        assert set(sighted) <= set(kept)
        for values in (listed, stored):
            for start in range(0, len(values), 1_000):
                assert {one["verdict"] for one in client.look(*values[start : start + 1_000])} == {"malicious"}


def test_a_feed_that_is_cut_by_sigkill_is_as_it_was(run_path: Path) -> None:
    """All of the new one, or all of the old one."""
    with process(run_path) as (client, service):
        client.put("list", "203.0.113.7")
        sender = threading.Thread(target=_send, args=(client, "\n".join(LARGE).encode()))
        sender.start()
        wal = run_path / "state" / "cdn-threat-intel" / "intel.db-wal"
        until(lambda: wal.stat().st_size > 100_000, what="it is being written")
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
        sender.join()
    with process(run_path) as (client, _):
        values = client.call("GET", "/feeds/list").json["values"]
        old, new = client.verdict("203.0.113.7"), client.verdict(LARGE[-1])
        assert (values, old, new) in {(1, "malicious", "unknown"), (len(LARGE), "unknown", "malicious")}


def _send(client: Client, body: bytes) -> None:
    try:
        client.call("PUT", "/feeds/list", body)
    except OSError:
        return  # as it was killed


def test_two_processes_over_one_database_see_what_the_other_has_changed(run_path: Path) -> None:
    """A moment later; and only the first has a loop."""
    with process(run_path) as (first, _), process(run_path, CDN_INSTANCE="cdn-threat-intel-2") as (second, _):
        first.put("list", "203.0.113.7")
        until(lambda: second.verdict("203.0.113.7") == "malicious", what="the second sees it")
        second.call("PUT", "/allow/203.0.113.7")
        until(lambda: first.verdict("203.0.113.7") == "allowed", what="the first sees it")


def test_the_service_as_it_is_started(run_path: Path) -> None:
    """Its check is well, its metrics are there, its state and token are private, its loop can be switched off."""
    with process(run_path) as (client, service):
        client.put("list", "203.0.113.7")
        client.look("203.0.113.7")
        until(lambda: client.call("GET", "/readyz").json["health"] == "healthy")
        until(lambda: b'intel_feed_hits_total{service="cdn-threat-intel"' in client.call("GET", "/metrics").body)
        assert (run_path / "state" / "cdn-threat-intel").stat().st_mode & 0o777 == 0o700
        assert (run_path / "cdn-threat-intel.token").stat().st_mode & 0o777 == 0o600
        assert client.call("POST", "/ooda/mode", {"mode": "off"}).status == 200
        assert client.call("GET", "/ooda").json["mode"] == "off"
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0


@pytest.mark.parametrize("name", ["state/cdn-threat-intel/intel.db", "cdn-threat-intel.token"])
def test_what_cannot_be_used_is_named_and_left_alone(run_path: Path, name: str) -> None:
    """A database that is none, a token that is none: the process ends with 78, which keeps it down, and says which."""
    path = run_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no database, and no token\n" * 100)
    path.chmod(0o600)
    with ServiceProcess(run_path, "-m", "services.threat_intel") as service:
        assert service.wait() == 78
        assert f"cannot use {'the token in ' if 'token' in name else ''}{path}" in service.log()
    assert path.read_bytes().startswith(b"no database")


def test_what_was_sighted_just_before_the_end_is_told_again(tmp_path: Path) -> None:
    """Under the same id, and not if it is allowed by now."""
    with serving(tmp_path / "state") as (client, _):
        client.call("POST", "/sightings", {"value": "203.0.113.7", "id": "s1", "at_s": 4e9})
        client.call("POST", "/sightings", {"value": "203.0.113.8", "id": "s2"})
        client.call("POST", "/sightings", {"value": "203.0.113.9", "id": "s3", "at_s": 1e9})
        client.call("PUT", "/allow/203.0.113.8")
    told: list[str | None] = []

    def emit(facts: Facts, text: str, *, cause: str | None = None, id: str | None = None) -> str:
        told.append(id)
        return ""

    again = Intel(tmp_path / "state", tmp_path / "state" / "token")
    again.emit = emit
    again.open()
    again.store.close()
    assert told == ["s1"]


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


def test_a_full_disk(small_disk: Path) -> None:
    """What does not fit is refused whole; look-ups go on, and writing when there is room."""
    with serving(small_disk / "state") as (client, intel):
        client.put("list", "203.0.113.7")
        reason = client.call("PUT", "/feeds/list", "\n".join(LARGE).encode()).error
        assert reason["status"] == 507
        assert "no space left" in reason["what"]
        assert [client.verdict(value) for value in ("203.0.113.7", LARGE[0])] == ["malicious", "unknown"]
        assert client.call("GET", "/feeds/list").json["values"] == 1
        client.put("list", "203.0.113.7", *LARGE[:1_000])
        assert client.verdict(LARGE[0]) == "malicious"
        checked = intel.store.writer.submit(lambda connection: connection.pragma("integrity_check"))
        assert checked.result() == "ok"


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """RLIMIT_FSIZE, which SQLite has no name for, set and lifted under the running service."""
    with process(run_path) as (client, service):
        client.put("list", "203.0.113.7")
        limited = psutil.Process(service.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (1 << 20, hard))
        assert client.call("PUT", "/feeds/list", "\n".join(LARGE).encode()).error["status"] == 507
        assert client.verdict("203.0.113.7") == "malicious"
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        assert client.put("list", *LARGE[:1_000])["removed"] == 1
