"""A WSGI application is a service like any other."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from http.client import IncompleteRead
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support import ServiceProcess, until


@pytest.fixture
def tiny(run_path: Path) -> Iterator[ServiceProcess]:
    """The application of wsgi_tiny, on two threads."""
    with ServiceProcess(run_path, "-m", "tests.cdn_daemon.wsgi_tiny") as process:
        process.url()
        yield process


def ready(tiny: ServiceProcess) -> dict[str, Any]:
    """Answer of /readyz."""
    return dict(json.loads(tiny.get("/readyz")[1]))


def port_of(tiny: ServiceProcess) -> int:
    """Where it listens."""
    return int(tiny.url().rpartition(":")[2])


def test_it_answers(tiny: ServiceProcess) -> None:
    """The application's paths are its own, the framework's answer beside them."""
    assert tiny.get("/nothing/h%C3%A4") == (404, "/nothing/hä".encode())
    until(lambda: ready(tiny)["health"] == "healthy")
    assert tiny.get("/livez")[0] == 200
    assert b"cdn_service_ready" in tiny.get("/metrics")[1]


def test_the_environ(tiny: ServiceProcess) -> None:
    """As PEP 3333 has it; headers that come twice are joined, and those with underscores are not believed."""
    with socket.create_connection(("127.0.0.1", port_of(tiny)), timeout=30) as client:
        client.sendall(
            b"GET /environ?a=%20b HTTP/1.1\r\nHost: h:1\r\nX-Colour: red\r\nX-Colour: blue\r\nX_Colour: black\r\n"
            b"Cookie: a=1\r\nCookie: b=2\r\nConnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    environ = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])  # it comes in chunks
    assert b"x-thread: wsgi_" in answer
    assert (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("GET", "/environ", "a=%20b")
    assert (environ["HTTP_HOST"], environ["HTTP_X_COLOUR"], environ["HTTP_COOKIE"]) == ("h:1", "red,blue", "a=1; b=2")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("127.0.0.1", str(port_of(tiny)))
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["SCRIPT_NAME"]) == ("127.0.0.1", "http", "")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_bodies(tiny: ServiceProcess, size: int) -> None:
    """Of any size, whole."""
    body = os.urandom(size)
    assert tiny.get("/echo", data=body) == (201, body)


def test_ways_to_read_and_to_answer(tiny: ServiceProcess) -> None:
    """By lines, by write(), with empty pieces, with a second thought, and without a body."""
    assert tiny.get("/lines", data=b"one\ntwo\nthree") == (200, b"3 b'one\\n'")
    assert tiny.get("/write") == (200, b"written, returned")
    assert tiny.get("/changed") == (409, b"conflict")
    assert tiny.get("/errors") == (204, b"")
    assert "an error of the application" in tiny.log()
    head = urllib.request.Request(f"{tiny.url()}/environ", method="HEAD")
    with urllib.request.urlopen(head, timeout=30) as answer:
        assert (answer.status, answer.read()) == (200, b"")


@pytest.mark.parametrize("path", ["/raise", "/silent"])
def test_broken_applications(tiny: ServiceProcess, path: str) -> None:
    """A fault is a 500 and in the log, and costs nobody else anything."""
    assert tiny.get(path)[0] == 500
    assert "Traceback" in tiny.log()
    assert tiny.get("/x")[0] == 404


def test_an_answer_that_breaks_off(tiny: ServiceProcess) -> None:
    """Is cut off, so that nobody takes it for whole."""
    with pytest.raises((IncompleteRead, OSError)):
        tiny.get("/half")
    assert "the other half is missing" in tiny.log()


def test_a_body_that_breaks_off_is_not_taken_for_whole(tiny: ServiceProcess) -> None:
    """Reading it raises; nothing is answered, and the thread is free again."""
    for _ in range(4):  # twice as many as there are threads
        with socket.create_connection(("127.0.0.1", port_of(tiny)), timeout=30) as client:
            client.sendall(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nonly this")
    assert tiny.get("/echo", data=b"whole") == (201, b"whole")
    assert "Traceback" not in tiny.log()


def test_a_client_that_leaves(tiny: ServiceProcess) -> None:
    """An answer without end ends with its client, and its close() is called."""
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", port_of(tiny)), timeout=30) as client:
            client.sendall(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n")
            assert b"more" in client.recv(65536) + client.recv(65536)
    until(lambda: tiny.log().count("closed /endless") == 4)
    assert tiny.get("/x")[0] == 404


def test_busy_threads_are_told(tiny: ServiceProcess) -> None:
    """All of them busy for 5 s: degraded, as the loop's own pulse cannot see it; and well again afterwards."""
    until(lambda: ready(tiny)["health"] == "healthy")
    sleepers = [Thread(target=lambda: tiny.get("/sleep?s=12")) for _ in range(2)]
    for sleeper in sleepers:
        sleeper.start()
    until(lambda: any("wsgi_threads" in reason for reason in ready(tiny)["reasons"]))
    for sleeper in sleepers:
        sleeper.join()
    until(lambda: ready(tiny)["health"] == "healthy")


def test_it_drains(tiny: ServiceProcess) -> None:
    """What is in flight is answered, then it ends with 0."""
    answers: list[tuple[int, bytes]] = []
    thread = Thread(target=lambda: answers.append(tiny.get("/sleep?s=1.5")))
    thread.start()
    until(lambda: b'in_flight{service="tiny",instance_id="tiny"} 1' in tiny.get("/metrics")[1])
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    thread.join()
    assert answers == [(200, b"slept")]
