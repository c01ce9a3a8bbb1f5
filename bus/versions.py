"""Which libzmq this runs with."""

from __future__ import annotations

import zmq

LEAST_LIBZMQ = "4.2"
"""The first with XPUB_VERBOSER, by which ATLAS gives the last values to whoever subscribes again."""


def libzmq() -> str:
    """Its version."""
    return zmq.zmq_version()
