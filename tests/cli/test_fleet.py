"""The whole fleet as the project ships it: supervisord.conf, ATLAS, the services, and every verb of cdnctl."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bus.endpoints import RunDir
from cli.exits import Exit
from tests.cli.support import CDNCTL, cdnctl, ended_afterwards, fleet_copy, outcomes_of, services_of
from tests.cli.test_terminal import terminal
from tests.support import BIN, environment, is_running, short_dir, until

NAMES = ("atlas", "cdn-data-fabric", "gateway-primary")
CHOOSE: dict[str, str | None] = {"CDN_RUN_DIR": None, "CDN_PORT": "0"}
SLOW = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {rows}) SELECT count(*) AS n FROM c"


class Fleet:
    """A fleet of its own, in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run_dir = home / "run"
        self.conf = fleet_copy(home)

    def cdnctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As an operator in that directory."""
        return cdnctl(self.home, *arguments, cwd=self.home, env=CHOOSE)

    def supervisorctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The stock one, by its full path: no environment is activated."""
        return subprocess.run(
            [str(BIN / "supervisorctl"), "-c", "supervisord.conf", *arguments],
            cwd=self.home,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def environment(self) -> dict[str, str]:
        """No run directory, free ports, and nothing of a virtual environment."""
        clean = {
            key: value for key, value in environment(self.home).items() if key not in ("CDN_RUN_DIR", "PYTHONPATH")
        }
        return clean | {"CDN_PORT": "0", "PATH": "/usr/local/bin:/usr/bin:/bin"}

    def service(self, name: str) -> dict[str, Any]:
        """Its line of the status."""
        return services_of(self.cdnctl("status", "--json", name))[name]

    def healthy(self, name: str) -> dict[str, Any]:
        """Its line of the status, once it is well."""

        def look() -> dict[str, Any] | None:
            done = self.cdnctl("status", "--json", name)
            return services_of(done)[name] if done.returncode == Exit.OK else None

        found = until(look, what=f"{name} is well")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def shared() -> Iterator[Fleet]:
    """One fleet for this module's tests; each finds it well."""
    with short_dir() as home:
        fleet = Fleet(home)
        with ended_afterwards(fleet.run_dir):
            done = fleet.cdnctl("up")
            assert done.returncode == Exit.OK, done.stderr
            yield fleet
            ended = fleet.cdnctl("down")
            assert ended.returncode == Exit.OK, ended.stderr


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    """All of it running and healthy."""
    until(lambda: shared.cdnctl("status").returncode == Exit.OK, what="the fleet is well")
    return shared


def test_the_table(fleet: Fleet) -> None:
    """Every service runs, is healthy, and answers at the address that the status says."""
    done = fleet.cdnctl("status")
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "3 running"
    # What a service uses is in its status a moment after its health.
    until(lambda: all(each["rss_bytes"] for each in services_of(fleet.cdnctl("status", "--json")).values()))
    for name, service in services_of(fleet.cdnctl("status", "--json")).items():
        assert (service["state"], service["health"], service["phase"]) == ("RUNNING", "healthy", "serving"), name
        assert service["pid"] == psutil.Process(service["pid"]).pid
        assert service["rss_bytes"] > 2**20
        with urllib.request.urlopen(service["address"] + "/livez", timeout=10) as answer:
            assert answer.status == 200


def test_up_again_shows_the_same_fleet(fleet: Fleet) -> None:
    """Already running is no failure; addresses are shown."""
    before = services_of(fleet.cdnctl("status", "--json"))
    done = fleet.cdnctl("up")
    assert done.returncode == Exit.OK
    assert "already running" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == list(NAMES)
    assert {name: service["pid"] for name, service in before.items()} == {
        name: service["pid"] for name, service in services_of(fleet.cdnctl("status", "--json")).items()
    }


def test_the_link_with_the_token_is_for_terminals_only(fleet: Fleet) -> None:
    """Whoever has it can give orders, so that a pipe or a log never has it."""
    link = f"{fleet.service('atlas')['address']}/#token={(fleet.run_dir / 'operator.token').read_text().strip()}"
    piped = fleet.cdnctl("up")
    assert "#token=" not in piped.stdout + piped.stderr
    with terminal(RunDir(fleet.run_dir), "up", "-c", str(fleet.conf), columns=200, env={"NO_COLOR": "1"}) as screen:
        assert screen.ended() == Exit.OK
        assert link in screen.text


@pytest.mark.parametrize("name", NAMES)
def test_restart(fleet: Fleet, name: str) -> None:
    """Done means another process, of a later incarnation, that is ready; ATLAS itself is no exception."""
    before = fleet.service(name)
    done = fleet.cdnctl("restart", name, "--json")
    assert done.returncode == Exit.OK, done.stderr
    assert outcomes_of(done)[name]["outcome"] == "done"
    after = fleet.service(name)
    assert after["incarnation"] > before["incarnation"]
    assert after["pid"] != before["pid"]
    assert fleet.healthy(name)["state"] == "RUNNING"


def test_stop_and_start(fleet: Fleet) -> None:
    """What is stopped stays down and is not well; restart starts it; start of what runs leaves it alone."""
    assert fleet.cdnctl("stop", "gate*").returncode == Exit.OK
    stopped = fleet.cdnctl("status", "gateway-primary", "--json")
    assert stopped.returncode == Exit.NOT_WELL
    assert services_of(stopped)["gateway-primary"]["state"] == "STOPPED"
    assert fleet.cdnctl("status").stdout.splitlines()[-1] == "2 running, 1 stopped"
    assert fleet.cdnctl("status", "atlas").returncode == Exit.OK
    assert fleet.cdnctl("restart", "gateway-primary").returncode == Exit.OK
    pid = fleet.healthy("gateway-primary")["pid"]
    assert "already running" in fleet.cdnctl("start", "gateway-primary").stdout
    assert fleet.service("gateway-primary")["pid"] == pid


def test_a_killed_service_is_back_and_the_table_shows_it(fleet: Fleet) -> None:
    """SIGKILL: another pid, one restart more, and an event that says so."""
    before = fleet.service("cdn-data-fabric")
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: fleet.service("cdn-data-fabric")["pid"] not in (None, before["pid"]), what="it is back")
    after = fleet.healthy("cdn-data-fabric")
    assert after["restarts"] == before["restarts"] + 1
    events = json.loads(fleet.cdnctl("events", "cdn-data-fabric", "--json").stdout)["events"]
    assert any(str(after["pid"]) in event["text"] for event in events), events


