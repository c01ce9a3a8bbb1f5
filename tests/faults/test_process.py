"""Faults of a process, each done to a real one in a real fleet, and read off the history afterwards."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults import injections
from tests.faults.fleet import Fleet, faulty

pytestmark = pytest.mark.faults


def test_crash(run_path: Path) -> None:
    """Replaced; how it ended is in the post-mortem."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        injections.crash(victim)
        fleet.serving("web", after=victim)
        end = fleet.end("web")
        assert (end.pid, end.end, end.wait_status) == (victim.pid, "killed by SIGKILL", signal.SIGKILL)
        assert end.verdict == ""
        assert len(fleet.events("web", "restart")) == 1
