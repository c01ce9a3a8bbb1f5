"""Data fabric: tables from files, SQL over HTTP, and indexes that come and go by themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from cdn_daemon import Service, run
from services.data_fabric.ooda import IndexTuner
from services.data_fabric.server import make_app

NAME = "cdn-data-fabric"
INSTANCE = os.environ.get("CDN_INSTANCE") or NAME

run_dir = default_run_dir()
app = make_app(run_dir.state(NAME), spool=run_dir.state(INSTANCE) / "spool")
store = app.state.store

# Of several instances over the one database the first tunes it: two would drop each other's indexes.
service = Service(NAME, app=app, port=18100, ooda=IndexTuner(store) if INSTANCE == NAME else None)


@service.check(every_s=5, timeout_s=2, fails_after=3)
def store_answers() -> None:
    """Unhealthy while the database cannot be opened and read, or its writer is gone."""
    store.answers()


@service.metrics
def measured() -> Mapping[str, float]:
    """Statements, rows, what waits, and the tuner's indexes."""
    numbers: Mapping[str, float] = app.state.fabric.metrics()
    return numbers


if __name__ == "__main__":
    run(service)
