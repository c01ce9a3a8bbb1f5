"""ATLAS, the foundation daemon: hears every service, shows the fleet, carries commands."""

import asyncio
import logging
import os
import time

from bus.broker import BusTaken
from bus.endpoints import default_run_dir
from bus.messages import DaemonStatus
from cdn_daemon import ConfigurationError, Service, run
from cdn_daemon.settings import SettingError
from services.atlas.access import OperatorToken, names_of
from services.atlas.history import History, limit_bytes_of
from services.atlas.ooda import FleetLoop
from services.atlas.prometheus import exposition
from services.atlas.room import open_fds, raise_fd_limit, why_full
from services.atlas.server import make_app
from services.atlas.switchboard import Switchboard

log = logging.getLogger(__name__)

BUS_STUCK_S = 2.0

fd_limit = raise_fd_limit()
history = History(default_run_dir())
switchboard = Switchboard(default_run_dir(), history)
token = OperatorToken(default_run_dir())


async def serve_the_bus() -> None:
    """The bus thread, for as long as ATLAS lives; raises if it ends by itself."""
    assert service.identity is not None
    try:
        token.read()
    except OSError as error:  # whoever then gives an order by HTTP is told so
        log.warning("cannot make %s: %s", token.path, error)
    try:
        history.limit_bytes = limit_bytes_of(os.environ)
    except SettingError as error:
        raise ConfigurationError(str(error)) from error
    switchboard.start(service.identity.incarnation)
    try:
        while not switchboard.ended.is_set():
            await asyncio.sleep(0.1)
    finally:
        await asyncio.to_thread(switchboard.stop)
        await asyncio.to_thread(history.stop)
    if isinstance(switchboard.failure, BusTaken):
        raise ConfigurationError(str(switchboard.failure))
    raise RuntimeError("the bus thread ended") from switchboard.failure


service = Service(
    "atlas",
    app=make_app(switchboard, history, token),
    port=18500,
    ooda=FleetLoop(switchboard),
    background=serve_the_bus,
    websocket_max_bytes=1024,  # nobody has anything to say there
    hosts=names_of(os.environ),  # /metrics and /ooda are answered before access.py is asked
    origins=("*",),  # access.py decides
)


@service.ready
async def bus_is_bound() -> str | None:
    """Not ready until the bus is this ATLAS's: another may have it."""
    return None if switchboard.is_bound else "the bus is not bound yet"


@service.check(every_s=1, timeout_s=1, fails_after=2)
async def bus_turns() -> str | None:
    """Unhealthy while the bus thread does not turn."""
    idle_s = time.monotonic() - switchboard.turned_s
    return f"the bus thread has not turned for {idle_s:.1f} s" if idle_s > BUS_STUCK_S else None


@service.check(every_s=5, timeout_s=2, fails_after=None)
def has_room() -> str | None:
    """Degraded, and never unhealthy, while few more services can connect: a restart would not make room."""
    return why_full(open_fds(), fd_limit)


@service.check(every_s=1, timeout_s=1, fails_after=None)
async def history_is_kept() -> str | None:
    """Degraded while what happens is not written down; nothing else of ATLAS needs it."""
    return history.problem or None


@service.metrics
def counts() -> dict[str, float]:
    """What was dropped, who is connected, and what is remembered."""
    counted = switchboard.all_counts() | {f"history_{name}": value for name, value in history.counts.items()}
    return {f"atlas_{name}": value for name, value in counted.items()}


@service.exposition
def everyone(own: DaemonStatus) -> str:
    """The whole fleet in one scrape, ATLAS with it."""
    return exposition(switchboard.measured({f"history_{name}": value for name, value in history.counts.items()}))


if __name__ == "__main__":
    run(service)
