"""The thread that writes: what cannot follow the disk in memory ends the process, so that nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

PROGRAM = """
import sys
import apsw
from services.writer import Writer

def broken(_: object = None) -> None:
    raise RuntimeError("it cannot follow")

committed = broken if sys.argv[2] == "committed" else lambda: None
writer = Writer(apsw.Connection(sys.argv[1]), waiting=10, committed=committed)
then = broken if sys.argv[2] == "then" else lambda _: None
writer.submit(lambda connection: connection.execute("CREATE TABLE t (n)"), then=then).result()
"""


@pytest.mark.parametrize("place", ["then", "committed"])
def test_what_cannot_follow_the_disk(tmp_path: Path, place: str) -> None:
    """It ends with 70, at which it is started again, and says why."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "db"), place],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 70
    assert "RuntimeError: it cannot follow" in done.stderr
