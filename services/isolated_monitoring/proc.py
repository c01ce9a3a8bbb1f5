"""What Linux says of processes: few, cheap reads of /proc, proc(5). None where there is no such process."""

from __future__ import annotations

import os
import re
import time

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAX_THREADS = 64
_LISTEN = b"0A"
"""TCP_LISTEN in the fourth column of /proc/net/tcp."""


def stat_of(pid: int) -> list[bytes] | None:
    """Its stat from the third field, the state, on; the second, the name, may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def state_of(pid: int) -> str:
    """One letter of proc(5): R, S, D, T (stopped by a signal), t (by a debugger), Z; empty if there is no process."""
    fields = stat_of(pid)
    return fields[0].decode() if fields else ""


def start_ticks(pid: int) -> int | None:
    """When it began, in clock ticks since the boot: with its pid a name for good. None for what has ended."""
    fields = stat_of(pid)
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else None


def parent_of(pid: int) -> int | None:
    """Its parent's pid."""
    fields = stat_of(pid)
    return int(fields[1]) if fields else None


def age_s(pid: int) -> float:
    """How long it has lived; 0 where that cannot be known."""
    fields = stat_of(pid)
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS_PER_S) if fields else 0.0


def waited_s(pid: int) -> float | None:
    """How long its threads have waited for a CPU so far, the one that waited longest; None if nobody knows."""
    longest: float | None = None
    try:
        for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task")))[:_MAX_THREADS]:
            with open(f"/proc/{pid}/task/{tid}/schedstat", "rb") as file:
                waited = int(file.read().split()[1]) / 1e9
            longest = waited if longest is None or waited > longest else longest
    except (OSError, ValueError, IndexError):
        return longest
    return longest


def pressure_s() -> float | None:
    """Seconds in which somebody on this host waited for a CPU, since it was booted; None if the kernel does not say."""
    try:
        with open("/proc/pressure/cpu", "rb") as file:
            found = re.match(rb"some .*total=(\d+)", file.readline())
    except OSError:
        return None
    return int(found[1]) / 1e6 if found else None


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses that can be connected to of the TCP ports on which it listens, in the order of their descriptors."""
    sockets: dict[bytes, int] = {}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                link = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue  # closed meanwhile
            if link.startswith("socket:["):
                sockets[link[8:-1].encode()] = int(fd)
    except OSError:
        return []
    found = []
    for table, family in (("tcp", 4), ("tcp6", 6)):
        try:
            with open(f"/proc/{pid}/net/{table}", "rb") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN and fields[9] in sockets:
                address, _, port = fields[1].decode().partition(":")
                found.append((sockets[fields[9]], (_address(address, family), int(port, 16))))
    return [each for _, each in sorted(found)]


def _address(text: str, family: int) -> str:
    """An address to connect to; a wildcard means loopback."""
    import socket

    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]  # each in the host's order
    raw = b"".join(words)
    if not any(raw):
        return "127.0.0.1" if family == 4 else "::1"
    return socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, raw)


class Self:
    """What this process uses."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def cpu_cores(self, now_s: float) -> float | None:
        """Over the time since the last call; None at the first."""
        used_s = time.process_time()
        last, self._last = self._last, (now_s, used_s)
        return (used_s - last[1]) / (now_s - last[0]) if last and now_s > last[0] else None

    def rss_bytes(self) -> int:
        """Resident memory."""
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES

    def fds(self) -> int:
        """Open descriptors."""
        return len(os.listdir("/proc/self/fd"))

    def threads(self) -> int:
        """Threads."""
        return len(os.listdir("/proc/self/task"))
