"""The tables, and what is read from and written to them by a connection that the caller has."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from socket import AF_INET, inet_pton
from typing import Any

import apsw
import msgspec

from services.threat_intel.index import NO_FINGERPRINTS, NO_NETWORKS, Listings, Networks
from services.threat_intel.scoring import Feed, Listing
from services.threat_intel.values import Kind, Value, bounds

VERSION = 1
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS feeds (name TEXT PRIMARY KEY, settings BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listings (
    feed TEXT NOT NULL, key TEXT NOT NULL, indicator TEXT NOT NULL, kind TEXT NOT NULL, low BLOB, first_s REAL NOT NULL,
    last_s REAL NOT NULL, until_s REAL, confidence REAL, PRIMARY KEY (feed, key, indicator)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS listings_low ON listings (low) WHERE low IS NOT NULL;
CREATE INDEX IF NOT EXISTS listings_indicator ON listings (feed, indicator) WHERE indicator <> '';
CREATE TABLE IF NOT EXISTS objects (
    added_us INTEGER PRIMARY KEY, feed TEXT NOT NULL, id TEXT NOT NULL, version TEXT NOT NULL,
    version_us INTEGER NOT NULL, type TEXT NOT NULL, spec TEXT NOT NULL, attack TEXT, name TEXT, json BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS objects_id ON objects (id, feed, version_us);
CREATE INDEX IF NOT EXISTS objects_feed ON objects (feed);
CREATE INDEX IF NOT EXISTS objects_attack ON objects (attack) WHERE attack IS NOT NULL;
CREATE TABLE IF NOT EXISTS relations (
    feed TEXT NOT NULL, id TEXT NOT NULL, source TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL,
    PRIMARY KEY (feed, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS relations_source ON relations (source);
CREATE INDEX IF NOT EXISTS relations_target ON relations (target);
CREATE TABLE IF NOT EXISTS allowed (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, note TEXT NOT NULL, at_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sightings (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, value TEXT NOT NULL, key TEXT NOT NULL,
    kind TEXT NOT NULL, seen_by TEXT NOT NULL, count INTEGER NOT NULL, at_s REAL NOT NULL, score REAL NOT NULL,
    feeds BLOB NOT NULL, cause TEXT
);
CREATE INDEX IF NOT EXISTS sightings_key ON sightings (key);
CREATE TABLE IF NOT EXISTS verdicts (
    feed TEXT NOT NULL, key TEXT NOT NULL, is_true INTEGER NOT NULL, at_s REAL NOT NULL, judged_by TEXT NOT NULL,
    PRIMARY KEY (feed, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS statuses (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, json BLOB NOT NULL);
PRAGMA user_version={VERSION};
"""
LISTING = "key, indicator, first_s, last_s, until_s, confidence"
VERSIONS = {
    "last": "o.version_us = (SELECT max(n.version_us) FROM objects n WHERE n.id = o.id AND n.feed = o.feed)",
    "first": "o.version_us = (SELECT min(n.version_us) FROM objects n WHERE n.id = o.id AND n.feed = o.feed)",
    "all": "1",
}
"""Of an object o, by TAXII's words for them."""


INDICATED = """
SELECT DISTINCT t.attack, t.name FROM relations r JOIN objects t ON t.id = r.target
WHERE r.source = ? AND t.type = 'attack-pattern' AND t.attack IS NOT NULL
UNION SELECT t.attack, t.name FROM relations r JOIN relations u ON u.source = r.target JOIN objects t ON t.id = u.target
WHERE r.source = ? AND r.kind = 'indicates' AND u.kind = 'uses' AND t.type = 'attack-pattern' AND t.attack IS NOT NULL
ORDER BY 1 LIMIT 50
"""
"""(ATT&CK id, name) of the techniques that an indicator indicates: itself, or by the malware that it indicates."""
TECHNIQUE = """
SELECT id, feed, json FROM objects WHERE attack = ? AND type = 'attack-pattern' ORDER BY
coalesce(json_extract(CAST(json AS TEXT), '$.revoked'), 0), version_us DESC LIMIT 1
"""
RELATED = """
SELECT DISTINCT r.kind, o.type, o.name, o.attack FROM relations r JOIN objects o ON o.id = r.source WHERE r.target = ?
AND o.version_us = (SELECT max(n.version_us) FROM objects n WHERE n.id = r.source) AND r.source <> ?
UNION SELECT r.kind, o.type, o.name, o.attack FROM relations r JOIN objects o ON o.id = r.target WHERE r.source = ?
AND o.version_us = (SELECT max(n.version_us) FROM objects n WHERE n.id = r.target) AND r.target <> ?
ORDER BY 1, 2, 3 LIMIT 1000
"""
"""(relationship, type, name, ATT&CK id) of what a technique has to do with."""


_MAPPED = b"\0" * 10 + b"\xff\xff"


