"""docs/security.md: every test that it names is there, and no socket, port or target is left out."""

from __future__ import annotations

import re

from bus.endpoints import RunDir
from tests.fuzz.targets import TARGETS
from tests.support import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text()


def test_the_tests_that_it_names_exist() -> None:
    """A door whose test was renamed or dropped is said so."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for path, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"


def test_no_door_is_left_out() -> None:
    """Every socket of the bus, and every port of supervisord.conf's programs."""
    run_dir = RunDir(ROOT)
    for endpoint in (run_dir.telemetry, run_dir.feed, run_dir.agents, run_dir.operators):
        assert f"`{endpoint.rpartition('/')[2]}`" in TEXT
    readme = (ROOT / "README.md").read_text()
    ports = set(re.findall(r"\| (18\d{3}) \|", readme)) | {"18500"}
    assert len(ports) == 10
    assert ports <= set(re.findall(r"18\d{3}", TEXT))


def test_the_step_of_ci_is_the_documents() -> None:
    """The command is one, and its targets are more than a handful."""
    (command,) = re.findall(r"`(python -m tests\.fuzz --engine[^`]+)`", TEXT)
    assert command in (ROOT / ".ci" / "run").read_text()
    assert len(TARGETS) > 20
