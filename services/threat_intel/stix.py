"""STIX 2.1 objects: what is checked of one before it is stored. The JSON itself is stored as it came.

Checked by msgspec and the few rules below, not by the stix2 library: that takes 250 µs an object, 160 ms and 27 MB to
import, and refuses custom types such as those of ATT&CK unless told not to. What it would
find beyond (the vocabulary of each property of each type) is the sender's affair: a store must give back what it got.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec
from msgspec import Struct


class BadObject(ValueError):
    """What cannot be stored as a STIX object; the text says why."""


class Reference(Struct):
    """Of external_references, what is used."""

    source_name: str = ""
    external_id: str | None = None
    url: str | None = None


class Phase(Struct):
    """Of kill_chain_phases, what is used."""

    phase_name: str = ""


class StixObject(Struct):
    """Of any object, what is checked or used."""

    type: str
    id: str
    spec_version: str | None = None
    created: str | None = None
    modified: str | None = None
    revoked: bool = False
    name: str | None = None
    description: str | None = None
    confidence: int | None = None
    external_references: list[Reference] = []
    kill_chain_phases: list[Phase] = []
    pattern: str | None = None
    pattern_type: str | None = None
    valid_from: str | None = None
    valid_until: str | None = None
    relationship_type: str | None = None
    source_ref: str | None = None
    target_ref: str | None = None
    sighting_of_ref: str | None = None

    @property
    def version(self) -> str | None:
        """As TAXII has it: modified, else created; None of what has no versions."""
        return self.modified or self.created

    def attack_id(self) -> str | None:
        """ATT&CK's own id, such as T0803."""
        for reference in self.external_references:
            if reference.external_id and reference.source_name.startswith("mitre"):
                return reference.external_id
        return None


_TYPE = re.compile(r"[a-z][a-z0-9-]{1,248}[a-z0-9]")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z")
_REQUIRED = {
    "indicator": ("pattern",),
    "relationship": ("relationship_type", "source_ref", "target_ref"),
    "sighting": ("sighting_of_ref",),
    "attack-pattern": ("name",),
    "campaign": ("name",),
    "course-of-action": ("name",),
    "identity": ("name",),
    "intrusion-set": ("name",),
    "threat-actor": ("name",),
    "tool": ("name",),
    "vulnerability": ("name",),
}
_VERSIONED = frozenset(_REQUIRED) | {"grouping", "infrastructure", "location", "malware", "malware-analysis", "note"}
"""STIX' own objects and relationships, which have created and modified; its observables and the custom may not."""
_decoder = msgspec.json.Decoder(StixObject)


def read_object(raw: bytes | msgspec.Raw, limit_bytes: int) -> StixObject:
    """What is used of the object, once it is checked; raises BadObject."""
    if len(memoryview(raw)) > limit_bytes:
        raise BadObject(f"it is larger than {limit_bytes} bytes")
    try:
        found = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadObject(str(error) or "it is nested too deeply") from error
    _check(found)
    return found


def _check(found: StixObject) -> None:
    kind, _, uuid = found.id.partition("--")
    if not _TYPE.fullmatch(found.type):
        raise BadObject(f"its type is no STIX type: {found.type[:80]}")
    if found.type == "bundle":
        raise BadObject("a bundle is no object; send what is in it")
    if kind != found.type or not _UUID.fullmatch(uuid):
        raise BadObject(f"its id is not of the form {found.type[:80]}--UUID: {found.id[:120]}")
    if found.spec_version not in (None, "2.0", "2.1"):
        raise BadObject(f"its spec_version is neither 2.0 nor 2.1: {found.spec_version[:20]}")
    for name in ("created", "modified", "valid_from", "valid_until"):
        text = getattr(found, name)
        if text is not None:
            seconds_of(text, name)
    if found.created and found.modified and seconds_of(found.modified) < seconds_of(found.created):
        raise BadObject("it was modified before it was created")
    needed = _REQUIRED.get(found.type, ())
    if found.type in _VERSIONED:
        needed += ("created", "modified")
    if found.type == "indicator" and found.spec_version == "2.1":
        needed += ("pattern_type", "valid_from")
    for name in needed:
        if getattr(found, name) is None:
            raise BadObject(f"it has no {name}")
    if found.confidence is not None and not 0 <= found.confidence <= 100:
        raise BadObject(f"its confidence is not 0 to 100: {found.confidence}")


def seconds_of(text: str, name: str = "timestamp") -> float:
    """Unix time of a STIX timestamp, to the microsecond; raises BadObject."""
    if not _TIME.fullmatch(text):
        raise BadObject(f"its {name} is no timestamp of the form 2026-01-31T12:00:00.000Z: {text[:40]}")
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise BadObject(f"its {name} is no timestamp: {error}") from error
