"""DEALER: the agents' end of the command plane. The operators' is bus/operators.py, ATLAS's bus/broker.py."""

from __future__ import annotations

from collections import Counter

import zmq

from bus.codec import MAX_FRAME_BYTES, Decoder, FrameError, encode
from bus.context import share, unshare
from bus.messages import AgentMessage, Command

_NOW = int(zmq.DONTWAIT)
_EVENTS, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


def _dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, queue: int) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, queue)
    socket.setsockopt(zmq.RCVHWM, queue)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing waits for an ATLAS that is away: it would be stale on its return
    socket.setsockopt(zmq.RECONNECT_IVL, 100)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    socket.connect(endpoint)
    return socket


class AgentLink:
    """A daemon's or warden's connection to ATLAS. Belongs to the thread that made it.

    fileno is readable when something *may* have come. It is edge-triggered, and sending
    takes the edge, too: after either, call receive until it has nothing.
    """

    def __init__(self, endpoint: str) -> None:
        self._socket = _dealer(share(), endpoint, queue=100)
        self._decoder: Decoder[Command] = Decoder(Command)
        self.dropped: Counter[str] = Counter()

    def fileno(self) -> int:
        """For select and poll."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, message: AgentMessage) -> bool:
        """Send unless ATLAS is away; False if it is."""
        try:
            self._socket.send(encode(message), _NOW)
        except zmq.Again:
            return False
        return True

    def receive(self, limit: int = 100) -> list[Command]:
        """What has come, at most ``limit``; frames that are no commands are counted and passed over."""
        commands: list[Command] = []
        # To ask whether it is readable costs less than to fail.
        while len(commands) < limit and int(self._socket.getsockopt(_EVENTS)) & _READABLE:
            frame = self._socket.recv(_NOW)
            try:
                commands.append(self._decoder.decode(frame))
            except FrameError as error:
                self.dropped[error.cause] += 1
        return commands

    def close(self, linger_s: float = 0.0) -> None:
        """Close, giving what was just sent up to linger_s to leave."""
        self._socket.close(linger=int(linger_s * 1000))
        unshare()
