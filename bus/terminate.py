"""Ending a ZeroMQ context for certain."""

from __future__ import annotations

import signal
from typing import Any

import zmq


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
