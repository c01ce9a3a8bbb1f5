"""The monitor as a process: what it watches by its file, how it tells, and what outlives it."""

from __future__ import annotations

import http.server
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.isolated_monitoring.support import MODULE, NAME, alerts, monitoring, opened
from tests.support import ROOT, environment, free_port, is_running, kill_tree, until

SLEEPER = "import time\nwhile True: time.sleep(60)"


class Receiver(http.server.ThreadingHTTPServer):
    """A server that fails as often as it is told to, and remembers what it was sent."""

    def __init__(self, failures: int = 0, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answering)
        self.failures = failures
        self.heard: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone."""


class Answering(http.server.BaseHTTPRequestHandler):
    """What it says."""

    server: Receiver

    def do_GET(self) -> None:
        """All is well."""
        self._say(200, b"all is well")

    def do_POST(self) -> None:
        """An alert."""
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers["Idempotency-Key"])
        if self.server.failures:
            self.server.failures -= 1
            self._say(503, b"")
            return
        self.server.heard.append(content)
        self._say(200, b"")

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def receiving(failures: int = 0, port: int = 0) -> Iterator[Receiver]:
    """One that serves."""
    receiver = Receiver(failures, port)
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join(10)


def test_what_the_file_names(run_path: Path) -> None:
    """HTTP, TCP, Unix and pidfile targets, each seen up and then down; what depends on what is one incident."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(run_path / "some.sock"))
    unix.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    sleeper = subprocess.Popen([sys.executable, "-c", SLEEPER])
    (run_path / "some.pid").write_text(f"{sleeper.pid}\n")
    try:
        with receiving() as web:
            config = f"""
[[target]]
name = "web"
http = "http://127.0.0.1:{web.server_port}/"
contains = "well"
depends_on = ["db"]
[[target]]
name = "wrong"
http = "http://127.0.0.1:{web.server_port}/"
contains = "not there"
[[target]]
name = "db"
tcp = "127.0.0.1:{tcp.getsockname()[1]}"
[[target]]
name = "pipe"
unix = "{run_path}/some.sock"
[[target]]
name = "job"
pidfile = "{run_path}/some.pid"
"""
            with monitoring(run_path, config) as (client, _):
                until(lambda: list(client.conditions().values()).count("up") == 4, what="four are up")
                until(lambda: [each["root"] for each in opened(run_path)] == ["wrong"], what="the wrong one is told")
                assert "lacks 'not there'" in opened(run_path)[0]["reason"]
                web.shutdown()
                web.server_close()
                tcp.close()
                until(lambda: len(opened(run_path)) == 2, what="the db is told")
                assert (opened(run_path)[1]["root"], opened(run_path)[1]["consequences"]) == ("db", ["web"])
                sleeper.kill()
                sleeper.wait()
                unix.close()
                roots = {"wrong", "db", "job", "pipe"}
                until(lambda: {each["root"] for each in opened(run_path)} >= roots, what="the others are told")
                assert len(opened(run_path)) == 4
    finally:
        kill_tree(sleeper.pid)
        sleeper.wait()
        unix.close()
        tcp.close()