class Query:
    """A query of some seconds that is in flight from the moment this is made."""

    def __init__(self, service: dict[str, Any], rows: int) -> None:
        self.answers: list[tuple[int, str]] = []
        body = json.dumps({"sql": SLOW.format(rows=rows), "timeout_s": 30}).encode()
        self._request = urllib.request.Request(
            service["address"] + "/sql", data=body, headers={"content-type": "application/json"}
        )
        self._thread = threading.Thread(target=self._ask)
        process = psutil.Process(service["pid"])
        began_s = process.cpu_times().user
        self._thread.start()
        until(lambda: process.cpu_times().user > began_s + 0.1, what="the query runs")

    def _ask(self) -> None:
        with urllib.request.urlopen(self._request, timeout=60) as answer:
            self.answers.append((answer.status, answer.read().decode()))

    def answer(self) -> tuple[int, str]:
        """Status and body, once it is there."""
        self._thread.join()
        (found,) = self.answers
        return found


def test_supervisorctl_restart_drains(fleet: Fleet) -> None:
    """A query in flight is answered in full by the process that was told to end."""
    service = fleet.service("cdn-data-fabric")
    query = Query(service, rows=4_000_000)
    done = fleet.supervisorctl("restart", "cdn-data-fabric")
    status, body = query.answer()
    assert "cdn-data-fabric: started" in done.stdout, done.stdout + done.stderr
    assert status == 200
    assert "4000000" in body
    assert fleet.healthy("cdn-data-fabric")["pid"] != service["pid"]


