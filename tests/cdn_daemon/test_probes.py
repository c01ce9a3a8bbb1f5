"""Probes: what passes, what fails and why, and that one which hangs neither piles up nor stays."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest

from bus.endpoints import RunDir
from bus.messages import Outcome, ReportStatus
from cdn_daemon.probes import Http, ProbeError, Tcp, within
from tests.cdn_daemon.programs import PATIENT, cdn_run, keeper_of, ready
from tests.cdn_daemon.test_commands import Commander
from tests.support import ServiceProcess, free_port, until

Start = Callable[..., ServiceProcess]

SERVER = """
import http.server, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = open(sys.argv[2]).read().strip()
        self.send_response(int(text) if self.path == "/health?deep=1" else 404)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
"""Answers /health?deep=1 with the status that a file says."""


@pytest.fixture
def start(run_path: Path, request: pytest.FixtureRequest) -> Start:
    """Starts programs under cdn-run, and ends them afterwards."""

    def begin(*arguments: str, **env: str) -> ServiceProcess:
        process = cdn_run(run_path, *arguments, **env)
        request.addfinalizer(process.stop)
        return process

    return begin


class Canned:
    """A server that gives every connection the same answer, or none."""

    def __init__(self, answer: bytes | None) -> None:
        self.asked: list[bytes] = []
        self.open = 0
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        self.open += 1
        with client:
            try:
                self.asked.append(client.recv(4096))
                if self._answer is not None:
                    client.sendall(self._answer)
                while client.recv(4096):
                    continue
            except ConnectionResetError:
                self.asked.append(b"reset")
        self.open -= 1

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()


@pytest.fixture
def canned() -> Iterator[Callable[[bytes | None], Canned]]:
    """Makes such servers."""
    made: list[Canned] = []

    def make(answer: bytes | None) -> Canned:
        made.append(Canned(answer))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.mark.parametrize(
    ("text", "address", "path"),
    [
        ("http://127.0.0.1:80/x?y=1", "http://127.0.0.1:80", "/x?y=1"),
        ("http://localhost", "http://localhost:80", "/"),
        ("http://[::1]:8080/", "http://[::1]:8080", "/"),
    ],
)
def test_http_urls(text: str, address: str, path: str) -> None:
    """Host, port and path, with the usual defaults."""
    http = Http.parse(text)
    assert (http.address, http.path) == (address, path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "h:80", "https://h/", "http://", "http://h:port/", "http://h:99999/", "http://u@h/", "http://h/#x"),
        *("http://h/a b", "http://h/\r\nX: y", "http://hä/"),
    ],
)
def test_wrong_http_urls(text: str) -> None:
    """Refused when declared; nothing of it can become a second header."""
    with pytest.raises(ProbeError, match=r"it must be http://HOST\[:PORT\]\[/PATH\]"):
        Http.parse(text)


@pytest.mark.parametrize("text", ["", "h", ":80", "h:", "h:x", "h:99999", "tcp://h:1", "h:1/x", "u@h:1"])
def test_wrong_tcp_addresses(text: str) -> None:
    """Refused when declared."""
    with pytest.raises(ProbeError, match="it must be HOST:PORT"):
        Tcp.parse(text)


