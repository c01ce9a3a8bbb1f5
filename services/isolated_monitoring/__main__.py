"""Isolated monitoring: watches ATLAS, the bus, supervisord and every service, and needs none of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

from services.isolated_monitoring.api import Api, is_ping, make_token
from services.isolated_monitoring.claim import Occupied, Orphaned, claim, prepare
from services.isolated_monitoring.monitor import Monitor
from services.isolated_monitoring.notify import Notifier
from services.isolated_monitoring.proc import age_s
from services.isolated_monitoring.settings import NAME, SettingError, Settings, read_settings
from services.isolated_monitoring.store import Store, StoreError
from services.isolated_monitoring.web import Server

log = logging.getLogger(NAME)

OK, BUG, CONFIGURATION = 0, 70, 78
"""The contract with supervisord (cdn_daemon/lifecycle.py)."""
DRAIN_S = 5.0
STATUS_S = 10.0


def main() -> int:
    """Run until told to stop; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    started_s = time.monotonic() - age_s(os.getpid())
    notifier = Notifier(os.environ)
    os.environ.pop("NOTIFY_SOCKET", None)  # what alerts run must not speak for this process
    os.umask(0o077)
    try:
        settings = read_settings(os.environ, port=18990)
        prepare(settings.run_dir)
        claimed = claim(
            settings.run_dir,
            settings.instance,
            os.environ,
            adopt=settings.adopt_orphans,
            waiting=lambda text: _keep_waiting(notifier, text),
        )
        listener = _listen(settings)
    except (SettingError, Occupied) as error:
        log.critical("%s", error)
        notifier.send(STATUS=str(error), ERRNO=CONFIGURATION)
        return CONFIGURATION
    except Orphaned as error:
        log.critical("%s", error)
        return BUG
    except OSError as error:
        text = f"cannot start {NAME}: {error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        log.critical("%s", text)
        notifier.send(STATUS=text, ERRNO=error.errno or BUG)
        return BUG
    try:
        return asyncio.run(_serve(settings, listener, notifier, claimed.incarnation, started_s))
    except Exception:
        log.critical("the monitor failed", exc_info=True)
        notifier.send(STOPPING=1, STATUS="the monitor failed; see its log")
        return BUG


def _keep_waiting(notifier: Notifier, text: str) -> None:
    notifier.send(STATUS=text, EXTEND_TIMEOUT_USEC=5_000_000)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        raise SettingError(
            f"cannot listen on {settings.host} port {settings.port}: {os.strerror(error.errno or 0)}; stop what uses "
            f"it, or set CDN_PORT to another port"
        ) from error


def _secret(path: Path) -> str:
    try:
        return make_token(path)
    except OSError as error:  # whoever then shows one is refused: nobody knows this one
        log.warning("cannot make %s: %s", path, error)
        return os.urandom(24).hex()


async def _serve(
    settings: Settings, listener: socket.socket, notifier: Notifier, incarnation: int, started_s: float
) -> int:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    database = Store(settings.state / "monitor.db")
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname()).lstrip("_.-")[:64] or "localhost"
    monitor = Monitor(settings, database, host)
    try:
        database.open()
        monitor.restore()
    except StoreError as error:
        # A monitor without a memory is better than none: what it is asked to keep it refuses, and it says so.
        log.critical("%s; watching goes on without a memory", error)
        database.problem = str(error)
    database.start(loop)
    ping_key = _secret(settings.run_dir / f"{settings.instance}.ping-key")
    token = _secret(settings.token)
    api = Api(monitor, token=token, ping_key=ping_key, incarnation=incarnation, started_s=started_s)
    server = api.server = Server(api, is_ping)
    await server.start(listener)
    address = listener.getsockname()
    log.info("listens on %s port %d", address[0], address[1])
    spoken_s, spoken = 0.0, ""

    def beat() -> None:
        nonlocal spoken_s, spoken
        now_s = time.monotonic()
        if now_s - spoken_s >= STATUS_S and (text := api.summary()) != spoken:
            spoken_s, spoken = now_s, text
            notifier.send(WATCHDOG=1, STATUS=text)
        else:
            notifier.send(WATCHDOG=1)

    watching = asyncio.create_task(monitor.run(beat))
    api.phase = "serving"
    notifier.send(READY=1, STATUS="watching")
    log.info("serving")
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait((watching, waiting), return_when=asyncio.FIRST_COMPLETED)
    code = OK
    if watching.done():
        log.critical("watching ended", exc_info=watching.exception())
        code = BUG
    api.phase = "draining"
    notifier.send(STOPPING=1, STATUS="draining")
    log.info("draining")
    await server.stop(DRAIN_S)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError, ExceptionGroup, Exception):  # it has been logged
        await watching
    await asyncio.to_thread(database.stop)
    log.info("stopped")
    return code


if __name__ == "__main__":
    sys.exit(main())
