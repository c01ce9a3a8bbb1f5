"""The whole graph as a file, written as it is read: node-link JSON and GraphML, both for networkx and others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import apsw
import msgspec

from services.graph.answers import RELATIONSHIP

NODES = "SELECT id, labels, properties FROM nodes"
RELATIONSHIPS = RELATIONSHIP.partition(" WHERE ")[0]
MEDIA_TYPES = {"node-link": "application/json", "graphml": "application/graphml+xml"}
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot carry at all."""
_TYPES = {"true": "boolean", "false": "boolean", "integer": "long", "real": "double", "text": "string"}
LONG = 1 << 63


def node_link(db: apsw.Connection) -> Iterator[bytes]:
    """As networkx.node_link_graph reads it."""
    yield b'{"directed":true,"multigraph":true,"graph":{},"nodes":['
    separator = b""
    for id, labels, properties in db.execute(NODES):
        yield b'%s{"id":%s,"labels":%s,"properties":%s}' % (separator, _json(id), labels.encode(), properties.encode())
        separator = b","
    yield b'],"edges":['
    separator = b""
    for id, type, source, target, properties in db.execute(RELATIONSHIPS):
        yield b'%s{"source":%s,"target":%s,"key":%s,"type":%s,"properties":%s}' % (
            separator,
            *map(_json, (source, target, id, type)),
            properties.encode(),
        )
        separator = b","
    yield b"]}"


def _json(text: str) -> bytes:
    return msgspec.json.encode(text)


def graphml(db: apsw.Connection) -> Iterator[bytes]:
    """As networkx.read_graphml reads it: properties are attributes; what is no scalar, or of several kinds, as JSON.

    A property with the name of what is the graph's own, as STIX's labels, is property:labels or property:type there.
    """
    yield (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n'
        b'<key id="n" for="node" attr.name="labels" attr.type="string"/>\n'
        b'<key id="e" for="edge" attr.name="type" attr.type="string"/>\n'
    )
    nodes, edges = _keys(db, "nodes"), _keys(db, "relationships")
    for place, letter, keys, own in (("node", "n", nodes, "labels"), ("edge", "e", edges, "type")):
        for property, (at, type) in keys.items():
            name = f"property:{own}" if property == own else property
            yield _xml(f'<key id="{letter}{at}" for="{place}" attr.name={_attribute(name)} attr.type="{type}"/>\n')
    yield b'<graph edgedefault="directed">\n'
    for id, labels, properties in db.execute(NODES):
        held = f'<data key="n">{_escaped(":".join(msgspec.json.decode(labels)))}</data>'
        yield _xml(f"<node id={_attribute(id)}>{held}{_attributes(properties, 'n', nodes)}</node>\n")
    for id, type, source, target, properties in db.execute(RELATIONSHIPS):
        yield _xml(
            f"<edge id={_attribute(id)} source={_attribute(source)} target={_attribute(target)}>"
            f'<data key="e">{_escaped(type)}</data>{_attributes(properties, "e", edges)}</edge>\n'
        )
    yield b"</graph>\n</graphml>\n"


def _keys(db: apsw.Connection, table: str) -> dict[str, tuple[int, str]]:
    """Number and GraphML type of each property that there is."""
    kinds: dict[str, set[str]] = {}
    for name, kind in db.execute(f"SELECT DISTINCT p.key, p.type FROM {table}, json_each({table}.properties) p"):
        if kind != "null":
            kinds.setdefault(name, set()).add(_TYPES.get(kind, "string"))
    return {
        name: (at, next(iter(kind)) if len(kind) == 1 else "double" if kind == {"long", "double"} else "string")
        for at, (name, kind) in enumerate(sorted(kinds.items()))
    }


def _attributes(properties: str, letter: str, keys: dict[str, tuple[int, str]]) -> str:
    held: dict[str, Any] = msgspec.json.decode(properties)
    said = []
    for name, value in held.items():
        if value is None:
            continue
        at, type = keys[name]
        if isinstance(value, int) and not -LONG <= value < LONG:
            value = float(value) if type == "double" else str(value)
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        said.append(f'<data key="{letter}{at}">{_escaped(text)}</data>')
    return "".join(said)


def _escaped(text: str) -> str:
    return escape(_NO_XML.sub("\ufffd", text))


def _attribute(text: str) -> str:
    return quoteattr(_NO_XML.sub("\ufffd", text))


def _xml(text: str) -> bytes:
    return text.encode()
