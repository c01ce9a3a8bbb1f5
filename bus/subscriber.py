"""SUB: reads the feed. Belongs to the thread that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import zmq

from bus.codec import MAX_FRAME_BYTES, Decoder, FrameError
from bus.context import terminate
from bus.messages import Telemetry


class Subscriber:
    """Connects to the feed; frames that are no messages are counted in ``dropped`` and passed over."""

    def __init__(self, endpoint: str, topics: Iterable[str] = ("",)) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        for topic in topics:
            self._socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        self._socket.connect(endpoint)
        self._decoder: Decoder[Telemetry] = Decoder(Telemetry)
        self.dropped: Counter[str] = Counter()

    def receive(self, timeout_s: float) -> Telemetry | None:
        """The next message; None if none came in time, or what came was none."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        parts = self._socket.recv_multipart()
        if len(parts) != 2:
            self.dropped["malformed"] += 1
            return None
        try:
            return self._decoder.decode(parts[1])
        except FrameError as error:
            self.dropped[error.cause] += 1
            return None

    def close(self) -> None:
        """Close at once."""
        self._socket.close(linger=0)
        terminate(self._context)
