"""What operators type is a name or a glob of the fleet, and never a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.exits import Exit
from tests.cli.support import cdnctl
from tests.support import Supervisord


@pytest.fixture
def fleet(run_path: Path) -> Supervisord:
    """One that is not there: names are looked up before anything is asked."""
    (run_path / "secret.log").write_text("secret\n")
    return Supervisord(run_path, {"web": {"command": "sleep 1000"}})


def test_a_name_is_no_path(fleet: Supervisord) -> None:
    """cdnctl logs, why and status of what leads elsewhere: unknown, and nothing of a file is shown."""
    outside = ["../../etc/passwd", "/etc/passwd", "..", "secret", "./secret", "web/../secret", "a" * 5000, "\x1b[2J"]
    with fleet:
        for verb in (("logs",), ("logs", "--json"), ("status",), ("why",)):
            for name in outside:
                done = cdnctl(fleet.run_dir, *verb, "--", name)
                assert done.returncode == Exit.UNKNOWN, (verb, name[:20], done)
                assert "root:" not in done.stdout + done.stderr
                assert "secret\n" not in done.stdout
                assert "\x1b[2J" not in done.stdout + done.stderr
