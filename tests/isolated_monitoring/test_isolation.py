"""It needs nothing of what it watches, and nothing but the standard library."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bus.endpoints import MAX_SOCKET_PATH_BYTES, default_run_dir
from cdn_daemon.lifecycle import ExitCode
from cdn_daemon.origins import refusal
from services.isolated_monitoring import __main__ as program
from services.isolated_monitoring import origins, settings
from services.isolated_monitoring.web import RefusedError
from tests.support import ROOT, environment

HOME = ROOT / "services" / "isolated_monitoring"
PURE = ("checks", "cron", "exposition", "incidents", "ooda", "origins", "suspicion", "target", "watched")
IMPURE = {"time", "os", "socket", "threading", "subprocess", "random", "asyncio", "select", "pathlib", "uuid"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", sorted(HOME.glob("*.py")), ids=lambda path: path.name)
def test_standard_library_only(path: Path) -> None:
    """No file imports, anywhere in it, more than the standard library and its own folder."""
    for name in imports(path):
        ours = name == "services" or name.startswith("services.isolated_monitoring")
        assert ours or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_nothing_of_the_bus_is_loaded(run_path: Path) -> None:
    """In a process of its own: after importing all of it, neither bus nor daemon nor a foreign library is there."""
    names = [f"services.isolated_monitoring.{path.stem}" for path in HOME.glob("*.py")]
    code = f"import importlib, json, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += "print(json.dumps(sorted(sys.modules)))"
    # -S: site-packages' own .pth files load what nobody asked for
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment(run_path), capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert foreign == {"services"}


@pytest.mark.parametrize("name", PURE)
def test_pure_is_pure(name: str) -> None:
    """What is called pure has no clock, no I/O, no thread."""
    assert not IMPURE & {each.split(".")[0] for each in imports(HOME / f"{name}.py")}


def test_the_same_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule that it may not import is the rule that everybody has."""
    environs = [{}, {"CDN_RUN_DIR": "/a/b"}, {"XDG_RUNTIME_DIR": "/c"}, {"CDN_RUN_DIR": "d", "XDG_RUNTIME_DIR": "/c"}]
    for has_conf in (False, True):
        directory = tmp_path / str(has_conf)
        directory.mkdir()
        monkeypatch.chdir(directory)
        if has_conf:
            (directory / "supervisord.conf").touch()
        for environ in environs:
            assert settings.default_run_dir(environ) == default_run_dir(environ).path
    assert settings.MAX_SOCKET_PATH_BYTES == MAX_SOCKET_PATH_BYTES


LOCAL = ("127.0.0.1:80", "localhost", "a.localhost:1", "[::1]:80", "web", "web:80")
HOSTS = (*LOCAL, "[::1", "evil.example", "www.example", "WWW.example:443", "", "\xe9", "127.0.0.1.evil.example")
ORIGINS = ("https://evil.example", "null", "", *(f"http://{host}" for host in HOSTS))


@given(
    given=st.fixed_dictionaries(
        {},
        optional={
            "host": st.sampled_from(HOSTS) | st.text("a1.:[]-%", max_size=12),
            "origin": st.sampled_from(ORIGINS),
            "x-forwarded-host": st.sampled_from(HOSTS),
        },
    ),
    method=st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "DELETE", "PUT"]),
    path=st.sampled_from(["/", "/livez", "/readyz", "/api/status"]),
    connected=st.sampled_from(["127.0.0.1", "::1", "192.0.2.1"]),
    hosts=st.sampled_from([frozenset[str](), frozenset({"www.example"}), frozenset({"*"})]),
)
@example(given={"origin": ""}, method="POST", path="/", connected="127.0.0.1", hosts=frozenset())
@example(given={"origin": "", "host": ""}, method="POST", path="/", connected="192.0.2.1", hosts=frozenset())
def test_the_same_origins(given: dict[str, str], method: str, path: str, connected: str, hosts: frozenset[str]) -> None:
    """Whom every service refuses it refuses, with the same words, and nobody else."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
    theirs = refusal(raw, method=method, path=path, connected=connected, hosts=hosts, origins=())
    try:
        origins.check(given, method=method, path=path, connected=connected, hosts=hosts, is_ping=False)
        ours = None
    except RefusedError as error:
        ours = error.status
    assert ours == (theirs.status if theirs else None)


def test_the_same_exit_codes() -> None:
    """The contract with supervisord."""
    ours = (program.OK, program.BUG, program.CONFIGURATION)
    assert ours == (ExitCode.STAY_DOWN, ExitCode.BUG, ExitCode.CONFIGURATION)
