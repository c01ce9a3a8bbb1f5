"""ATLAS is silent: cdnctl goes through supervisord, a real one with plain programs, and says so."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from bus.endpoints import RunDir, host_name
from bus.messages import OrderRequest
from cli import fallback
from cli.exits import Exit
from tests.cli.fake_atlas import FakeAtlas
from tests.cli.support import CDNCTL, cdnctl, outcomes_of, services_of, view
from tests.support import Supervisord, environment, until

SLEEP = "sleep 1000"
STUBBORN = "sh -c 'trap \"\" TERM; echo deaf; while :; do sleep 0.05; done'"
PROGRAMS = {
    "sleeper": {"command": SLEEP},
    "stubborn": {"command": STUBBORN, "stopwaitsecs": "1", "killasgroup": "true"},
    "once": {"command": "sh -c 'exit 78'"},
    "failing": {"command": "sh -c 'exit 3'", "autostart": "false", "startsecs": "1", "startretries": "1"},
    "missing": {"command": "/nonexistent/program", "autostart": "false", "startretries": "0"},
    "idle": {"command": SLEEP, "autostart": "false"},
}
SILENT = "no answer from ATLAS within 1.0 s; asking supervisord"


@pytest.fixture
def fleet(run_dir: RunDir) -> Iterator[Supervisord]:
    """A stock supervisord: no warden, no ATLAS."""
    with Supervisord(run_dir.path, PROGRAMS, warden=False) as fleet:
        until(lambda: fleet.states()["once"] == "EXITED")
        until(lambda: "deaf" in fleet.log("stubborn"))
        yield fleet


def test_status_is_supervisords(fleet: Supervisord) -> None:
    """Its states, pids and reasons; what it does not know is null; stderr says who was asked."""
    done = cdnctl(fleet.run_dir, "status", "--json")
    services = services_of(done)
    assert done.stderr == f"cdnctl: {SILENT}\n"  # and not that it cannot show what it then shows
    assert done.returncode == Exit.NOT_WELL
    assert {name: service["state"] for name, service in services.items()} == fleet.states()
    assert services["sleeper"]["pid"] == fleet.pid("sleeper")
    assert services["once"]["reason"] == "its configuration is wrong (exit code 78)"
    for unknown in ("restarts", "seen_s", "rss_bytes", "incarnation", "phase"):
        assert services["sleeper"][unknown] is None
    assert cdnctl(fleet.run_dir, "status", "sleeper").returncode == Exit.OK
    assert cdnctl(fleet.run_dir, "status", "nope").returncode == Exit.UNKNOWN


def test_start_stop_and_restart(fleet: Supervisord) -> None:
    """Each is followed to its outcome, and each is said to go through supervisord."""
    before = fleet.pid("sleeper")
    restarted = cdnctl(fleet.run_dir, "restart", "sleeper", "idle")
    assert restarted.returncode == Exit.OK, restarted.stderr
    assert restarted.stderr == f"cdnctl: {SILENT}\n"
    assert "sleeper restarted in" in restarted.stdout
    assert fleet.pid("sleeper") not in (0, before)
    assert fleet.states()["idle"] == "RUNNING"  # a stopped one is started

    stopped = cdnctl(fleet.run_dir, "stop", "s*er", "--json")
    assert stopped.returncode == Exit.OK
    assert outcomes_of(stopped)["sleeper"]["outcome"] == "done"
    assert fleet.states()["sleeper"] == "STOPPED"
    assert "sleeper already stopped" in cdnctl(fleet.run_dir, "stop", "sleeper").stdout

    assert cdnctl(fleet.run_dir, "start", "sleeper", "--no-wait").returncode == Exit.OK
    until(lambda: fleet.states()["sleeper"] == "RUNNING")
    assert "sleeper already running" in cdnctl(fleet.run_dir, "start", "sleeper").stdout


def test_a_partial_failure_is_a_failure(fleet: Supervisord) -> None:
    """One starts, one has no executable, one ends at once: each is told, exit code 1."""
    done = cdnctl(fleet.run_dir, "start", "idle", "missing", "failing", "--json")
    assert done.returncode == Exit.FAILED
    outcomes = outcomes_of(done)
    assert outcomes["idle"]["outcome"] == "done"
    assert outcomes["missing"]["outcome"] == "failed"
    assert "/nonexistent/program" in outcomes["missing"]["reason"]
    assert outcomes["failing"]["outcome"] == "failed"


def test_what_does_not_end_in_time_times_out(fleet: Supervisord) -> None:
    """124, and the state that it is in; it is not forgotten by supervisord, which kills it."""
    done = cdnctl(fleet.run_dir, "stop", "stubborn", "--timeout", "200ms")
    assert done.returncode == Exit.TIMED_OUT
    assert "still STOPPING" in done.stdout
    until(lambda: fleet.states()["stubborn"] == "STOPPED")


def test_an_interrupted_restart_says_what_may_stay_down(fleet: Supervisord) -> None:
    """supervisord has no restart: after Ctrl-C between stop and start nobody starts it."""
    with subprocess.Popen(
        [str(CDNCTL), "restart", "stubborn"],
        env=environment(fleet.run_dir),
        cwd=fleet.run_dir,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as restart:
        asked = fallback.Supervisord(RunDir(fleet.run_dir))  # supervisorctl may take longer than STOPPING lasts
        until(lambda: {each.name: each.state for each in asked.processes()}["stubborn"] == "STOPPING", every_s=0.005)
        restart.send_signal(signal.SIGINT)
        _, said = restart.communicate()
    assert restart.returncode == Exit.INTERRUPTED
    assert "stubborn may stay down; start it: cdnctl start stubborn" in said


def test_a_frozen_supervisord_is_told(fleet: Supervisord) -> None:
    """Nothing hangs; the message names the pid and what to do."""
    assert fleet.process is not None
    pid = fleet.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        status = cdnctl(fleet.run_dir, "status")
        stop = cdnctl(fleet.run_dir, "stop", "sleeper")
        down = cdnctl(fleet.run_dir, "down")
        up = cdnctl(fleet.run_dir, "up", "-c", str(fleet.conf))
        logs = cdnctl(fleet.run_dir, "logs", "stubborn")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (status.returncode, stop.returncode) == (Exit.UNKNOWN, Exit.FAILED)
    assert (down.returncode, up.returncode) == (Exit.FAILED, Exit.FAILED)
    for done in (status, stop, down):
        assert f"kill -CONT {pid}" in done.stderr
    assert logs.returncode == Exit.OK
    assert logs.stdout == "deaf\n"


def test_no_fleet(run_dir: RunDir) -> None:
    """Status cannot be obtained; actions fail; both say how to start one."""
    for arguments, code in (
        (["status"], Exit.UNKNOWN),
        (["events"], Exit.UNKNOWN),
        (["logs", "x"], Exit.UNKNOWN),
        (["stop", "x"], Exit.FAILED),
        (["restart", "x"], Exit.FAILED),
    ):
        done = cdnctl(run_dir.path, *arguments)
        assert done.returncode == code, arguments
        assert f"no fleet runs in {run_dir.path}; start it: cdnctl up" in done.stderr
        assert done.stdout == ""
    down = cdnctl(run_dir.path, "down")
    assert down.returncode == Exit.OK
    assert "already down" in down.stderr


def test_logs(fleet: Supervisord) -> None:
    """By glob, with the name in front if there are several; unknown names are 4."""
    (fleet.run_dir / "sleeper.log").write_text("".join(f"line {n}\n" for n in range(100)))
    assert cdnctl(fleet.run_dir, "logs", "sleeper", "-n", "2").stdout == "line 98\nline 99\n"
    assert len(cdnctl(fleet.run_dir, "logs", "sleeper").stdout.splitlines()) == 20
    both = cdnctl(fleet.run_dir, "logs", "s*", "-n", "1")
    assert both.stdout.splitlines() == ["sleeper  | line 99", "stubborn | deaf"]
    assert cdnctl(fleet.run_dir, "logs", "s*", "-n", "1", "--json").stdout.splitlines() == [
        '{"name":"sleeper","line":"line 99"}',
        '{"name":"stubborn","line":"deaf"}',
    ]
    every = cdnctl(fleet.run_dir, "logs", "-n", "1")
    assert set(both.stdout.splitlines()) <= set(every.stdout.splitlines()), every
    assert "idle has written no log yet" in every.stderr
    assert cdnctl(fleet.run_dir, "logs", "nope").returncode == Exit.UNKNOWN
    nothing_yet = cdnctl(fleet.run_dir, "logs", "idle")
    assert (nothing_yet.returncode, nothing_yet.stdout) == (Exit.OK, "")


def test_logs_are_followed_across_restarts_and_rotation(run_dir: RunDir) -> None:
    """supervisord itself rotates here: every line comes once, in order."""
    counting = "sh -c 'n=0; while :; do n=$((n+1)); echo number $n; sleep 0.01; done'"
    program = {"command": counting, "stdout_logfile_maxbytes": "500", "stdout_logfile_backups": "50"}
    with Supervisord(run_dir.path, {"counter": program}, warden=False) as fleet:
        with subprocess.Popen(
            [str(CDNCTL), "logs", "-f", "counter", "-n", "1000"],
            env=environment(run_dir.path),
            cwd=run_dir.path,
            stdout=subprocess.PIPE,
            text=True,
        ) as follower:
            assert follower.stdout is not None
            seen = [int(follower.stdout.readline().split()[1]) for _ in range(150)]
            follower.send_signal(signal.SIGINT)
            follower.stdout.read()
        assert follower.returncode == Exit.INTERRUPTED
        assert (fleet.run_dir / "counter.log.1").exists()
        assert seen == list(range(seen[0], seen[0] + 150))


def be_bound_by_modes() -> None:
    """Root, too, may then do only what a file's mode lets it: no CAP_DAC_OVERRIDE, no CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; refused to others, who need it not


