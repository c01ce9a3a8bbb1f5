"""The operators' end of the command plane: a question or an order to ATLAS, and its replies.

Apart from the agents' end (bus/commands.py) so that cdnctl need not load ZeroMQ's library.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from bus.codec import MAX_REPLY_BYTES, Decoder, encode
from bus.dealer import Dealer
from bus.messages import OperatorReply, OperatorRequest

_RETRY_S = 0.05


class AtlasSilent(Exception):
    """ATLAS did not answer in time."""


class OperatorLink:
    """An operator's connection to ATLAS: one request, one or more replies."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._dealer = Dealer(endpoint.removeprefix("ipc://"))
        self._decoder: Decoder[OperatorReply] = Decoder(OperatorReply, max_bytes=MAX_REPLY_BYTES)

    def request(self, request: OperatorRequest, *, timeout_s: float) -> None:
        """Send; AtlasSilent if there is nobody to send to within timeout_s. Connects again where ATLAS is a new one."""
        frame = encode(request)
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                if not self._dealer.is_connected:
                    self._dealer.connect(deadline_s)
                self._dealer.send(frame, deadline_s)
            except OSError:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise AtlasSilent(f"ATLAS does not listen on {self._endpoint}") from None
                time.sleep(min(_RETRY_S, left_s))
            else:
                return

    def replies(self, request_id: str, *, timeout_s: float) -> Iterator[OperatorReply]:
        """Replies to that request as they come; AtlasSilent if the next is not there in timeout_s."""
        while True:
            deadline_s = time.monotonic() + timeout_s
            while True:
                try:
                    reply = self._decoder.decode(self._dealer.receive(deadline_s))
                except OSError:
                    # Also of an ATLAS that has gone: whoever follows an order keeps its rhythm, and asks a new one.
                    time.sleep(max(0.0, deadline_s - time.monotonic()))
                    raise AtlasSilent(f"no answer from ATLAS within {timeout_s:.1f} s") from None
                if reply.id == request_id:
                    break
            yield reply

    def close(self) -> None:
        """Close at once."""
        self._dealer.close()
