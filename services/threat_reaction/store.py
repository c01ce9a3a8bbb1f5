"""The database: its tables, and what is written to and read from them. On the thread that owns the connection.

Times are seconds since the epoch, as they have to mean the same to the next process.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec

from services.threat_reaction.judgement import Sighted
from services.threat_reaction.memory import TRUST_S, Ban, Memory, Seen
from services.threat_reaction.networks import read_address
from services.threat_reaction.playbooks import DEFAULTS, BadPlaybookError, Playbook, check
from services.threat_reaction.records import GENESIS, AuditEntry, Lifted, Reaction, Standing, chained

_VERSION = 1
TOLD_KEPT = 1000
"""As many as the bus says again."""
SIGHTINGS_KEPT = 1_000_000
SIGHTINGS_READ = 100_000
"""Of which the newest are read at the start."""
PAST_S = 30 * 86_400.0
"""Reactions and ended bans are kept so long."""

NEVER = {
    "0.0.0.0/8": "this host",
    "127.0.0.0/8": "loopback",
    "::1/128": "loopback",
    "10.0.0.0/8": "private (RFC 1918)",
    "172.16.0.0/12": "private (RFC 1918)",
    "192.168.0.0/16": "private (RFC 1918)",
    "100.64.0.0/10": "shared by many behind one translator, or an inner network of one's own (RFC 6598)",
    "169.254.0.0/16": "link-local",
    "fe80::/10": "link-local",
    "fc00::/7": "private (RFC 4193)",
}
"""What is never blocked, until somebody decides otherwise."""

_TABLES = """
CREATE TABLE sightings (
    number INTEGER PRIMARY KEY, key TEXT UNIQUE, address TEXT NOT NULL, kind TEXT NOT NULL, at_s REAL NOT NULL,
    times INTEGER NOT NULL, confidence INTEGER NOT NULL, source TEXT NOT NULL, cause TEXT
) STRICT;
CREATE INDEX sightings_by_address ON sightings (address, number);
CREATE TABLE forgiven (address TEXT PRIMARY KEY, at_s REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE playbooks (name TEXT PRIMARY KEY, body BLOB NOT NULL, standing BLOB) STRICT, WITHOUT ROWID;
CREATE TABLE reactions (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, playbook TEXT NOT NULL,
    changed_s REAL NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE INDEX reactions_by_state ON reactions (state, number);
CREATE TABLE bans (
    id INTEGER PRIMARY KEY AUTOINCREMENT, network TEXT NOT NULL, kind TEXT NOT NULL, starts_s REAL NOT NULL,
    until_s REAL NOT NULL, level REAL NOT NULL, reaction TEXT NOT NULL, scenario TEXT NOT NULL, by TEXT NOT NULL,
    cause TEXT, revision INTEGER NOT NULL, ended_s REAL, ended_by TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX bans_in_force ON bans (network) WHERE ended_s IS NULL;
CREATE INDEX bans_by_revision ON bans (revision);
CREATE INDEX bans_by_reaction ON bans (reaction);
CREATE TABLE never (network TEXT PRIMARY KEY, why TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    number INTEGER PRIMARY KEY, at_s REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, subject TEXT NOT NULL,
    detail BLOB NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN SELECT raise(ABORT, 'the audit log only grows'); END;
CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit BEGIN SELECT raise(ABORT, 'the audit log only grows'); END;
CREATE TABLE bouncers (
    name TEXT PRIMARY KEY, key_hash TEXT NOT NULL UNIQUE, made_s REAL NOT NULL, revision INTEGER NOT NULL DEFAULT 0,
    pulled_s REAL, agent TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TABLE gateways (instance TEXT PRIMARY KEY, address TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
_BAN = "id, network, kind, starts_s, until_s, level, reaction, scenario, by, cause, revision"


class StoreError(Exception):
    """The database cannot be used; the text says what to do."""


def opened(path: Path, now_s: float) -> sqlite3.Connection:
    """The database, made if there is none; raises StoreError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot open {path}: {error}; mend it, or move it away") from error
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # acknowledged means on disk
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.execute("BEGIN IMMEDIATE")
            for statement in _statements(_TABLES):
                db.execute(statement)
            db.executemany("INSERT INTO never VALUES (?, ?)", NEVER.items())
            for name, playbook in DEFAULTS.items():
                db.execute("INSERT INTO playbooks (name, body) VALUES (?, ?)", (name, msgspec.json.encode(playbook)))
            audit(db, now_s, "cdn-threat-reaction", "began", str(path.name), {"never_block": NEVER})
            db.execute(f"PRAGMA user_version={_VERSION}")
            db.execute("COMMIT")
        elif version != _VERSION:
            raise StoreError(f"cannot use {path}: its version is {version}, this reads {_VERSION}")
        db.execute(
            "CREATE TABLE IF NOT EXISTS told (number INTEGER PRIMARY KEY, at_s REAL NOT NULL, told BLOB NOT NULL)"
        )
    except (OSError, sqlite3.Error) as error:
        db.close()
        raise StoreError(f"cannot use {path}: {error}; mend it, or move it away") from error
    except StoreError:
        db.close()
        raise
    return db


def _statements(script: str) -> Iterator[str]:
    """One by one, as executescript would commit."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def remembered(db: sqlite3.Connection, now_s: float) -> Memory:
    """What a process has in memory that has heard all of it."""
    memory = Memory()
    for network, why in db.execute("SELECT network, why FROM never"):
        memory.never[ip_network(network)] = why
    rows = db.execute(
        "SELECT address, at_s, kind, times, confidence FROM (SELECT * FROM sightings WHERE at_s > ? "
        "ORDER BY number DESC LIMIT ?) ORDER BY number",
        (now_s - TRUST_S, SIGHTINGS_READ),
    )
    for address, *seen in rows:
        memory.see(read_address(address), Seen(*seen))
    for address, at_s in db.execute("SELECT address, at_s FROM forgiven WHERE at_s > ?", (now_s - TRUST_S,)):
        memory.forgiven(read_address(address), at_s)
    past = "SELECT network, ended_s FROM bans WHERE ended_s > ? AND ended_by = '' AND kind = 'ban' ORDER BY ended_s"
    for network, ended_s in db.execute(past, (now_s - PAST_S,)):
        memory.past(ip_network(network), ended_s)
    for ban in bans_in_force(db):
        memory.begin(ban)
    return memory


# -- bans -------------------------------------------------------------------------------------------------


def _ban(row: tuple[Any, ...]) -> Ban:
    id, network, kind, starts_s, until_s, level, reaction, scenario, by, cause, revision = row
    return Ban(
        id=id,
        network=ip_network(network),
        kind=kind,
        starts_s=starts_s,
        until_s=until_s,
        level=level,
        reaction=reaction,
        scenario=scenario,
        by=by,
        cause=cause,
        revision=revision,
    )


def bans_in_force(db: sqlite3.Connection) -> Iterator[Ban]:
    """All of them."""
    return map(_ban, db.execute(f"SELECT {_BAN} FROM bans WHERE ended_s IS NULL ORDER BY id"))


def revision(db: sqlite3.Connection) -> int:
    """The newest change of a ban."""
    (number,) = db.execute("SELECT coalesce(max(revision), 0) FROM bans").fetchone()
    return int(number)


def put_ban(db: sqlite3.Connection, ban: Ban) -> Ban:
    """Write a new ban, or another end of one in force; returns it as it is now."""
    held = db.execute("SELECT id FROM bans WHERE network = ? AND ended_s IS NULL", (str(ban.network),)).fetchone()
    fresh = msgspec.structs.replace(ban, revision=revision(db) + 1)
    values = msgspec.structs.astuple(msgspec.structs.replace(fresh, id=held[0] if held else ban.id))
    id, _, kind, starts_s, until_s, level, reaction, scenario, by, number, cause = values
    if held is not None:
        db.execute(
            "UPDATE bans SET kind = ?, starts_s = ?, until_s = ?, level = ?, reaction = ?, scenario = ?, by = ?, "
            "cause = ?, revision = ? WHERE id = ?",
            (kind, starts_s, until_s, level, reaction, scenario, by, cause, number, id),
        )
    else:
        id = db.execute(
            "INSERT INTO bans (network, kind, starts_s, until_s, level, reaction, scenario, by, cause, revision) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (str(ban.network), kind, starts_s, until_s, level, reaction, scenario, by, cause, number),
        ).lastrowid
    return msgspec.structs.replace(fresh, id=id)


def end_ban(db: sqlite3.Connection, id: int, at_s: float, by: str) -> None:
    """The ban is over; ``by`` is who took it back, empty if its time was up."""
    db.execute("UPDATE bans SET ended_s = ?, ended_by = ?, revision = ? WHERE id = ?", (at_s, by, revision(db) + 1, id))


def lifted(db: sqlite3.Connection, now_s: float) -> tuple[Lifted, ...]:
    """Bans that were taken back and would still be running."""
    rows = db.execute(
        "SELECT id, network, until_s FROM bans WHERE ended_s IS NOT NULL AND ended_by != '' AND until_s > ?", (now_s,)
    )
    return tuple(Lifted(id=id, network=network, until_s=until_s) for id, network, until_s in rows)


# -- reactions --------------------------------------------------------------------------------------------


def keep_told(db: sqlite3.Connection, at_s: float, told: bytes) -> None:
    """What others are told, for the next process to tell again: this one may end before it was heard."""
    db.execute("INSERT INTO told (at_s, told) VALUES (?, ?)", (at_s, told))
    db.execute("DELETE FROM told WHERE number <= (SELECT max(number) FROM told) - ?", (TOLD_KEPT,))


def told_since(db: sqlite3.Connection, since_s: float) -> list[bytes]:
    """What others were told since then, oldest first."""
    return [told for (told,) in db.execute("SELECT told FROM told WHERE at_s > ? ORDER BY number", (since_s,))]


def put_reaction(db: sqlite3.Connection, reaction: Reaction) -> None:
    """Write it, new or changed."""
    db.execute(
        "INSERT INTO reactions (id, state, playbook, changed_s, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) "
        "DO UPDATE SET state = excluded.state, changed_s = excluded.changed_s, body = excluded.body",
        (reaction.id, reaction.state, reaction.playbook, reaction.changed_s, msgspec.json.encode(reaction)),
    )


def reaction(db: sqlite3.Connection, id: str) -> Reaction | None:
    """One of them."""
    row = db.execute("SELECT body FROM reactions WHERE id = ?", (id,)).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=Reaction)


def reactions(db: sqlite3.Connection, states: tuple[str, ...], limit: int, before: int) -> list[tuple[int, Reaction]]:
    """The newest of them, with their numbers."""
    places = ", ".join("?" * len(states))
    where = f"AND state IN ({places})" if states else ""
    rows = db.execute(
        f"SELECT number, body FROM reactions WHERE number < ? {where} ORDER BY number DESC LIMIT ?",
        (before, *states, limit),
    )
    return [(number, msgspec.json.decode(body, type=Reaction)) for number, body in rows]


# -- playbooks --------------------------------------------------------------------------------------------


def playbooks(db: sqlite3.Connection) -> dict[str, tuple[Playbook, Standing | None]]:
    """All of them, each with its standing approval; raises StoreError for one that cannot be followed."""
    found = {}
    for name, body, standing in db.execute("SELECT name, body, standing FROM playbooks ORDER BY name"):
        try:
            playbook = msgspec.json.decode(body, type=Playbook)
            check(playbook)
        except (msgspec.MsgspecError, BadPlaybookError) as error:
            raise StoreError(f"cannot use the playbook {name}: {error}") from error
        found[name] = (playbook, None if standing is None else msgspec.json.decode(standing, type=Standing))
    return found


# -- sightings --------------------------------------------------------------------------------------------


def put_sighting(db: sqlite3.Connection, sighted: Sighted, key: str | None) -> bool:
    """Write it; False if there is one of that key."""
    done = db.execute(
        "INSERT OR IGNORE INTO sightings (key, address, kind, at_s, times, confidence, source, cause) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            str(sighted.address),
            sighted.kind,
            sighted.at_s,
            sighted.count,
            sighted.confidence,
            sighted.source,
            sighted.cause,
        ),
    )
    return done.rowcount == 1


def prune(db: sqlite3.Connection, now_s: float) -> None:
    """Forget what is too old to matter. The audit log stays whole."""
    db.execute(
        "DELETE FROM sightings WHERE number IN (SELECT number FROM sightings WHERE at_s < ? OR number < "
        "(SELECT max(number) FROM sightings) - ? LIMIT 20000)",
        (now_s - TRUST_S, SIGHTINGS_KEPT),
    )
    db.execute("DELETE FROM forgiven WHERE at_s < ?", (now_s - TRUST_S,))
    db.execute("DELETE FROM bans WHERE ended_s < ? AND revision < (SELECT max(revision) FROM bans)", (now_s - PAST_S,))
    db.execute(
        "DELETE FROM reactions WHERE changed_s < ? AND state IN ('denied', 'expired', 'rolled_back', 'ended')",
        (now_s - PAST_S,),
    )


# -- audit ------------------------------------------------------------------------------------------------


def audit(db: sqlite3.Connection, at_s: float, who: str, what: str, subject: str, detail: Any = None) -> None:
    """Add an entry to the log."""
    last = db.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    number, previous = (last[0] + 1, last[1]) if last else (1, GENESIS)
    encoded = msgspec.json.encode(detail)
    hash = chained(previous, number, at_s, who, what, subject, encoded)
    db.execute(
        "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (number, at_s, who, what, subject, encoded, previous, hash),
    )


def audit_entries(db: sqlite3.Connection, after: int, limit: int) -> list[AuditEntry]:
    """Entries, oldest first."""
    rows = db.execute("SELECT * FROM audit WHERE number > ? ORDER BY number LIMIT ?", (after, limit))
    return [
        AuditEntry(
            number=number,
            at_s=at_s,
            who=who,
            what=what,
            subject=subject,
            detail=msgspec.Raw(detail),
            previous=previous,
            hash=hash,
        )
        for number, at_s, who, what, subject, detail, previous, hash in rows
    ]


def first_broken(db: sqlite3.Connection) -> tuple[int, int | None]:
    """How many entries the log has, and the first that does not follow from those before it."""
    expected, count = GENESIS, 0
    for number, at_s, who, what, subject, detail, previous, hash in db.execute("SELECT * FROM audit ORDER BY number"):
        count += 1
        right = chained(expected, number, at_s, who, what, subject, detail)
        if number != count or previous != expected or hash != right:
            return count, int(number)
        expected = hash
    return count, None
