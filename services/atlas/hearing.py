"""Telemetry as it comes in: looked at, folded into the fleet, published again.

This is what ATLAS does most: 100,000 times a second with 10,000 services at 10 Hz. So what is nearly
always so is asked first, and nothing is made that is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bus.broker import Broker, Frames
from bus.codec import Decoder, FrameError, encode
from bus.messages import DaemonStatus, Event, NodeStatus, SnapshotReply, Telemetry
from bus.topics import topic_of
from services.atlas.fleet import MAX_MEMBERS, Fleet, Happening, Refused
from services.atlas.happened import Happened

_PART_BYTES = 256 << 10


def in_parts(id_: str, frames: Iterable[bytes]) -> list[SnapshotReply]:
    """The frames as replies of a size that passes; one reply at least."""
    parts: list[list[bytes]] = [[]]
    size_bytes = 0
    for frame in frames:
        if parts[-1] and size_bytes + len(frame) > _PART_BYTES:
            parts.append([])
            size_bytes = 0
        parts[-1].append(frame)
        size_bytes += len(frame)
    return [
        SnapshotReply(id=id_, left=len(parts) - number, frames=tuple(part))
        for number, part in enumerate(parts, start=1)
    ]


class Hearing:
    """Hears for the fleet; ``dropped`` is told cause, topic and error of what is not taken."""

    def __init__(self, fleet: Fleet, events: Happened, dropped: Callable[[str, bytes, Exception], None]) -> None:
        self._fleet = fleet
        self._events = events
        self._dropped = dropped
        self._decoder: Decoder[Telemetry] = Decoder(Telemetry)
        self._instances: dict[bytes, str] = {}
        """Topic → the instance whose statuses may come under it; each is worked out once."""

    def hear(self, broker: Broker, frames: Iterable[Frames], now_s: float) -> Iterator[Happening]:
        """Take these; what has happened, one by one, each after the message that shows it has been published."""
        decode, instances, fleet, publish = self._decoder.decode, self._instances, self._fleet, broker.publish
        for topic, frame in frames:
            try:
                message = decode(frame)
                if type(message) is DaemonStatus:
                    if instances.get(topic) != message.instance:
                        self._check(topic, message)
                    happenings = fleet.hear(message, now_s)
                    publish(topic, frame, keep=True)
                    if happenings:
                        yield from happenings
                else:
                    yield from self._hear_other(broker, topic, frame, message, now_s)
            except (FrameError, Refused) as error:
                self._dropped(error.cause, topic, error)

    def _hear_other(
        self, broker: Broker, topic: bytes, frame: bytes, message: Telemetry, now_s: float
    ) -> Iterator[Happening]:
        self._check(topic, message)
        if isinstance(message, NodeStatus):
            happenings = self._fleet.hear_node(message, now_s)
            broker.publish(topic, frame, keep=True)
            yield from happenings
        elif isinstance(message, Event):
            kept = self._events.append(message)
            if kept is not None:
                broker.publish(topic, frame if kept is message else encode(kept), keep=False)

    def _check(self, topic: bytes, message: Telemetry) -> None:
        """Raise Refused unless the message is under its own topic."""
        if topic != topic_of(message).encode():
            raise Refused("wrong_topic", f"{topic!r} does not fit {type(message).__name__}")
        if isinstance(message, DaemonStatus) and len(self._instances) < MAX_MEMBERS:
            self._instances[topic] = message.instance
