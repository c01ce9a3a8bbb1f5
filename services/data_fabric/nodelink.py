"""Rows as edges of a graph, in node-link JSON as networkx reads it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cdn_daemon.api import RefusedError
from services.data_fabric.infer import Value

_JSON = msgspec.json.Encoder()
_PAIRS = (("source", "target"), ("from", "to"), ("src", "dst"))


def ends(columns: Sequence[str], asked: Mapping[str, str]) -> tuple[int, int]:
    """Where the columns of an edge's ends are: by source= and target=, else by usual names; raises RefusedError."""
    known = {name.lower(): at for at, name in enumerate(columns)}
    wished = tuple(asked[role].lower() for role in ("source", "target") if role in asked)
    for source, target in [wished] if len(wished) == 2 else [] if wished else _PAIRS:
        if source in known and target in known:
            return known[source], known[target]
    raise RefusedError(
        400,
        "cannot tell from where to where these rows lead",
        value=", ".join(columns),
        limit="columns source and target",
        next="name both: &source=COLUMN&target=COLUMN",
    )


def edges(
    columns: Sequence[str], rows: Sequence[tuple[Value, ...]], at: tuple[int, int]
) -> tuple[bytes, dict[Value, None]]:
    """The rows as the inside of an array of edges, and the nodes at their ends; none where an end is NULL."""
    source, target = at
    named = [
        (place, name) for place, name in enumerate(columns) if place not in at and name not in ("source", "target")
    ]
    made: list[dict[str, Value]] = []
    nodes: dict[Value, None] = {}
    for row in rows:
        if row[source] is None or row[target] is None:
            continue
        nodes[row[source]] = nodes[row[target]] = None
        made.append({"source": row[source], "target": row[target]} | {name: row[place] for place, name in named})
    return _JSON.encode(made)[1:-1], nodes


def graph(edges: Iterable[bytes], nodes: Iterable[Mapping[str, Value]], more: Mapping[str, object]) -> bytes:
    """The whole document; more goes into its attributes."""
    return b'{"directed":true,"multigraph":true,"graph":%s,"nodes":%s,"edges":[%s]}' % (
        _JSON.encode(more),
        _JSON.encode(list(nodes)),
        b",".join(part for part in edges if part),
    )
