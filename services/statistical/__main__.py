"""Statistical: StatsD in; mergeable quantiles, distinct counts, heavy hitters and change points out."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping

from bus.endpoints import default_run_dir
from bus.messages import ChangePoint
from cdn_daemon import Band, ExitCode, Limits, MiB, Service, run
from cdn_daemon.settings import SettingError
from services.statistical.keeper import Beat
from services.statistical.limits import read_limits, statsd_port
from services.statistical.ooda import BudgetLoop
from services.statistical.server import make_app

NAME = "cdn-statistical"
INSTANCE = os.environ.get("CDN_INSTANCE") or NAME

try:
    app = make_app(
        default_run_dir().state(INSTANCE),
        limits=read_limits(os.environ),
        host=os.environ.get("CDN_HOST") or "127.0.0.1",
        statsd_port=statsd_port(os.environ, is_first=INSTANCE == NAME),
    )
except SettingError as error:
    print(error, file=sys.stderr)
    sys.exit(ExitCode.CONFIGURATION)

statistical = app.state.statistical
service = Service(
    NAME,
    app=app,
    port=18108,
    ooda=BudgetLoop(statistical.store, statistical.intake),
    background=statistical.background,
    limits=Limits(rss_bytes=Band(soft=384 * MiB, hard=768 * MiB, for_s=10)),
)


@service.check(every_s=5, timeout_s=1, fails_after=2)
def threads_run() -> None:
    """Unhealthy when the intake or the keeper has ended."""
    statistical.well()


@service.check(every_s=5, timeout_s=1, fails_after=None)
def disk_takes_what_is_written() -> None:
    """Degraded while it does not: StatsD is taken all the same, HTTP is refused."""
    statistical.can_write()


@service.metrics
def measured() -> Mapping[str, float]:
    """Samples, datagrams, what waits, and what was garbage."""
    numbers: Mapping[str, float] = statistical.metrics()
    return numbers


def tell(beat: Beat) -> None:
    """Tell the other services of the second's change points."""
    for noted in beat.changes:
        change = noted.change
        service.emit(
            ChangePoint(
                series=noted.series,
                direction="up" if change.direction == "up" else "down",
                before=change.before,
                after=change.after,
                p_value=min(1.0, max(0.0, change.p_value)),
                at_s=noted.at_s,
                source=noted.source,
            ),
            f"{noted.series} ({noted.unit}) went {change.direction}: {change.before:.4g} → {change.after:.4g}"
            + (f", mostly {noted.source}" if noted.source else ""),
            id=hashlib.sha256(f"{INSTANCE} {noted.series} {noted.kind} {noted.noticed_s}".encode()).hexdigest()[:32],
        )


statistical.hear = tell

if __name__ == "__main__":
    run(service)