HERE = [view("atlas", uptime_s=100.0, host=host_name()), view("web", host=host_name())]


def test_what_only_supervisord_knows_is_in_the_status(fleet: Supervisord) -> None:
    """ATLAS answers, and has no table of this host: its programs are listed and counted, and orders reach them."""
    with FakeAtlas(RunDir(fleet.run_dir), HERE) as atlas:
        done = cdnctl(fleet.run_dir, "status", "--json")
        table = cdnctl(fleet.run_dir, "status")
        restart = cdnctl(fleet.run_dir, "restart", "sleeper", "--json")
        no_wait = cdnctl(fleet.run_dir, "start", "web", "idle", "--no-wait", "--json")
        orders = [request for request in atlas.requests if isinstance(request, OrderRequest)]
    assert (done.returncode, done.stderr) == (Exit.NOT_WELL, "")  # some of its programs are not running
    assert services_of(done).keys() == {"atlas", "web", *PROGRAMS}
    assert table.stdout.splitlines()[-1].startswith("4 running, ")
    assert outcomes_of(restart)["sleeper"]["outcome"] == "done"
    assert [order.names for order in orders] == [("web",)]
    assert no_wait.returncode == Exit.OK, no_wait.stderr
    until(lambda: fleet.states()["idle"] == "RUNNING")


