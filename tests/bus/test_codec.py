"""Every message survives the wire, keeps its form, and nothing else gets in."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import messages as m
from bus.codec import MAX_FRAME_BYTES, Decoder, FrameError, encode
from bus.topics import topic_of
from tests.bus.samples import EVENT, NODE, SAMPLES, STATUS, command

Anything = m.Telemetry | m.Command | m.AgentMessage | m.OperatorRequest | m.OperatorReply
GOLDEN = Path(__file__).with_name("golden.json")


def label(message: msgspec.Struct) -> str:
    """Type of the message, and of what it carries."""
    body = getattr(message, "body", None)
    return type(message).__name__ + (f"-{type(body).__name__}" if body is not None else "")


@pytest.mark.parametrize("message", SAMPLES, ids=label)
def test_round_trip(message: msgspec.Struct) -> None:
    """What is decoded is what was encoded."""
    assert Decoder[Any](Anything).decode(encode(message)) == message


def test_every_type_has_a_sample() -> None:
    """A type added to a union is added to the samples."""
    unions = (m.Telemetry, m.AgentMessage, m.OperatorRequest, m.OperatorReply)
    types = {type_ for union in unions for type_ in union.__args__} | {m.Command}
    assert types == {type(message) for message in SAMPLES}
    bodies = {type(message.body) for message in SAMPLES if isinstance(message, m.Command)}
    assert bodies == set(m.DaemonCommand.__args__) | set(m.NodeCommand.__args__)


@pytest.mark.parametrize("message", SAMPLES, ids=label)
def test_golden_frame(message: msgspec.Struct) -> None:
    """The bytes of yesterday's release still mean the same: fields are only added, with defaults."""
    frame = bytes.fromhex(json.loads(GOLDEN.read_text())[label(message)])
    assert Decoder[Any](Anything).decode(frame) == message


@pytest.mark.parametrize("message", SAMPLES, ids=label)
def test_any_msgpack_reads_it(message: msgspec.Struct) -> None:
    """A frame is a map with string keys, among them the type."""
    plain = msgpack.unpackb(encode(message))
    assert isinstance(plain["type"], str)


def test_unknown_fields() -> None:
    """They are ignored in a status and refused in a command."""
    newer = msgpack.packb(msgpack.unpackb(encode(STATUS)) | {"added_later": 1})
    assert Decoder[Any](m.Telemetry).decode(newer) == STATUS
    newer = msgpack.packb(msgpack.unpackb(encode(command(m.Restart()))) | {"added_later": 1})
    with pytest.raises(FrameError) as refused:
        Decoder[Any](m.Command).decode(newer)
    assert refused.value.cause == "malformed"


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (b"", "malformed"),
        (b"\xc1", "malformed"),
        (msgpack.packb({"type": "no_such"}), "malformed"),
        (msgpack.packb({"type": "hello"}), "malformed"),
        (msgpack.packb([1, 2]), "malformed"),
        (b"\x91" * 100_000, "malformed"),
        (b"\x00" * (MAX_FRAME_BYTES + 1), "too_large"),
        (encode(STATUS).replace(b"host-1", b"host/1"), "malformed"),
        (encode(STATUS).replace(b"host-1", b"host\xff1"), "malformed"),
        (encode(EVENT), "malformed"),
    ],
    ids=["empty", "reserved", "tag", "fields", "array", "deep", "large", "name", "utf8", "other union"],
)
def test_what_is_no_message_is_one_error(frame: bytes, cause: str) -> None:
    """FrameError, whatever is wrong, with the cause to count."""
    with pytest.raises(FrameError) as refused:
        Decoder[Any](m.AgentMessage).decode(frame)
    assert refused.value.cause == cause


@pytest.mark.parametrize(
    "nonsense",
    [
        {"time_s": math.nan},
        {"time_s": -1.0},
        {"time_s": 1e300},
        {"monotonic_s": math.inf},
        {"uptime_s": -0.1},
        {"uptime_s": math.nan},
        {"seq": -1},
        {"seq": 2**63},
        {"incarnation": 2**63},
        {"pid": -5},
        {"restarts": 2**64 - 1},
        {"instance": ""},
        {"instance": "a" * 129},
        {"metrics": {"vitals": {"cpu_cores": math.nan}}},
        {"metrics": {"vitals": {"cpu_cores": 1e300}}},
        {"metrics": {"vitals": {"loop_lag_s": -math.inf}}},
        {"metrics": {"vitals": {"rss_bytes": -1}}},
        {"metrics": {"vitals": {"rss_bytes": 2**64 - 1}}},
        {"metrics": {"requests": -1}},
        {"metrics": {"in_flight": 0.5}},
    ],
    ids=str,
)
def test_numbers_that_are_none(nonsense: dict[str, Any]) -> None:
    """Clocks and sizes that would break JSON, SQLite, dates or sorting are refused at the door."""
    frame = msgpack.packb(msgpack.unpackb(encode(STATUS)) | nonsense)
    with pytest.raises(FrameError) as refused:
        Decoder[Any](m.Telemetry).decode(frame)
    assert refused.value.cause == "malformed"


@given(st.binary(max_size=300))
def test_random_bytes(frame: bytes) -> None:
    """Nothing but FrameError comes of noise."""
    with suppress(FrameError):
        Decoder[Any](Anything).decode(frame)


@given(st.data())
def test_damaged_frames(data: st.DataObject) -> None:
    """Nothing but FrameError comes of a message with bytes changed or cut off."""
    frame = bytearray(encode(data.draw(st.sampled_from(SAMPLES))))
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(FrameError):
        Decoder[Any](Anything).decode(bytes(frame[: data.draw(st.integers(0, len(frame)))]))


def test_too_large_to_send() -> None:
    """A sender finds out before its receivers do."""
    with pytest.raises(FrameError, match="limit is 1048576"):
        encode(m.Refusal(id="r1", reason="x" * MAX_FRAME_BYTES))


@pytest.mark.parametrize(
    ("message", "topic"),
    [(STATUS, "status/cdn-data-fabric/"), (NODE, "node/host-1/"), (EVENT, "event/cdn-data-fabric/")],
)
def test_topics_end_in_a_separator(message: m.Telemetry, topic: str) -> None:
    """So that web-1 is no prefix of web-10."""
    assert topic_of(message) == topic
