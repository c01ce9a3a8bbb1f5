"""What the documents say is what happens."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import pytest

from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import OrderOutcome, OrderRequest, OutcomeKind, Verb
from bus.operators import AtlasSilent, OperatorLink
from cli.main import COMMANDS
from cli.main import cdnctl as group
from tests.atlas.test_atlas import is_well
from tests.cli.support import ended_afterwards, fleet_copy
from tests.diagrams import fill
from tests.support import BIN, ROOT, ServiceProcess, Supervisord, environment, kill_tree, short_dir, until

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def section(title: str) -> str:
    """Text of a section of the README."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("title", ["Run", "Test"])
def test_two_commands(title: str) -> None:
    """Each is one line in one block, directly under its heading."""
    assert section(title).lstrip("\n").startswith("```sh\n")
    (first, *_) = blocks(section(title), "sh")
    assert len(first.strip().splitlines()) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_parses(document: Path) -> None:
    """Every Python block is Python."""
    for block in blocks(document.read_text(), "python"):
        ast.parse(block)


def test_the_service_of_the_readme_runs(run_dir: RunDir) -> None:
    """Copied out and declared as the README says, it is a supervised member of the fleet, and answers."""
    (source,) = blocks(section("Write a service"), "python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 25
    (run_dir.path / "greeter.py").write_text(source)
    lines = blocks(section("Write a service"), "ini")[0].splitlines()
    program = dict(line.split("=", 1) for line in lines if "=" in line)
    program["stdout_logfile"] = program["stdout_logfile"].replace("/run/", "/")
    programs = {"atlas": {"command": "python -m services.atlas"}, "greeter": program}
    with Supervisord(run_dir.path, programs, env={"CDN_PORT": "0"}) as supervisord:
        operator = OperatorLink(run_dir.operators)
        until(lambda: is_well(operator, "greeter"))
        operator.close()
        port = re.search(r"port (\d+)", supervisord.log("greeter"))
        assert port
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/hello/you", timeout=30) as answer:
            assert answer.read() == b"hello, you\n"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_drawn_is_the_code(document: Path) -> None:
    """Diagrams and tables are those of the code; ``python -m tests.diagrams`` draws them anew."""
    text = document.read_text()
    assert fill(text) == text, f"{document.name} is not what the code says: run python -m tests.diagrams"


def foreign(run_dir: RunDir, source: str) -> list[str]:
    """The command that runs a program of docs/protocol.md for that run directory."""
    return [str(BIN / "python"), "-c", source.replace("ipc://run/", f"ipc://{run_dir.path}/")]


def nothing_of_ours(run_dir: RunDir) -> dict[str, str]:
    """An environment without this project on its path."""
    return {key: value for key, value in environment(run_dir.path).items() if key != "PYTHONPATH"}


def test_an_operator_in_ten_lines(run_dir: RunDir) -> None:
    """The operator of docs/protocol.md, with nothing of this project on its path, lists the fleet."""
    _, source = blocks((ROOT / "docs" / "protocol.md").read_text(), "python")
    env = nothing_of_ours(run_dir)

    def listed() -> bool:
        done = subprocess.run(foreign(run_dir, source), env=env, cwd="/", capture_output=True, text=True, timeout=60)
        return done.returncode == 0 and "atlas RUNNING" in done.stdout

    with ServiceProcess(run_dir.path, "-m", "services.atlas"):
        until(listed)


def test_a_member_in_another_language(run_dir: RunDir) -> None:
    """The member of docs/protocol.md is in the fleet, obeys what it knows, and rejects the rest."""
    source, _ = blocks((ROOT / "docs" / "protocol.md").read_text(), "python")
    with ServiceProcess(run_dir.path, "-m", "services.atlas"):
        member = subprocess.Popen(foreign(run_dir, source), env=nothing_of_ours(run_dir), cwd="/")
        operator = OperatorLink(run_dir.operators)
        try:
            until(lambda: is_well(operator, "elsewhere"), what="the member is in the fleet")
            until(lambda: ended(operator, Verb.HEALTH_CHECK, "elsewhere") is OutcomeKind.DONE, what="it obeys")
            until(lambda: ended(operator, Verb.SHED, "elsewhere") is OutcomeKind.REJECTED, what="it rejects")
        finally:
            operator.close()
            kill_tree(member.pid)
            member.wait()


def ended(operator: OperatorLink, verb: Verb, name: str) -> OutcomeKind | None:
    """How an order ended, if ATLAS was there in time to take it."""
    order = OrderRequest(id=new_id(), verb=verb, names=(name,), timeout_s=30.0, asked_by="a test")
    operator.request(order, timeout_s=30.0)
    try:
        for reply in operator.replies(order.id, timeout_s=60.0):
            if isinstance(reply, OrderOutcome):
                return reply.kind
    except AtlasSilent:
        return None
    return None


# -- documents whose commands are run ----------------------------------------------------------------------------

CALM = """
set -euo pipefail
trap 'pwd > "$HOME/cwd"' EXIT
# On a busy machine ATLAS may be late (4), an order too (124), and a service not quite well (3): all of that is told,
# and no fault of the document.
cdnctl() {
    local code
    for _ in $(seq 60); do
        command cdnctl "$@" && code=0 || code=$?
        [ $code = 4 ] || [ $code = 124 ] || break
        sleep 0.5
    done
    case "$1 $code" in "status 3" | "ls 3" | "describe 3" | "up 3" | "doctor 3") code=0 ;; esac
    return $code
}
# Every port is one that was free, and another after each start.
address() {
    local found=
    for _ in $(seq 60); do
        found=$(command cdnctl status "$1" --json 2> /dev/null | sed -n 's|.*"address": "http://||p') || true
        [ -z "$found" ] || break
        sleep 0.5
    done
    echo "${found%%\\"*}"
}
curl() {
    command curl "${@/127.0.0.1:18700/$(address hello)}"
}
"""
INTERRUPTED = 130
VARIABLES = {
    variable
    for folder in ("bus", "cdn_daemon", "cli", "services", "tests/faults")
    for path in (ROOT / folder).rglob("*.py")
    for variable in re.findall(r"\bCDN_[A-Z_]*[A-Z]\b", path.read_text())
}


class Reader:
    """Somebody who does what a document says, in a home of their own; where it has a port, theirs is another."""

    def __init__(self, home: Path) -> None:
        self.home = self.cwd = home
        clean = {key: value for key, value in environment(home).items() if key not in ("CDN_RUN_DIR", "PYTHONPATH")}
        self._env = clean | {"CDN_PORT": "0", "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "xterm"}

    def run(self, block: str) -> str:
        """A block of sh to its end; all that it has said."""
        done = subprocess.run(
            ["bash", "-c", CALM + block],
            cwd=self.cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"exit code {done.returncode} of\n{block}\n{done.stdout}"
        self.cwd = Path((self.home / "cwd").read_text().strip())
        return done.stdout

    def begin(self, command: str) -> subprocess.Popen[bytes]:
        """A command that goes on; whoever begins it ends it."""
        return subprocess.Popen(
            shlex.split(command),
            cwd=self.cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ends_with(self, command: str) -> int:
        """Its exit code."""
        return self.begin(shlex.join(["sh", "-c", command])).wait(timeout=60)

    def watch(self, line: str) -> None:
        """A command that goes on: on a terminal, until it has shown something; then it is interrupted."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.cwd)
            os.execvpe("bash", ["bash", "-c", f"exec {line}"], self._env)
        try:
            shown = b""

            def more() -> bool:
                nonlocal shown
                while select.select([terminal], [], [], 0)[0]:
                    shown += os.read(terminal, 65536)
                return len(shown) > 200

            until(more, what=f"{line} shows something", within_s=60)
            os.write(terminal, b"\x03")

            def has_ended() -> int | None:
                while select.select([terminal], [], [], 0)[0]:
                    try:
                        os.read(terminal, 65536)
                    except OSError:  # the terminal is nobody's any more
                        break
                ended, status = os.waitpid(pid, os.WNOHANG)
                return (os.waitstatus_to_exitcode(status) or -1) if ended else None

            assert until(has_ended, what=f"{line} ends", within_s=60) == INTERRUPTED, shown.decode(errors="replace")
            pid = 0
        finally:
            if pid:
                kill_tree(pid)
                os.waitpid(pid, 0)
            os.close(terminal)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """With an empty home; what was started there is ended afterwards."""
    with short_dir() as home, ExitStack() as ended:
        for place in (home, home / "fleet", home / "example"):
            ended.enter_context(ended_afterwards(place / "run"))
        yield Reader(home)


def follow(reader: Reader, name: str) -> str:
    """Every block of a document, in order; all that was said."""
    said = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / name).read_text(), re.M | re.S):
        if language == "sh":
            said.append(reader.run(block))
        elif language == "console":
            for line in block.splitlines():
                reader.watch(line)
    return "".join(said)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_variables_are_there(document: Path) -> None:
    """Every command of cdnctl that is named, with its options, and every CDN_* of the environment, is in the code."""
    text = document.read_text()
    for words in re.findall(r"cdnctl ((?:[a-z][\w-]*)[^`\n|&;#]*)", text):
        name, *rest = words.split()
        command = group.get_command(click.Context(group), name)
        if command is None:
            assert f"`cdnctl {name}" not in text, f"{document.name} speaks of cdnctl {name}"
            continue  # the words of a sentence
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        told = {word.partition("=")[0].rstrip(".,:)") for word in rest if re.match(r"--[a-z]", word)}
        assert told <= known | {"--help"}, f"{document.name}: cdnctl {words}"
    for variable in set(re.findall(r"\bCDN_[A-Z_]*[A-Z]\b", text)):
        assert variable in VARIABLES or variable.startswith("CDN_LIMIT_"), f"{document.name} speaks of {variable}"


@pytest.mark.timeout(600)
def test_deploying(reader: Reader) -> None:
    """The unit's commands and the container's start the fleet, and its health check tells that it is well."""
    fleet_copy(reader.home)
    document = (ROOT / "docs" / "deploying.md").read_text()
    unit = dict(line.split("=", 1) for line in blocks(document, "ini")[0].splitlines() if "=" in line)
    container = blocks(document, "dockerfile")[0]
    (check,) = re.findall(r"^HEALTHCHECK CMD (.*)$", container, re.MULTILINE)
    (contained,) = re.findall(r"^CMD (.*)$", container, re.MULTILINE)
    reader.run(unit["ExecStartPre"].replace("/srv/cdn", str(reader.home)))
    for command in (unit["ExecStart"].replace("/srv/cdn/.venv/bin", str(BIN)), shlex.join(json.loads(contained))):
        supervisord = reader.begin(command.replace("/srv/cdn", str(reader.home)))
        try:
            until(lambda: reader.ends_with(check) == 0, within_s=120, what="the health check")
            supervisord.terminate()
            assert supervisord.wait(timeout=60) == 0
        finally:
            kill_tree(supervisord.pid)
        assert reader.ends_with(check) == 1


@pytest.mark.timeout(600)
def test_getting_started(reader: Reader) -> None:
    """From nothing to a service of one's own, by its commands alone."""
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    said = follow(reader, "getting-started.md")
    for word in ("hello, you", "SIGKILL", "good day, you", "web"):
        assert word in said
    assert said.rstrip().splitlines()[-1].startswith("cdnctl: down")


@pytest.mark.timeout(600)
def test_operating(reader: Reader) -> None:
    """Every command, against the project's own fleet."""
    fleet_copy(reader.home)
    said = follow(reader, "operating.md")
    assert "none has failed" in said
    document = (ROOT / "docs" / "operating.md").read_text()
    for command in COMMANDS:
        assert re.search(rf"^cdnctl {command}\b", document, re.MULTILINE), f"{command} has no example"
