"""DEALER: the agents' and the operators' end of the command plane. ATLAS's end is bus/broker.py."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import zmq

from bus.codec import MAX_FRAME_BYTES, Decoder, FrameError, encode
from bus.context import share, terminate, unshare
from bus.messages import AgentMessage, Command, OperatorReply, OperatorRequest


def new_id() -> str:
    """An id for a request, command or event: unique, and not to be guessed."""
    return os.urandom(16).hex()


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

    fileno is readable when something *may* have come; it is edge-triggered, so
    after it call receive, which takes all there is.
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
            self._socket.send(encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self, limit: int = 100) -> list[Command]:
        """What has come, at most ``limit``; frames that are no commands are counted and passed over."""
        commands: list[Command] = []
        for _ in range(limit):
            try:
                frame = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                commands.append(self._decoder.decode(frame))
            except FrameError as error:
                self.dropped[error.cause] += 1
        return commands

    def close(self, linger_s: float = 0.0) -> None:
        """Close, giving what was just sent up to linger_s to leave."""
        self._socket.close(linger=int(linger_s * 1000))
        unshare()


class AtlasSilent(Exception):
    """ATLAS did not answer in time."""


class OperatorLink:
    """An operator's connection to ATLAS: one request, one or more replies."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._socket = _dealer(self._context, endpoint, queue=1000)
        self._decoder: Decoder[OperatorReply] = Decoder(OperatorReply)

    def request(self, request: OperatorRequest, *, timeout_s: float) -> None:
        """Send; AtlasSilent if there is nobody to send to within timeout_s."""
        if not self._socket.poll(int(timeout_s * 1000), zmq.POLLOUT):
            raise AtlasSilent(f"ATLAS does not listen on {self._endpoint}")
        self._socket.send(encode(request), zmq.DONTWAIT)

    def replies(self, request_id: str, *, timeout_s: float) -> Iterator[OperatorReply]:
        """Replies to that request as they come; AtlasSilent if the next is not there in timeout_s."""
        while True:
            deadline_s = time.monotonic() + timeout_s
            while True:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._socket.poll(int(left_s * 1000) + 1):
                    raise AtlasSilent(f"no answer from ATLAS within {timeout_s:.1f} s")
                reply = self._decoder.decode(self._socket.recv())
                if reply.id == request_id:
                    break
            yield reply

    def close(self) -> None:
        """Close at once."""
        self._socket.close(linger=0)
        terminate(self._context)
