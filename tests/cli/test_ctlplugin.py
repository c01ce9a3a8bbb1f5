"""supervisorctl with cdnctl's verbs in it; and what it does is seen by ATLAS and cdnctl at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.exits import Exit
from tests.cli.support import cdnctl, ended_afterwards
from tests.support import BIN, ROOT, environment, short_dir, until

HERE: dict[str, str | None] = {"CDN_RUN_DIR": None, "CDN_PORT": "0"}


class Fleet:
    """The project's own supervisord.conf with ATLAS and a plain program, and both commands before it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        text = (ROOT / "supervisord.conf").read_text().partition("[program:cdn-data-fabric]")[0]
        (home / "supervisord.conf").write_text(f"{text}[program:job]\ncommand=sleep 1000\n[group:g]\nprograms=job\n")
        up = self.cdnctl("up")
        assert up.returncode == Exit.OK, up.stderr

    def cdnctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run cdnctl."""
        return cdnctl(self.home, *arguments, cwd=self.home, env=HERE)

    def supervisorctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run supervisorctl, from anywhere."""
        return subprocess.run(
            [BIN / "supervisorctl", "-c", self.home / "supervisord.conf", *arguments],
            capture_output=True,
            text=True,
            cwd="/",
            env={key: value for key, value in environment(self.home).items() if key != "CDN_RUN_DIR"},
            timeout=100,
        )

    def job(self) -> dict[str, Any]:
        """The program, as ATLAS has it: supervisord's own answer, while ATLAS is late, does not count."""

        def told() -> dict[str, Any] | None:
            done = self.cdnctl("status", "job", "-o", "json")
            by_atlas = done.stdout and "asking supervisord" not in done.stderr
            return dict(json.loads(done.stdout)["services"][0]) if by_atlas else None

        return until(told, what="ATLAS answers") or {}

    def events(self) -> str:
        """What ATLAS saw happen to it."""
        return self.cdnctl("events", "job").stdout


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One for all, as each leaves it as it was."""
    with short_dir() as home, ended_afterwards(home / "run"):
        found = Fleet(home)
        try:
            yield found
        finally:
            found.cdnctl("down")


def test_what_supervisorctl_does_is_seen(fleet: Fleet) -> None:
    """By ATLAS, as state, as events, and with the new pid; nothing had to be asked for."""
    before = fleet.job()
    assert before["state"] == "RUNNING"
    assert fleet.supervisorctl("stop", "g:job").returncode == 0
    until(lambda: fleet.job()["state"] == "STOPPED", what="ATLAS has it stopped")
    until(lambda: "STOPPED" in fleet.events(), what="ATLAS tells that it has stopped")
    assert fleet.supervisorctl("start", "g:job").returncode == 0
    after = until(lambda: (job := fleet.job())["state"] == "RUNNING" and job, what="ATLAS has it running")
    assert after["pid"] != before["pid"]
    assert fleet.supervisorctl("signal", "KILL", "g:job").returncode == 0
    until(lambda: "killed by SIGKILL" in fleet.events(), what="ATLAS tells of the signal")
    until(lambda: fleet.job()["state"] == "RUNNING", what="it is back")


def test_why(fleet: Fleet) -> None:
    """What cdnctl why says, by supervisor's name for it."""
    fleet.supervisorctl("signal", "KILL", "g:job")
    until(lambda: "SIGKILL" in fleet.supervisorctl("why", "g:job").stdout, what="why tells of the signal")
    until(lambda: fleet.job()["state"] == "RUNNING", what="it is back")
    assert fleet.supervisorctl("why", "nope").returncode == Exit.UNKNOWN


def test_ready(fleet: Fleet) -> None:
    """At once of what is; of what is not when the time is over, as an exit code too."""
    done = fleet.supervisorctl("ready", "atlas", "g:job")
    assert (done.returncode, done.stdout.count(" ready after ")) == (Exit.OK, 2)
    fleet.supervisorctl("stop", "g:job")
    assert fleet.supervisorctl("ready", "g:job", "--timeout", "100ms").returncode == Exit.TIMED_OUT
    fleet.supervisorctl("start", "g:job")


def test_what_lasts(fleet: Fleet) -> None:
    """disable, enable and maintenance are those of cdnctl."""
    assert fleet.supervisorctl("disable", "g:job").returncode == Exit.OK
    until(lambda: fleet.job()["enabled"] is False, what="it is disabled")
    assert fleet.supervisorctl("start", "g:job").returncode != 0
    assert fleet.supervisorctl("enable", "g:job").returncode == Exit.OK
    until(lambda: fleet.job()["state"] == "RUNNING", what="it runs again")
    assert fleet.supervisorctl("maintenance", "g:job", "--on").returncode == Exit.OK
    until(lambda: fleet.job()["maintenance"] is True, what="it is in maintenance")
    assert fleet.supervisorctl("maintenance", "g:job", "--off").returncode == Exit.OK


def test_help(fleet: Fleet) -> None:
    """supervisorctl lists them, explains each once, and its own as before."""
    listed = fleet.supervisorctl("help").stdout
    assert "cdn commands" in listed
    assert "disable  enable  maintenance  ready  why" in listed
    assert fleet.supervisorctl("help", "why").stdout == "why <name>...\t\tWhat happened to it, and what to do\n"
    assert "No help" not in fleet.supervisorctl("help", "restart").stdout
    assert "No help" in fleet.supervisorctl("help", "nonsense").stdout


def test_wrong_usage(fleet: Fleet) -> None:
    """Quotes that do not end, and a supervisord that is no run directory's, are said so."""
    done = fleet.supervisorctl("why", "'g:job")
    assert (done.returncode, "No closing quotation" in done.stdout) == (Exit.FAILED, True)
    done = fleet.supervisorctl("-s", "http://127.0.0.1:1", "why", "job")
    assert (done.returncode, "use cdnctl --run-dir" in done.stdout) == (Exit.FAILED, True)
