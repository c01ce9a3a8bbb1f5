"""What is read as which value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.threat_intel.patterns import BadPattern, read_pattern
from services.threat_intel.values import HASHES, Kind, NoValue, bounds, host_of, read, suffixes

MD5, SHA1, SHA256 = "d41d8cd98f00b204e9800998ecf8427e", "a" * 40, "0" * 63 + "f"


@pytest.mark.parametrize(
    ("text", "kind", "key"),
    [
        ("192.0.2.1", Kind.IPV4, "192.0.2.1"),
        (" 192.0.2[.]1 ", Kind.IPV4, "192.0.2.1"),
        ("192.0.2(.)1", Kind.IPV4, "192.0.2.1"),
        ("192.0.2.1:8080", Kind.IPV4, "192.0.2.1"),
        ("::ffff:192.0.2.1", Kind.IPV4, "192.0.2.1"),
        ("192.0.2.1/32", Kind.IPV4, "192.0.2.1"),
        ("192.0.2.77/24", Kind.IPV4, "192.0.2.0/24"),
        ("::ffff:192.0.2.0/120", Kind.IPV4, "192.0.2.0/24"),
        ("2001:DB8:0::1", Kind.IPV6, "2001:db8::1"),
        ("[2001:db8::1]", Kind.IPV6, "2001:db8::1"),
        ("2001:db8::/32", Kind.IPV6, "2001:db8::/32"),
        ("Evil.EXAMPLE.", Kind.DOMAIN, "evil.example"),
        ("*.evil.example", Kind.DOMAIN, "evil.example"),
        ("evil[.]example", Kind.DOMAIN, "evil.example"),
        ("evil [dot] example", Kind.DOMAIN, "evil.example"),
        ("evil.example:443", Kind.DOMAIN, "evil.example"),
        ("münchen.example", Kind.DOMAIN, "xn--mnchen-3ya.example"),
        ("_dmarc.evil.example", Kind.DOMAIN, "_dmarc.evil.example"),
        ("http://evil.example", Kind.URL, "http://evil.example/"),
        ("hxxps://EVIL[.]example:443/A?b=C#d", Kind.URL, "https://evil.example/A?b=C"),
        ("hxxp[://]evil.example/x", Kind.URL, "http://evil.example/x"),
        ("http://192.0.2.1:8080/x", Kind.URL, "http://192.0.2.1:8080/x"),
        ("http://[2001:DB8::1]/", Kind.URL, "http://[2001:db8::1]/"),
        ("evil.example/payload", Kind.URL, "http://evil.example/payload"),
        (MD5.upper(), Kind.FILE, MD5),
        (SHA1, Kind.FILE, SHA1),
        (SHA256, Kind.FILE, SHA256),
    ],
)
def test_what_is_a_value(text: str, kind: Kind, key: str) -> None:
    """However it was written, it has one key; and the key is read as itself."""
    value = read(text)
    assert (value.kind, value.key) == (kind, key)
    assert value.is_network == ("/" in key and kind in (Kind.IPV4, Kind.IPV6))
    assert read(key) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "x", "localhost", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4/33", "a" * 39, "http://", "http:///x"),
        *(
            "-evil.example",
            "evil..example",
            "evil.1",
            "fe80::1%eth0",
            "\0",
            "192.0.2.1\0",
            "http://a b.example/",
            "[::1",
        ),
        *("." * 300, "http://[", "://x.example", "a@b"),
    ],
)
def test_what_is_none(text: str) -> None:
    """It is refused with a reason."""
    with pytest.raises(NoValue):
        read(text)


def pattern_of(kind: str, key: str) -> str:
    """A pattern for one value, as STIX 2.1 writes it."""
    if kind == Kind.FILE:
        name = HASHES[len(key)]
        path = f"file:hashes.{name if name == 'MD5' else repr(name)}"
    else:
        path = f"{kind}:value"
    text = key.replace("\\", "\\\\").replace("'", "\\'")
    return f"[{path} = '{text}']"


@given(st.text(max_size=60) | st.from_regex(r"[a-z0-9.:/\[\]@%-]{1,40}", fullmatch=True))
def test_any_text_is_a_value_or_none(text: str) -> None:
    """Nothing else happens; a value's key is read as the same value, and fits a STIX pattern of its own."""
    try:
        value = read(text)
    except NoValue:
        return
    assert read(value.key) == value
    assert read_pattern(pattern_of(value.kind, value.key)) == (value,)


def test_parts_of_values() -> None:
    """A name's suffixes, a URL's host, a network's bounds."""
    assert suffixes("a.b.evil.example") == ["a.b.evil.example", "b.evil.example", "evil.example"]
    assert host_of("http://user@evil.example:81/x").key == "evil.example"
    assert host_of("http://[2001:db8::1]/").kind is Kind.IPV6
    low, high = bounds("192.0.2.0/24")
    assert (low[-4:], high[-4:]) == (bytes([192, 0, 2, 0]), bytes([192, 0, 2, 255]))
    assert low[:12] == b"\0" * 10 + b"\xff\xff"


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("[ipv4-addr:value = '192.0.2.1']", ["192.0.2.1"]),
        ("[ipv4-addr:value = '192.0.2.0/24']", ["192.0.2.0/24"]),
        ("[ipv4-addr:value ISSUBSET '192.0.2.0/24']", ["192.0.2.0/24"]),
        ("[domain-name:value = 'evil.example' OR domain-name:value='bad.example']", ["evil.example", "bad.example"]),
        ("[url:value = 'http://evil.example/it\\'s'] OR [ipv6-addr:value='2001:db8::1']", None),
        ("[domain-name:value IN ('evil.example', 'bad.example')]", ["evil.example", "bad.example"]),
        (f"[file:hashes.'SHA-256' = '{SHA256}']", [SHA256]),
        (f"[file:hashes.MD5 = '{MD5}' OR file:hashes.'SHA-1' = '{SHA1}']", [MD5, SHA1]),
        ("[network-traffic:dst_ref.value = '192.0.2.1']", ["192.0.2.1"]),
        (f"[file:hashes.MD5 = '{MD5}' AND file:name = 'x']", []),
        ("[ipv4-addr:value = '192.0.2.1'] FOLLOWEDBY [ipv4-addr:value = '192.0.2.2']", []),
        ("[ipv4-addr:value = '192.0.2.1'] WITHIN 5 SECONDS", []),
        ("[ipv4-addr:value != '192.0.2.1']", []),
        ("[process:command_line LIKE '%evil%']", []),
        ("[ipv4-addr:value = 'evil.example']", []),
        (f"[file:hashes.'SHA-1' = '{MD5}']", []),
    ],
)
def test_patterns(pattern: str, keys: list[str] | None) -> None:
    """Those whose every value makes them true are indexed by their values; others are patterns, and no more."""
    found = [value.key for value in read_pattern(pattern)]
    assert found == (keys if keys is not None else ["http://evil.example/it's", "2001:db8::1"])


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            "",
            "x",
            "[]",
            "[ipv4-addr:value = '192.0.2.1'",
            "[ipv4-addr:value = '192.0.2.1'] OR",
            "[ipv4-addr:value = 'x]",
        ),
        *("[ipv4-addr:value == '192.0.2.1'] OR OR", "[" * 2000, "[a:b = 'c']]"),
    ],
)
def test_what_is_no_pattern(pattern: str) -> None:
    """It is refused, by OASIS' parser."""
    with pytest.raises(BadPattern):
        read_pattern(pattern)
