"""What the service keeps and shows: reactions, audit entries, and which states follow which. Pure."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec
from msgspec import Struct

State = Literal["proposed", "approved", "denied", "expired", "executed", "failed", "rolled_back", "ended"]

NEXT: dict[State, frozenset[State]] = {
    "proposed": frozenset({"approved", "denied", "expired"}),
    "approved": frozenset({"executed", "failed", "rolled_back", "ended"}),
    "executed": frozenset({"rolled_back", "ended"}),
    "failed": frozenset({"executed", "rolled_back", "ended"}),
    "denied": frozenset(),
    "expired": frozenset(),
    "rolled_back": frozenset(),
    "ended": frozenset(),
}
"""A reaction that contains nothing is executed from the beginning."""
IN_FORCE: frozenset[State] = frozenset({"approved", "executed", "failed"})
"""Its bans are wanted."""


class Reaction(Struct, kw_only=True):
    """One thing that is done, or asked about, because of what was seen."""

    id: str
    playbook: str
    state: State
    address: str
    verbs: list[str]
    networks: list[str] = []
    """What is contained; empty if it only tells."""
    kind: str = ""
    for_s: float = 0.0
    note: str = ""
    created_s: float
    changed_s: float
    """Of the epoch."""
    expires_s: float | None = None
    """When the proposal does."""
    until_s: float | None = None
    by: str = ""
    """Who approved, denied or rolled back."""
    why: str = ""
    seen_s: float
    """Of the first sighting that counted for it."""
    contained_s: float | None = None
    """When the first gateway refused the address."""
    event: str | None = None
    """Id of the last event that told of it."""
    cause: str | None = None
    """Id of the event that that one was because of: the sighting's, or of the state before."""


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One line of the audit log."""

    number: int
    at_s: float
    who: str
    what: str
    subject: str
    detail: Any = None
    previous: str
    """Hash of the entry before it."""
    hash: str


GENESIS = "0" * 64


def chained(previous: str, number: int, at_s: float, who: str, what: str, subject: str, detail: bytes) -> str:
    """The hash of an entry: of all that it says, and of the one before it."""
    content = msgspec.json.encode([previous, number, at_s, who, what, subject, detail.decode()])
    return hashlib.sha256(content).hexdigest()


class Standing(Struct, frozen=True, kw_only=True):
    """A standing approval: a person said beforehand that a playbook may."""

    by: str
    since_s: float
    until_s: float | None = None


class Lifted(Struct, frozen=True, kw_only=True):
    """A ban that was taken back before its end, so that whoever enforces it has to be told."""

    id: int
    network: str
    until_s: float
