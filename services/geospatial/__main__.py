"""Geospatial service: which places lie where, what moves, and which borders it crosses."""

from __future__ import annotations

from collections.abc import Mapping

from bus.endpoints import default_run_dir
from cdn_daemon import Band, Limits, MiB, Service, run
from services.geospatial.ooda import IndexChooser
from services.geospatial.server import make_app

NAME = "cdn-geospatial"

run_dir = default_run_dir()
app = make_app(run_dir.state(NAME), run_dir.path / f"{NAME}.token")
places = app.state.places

service = Service(
    NAME,
    app=app,
    port=18111,
    ooda=IndexChooser(places.store),
    background=places.background,
    limits=Limits(rss_bytes=Band(soft=1024 * MiB, hard=2048 * MiB, for_s=30)),
)
places.emit = service.emit


@service.check(every_s=5, timeout_s=2, fails_after=3)
def store_answers() -> None:
    """Unhealthy while the database cannot be read."""
    places.store.answers()


@service.metrics
def measured() -> Mapping[str, float]:
    """Features, reads and writes of each collection; positions and crossings."""
    numbers: Mapping[str, float] = app.state.server.metrics()
    return numbers


if __name__ == "__main__":
    run(service)
