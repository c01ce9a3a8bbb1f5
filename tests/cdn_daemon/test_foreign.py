"""cdn-run beside servers that are not ours: nginx and redis, from the distribution's packages."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bus.endpoints import RunDir
from bus.messages import Outcome, ReportStatus, Restart
from tests.cdn_daemon.programs import cdn_run, ready
from tests.cdn_daemon.test_commands import Commander
from tests.support import ServiceProcess, free_port, is_running, until

Start = Callable[..., ServiceProcess]

NGINX = """
daemon off;
worker_processes 2;
pid {run}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {run}/t1; proxy_temp_path {run}/t2; fastcgi_temp_path {run}/t3;
    uwsgi_temp_path {run}/t4; scgi_temp_path {run}/t5;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{text}"; }} }}
}}
"""


def installed(command: str, package: str) -> str:
    """Path of a server's executable; skips the test where there is none."""
    found = shutil.which(command, path=os.environ["PATH"] + ":/usr/sbin")
    if found is None:
        pytest.skip(f"{command} is not installed: apt-get install {package}")
    return found


@pytest.fixture
def start(run_path: Path, request: pytest.FixtureRequest) -> Start:
    """Starts programs under cdn-run, and ends them afterwards."""

    def begin(*arguments: str, **env: str) -> ServiceProcess:
        process = cdn_run(run_path, *arguments, **env)
        request.addfinalizer(process.stop)
        return process

    return begin


def tree(process: ServiceProcess, name: str) -> list[int]:
    """Pids below it of processes with that name."""
    return [p.pid for p in psutil.Process(process.pid).children(recursive=True) if p.name() == name]


def ask_redis(port: int, *words: str) -> str:
    """Redis's first answer to an inline command."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(" ".join(words).encode() + b"\r\n")
        return client.recv(4096).decode()


def test_nginx(start: Start, run_dir: RunDir) -> None:
    """Ready when it answers, reloaded by SIGHUP, its address in the fleet, drained by SIGQUIT, nothing left."""
    nginx = installed("nginx", "nginx-light")
    run, port = run_dir.path, free_port()
    conf, base = run / "nginx.conf", f"http://127.0.0.1:{port}"
    conf.write_text(NGINX.format(run=run, port=port, text="one"))
    options = ("--http", f"{base}/", "--period", "0.2", "--stop-signal", "QUIT")
    tiny = start(*options, "--", nginx, "-c", str(conf), "-p", str(run), SUPERVISOR_ENABLED="1")
    tiny.url()
    until(lambda: ready(tiny)["health"] == "healthy")
    with urllib.request.urlopen(f"{base}/x", timeout=30) as answer:
        assert answer.read() == b"one"
    conf.write_text(NGINX.format(run=run, port=port, text="two"))
    os.kill(tiny.pid, signal.SIGHUP)

    def reloaded() -> bool:
        with urllib.request.urlopen(f"{base}/x", timeout=30) as answer:
            return bool(answer.read() == b"two")

    until(reloaded)
    with Commander(run_dir) as commander:
        commander.hear(object)
        commander.send(ReportStatus())
        assert commander.hear(Outcome, id="c1").status.address == base
        pids = tree(tiny, "nginx")
        assert len(pids) >= 3
        commander.send(Restart(), "c2")
        assert tiny.wait() == 75, tiny.log()
        until(lambda: not any(map(is_running, pids)))


def test_nginx_killed(start: Start, run_path: Path) -> None:
    """SIGKILL of cdn-run takes master and workers with it, and the port is free for the next."""
    nginx = installed("nginx", "nginx-light")
    port = free_port()
    conf = run_path / "nginx.conf"
    conf.write_text(NGINX.format(run=run_path, port=port, text="one"))
    for _ in range(2):
        tiny = start("--tcp", f"127.0.0.1:{port}", "--", nginx, "-c", str(conf), "-p", str(run_path))
        tiny.url()
        pids = tree(tiny, "nginx")
        os.kill(tiny.pid, signal.SIGKILL)
        tiny.wait()
    until(lambda: not any(map(is_running, pids)))


def test_redis(start: Start, run_path: Path) -> None:
    """Ready by TCP; frozen it is unhealthy by its command, thawed well; SIGTERM has it save what it holds."""
    redis = installed("redis-server", "redis-server")
    port = free_port()
    command = (redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(run_path), "--save", "3600 1")
    first = start("--tcp", f"127.0.0.1:{port}", "--", *command)
    first.url()
    assert ask_redis(port, "SET", "colour", "blue") == "+OK\r\n"
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait() == 0

    probe = f"redis-cli -h 127.0.0.1 -p {port} ping"
    options = ("--exec", probe, "--period", "0.2", "--timeout", "0.5", "--threshold", "2")
    second = start(*options, "--", *command)
    second.url()
    assert ask_redis(port, "GET", "colour") == "$4\r\nblue\r\n"
    (server,) = tree(second, "redis-server")
    os.kill(server, signal.SIGSTOP)
    until(lambda: ready(second)["health"] == "unhealthy")
    os.kill(server, signal.SIGCONT)
    until(lambda: ready(second)["health"] == "healthy")


def test_redis_over_its_limit(start: Start, run_path: Path) -> None:
    """What it holds counts as what the service uses: over hard it is drained and ends with 75."""
    redis = installed("redis-server", "redis-server")
    port = free_port()
    command = (redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(run_path), "--save", "")
    options = ("--tcp", f"127.0.0.1:{port}", "--limit", "rss_bytes=150m:200m")
    tiny = start(*options, "--", *command, SUPERVISOR_ENABLED="1")
    tiny.url()
    fill = "for i = 1, 300 do redis.call('SET', 'key' .. i, string.rep('x', 1048576)) end"
    ask_redis(port, "EVAL", f'"{fill}"', "0")
    assert tiny.wait() in (70, 75)
    assert "over the hard limit of 200 MiB" in tiny.log()
