"""sd_notify(3), the sender's side; cdn_daemon/notify.py is the same for who may import it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to ``$NOTIFY_SOCKET``; does nothing where there is none. Never blocks, never raises."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        if self._socket is not None:
            self._socket.setblocking(False)

    def send(self, **fields: str | int) -> None:
        """``KEY=value`` lines in one datagram."""
        if self._socket is None:
            return
        lines = "\n".join(f"{key}={str(value).replace(chr(10), ' ')}" for key, value in fields.items())
        with contextlib.suppress(OSError):  # nobody listens, or its queue is full: supervisord is frozen
            self._socket.sendto(lines.encode(errors="replace"), self._address)
