"""Monitoring: the fleet's metrics, kept; PromQL's better part; alerts."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from bus.messages import Alert
from cdn_daemon import Band, ExitCode, Limits, MiB, Service, run
from cdn_daemon.settings import SettingError
from services.monitoring import rules
from services.monitoring.limits import read_limits
from services.monitoring.ooda import IntervalLoop
from services.monitoring.rules import Rule
from services.monitoring.server import make_app

NAME = "cdn-monitoring"
INSTANCE = os.environ.get("CDN_INSTANCE") or NAME

run_dir = default_run_dir()
try:
    limits = read_limits(os.environ)
except SettingError as error:
    print(error, file=sys.stderr)
    sys.exit(ExitCode.CONFIGURATION)

app = make_app(run_dir.state(INSTANCE), feed=run_dir.feed, hostname=socket.gethostname(), limits=limits)
monitor = app.state.monitor
api = app.state.api
service = Service(
    NAME,
    app=app,
    port=18109,
    ooda=IntervalLoop(
        monitor.scraper.schedule, monitor.scraper.lock, lambda: (monitor.scraper.samples, monitor.scraper.took_s * 1e3)
    ),
    background=monitor.background,
    limits=Limits(rss_bytes=Band(soft=768 * MiB, hard=1536 * MiB, for_s=30)),
)


@service.check(every_s=5, timeout_s=1, fails_after=2)
def keeper_runs() -> None:
    """Unhealthy when nothing is written any more because the thread is gone."""
    if not monitor.keeper.is_alive():
        raise RuntimeError("the thread of the keeper has ended")


@service.check(every_s=5, timeout_s=1, fails_after=None)
def disk_takes_what_is_written() -> None:
    """Degraded while it does not: what was scraped waits."""
    if monitor.keeper.broken:
        raise RuntimeError(monitor.keeper.broken)


@service.metrics
def measured() -> Mapping[str, float]:
    """Scrapes, samples, series, rules."""
    numbers: Mapping[str, float] = monitor.metrics()
    return numbers


def tell(change: rules.Change, rule: Rule, id: str) -> None:
    """An alert has changed: to the bus and the page, and to the stream."""
    shown = ", ".join(f"{name}={text}" for name, text in change.labels if name != "alertname")
    text = f"{change.rule} is {change.state.value}" + (f": {shown}" if shown else "")
    if change.value is not None:
        text += f" ({change.value:.6g})"
    labels = dict(change.labels)
    # An event has 4 KiB: of very long labels the beginning has to do.
    if sum(len(name) + len(value) for name, value in change.labels) > 2_000:
        labels = {name[:50]: value[:50] for name, value in change.labels[:15]}
    value = change.value if change.value is not None and abs(change.value) < float("inf") else None
    service.emit(
        Alert(name=change.rule, state=change.state, labels=labels, value=value), text, cause=change.cause or None, id=id
    )
    api.told(change, rule, id)


monitor.tell = tell

if __name__ == "__main__":
    run(service)
