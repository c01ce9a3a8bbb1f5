"""cdnctl as a process, fleets of plain programs for it, and views to render."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bus.messages import HealthStatus, LifecyclePhase, OodaPhase, ProcessState, ServiceView
from tests.support import BIN, ROOT, environment, kill_tree

CDNCTL = BIN / "cdnctl"


def cdnctl(
    run_dir: Path, *arguments: str, cwd: Path | None = None, env: Mapping[str, str | None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run cdnctl to its end; an env value of None unsets the variable."""
    merged: dict[str, str | None] = {**environment(run_dir), **(env or {})}
    return subprocess.run(
        [str(CDNCTL), *arguments],
        env={key: value for key, value in merged.items() if value is not None},
        cwd=cwd or run_dir,
        capture_output=True,
        text=True,
        timeout=100,
    )


def services_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Instance → its line of ``status --json``."""
    assert done.stdout, f"exit {done.returncode}: {done.stderr}"
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    return {service["instance"]: service for service in document["services"]}


def outcomes_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Name → its outcome, of ``start``, ``stop`` and ``restart`` with ``--json``."""
    assert done.stdout, f"exit {done.returncode}: {done.stderr}"
    return {outcome["name"]: outcome for outcome in json.loads(done.stdout)["outcomes"]}


def write_conf(directory: Path, programs: Mapping[str, str], *, extra: str = "") -> Path:
    """A supervisord.conf in the form of the project's own, without the warden; name → command."""
    lines = [
        "[supervisord]",
        "logfile=%(here)s/run/supervisord.log",
        "pidfile=%(here)s/run/supervisord.pid",
        "childlogdir=%(here)s/run",
        'environment=CDN_RUN_DIR="%(here)s/run"',
        "[unix_http_server]",
        "file=%(here)s/run/supervisor.sock",
        "[supervisorctl]",
        "serverurl=unix://%(here)s/run/supervisor.sock",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for name, command in programs.items():
        lines += [
            f"[program:{name}]",
            f"command={command}",
            "startsecs=0",
            "exitcodes=0,78",
            "redirect_stderr=true",
            "stdout_logfile=%(here)s/run/%(program_name)s.log",
        ]
    path = directory / "supervisord.conf"
    path.write_text("\n".join([*lines, extra, ""]))
    return path


SMALL_FLEET = ("atlas", "cdn-data-fabric", "gateway-primary")


def fleet_copy(directory: Path, programs: Sequence[str] = SMALL_FLEET) -> Path:
    """The project's own supervisord.conf with these of its programs, in another directory, the services beside it."""
    head, *sections = re.split(r"(?m)^(?=\[program:)", (ROOT / "supervisord.conf").read_text())
    wanted = [section for section in sections if section.startswith(tuple(f"[program:{name}]" for name in programs))]
    path = directory / "supervisord.conf"
    path.write_text("".join([head, *wanted]))
    (directory / "services").symlink_to(ROOT / "services")
    return path


@contextmanager
def ended_afterwards(run_dir: Path) -> Iterator[None]:
    """Whatever supervisord runs there in the end, and its children, are gone afterwards."""
    try:
        yield
    finally:
        pidfile = run_dir / "supervisord.pid"
        if pidfile.exists():
            kill_tree(int(pidfile.read_text()))


def view(name: str, **changes: Any) -> ServiceView:
    """A healthy service."""
    fields: dict[str, Any] = {
        "service": name,
        "instance": name,
        "host": "node-1",
        "state": ProcessState.RUNNING,
        "health": HealthStatus.HEALTHY,
        "phase": LifecyclePhase.SERVING,
        "ooda_phase": OodaPhase.OBSERVE,
        "pid": 4711,
        "incarnation": 3,
        "uptime_s": 3661.0,
        "restarts": 0,
        "cpu_cores": 0.021,
        "rss_bytes": 33 * 2**20,
        "seen_s": 0.2,
        "reason": "",
        "address": "http://127.0.0.1:18100",
    }
    return ServiceView(**{**fields, **changes})


def plain(name: str, **changes: Any) -> ServiceView:
    """A program without a daemon."""
    bare = {
        "health": HealthStatus.UNKNOWN,
        "phase": None,
        "ooda_phase": None,
        "incarnation": None,
        "seen_s": None,
        "address": None,
        "cpu_cores": None,
        "rss_bytes": None,
    }
    return view(name, **{**bare, **changes})