def query(connection: apsw.Connection, sql: str, given: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of the answer."""
    return connection.execute(sql, given).fetchall()


def count_of(connection: apsw.Connection, feed: str) -> int:
    """How much the feed lists."""
    count: int = connection.execute("SELECT count(*) FROM listings WHERE feed = ?", (feed,)).get
    return count


def objects_in(connection: apsw.Connection) -> int:
    """How many versions of STIX objects there are."""
    count: int = connection.execute("SELECT count(*) FROM objects").get
    return count


def time_text(us: int) -> str:
    seconds, rest = divmod(us, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:06d}Z"


def low_of(value: Value) -> bytes | None:
    """The first address of an address or network, as bounds has it; None of what has none."""
    if value.kind is Kind.IPV4 and not value.is_network:  # what lists are full of
        return _MAPPED + inet_pton(AF_INET, value.key)
    return bounds(value.key)[0] if value.kind in (Kind.IPV4, Kind.IPV6) else None


def write_feed(connection: apsw.Connection, feed: Feed) -> None:
    connection.execute("INSERT OR REPLACE INTO feeds VALUES (?, ?)", (feed.name, msgspec.json.encode(feed)))


def listed_in(
    connection: apsw.Connection, feed: str, *, key: str | None = None, networks_only: bool = False
) -> Iterator[tuple[str, Listings]]:
    """(key, listings) of a feed; equal listings of a list are one object."""
    where, given = "feed = ?", [feed]
    if key is not None:
        where, given = where + " AND key = ?", [feed, key]
    if networks_only:
        where += " AND low IS NOT NULL AND instr(key, '/')"
    shared: dict[tuple[float, float], Listings] = {}
    last: str | None = None
    together: Listings = ()
    for found, indicator, first_s, last_s, until_s, confidence in query(
        connection, f"SELECT {LISTING} FROM listings WHERE {where} ORDER BY key", given
    ):
        is_plain = not indicator and until_s is None and confidence is None
        listings = shared.get((first_s, last_s)) if is_plain else None
        if listings is None:
            ends_s = math.inf if until_s is None else until_s
            listings = (Listing(feed, first_s, last_s, ends_s, confidence, indicator or None),)
            if is_plain:
                shared[first_s, last_s] = listings
        if found == last:
            together += listings
            continue
        if last is not None:
            yield last, together
        last, together = found, listings
    if last is not None:
        yield last, together


def keys_of(hot: Mapping[str, Listings], feed: str) -> list[str]:
    return [key for key, listings in hot.items() if any(one.feed == feed for one in listings)]


def networks_in(connection: apsw.Connection) -> Networks:
    keys = query(connection, "SELECT DISTINCT key FROM listings WHERE low IS NOT NULL AND instr(key, '/')")
    return Networks(key for (key,) in keys) if keys else NO_NETWORKS


def allowed_networks_in(connection: apsw.Connection) -> Networks:
    keys = query(connection, "SELECT key FROM allowed WHERE kind IN ('ipv4-addr', 'ipv6-addr') AND instr(key, '/')")
    return Networks(key for (key,) in keys) if keys else NO_NETWORKS


def cold_of(connection: apsw.Connection, feeds: Mapping[str, Feed]) -> dict[str, Any]:
    """Fingerprints of what the cold feeds list; of their networks none, as those are asked for by what they cover."""
    fingerprints: list[int] = []
    counts = {}
    for name, feed in feeds.items():
        if feed.is_cold:
            keys = query(connection, "SELECT DISTINCT key FROM listings WHERE feed = ?", (name,))
            fingerprints += [hash(key) for (key,) in keys]
            counts[name] = len(keys)
    return {"cold": array("q", sorted(fingerprints)) if fingerprints else NO_FINGERPRINTS, "cold_counts": counts}


def unlist(connection: apsw.Connection, feed: str, indicator: str) -> set[str]:
    """Take an indicator's values from the feed; the keys that it had."""
    keys = query(
        connection, "SELECT key FROM listings WHERE feed = ? AND indicator = ? AND indicator <> ''", (feed, indicator)
    )
    connection.execute("DELETE FROM listings WHERE feed = ? AND indicator = ? AND indicator <> ''", (feed, indicator))
    return {key for (key,) in keys}


def remove_object(
    connection: apsw.Connection, feed: str, id: str, versions_us: Iterable[int] | None = None
) -> set[str]:
    """Remove an object, or some of its versions; the keys that its listings had."""
    if versions_us is None:
        connection.execute("DELETE FROM objects WHERE id = ? AND feed = ?", (id, feed))
    else:
        connection.executemany(
            "DELETE FROM objects WHERE id = ? AND feed = ? AND version_us = ?", [(id, feed, one) for one in versions_us]
        )
    connection.execute("DELETE FROM relations WHERE feed = ? AND id = ?", (feed, id))
    return unlist(connection, feed, id)
