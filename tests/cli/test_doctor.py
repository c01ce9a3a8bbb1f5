"""cdnctl doctor: each check by a table, and one fleet that is broken in many ways."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.belonging import Belonging
from cli.commands import doctor_checks as checks
from cli.commands.doctor import CHECKS
from cli.commands.doctor_checks import Began, Disk, Finding, Limit, Listener, Owned, Reach, Severity
from cli.exits import Exit
from tests.cli.support import cdnctl, ended_afterwards
from tests.support import BIN, ROOT, environment, free_port, kill_tree, short_dir, until

RUN = Path("/srv/run")
CONF = Path("/srv/supervisord.conf")
GOOD = Owned(str(RUN), 7, 0o700, True)
SUPERVISORD = Belonging(10, 1, "supervisord", True)


def whats(found: list[Finding]) -> list[tuple[str, str]]:
    """Severity and the words that tell findings apart; and that each says how to mend it."""
    assert all(finding.check in CHECKS and finding.value and finding.mend for finding in found)
    return [(finding.severity, f"{finding.what}: {finding.value} → {finding.mend}") for finding in found]


def holds(found: list[Finding], severity: Severity | None, *words: str) -> None:
    """There is one finding, of that severity, with those words; or with None there is none."""
    if severity is None:
        assert whats(found) == []
        return
    ((said, text),) = whats(found)
    assert said == severity
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(
    ("longest", "owned", "can_write", "severity", "words"),
    [
        (80, GOOD, True, None, ()),
        (80, None, False, Severity.WARNING, ("no run directory", "cdnctl up")),
        (80, GOOD._replace(mode=0o755), True, Severity.PROBLEM, ("0755", "chmod 700 /srv/run")),
        (80, GOOD._replace(uid=0), False, Severity.PROBLEM, ("another user's", "CDN_RUN_DIR")),
        (80, GOOD._replace(is_directory=False), True, Severity.PROBLEM, ("no directory", "rm /srv/run")),
        (80, GOOD, False, Severity.PROBLEM, ("cannot be written",)),
        (117, GOOD, True, Severity.PROBLEM, ("117 bytes", "10 bytes shorter")),
    ],
)
def test_run_directory(
    longest: int, owned: Owned | None, can_write: bool, severity: Severity | None, words: tuple[str, ...]
) -> None:
    holds(checks.run_directory(RUN, longest, owned, 7, can_write), severity, *words)


@pytest.mark.parametrize(
    ("file", "conf", "severity", "words"),
    [
        (Owned("/srv/run/a.log", 7, 0o600, False), Owned(str(CONF), 7, 0o644, False), None, ()),
        (Owned("/srv/run/a.log", 7, 0o640, False), None, Severity.WARNING, ("a.log", "chmod -R go= /srv/run")),
        (Owned("/srv/run/a.log", 0, 0o600, False), None, Severity.PROBLEM, ("another user's", "chown")),
        (
            Owned("/srv/run/a.log", 7, 0o600, False),
            Owned(str(CONF), 7, 0o664, False),
            Severity.PROBLEM,
            ("chmod go-w",),
        ),
    ],
)
def test_permissions(file: Owned, conf: Owned | None, severity: Severity | None, words: tuple[str, ...]) -> None:
    holds(checks.permissions([file], 7, RUN, conf), severity, *words)


@pytest.mark.parametrize(
    ("reach", "supervisord", "severity", "words"),
    [
        (Reach.OPEN, 10, None, ()),
        (Reach.ABSENT, None, None, ()),
        (Reach.DEAD, None, Severity.WARNING, ("left over", "cdnctl up")),
        (Reach.ABSENT, 10, Severity.PROBLEM, ("runs without its supervisor.sock", "pid 10", "cdnctl down")),
        (Reach.DEAD, 10, Severity.PROBLEM, ("nobody listens",)),
        (Reach.OTHER, 10, Severity.PROBLEM, ("no socket", "rm supervisor.sock")),
        (Reach.FORBIDDEN, None, Severity.PROBLEM, ("not allowed",)),
    ],
)
def test_sockets(reach: Reach, supervisord: int | None, severity: Severity | None, words: tuple[str, ...]) -> None:
    holds(checks.sockets({"supervisor.sock": reach}, supervisord, None), severity, *words)


def test_sockets_of_one_owner_are_one_finding() -> None:
    seen = {"supervisor.sock": Reach.OPEN, "agents.sock": Reach.DEAD, "feed.sock": Reach.DEAD}
    holds(checks.sockets(seen, 10, 11), Severity.PROBLEM, "ATLAS", "agents.sock, feed.sock", "cdnctl restart atlas")


def test_supervision_and_plugin() -> None:
    holds(checks.supervision(10, "", RUN), None)
    holds(checks.supervision(None, "", RUN), Severity.WARNING, "cdnctl up")
    silent = "supervisord did not answer: its process 10 is stopped; let it go on with: kill -CONT 10"
    holds(checks.supervision(10, silent, RUN), Severity.PROBLEM, "did not answer", "kill -CONT 10")
    holds(checks.supervision(None, "it is another user's", RUN), Severity.PROBLEM, "CDN_RUN_DIR")
    holds(checks.plugin(True, CONF), None)
    holds(checks.plugin(None, CONF), None)
    holds(checks.plugin(False, CONF), Severity.PROBLEM, "[rpcinterface:cdn]", "supervisorctl reload")


@pytest.mark.parametrize(
    ("seen", "severity", "words"),
    [
        (checks.AtlasSeen(11, True), None, ()),
        (checks.AtlasSeen(None, False, failure="no socket"), None, ()),
        (checks.AtlasSeen(None, True, failure="no socket"), Severity.PROBLEM, ("no socket", "cdnctl start atlas")),
        (checks.AtlasSeen(11, True, failure="no answer"), Severity.PROBLEM, ("cdnctl restart atlas",)),
        (checks.AtlasSeen(11, False, failure="x", is_stopped=True), Severity.PROBLEM, ("state T", "kill -CONT 11")),
        (checks.AtlasSeen(11, True, notes=("not written down",)), Severity.WARNING, ("not written down",)),
        (checks.AtlasSeen(11, True, reason="history stopped: full"), Severity.WARNING, ("full", "make room")),
        (checks.AtlasSeen(11, True, set_aside=("commands.unreadable",)), Severity.WARNING, ("commands.unreadable",)),
    ],
)
def test_atlas(seen: checks.AtlasSeen, severity: Severity | None, words: tuple[str, ...]) -> None:
    holds(checks.atlas(seen), severity, *words)


@pytest.mark.parametrize(
    ("processes", "severity", "words"),
    [
        ([SUPERVISORD, Belonging(20, 10, "web", False), Belonging(21, 20, "web", False)], None, ()),
        (
            [Belonging(20, 1, "web", False), Belonging(21, 20, "web", False)],
            Severity.WARNING,
            ("pid 20", "cdnctl down"),
        ),
        ([SUPERVISORD, Belonging(20, 1, "web", False)], Severity.WARNING, ("web", "kill 20")),
        ([SUPERVISORD, Belonging(11, 1, "supervisord", True)], Severity.PROBLEM, ("pid 10, pid 11",)),
    ],
)
def test_orphans(processes: list[Belonging], severity: Severity | None, words: tuple[str, ...]) -> None:
    holds(checks.orphans(processes), severity, *words)


@pytest.mark.parametrize(
    ("required", "installed", "severity", "words"),
    [
        ("supervisor<4.4,>=4.2", "4.3.0", None, ()),
        ("supervisor<4.4,>=4.2", "4.2", None, ()),
        ("supervisor<4.4,>=4.2", "4.4.0", Severity.PROBLEM, ("4.4.0", "pip install 'supervisor<4.4,>=4.2'")),
        ("msgspec>=0.18", "0.9.1", Severity.PROBLEM, ("0.9.1",)),
        ("msgspec>=0.18", None, Severity.PROBLEM, ("not installed",)),
        ("airportsdata", "20240101", None, ()),
        ('pytest>=8; extra == "test"', None, None, ()),
    ],
)
def test_versions(required: str, installed: str | None, severity: Severity | None, words: tuple[str, ...]) -> None:
    name = required.partition("<")[0].partition(">")[0]
    holds(checks.versions([required], {name: installed} if installed else {}), severity, *words)


def test_what_runs_is_what_is_installed() -> None:
    def judged(*running: Began, installed_s: float | None = 100.0, supervisors: Any = None) -> list[Finding]:
        return checks.running_versions(running, installed_s, "/venv", supervisors)

    holds(judged(Began("atlas", 11, 200.0, "/venv"), supervisors=("4.3.0", "4.3.0")), None)
    holds(judged(Began("atlas", 11, 50.0, None), installed_s=None), None)
    holds(judged(Began("atlas", 11, 50.0, "/venv")), Severity.WARNING, "older", "cdnctl restart atlas")
    holds(judged(Began("supervisord", 10, 50.0, "/venv")), Severity.WARNING, "older", "supervisorctl reload")
    holds(judged(Began("supervisord", 10, 200.0, "/old")), Severity.WARNING, "/old/bin/cdnctl")
    holds(judged(supervisors=("4.2.5", "4.3.0")), Severity.WARNING, "4.2.5 runs, 4.3.0 is installed")


def test_configuration() -> None:
    holds(checks.configuration([], CONF, ["a"], ["a"]), None)
    holds(checks.configuration([], CONF, ["a"], None), None)
    holds(checks.configuration(["no program b"], CONF, ["a"], []), Severity.PROBLEM, "no program b")
    holds(checks.configuration([], CONF, ["a", "b"], ["a"]), Severity.WARNING, "yet", ": b", f"-c {CONF} update")
    holds(checks.configuration([], CONF, ["a"], ["a", "b"]), Severity.WARNING, "no longer", ": b")


@pytest.mark.parametrize(
    ("source", "port"),
    [
        ("service = Service('a', app=app, port=18100)", 18100),
        ("service = Service('a', app=app, port=0)", None),
        ("service = Service('a', app=app, port=PORT)", None),
        ("service = Service('a')", None),
        ("this is no Python", None),
    ],
)
def test_declared_port(source: str, port: int | None) -> None:
    assert checks.declared_port(source) == port


@pytest.mark.parametrize("path", sorted((ROOT / "services").glob("*/__main__.py")), ids=lambda path: path.parent.name)
def test_every_service_declares_its_port(path: Path) -> None:
    """Where the check of the ports finds it."""
    assert checks.declared_port(path.read_text())


def test_ports() -> None:
    ours, other = Listener(20, "web"), Listener(99, "nginx")
    holds(checks.ports({"web": 1}, {}, {20}), None)
    holds(checks.ports({"web": 1}, {1: ours}, {20}), None)
    holds(checks.ports({"web": 1}, {1: other}, {20}), Severity.PROBLEM, "pid 99 (nginx)", "[program:web]")
    holds(checks.ports({"web": 1}, {1: Listener(None, "")}, {20}), Severity.PROBLEM, "another user's")
    holds(checks.ports({"api": 1, "web": 1}, {}, ()), Severity.PROBLEM, "api and web", "[program:web]")


def test_limits() -> None:
    free = Limit(None, None)
    holds(checks.limits(10, 1024, Limit(10, 1000), Limit(10, None)), None)
    holds(checks.limits(10, None, free, free), None)
    holds(checks.limits(200, 1024, free, free), Severity.PROBLEM, "1264 open files", "ulimit -n 1264")
    holds(checks.limits(10, 1024, Limit(950, 1000), free), Severity.WARNING, "950 of 1000", "LimitNPROC")
    holds(checks.limits(10, 1024, free, Limit(950, 1000)), Severity.WARNING, "950 of 1000", "TasksMax")
    holds(checks.limits(280, None, free, free, 1024), None)
    holds(checks.limits(300, None, free, free, 1024), Severity.PROBLEM, "287 services, not for 300", "ulimit -Hn 65536")
    holds(checks.limits(10_000, None, free, free, 65536), None)


def test_clock() -> None:
    holds(checks.clock(0.2003, 0.2, 1000.0, ("a.log", 1001.0)), None)
    holds(checks.clock(0.2, 0.2, 1000.0, None), None)
    holds(checks.clock(3600.2, 0.2, 1000.0, None), Severity.WARNING, "+3600.000 s", "timedatectl")
    holds(checks.clock(0.2, 0.2, 1000.0, ("a.log", 4600.0)), Severity.WARNING, "a.log, 3600 s ahead")


def test_disk() -> None:
    fine = Disk("/srv/run", 2**32, 10**6, True)
    holds(checks.disk([fine, fine._replace(free_inodes=None)]), None)
    holds(checks.disk([fine._replace(free_bytes=100 * 2**20)]), Severity.WARNING, "100 MiB", "du -ah /srv/run")
    holds(checks.disk([fine._replace(free_bytes=2**20)]), Severity.PROBLEM, "is full")
    holds(checks.disk([fine._replace(free_inodes=9)]), Severity.WARNING, "inodes", "9 for /srv/run")
    holds(checks.disk([fine._replace(can_write=False)]), Severity.PROBLEM, "nothing can be written")


# -- a real fleet ---------------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a supervisord.conf of ATLAS and a plain program; its fleet is ended afterwards."""
    with short_dir() as path, ended_afterwards(path / "run"):
        text = (ROOT / "supervisord.conf").read_text().partition("[program:cdn-data-fabric]")[0]
        (path / "supervisord.conf").write_text(text + "[program:job]\ncommand=sleep 1000\n")
        yield path


