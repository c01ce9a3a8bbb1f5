"""Gateway: one address in front of every service."""

from __future__ import annotations

import os
import sys

from bus.endpoints import default_run_dir
from cdn_daemon import ExitCode, Service, run
from cdn_daemon.settings import SettingError
from services.gateway.server import Gateway, can_connect
from services.gateway.settings import NAME, read_gateway_settings

try:
    gateway = Gateway(read_gateway_settings(os.environ), default_run_dir())
except SettingError as error:
    print(error, file=sys.stderr)
    sys.exit(ExitCode.CONFIGURATION)

service = Service(
    NAME,
    app=gateway,
    port=18600,
    ooda=gateway.optimizer,
    background=gateway.background,
    origins=("*",),  # whose pages may ask is for each service behind it to say
)
service.metrics(gateway.numbers)
gateway.announce_by(lambda told: service.emit(told.blocked, told.text, cause=told.cause, id=told.id))


@service.check(every_s=5, timeout_s=1, fails_after=2)
def has_descriptors() -> None:
    """Unhealthy while no more connections can be opened."""
    can_connect()


@service.check(every_s=5, timeout_s=1, fails_after=None)
def can_be_told_to_block() -> None:
    """Degraded while the disk takes no new blocks: those that it has are obeyed."""
    gateway.can_be_told()


if __name__ == "__main__":
    run(service)
