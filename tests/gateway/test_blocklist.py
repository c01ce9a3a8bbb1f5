"""Longest prefix, allow over deny, times, and loopback; against the plain reading of the same rules."""

from __future__ import annotations

import math
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.blocklist import BadNetwork, Blocklist, Network, Rule, parse_network


def rule(network: str, *, allow: bool = False, starts_s: float = 0.0, ends_s: float = math.inf) -> Rule:
    """A rule."""
    return Rule(network=ip_network(network), allow=allow, starts_s=starts_s, ends_s=ends_s)


def of(*rules: Rule, may_block_loopback: bool = False) -> Blocklist:
    """A list of them."""
    made = Blocklist(may_block_loopback=may_block_loopback)
    for one in rules:
        made.put(one)
    return made


def by(rules: Blocklist, client: str, now_s: float = 1.0) -> str | None:
    """The network that the client is refused for."""
    found = rules.refuses(client, now_s)
    return str(found.network) if found else None


def test_longest_prefix_names_the_rule() -> None:
    rules = of(rule("10.0.0.0/8"), rule("10.1.0.0/16"), rule("10.1.2.3/32"), rule("2001:db8::/32"))
    assert by(rules, "10.1.2.3") == "10.1.2.3/32"
    assert by(rules, "10.1.2.4") == "10.1.0.0/16"
    assert by(rules, "10.2.0.1") == "10.0.0.0/8"
    assert by(rules, "11.0.0.1") is None
    assert by(rules, "2001:db8::1") == "2001:db8::/32"
    assert by(rules, "2001:db9::1") is None
    assert by(rules, "::ffff:10.2.0.1") == "10.0.0.0/8"
    for nonsense in ("", "unix:", "10.1.2", "10.1.2.3:80", "é"):
        assert by(rules, nonsense) is None


def test_allow_over_deny() -> None:
    """Whatever the lengths of their prefixes."""
    rules = of(rule("10.0.0.0/8"), rule("10.1.0.0/16", allow=True), rule("10.1.2.3/32"))
    assert by(rules, "10.1.2.3") is None
    assert by(rules, "10.1.9.9") is None
    assert by(rules, "10.2.0.1") == "10.0.0.0/8"
    rules.put(rule("10.1.0.0/16"))
    assert by(rules, "10.1.9.9") == "10.1.0.0/16"
    rules.remove(ip_network("10.1.0.0/16"))
    assert (by(rules, "10.1.9.9"), by(rules, "10.1.2.3")) == ("10.0.0.0/8", "10.1.2.3/32")


def test_a_rate_takes_nothing_from_a_deny_rule() -> None:
    """A longer prefix that is only slowed stays refused; what is allowed is not slowed; the last word counts."""
    rules = Blocklist()
    wide, one = parse_network("203.0.113.0/24", 4), parse_network("203.0.113.7", 4)
    slow = Rule(network=one, allow=False, starts_s=0.0, rate_per_s=0.5)
    rules.put(slow)
    assert (rules.refuses("203.0.113.7", 1.0), rules.slows("203.0.113.7", 1.0)) == (None, slow)
    assert rules.slows("203.0.113.8", 1.0) is None
    rules.put(Rule(network=wide, allow=False, starts_s=0.0))
    assert rules.refuses("203.0.113.7", 1.0) is not None
    rules.put(Rule(network=wide, allow=True, starts_s=0.0))
    assert (rules.refuses("203.0.113.7", 1.0), rules.slows("203.0.113.7", 1.0)) == (None, None)
    rules.remove(wide)
    rules.put(Rule(network=one, allow=False, starts_s=0.0))
    assert rules.slows("203.0.113.7", 1.0) is None
    assert rules.refuses("203.0.113.7", 1.0) is not None


def test_times() -> None:
    """From its start to its end, and what is wider holds before and after."""
    rules = of(
        rule("10.0.0.0/8"), rule("10.1.0.0/16", starts_s=5, ends_s=10), rule("10.1.0.0/17", allow=True, ends_s=7)
    )
    assert [by(rules, "10.1.200.1", at_s) for at_s in (4.9, 5, 9.9, 10)] == [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.0/16",
        "10.0.0.0/8",
    ]
    assert [by(rules, "10.1.0.1", at_s) for at_s in (6.9, 7)] == [None, "10.1.0.0/16"]
    assert rules.ended(10.0) == [ip_network("10.1.0.0/16"), ip_network("10.1.0.0/17")]


def test_loopback_is_refused_only_if_told() -> None:
    """Not even by 0.0.0.0/0."""
    everybody = (rule("0.0.0.0/0"), rule("::/0"))
    for client in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert by(of(*everybody), client) is None
        assert by(of(*everybody, may_block_loopback=True), client) is not None
    assert not of().may_deny(ip_network("127.0.0.0/8"))
    assert not of().may_deny(ip_network("::1/128"))
    assert of().may_deny(ip_network("0.0.0.0/0"))


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        ("192.0.2.0/24", 4, "192.0.2.0/24"),
        ("192.0.2.1", 4, "192.0.2.1/32"),
        ("2001:db8::/48", 6, "2001:db8::/48"),
        ("::ffff:192.0.2.0/120", 6, "192.0.2.0/24"),
        ("::/0", 6, "::/0"),
        ("192.0.2.1/24", 4, None),
        ("192.0.2.0/33", 4, None),
        ("192.0.2.0/24", 6, None),
        ("2001:db8::/48", 4, None),
        ("fe80::1%eth0", 6, None),
        ("nobody", 4, None),
        ("", 4, None),
        ("010.0.0.1", 4, None),
    ],
)
def test_networks(text: str, version: int, expected: str | None) -> None:
    """CIDR of the right version without bits of a host in it; anything else is refused."""
    if expected is None:
        with pytest.raises(BadNetwork):
            parse_network(text, version)
    else:
        assert str(parse_network(text, version)) == expected


networks = st.builds(
    lambda value, length: ip_network((value << 24 & (0xFFFFFFFF << (32 - length)), length)),
    st.integers(0, 7),
    st.sampled_from([0, 6, 7, 8, 32]),
)
changes = st.lists(st.tuples(networks, st.booleans(), st.booleans(), st.integers(0, 4), st.integers(1, 6)), max_size=30)


@given(changes, st.integers(0, 8), st.integers(0, 10))
def test_any_rules_are_read_as_they_stand(
    history: list[tuple[Network, bool, bool, int, int]], first: int, now_s: int
) -> None:
    """The same as going through all of them, one by one."""
    rules, model = Blocklist(), dict[Network, Rule]()
    for network, allow, remove, starts_s, lasts_s in history:
        if remove:
            assert rules.remove(network) == model.pop(network, None)
        else:
            made = Rule(network=network, allow=allow, starts_s=starts_s, ends_s=starts_s + lasts_s)
            rules.put(made)
            model[network] = made
    address = ip_address(first << 24)
    holding = [r for r in model.values() if address in r.network and r.starts_s <= now_s < r.ends_s]
    denied = sorted((r for r in holding if not r.allow), key=lambda r: -r.network.prefixlen)
    expected = None if not denied or any(r.allow for r in holding) else denied[0]
    assert rules.refuses(str(address), now_s) == expected
    assert len(rules) == len(model)
