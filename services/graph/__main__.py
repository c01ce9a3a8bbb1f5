"""Graph: nodes and relationships; patterns, paths and algorithms; what the bus tells, as a graph."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from bus.messages import Blocked, Event, Reaction, Sighting
from cdn_daemon import Band, ExitCode, Limits, MiB, Service, run
from cdn_daemon.settings import SettingError
from services.graph.limits import read_limits
from services.graph.ooda import GraphTuner
from services.graph.server import make_app

NAME = "glaf-graph-server"
INSTANCE = os.environ.get("CDN_INSTANCE") or NAME

try:
    # Scaled, several processes are over the one database; each has a snapshot and a loop of its own.
    app = make_app(default_run_dir().state(NAME), limits=read_limits(os.environ))
except SettingError as error:
    print(error, file=sys.stderr)
    sys.exit(ExitCode.CONFIGURATION)

graph = app.state.graph
service = Service(
    NAME,
    app=app,
    port=18050,
    ooda=GraphTuner(graph.engine),
    background=graph.background,
    limits=Limits(rss_bytes=Band(soft=1024 * MiB, hard=3072 * MiB, for_s=30)),
)


@service.check(every_s=5, timeout_s=2, fails_after=3)
def store_answers() -> None:
    """Unhealthy while the database cannot be read."""
    graph.store.answers()


@service.metrics
def measured() -> Mapping[str, float]:
    """Reads, writes, the snapshot."""
    numbers: Mapping[str, float] = graph.metrics()
    return numbers


# What happened in the last ten minutes is heard again after a restart, and does nothing the second time.
if INSTANCE == NAME:

    @service.hears(Sighting, back_s=600)
    async def sighted(event: Event, facts: Sighting) -> None:
        """Who was seen doing what."""
        await graph.hear(event, facts)

    @service.hears(Reaction, back_s=600)
    async def reacted(event: Event, facts: Reaction) -> None:
        """What was done about it."""
        await graph.hear(event, facts)

    @service.hears(Blocked, back_s=600)
    async def blocked(event: Event, facts: Blocked) -> None:
        """Who is refused."""
        await graph.hear(event, facts)


if __name__ == "__main__":
    run(service)