HOST = ("clock", "disk", "limits")
"""What is found of the machine that the tests run on is no matter of theirs."""


def doctor(home: Path, *arguments: str, **env: str | None) -> dict[str, str]:
    """Check → all that was found by it; and that the exit code tells whether there was anything."""
    told: dict[str, str | None] = {"CDN_RUN_DIR": None, "CDN_PORT": "0"}
    done = cdnctl(home, "doctor", "-o", "json", *arguments, cwd=home, env=told | env)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert document["checks"] == list(CHECKS)
    found: dict[str, str] = {}
    for each in document["findings"]:
        text = f"{each['severity']} {each['what']}: {each['value']} → {each['mend']}"
        found[each["check"]] = f"{found[each['check']]}\n{text}" if each["check"] in found else text
    assert done.returncode == (Exit.NOT_WELL if found else Exit.OK)
    return {check: text for check, text in found.items() if check not in HOST}


def finds(home: Path, check: str, *words: str) -> str:
    """What is found by it, once it has those words: on a busy machine somebody may not answer at first."""

    def told() -> str:
        text = doctor(home).get(check, "")
        return text if all(word in text for word in words) else ""

    return until(told, what=f"{check}: {words}")


def well(home: Path) -> None:
    """There is nothing to mend any more."""
    until(lambda: not doctor(home), what="nothing to mend")