def test_tcp_addresses() -> None:
    """IPv6 in brackets."""
    assert (Tcp.parse("127.0.0.1:6379").address, Tcp.parse("[::1]:1").address) == (
        "tcp://127.0.0.1:6379",
        "tcp://[::1]:1",
    )


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", None),
        (b"HTTP/1.0 204\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", None),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "status 100"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no answer of HTTP/1"),
        (b"x" * 100_000, "a status line of over 1024 bytes"),
        (None, "no answer within 0.3 s"),
    ],
)
def test_http_answers(canned: Callable[[bytes | None], Canned], answer: bytes | None, failure: str | None) -> None:
    """Status 200 to 399 passes; everything else fails in words, and the connection is closed."""
    server = canned(answer)
    told = asyncio.run(within(Http("127.0.0.1", server.port, "/health").ask, 0.3)())
    assert (told is None) == (failure is None), told
    assert failure is None or failure in (told or "")
    until(lambda: server.open == 0)
    assert server.asked[0].startswith(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:")


def test_nobody_listens() -> None:
    """Says so, and where."""
    port = free_port()
    for probe in (Http("127.0.0.1", port, "/"), Tcp("127.0.0.1", port)):
        told = asyncio.run(probe.ask())
        assert told is not None
        assert f"127.0.0.1:{port}: " in told
        assert "refused" in told


def test_tcp_connects(canned: Callable[[bytes | None], Canned]) -> None:
    """A connection is enough, and is not kept."""
    server = canned(None)
    assert asyncio.run(Tcp("127.0.0.1", server.port).ask()) is None
    until(lambda: server.asked and server.open == 0)


def test_ready_and_healthy_by_http(start: Start, run_path: Path, run_dir: RunDir) -> None:
    """STARTING until the first probe passes; its failures are counted to unhealthy; the address is the program's."""
    port, answer = free_port(), run_path / "answer"
    answer.write_text("503")
    (run_path / "server.py").write_text(SERVER)
    url = f"http://127.0.0.1:{port}/health?deep=1"
    options = ("--http", url, "--period", "0.2", "--threshold", "2", "--", "python", f"{run_path}/server.py")
    tiny = start(*options, str(port), str(answer))
    until(lambda: "listens on" in tiny.log())
    with Commander(run_dir) as commander:
        commander.hear(object)
        commander.send(ReportStatus())
        status = commander.hear(Outcome, id="c1").status
        assert (status.phase, status.address) == ("starting", None)
        assert any(reason.startswith("not ready: ") for reason in status.reasons), status.reasons
        assert "serving" not in tiny.log()
        answer.write_text("302")
        tiny.url()
        until(lambda: ready(tiny)["health"] == "healthy")
        commander.send(ReportStatus(), "c2")
        assert commander.hear(Outcome, id="c2").status.address == f"http://127.0.0.1:{port}"
        answer.write_text("500")
        until(lambda: ready(tiny)["health"] == "unhealthy")
        assert ready(tiny)["reasons"] == [f"http: GET {url}: status 500"]
        answer.write_text("200")
        until(lambda: ready(tiny)["health"] == "healthy")


def test_healthy_by_command(start: Start, run_path: Path) -> None:
    """Exit code 0, or else the code and the last that it said."""
    (run_path / "well").touch()
    probe = f"sh -c 'echo looking >&2; cat {run_path}/well'"
    tiny = start("--exec", probe, "--period", "0.1", "--threshold", "1", "--", "sh", "-c", PATIENT)
    tiny.url()
    until(lambda: ready(tiny)["health"] == "healthy")
    (run_path / "well").unlink()
    until(lambda: ready(tiny)["health"] == "unhealthy")
    (reason,) = ready(tiny)["reasons"]
    assert reason.startswith("exec: exit code 1: looking cat: ")
    assert "No such file" in reason
    assert "looking\n" not in tiny.log()


def test_a_command_that_is_not_there(start: Start) -> None:
    """Never ready, with the reason."""
    tiny = start("--exec", "no-such-probe", "--", "sh", "-c", PATIENT)
    until(lambda: "listens on" in tiny.log())
    keeper_of(tiny)
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    assert "serving" not in tiny.log()


def test_a_probe_that_hangs_does_not_pile_up(start: Start, run_path: Path) -> None:
    """At most one is under way, those that hung are gone with their children, and the daemon ticks on."""
    count = run_path / "count"
    probe = f"sh -c 'if test -e {run_path}/hang; then echo >> {count}; sleep 3601 & sleep 3601; fi'"
    options = ("--exec", probe, "--period", "0.1", "--timeout", "0.2", "--threshold", "2")
    tiny = start(*options, "--", "sh", "-c", PATIENT)
    tiny.url()
    until(lambda: ready(tiny)["health"] == "healthy")
    (run_path / "hang").touch()
    until(lambda: count.exists() and count.read_text().count("\n") >= 5)
    assert ready(tiny)["health"] == "unhealthy"
    assert ready(tiny)["reasons"] == ["exec: no answer within 0.2 s"]

    def hanging() -> list[psutil.Process]:
        below = psutil.Process(tiny.pid).children(recursive=True)
        return [process for process in below if _words(process) == "sleep 3601"]

    assert len(hanging()) <= 4  # those of one probe, and of one that was killed this moment
    (run_path / "hang").unlink()
    until(lambda: ready(tiny)["health"] == "healthy")
    until(lambda: not hanging())


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
