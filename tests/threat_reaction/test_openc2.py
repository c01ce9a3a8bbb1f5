"""What a gateway is still to be told: the difference between what is wanted and what it does, and no more."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.threat_reaction.memory import Ban
from services.threat_reaction.networks import Network, read_network
from services.threat_reaction.openc2 import (
    SLOWED_PER_S,
    BadAnswerError,
    Delete,
    Deny,
    Rule,
    command,
    orders,
    read_answer,
    read_rules,
)

NET = read_network("203.0.113.9")


def ban(network: Network = NET, until_s: float = 100.0, cause: str | None = None) -> Ban:
    """A ban."""
    return Ban(
        id=7,
        network=network,
        kind="ban",
        starts_s=0.0,
        until_s=until_s,
        level=0.0,
        reaction="r",
        scenario="s",
        by="b",
        revision=1,
        cause=cause,
    )


@pytest.mark.parametrize(
    ("wanted", "rule", "expected"),
    [
        (100.0, None, [Deny]),
        (100.0, Rule(until_s=99.0, ours=True), []),
        (100.0, Rule(until_s=50.0, ours=True), [Deny]),
        (100.0, Rule(until_s=500.0, ours=True), [Deny]),
        (100.0, Rule(until_s=5.0, ours=False), [Deny]),
        (100.0, Rule(until_s=500.0, ours=False), []),
        (100.0, Rule(until_s=math.inf, ours=False, allow=True), []),
        (100.0, Rule(until_s=1.0, ours=True), [Deny]),
        (5.0, None, []),
        (None, Rule(until_s=100.0, ours=True), [Delete]),
        (None, Rule(until_s=5.0, ours=True), []),
        (None, Rule(until_s=100.0, ours=False), []),
        (None, None, []),
    ],
)
def test_what_is_due(wanted: float | None, rule: Rule | None, expected: list[type]) -> None:
    """At 10 s. An operator's rule is left as it is, unless it ends before the ban."""
    due = orders({} if wanted is None else {NET: ban(until_s=wanted)}, {} if rule is None else {NET: rule}, 10.0)
    assert [type(order) for order in due] == expected


nets = st.integers(0, 7).map(lambda last: read_network(f"203.0.113.{last}"))
ends = st.floats(0.0, 200.0)


@given(st.dictionaries(nets, ends), st.dictionaries(nets, st.tuples(ends, st.booleans(), st.booleans())))
def test_once_told_nothing_is_due(wanted: dict[Network, float], held: dict[Network, tuple[float, bool, bool]]) -> None:
    """Carrying the orders out leaves no others."""
    bans = {network: ban(network, until_s) for network, until_s in wanted.items()}
    rules = {network: Rule(until_s=until_s, ours=o, allow=a) for network, (until_s, o, a) in held.items()}
    for order in orders(bans, rules, 10.0):
        if isinstance(order, Deny):
            rules[order.ban.network] = Rule(until_s=order.ban.until_s, ours=True)
        else:
            del rules[order.network]
    assert orders(bans, rules, 10.0) == []


def test_a_command() -> None:
    """A duration, so that it ends at the gateway by itself; and what it is because of."""
    sent = json.loads(command(Deny(ban=ban(cause="event-1")), "0123456789abcdef", 40.0))
    assert sent == {
        "action": "deny",
        "target": {"ipv4_net": "203.0.113.9/32"},
        "args": {"duration": 60000, "x-cdn-gateway": {"cause": "event-1"}},
        "command_id": "tr-7-0123456789abcdef",
    }
    sent = json.loads(command(Delete(network=read_network("2001:db8::/64")), "0123456789abcdef", 40.0))
    assert sent["target"] == {"ipv6_net": "2001:db8::/64"}


@pytest.mark.parametrize(
    ("kind", "rule", "is_due"),
    [
        ("throttle", None, True),
        ("throttle", Rule(until_s=100.0, ours=True, rate_per_s=SLOWED_PER_S), False),
        ("throttle", Rule(until_s=100.0, ours=True), True),
        ("ban", Rule(until_s=100.0, ours=True, rate_per_s=SLOWED_PER_S), True),
        ("throttle", Rule(until_s=5.0, ours=False), False),
        ("throttle", Rule(until_s=5.0, ours=False, rate_per_s=9.0), True),
        ("ban", Rule(until_s=5.0, ours=False, rate_per_s=9.0), True),
        ("ban", Rule(until_s=500.0, ours=False, rate_per_s=9.0), False),
    ],
)
def test_slowed_is_not_refused(kind: str, rule: Rule | None, is_due: bool) -> None:
    """One becomes the other when that is wanted; what an operator refuses is not let in slowly."""
    wanted = {NET: replace(ban(), kind=kind)}
    assert bool(orders(wanted, {} if rule is None else {NET: rule}, 1.0)) is is_due


def test_a_command_to_slow() -> None:
    """A deny with a rate, in the gateway's own words; an answer has it again."""
    told = json.loads(command(Deny(ban=replace(ban(), kind="throttle")), "n", 1.0))
    assert (told["action"], told["args"]["x-cdn-gateway"]) == ("deny", {"rate_per_s": SLOWED_PER_S})
    shown = {"network": str(NET), "action": "deny", "command_id": "tr-7-n", "rate_per_s": SLOWED_PER_S}
    body = json.dumps({"status": 200, "results": {"x-cdn-gateway": {"rules": [shown]}}}).encode()
    assert read_rules(body, ahead_s=0.0)[NET].rate_per_s == SLOWED_PER_S


def test_an_answer() -> None:
    """As docs/gateway.md has it; what is none is none."""
    rules = read_rules(
        b'{"status":200,"results":{"x-cdn-gateway":{"rules":[{"network":"192.0.2.0/24","action":"deny","start_time":1,'
        b'"stop_time":61000,"command_id":"tr-1-x"},{"network":"198.51.100.0/24","action":"allow","start_time":1,'
        b'"stop_time":null,"command_id":"case-17"}]}}}',
        ahead_s=10.0,
    )
    assert rules == {
        read_network("192.0.2.0/24"): Rule(until_s=71.0, ours=True),
        read_network("198.51.100.0/24"): Rule(until_s=math.inf, ours=False, allow=True),
    }
    assert read_answer(b'{"status":404,"status_text":"cannot"}') == (404, "cannot")
    for nonsense in (b"", b"<html>", b'{"status":"x"}', b"[" * 100_000):
        with pytest.raises(BadAnswerError):
            read_answer(nonsense)
