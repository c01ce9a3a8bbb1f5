"""Addresses and networks: how they are read, which prefix an address is of, what a never-block list leaves. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PREFIX_BITS = {4: 24, 6: 64}
"""What is assigned as one: a /24 is the longest that is routed, a /64 what one customer has (RFC 6177)."""
BROADEST_BITS = {4: 8, 6: 19}
"""Nothing broader is banned: no registry gives more to one holder."""
NARROWED_MAX = 256
"""Networks that one ban may be cut into by the never-block list."""


class BadNetworkError(ValueError):
    """What is no address or network that can be judged; the text says why."""


@lru_cache(maxsize=16384)
def read_address(text: str) -> Address:
    """An address, an IPv4 one that is wrapped in IPv6 as what it is; raises BadNetworkError."""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise BadNetworkError(f"{text[:80]!r} is no IP address") from error
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise BadNetworkError(f"{text[:80]!r} has a zone, which means nothing elsewhere")
        return address.ipv4_mapped or address
    return address


def read_network(text: str) -> Network:
    """A network, or an address as the network of it alone; raises BadNetworkError."""
    if "/" not in text:
        return alone(read_address(text))
    try:
        network = ip_network(text)
    except ValueError as error:
        raise BadNetworkError(str(error)[:200]) from error
    if isinstance(network, IPv6Network):
        if "%" in text:
            raise BadNetworkError(f"{text[:80]!r} has a zone, which means nothing elsewhere")
        if network.prefixlen >= 96 and (mapped := network.network_address.ipv4_mapped):
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


def alone(address: Address) -> Network:
    """The network that is this address and no other."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)


def prefix_of(address: Address) -> Network:
    """The neighbourhood that is answered for together: /24, /64."""
    bits = PREFIX_BITS[address.version]
    if isinstance(address, IPv4Address):
        return IPv4Network((int(address) >> (32 - bits) << (32 - bits), bits))
    return IPv6Network((int(address) >> (128 - bits) << (128 - bits), bits))


def covers(outer: Network, inner: Network) -> bool:
    """Whether all of inner is in outer."""
    return outer.version == inner.version and outer.prefixlen <= inner.prefixlen and inner.network_address in outer


def narrowed(network: Network, never: Iterable[Network]) -> list[Network]:
    """What is left of the network when what must never be blocked is taken out; raises BadNetworkError if too many."""
    left = [network]
    for spared in never:
        if spared.version != network.version or not spared.overlaps(network):
            continue
        rest: list[Network] = []
        for part in left:
            if covers(spared, part):
                continue
            if covers(part, spared):
                rest += part.address_exclude(spared)  # type: ignore[arg-type]
            else:
                rest.append(part)
        left = rest
        if len(left) > NARROWED_MAX:
            raise BadNetworkError(f"{network} would be cut into over {NARROWED_MAX} networks by the never-block list")
    return sorted(left, key=lambda part: (int(part.network_address), part.prefixlen))
