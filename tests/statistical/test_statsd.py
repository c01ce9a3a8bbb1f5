"""Lines of StatsD: what they mean, and that nothing that is sent can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.statistical.limits import Limits
from services.statistical.statsd import GarbageError, Kind, name_of, parse
from services.statistical.store import OVERFLOW, Store


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (b"hits:1|c", (Kind.COUNTER, b"hits", b"1", 1.0)),
        (b"hits:-2|c|@0.1", (Kind.COUNTER, b"hits", b"-2", 10.0)),
        (b"load:+3|g", (Kind.GAUGE, b"load", b"+3", 1.0)),
        (b"took:320|ms|@0.5", (Kind.DISTRIBUTION, b"took", b"320", 2.0)),
        (b"size:7|h", (Kind.DISTRIBUTION, b"size", b"7", 1.0)),
        (b"took:1:2:3|d|#env:prod", (Kind.DISTRIBUTION, b"took|#env:prod", b"1:2:3", 1.0)),
        (b"who:2001:db8::1|s", (Kind.SET, b"who", b"2001:db8::1", 1.0)),
        (b"hits:1|c|#a:b|c:container|T1656581400\r", (Kind.COUNTER, b"hits|#a:b", b"1", 1.0)),
    ],
)
def test_a_line(line: bytes, meaning: object) -> None:
    """Of each kind."""
    assert parse(line) == meaning


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b"hits", "line"),
        (b":1|c", "line"),
        (b"hits:|c", "line"),
        (b"hits:1|", "type"),
        (b"hits:1|x", "type"),
        (b"hits:one|c", "value"),
        (b"hits:nan|c", "value"),
        (b"hits:inf|c", "value"),
        (b"hits:1e400|c", "value"),
        (b"hits:1_0|c", "value"),
        (b"took:1:x|ms", "value"),
        (b"hits:1|c|@0", "rate"),
        (b"hits:1|c|@2", "rate"),
        (b"hits:1|c|@x", "rate"),
        (b"...:1|c", "name"),
        (b"n" * 300 + b":1|c", "name"),
        (b"\xff\xfe:1|c", "utf8"),
        (b"who:\xff|s", "utf8"),
        (b"who:" + b"x" * 600 + b"|s", "long"),
        (b"x" * 9000, "long"),
        (b"_e{5,4}:title|text", "event"),
    ],
)
def test_garbage_is_counted_by_its_cause(line: bytes, cause: str) -> None:
    """And what else is in the packet is taken."""
    store = Store(Limits())
    store.fold(b"good:1|c\n" + line + b"\ngood:1|c", 1.0, 1, 1.0)
    assert {name: count for name, count in store.garbage.items() if count} == {cause: 1}
    assert store.series[Kind.COUNTER, "good"].aggregate is not None
    assert store.samples >= 2


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(0, 255))
def test_nothing_that_is_sent_raises(parts: list[bytes], byte: int) -> None:
    """Any bytes at all."""
    store = Store(Limits(series=4, sets=1))
    packet = b"|".join(parts) + bytes([byte]) + b":1|ms|@0.5|#" + b"\n".join(parts) + b":3|c"
    store.fold(packet, 1.0, 1, 1.0)
    assert len(store.series) <= 4


def test_names_are_cleaned_and_tags_are_in_order() -> None:
    """So that a series has one name, however it is spelt, and that fits in a path."""
    assert name_of(b"a b/c|#z:1,a:2,plain") == "a_b-c;a=2;plain;z=1"
    assert name_of("größe".encode()) == "gr--e"
    with pytest.raises(GarbageError):
        name_of(b"//")


def test_what_is_beyond_the_bounds_is_counted_and_never_silent() -> None:
    """More names than there may be, more sets than there may be, and more spellings than are remembered."""
    store = Store(Limits(series=10, sets=2))
    for n in range(50):
        store.fold(b"name%d:5|ms\nset%d:x|s" % (n, n), 2.0, 1, 1.0)
    assert len(store.series) == 10
    overflow = store.series[Kind.COUNTER, OVERFLOW].aggregate
    assert overflow is not None
    assert store.overflowed == 100 - 9
    assert overflow.state().total == 2.0 * (100 - 9)  # type: ignore[union-attr]
    for n in range(100):
        store.fold(b"name0:5|ms|#" + b"," * n + b"\nname0:5|ms", 1.0, 1, 1.0)
    assert len(store._spelt[Kind.DISTRIBUTION]) <= 40


def test_gauges_are_set_and_moved() -> None:
    """Also over the end of a slot."""
    store = Store(Limits())
    store.fold(b"load:10|g\nload:+5|g\nload:-3|g", 1.0, 1, 1.0)
    store.fold(b"load:-2|g", 1.0, 2, 11.0)
    assert store.series[Kind.GAUGE, "load"].gauge == 10.0
