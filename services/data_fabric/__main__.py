"""Data fabric: tables from files, SQL over HTTP, and indexes that come and go by themselves."""

from __future__ import annotations

from collections.abc import Mapping

from bus.endpoints import default_run_dir
from cdn_daemon import Service, run
from services.data_fabric.ooda import IndexTuner
from services.data_fabric.server import make_app

app = make_app(default_run_dir().state("cdn-data-fabric"))
store = app.state.store

service = Service("cdn-data-fabric", app=app, port=18100, ooda=IndexTuner(store))


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
