"""The DEALER of somebody in a hurry: ZMTP 3.0 over a Unix socket, without ZeroMQ's library.

Loading that takes as long as all else that ``cdnctl status`` does. One question, its answers and the end need no
queues, no thread and no reconnecting; what is left of the protocol (rfc.zeromq.org/spec/23, NULL mechanism) is here.
The other end is ATLAS's ROUTER, which sees a DEALER like any other.
"""

from __future__ import annotations

import socket
import time

from bus.codec import MAX_REPLY_BYTES

_GREETING = b"\xff\x00\x00\x00\x00\x00\x00\x00\x00\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
_LONG, _COMMAND = 0x02, 0x04
_READ_BYTES = 65536


class NotThere(OSError):
    """Nobody speaks ZMTP at the other end, or no longer."""


class Dealer:
    """One connection, made by ``connect``. Belongs to the thread that made it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._read = bytearray()

    @property
    def is_connected(self) -> bool:
        """Whether the other end was there when it was last spoken to."""
        return self._socket is not None

    def connect(self, deadline_s: float) -> None:
        """Connect and shake hands; raises OSError (TimeoutError among them) if there is nobody.

        Only who answers is connected to: what is sent to a process that is stopped would take effect when it goes on.
        """
        self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_left_s(deadline_s))
            self._socket.connect(self._path)
            self._socket.sendall(_GREETING + bytes([_COMMAND, len(_READY)]) + _READY)
            greeting = self._take(len(_GREETING), deadline_s)
            if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3:
                raise NotThere(f"what listens on {self._path} does not speak ZMTP 3")
            flags, body = self._frame(deadline_s)
            if not (flags & _COMMAND and body.startswith(b"\x05READY")):
                raise NotThere(f"what listens on {self._path} will not have this connection: {body!r:.80}")
        except BaseException:
            self.close()
            raise

    def send(self, frame: bytes, deadline_s: float) -> None:
        """One message of one part. Raises OSError if the other end has gone, or takes nothing until the deadline."""
        if self._socket is None:
            raise NotThere(f"not connected to {self._path}")
        short = len(frame) < 256
        head = bytes([0, len(frame)]) if short else bytes([_LONG]) + len(frame).to_bytes(8, "big")
        try:
            self._socket.settimeout(_left_s(deadline_s))
            self._socket.sendall(head + frame)
        except OSError:
            self.close()
            raise

    def receive(self, deadline_s: float) -> bytes:
        """The next part of a message. Raises TimeoutError at the deadline, another OSError if nobody is there."""
        while True:
            flags, body = self._frame(deadline_s)
            if not flags & _COMMAND:
                return body

    def _frame(self, deadline_s: float) -> tuple[int, bytes]:
        """Flags and body; what has come of one stays for the next call if the time is over."""
        size_bytes = 8 if self._peek(1, deadline_s)[0] & _LONG else 1
        size = int.from_bytes(self._peek(1 + size_bytes, deadline_s)[1:], "big")
        if size > MAX_REPLY_BYTES:
            self.close()
            raise NotThere(f"what listens on {self._path} sends {size} bytes at once: the limit is {MAX_REPLY_BYTES}")
        whole = self._take(1 + size_bytes + size, deadline_s)
        return whole[0], whole[1 + size_bytes :]

    def _take(self, count: int, deadline_s: float) -> bytes:
        taken = self._peek(count, deadline_s)
        del self._read[:count]
        return taken

    def _peek(self, count: int, deadline_s: float) -> bytes:
        while len(self._read) < count:
            if self._socket is None:
                raise NotThere(f"not connected to {self._path}")
            self._socket.settimeout(_left_s(deadline_s))
            try:
                got = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                raise
            except OSError:
                self.close()
                raise
            if not got:
                self.close()
                raise NotThere(f"what listened on {self._path} has gone")
            self._read += got
        return bytes(self._read[:count])

    def close(self) -> None:
        """Close at once."""
        held, self._socket = self._socket, None
        self._read.clear()
        if held is not None:
            held.close()


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is over")
    return left_s
