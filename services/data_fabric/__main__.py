"""Data fabric: tables from files, SQL over HTTP, and indexes that come and go by themselves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from bus.messages import Alert, Blocked, ChangePoint, Event, Facts, Fence, Reaction, Sighting
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
    """Unhealthy while the database cannot be opened and read."""
    store.answers()


@service.metrics
def measured() -> Mapping[str, float]:
    """Statements, rows, what waits, and the tuner's indexes."""
    numbers: Mapping[str, float] = app.state.fabric.metrics()
    return numbers


async def kept(event: Event, _: Facts) -> None:
    """Each event of the services is a row of the table events: what came of what is one query."""
    if await asyncio.wrap_future(store.hear(event)):
        await asyncio.to_thread(store.catch_up)


for facts in (ChangePoint, Sighting, Reaction, Blocked, Alert, Fence):
    service.hears(facts, back_s=600)(kept)


@service.drain
async def told(_: float) -> None:
    """Who waits for changes gets an answer."""
    app.state.fabric.feed.end()


if __name__ == "__main__":
    run(service)
