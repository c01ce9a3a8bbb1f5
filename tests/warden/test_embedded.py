"""The warden and the embedded daemon together: each fault of a real service ends in a replacement and its reason."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from bus.messages import PostMortem, Restart
from bus.postmortems import read
from tests.support import ROOT, Supervisord, free_port, kill_tree, until
from tests.warden.programs import FakeAtlas

SERVICE = f"""
import re, sys, time
sys.path.insert(0, {str(ROOT)!r})
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from cdn_daemon import Service, long_call, run

async def hold(request):
    re.match("(a+)+$", "a" * 60 + "b")

async def block(request):
    time.sleep(1000)

async def declared(request):
    import ctypes
    with long_call(30):
        ctypes.PyDLL(None).usleep(2000000)
    return PlainTextResponse("done")

async def home(request):
    return PlainTextResponse("ok")

routes = [Route("/", home), Route("/hold", hold), Route("/block", block), Route("/declared", declared)]
if __name__ == "__main__":
    run(Service("faulty", app=Starlette(routes=routes), port=int(sys.argv[1])))
"""


def ask(port: int, path: str, *, wait: bool) -> bytes:
    """Send a request; its answer, if that is waited for."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        if not wait:
            return b""  # the request is read before the connection is found closed
        return b"".join(iter(lambda: connection.recv(4096), b""))


def faulty(run_dir: Path) -> tuple[dict[str, str], int]:
    """The service as a program, with what the README says of it and no more, and its port."""
    (run_dir / "faulty.py").write_text(SERVICE)
    port = free_port()
    command = f"{sys.executable} {run_dir}/faulty.py {port}"
    environment = 'CDN_LIMIT_LOOP_LAG_S="0.5:1"'
    return {"command": command, "type": "notify", "environment": environment}, port


def replaced(atlas: FakeAtlas, run_dir: Path, pid: int) -> PostMortem:
    until(lambda: atlas.row("faulty", "RUNNING").pid != pid, what="replaced")
    return read(run_dir / "postmortems", "faulty")[-1]


def test_a_held_interpreter(run_dir: Path, atlas: FakeAtlas) -> None:
    program, port = faulty(run_dir)
    with Supervisord(run_dir, {"faulty": program}):
        pid = atlas.row("faulty", "RUNNING").pid or 0
        ask(port, "/hold", wait=False)
        report = replaced(atlas, run_dir, pid)
        assert report.verdict.startswith("silent for ")
        assert "in hold" in report.log_tail + report.stacks
        assert ask(port, "/", wait=True).endswith(b"ok")


def test_a_blocked_loop_is_reported_by_the_daemon_itself_with_its_stacks(run_dir: Path, atlas: FakeAtlas) -> None:
    program, port = faulty(run_dir)
    with Supervisord(run_dir, {"faulty": program}):
        pid = atlas.row("faulty", "RUNNING").pid or 0
        ask(port, "/block", wait=False)
        report = replaced(atlas, run_dir, pid)
        assert report.verdict.startswith("asked for it: ")
        assert "loop" in report.verdict
        assert "in block" in report.stacks


def test_a_stopped_process(run_dir: Path, atlas: FakeAtlas) -> None:
    program, _ = faulty(run_dir)
    with Supervisord(run_dir, {"faulty": program}):
        pid = atlas.row("faulty", "RUNNING").pid or 0
        os.kill(pid, signal.SIGSTOP)
        assert "state T" in replaced(atlas, run_dir, pid).verdict


def test_declared_long_work_is_left_alone(run_dir: Path, atlas: FakeAtlas) -> None:
    program, port = faulty(run_dir)
    with Supervisord(run_dir, {"faulty": program}):
        pid = atlas.row("faulty", "RUNNING").pid
        assert ask(port, "/declared", wait=True).endswith(b"done")
        assert atlas.row("faulty", "RUNNING").pid == pid


def test_restarts_that_an_operator_orders_are_no_crashes(run_dir: Path, atlas: FakeAtlas) -> None:
    """Told so by the real daemon, as often as the budget allows starts, and once more."""
    program, _ = faulty(run_dir)
    with Supervisord(run_dir, {"faulty": program | {"restart_budget": "1"}}):
        for many in (1, 2):
            pid = atlas.row("faulty", "RUNNING").pid
            atlas.said.clear()
            atlas.send(Restart(), target="faulty")
            until(lambda before=pid: atlas.row("faulty", "RUNNING").pid != before, what="restarted")  # type: ignore[misc]
            assert atlas.row("faulty").restarts == many
        assert "BACKOFF" not in {row.state for status in atlas.statuses for row in status.processes}
        assert read(run_dir / "postmortems", "faulty")[-1].ordered_by == "tester"


@pytest.mark.faults
@pytest.mark.parametrize("value", ["public", "-1"])
def test_a_wrong_setting_stays_down_with_its_reason(run_dir: Path, atlas: FakeAtlas, value: str) -> None:
    program, _ = faulty(run_dir)
    program["environment"] = f'CDN_PORT="{value}"'
    with Supervisord(run_dir, {"faulty": program}):
        row = atlas.row("faulty", "EXITED")
        assert row.reason.startswith(f"configuration error (78): cannot use CDN_PORT={value}")


def test_after_the_death_of_supervisord_its_successor_has_the_fleet_whole_and_no_second_copy(
    run_dir: Path, atlas: FakeAtlas
) -> None:
    program, port = faulty(run_dir)
    fleet = Supervisord(run_dir, {"faulty": program})
    fleet.start()
    orphan = psutil.Process(atlas.row("faulty", "RUNNING").pid or 0)
    try:
        assert fleet.process is not None
        fleet.process.kill()
        fleet.process.wait()
        assert ask(port, "/", wait=True).endswith(b"ok")
        with fleet:
            until(lambda: atlas.row("faulty", "RUNNING").pid != orphan.pid, what="the successor's own")
            assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
            assert atlas.statuses[-1].incarnation == 2
            assert atlas.row("faulty").restarts == 0
            assert ask(port, "/", wait=True).endswith(b"ok")
    finally:
        kill_tree(orphan.pid)
