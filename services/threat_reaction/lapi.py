"""CrowdSec's local API, as far as its bouncers go: decisions, in their words. Pure, but for looking into the database.

After github.com/crowdsecurity/crowdsec, pkg/models/localapi_swagger.yaml.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from ipaddress import ip_network

from msgspec import Struct

from services.threat_reaction.networks import Network, covers, read_network

ORIGIN = "cdn-threat-reaction"
SCOPES = "ip,range"
DECISIONS_MAX = 200_000
"""In one answer."""


class Decision(Struct, frozen=True, kw_only=True):
    """A ban, as a bouncer reads it."""

    id: int
    uuid: str
    origin: str
    type: str
    scope: str
    value: str
    duration: str
    scenario: str


class Stream(Struct, frozen=True, kw_only=True):
    """What is new and what is over, since the bouncer last asked."""

    new: list[Decision]
    deleted: list[Decision]


class Bouncer(Struct, frozen=True, kw_only=True):
    """Whoever may ask."""

    name: str
    revision: int


def go_duration(seconds: float) -> str:
    """As Go's time.Duration is written, in whole seconds: ``3h59m57s``, ``-2s``."""
    whole = round(seconds)
    sign, whole = ("-", -whole) if whole < 0 else ("", whole)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{sign}{hours}h{minutes}m{left}s"
    return f"{sign}{minutes}m{left}s" if minutes else f"{sign}{left}s"


def decision(row: tuple[int, str, str, float, str], now_s: float) -> Decision:
    """One row of _ROWS."""
    id, text, kind, until_s, scenario = row
    network = ip_network(text)
    is_one = network.prefixlen == network.max_prefixlen
    return Decision(
        id=id,
        uuid=f"00000000-0000-4000-8000-{id:012x}",
        origin=ORIGIN,
        type=kind,
        scope="Ip" if is_one else "Range",
        value=str(network.network_address) if is_one else str(network),
        duration=go_duration(until_s - now_s),
        scenario=f"{ORIGIN}/{scenario}",
    )


_ROWS = "SELECT id, network, kind, until_s, scenario FROM bans"


def wanted(query: Mapping[str, str]) -> Callable[[Decision], bool]:
    """What a bouncer's query lets through; what it does not name is not asked about."""

    def words(name: str, default: str = "") -> list[str]:
        return [word for word in query.get(name, default).lower().split(",") if word]

    scopes, origins = words("scopes", SCOPES), words("origins")
    holding, lacking = words("scenarios_containing"), words("scenarios_not_containing")

    def is_wanted(one: Decision) -> bool:
        scenario = one.scenario.lower()
        return (
            (not scopes or one.scope.lower() in scopes)
            and (not origins or one.origin.lower() in origins)
            and (not holding or any(word in scenario for word in holding))
            and not any(word in scenario for word in lacking)
        )

    return is_wanted


def stream(db: sqlite3.Connection, query: Mapping[str, str], since: int, now_s: float) -> tuple[Stream, int]:
    """What the bouncer is told, and the revision that it has then been told of."""
    is_wanted = wanted(query)
    starts = query.get("startup", "").lower() == "true"
    (newest,) = db.execute("SELECT coalesce(max(revision), 0) FROM bans").fetchone()
    in_force = db.execute(
        f"{_ROWS} WHERE ended_s IS NULL AND until_s > ? AND revision > ? AND revision <= ? ORDER BY id LIMIT ?",
        (now_s, 0 if starts else since, newest, DECISIONS_MAX),
    )
    new = [one for row in in_force if is_wanted(one := decision(row, now_s))]
    # What is banned again is not over, even if a ban of it is.
    over = db.execute(
        f"{_ROWS} AS old WHERE ended_s IS NOT NULL AND revision > ? AND revision <= ? AND NOT EXISTS "
        "(SELECT 1 FROM bans WHERE network = old.network AND ended_s IS NULL) ORDER BY id LIMIT ?",
        (max(0, newest - 10_000) if starts else since, newest, DECISIONS_MAX),
    )
    gone = {one.value: one for row in over if is_wanted(one := decision(row, now_s))}
    return Stream(new=new, deleted=list(gone.values())), int(newest)


def about(db: sqlite3.Connection, query: Mapping[str, str], now_s: float) -> list[Decision]:
    """Decisions about an address or range; raises BadNetworkError for what is none."""
    is_wanted = wanted({"scopes": "", **query})
    text, scope = query.get("ip") or query.get("range"), query.get("scope", "").lower()
    if text is None and scope in ("", "ip", "range"):
        text = query.get("value")
    asked: Network | None = None if text is None else read_network(text)
    contains = query.get("contains", "true").lower() != "false"
    rows = db.execute(f"{_ROWS} WHERE ended_s IS NULL AND until_s > ? ORDER BY id LIMIT ?", (now_s, DECISIONS_MAX))
    found = []
    for row in rows:
        network = ip_network(row[1])
        if asked is not None and not (covers(network, asked) if contains else covers(asked, network)):
            continue
        one = decision(row, now_s)
        if query.get("type", one.type) == one.type and scope in ("", one.scope.lower()) and is_wanted(one):
            found.append(one)
    return found


def key_hash(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def bouncer(db: sqlite3.Connection, key: str) -> Bouncer | None:
    """Whose key it is."""
    row = db.execute("SELECT name, revision FROM bouncers WHERE key_hash = ?", (key_hash(key),)).fetchone()
    return None if row is None else Bouncer(name=row[0], revision=row[1])
