"""Which addresses are refused or slowed: rules for networks, by longest prefix. Pure: time comes in as now_s.

One rule for each network, the last word of whoever gave it. What an allow rule
covers is never refused, however long the prefix of a deny rule: it is the list of those who must
not be locked out. A rule with a rate refuses what goes beyond it, and takes nothing from a deny rule.
Loopback is never refused unless the list was told that it may be.

A dict for each length of prefix that is in use. 100,000 networks of 18 lengths: 2 to 4 µs a look-up for a client seen
before, 6 to 8 for a new one, on a busy machine, in a request that takes a hundred times that. So no radix tree beside
the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from msgspec import Struct

Network = IPv4Network | IPv6Network

RULES_MAX = 500_000


class BadNetwork(ValueError):
    """What is no network; the text says why."""


class Rule(Struct, frozen=True, kw_only=True):
    """What is so for one network, for a time."""

    network: Network
    allow: bool
    starts_s: float
    """now_s from which on it holds."""
    ends_s: float = math.inf
    command: str = ""
    """Who gave it: the id of the command."""
    rate_per_s: float | None = None
    """Requests a second that are let in from all of the network together; None: none, or, if it allows, all."""

    @property
    def kind(self) -> Literal["allow", "deny", "slow"]:
        """What it does."""
        return "allow" if self.allow else "deny" if self.rate_per_s is None else "slow"


def parse_network(text: str, version: int) -> Network:
    """``192.0.2.0/24``, ``192.0.2.1`` or the same of IPv6; raises BadNetwork."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise BadNetwork(str(error)) from error
    if network.version != version:
        raise BadNetwork(f"{text} is IPv{network.version}, not IPv{version}")
    if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped) and network.prefixlen >= 96:
        return IPv4Network((mapped, network.prefixlen - 96))
    if "%" in text:
        raise BadNetwork(f"{text} has a zone, which means nothing elsewhere")
    return network


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """A client's address, an IPv4 one that is wrapped in IPv6 as what it is; None if it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


@lru_cache(maxsize=16384)
def _numbers(text: str) -> tuple[int, int, bool] | None:
    """Value, version and whether it is loopback: what ipaddress takes longer to tell than the look-up takes."""
    address = parse_address(text)
    return None if address is None else (int(address), address.version, address.is_loopback)


class _Tree:
    """The rules of one kind for one IP version, by length of prefix, the longest first."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._levels: tuple[tuple[int, dict[int, Rule]], ...] = ()  # how far to shift, and the rules there

    def put(self, rule: Rule) -> None:
        shift = self._bits - rule.network.prefixlen
        rules = dict(self._levels).get(shift)
        if rules is None:
            rules = {}
            # Swapped, as requests are looked up on another thread than the one that changes the list.
            self._levels = tuple(sorted((*self._levels, (shift, rules))))
        rules[int(rule.network.network_address) >> shift] = rule

    def remove(self, network: Network) -> None:
        shift = self._bits - network.prefixlen
        rules = dict(self._levels).get(shift, {})
        rules.pop(int(network.network_address) >> shift, None)
        if not rules:
            self._levels = tuple(level for level in self._levels if level[0] != shift)

    def match(self, value: int, now_s: float) -> Rule | None:
        for shift, rules in self._levels:
            rule = rules.get(value >> shift)
            if rule is not None and rule.starts_s <= now_s < rule.ends_s:
                return rule
        return None


class Blocklist:
    """The rules. Changed by one thread at a time; may be looked up from another meanwhile."""

    def __init__(self, *, may_block_loopback: bool = False) -> None:
        self._may_block_loopback = may_block_loopback
        self._rules: dict[Network, Rule] = {}
        self._trees = {
            (version, kind): _Tree(bits) for version, bits in ((4, 32), (6, 128)) for kind in ("allow", "deny", "slow")
        }

    def __len__(self) -> int:
        return len(self._rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(list(self._rules.values()))

    def get(self, network: Network) -> Rule | None:
        """The network's own rule."""
        return self._rules.get(network)

    def put(self, rule: Rule) -> None:
        """This is so for its network from now on, whatever was before."""
        held = self._rules.get(rule.network)
        self._rules[rule.network] = rule
        self._trees[rule.network.version, rule.kind].put(rule)
        if held is not None and held.kind != rule.kind:
            self._trees[rule.network.version, held.kind].remove(rule.network)

    def remove(self, network: Network) -> Rule | None:
        """Forget the network's own rule; return it."""
        rule = self._rules.pop(network, None)
        if rule is not None:
            self._trees[network.version, rule.kind].remove(network)
        return rule

    def refuses(self, client: str, now_s: float) -> Rule | None:
        """The rule by which the address is refused, None if it is not; nonsense is not."""
        return self._match(client, "deny", now_s)

    def slows(self, client: str, now_s: float) -> Rule | None:
        """The rule by which the address may ask only so often, None if there is none."""
        return self._match(client, "slow", now_s)

    def _match(self, client: str, kind: str, now_s: float) -> Rule | None:
        if not self._rules or (numbers := _numbers(client)) is None:
            return None
        value, version, is_loopback = numbers
        rule = self._trees[version, kind].match(value, now_s)
        if rule is None or self._trees[version, "allow"].match(value, now_s) is not None:
            return None
        return None if is_loopback and not self._may_block_loopback else rule

    def may_deny(self, network: Network) -> bool:
        """Whether a deny rule for the network could refuse anybody."""
        return self._may_block_loopback or not network.is_loopback

    def about(self, network: Network, now_s: float, limit: int) -> list[Rule]:
        """The rules that cover the network or lie in it, ended ones aside."""
        found = []
        for rule in self:
            if rule.ends_s <= now_s or rule.network.version != network.version:
                continue
            if rule.network.overlaps(network):
                found.append(rule)
                if len(found) >= limit:
                    break
        return found

    def ended(self, now_s: float) -> list[Network]:
        """Networks whose rule is over."""
        return [rule.network for rule in self if rule.ends_s <= now_s]
