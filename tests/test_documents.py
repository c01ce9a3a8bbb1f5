"""What the documents say is what happens."""

from __future__ import annotations

import ast
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest

from bus.endpoints import RunDir
from bus.operators import OperatorLink
from tests.atlas.test_atlas import is_well
from tests.diagrams import fill
from tests.support import BIN, ROOT, ServiceProcess, Supervisord, environment, until

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


def test_an_operator_in_ten_lines(run_dir: RunDir) -> None:
    """The operator of docs/protocol.md, with nothing of this project on its path, lists the fleet."""
    (source,) = blocks((ROOT / "docs" / "protocol.md").read_text(), "python")
    source = source.replace("ipc://run/", f"ipc://{run_dir.path}/")
    env = environment(run_dir.path)
    del env["PYTHONPATH"]

    def listed() -> bool:
        done = subprocess.run(
            [str(BIN / "python"), "-c", source], env=env, cwd="/", capture_output=True, text=True, timeout=60
        )
        return done.returncode == 0 and "atlas RUNNING" in done.stdout

    with ServiceProcess(run_dir.path, "-m", "services.atlas"):
        until(listed)
