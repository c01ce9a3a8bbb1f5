"""Imports go down only, ZeroMQ and psutil stay where they belong, and what is called pure is."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

ALLOWED = {
    "bus": {"bus"},
    "cdn_daemon": {"bus", "cdn_daemon"},
    "cli": {"bus", "cli"},
}
COMMON_ROOM = {"services.disk", "services.json_path", "services.sqlite", "services.stream", "services.writer"}
"""What several services need and the framework does not: databases, streams."""
OURS = {"bus", "cdn_daemon", "services", "cli", "tests", "benchmarks"}
PURE = (
    "bus/continuity.py",
    "bus/messages.py",
    "bus/room.py",
    "bus/topics.py",
    "bus/why.py",
    "cdn_daemon/ooda.py",
    "cdn_daemon/health.py",
    "cdn_daemon/lifecycle.py",
    "cdn_daemon/origins.py",
    "cdn_daemon/warden/desired.py",
    "cdn_daemon/warden/judge.py",
    "cdn_daemon/warden/policy.py",
    "services/atlas/fleet.py",
    "services/atlas/coordinator.py",
    "services/atlas/samples.py",
    "services/atlas/asked.py",
    "services/gateway/blocklist.py",
    "services/gateway/budget.py",
    "services/gateway/openc2.py",
    "services/gateway/outliers.py",
    "services/gateway/routes.py",
    "services/data_fabric/geojson.py",
    "services/data_fabric/geometry.py",
    "services/data_fabric/nodelink.py",
    "services/graph/hawkes.py",
    "services/graph/patterns.py",
    "services/graph/stix.py",
    "services/graph/tuning.py",
    "services/graph/walk.py",
    "services/threat_intel/scoring.py",
    "services/threat_intel/stix.py",
    "services/threat_intel/trust.py",
    "services/threat_reaction/judgement.py",
    "services/threat_reaction/memory.py",
    "services/threat_reaction/networks.py",
    "services/threat_reaction/openc2.py",
    "services/threat_reaction/playbooks.py",
    "services/threat_reaction/records.py",
    "services/threat_reaction/sshd.py",
    "services/isolated_monitoring/incidents.py",
    "services/isolated_monitoring/suspicion.py",
    "services/monitoring/evaluate.py",
    "services/monitoring/exposition.py",
    "services/monitoring/pattern.py",
    "services/monitoring/promql.py",
    "services/monitoring/rules.py",
    "services/monitoring/samples.py",
    "services/monitoring/schedule.py",
    "services/statistical/budget.py",
    "services/statistical/changes.py",
    "services/statistical/compare.py",
    "services/statistical/sampling.py",
    "services/statistical/sketch.py",
    "services/statistical/statsd.py",
    "services/statistical/windows.py",
    "cli/answers.py",
    "cli/bands.py",
    "cli/causes.py",
    "cli/demo/changes.py",
    "cli/live.py",
    "cli/rendering.py",
    "cli/story.py",
)
IMPURE = {
    *("time", "socket", "threading", "subprocess", "random", "psutil", "zmq", "asyncio", "select", "pathlib"),
    *("importlib", "io", "multiprocessing", "secrets", "selectors", "shutil", "sqlite3", "tempfile"),
}
CLOCKS = {"now", "today", "utcnow"}
DOORS = {"open", "input", "print", "breakpoint", "exec", "eval", "__import__"}
"""Built-in functions by which I/O comes in without an import, or an import without the word."""


def imports(path: Path) -> list[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module or "")
    return names


def files(*folders: str) -> list[Path]:
    """Python files below the folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def allowed(path: Path) -> set[str]:
    """First parts of our own modules that this file may import."""
    top, *rest = path.relative_to(ROOT).parts
    if top == "services":
        return {"bus", "cdn_daemon", *COMMON_ROOM, f"services.{rest[0].removesuffix('.py')}"}
    return ALLOWED[top]


@pytest.mark.parametrize("path", files("bus", "cdn_daemon", "services", "cli"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    """No file imports from its own floor's neighbours or from a floor above."""
    for name in imports(path):
        if name.split(".")[0] in OURS:
            assert any(name == ok or name.startswith(ok + ".") for ok in allowed(path)), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("module", "home"),
    [("zmq", ("bus/",)), ("psutil", ("cdn_daemon/backstops.py",))],
)
def test_a_library_has_one_home(module: str, home: tuple[str, ...]) -> None:
    """ZeroMQ is imported by the bus alone, psutil by the backstops alone: what a process uses is read from /proc."""
    for path in files("bus", "cdn_daemon", "services", "cli"):
        if module in (name.split(".")[0] for name in imports(path)):
            assert str(path.relative_to(ROOT)).startswith(home), f"{path} imports {module}"


@pytest.mark.parametrize("name", PURE)
def test_pure_is_pure(name: str) -> None:
    """A module that is called pure has no clock, no I/O, no thread, no chance.

    Of os it may have what reads a wait status and names errors, of datetime what is not a clock.
    """
    path = ROOT / name
    assert not IMPURE & {module.split(".")[0] for module in imports(path)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in CLOCKS, f"{name}:{node.lineno} reads the clock"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in DOORS, f"{name}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr.startswith(("W", "EX_", "strerror")), f"{name}:{node.lineno} uses os.{node.attr}"


def test_the_standard_library_is_known() -> None:
    """The lists above name modules that exist."""
    assert {name for name in IMPURE if name not in {"psutil", "zmq"}} <= sys.stdlib_module_names
