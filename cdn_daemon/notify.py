"""The notify plane, sender's side: sd_notify(3), as our warden and systemd both understand it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``; does nothing where there is none, as when run by hand."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self.failed = 0
        """Datagrams that could not be sent: nobody listens, or its queue is full."""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        watchdog_usec = environ.get("WATCHDOG_USEC", "")
        meant_for = environ.get("WATCHDOG_PID", "")
        for_us = not meant_for or meant_for == str(os.getpid())
        self.watchdog_s = (
            int(watchdog_usec) / 1e6 if watchdog_usec.isdecimal() and int(watchdog_usec) and for_us else None
        )
        """Silence that the supervisor takes for a hang; None if it does not watch."""

    @property
    def is_supervised(self) -> bool:
        """Whether somebody is there to be notified."""
        return self._socket is not None

    def is_in(self, directory: Path) -> bool:
        """Whether the one notified has its socket below this directory."""
        return self._address.startswith(f"{directory}/")

    def send(self, **fields: str | int) -> bool:
        """Send ``KEY=value`` lines in one datagram; False if it did not go."""
        if self._socket is None:
            return False
        lines = "\n".join(f"{key}={str(value).replace(chr(10), ' ')}" for key, value in fields.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            self._socket.sendto(lines.encode(errors="replace"), address)
        except OSError:
            self.failed += 1
            return False
        return True
