"""A plain function is a service like any other, with the main thread to itself."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bus.endpoints import RunDir
from bus.messages import Outcome, ReportStatus, Restart
from tests.cdn_daemon.test_commands import Commander
from tests.support import ServiceProcess, until

Spawn = Callable[..., ServiceProcess]


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Spawn:
    """Starts plain services, and ends them afterwards."""

    def start(**env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, "-m", "tests.cdn_daemon.plain_tiny", **env)
        request.addfinalizer(process.stop)
        return process

    return start


def ready(tiny: ServiceProcess) -> dict[str, Any]:
    """Answer of /readyz."""
    return dict(json.loads(tiny.get("/readyz")[1]))


def answer(url: str) -> bytes:
    """Body of the answer, whatever its status."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        return error.read()


@pytest.mark.parametrize(
    ("number", "plain"), [(signal.SIGTERM, ""), (signal.SIGINT, ""), (signal.SIGTERM, "loop"), (signal.SIGINT, "loop")]
)
def test_it_runs_and_stops(spawn: Spawn, number: int, plain: str) -> None:
    """On the main thread, where it may run a loop; told to end, its event is set, and it ends with 0 on returning."""
    tiny = spawn(PLAIN=plain)
    until(lambda: tiny.get("/readyz")[0] == 200 and ready(tiny)["health"] == "healthy")
    assert "function on MainThread" in tiny.log()
    assert tiny.get("/nothing")[0] == 404
    os.kill(tiny.pid, number)
    assert tiny.wait() == 0
    assert "function returns" in tiny.log()
    assert "putting away within 5 s" in tiny.log()


@pytest.mark.parametrize(
    ("plain", "code", "text"),
    [
        ("return", 0, "the service's main function has returned"),
        ("raise", 70, "RuntimeError: the function is broken"),
        ("misconfigured", 78, "cannot find the colour: set PLAIN_COLOUR"),
        ("exit", 3, "ended with sys.exit(3)"),
        ("exit text", 1, "ended with sys.exit('that is the end')"),
    ],
)
def test_it_says_why_it_ends(spawn: Spawn, plain: str, code: int, text: str) -> None:
    """To return is to have done its work; what it raises decides the exit code."""
    tiny = spawn(PLAIN=plain)
    assert tiny.wait() == code
    assert text in tiny.log()


def test_a_deaf_function_is_cut_off(spawn: Spawn) -> None:
    """One that does not look at its event is told all the same, and ended at the deadline."""
    tiny = spawn(PLAIN="deaf", CDN_DRAIN_S="0.5")
    tiny.url()
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    assert "the drain's deadline is over" in tiny.log()


def test_a_second_sigterm_does_not_wait(spawn: Spawn) -> None:
    """Told twice, it ends at once."""
    tiny = spawn(PLAIN="deaf", CDN_DRAIN_S="3600")
    tiny.url()
    os.kill(tiny.pid, signal.SIGTERM)
    until(lambda: "draining" in tiny.log())
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0


def test_commands_and_status(spawn: Spawn, run_dir: RunDir) -> None:
    """It reports and obeys; nobody is sent to it, as it serves nothing."""
    tiny = spawn(SUPERVISOR_ENABLED="1")
    tiny.url()
    with Commander(run_dir) as commander:
        commander.hear(object)
        commander.send(ReportStatus())
        status = commander.hear(Outcome, id="c1").status
        assert (status.phase, status.address) == ("serving", None)
        commander.send(Restart(), "c2")
        assert tiny.wait() == 75
        assert "function returns" in tiny.log()


def test_ready_when_it_says_so(spawn: Spawn, run_path: Path) -> None:
    """Until then it is starting, unready, alive, and says why."""
    tiny = spawn(PLAIN="cold")
    until(lambda: "listens on" in tiny.log())
    url = "http://127.0.0.1:" + tiny.log().split(" port ")[1].split()[0]
    until(lambda: b"not ready: the cache is cold" in answer(f"{url}/readyz"))
    assert b'"alive":true' in answer(f"{url}/livez")
    assert "serving" not in tiny.log()
    (run_path / "warm").touch()
    tiny.url()
    until(lambda: ready(tiny)["health"] == "healthy")


def test_a_drain_that_fails(spawn: Spawn) -> None:
    """Is said, and ends the process as usual."""
    tiny = spawn(PLAIN="untidy")
    tiny.url()
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    assert "RuntimeError: it does not fit" in tiny.log()
    assert "function returns" in tiny.log()
