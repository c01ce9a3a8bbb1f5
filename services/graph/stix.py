"""What an import brings: a STIX 2 bundle, or node-link JSON as networkx writes it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from cdn_daemon.api import RefusedError, decode
from services.graph.api import NodeRequest, RelationshipRequest
from services.graph.limits import Limits

T = TypeVar("T")

EXAMPLES = 10
REFERENCES = {"sighting_of_ref": "sighting-of", "where_sighted_refs": "sighted-at", "observed_data_refs": "observed"}
"""Of a sighting, which STIX has as a relationship of more than two ends: it is a node here, related to each."""
ELSEWHERE = frozenset({"id", "type", "spec_version", "x_mitre_contents"})
"""What is no property: x_mitre_contents lists the whole collection."""


class Bundle(Struct):
    """A STIX bundle."""

    objects: list[Raw] = []


class NodeLink(Struct):
    """As networkx.node_link_data writes it; before its 3.4 edges were called links."""

    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]] = []
    links: list[dict[str, Any]] = []


class Brought(Struct):
    """What is to be kept of an import, and what cannot be."""

    nodes: list[NodeRequest] = []
    relationships: list[RelationshipRequest] = []
    skipped: int = 0
    examples: list[str] = []

    def skip(self, what: object, why: str) -> None:
        """One more that cannot be kept."""
        self.skipped += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{str(what)[:120]}: {why}")


class _Kind(Struct):
    type: str = ""


def kind_of(body: bytes) -> str:
    """stix or node-link; raises RefusedError."""
    if decode(body, _Kind).type == "bundle":
        return "stix"
    return "node-link"


def read_bundle(body: bytes, limits: Limits) -> Brought:
    """Objects become nodes, labelled with their type; relationships, relationships; all under their STIX ids."""
    brought = Brought()
    for raw in decode(body, Bundle).objects:
        try:
            one = msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            brought.skip(bytes(raw)[:80].decode(errors="replace"), str(error))
            continue
        id, kind = one.get("id"), one.get("type")
        if not isinstance(id, str) or not isinstance(kind, str) or not 0 < len(id) <= limits.id_chars or not kind:
            brought.skip(id, "it has no id and type, of a usable length")
            continue
        if not id.isprintable():
            brought.skip(id, "its id cannot be printed")
            continue
        if len(memoryview(raw)) > limits.properties_bytes and kind != "x-mitre-collection":
            brought.skip(id, f"it is larger than {limits.properties_bytes} bytes")
            continue
        properties = {name: value for name, value in one.items() if name not in ELSEWHERE}
        if kind == "relationship":
            ends = [properties.pop(name, None) for name in ("source_ref", "target_ref", "relationship_type")]
            if not all(isinstance(end, str) and 0 < len(end) <= limits.id_chars for end in ends):
                brought.skip(id, "it lacks source_ref, target_ref or relationship_type")
                continue
            source, target, type = ends
            brought.relationships.append(
                RelationshipRequest(id=id, source=source, target=target, type=type, properties=properties)
            )
            continue
        attack_id = _attack_id(one)
        if attack_id is not None:
            properties["attack_id"] = attack_id
        brought.nodes.append(NodeRequest(id=id, labels=[kind], properties=properties))
        if kind == "sighting":
            for name, type in REFERENCES.items():
                for target in _references(one.get(name)):
                    brought.relationships.append(RelationshipRequest(source=id, target=target, type=type))
    return brought


def _references(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one:
            yield one


def _attack_id(one: dict[str, Any]) -> str | None:
    """ATT&CK's own id, such as T1110."""
    references = one.get("external_references")
    for reference in references if isinstance(references, list) else ():
        if isinstance(reference, dict) and str(reference.get("source_name")).startswith("mitre"):
            id = reference.get("external_id")
            if isinstance(id, str):
                return id
    return None


def read_node_link(body: bytes, limits: Limits) -> Brought:
    """What GET /export wrote, or any other: what is not labels and properties becomes a property.

    Labels and properties may be JSON in a text, as tables have them.
    """
    given = decode(body, NodeLink)
    brought = Brought()
    for one in given.nodes:
        id = _text(one.pop("id", None))
        labels, properties = _taken(one, "labels", list[str]), _taken(one, "properties", dict[str, Any])
        if not 0 < len(id) <= limits.id_chars or not id.isprintable():
            brought.skip(id, "its id cannot be used")
            continue
        brought.nodes.append(
            NodeRequest(id=id, labels=[label for label in labels or () if label], properties=(properties or {}) | one)
        )
    for one in given.edges or given.links:
        source, target = _text(one.pop("source", None)), _text(one.pop("target", None))
        key, type, properties = one.pop("key", None), one.pop("type", None), _taken(one, "properties", dict[str, Any])
        if not source or not target or len(source) > limits.id_chars or len(target) > limits.id_chars:
            brought.skip(f"{source} → {target}", "it lacks source or target")
            continue
        type = type if isinstance(type, str) and type else "related"
        if isinstance(key, int):  # networkx numbers parallel edges
            key = f"{source} {type} {target} {key}" if key else None
        brought.relationships.append(
            RelationshipRequest(
                id=key if isinstance(key, str) and key else None,
                source=source,
                target=target,
                type=type,
                properties=(properties or {}) | one,
            )
        )
    return brought


def _taken(one: dict[str, Any], name: str, wanted: type[T]) -> T | None:
    """Out of a node or an edge, if it is such a value; else it stays there, and is a property."""
    value = one.pop(name, None)
    if value is None:
        return None
    try:
        return msgspec.json.decode(value, type=wanted) if isinstance(value, str) else msgspec.convert(value, wanted)
    except (msgspec.MsgspecError, RecursionError):
        one[name] = value
        return None


def _text(id: Any) -> str:
    return id if isinstance(id, str) else str(id) if isinstance(id, int | float) and not isinstance(id, bool) else ""


def read_import(body: bytes, kind: str | None, limits: Limits) -> Brought:
    """Whatever was sent; raises RefusedError."""
    kind = kind or kind_of(body)
    if kind == "stix":
        return read_bundle(body, limits)
    if kind == "node-link":
        return read_node_link(body, limits)
    raise RefusedError(400, "cannot import this format", value=kind, limit="stix, node-link")
