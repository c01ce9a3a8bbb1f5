"""Room for a whole fleet: every service is two connections, and every connection a file descriptor."""

from __future__ import annotations

import os
import resource

FULL = 0.9


def raise_fd_limit() -> int:
    """Raise this process's limit of open files to what it may raise it to; return that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def why_full(open_fds: int, limit: int) -> str | None:
    """Why more services may not be able to connect, and what to do; None while they can."""
    if open_fds <= FULL * limit:
        return None
    return (
        f"{open_fds} of at most {limit} file descriptors are open, two for every service: further services cannot "
        f"connect; raise ATLAS's hard limit (ulimit -Hn, minfds of supervisord.conf, LimitNOFILE= of systemd)"
    )


def open_fds() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))
