"""Room for a whole fleet: every service is two connections, and every connection a file descriptor."""

from __future__ import annotations

import os
import resource

from bus.room import full_at

FULL = 0.875
"""Of those with which the bus lets nobody else connect."""

ENOUGH = 200_000
"""For 50,000 services and as many connections again. Only root may have more than its hard limit."""


def raise_fd_limit() -> int:
    """Raise this process's limit of open files as far as it may and need be; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, ENOUGH), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError):
            continue
        return limit
    raise AssertionError("a process may always raise its limit to its hard limit")


def why_full(open_fds: int, limit: int) -> str | None:
    """Why more services may not be able to connect, and what to do; None while they can."""
    if open_fds <= FULL * full_at(limit):
        return None
    return (
        f"{open_fds} of at most {limit} file descriptors are open, two for every service: soon no further ones can "
        f"connect; raise ATLAS's hard limit (ulimit -Hn, minfds of supervisord.conf, LimitNOFILE= of systemd)"
    )


def open_fds() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))
