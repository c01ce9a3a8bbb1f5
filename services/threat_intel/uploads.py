"""A feed as it is sent: a list with one value a line, or a STIX bundle. Nothing here has effects."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw, Struct

from cdn_daemon.api import RefusedError, decode
from services.threat_intel.limits import Limits
from services.threat_intel.scoring import FeedKind
from services.threat_intel.stix import BadObject
from services.threat_intel.store import ObjectRow, Rejected, checked
from services.threat_intel.values import NoValue, Value, read

EXAMPLES = 10


class Bundle(Struct):
    """A STIX bundle, or an envelope of TAXII's."""

    objects: list[Raw] = []


class Refused(Struct):
    """How many were not taken, and some of them."""

    count: int = 0
    examples: list[Rejected] = []

    def add(self, what: str, why: str) -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(Rejected(what[:120], why))


def kind_of(content_type: str, body: bytes) -> FeedKind:
    """What was sent, by its media type, else by how it begins."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.endswith("json"):
        return FeedKind.STIX
    if media_type in {"text/plain", "text/csv"}:
        return FeedKind.LIST
    return FeedKind.STIX if body[:64].lstrip()[:1] == b"{" else FeedKind.LIST


def read_list(body: bytes, limits: Limits) -> tuple[list[Value], Refused]:
    """The values of a list, each once; raises RefusedError if there are lines and not one is a value.

    ``#`` and ``;`` begin a comment; of a line in columns, by comma, blank or tab, the first is the value.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(422, f"cannot read the list: {error}", next="send UTF-8, one value a line") from error
    found: dict[Value, None] = {}
    refused = Refused()
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry[0] in "#;":
            continue
        entry = entry.partition(" #")[0]
        if len(entry) > limits.value_chars:
            refused.add(f"line {number}: {entry[:80]}…", f"it is longer than {limits.value_chars} characters")
            continue
        try:
            found[read(entry)] = None
        except NoValue as error:
            first = entry.replace(",", " ").replace(";", " ").split()[0:1]
            try:
                found[read(first[0].strip("\"'") if first else "")] = None
            except NoValue:
                refused.add(f"line {number}: {entry[:80]}", str(error))
    if refused.count and not found:
        raise RefusedError(
            422,
            "cannot find a value in this list",
            value=refused.examples[0].what,
            limit="one address, network, domain, URL or hash a line",
            next="# begins a comment",
        )
    return list(found), refused


def read_bundle(body: bytes) -> list[Raw]:
    """The objects of a bundle or envelope, as they came; raises RefusedError."""
    return decode(body, Bundle).objects


def read_objects(raws: Iterable[Raw], limits: Limits) -> tuple[list[ObjectRow], list[tuple[str, str, str]]]:
    """(what can be stored, (id, version, reason) of what cannot)."""
    rows: list[ObjectRow] = []
    failures: list[tuple[str, str, str]] = []
    for raw in raws:
        try:
            rows.append(checked(raw, limits))
        except BadObject as error:
            failures.append((*_identity(raw), str(error)))
    return rows, failures


class _Identity(Struct):
    id: str = ""
    modified: str = ""


def _identity(raw: Raw) -> tuple[str, str]:
    """Whose object it is, as far as it says."""
    try:
        known = msgspec.json.decode(raw, type=_Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "?", ""
    return known.id[:200] or "?", known.modified[:40]