def test_channels(run_path: Path) -> None:
    """A command that hangs, one that works, a webhook that fails at first: each gets each alert once, in order."""
    told = run_path / "told.jsonl"
    with receiving(failures=1) as webhook:
        config = f"""
[[alert]]
command = ["sh", "-c", "cat >> {told}"]
[[alert]]
command = ["{sys.executable}", "-c", "import time; time.sleep(1000)"]
timeout_s = 0.3
[[alert]]
webhook = "http://127.0.0.1:{webhook.server_port}/hook?x=1"
"""
        with monitoring(run_path, config) as (client, process):
            check = client.make_check(name="job")
            client.get(f"/ping/{check['uuid']}/fail")
            until(lambda: webhook.heard, what="the webhook has it")
            until(lambda: told.exists() and told.read_text().endswith("\n"), what="the command has it")
            until(lambda: opened(run_path), what="the file has it")
            said = [json.loads(told.read_text()), webhook.heard[0], opened(run_path)[0]]
            assert said[0] == said[1] == said[2]
            assert (said[0]["event"], said[0]["root"]) == ("opened", "check job")
            assert webhook.keys == [said[0]["id"]] * 2
            until(lambda: "has not ended within" in str(client.get("/readyz").json["reasons"]), what="it is degraded")
            assert client.get("/readyz").status == 200
            client.get(f"/ping/{check['uuid']}")
            until(lambda: len(webhook.heard) == 2, what="the end is told")
            assert webhook.heard[1]["event"] == "resolved"
            assert webhook.heard[1]["incident"] == said[0]["incident"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_killed_in_the_middle(run_path: Path) -> None:
    """SIGKILL: pings, incidents, alerts on their way and windows are there again; nothing is told twice."""
    port = free_port()
    config = f'[[alert]]\nwebhook = "http://127.0.0.1:{port}/"\n'
    with monitoring(run_path, config) as (client, process):
        check, other = client.make_check(name="job", timeout=3600), client.make_check(name="other")
        window = client.order("POST", "/api/maintenance", {"target": "web-*", "for_s": 600}).json
        assert client.get(f"/ping/{other['uuid']}").status == 200
        assert client.call("POST", f"/ping/{check['uuid']}/fail", b"why").status == 200
        until(lambda: opened(run_path), what="it is told")
        until(lambda: client.get("/readyz").json["health"] == "degraded", what="the webhook is missed")
        for _ in range(20):
            assert client.get(f"/ping/{other['uuid']}/log").status == 200
        process.kill()
        process.wait()
    with receiving(port=port) as webhook, monitoring(run_path, config) as (client, _):
        assert client.order("GET", f"/api/v3/checks/{other['uuid']}").json["n_pings"] == 21
        assert client.order("GET", f"/api/v3/checks/{check['uuid']}").json["status"] == "down"
        assert client.order("GET", f"/api/v3/checks/{check['uuid']}/pings/1/body").body == b"why"
        assert client.get("/api/maintenance").json["maintenance"] == [window]
        until(lambda: webhook.heard, what="what was on its way arrives")
        (incident,) = client.get("/api/status").json["incidents"]
        assert incident["id"] == opened(run_path)[0]["incident"]
        client.get(f"/ping/{check['uuid']}")
        until(lambda: len(webhook.heard) == 2, what="the end is told")
        assert [each["event"] for each in webhook.heard] == ["opened", "resolved"]
        until(lambda: len(alerts(run_path)) == 2, what="the file has the end")
        assert [each["event"] for each in alerts(run_path)] == ["opened", "resolved"]


def test_a_second_copy_refuses(run_path: Path) -> None:
    """One monitor in a run directory; the second ends with 78 and says why."""
    with monitoring(run_path) as (_, process):
        second = subprocess.run(
            [sys.executable, *MODULE],
            env=environment(run_path, CDN_PORT="0"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 78
        assert f"pid {process.pid} already is {NAME}" in second.stderr


@pytest.mark.parametrize(
    ("env", "config", "why"),
    [
        ({"CDN_PORT": "x"}, "", "CDN_PORT=x"),
        ({"CDN_OODA": "maybe"}, "", "CDN_OODA=maybe"),
        ({"CDN_HOST": "0.0.0.0"}, "", "CDN_ALLOW_PUBLIC"),
        ({"CDN_ISOLATED_CONFIG": "/nowhere.toml"}, "", "/nowhere.toml"),
        ({"CDN_ISOLATED_EVERY_S": "0"}, "", "0.2 to 60"),
        ({}, "x = ", "isolated-monitoring.toml"),
        ({}, "unknown = 1", "the key unknown"),
        ({}, '[[target]]\nname = "a"', "must have one of"),
        ({}, '[[target]]\nname = "a"\nhttp = "ftp://x"', "must be http://"),
        ({}, '[[target]]\nname = "a"\ntcp = "x:99999"', "must be HOST:PORT"),
        ({}, '[[target]]\nname = "a"\nhttp = "http://a..b/"', "must be http://"),
        ({}, f'[[target]]\nname = "a"\ntcp = "{"x" * 64}:1"', "must be HOST:PORT"),
        ({"CDN_ISOLATED_ALERT_WEBHOOK": "http://a..b/"}, "", "must be http://"),
        ({}, '[[target]]\nname = "a"\ntcp = "x:1"\n[[target]]\nname = "a"\ntcp = "x:1"', "must be its own"),
        ({}, '[[alert]]\ncommand = "x"', "must be a list"),
        ({}, "[[alert]]", "must have one of"),
    ],
)
def test_bad_configuration(run_path: Path, env: dict[str, str], config: str, why: str) -> None:
    """78, and a line that names what is wrong."""
    if config:
        (run_path / "isolated-monitoring.toml").write_text(config)
    done = subprocess.run(
        [sys.executable, *MODULE],
        env=environment(run_path, **({"CDN_PORT": "0"} | env)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 78, done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port(run_path: Path) -> None:
    """78 as well."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, *MODULE],
            env=environment(run_path, CDN_PORT=str(taken.getsockname()[1])),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 78
    assert "cannot listen on 127.0.0.1" in done.stderr


def test_damaged_state(run_path: Path) -> None:
    """A database that is none is set aside, and it watches on."""
    state = run_path / "state" / NAME
    state.mkdir(parents=True)
    (state / "monitor.db").write_bytes(os.urandom(8192))
    with monitoring(run_path) as (client, _):
        client.make_check(name="job")
    assert (state / "monitor.db.damaged").exists()


def test_state_with_a_damaged_page(run_path: Path) -> None:
    """So is one that opens, and in which something is not as it was written."""
    path = run_path / "state" / NAME / "monitor.db"
    with monitoring(run_path) as (client, _):
        client.make_check(name="job")
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executemany("INSERT INTO kept VALUES ('check', ?, ?)", ((str(n), "x" * 500) for n in range(100)))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    page = content.index(b"x" * 500, len(content) // 2) // 4096 * 4096
    content[page + 3 : page + 5] = b"\x00\xff"  # how many cells it has
    path.write_bytes(content)
    with monitoring(run_path) as (client, _):
        client.make_check(name="job")
    assert (path.parent / "monitor.db.damaged").exists()


def test_a_full_disk(run_path: Path) -> None:
    """No room for the database: pings are refused with 507 and taken in all the same; the alert goes out."""
    with receiving() as webhook:
        config = f'[[alert]]\nwebhook = "http://127.0.0.1:{webhook.server_port}/"\n'
        with monitoring(run_path, config) as (client, process):
            check = client.make_check(name="job")
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, most))
            answer = client.call("POST", f"/ping/{check['uuid']}/fail", b"x" * 9000)
            assert answer.error["status"] == 507
            until(lambda: webhook.heard, what="the alert goes out")
            assert is_running(process.pid)
            until(lambda: "cannot write" in str(client.get("/readyz").json["reasons"]), what="it says so")
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
            assert client.get(f"/ping/{check['uuid']}").status == 200


def test_maintenance_keeps_quiet(run_path: Path) -> None:
    """What is down in its window is not told; it is when the window ends and it is still down."""
    with monitoring(run_path) as (client, _):
        check = client.make_check(name="job")
        window = client.order("POST", "/api/maintenance", {"target": "check j*", "for_s": 600}).json
        client.get(f"/ping/{check['uuid']}/fail")
        until(lambda: client.conditions()["check job"] == "down", what="it is seen")
        assert client.targets()["check job"]["maintenance"]
        assert not client.get("/api/status").json["incidents"]
        client.order("DELETE", f"/api/maintenance/{window['id']}")
        until(lambda: opened(run_path), what="it is told")


def test_frozen_itself(run_path: Path) -> None:
    """Stopped for longer than any limit and woken, the monitor accuses nobody."""
    with receiving() as web:
        config = f'[[target]]\nname = "web"\nhttp = "http://127.0.0.1:{web.server_port}/"\n'
        with monitoring(run_path, config) as (client, process):
            until(lambda: client.conditions()["web"] == "up", what="it is up")
            process.send_signal(signal.SIGSTOP)
            until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            threading.Event().wait(3.0)
            process.send_signal(signal.SIGCONT)
            before = client.probes()
            until(lambda: client.probes() >= before + 3, what="it looks again")
            assert client.conditions()["web"] == "up"
            assert not alerts(run_path)
