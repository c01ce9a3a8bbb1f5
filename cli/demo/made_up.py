"""What the fleet is fed with: made up from a seed, in ranges that RFC 5737, 3849 and 2544 keep free of anybody.

192.0.2.0/24 are the visitors, 203.0.113.0/24 whom everybody warns of, 198.51.100.0/24 a network that scans,
2001:db8::/32 and 198.18.0.0/15 fill lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

ATTACKER = "203.0.113.66"
NETWORK = "198.51.100.0/24"
SCANNERS = tuple(f"198.51.100.{number}" for number in range(20, 28))
VISITORS = tuple(f"192.0.2.{number}" for number in range(1, 241))
ATTACKER_AT = (8.54, 47.38)
"""Where the table says that it is: longitude, latitude."""
TECHNIQUE, MITIGATION = "T1110", "M1036"
"""ATT&CK's Brute Force and Account Use Policies."""
ROWS = 60_000
LISTED = 5_000
RUMOURS = 400
WRONG_RUMOURS = 16
"""Of those that a person has looked into."""
RIGHT_RUMOURS = 4
GROUPS, TECHNIQUES, MITIGATIONS, USES = 60, 500, 150, 7_000
"""About as large as ATT&CK for enterprises."""

_CITIES = (
    ("Zurich", 8.54, 47.38),
    ("Lagos", 3.38, 6.52),
    ("Lima", -77.04, -12.05),
    ("Osaka", 135.5, 34.69),
    ("Austin", -97.74, 30.27),
    ("Gdansk", 18.65, 54.35),
)


def logins(seed: int) -> str:
    """A log of log-ins as CSV, the attacker's among them."""
    chance = Random(f"logins {seed}")
    lines = ["id,at,person,address,city,lon,lat,ok"]
    for number in range(ROWS):
        city, lon, lat = chance.choice(_CITIES)
        address = f"2001:db8::{chance.randrange(1 << 18):x}" if number % 500 else ATTACKER
        lon, lat = ATTACKER_AT if address == ATTACKER else (lon + chance.gauss(0, 3), lat + chance.gauss(0, 3))
        person, ok = f"person-{chance.randrange(200)}", int(address != ATTACKER and chance.random() < 0.9)
        lines.append(f"{number},{1_790_000_000 + 7 * number},{person},{address},{city},{lon:.4f},{lat:.4f},{ok}")
    return "\n".join(lines) + "\n"


def addresses_asked_for(seed: int) -> Iterator[str]:
    """One after the other, without end."""
    chance = Random(f"asked {seed}")
    while True:
        yield f"2001:db8::{chance.randrange(1 << 18):x}"


def windows(seed: int) -> Iterator[tuple[float, float, float, float]]:
    """Parts of a map that somebody looks at: west, south, east, north."""
    chance = Random(f"windows {seed}")
    while True:
        _, lon, lat = chance.choice(_CITIES)
        west, south = lon + chance.gauss(0, 3), lat + chance.gauss(0, 3)
        yield west, south, west + 0.5, south + 0.5


def bad_addresses(seed: int) -> list[str]:
    """A list as somebody publishes it."""
    chance = Random(f"listed {seed}")
    listed = {f"2001:db8:bad::{chance.randrange(1 << 32):x}" for _ in range(LISTED)}
    return [f"203.0.113.{number}" for number in range(1, 255)] + sorted(listed)


def rumours(seed: int) -> list[str]:
    """A list that is mostly wrong."""
    chance = Random(f"rumours {seed}")
    return sorted({f"198.18.{chance.randrange(256)}.{chance.randrange(1, 255)}" for _ in range(RUMOURS)})


def bundle(seed: int, at_s: float) -> list[dict[str, Any]]:
    """STIX 2.1 of that time: what is known of the attacker, among made-up groups, techniques and mitigations."""
    chance = Random(f"stix {seed}")
    at = datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    objects = []

    def add(type_: str, **properties: Any) -> str:
        id_ = f"{type_}--{UUID(int=chance.getrandbits(128), version=4)}"
        objects.append({"type": type_, "spec_version": "2.1", "id": id_, "created": at, "modified": at, **properties})
        return id_

    def relate(source: str, kind: str, target: str) -> None:
        add("relationship", relationship_type=kind, source_ref=source, target_ref=target)

    def known(attack_id: str) -> list[dict[str, str]]:
        return [{"source_name": "mitre-attack", "external_id": attack_id}]

    brute_force = add("attack-pattern", name="Brute Force", external_references=known(TECHNIQUE))
    policy = add("course-of-action", name="Account Use Policies", external_references=known(MITIGATION))
    relate(policy, "mitigates", brute_force)
    seen = add(
        "indicator",
        name="guesses passwords",
        pattern=f"[ipv4-addr:value = '{ATTACKER}']",
        pattern_type="stix",
        valid_from=at,
        confidence=90,
    )
    relate(seen, "indicates", brute_force)
    techniques = [brute_force] + [
        add("attack-pattern", name=f"Made-up technique {number}", external_references=known(f"T{9000 + number}"))
        for number in range(TECHNIQUES)
    ]
    groups = [add("intrusion-set", name=f"Made-up group {number}") for number in range(GROUPS)]
    for _ in range(USES):
        relate(chance.choice(groups), "uses", chance.choice(techniques))
    for number in range(MITIGATIONS):
        mitigation = add("course-of-action", name=f"Made-up mitigation {number}")
        for technique in chance.sample(techniques[1:], 5):
            relate(mitigation, "mitigates", technique)
    return objects


def about_the_attacker(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a bundle the part that a feed needs, which is at its beginning."""
    end = next(at for at, one in enumerate(objects) if one.get("name", "").startswith("Made-up"))
    return objects[:end]


def durations(seed: int) -> Iterator[str]:
    """A second of 40 timings each, as lines of StatsD: some wide, some narrow, some constant, most of them rare."""
    chance = Random(f"durations {seed}")
    while True:
        yield "\n".join(line for number in range(40) for line in _timings(number, chance))


def _timings(number: int, chance: Random) -> Iterator[str]:
    match number % 20:
        case 0:
            values = [
                chance.lognormvariate(9, 1) if chance.random() < 0.1 else chance.lognormvariate(0, 1)
                for _ in range(200)
            ]
        case 1 | 2:
            values = [chance.lognormvariate(3, 1) for _ in range(200)]
        case 3 | 4 | 5 | 6 | 7:
            values = [chance.lognormvariate(3, 0.2) for _ in range(200)]
        case 8 | 9 | 10:
            values = [100.0] * 200
        case _:
            values = [chance.lognormvariate(3, 1) for _ in range(3)]
    for part in range(0, len(values), 50):
        yield f"part-{number}.took:{':'.join(f'{value:.4g}' for value in values[part : part + 50])}|ms"
