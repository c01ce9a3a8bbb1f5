"""Help, usage and version; and that help costs hardly more than click."""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.exits import Exit
from cli.foreign import ELSEWHERE
from cli.main import ALIASES, COMMANDS
from cli.main import cdnctl as group
from tests.cli.support import CDNCTL, cdnctl

ROUNDS = 15


def test_help_names_every_command(run_path: Path) -> None:
    """With the line that its own help begins with."""
    done = cdnctl(run_path, "--help")
    assert done.returncode == Exit.OK
    for name, line in COMMANDS.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").splitlines()[0] == line
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_and_exit_codes(run_path: Path, name: str) -> None:
    """Its help is enough to use it."""
    done = cdnctl(run_path, name, "--help")
    assert done.returncode == Exit.OK
    assert "Examples:" in done.stdout
    assert f"cdnctl {name}" in done.stdout.partition("Examples:")[2]
    assert "Exit code: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def examples() -> Iterator[list[str]]:
    """Every command line of cdnctl in a help text, as words; what a shell adds is left off."""
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        for line in (command.help or "").partition("Examples:")[2].splitlines():
            for part in re.split(r" \|\|? | && |; | > | {3,}|<\(|\) ", line.strip()):
                words = shlex.split(part.split("cdnctl ", 1)[1], posix=True) if "cdnctl " in part else []
                if words:
                    yield words


@pytest.mark.parametrize("words", list(examples()), ids=" ".join)
def test_every_example_is_a_command_line_that_works(words: list[str]) -> None:
    """As far as it can be told without running it: the command is there, its options are, their values are right."""
    root = group.make_context("cdnctl", list(words))
    name, command, rest = group.resolve_command(root, [*root._protected_args, *root.args])
    assert command is not None
    command.make_context(name, rest, parent=root)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["status", "--nonsense"],
        ["restart"],
        ["stop", "a", "--timeout", "soon"],
        ["up", "--timeout", "0"],
        ["logs", "a", "-n", "-1"],
    ],
)
def test_wrong_usage_is_2(run_path: Path, arguments: list[str]) -> None:
    """And says what is wrong on stderr."""
    done = cdnctl(run_path, *arguments)
    assert done.returncode == Exit.USAGE
    assert done.stdout == ""
    assert "Error: " in done.stderr


def test_version(run_path: Path) -> None:
    """The distribution's."""
    done = cdnctl(run_path, "--version")
    assert (done.returncode, done.stdout) == (Exit.OK, "cdnctl 0.1.0\n")


def test_help_imports_click_and_little_else() -> None:
    """Nothing outside cli/main.py and cli/exits.py that click, or the interpreter itself, does not have already."""
    script = (
        "import sys, click; before = {*sys.modules, 'gc'}; import cli.main; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cli", "cli.exits", "cli.main"]


def test_help_costs_hardly_more_than_importing_click() -> None:
    """Under 1.5 times, by the medians of runs that alternate."""
    ratios: list[float] = []
    while len(ratios) < 3:  # a host busy with something else gets another look
        ratios.append(ratio_of_medians([str(CDNCTL), "--help"], [sys.executable, "-c", "import click"]))
        if ratios[-1] < 1.5:
            return
    raise AssertionError(f"cdnctl --help takes {ratios} times as long as importing click")


def ratio_of_medians(one: list[str], other: list[str]) -> float:
    """How much longer one command takes than the other."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for command, taken in zip((one, other), times, strict=True):
            began_s = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            taken.append(time.perf_counter() - began_s)
    return statistics.median(times[0]) / statistics.median(times[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ps"], "No such command 'ps'; here that is: cdnctl status"),
        (["update"], "here that is: supervisorctl -c supervisord.conf update"),
        (["statsu"], "No such command 'statsu'; did you mean status"),
        (["nonsense"], "No such command 'nonsense'."),
        (["help", "nonsense"], "No such command 'nonsense'."),
    ],
)
def test_what_it_is_called_elsewhere_is_answered(run_path: Path, words: list[str], said: str) -> None:
    """Somebody's fingers know supervisorctl, systemctl or pm2."""
    done = cdnctl(run_path, *words)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert said in done.stderr


def test_what_is_named_instead_is_there() -> None:
    """And no word is refused that is a command."""
    for word, instead in ELSEWHERE.items():
        assert word not in {*COMMANDS, *ALIASES}
        if instead.startswith("cdnctl "):
            assert instead.split()[1].strip(";,") in COMMANDS


def test_help_is_a_word_too(run_path: Path) -> None:
    """cdnctl help, and of one command."""
    assert cdnctl(run_path, "help").stdout == cdnctl(run_path, "--help").stdout
    assert cdnctl(run_path, "help", "stop").stdout == cdnctl(run_path, "stop", "--help").stdout