def test_an_order_outlives_the_atlas_that_took_it(fleet: Fleet) -> None:
    """ATLAS is killed while a service drains: the restart is followed to its end all the same."""
    before = fleet.service("cdn-data-fabric")
    atlas = fleet.service("atlas")
    query = Query(before, rows=15_000_000)
    with subprocess.Popen(
        [str(CDNCTL), "restart", "cdn-data-fabric", "--json"],
        cwd=fleet.home,
        env=fleet.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as restart:
        until(lambda: fleet.service("cdn-data-fabric")["phase"] == "draining", every_s=0.01, what="it drains")
        os.kill(atlas["pid"], signal.SIGKILL)
        assert restart.stdout is not None
        said = restart.stdout.read()
    assert query.answer()[0] == 200
    assert restart.returncode == Exit.OK, said
    assert json.loads(said)["outcomes"][0]["outcome"] == "done"
    assert fleet.healthy("cdn-data-fabric")["incarnation"] == before["incarnation"] + 1


def test_without_atlas_supervisord_is_asked(fleet: Fleet) -> None:
    """ATLAS is stopped: status, restart, and its own start go through supervisord and say so."""
    assert fleet.cdnctl("stop", "atlas").returncode == Exit.OK
    try:
        status = fleet.cdnctl("status", "--json")
        assert status.returncode == Exit.NOT_WELL
        assert "no answer from ATLAS within 1.0 s; asking supervisord" in status.stderr
        services = services_of(status)
        assert (services["atlas"]["state"], services["gateway-primary"]["state"]) == ("STOPPED", "RUNNING")
        restart = fleet.cdnctl("restart", "gateway-primary")
        assert restart.returncode == Exit.OK, restart.stderr
        assert restart.stderr == "cdnctl: no answer from ATLAS within 1.0 s; asking supervisord\n"
        assert fleet.cdnctl("events").returncode == Exit.UNKNOWN
    finally:
        start = fleet.cdnctl("start", "atlas")
    assert start.returncode == Exit.OK, start.stderr
    assert services_of(fleet.cdnctl("status", "--json")).keys() == set(NAMES)


def test_a_frozen_atlas_is_survived(fleet: Fleet) -> None:
    """SIGSTOP: the status comes all the same, from whoever can tell; then ATLAS is replaced."""
    before = fleet.service("atlas")
    os.kill(before["pid"], signal.SIGSTOP)
    done = fleet.cdnctl("status", "--json")
    assert services_of(done).keys() == set(NAMES)
    until(lambda: fleet.healthy("atlas")["pid"] != before["pid"], what="another ATLAS")


def test_a_killed_atlas_is_seen_whole_again(fleet: Fleet) -> None:
    """The services are undisturbed, and the first status after it shows all of them."""
    before = services_of(fleet.cdnctl("status", "--json"))
    os.kill(before["atlas"]["pid"], signal.SIGKILL)
    after = services_of(fleet.cdnctl("status", "--json"))
    assert {name: after[name]["pid"] for name in NAMES[1:]} == {name: before[name]["pid"] for name in NAMES[1:]}


def test_logs_and_events(fleet: Fleet) -> None:
    """What the services wrote, and what ATLAS saw of an order."""
    assert fleet.cdnctl("logs", "atlas", "-n", "5").stdout.count("\n") == 5
    assert fleet.cdnctl("restart", "gateway-primary").returncode == Exit.OK
    events = fleet.cdnctl("events", "gateway-primary", "-n", "100").stdout
    assert "restart asked by" in events
    with subprocess.Popen(
        [str(CDNCTL), "events", "-f", "-n", "0", "--json"],
        cwd=fleet.home,
        env=fleet.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        heard: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: heard.extend(json.loads(line) for line in follower.stdout or ()))
        reader.start()

        def stopped_is_heard() -> bool:
            fleet.cdnctl("restart", "cdn-data-fabric")
            return any(event["instance"] == "cdn-data-fabric" for event in heard)

        until(stopped_is_heard, within_s=60, what="the feed tells of a restart")
        follower.send_signal(signal.SIGINT)
        reader.join()
    assert follower.returncode == Exit.INTERRUPTED


def test_events_while_atlas_is_silent(fleet: Fleet) -> None:
    """Said once, and that it is heard again; what happens afterwards is shown."""
    with subprocess.Popen(
        [str(CDNCTL), "events", "-f", "-n", "1"],
        cwd=fleet.home,
        env=fleet.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        try:
            assert follower.stdout.readline()
            assert fleet.cdnctl("stop", "atlas").returncode == Exit.OK
            assert "nothing heard from ATLAS for 3 s; waiting for it" in follower.stderr.readline()
            assert fleet.cdnctl("start", "atlas").returncode == Exit.OK
            assert "ATLAS is heard again" in follower.stderr.readline()
            fleet.cdnctl("restart", "gateway-primary")
            lines = iter(follower.stdout.readline, "")
            assert any("gateway-primary" in line and "restart" in line for line in lines)
        finally:
            follower.kill()


def test_bare_supervisord(short_home: Path) -> None:
    """`supervisord -c supervisord.conf`, nothing activated: quiet, private, ready; supervisorctl and cdnctl see it."""
    fleet = Fleet(short_home)
    fleet.run_dir.mkdir(mode=0o755)  # as a fresh clone has it
    with ended_afterwards(fleet.run_dir):
        done = subprocess.run(
            [str(BIN / "supervisord"), "-c", "supervisord.conf"],
            cwd=fleet.home,
            env=fleet.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        until(lambda: fleet.supervisorctl("status").stdout.count("RUNNING") == 3, what="supervisorctl shows three")
        assert fleet.run_dir.stat().st_mode & 0o777 == 0o700
        assert (fleet.run_dir / "supervisor.sock").stat().st_mode & 0o777 == 0o700
        until(lambda: fleet.cdnctl("status").returncode == Exit.OK, what="cdnctl shows it well")
        assert fleet.cdnctl("up").returncode == Exit.OK
        assert fleet.cdnctl("down").returncode == Exit.OK


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A directory for another fleet."""
    with short_dir() as path:
        yield path


def test_a_port_in_use_is_told_by_up(short_home: Path) -> None:
    """Which service, which port, and exit code 1; the others run."""
    fleet = Fleet(short_home)
    with ended_afterwards(fleet.run_dir):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            text = fleet.conf.read_text().replace(
                "command=python -m services.gateway",
                f'command=python -m services.gateway\nenvironment=CDN_PORT="{port}"',
            )
            fleet.conf.write_text(text)
            done = fleet.cdnctl("up")
        assert done.returncode == Exit.FAILED, done.stdout
        assert "gateway-primary is not ready: EXITED" in done.stderr
        assert port in done.stderr
        assert done.stdout.splitlines()[3].split()[:2] == ["gateway-primary", "EXITED"]
        assert fleet.cdnctl("down").returncode == Exit.OK


def test_a_wrong_configuration_is_told_by_up_and_status(short_home: Path) -> None:
    """In the service's own words, although no ATLAS runs that could pass them on."""
    fleet = Fleet(short_home)
    with ended_afterwards(fleet.run_dir):
        up = cdnctl(fleet.home, "up", cwd=fleet.home, env={**CHOOSE, "CDN_PORT": "abc"})
        status = fleet.cdnctl("status", "--json")
        assert fleet.cdnctl("down").returncode == Exit.OK
    assert up.returncode == Exit.FAILED
    reason = "cannot use CDN_PORT=abc: it must be a number from 0 to 65535"
    for name in NAMES:
        (line,) = (line for line in up.stderr.splitlines() if line.startswith(f"cdnctl: {name} is not ready"))
        assert reason in line
        assert reason in services_of(status)[name]["reason"]
        assert services_of(status)[name]["restarts"] == 0


def test_a_fleet_without_supervisord_is_not_well(short_home: Path) -> None:
    """It is killed: the services serve on, status says that nobody would start them again; up mends it."""
    fleet = Fleet(short_home)
    with ended_afterwards(fleet.run_dir):
        assert fleet.cdnctl("up").returncode == Exit.OK
        before = services_of(fleet.cdnctl("status", "--json"))
        os.kill(int((fleet.run_dir / "supervisord.pid").read_text()), signal.SIGKILL)
        alone = fleet.cdnctl("status")
        restart = fleet.cdnctl("restart", "gateway-primary")
        assert (alone.returncode, restart.returncode) == (Exit.NOT_WELL, Exit.FAILED)
        assert "no supervisord runs in" in alone.stderr
        assert all(is_running(service["pid"]) for service in before.values())
        again = fleet.cdnctl("up")
        assert again.returncode == Exit.OK, again.stderr
        until(lambda: fleet.cdnctl("status").returncode == Exit.OK, what="it is well")
        assert fleet.cdnctl("down").returncode == Exit.OK
        assert not any(is_running(service["pid"]) for service in before.values())


def test_why_it_was_killed(fleet: Fleet) -> None:
    """An operator asks a minute later: how it ended, that nobody ordered it, its log, and what to do."""
    before = fleet.service("gateway-primary")
    os.kill(before["pid"], signal.SIGKILL)
    fleet.healthy("gateway-primary")

    def told() -> str:
        done = fleet.cdnctl("why", "gateway-primary")
        assert done.returncode == Exit.OK, done.stderr
        return done.stdout if f"#{before['incarnation']} ended" in done.stdout and "SIGKILL" in done.stdout else ""

    text = until(told, what="the end is known")
    for said in ("killed by SIGKILL", "by nobody", "in that hour", "serving", "what to do"):
        assert said in text, text
    assert "state" in fleet.cdnctl("history", "gateway-primary").stdout
    until(lambda: "killed by SIGKILL" in fleet.cdnctl("describe", "gateway-primary").stdout, what="ATLAS has read it")


def test_limits_are_shown_and_changed(fleet: Fleet) -> None:
    """Used, soft and hard as the daemon itself has them; a change is in effect when cdnctl returns."""
    changed = fleet.cdnctl("limits", "cdn-data-fabric", "--set", "rss_bytes=1G:2G:5", "--set", "fds.hard=18000")
    assert changed.returncode == Exit.OK, changed.stderr

    def shown() -> dict[str, Any]:
        done = fleet.cdnctl("limits", "cdn-data-fabric", "-o", "jsonl")
        rows = {row["limit"]: row for row in map(json.loads, done.stdout.splitlines())}
        return rows if rows["rss_bytes"]["hard"] is not None else {}

    rows = until(shown, what="the bands are in the status")
    assert (rows["rss_bytes"]["soft"], rows["rss_bytes"]["hard"], rows["rss_bytes"]["for_s"]) == (2**30, 2**31, 5)
    assert rows["fds"]["hard"] == 18000
    assert 2**20 < rows["rss_bytes"]["used"] < 2**30
    assert "1.00GiB" in fleet.cdnctl("limits", "cdn-data-fabric").stdout


def test_a_loop_is_shown_and_switched(fleet: Fleet) -> None:
    """Its mode is another one afterwards, for whoever looks."""
    for mode in ("shadow", "on"):
        done = fleet.cdnctl("ooda", "cdn-data-fabric", "--mode", mode)
        assert done.returncode == Exit.OK, done.stderr
        (loop,) = json.loads(fleet.cdnctl("ooda", "cdn-data-fabric", "-o", "json").stdout)["loops"]
        assert loop["mode"] == mode
    assert f"cdn-data-fabric  {mode}, at " in fleet.cdnctl("ooda", "cdn-data-fabric").stdout


def test_metrics_are_drawn(fleet: Fleet) -> None:
    """A line of bars, and as JSON raw bytes with times."""

    def drawn() -> str:
        return fleet.cdnctl("history", "gateway-primary", "--metric", "rss_bytes").stdout

    until(lambda: "▁" in drawn() or "█" in drawn(), what="a bar")
    lines = fleet.cdnctl("history", "gateway-primary", "--metric", "rss_bytes", "-o", "jsonl").stdout.splitlines()
    point = json.loads(lines[-1])
    assert point["max"] > 2**20
    assert point["time"].endswith("Z")


def test_a_rolling_restart_of_all_that_matches(fleet: Fleet) -> None:
    """Each is another process afterwards, and everything is well."""
    names = ("cdn-data-fabric", "gateway-primary")
    before = {name: fleet.service(name)["pid"] for name in names}
    done = fleet.cdnctl("restart", "*-*", "--rolling", "--timeout", "60s")
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    assert all(fleet.service(name)["pid"] != pid for name, pid in before.items())
    assert fleet.cdnctl("wait", "*", "--for", "healthy", "--timeout", "60s").returncode == Exit.OK
    assert fleet.cdnctl("is-active", "-q", "*").returncode == Exit.OK


def test_out_of_service_and_back(fleet: Fleet) -> None:
    """Disabled, it stays down; in maintenance, it says so; both are undone."""
    assert fleet.cdnctl("maintenance", "gateway-primary", "--on", "--for", "1h").returncode == Exit.OK
    until(lambda: fleet.service("gateway-primary")["maintenance"], what="maintenance is shown")
    assert fleet.cdnctl("maintenance", "gateway-primary", "--off").returncode == Exit.OK
    assert fleet.cdnctl("disable", "gateway-primary", "--timeout", "60s").returncode == Exit.OK
    until(lambda: fleet.service("gateway-primary")["state"] == "STOPPED", what="it is down")
    assert fleet.cdnctl("start", "gateway-primary", "--timeout", "20s").returncode == Exit.FAILED
    assert fleet.cdnctl("enable", "gateway-primary", "--timeout", "60s").returncode == Exit.OK
    assert fleet.cdnctl("wait", "gateway-primary", "--for", "healthy", "--timeout", "60s").returncode == Exit.OK


def test_more_instances_and_fewer(fleet: Fleet) -> None:
    """Done is when all are ready; each listens on a port of its own."""
    assert fleet.cdnctl("scale", "gateway-primary", "2", "--timeout", "60s").returncode == Exit.OK
    found = {name: fleet.healthy(name)["address"] for name in ("gateway-primary", "gateway-primary-2")}
    assert len(set(found.values())) == 2
    assert fleet.cdnctl("scale", "gateway-primary", "1", "--timeout", "60s").returncode == Exit.OK
    until(lambda: "gateway-primary-2" not in services_of(fleet.cdnctl("status", "--json")), what="it is gone")
