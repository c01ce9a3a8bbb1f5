"""Who subscribes to the feed, connection by connection, so that none of them can cost without bound.

libzmq keeps every subscription that it is sent, for ever, and up to a high-water mark of messages
for a subscriber that does not read, however long they are. So a connection with too many
subscriptions is cut, and so is one that takes nothing of what waits for it; a subscriber that
meant well connects again by itself, and is sent the last values.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections import Counter
from dataclasses import dataclass, field

PER_CONNECTION = 1000
"""Subscriptions. Who wants more services than that one by one wants ``status/``."""
IN_ALL = 20_000
STALLED_S = 20.0
"""How long nothing may leave, while something waits: the kernel holds 200 KiB for it, and libzmq much more."""
_NEEDLES = 16
"""With more prefixes than this, looking whether a topic is wanted costs more than sending it in vain."""


@dataclass
class _Connection:
    inode: int
    prefixes: Counter[bytes] = field(default_factory=Counter)
    subscriptions: int = 0
    unsent_bytes: int = 0
    moved_s: float = 0.0


class Audience:
    """Connections by their descriptor, which libzmq tells with each subscription."""

    def __init__(self) -> None:
        self._connections: dict[int, _Connection] = {}
        self._needles: tuple[bytes, ...] | None = ()
        """What topics are looked at for; None: everything is to be sent."""
        self._is_changed = False
        self.counts: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """Connections that have subscribed to something."""
        return len(self._connections)

    @property
    def is_there(self) -> bool:
        """Whether anybody may want anything."""
        return self._is_changed or self._needles != ()

    def wants(self, topic: bytes) -> bool:
        """Whether anybody may want it."""
        if self._is_changed:
            self._is_changed = False
            prefixes = {prefix for connection in self._connections.values() for prefix in connection.prefixes}
            self._needles = tuple(prefixes) if len(prefixes) <= _NEEDLES else None
        return self._needles is None or topic.startswith(self._needles)

    def subscribed(self, fd: int, prefix: bytes, now_s: float) -> bool:
        """Note a subscription; False if it was one too many, and the connection has been cut."""
        connection = self._find(fd, now_s)
        if connection is None:
            return False
        self._is_changed = True
        connection.prefixes[prefix] += 1
        connection.subscriptions += 1
        if connection.subscriptions <= PER_CONNECTION and self._subscriptions() <= IN_ALL:
            return True
        self._cut(fd, "subscribers_cut_greedy")
        return False

    def _subscriptions(self) -> int:
        return sum(connection.subscriptions for connection in self._connections.values())

    def unsubscribed(self, fd: int, prefix: bytes) -> None:
        """Note that a connection wants something no more."""
        connection = self._connections.get(fd)
        if connection is not None and prefix in connection.prefixes:
            connection.subscriptions -= 1
            connection.prefixes[prefix] -= 1
            if not connection.prefixes[prefix]:
                del connection.prefixes[prefix]
            self._is_changed = True

    def look(self, now_s: float) -> None:
        """Forget connections that are gone, and cut those that take nothing; call it every second or so."""
        for fd, connection in list(self._connections.items()):
            if _inode(fd) != connection.inode:
                del self._connections[fd]
                continue
            unsent_bytes = _unsent_bytes(fd)
            if unsent_bytes == 0 or unsent_bytes != connection.unsent_bytes:
                connection.unsent_bytes, connection.moved_s = unsent_bytes, now_s
            elif now_s - connection.moved_s > STALLED_S:
                self._cut(fd, "subscribers_cut_stalled")
        self._is_changed = True

    def restart_windows(self, late_s: float) -> None:
        """ATLAS itself was away for late_s."""
        for connection in self._connections.values():
            connection.moved_s += late_s

    def _find(self, fd: int, now_s: float) -> _Connection | None:
        inode = _inode(fd)
        if inode is None:
            return None
        connection = self._connections.get(fd)
        if connection is None or connection.inode != inode:
            connection = self._connections[fd] = _Connection(inode, moved_s=now_s)
        return connection

    def _cut(self, fd: int, cause: str) -> None:
        """End the connection under libzmq, which then drops all that it holds for it."""
        inode = self._connections.pop(fd).inode
        self.counts[cause] += 1
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            if _inode(connection.fileno()) == inode:  # else libzmq's thread has closed it in this moment
                connection.shutdown(socket.SHUT_RDWR)


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:  # closed meanwhile
        return None


def _unsent_bytes(fd: int) -> int:
    """unix(7), SIOCOUTQ: what has been written and not been read yet."""
    try:
        (unsent,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))
    except OSError:  # libzmq's thread has closed it in this moment
        return 0
    return int(unsent)
