"""Alerts on their way: to a command, a webhook, a file; each in order, tried again, and kept until it has arrived.

Delivery is at least once: who is killed between telling and noting so tells it
again, with the same ``id``. The file alone can be looked into, and has it once.

What is waited for has its time by ``asyncio.timeout``: before Python 3.12 ``asyncio.wait_for``
forgets that it was cancelled if what it waits for ends in the same turn of the loop, and then
a lane would never end (https://github.com/python/cpython/issues/86296).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from services.isolated_monitoring.probes import request
from services.isolated_monitoring.settings import Channel

log = logging.getLogger(__name__)

TRIES_MAX = 50
BACKOFF_S, BACKOFF_MAX_S = 1.0, 60.0
QUEUED_MAX = 1000
"""Alerts waiting for one channel; beyond that the oldest is given up."""
FILE_BYTES = 10_000_000
"""A file of this size becomes ``NAME.1``, in place of the one before."""
_TAIL_BYTES = 65_536
_FILES = ThreadPoolExecutor(4, "files")
"""Of their own: asyncio's look up names, and may all be waiting for a name server that is gone."""


class Undelivered(Exception):
    """A channel did not take it; the text says why."""


class Lane:
    """One channel and what waits for it."""

    def __init__(self, channel: Channel, arrived: Callable[[str], None]) -> None:
        self.channel = channel
        self._arrived = arrived
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._more = asyncio.Event()
        self.delivered = self.failed = self.given_up = 0
        self.problem = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def key(self, alert_id: str) -> str:
        """Under which a delivery is kept."""
        return f"{alert_id} {self.channel.name}"

    def put(self, alert: dict[str, Any]) -> None:
        """Have it delivered, after those that came before."""
        if len(self._waiting) >= QUEUED_MAX:
            key, _ = self._waiting.popleft()
            self.given_up += 1
            self._arrived(key)
        self._waiting.append((self.key(alert["id"]), alert))
        self._more.set()

    async def run(self) -> None:
        """Deliver, until cancelled."""
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            key, alert = self._waiting[0]
            await self._deliver(alert)
            if self._waiting and self._waiting[0][0] == key:
                self._waiting.popleft()
            self._arrived(key)

    async def _deliver(self, alert: dict[str, Any]) -> None:
        for attempt in range(TRIES_MAX):
            try:
                await deliver(self.channel, alert)
            except Exception as error:  # also a bug: the alert is kept, and would end every process that comes after
                self.failed += 1
                self.problem = f"{self.channel.name}: {error}"
                if attempt == 0:
                    why = None if isinstance(error, Undelivered) else error
                    log.warning("cannot deliver an alert to %s", self.problem, exc_info=why)
                await asyncio.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(attempt, 10)))
            else:
                self.delivered += 1
                self.problem = ""
                return
        self.given_up += 1
        log.error("gave up an alert after %d tries: %s: %s", TRIES_MAX, self.problem, alert["title"])


async def deliver(channel: Channel, alert: dict[str, Any]) -> None:
    """One try; raises Undelivered."""
    line = json.dumps(alert, ensure_ascii=False).encode()
    if channel.command:
        await _command(channel.command, line, channel.timeout_s)
    elif channel.webhook:
        await _webhook(channel.webhook, line, alert["id"], channel.timeout_s)
    else:
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(channel.timeout_s):
                await loop.run_in_executor(_FILES, append, Path(channel.file), line, alert["id"])
        except TimeoutError as error:
            raise Undelivered(f"{channel.file}: the disk takes longer than {channel.timeout_s:g} s") from error
        except OSError as error:
            raise Undelivered(f"{channel.file}: {error.strerror}") from error


async def _command(argv: Sequence[str], line: bytes, timeout_s: float) -> None:
    environ = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise Undelivered(f"cannot be started: {error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            await process.communicate(line + b"\n")
    except TimeoutError as error:
        raise Undelivered(f"has not ended within {timeout_s:g} s and was killed") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended this very moment
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise Undelivered(f"ended with {process.returncode}")


async def _webhook(url: str, line: bytes, alert_id: str, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            status, _ = await request("POST", url, line, "application/json", Idempotency_Key=alert_id)
    except TimeoutError as error:
        raise Undelivered(f"no answer within {timeout_s:g} s") from error
    except OSError as error:
        raise Undelivered(error.strerror or str(error)) from error
    if not 200 <= status < 300:
        raise Undelivered(f"answered HTTP {status}" if status else "its answer is no HTTP")


def append(path: Path, line: bytes, alert_id: str) -> None:
    """Add the line, durably, unless it is among the last of the file already; raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        marker = json.dumps(alert_id).encode()
        if any(marker in each and each.endswith(b"}") for each in tail.splitlines()):
            return
        # What a full disk has cut short ends here, so that this line is whole.
        content = (b"\n" if tail and not tail.endswith(b"\n") else b"") + line + b"\n"
        written = os.write(fd, content)
        if written < len(content):
            raise OSError(28, "No space left on device")
        os.fsync(fd)
    finally:
        os.close(fd)
    if size > FILE_BYTES:
        path.replace(f"{path}.1")


def iso(unix_s: float) -> str:
    """UTC, ISO 8601, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))
    return f"{whole}.{int(unix_s % 1 * 1000):03d}Z"
