"""Headers on their way through: tables of what is refused, dropped, rewritten and kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.errors import Refusal
from services.gateway.headers import (
    HEADERS_MAX,
    HEADERS_MAX_BYTES,
    HOP_BY_HOP,
    Body,
    HeaderList,
    Hop,
    body_of,
    check,
    is_loop,
    request_headers,
    response_headers,
    through,
)

HOP = Hop(client="10.0.0.9", scheme="http", host=b"h", prefix=b"/s", http_version="1.1", pseudonym=b"gw")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"content-length", b"0")], Body(0)),
        ([(b"content-length", b"12")], Body(12)),
        ([(b"transfer-encoding", b"chunked")], Body(None)),
        ([(b"transfer-encoding", b"Chunked ")], Body(None)),
    ],
)
def test_framing(headers: HeaderList, expected: Body | None) -> None:
    """A length, chunks, or nothing."""
    assert body_of(headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"1"), (b"content-length", b"1")],
        [(b"content-length", b"1, 1")],
        [(b"content-length", b"+1")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"0x1")],
        [(b"content-length", b"")],
        [(b"content-length", b"9" * 30)],
        [(b"transfer-encoding", b"chunked, chunked")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"identity")],
        [(b"transfer-encoding", b"xchunked")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
    ],
)
def test_framing_in_doubt_is_refused(headers: HeaderList) -> None:
    """Two servers that read it differently are how a request is smuggled."""
    with pytest.raises(Refusal) as refused:
        body_of(headers)
    assert refused.value.detail.status == 400


@pytest.mark.parametrize(
    ("headers", "version", "status"),
    [
        ([(b"host", b"a")], "1.1", None),
        ([(b"host", b"[::1]:80")], "1.1", None),
        ([], "1.0", None),
        ([], "1.1", 400),
        ([(b"host", b"a"), (b"host", b"a")], "1.1", 400),
        ([(b"host", b"a/b")], "1.1", 400),
        ([(b"host", b"a b")], "1.1", 400),
        ([(b"host", b"")], "1.1", 400),
        ([(b"host", b"a"), (b"x", b"a\x00b")], "1.1", 400),
        ([(b"host", b"a"), (b"x", b"a\r\nb")], "1.1", 400),
        ([(b"host", b"a"), *[(b"x", b"")] * (HEADERS_MAX - 1)], "1.1", None),
        ([(b"host", b"a"), *[(b"x", b"")] * HEADERS_MAX], "1.1", 431),
        ([(b"host", b"a"), (b"x", b"y" * HEADERS_MAX_BYTES)], "1.1", 431),
    ],
)
def test_limits(headers: HeaderList, version: str, status: int | None) -> None:
    """What is over them is refused with its number and the limit."""
    if status is None:
        check(headers, http_version=version)
        return
    with pytest.raises(Refusal) as refused:
        check(headers, http_version=version)
    assert refused.value.detail.status == status


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"http://127.0.0.1:1/x?y", b"/s/x?y"),
        (b"http://127.0.0.1:1", b"/s/"),
        (b"http://127.0.0.1:1?q", b"/s/?q"),
        (b"http://127.0.0.1:12/x", b"http://127.0.0.1:12/x"),
        (b"http://127.0.0.1:1@evil/", b"http://127.0.0.1:1@evil/"),
        (b"/x", b"/x"),
        (b"x", b"x"),
        (b"//127.0.0.1:1/x", b"//127.0.0.1:1/x"),
    ],
)
def test_location(location: bytes, expected: bytes) -> None:
    """Only the instance's own address is replaced, by the way to it."""
    assert through(location, b"127.0.0.1:1", b"/s") == expected


def test_loops_are_recognised_by_via() -> None:
    """By the name of a hop, not by a part of it or a comment."""
    assert is_loop([(b"via", b"1.0 x, 1.1 gw")], b"gw")
    assert is_loop([(b"via", b"1.0 x"), (b"via", b"1.1 gw (comment)")], b"gw")
    assert not is_loop([(b"via", b"1.1 gw2, gw")], b"gw")
    assert not is_loop([(b"x", b"1.1 gw")], b"gw")


names = st.sampled_from([b"a", b"b", b"cookie", b"forwarded", b"x-forwarded-for", b"x_real_ip", b"host", *HOP_BY_HOP])
values = st.sampled_from([b"1", b"close", b"a, keep-alive", b"b", b" A ,"])
lists = st.lists(st.tuples(names, values), max_size=12)


@given(lists)
def test_nothing_of_this_hop_goes_on(headers: HeaderList) -> None:
    """Whatever comes, both ways: no hop-by-hop header, nothing that Connection names, all else in its order."""
    named = {t.strip().lower() for n, v in headers if n == b"connection" for t in v.split(b",")}
    onward = request_headers(headers, HOP)
    back = response_headers(headers, status=200, authority=b"i:1", prefix=b"/s", via=b"gw")
    for passed in (onward, back):
        assert not {name for name, _ in passed} & HOP_BY_HOP
    ours = {b"host", b"forwarded", b"x-forwarded-for", b"x_real_ip"}
    assert onward[:-5] == [h for h in headers if h[0] not in HOP_BY_HOP | named | ours]
    assert back[:-1] == [h for h in headers if h[0] not in HOP_BY_HOP | named]
    assert [value for name, value in onward if name == b"x-forwarded-for"] == [b"10.0.0.9"]
