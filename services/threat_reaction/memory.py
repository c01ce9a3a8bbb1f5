"""What is known of addresses: what was lately seen of them, how often they were banned, who does well. Pure.

Times are seconds since the epoch, by whatever clock the caller has, as long as it does not go backwards.
Everything is bounded: what was not seen for longest is forgotten first.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct

from services.threat_reaction.networks import Address, Network, alone, covers, prefix_of, read_address
from services.threat_reaction.playbooks import Condition

ADDRESSES_MAX = 50_000
SEEN_MAX = 256
"""Sightings that are remembered of one address."""
PREFIX_ADDRESSES_MAX = 256
PAST_MAX = 32
"""Bans that are remembered of one network."""

FIRST_BAN_S = 240.0
BAN_FACTOR = 4.0
LONGEST_BAN_S = 604_800.0
PAUSE_S = 10.0
"""What disrupt slows somebody for, unless its playbook says."""
HALF_LIFE_S = 2 * 86_400.0
"""After so long without another ban, a ban counts half."""
TRUST_S = 7 * 86_400.0
"""How long a good sign speaks for an address, and for its prefix."""
TRUST_FACTOR = 2.0
"""Whoever has logged in may fail so many times as often: people mistype."""

OFFENDER_POINTS = 2.0
OFFENCE_S = 3600.0
RATE_S = 10.0
PREFIX_POINTS: Mapping[str, float] = {
    "ssh_failed": 1.0,
    "ssh_invalid_user": 2.0,
    "ssh_root_failed": 2.0,
    "indicator": 2.0,
}
"""What a sighting is worth in the judgement of a prefix; of another kind, 0.1."""


def is_good(kind: str) -> bool:
    """Whether the sighting speaks for the address: something was accepted."""
    return kind.endswith("_accepted")


class Seen(NamedTuple):
    """One sighting, as it is remembered."""

    at_s: float
    kind: str
    times: int
    confidence: int


class Ban(Struct, frozen=True, kw_only=True):
    """A ban in force."""

    id: int
    network: Network
    kind: str
    """``ban`` or ``throttle``."""
    starts_s: float
    until_s: float
    level: float
    """Recidivism when it was given."""
    reaction: str
    """Id of the reaction that it is of; empty: a person's."""
    scenario: str
    """The playbook, or ``manual``."""
    by: str
    revision: int
    cause: str | None = None
    """Id of the event that it is because of."""


class Neighbourhood(Struct, frozen=True, kw_only=True):
    """What is known of one prefix."""

    prefix: str
    offenders: int
    """Addresses with enough against them, within the hour, or banned within the day."""
    points: float
    good: int
    """Addresses that something was accepted from, within the week: who would be hit as well."""
    rate_per_s: float
    """Sightings against it, over the last RATE_S."""


