"""The notify plane, sender's side: sd_notify(3), as our warden and systemd both understand it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

_LASTING = ("READY", "STOPPING", "STATUS", "ERRNO", "MAINPID", "WATCHDOG")
"""What is as true later as when it was said; WATCHDOG=trigger is, a beat and EXTEND_TIMEOUT_USEC are not."""


_VALUE_CHARS = 500
"""Of a STATUS= the warden keeps as many; and it takes no datagram of over 4,096 bytes, nor does systemd."""


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``; does nothing where there is none, as when run by hand."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self.failed = 0
        """Datagrams that could not be sent: nobody listens, or its queue is full."""
        self._unsent: dict[str, str | int] = {}
        self._lock = Lock()
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

    @property
    def owes(self) -> bool:
        """Whether something that has to be known could not be sent, and goes with the next datagram."""
        return bool(self._unsent)

    def send(self, **fields: str | int) -> bool:
        """Send ``KEY=value`` lines in one datagram, with what is owed; False if it did not go."""
        if self._socket is None:
            return False
        with self._lock:
            told = {**self._unsent, **fields}
            if "STOPPING" in told:
                told.pop("READY", None)
            is_sent = self._send(self._socket, told)
            self._unsent = {} if is_sent else {key: told[key] for key in _LASTING if key in told}
            if self._unsent.get("WATCHDOG") == 1:
                del self._unsent["WATCHDOG"]  # a beat is of its moment
            return is_sent

    def _send(self, to: socket.socket, fields: Mapping[str, str | int]) -> bool:
        lines = "\n".join(f"{key}={str(value)[:_VALUE_CHARS].replace(chr(10), ' ')}" for key, value in fields.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            to.sendto(lines.encode(errors="replace"), address)
        except OSError:
            self.failed += 1
            return False
        return True
