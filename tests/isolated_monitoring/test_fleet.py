"""The monitor beside a real fleet: what it finds, what it tells, and what it does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

from tests.isolated_monitoring.support import NAME, Client, client_of, opened, write_config
from tests.support import Supervisord, is_running, kill_tree, until

FLEET = {
    NAME: {"command": "python -m services.isolated_monitoring", "priority": "1"},
    "atlas": {"command": "python -m services.atlas", "priority": "10"},
    "cdn-data-fabric": {"command": "python -m services.data_fabric", "priority": "20"},
}
SUPERVISORD = "supervisord"
BLOCKING = """
import socket, time
from starlette.applications import Starlette
from starlette.routing import Route
from cdn_daemon import Service, run

other = socket.create_server(("127.0.0.1", 0))  # it does not speak HTTP, and comes first

async def block(request):
    time.sleep(1000)

run(Service("mute", app=Starlette(routes=[Route("/block", block)]), port=0))
"""
PATIENT = 'CDN_LIMIT_LOOP_LAG_S="100:200"'
"""On a busy machine the monitor takes longer than the limit that a service has by default."""
BUS = {"bus telemetry", "bus feed", "bus agents", "bus operators"}


def test_atlas_and_the_bus_are_killed(run_path: Path) -> None:
    """One alert, naming ATLAS and the bus; ordered restarts and stops are none."""
    write_config(run_path)
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        client = client_of(run_path, run_path / f"{NAME}.log")
        everyone = {"atlas", "cdn-data-fabric", "supervisord", *BUS}
        until(lambda: {name for name, how in client.conditions().items() if how == "up"} == everyone, what="all is up")

        supervisord.ctl("restart", "cdn-data-fabric")
        supervisord.ctl("restart", "atlas")
        supervisord.ctl("stop", "cdn-data-fabric")
        until(lambda: client.conditions()["cdn-data-fabric"] == "stopped", what="the stop is seen")
        until(lambda: client.conditions()["atlas"] == "up", what="ATLAS is seen again")
        assert not opened(run_path)

        os.kill(supervisord.pid("atlas"), signal.SIGKILL)
        (alert,) = until(lambda: opened(run_path), what="the alert")
        assert alert["root"] == "atlas"
        assert "SIGKILL" in alert["reason"]
        assert set(alert["consequences"]) == BUS
        assert alert["lasted_s"] < 3
        until(lambda: client.conditions()["atlas"] == "up", what="ATLAS is seen again")
        until(lambda: not client.get("/api/status").json["incidents"], what="the incident is over")
        assert len(opened(run_path)) == 1


def fleet(**programs: dict[str, str]) -> dict[str, dict[str, str]]:
    """The monitor beside these programs."""
    return {NAME: FLEET[NAME], **programs}


def up(client: Client, *names: str) -> None:
    """Wait until they are seen to be up."""
    until(lambda: all(client.conditions().get(name) == "up" for name in names), what=f"{names} are up")


def over(client: Client) -> None:
    """Wait until nothing is open."""
    until(lambda: not client.get("/api/status").json["incidents"], what="all incidents are over")


def test_started_first_stopped_last(run_path: Path) -> None:
    """It sees the others begin and end."""
    write_config(run_path)
    programs = {"cdn-data-fabric": FLEET["cdn-data-fabric"], **fleet()}
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}) as supervisord:
        until(lambda: supervisord.states() == {NAME: "RUNNING", "cdn-data-fabric": "RUNNING"}, what="both run")
        supervisord.stop()
        log = supervisord.log()
    assert log.index(f"spawned: '{NAME}'") < log.index("spawned: 'cdn-data-fabric'")
    assert log.index("stopped: cdn-data-fabric") < log.index(f"stopped: {NAME}")
    assert not opened(run_path)


def test_crashes(run_path: Path) -> None:
    """A crash loop is one alert; so is what a signal stops, or what does not answer though it lives."""
    (run_path / "mute.py").write_text(BLOCKING)
    programs = fleet(
        looping={"command": "sh -c 'sleep 0.3; exit 3'", "restart_budget": "2"},
        frozen={"command": "sleep 1000"},
        mute={"command": f"python {run_path}/mute.py", "type": "notify", "environment": PATIENT},
    )
    write_config(run_path)
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}) as supervisord:
        client = client_of(run_path, run_path / f"{NAME}.log")
        up(client, "frozen", "mute")
        until(lambda: client.targets()["mute"]["round_trip_ms"], what="its port is found")
        os.kill(supervisord.pid("frozen"), signal.SIGSTOP)
        host, port = client.targets()["mute"]["address"].split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
            everyone = {"looping", "frozen", "mute"}
            until(lambda: {each["root"] for each in opened(run_path)} == everyone, within_s=90, what="all are told")
        until(lambda: supervisord.states()["looping"] == "FATAL", what="it is quarantined")
        reasons = {each["root"]: each["reason"] for each in opened(run_path)}
        assert "3" in reasons["looping"]
        assert "state T" in reasons["frozen"]
        assert "no answer within" in reasons["mute"]
        os.kill(supervisord.pid("frozen"), signal.SIGCONT)
        up(client, "frozen")
        assert len(opened(run_path)) == 3
        os.kill(supervisord.pid("mute"), signal.SIGKILL)  # it would not hear that it is to end


def test_supervisord_is_frozen_and_killed(run_path: Path) -> None:
    """One alert each, naming supervisord; its successor's monitor takes the incident over and tells nothing twice."""
    programs = fleet(other={"command": "sleep 1000"})
    write_config(run_path)
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}) as supervisord:
        assert supervisord.process is not None
        client = client_of(run_path, run_path / f"{NAME}.log")
        up(client, "other", SUPERVISORD)
        supervisord.process.send_signal(signal.SIGSTOP)
        until(lambda: [each["root"] for each in opened(run_path)] == [SUPERVISORD], what="the freeze is told")
        supervisord.process.send_signal(signal.SIGCONT)
        over(client)
        first = client.get("/api/status").json["targets"]
        left = [each["pid"] for each in first if each["name"] == "other"]
        monitor = supervisord.pid(NAME)
        try:
            supervisord.process.kill()
            supervisord.process.wait()
            until(lambda: len(opened(run_path)) == 2, what="the death is told")
            assert opened(run_path)[1]["root"] == SUPERVISORD
            os.kill(left[0], signal.SIGKILL)
            until(lambda: client.conditions()["other"] == "down", what="it is seen")
            supervisord.start()
            until(lambda: supervisord.pid(NAME) not in (0, monitor), what="another monitor")
            until(lambda: not is_running(monitor), what="the old one has ended")
            client = client_of(run_path, run_path / f"{NAME}.log")
            up(client, "other", SUPERVISORD)
            over(client)
            assert [each["root"] for each in opened(run_path)] == [SUPERVISORD] * 2
        finally:
            for pid in (*left, monitor):
                kill_tree(pid)