class Memory:
    """All of it. One thread changes it; nobody else may look into it."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Address, deque[Seen]] = OrderedDict()
        self._prefixes: OrderedDict[Network, dict[Address, None]] = OrderedDict()
        self._past: OrderedDict[Network, deque[float]] = OrderedDict()
        self._forgiven: dict[Address, float] = {}
        self._touched: set[Network] = set()
        self._judged: dict[Network, tuple[Neighbourhood, float]] = {}
        self.never: dict[Network, str] = {}
        """Networks that are never blocked, and why."""
        self.bans: dict[Network, Ban] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()

    def __len__(self) -> int:
        return len(self._seen)

    # -- what happened ------------------------------------------------------------------------------------

    def see(self, address: Address, seen: Seen) -> None:
        """Remember a sighting."""
        held = self._seen.get(address)
        if held is None:
            if len(self._seen) >= ADDRESSES_MAX:
                self._forget(next(iter(self._seen)))
            held = self._seen[address] = deque(maxlen=SEEN_MAX)
        else:
            self._seen.move_to_end(address)
        held.append(seen)
        prefix = prefix_of(address)
        addresses = self._prefixes.setdefault(prefix, {})
        self._prefixes.move_to_end(prefix)
        self._touched.add(prefix)
        if address not in addresses and len(addresses) >= PREFIX_ADDRESSES_MAX:
            del addresses[next(iter(addresses))]
        addresses[address] = None

    def _forget(self, address: Address) -> None:
        self._seen.pop(address, None)
        self._forgiven.pop(address, None)
        prefix = prefix_of(address)
        addresses = self._prefixes.get(prefix, {})
        addresses.pop(address, None)
        self._touched.add(prefix)
        if not addresses:
            self._prefixes.pop(prefix, None)

    def begin(self, ban: Ban) -> None:
        """The ban is in force."""
        if ban.network not in self.bans:
            self._lengths[ban.network.version, ban.network.prefixlen] += 1
        self.bans[ban.network] = ban

    def end(self, network: Network, at_s: float, *, overturned: bool) -> None:
        """The ban is over; a pause, and what was a mistake, is not held against anybody."""
        ban = self.bans.pop(network, None)
        if ban is None:
            return
        length = (network.version, network.prefixlen)
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]
        if not overturned and ban.kind == "ban":
            self.past(network, at_s)

    def past(self, network: Network, ended_s: float) -> None:
        """A ban that ended then is held against the network."""
        if network not in self._past and len(self._past) >= ADDRESSES_MAX:
            self._past.popitem(last=False)
        self._past.setdefault(network, deque(maxlen=PAST_MAX)).append(ended_s)
        self._past.move_to_end(network)
        self._touched.add(prefix_of(network.network_address))

    def forgive(self, network: Network, at_s: float) -> list[Address]:
        """What was seen of it until now no longer counts; returns the addresses that this is about."""
        inside = [address for address in self._seen if address.version == network.version and address in network]
        for address in inside:
            self._forgiven[address] = at_s
            self._touched.add(prefix_of(address))
        return inside

    def forgiven(self, address: Address, at_s: float) -> None:
        """As it was told before a restart."""
        self._forgiven[address] = at_s

    # -- what that means ----------------------------------------------------------------------------------

    def ban_of(self, address: Address) -> Ban | None:
        """The ban that the address is under; of several the broadest."""
        number, bits_all = int(address), 32 if address.version == 4 else 128
        for version, bits in sorted(self._lengths):
            if version != address.version:
                continue
            shift = bits_all - bits
            network = type(alone(address))((number >> shift << shift, bits))
            ban = self.bans.get(network)
            if ban is not None:
                return ban
        return None

    def is_back(self, address: Address, at_s: float) -> bool:
        """Whether a sighting would be the first of the address since a ban of it ended, less than a day before."""
        ended = self._past.get(alone(address))
        if not ended or not ended[-1] < at_s < ended[-1] + 86_400:
            return False
        seen = self._seen.get(address)
        return not seen or seen[-1].at_s <= ended[-1]

    def first_seen(self, address: Address, now_s: float) -> float:
        """When the first of what counts against the address was seen, within the hour."""
        counted = (seen.at_s for seen in self._counted(address, now_s - OFFENCE_S) if not is_good(seen.kind))
        return min(counted, default=now_s)

    def spared(self, network: Network) -> Network | None:
        """The never-block network that all of it is in."""
        return next((never for never in self.never if covers(never, network)), None)

    def recidivism(self, network: Network, now_s: float) -> float:
        """How often it was banned, each ban counting half for every HALF_LIFE_S since its end."""
        ends = self._past.get(network, ())
        return math.fsum(0.5 ** (max(0.0, now_s - ended_s) / HALF_LIFE_S) for ended_s in ends)

    def ban_s(self, network: Network, now_s: float) -> float:
        """How long it is banned for next: four minutes, and four times as long each time, up to a week."""
        exponent = math.floor(self.recidivism(network, now_s) + 0.5)
        return min(LONGEST_BAN_S, FIRST_BAN_S * BAN_FACTOR ** min(exponent, 10))

    def is_trusted(self, address: Address, now_s: float) -> bool:
        """Whether something was accepted from it lately."""
        return any(is_good(seen.kind) and seen.at_s > now_s - TRUST_S for seen in self._seen.get(address, ()))

    def _counted(self, address: Address, since_s: float) -> Iterator[Seen]:
        """What counts of an address: not what is forgiven, nor what it was banned for already."""
        ended = self._past.get(alone(address))
        since_s = max(since_s, self._forgiven.get(address, 0.0), ended[-1] if ended else 0.0)
        return (seen for seen in self._seen.get(address, ()) if seen.at_s > since_s)

    def points(self, condition: Condition, address: Address, confidence: int, now_s: float) -> tuple[float, int]:
        """Points of the address or of its prefix, and how many addresses have any."""
        addresses: Iterable[Address] = (address,)
        if condition.per == "prefix":
            addresses = self._prefixes.get(prefix_of(address), ())
        total, having = 0.0, 0
        for one in addresses:
            got = sum(
                condition.points.get(seen.kind, 0.0) * seen.times
                for seen in self._counted(one, now_s - condition.within_s)
                if seen.confidence >= confidence
            )
            total += got
            having += got > 0
        return total, having

    def holds(self, condition: Condition, address: Address, confidence: int, now_s: float) -> bool:
        """Whether there is enough: less is needed of who was banned before, more of who has done well."""
        total, having = self.points(condition, address, confidence, now_s)
        if having < condition.addresses_at_least:
            return False
        needed = condition.at_least
        if condition.per == "address":
            # Rounded, or a ban of a second ago would already count a little less than one.
            needed /= 1 + round(self.recidivism(alone(address), now_s), 1)
            if self.is_trusted(address, now_s):
                needed *= TRUST_FACTOR
        return total >= needed

    def good_in(self, network: Network, now_s: float) -> int:
        """Addresses of the network that something was accepted from lately."""
        if network.prefixlen >= (24 if network.version == 4 else 64):
            inside: Iterable[Address] = self._prefixes.get(prefix_of(network.network_address), ())
        else:
            inside = self._seen
        return sum(
            address.version == network.version and address in network and self.is_trusted(address, now_s)
            for address in inside
        )

    def neighbourhoods(self, now_s: float, *, addresses_at_least: int) -> list[Neighbourhood]:
        """The prefixes with so many addresses that something was seen of within the hour.

        Only those that something has happened in are looked at anew, the others once a minute: it is asked every
        second, and a flood has tens of thousands.
        """
        judged = self._judged
        due = self._touched
        due |= {prefix for prefix, (one, at_s) in judged.items() if one.rate_per_s or at_s <= now_s - 60}
        self._touched = set()
        for prefix in due:
            addresses = self._prefixes.get(prefix, {})
            if len(addresses) < addresses_at_least or all(
                self._seen[address][-1].at_s <= now_s - OFFENCE_S for address in addresses
            ):
                judged.pop(prefix, None)
            else:
                judged[prefix] = (self._judge(prefix, addresses, now_s), now_s)
        return [one for one, _ in judged.values()]

    def _judge(self, prefix: Network, addresses: Iterable[Address], now_s: float) -> Neighbourhood:
        offenders, points, recent = 0, 0.0, 0
        for address in addresses:
            got, pardoned_s = 0.0, self._forgiven.get(address, 0.0)
            for seen in self._seen[address]:
                if not is_good(seen.kind) and seen.at_s > max(now_s - OFFENCE_S, pardoned_s):
                    got += PREFIX_POINTS.get(seen.kind, 0.1) * seen.times
                    recent += seen.times * (seen.at_s > now_s - RATE_S)
            points += got
            ended = self._past.get(alone(address))
            offenders += got >= OFFENDER_POINTS or bool(ended and ended[-1] > max(now_s - 86_400, pardoned_s))
        return Neighbourhood(
            prefix=str(prefix),
            offenders=offenders,
            points=points,
            good=sum(self.is_trusted(address, now_s) for address in addresses),
            rate_per_s=recent / RATE_S,
        )

    def known(self, text: str, now_s: float) -> dict[str, object]:
        """All about one address, for whoever hunts; raises BadNetworkError."""
        address = read_address(text)
        ban = self.ban_of(address)
        spared = self.spared(alone(address))
        return {
            "address": str(address),
            "prefix": str(prefix_of(address)),
            "banned_until_s": None if ban is None else ban.until_s,
            "never_blocked_by": None if spared is None else str(spared),
            "recidivism": round(self.recidivism(alone(address), now_s), 3),
            "next_ban_s": self.ban_s(alone(address), now_s),
            "trusted": self.is_trusted(address, now_s),
            "neighbours": [str(one) for one in self._prefixes.get(prefix_of(address), ()) if one != address],
            "seen": [
                {"at_s": seen.at_s, "kind": seen.kind, "count": seen.times, "confidence": seen.confidence}
                for seen in self._seen.get(address, ())
            ],
        }
