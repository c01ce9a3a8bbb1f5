"""What a value is looked up in: everything that the feeds list, as one snapshot. Never changed once it is in use.

Stages, in their order: ``hot``, a dict of every listed value; ``guard`` and ``networks``, the networks that cover an
address, in a radix tree, asked only where one with the same first 16 bits is listed, if the guard is up; ``cold``, the
64-bit fingerprints of feeds that are seldom hit, sorted, eight bytes each; ``disk``, which
confirms a fingerprint. A change makes a new snapshot, and one assignment puts it to use.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from time import perf_counter_ns
from typing import NamedTuple

import radix
from msgspec import Struct, field

from services.threat_intel.scoring import Feed, Listing
from services.threat_intel.values import Kind, Value, host_of, suffixes

Listings = tuple[Listing, ...]
Confirm = Callable[[str], Listings]
"""The listings of a key in the feeds that are cold."""
STAGES = ("hot", "guard", "networks", "cold", "disk")
SAMPLES = 256


class Match(NamedTuple):
    """Something listed that a value matches, and how: exact, network, suffix, host, inside."""

    how: str
    key: str
    listings: Listings


class Stage(Struct):
    """What was measured of one stage, by sampling."""

    asked: int = 0
    passed: int = 0
    took_ns: deque[int] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """The last ones."""

    def us(self) -> float:
        """The median: one that was interrupted by another process would make a mean of hundreds worthless."""
        took = sorted(self.took_ns)
        return round(took[len(took) // 2] / 1e3, 3) if took else 0.0


class Networks:
    """The listed networks, and which /16s they touch."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)
        self._tree = radix.Radix()
        guard: set[str] = set()
        for key in self.keys:
            self._tree.add(key).data["key"] = key
            if ":" not in key:
                guard.update(_sixteens(key))
        self.guard = frozenset(guard)

    def covering(self, key: str) -> list[str]:
        """Listed networks that the address or network lies in, itself included."""
        return [node.data["key"] for node in self._tree.search_covering(key)]


def _sixteens(key: str) -> Iterable[str]:
    """The first two numbers of every address in the network: ``10.0.0.0/15`` → 10.0, 10.1."""
    address, _, bits = key.partition("/")
    first, second, *_ = map(int, address.split("."))
    number = first * 256 + second
    for one in range(number, number + (1 << max(0, 16 - int(bits)))):
        yield f"{one >> 8}.{one & 255}"


NO_NETWORKS = Networks(())
NO_FINGERPRINTS: array[int] = array("q")


class Index(Struct, frozen=True, kw_only=True):
    """Everything listed and allowed."""

    feeds: dict[str, Feed] = {}
    hot: dict[str, Listings] = {}
    networks: Networks = NO_NETWORKS
    is_guarded: bool = False
    cold: array[int] = NO_FINGERPRINTS
    cold_counts: dict[str, int] = {}
    sighted: dict[str, float] = {}
    """When a listed value was last seen, by its key."""
    allowed: frozenset[str] = frozenset()
    allowed_networks: Networks = NO_NETWORKS

    def allowing(self, value: Value) -> str | None:
        """The entry of the allow-list that the value is or lies below; None if there is none."""
        if not self.allowed:
            return None
        if value.key in self.allowed:
            return value.key
        match value.kind:
            case Kind.IPV4 | Kind.IPV6:
                covering = self.allowed_networks.covering(value.key) if self.allowed_networks.keys else ()
                return covering[0] if covering else None
            case Kind.DOMAIN:
                return next((name for name in suffixes(value.key) if name in self.allowed), None)
            case Kind.URL:
                return self.allowing(host_of(value.key))
        return None

    def matches(self, value: Value, confirm: Confirm) -> list[Match]:
        """All that the value matches; what lies inside a network that is asked for is the store's to tell."""
        found: list[Match] = []
        match value.kind:
            case Kind.IPV4 | Kind.IPV6:
                self._key(value.key, "exact", confirm, found)
                if self.networks.keys:
                    self._covering(value, found)
            case Kind.DOMAIN:
                for name in suffixes(value.key):
                    self._key(name, "exact" if name is value.key else "suffix", confirm, found)
            case Kind.URL:
                self._key(value.key, "exact", confirm, found)
                found += [one._replace(how="host") for one in self.matches(host_of(value.key), confirm)]
            case Kind.FILE:
                self._key(value.key, "exact", confirm, found)
        return found

    def _key(self, key: str, how: str, confirm: Confirm, found: list[Match]) -> None:
        listings = self.hot.get(key, ())
        if self.cold and self._is_cold(key):
            listings += confirm(key)
        if listings:
            found.append(Match(how, key, listings))

    def _is_cold(self, key: str) -> bool:
        cold, fingerprint = self.cold, hash(key)
        at = bisect_left(cold, fingerprint)
        return at < len(cold) and cold[at] == fingerprint

    def _covering(self, value: Value, found: list[Match]) -> None:
        key = value.key
        if (
            self.is_guarded
            and value.kind is Kind.IPV4
            and not value.is_network
            and key.rsplit(".", 2)[0] not in self.networks.guard
        ):
            return
        for network in self.networks.covering(key):
            if network != key:
                found.append(Match("network", network, self.hot.get(network, ())))

    def measure(self, value: Value, confirm: Confirm, stages: Mapping[str, Stage]) -> None:
        """Look an address up stage by stage with a clock beside, whether or not a stage is in use now."""
        key, at = value.key, perf_counter_ns()

        def passed(name: str, *, is_through: bool) -> None:
            nonlocal at
            now = perf_counter_ns()
            stage = stages[name]
            stage.asked += 1
            stage.passed += is_through
            stage.took_ns.append(now - at)
            at = perf_counter_ns()

        passed("hot", is_through=key in self.hot)
        if self.networks.keys and value.kind is Kind.IPV4 and not value.is_network:
            passed("guard", is_through=key.rsplit(".", 2)[0] in self.networks.guard)
            passed("networks", is_through=bool(self.networks.covering(key)))
        if self.cold:
            is_cold = self._is_cold(key)
            passed("cold", is_through=is_cold)
            if is_cold:
                passed("disk", is_through=bool(confirm(key)))

    def size_bytes(self) -> int:
        """About what the listings take in memory; keys by a sample of them."""
        some = list(islice(self.hot, 1_000))
        each = sum(sys.getsizeof(key) for key in some) / len(some) if some else 0.0
        return int(sys.getsizeof(self.hot) + len(self.hot) * each + self.cold.itemsize * len(self.cold))


def patched(hot: dict[str, Listings], feed: str, listed: Mapping[str, Listings | None]) -> dict[str, Listings]:
    """A copy in which the feed lists these: key → its listings, None or () for none any more."""
    fresh = hot.copy()
    for key, listings in listed.items():
        others = fresh.get(key)
        if others is not None:
            others = tuple(one for one in others if one.feed != feed)
        together = (*others, *listings) if others and listings else (listings or others or ())
        if together:
            fresh[key] = together
        else:
            fresh.pop(key, None)
    return fresh if len(fresh) * 2 > len(hot) else dict(fresh.items())  # a dict never shrinks by itself
