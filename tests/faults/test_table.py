"""docs/faults.md and the tests are one table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support import ROOT

TESTS = ROOT / "tests"


def rows() -> dict[str, list[str]]:
    """Fault → the tests that its row names, of every table."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| fault "):
            fault, *_, tests = (cell.strip() for cell in line.strip("|").split(" | "))
            found[fault.strip()] = re.findall(r"`([^`]+)`", tests)
    return found


def is_marked(node: ast.expr) -> bool:
    """Whether it is ``pytest.mark.faults``."""
    return ast.unparse(node) == "pytest.mark.faults"


def marked(path: Path) -> list[str]:
    """Tests of a file that have the marker, by themselves or by their module's, as the document names them."""
    body = ast.parse(path.read_text()).body
    assigned = [node for node in body if isinstance(node, ast.Assign)]
    is_whole = any(ast.unparse(node.targets[0]) == "pytestmark" and is_marked(node.value) for node in assigned)
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    place = "" if path.parent.name == "faults" else f"{path.relative_to(TESTS)}::"
    return [f"{place}{test.name}" for test in tests if is_whole or any(map(is_marked, test.decorator_list))]


def test_every_row_has_its_tests_and_every_test_its_row() -> None:
    table = rows()
    assert len(table) >= 28
    assert [fault for fault, tests in table.items() if not tests] == []
    named = {test for tests in table.values() for test in tests}
    there = {test for path in TESTS.rglob("test_*.py") for test in marked(path)}
    assert named == there
