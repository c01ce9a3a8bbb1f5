"""Completion as shells do it: commands, options, and the names of the fleet that runs."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bus.endpoints import RunDir
from cli.exits import Exit
from cli.main import ALIASES, COMMANDS
from tests.cli.fake_atlas import FakeAtlas
from tests.cli.support import cdnctl, view
from tests.support import BIN, Supervisord, environment

FLEET = [view("atlas", uptime_s=100.0), view("web"), view("web-2", service="web"), view("db")]
BASH = (
    "source <(cdnctl completion bash); COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
    '_cdnctl_completion cdnctl; printf "%%s\\n" "${COMPREPLY[@]}"'
)


def shell(run_dir: RunDir, *command: str) -> subprocess.CompletedProcess[str]:
    """A shell with cdnctl on its PATH."""
    env = environment(run_dir.path)
    env["PATH"] = f"{BIN}:{env['PATH']}"
    return subprocess.run(command, env=env, cwd=run_dir.path, capture_output=True, text=True, timeout=60)


def completed(run_dir: RunDir, *words: str) -> list[str]:
    """What cdnctl says that the last word may become."""
    env = {"_CDNCTL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = cdnctl(run_dir.path, env=env)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["cdnctl", "res"], ["restart", "reset-failed", "resume"]),
        (["cdnctl", "sho"], ["show"]),
        (["cdnctl", "restart", ""], ["atlas", "web", "web-2", "db"]),
        (["cdnctl", "restart", "web"], ["web", "web-2"]),
        (["cdnctl", "restart", "web", "web"], ["web-2"]),
        (["cdnctl", "ls", "d"], ["db"]),
        (["cdnctl", "scale", "d"], ["db"]),
        (["cdnctl", "wait", "db", "--for", "h"], ["healthy"]),
        (["cdnctl", "status", "--no"], ["--no-headers"]),
        (["cdnctl", "status", "-o", "j"], ["json", "jsonl"]),
        (["cdnctl", "completion", "z"], ["zsh"]),
        (["cdnctl", "--v"], ["--version"]),
        (["cdnctl", "nonsense", "x"], []),
    ],
)
def test_words(run_dir: RunDir, words: list[str], found: list[str]) -> None:
    """Names that are on the line already are not offered again."""
    with FakeAtlas(run_dir, FLEET):
        assert completed(run_dir, *words) == found


def test_every_command_is_offered(run_dir: RunDir) -> None:
    """And every alias."""
    assert set(completed(run_dir, "cdnctl", "")) >= {*COMMANDS, *ALIASES}


def test_the_run_directory_of_the_line_counts(run_dir: RunDir) -> None:
    """Its fleet is asked, and not the one of the environment."""
    with FakeAtlas(run_dir, FLEET):
        env = {"CDN_RUN_DIR": "/nonexistent", "_CDNCTL_COMPLETE": "bash_complete", "COMP_CWORD": "4"}
        done = cdnctl(run_dir.path, env={**env, "COMP_WORDS": f"cdnctl --run-dir {run_dir.path} stop d"})
    assert done.stdout == "plain,db\n"


def test_nobody_to_ask_is_no_error(run_dir: RunDir) -> None:
    """There is nothing to offer then, and nothing is said in the middle of somebody's line."""
    assert completed(run_dir, "cdnctl", "stop", "") == []


def test_names_without_atlas(run_dir: RunDir) -> None:
    """supervisord has them, too."""
    with Supervisord(run_dir.path, {"one": {"command": "sleep 1000"}}, warden=False):
        assert completed(run_dir, "cdnctl", "stop", "o") == ["one"]


def test_bash(run_dir: RunDir) -> None:
    """What cdnctl completion prints works in it."""
    with FakeAtlas(run_dir, FLEET):
        done = shell(run_dir, "bash", "-c", BASH % "cdnctl restart we")
    assert (done.stdout.split(), done.stderr) == (["web", "web-2"], "")


def test_fish(run_dir: RunDir) -> None:
    """The same."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed: apt-get install fish")
    with FakeAtlas(run_dir, FLEET):
        done = shell(run_dir, "fish", "-c", "cdnctl completion fish | source; complete -C 'cdnctl restart we'")
    assert done.stdout.split() == ["web", "web-2"]


def test_zsh(run_dir: RunDir) -> None:
    """It has its place in zsh's table of completions afterwards."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed: apt-get install zsh")
    script = "autoload -U compinit; compinit -u -D; source <(cdnctl completion zsh); print -r -- $_comps[cdnctl]"
    done = shell(run_dir, "zsh", "-f", "-c", script)
    assert (done.stdout, done.stderr) == ("_cdnctl_completion\n", "")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells_own(run_dir: RunDir, name: str) -> None:
    """Printed without asking anybody."""
    done = cdnctl(run_dir.path, "completion", name)
    assert done.returncode == Exit.OK
    assert f"_CDNCTL_COMPLETE={name}_complete" in done.stdout


def test_version(run_dir: RunDir) -> None:
    """Of cdnctl first."""
    assert cdnctl(run_dir.path, "version").stdout.startswith("cdnctl 0.1.0\n")
    assert cdnctl(run_dir.path, "version", "-o", "name").stdout == "0.1.0\n"
