"""Where to route is heard on the feed, and outlives it: nothing central whose loss is an outage."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from bus.endpoints import RunDir, prepare
from bus.messages import LifecyclePhase
from services.gateway.feed import Feed
from services.gateway.routes import hear
from services.gateway.snapshot import SnapshotError, load, save
from tests.gateway.sockets import Client, Instance, Peer, echoing_heads
from tests.gateway.support import Bus, Process, a_fleet, status_of
from tests.support import short_dir, until


def status_on(port: int, path: str) -> int:
    """Of one request."""
    with Client(port) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return client.answer().status


def test_silent_instance_is_dropped_while_the_feed_lives() -> None:
    """A stopped process still accepts connections, so only its silence tells; it is back when it speaks again."""
    with short_dir() as path, a_fleet(path) as fleet, Process(path, "tests.gateway.echo") as echo:
        fleet.routed("echo")
        until(lambda: fleet.metrics().get("gateway_targets") == 1.0)
        os.kill(echo.pid, signal.SIGSTOP)
        try:
            until(lambda: fleet.metrics().get("gateway_targets") == 0.0, what="the silent instance is dropped")
            assert fleet.ask("GET", "/echo/").status == 503
        finally:
            os.kill(echo.pid, signal.SIGCONT)
        fleet.routed("echo")


def test_death_of_the_feed_is_no_outage() -> None:
    """Routing goes on by what was known; a gateway started meanwhile knows it too; then the feed is followed again."""
    with short_dir() as path, Instance(echoing_heads) as instance:
        run_dir = prepare(RunDir(path))
        snapshot = run_dir.state("gateway-primary") / "routes.json"
        with Process(path, "services.gateway") as gateway:
            port = gateway.port()
            with Bus(run_dir) as bus:
                bus.say(status_of("kept", address=instance.address))
                until(lambda: status_on(port, "/kept/") == 200)
                until(lambda: snapshot.exists() and b"kept" in snapshot.read_bytes())
            assert status_on(port, "/kept/") == 200
            gateway.kill()

        with Process(path, "services.gateway") as gateway:
            port = gateway.port()
            assert status_on(port, "/kept/") == 200
            with Bus(run_dir) as bus:
                bus.say(status_of("new", address=instance.address))
                until(lambda: status_on(port, "/new/") == 200)
                until(lambda: status_on(port, "/kept/") == 503, what="who is not on the living feed is dropped")


def test_service_that_comes_back_elsewhere_is_followed() -> None:
    """A killed and restarted instance gets its traffic at its new address."""
    with short_dir() as path, a_fleet(path) as fleet:
        with Process(path, "tests.gateway.echo") as echo:
            fleet.routed("echo")
            first = fleet.ask("GET", "/echo/").body
            echo.kill()
            assert fleet.ask("GET", "/echo/").status in (502, 503)
        with Process(path, "tests.gateway.echo"):
            fleet.routed("echo")
            assert fleet.ask("GET", "/echo/").body != first


def test_rolling_restart_costs_no_request() -> None:
    """While two instances are restarted one after the other, every request of a busy client is answered."""
    with short_dir() as path, a_fleet(path) as fleet:
        statuses: Counter[int] = Counter()
        done = threading.Event()

        def busy() -> None:
            while not done.is_set():
                statuses[fleet.ask("GET", "/echo/").status] += 1

        def pids() -> set[bytes]:
            return {fleet.ask("GET", "/echo/").body for _ in range(4)}

        names = ("echo-1", "echo-2")
        running = {name: Process(path, "tests.gateway.echo", CDN_INSTANCE=name) for name in names}
        try:
            fleet.routed("echo")
            until(lambda: len(pids()) == 2)
            client = threading.Thread(target=busy)
            client.start()
            try:
                for name in names:
                    old = b"%d" % running[name].pid
                    assert running[name].terminate() == 0
                    running[name] = Process(path, "tests.gateway.echo", CDN_INSTANCE=name)
                    until(lambda old=old: old not in (now := pids()) and len(now) == 2)  # type: ignore[misc]
            finally:
                done.set()
                client.join()
            assert set(statuses) == {200}
        finally:
            for process in running.values():
                process.kill()


def test_gateway_drains() -> None:
    """SIGTERM lets the request under way finish, and ends with 0."""
    with short_dir() as path, a_fleet(path) as fleet, fleet.connect() as client:

        def slow(peer: Peer) -> None:
            peer.head()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
            until(lambda: fleet.bus.heard["gateway-primary"].phase is LifecyclePhase.DRAINING)
            peer.send(b"67890")

        with fleet.instance("slow", slow):
            client.send(b"GET /slow/ HTTP/1.1\r\nHost: x\r\n\r\n")
            while b"12345" not in client.pending:
                client.more()
            assert fleet.gateway.terminate() == 0
            assert client.answer().body == b"1234567890"


@pytest.mark.parametrize(("key", "value"), [("CDN_GATEWAY_ANSWER_S", "soon"), ("CDN_GATEWAY_EXPOSE", "all")])
def test_bad_settings_are_told_before_anything_opens(key: str, value: str) -> None:
    """Exit code 78 and the variable's name."""
    with short_dir() as path, Process(path, "services.gateway", **{key: value}) as gateway:
        assert gateway.wait() == 78
        assert f"cannot use {key}={value}" in gateway.log()


def test_atlas_is_routed_to_where_an_operator_says_so() -> None:
    """CDN_GATEWAY_EXPOSE=atlas."""
    with short_dir() as path, a_fleet(path, CDN_GATEWAY_EXPOSE="atlas") as fleet, Instance(echoing_heads) as instance:
        fleet.bus.say(status_of("atlas", address=instance.address))
        fleet.routed("atlas")


def test_snapshot_round_trip(tmp_path: Path) -> None:
    """What is saved is loaded, and what was there is replaced whole."""
    path = tmp_path / "state" / "routes.json"
    assert load(path) == {}
    known = hear(Feed("ipc://unused", path, frozenset()).table, [status_of("a", address="http://h:1")], 0.0).known
    save(path, known)
    save(path, known)
    assert load(path) == known
    assert [entry.name for entry in path.parent.iterdir()] == ["routes.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"version": 2, "known": {}}', b'{"known": {"a": 1}}'])
def test_unusable_snapshot_is_told_and_passed_over(tmp_path: Path, content: bytes) -> None:
    """The gateway begins without it."""
    path = tmp_path / "routes.json"
    path.write_bytes(content)
    with pytest.raises(SnapshotError):
        load(path)
    feed = Feed("ipc://unused", path, frozenset())
    feed.recall()
    assert feed.table.routes == {}


def test_routes_that_cannot_be_kept_do_not_stop_routing() -> None:
    """A full or read-only disk is a number in the metrics."""
    with short_dir() as path:
        run_dir = prepare(RunDir(path))
        run_dir.state("gateway-primary").write_text("a file where the directory should be")
        with a_fleet(path) as fleet, fleet.instance("unsaved", echoing_heads):
            fleet.routed("unsaved")
            until(lambda: fleet.metrics().get("gateway_saves_failed_total", 0) > 0)
            fleet.routed("unsaved")