def test_nobody_supervises(run_dir: RunDir) -> None:
    """Services live on after their supervisord: status says so, and nothing is told to end that nobody would start."""
    with FakeAtlas(run_dir, [*HERE, view("far")]) as atlas:
        status = cdnctl(run_dir.path, "status")
        far = cdnctl(run_dir.path, "status", "far")
        orders = [cdnctl(run_dir.path, verb, "web") for verb in ("restart", "stop", "start")]
        assert not any(isinstance(request, OrderRequest) for request in atlas.requests)
        assert cdnctl(run_dir.path, "restart", "far").returncode == Exit.OK
    said = f"no supervisord runs in {run_dir.path}, so that what ends is not started again; start it: cdnctl up"
    assert status.returncode == Exit.NOT_WELL
    assert status.stderr == f"cdnctl: {said}\n"
    assert status.stdout.splitlines()[-1] == "3 running"
    assert (far.returncode, far.stderr) == (Exit.OK, "")
    for verb, order in zip(("restart", "stop", "start"), orders, strict=True):
        assert order.returncode == Exit.FAILED
        assert order.stderr == f"cdnctl: cannot {verb} web: {said}\n"


def test_a_supervisord_that_cannot_be_asked(fleet: Supervisord) -> None:
    """Frozen, or without its socket: the status of ATLAS is shown, and exit 3 says that it is not the whole truth."""
    assert fleet.process is not None
    pid = fleet.process.pid
    with FakeAtlas(RunDir(fleet.run_dir), HERE):
        os.kill(pid, signal.SIGSTOP)
        try:
            frozen = cdnctl(fleet.run_dir, "status")
        finally:
            os.kill(pid, signal.SIGCONT)
        (fleet.run_dir / "supervisor.sock").unlink()
        deaf = cdnctl(fleet.run_dir, "status")
        order = cdnctl(fleet.run_dir, "restart", "web")
    assert (frozen.returncode, deaf.returncode) == (Exit.NOT_WELL, Exit.NOT_WELL)
    assert f"kill -CONT {pid}" in frozen.stderr
    assert f"supervisord {pid} runs, but does not listen" in deaf.stderr
    assert order.returncode == Exit.OK  # its warden may be reached by ATLAS
    assert frozen.stdout.splitlines()[-1] == "2 running"