def test_without_a_warden(run_path: Path) -> None:
    """Beside stock supervisord it watches all the same: orders are none, a crash is one."""
    programs = fleet(other={"command": "sleep 1000"})
    write_config(run_path)
    with Supervisord(run_path, programs, warden=False, env={"CDN_PORT": "0"}) as supervisord:
        client = client_of(run_path, run_path / f"{NAME}.log")
        up(client, "other", SUPERVISORD)
        supervisord.ctl("restart", "other")
        up(client, "other")
        supervisord.ctl("stop", "other")
        until(lambda: client.conditions()["other"] == "stopped", what="the stop is seen")
        assert not opened(run_path)
        supervisord.ctl("start", "other")
        up(client, "other")
        os.kill(supervisord.pid("other"), signal.SIGKILL)
        until(lambda: [each["root"] for each in opened(run_path)] == ["other"], what="the crash is told")


def test_the_wardens_maintenance(run_path: Path) -> None:
    """Who works on a program has told the warden, and need not tell the monitor."""
    programs = fleet(other={"command": "sleep 1000"})
    write_config(run_path)
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}) as supervisord:
        client = client_of(run_path, run_path / f"{NAME}.log")
        up(client, "other")
        assert _maintain(supervisord)
        until(lambda: client.targets()["other"]["maintenance"], what="it is known")
        pid = supervisord.pid("other")
        os.kill(pid, signal.SIGKILL)
        until(lambda: supervisord.pid("other") not in (0, pid), what="it is started again")
        up(client, "other")
        assert not opened(run_path)


def _maintain(supervisord: Supervisord) -> bool:
    """cdn.setMaintenance, as supervisorctl of the test's own configuration has no plugin."""
    body = (
        "<methodCall><methodName>cdn.setMaintenance</methodName><params><param><string>other</string></param>"
        "<param><boolean>1</boolean></param><param><double>600</double></param></params></methodCall>"
    )
    command = ["curl", "-fsS", "--unix-socket", str(supervisord.run_dir / "supervisor.sock"), "http://localhost/RPC2"]
    return subprocess.run([*command, "-H", "Content-Type: text/xml", "-d", body], timeout=30).returncode == 0
