"""The monitor beside a real fleet: what it finds, what it tells, and what it does not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.isolated_monitoring.support import NAME, client_of, opened
from tests.support import Supervisord, until

FLEET = {
    NAME: {"command": "python -m services.isolated_monitoring", "priority": "1"},
    "atlas": {"command": "python -m services.atlas", "priority": "10"},
    "cdn-data-fabric": {"command": "python -m services.data_fabric", "priority": "20"},
}
BUS = {"bus telemetry", "bus feed", "bus agents", "bus operators"}


def test_atlas_and_the_bus_are_killed(run_path: Path) -> None:
    """One alert, naming ATLAS and the bus; ordered restarts and stops are none."""
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        client = client_of(run_path, run_path / f"{NAME}.log")
        everyone = {"atlas", "cdn-data-fabric", "supervisord", *BUS}
        until(lambda: {name for name, how in client.conditions().items() if how == "up"} == everyone, what="all is up")

        supervisord.ctl("restart", "cdn-data-fabric")
        supervisord.ctl("restart", "atlas")
        supervisord.ctl("stop", "cdn-data-fabric")
        until(lambda: client.conditions()["cdn-data-fabric"] == "stopped", what="the stop is seen")
        until(lambda: client.conditions()["atlas"] == "up", what="ATLAS is seen again")
        assert not opened(run_path)

        os.kill(supervisord.pid("atlas"), signal.SIGKILL)
        (alert,) = until(lambda: opened(run_path), what="the alert")
        assert alert["root"] == "atlas"
        assert "SIGKILL" in alert["reason"]
        assert set(alert["consequences"]) == BUS
        assert alert["lasted_s"] < 3
        until(lambda: client.conditions()["atlas"] == "up", what="ATLAS is seen again")
        until(lambda: not client.get("/api/status").json["incidents"], what="the incident is over")
        assert len(opened(run_path)) == 1