@pytest.mark.parametrize("said", ["", "<", "<html>", "<methodResponse/>", "\0", "<params><param><value><int>x"])
def test_who_is_no_supervisord(run_dir: RunDir, said: str) -> None:
    """Whatever listens there and answers something else: it is said, in place of a traceback."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir.supervisor))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while b"</methodCall>" not in asked:  # closed before all is read, it would be asked again
                    asked += connection.recv(65536)
                head = f"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {len(said)}\r\n\r\n"
                connection.sendall((head + said).encode())

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(fallback.SupervisordSilent, match=r"does not answer as supervisord does|broke off"):
            fallback.Supervisord(run_dir, timeout_s=30).version()
        thread.join()


@pytest.mark.parametrize("mode", [0o000, 0o755])
def test_the_fleet_of_another_user(run_dir: RunDir, mode: int) -> None:
    """One line that says so, whether the directory or only the sockets in it are closed; nothing is done."""
    with Supervisord(run_dir.path, {"sleeper": {"command": SLEEP}}, warden=False) as fleet:
        pid = fleet.pid("sleeper")
        for path in (run_dir.supervisor, run_dir.path / "locks"):
            path.chmod(0o000)
        (run_dir.path / "sleeper.log").chmod(0o000)
        run_dir.path.chmod(mode)
        try:
            for arguments, code in (
                (["status"], Exit.UNKNOWN),
                (["status", "--json"], Exit.UNKNOWN),
                (["events"], Exit.UNKNOWN),
                (["events", "-f"], Exit.UNKNOWN),
                (["logs", "sleeper"], Exit.UNKNOWN),
                (["start", "sleeper"], Exit.FAILED),
                (["stop", "sleeper"], Exit.FAILED),
                (["restart", "sleeper"], Exit.FAILED),
                (["down"], Exit.FAILED),
            ):
                done = subprocess.run(
                    [str(CDNCTL), *arguments],
                    env=environment(run_dir.path, HOME="/"),
                    cwd="/",
                    capture_output=True,
                    text=True,
                    preexec_fn=be_bound_by_modes,
                )
                assert done.returncode == code, (arguments, done.stderr)
                assert "Traceback" not in done.stderr
                assert len(done.stderr.splitlines()) <= 2, (arguments, done.stderr)
                assert done.stdout == ""
        finally:
            run_dir.path.chmod(0o700)
            run_dir.supervisor.chmod(0o700)
            (run_dir.path / "locks").chmod(0o700)
        assert fleet.pid("sleeper") == pid
