"""ZeroMQ contexts: one for all of a process's connections to ATLAS, and ending one for certain.

A context has two threads, and wakes them for whatever any of its sockets does.
"""

from __future__ import annotations

import signal
from threading import Lock
from typing import Any

import zmq

_lock = Lock()
_shared: zmq.Context[zmq.Socket[bytes]] | None = None
_users = 0


def share() -> zmq.Context[zmq.Socket[bytes]]:
    """The context that this process's connections have in common; each gives it back by ``unshare``."""
    global _shared, _users
    with _lock:
        if _shared is None:
            _shared = zmq.Context()
        _users += 1
        return _shared


def unshare() -> None:
    """A connection has closed its sockets; with the last the context ends, within their linger."""
    global _shared, _users
    with _lock:
        _users -= 1
        if _users or _shared is None:
            return
        last, _shared = _shared, None
    terminate(last)


def terminate(context: zmq.Context[Any]) -> None:
    """Context.term(), undisturbed by signals; its sockets are closed already, so it takes their linger at most.

    A signal makes libzmq give up, which pyzmq takes for done, while the context's threads live on. In supervisord,
    whose interval timer is such a signal, they then abort(3) it at the next reload, which closes their descriptors.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        context.term()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
