"""A service whose database cannot be read says so, and stays down with 78: no crash loop, and no serving of nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import ServiceProcess

DATABASES = {
    "services.data_fabric": "cdn-data-fabric/fabric.db",
    "services.geospatial": "cdn-geospatial/places.db",
    "services.graph": "glaf-graph-server/graph.db",
    "services.monitoring": "cdn-monitoring/monitoring.db",
    "services.statistical": "cdn-statistical/statistical.db",
}


@pytest.mark.parametrize("module", DATABASES)
@pytest.mark.parametrize("damage", ["no database", "cut short", "a directory"])
def test_what_cannot_be_read_is_named_and_left_alone(run_path: Path, module: str, damage: str) -> None:
    """Something else altogether; its end, or more, missing; not even a file."""
    path = run_path / "state" / DATABASES[module]
    path.parent.mkdir(parents=True)
    if damage == "a directory":
        path.mkdir()
    elif damage == "no database":
        path.write_bytes(b"no database\n" * 1000)
    else:
        with ServiceProcess(run_path, "-m", module, CDN_STATSD_PORT="0") as service:
            service.url()
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        path.write_bytes(path.read_bytes()[:5000])
    before = path.read_bytes() if path.is_file() else b""
    with ServiceProcess(run_path, "-m", module, CDN_STATSD_PORT="0") as service:
        assert service.wait() == 78, service.log()
        assert str(path) in service.log()
    assert (path.read_bytes() if path.is_file() else b"") == before