def test_nothing_runs_yet(home: Path) -> None:
    """That is said, and nothing is made."""
    assert set(doctor(home)) == {"run-directory", "supervisord"}
    assert sorted(path.name for path in home.iterdir()) == ["supervisord.conf"]


def test_a_configuration_that_is_wrong(home: Path) -> None:
    """What supervisor, the warden or cdnctl would refuse is told before anything is started."""
    conf = home / "supervisord.conf"
    good = conf.read_text()
    for line, told in (
        ("depends_on=nope", "there is no program nope"),
        ("watchdog_s=soon", "cannot use watchdog_s=soon"),
        ("autorestart=perhaps", "invalid 'autorestart' value"),
        ("stdout_logfile=/no/such/directory/job.log", "/no/such/directory"),
    ):
        conf.write_text(f"{good}{line}\n")
        assert told in doctor(home)["configuration"]
    conf.write_text(good.replace("supervisor.sock", "other.sock"))
    assert "cdnctl looks for" in doctor(home)["configuration"]
    conf.write_text(good.replace("[rpcinterface:cdn]", "[other]"))
    assert "there is no warden" in doctor(home)["configuration"]


def test_a_port_that_is_taken(home: Path) -> None:
    """By whom, and how to do without it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = doctor(home, CDN_PORT=str(port))
    assert f"port {port} of atlas is taken: pid {os.getpid()} (" in found["ports"]
    assert "supervisorctl -c supervisord.conf update" in found["ports"]  # a start alone reads no configuration
    assert "ports" not in doctor(home, CDN_PORT=str(free_port()))


@pytest.mark.timeout(600)
def test_a_fleet_that_is_broken(home: Path) -> None:
    """Well at first; then each thing that is broken is found, and nothing is when it is mended as was said."""
    run = home / "run"

    def operator(*arguments: str) -> None:
        done = cdnctl(home, *arguments, cwd=home, env={"CDN_RUN_DIR": None, "CDN_PORT": "0"})
        assert done.returncode == Exit.OK, done.stderr

    def mend(text: str) -> None:
        command = text.rpartition(" → ")[2]
        env = environment(run, PATH=f"{BIN}:{os.environ['PATH']}")
        subprocess.run(command, shell=True, check=True, capture_output=True, env=env, cwd=home)

    operator("up")
    (run / ".gitignore").write_text("*\n")
    (run / ".gitignore").chmod(0o644)  # as git clones it
    well(home)
    supervisord = int((run / "supervisord.pid").read_text())

    run.chmod(0o755)
    (run / "atlas.log").chmod(0o644)
    found = doctor(home)
    assert "0755" in found["run-directory"]
    assert "atlas.log" in found["permissions"]
    mend(found["run-directory"])
    mend(found["permissions"])

    with (home / "supervisord.conf").open("a") as conf:
        conf.write("[program:more]\ncommand=sleep 1000\n")
    mend(finds(home, "configuration", ": more"))
    well(home)

    os.kill(supervisord, signal.SIGSTOP)
    mend(finds(home, "supervisord", f"kill -CONT {supervisord}"))
    well(home)

    operator("maintenance", "atlas", "--on")  # or the warden would mend it
    atlas = until(lambda: pid_of(home, "atlas"), what="ATLAS runs")
    os.kill(atlas, signal.SIGSTOP)
    mend(finds(home, "atlas", "state T", f"kill -CONT {atlas}"))
    well(home)

    operator("stop", "atlas")
    finds(home, "atlas", "cdnctl start atlas")

    job = until(lambda: pid_of(home, "job"), what="job runs")
    os.kill(supervisord, signal.SIGKILL)
    try:
        finds(home, "orphans", f"pid {job}")
        found = doctor(home)
        assert "left over" in found["sockets"]
        assert "cdnctl up" in found["supervisord"]
    finally:
        kill_tree(job)
        operator("down")


def pid_of(home: Path, name: str) -> int:
    """Of a program, by supervisorctl."""
    done = subprocess.run(
        [BIN / "supervisorctl", "-c", home / "supervisord.conf", "pid", name],
        capture_output=True,
        text=True,
        env=environment(home / "run"),
    )
    return int(done.stdout) if done.stdout.strip().isdigit() else 0


def test_the_text_is_for_people(home: Path) -> None:
    """Two lines a finding, the second of which mends it."""
    done = cdnctl(home, "doctor", cwd=home, env={"CDN_RUN_DIR": None, "CDN_PORT": "0"})
    first, second, *_, last = done.stdout.splitlines()
    assert first == f"warning  run-directory: there is no run directory: {home}/run"
    assert second == "         mend: cdnctl up"
    assert last.endswith(f": {len(CHECKS)} checks of {home}/run")
    assert done.stderr == ""
