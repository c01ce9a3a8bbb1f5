"""The notify sockets: one for each program, so that a program that floods its own drowns nobody else's beats.

The kernel queues few datagrams on a Unix socket (net.unix.max_dgram_qlen, 10
unless raised, and containers see the default): on one socket for all, two
hundred programs that beat ten times a second would lose most of their beats and
look silent. So each has its own, ``notify/<n>.sock`` in the run directory, and
all are drained once a tick.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from cdn_daemon.warden.procfs import belongs_to
from cdn_daemon.warden.sdnotify import MAX_DATAGRAM_BYTES, Notice, NotifyError, parse

_ROUNDS = 16
"""Datagrams taken from one socket in one tick, at most; the kernel queues 10 by default."""

_MSG_TRUNC = int(socket.MSG_TRUNC)  # as an enum it costs as much as the rest of the datagram
_UCRED = struct.Struct("iII")  # pid, uid, gid: unix(7)
_ANCILLARY_BYTES = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * 253)  # 253 is SCM_MAX_FD


class _Box(Struct):
    name: str
    path: Path
    socket: socket.socket


class Inbox:
    """The sockets, by program; create it after daemonising, close it before supervisord reloads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._boxes: dict[int, _Box] = {}
        self._numbers: dict[str, int] = {}
        self._epoll = select.epoll()
        self.refused: Counter[str] = Counter()
        """Datagrams not listened to, by cause: stranger, malformed, too_large, not_running."""

    def path(self, name: str) -> Path:
        """Where that program's socket is, or will be: a short path, as a socket's may have 107 bytes."""
        number = self._numbers.setdefault(name, len(self._numbers))
        return self._directory / f"{number}.sock"

    def open(self, name: str) -> None:
        """Bind the socket of that program, in place of whatever has its path."""
        self.close_one(name)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        path = self.path(name)
        path.unlink(missing_ok=True)
        box = _Box(name, path, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        box.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        box.socket.bind(str(path))
        self._boxes[box.socket.fileno()] = box
        self._epoll.register(box.socket, select.EPOLLIN)

    def has(self, name: str) -> bool:
        """Whether that program's socket is bound, and still where the program would look for it."""
        return any(box.name == name for box in self._boxes.values()) and self.path(name).is_socket()

    def lost(self) -> list[str]:
        """Programs whose socket is no longer where they look for it."""
        try:
            there = set(os.listdir(self._directory))
        except FileNotFoundError:
            there = set()
        except OSError:
            return []  # it cannot be told now, as where too many files are open
        return [box.name for box in self._boxes.values() if box.path.name not in there]

    def close_one(self, name: str) -> None:
        """Close that program's socket, if it has one."""
        for fd, box in list(self._boxes.items()):
            if box.name == name:
                self._epoll.unregister(fd)
                box.socket.close()
                box.path.unlink(missing_ok=True)
                del self._boxes[fd]

    def close(self) -> None:
        """Close all, and remove their files."""
        for box in list(self._boxes.values()):
            self.close_one(box.name)
        self._epoll.close()

    def drain(self, pid_of: Callable[[str], int | None]) -> list[tuple[str, int, Notice]]:
        """What has come since the last call: program, pid of the sender, and what it says.

        pid_of tells the process that a program is now; what comes from elsewhere is counted and refused.
        """
        heard: list[tuple[str, int, Notice]] = []
        for _ in range(_ROUNDS):
            ready = self._epoll.poll(0, max(1, len(self._boxes)))
            if not ready:
                break
            for fd, _events in ready:
                self._take(self._boxes[fd], pid_of, heard)
        return heard

    def _take(self, box: _Box, pid_of: Callable[[str], int | None], heard: list[tuple[str, int, Notice]]) -> None:
        try:
            datagram, ancillary, flags, _ = box.socket.recvmsg(
                MAX_DATAGRAM_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        sender_pid, fds = _credentials(ancillary)
        try:
            program_pid = pid_of(box.name)
            if flags & _MSG_TRUNC:
                self.refused["too_large"] += 1
            elif program_pid is None:
                self.refused["not_running"] += 1
            elif sender_pid is None or not belongs_to(sender_pid, program_pid):
                self.refused["stranger"] += 1
            else:
                heard.append((box.name, sender_pid, parse(datagram)))
        except NotifyError:
            self.refused["malformed"] += 1
        finally:
            # BARRIER=1 sends one end of a pipe and waits until we close it; nothing else needs what it may send.
            for descriptor in fds:
                os.close(descriptor)


def _credentials(ancillary: list[tuple[int, int, bytes]]) -> tuple[int | None, list[int]]:
    """The sender's pid by the kernel's word, and the file descriptors it sent along."""
    pid: int | None = None
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_CREDENTIALS and len(content) >= _UCRED.size:
            pid = _UCRED.unpack(content[: _UCRED.size])[0] or None
        elif kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds.extend(numbers)
    return pid, fds
