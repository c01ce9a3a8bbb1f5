"""PUB: statuses and events, on their way to ATLAS. Belongs to the thread that made it.

On the wire it is a PUB; here it is an XPUB, as that shows when ATLAS subscribes.
What was published before is lost, so that is the moment to say it again.
"""

from __future__ import annotations

import zmq

from bus.codec import encode
from bus.context import share, unshare
from bus.messages import Telemetry
from bus.topics import topic_of

# As plain numbers: each operation on an enum's members takes as long as all of libzmq's part.
_NOW, _NOW_AND_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


class Publisher:
    """Connects to the telemetry endpoint; what cannot be sent is dropped, as the next status is fresher."""

    def __init__(self, endpoint: str) -> None:
        self._socket: zmq.Socket[bytes] = share().socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 1000)
        # Subscriptions outlive the connection here: without this those of the next ATLAS would be no news.
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.connect(endpoint)
        self.is_subscribed = False
        """Whether anybody hears what is published, as of the last call of has_new_subscriber."""

    def publish(self, message: Telemetry) -> None:
        """Send one message under its topic; PUB never blocks."""
        frame = encode(message)
        self._socket.send(topic_of(message).encode(), _NOW_AND_MORE)
        self._socket.send(frame, _NOW)

    def fileno(self) -> int:
        """For select and poll: readable when somebody *may* have subscribed; edge-triggered."""
        return int(self._socket.getsockopt(zmq.FD))

    def has_new_subscriber(self) -> bool:
        """Whether somebody has subscribed since the last call, and so has not heard what was published before."""
        found = False
        while int(self._socket.getsockopt(_EVENTS)) & _READABLE:
            self.is_subscribed = self._socket.recv(_NOW)[:1] == b"\x01"
            found |= self.is_subscribed
        return found

    def close(self, linger_s: float = 0.0) -> None:
        """Close, giving what was just sent up to linger_s to leave."""
        self._socket.close(linger=int(linger_s * 1000))
        unshare()
