"""Threat intelligence: feeds in, verdicts on addresses, names, URLs and hashes out; TAXII 2.1."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from bus.messages import ChangePoint, Event, Reaction, ReactionState
from cdn_daemon import Band, Limits, MiB, Service, run
from services.threat_intel.api import SightingRequest
from services.threat_intel.ooda import FeedTuner
from services.threat_intel.server import make_app
from services.threat_intel.values import NoValue, read

NAME = "cdn-threat-intel"
INSTANCE = os.environ.get("CDN_INSTANCE") or NAME

run_dir = default_run_dir()
app = make_app(run_dir.state(NAME), run_dir.path / f"{NAME}.token")
intel = app.state.intel

service = Service(
    NAME,
    app=app,
    port=18110,
    # Of several instances over the one database the first tunes it.
    ooda=FeedTuner(intel.store, intel.correlator) if INSTANCE == NAME else None,
    background=intel.background,
    limits=Limits(rss_bytes=Band(soft=1024 * MiB, hard=2048 * MiB, for_s=30)),
)
intel.emit = service.emit


@service.check(every_s=5, timeout_s=2, fails_after=3)
def store_answers() -> None:
    """Unhealthy while the database cannot be read."""
    intel.store.answers()


@service.metrics
def measured() -> Mapping[str, float]:
    """Look-ups, verdicts, what each feed is worth."""
    numbers: Mapping[str, float] = app.state.server.metrics()
    return numbers


@service.hears(ChangePoint, back_s=60)
async def series_rose(event: Event, facts: ChangePoint) -> None:
    """Whoever is behind a series that has risen was seen; kept, and told on with the change as its cause."""
    found = re.search(r"[0-9a-fA-F:.]{7,45}", facts.source)
    if facts.direction != "up" or found is None or INSTANCE != NAME:
        return
    try:
        value = read(found[0])
    except NoValue:
        return
    await intel.sight(
        [
            SightingRequest(
                value=value.key,
                seen_by=f"{event.source}: {facts.series}"[:256],
                at_s=facts.at_s,
                cause=event.id,
                id=f"change-{event.id}"[:256],
            )
        ]
    )


@service.hears(Reaction, back_s=60)
async def reaction_went_on(event: Event, facts: Reaction) -> None:
    """A ban that was taken back is a person's word: those who listed its target were wrong."""
    import asyncio

    if facts.state is not ReactionState.ROLLED_BACK or facts.action != "deny" or INSTANCE != NAME:
        return
    try:
        value = read(facts.target)
    except NoValue:
        return
    await asyncio.to_thread(intel.judge, value.key, is_true=False, feed=None, judged_by=facts.by or event.source)


if __name__ == "__main__":
    run(service)
