"""Messages to frames and back, within limits. No sockets here.

Whatever arrives may be hostile: a frame is decoded against the type expected,
and every way in which that can fail is one exception, FrameError, whose cause a
receiver counts before it goes on.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 1 << 20
"""1 MiB. The largest honest message is a node's table of 1,000 processes, about 250 KiB."""

TAKEN_IN_BYTES = 16 << 20
"""16 MiB: what is over the limit and not over this still comes in, to be counted and answered; libzmq cuts off who
sends more, and tells nobody."""

MAX_REPLY_BYTES = 32 << 20
"""32 MiB, for what ATLAS answers an operator: the fleet's views of 50,000 services are 17 MiB."""

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


class FrameError(ValueError):
    """A frame that is not a message; ``cause`` is ``too_large`` or ``malformed``."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def encode(message: msgspec.Struct, *, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """The message as one frame; FrameError if it is over the limit that receivers hold to."""
    frame = _encoder.encode(message)
    if len(frame) > max_bytes:
        raise FrameError(
            "too_large",
            f"cannot send {type(message).__name__} of {len(frame)} bytes: the limit is {max_bytes}",
        )
    return frame


class Decoder(Generic[T]):
    """Decodes frames of one type (a Struct, or a union of tagged ones)."""

    def __init__(self, type_: Any, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(type_)
        self._max_bytes = max_bytes

    def decode(self, frame: bytes) -> T:
        """The message in the frame; FrameError, and never anything else, if there is none."""
        if len(frame) > self._max_bytes:
            raise FrameError("too_large", f"frame of {len(frame)} bytes: the limit is {self._max_bytes}")
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:  # deep nesting recurses
            raise FrameError("malformed", f"not a message: {error}") from error
