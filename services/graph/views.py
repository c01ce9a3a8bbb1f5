"""Two ways to see the graph, with one interface: row by row in SQLite, or adjacency in memory.

Both know which nodes there are and what leads where. Properties are read from SQLite in either case, as they are now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import apsw
import msgspec

from services.graph.api import Direction

NOTHING: Adjacent = ((), (), ())
Adjacent = tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]
"""Of one node in one direction: the other nodes, the types, and the relationships; in parallel."""
STEP = 5_000
"""SQLite looks at the time every so many of its instructions, some 0.1 ms."""


class TimeIsUp(Exception):
    """A question took longer than it may, or nobody waits for its answer any more."""


class Node(NamedTuple):
    """Who a node is."""

    id: str
    labels: tuple[str, ...]


def rows(db: apsw.Connection, sql: str, values: tuple[object, ...] = ()) -> list[Any]:
    """All of them."""
    return db.execute(sql, values).fetchall()


def _parallel(found: Sequence[tuple[Any, Any, Any]]) -> Adjacent:
    others, types, relationships = zip(*found, strict=True) if found else NOTHING
    return others, types, relationships


class View(Protocol):
    """The graph of one version."""

    @property
    def version(self) -> int:
        """Number of the last change that is in it."""

    @property
    def engine(self) -> Literal["sql", "snapshot"]:
        """How it is held."""

    def node(self, key: int) -> Node | None:
        """None if there is no such node."""

    def out(self, key: int) -> Adjacent:
        """What leads from the node."""

    def into(self, key: int) -> Adjacent:
        """What leads to it."""

    def neighbours(self, keys: Iterable[int], direction: Direction) -> set[int]:
        """Of all of them together."""


class SqlView:
    """The graph as a reading transaction sees it."""

    engine: Literal["sql"] = "sql"

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.version = int(db.execute("SELECT coalesce(max(seq), 0) FROM changes").get)

    def node(self, key: int) -> Node | None:
        """One row."""
        found = self._db.execute("SELECT id, labels FROM nodes WHERE key = ?", (key,)).get
        return None if found is None else Node(found[0], tuple(msgspec.json.decode(found[1])))

    def out(self, key: int) -> Adjacent:
        """One range of an index, and its rows."""
        found = rows(self._db, "SELECT target, type, key FROM relationships WHERE source = ?", (key,))
        return _parallel(found)

    def into(self, key: int) -> Adjacent:
        """Likewise."""
        found = rows(self._db, "SELECT source, type, key FROM relationships WHERE target = ?", (key,))
        return _parallel(found)

    def neighbours(self, keys: Iterable[int], direction: Direction) -> set[int]:
        """One query for each node."""
        found: set[int] = set()
        execute = self._db.execute
        for key in keys:
            if direction != "in":
                found.update(row[0] for row in execute("SELECT target FROM relationships WHERE source = ?", (key,)))
            if direction != "out":
                found.update(row[0] for row in execute("SELECT source FROM relationships WHERE target = ?", (key,)))
        return found


class Snapshot:
    """The graph of one version in memory: nobody changes it, it is replaced."""

    engine: Literal["snapshot"] = "snapshot"

    def __init__(
        self,
        version: int,
        nodes: dict[int, Node],
        out: dict[int, Adjacent],
        into: dict[int, Adjacent],
        relationships: int,
    ) -> None:
        self.version = version
        self.nodes = nodes
        self._out = out
        self._into = into
        self.relationships = relationships

    def node(self, key: int) -> Node | None:
        """From memory."""
        return self.nodes.get(key)

    def out(self, key: int) -> Adjacent:
        """From memory."""
        return self._out.get(key, NOTHING)

    def into(self, key: int) -> Adjacent:
        """From memory."""
        return self._into.get(key, NOTHING)

    def neighbours(self, keys: Iterable[int], direction: Direction) -> set[int]:
        """A union of tuples, in C."""
        found: set[int] = set()
        if direction != "in":
            out = self._out
            found.update(*[out[key][0] for key in keys if key in out])
        if direction != "out":
            into = self._into
            found.update(*[into[key][0] for key in keys if key in into])
        return found

    def size_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.nodes) * 500 + self.relationships * 90

    @staticmethod
    def of(db: apsw.Connection, breathe: Callable[[], None]) -> Snapshot:
        """All of the graph as the transaction sees it. breathe is called now and then."""
        version = int(db.execute("SELECT coalesce(max(seq), 0) FROM changes").get)
        own: dict[object, object] = {}
        nodes: dict[int, Node] = {}
        for key, id, labels in db.execute("SELECT key, id, labels FROM nodes"):
            known = own.get(labels)
            if known is None:
                known = own[labels] = tuple(msgspec.json.decode(labels))
            nodes[key] = Node(id, known)  # type: ignore[arg-type]
            own[key] = key
            if key % 1000 == 0:
                breathe()
        count, out = _adjacent(db, "source", "target", own, breathe)
        _, into = _adjacent(db, "target", "source", own, breathe)
        return Snapshot(version, nodes, out, into, count)

    def caught_up(self, db: apsw.Connection, breathe: Callable[[], None]) -> Snapshot:
        """As the transaction sees the graph: what was changed is read anew, or everything if that is less work."""
        oldest = db.execute("SELECT min(seq) FROM changes").get
        if oldest is None or oldest > self.version + 1:
            return Snapshot.of(db, breathe)
        version, count = db.execute("SELECT coalesce(max(seq), 0), (SELECT relationships FROM totals) FROM changes").get
        changes = rows(db, "SELECT first, second FROM changes WHERE seq > ?", (self.version,))
        related = {key for row in changes if row[1] is not None for key in row}
        named = {first for first, second in changes if second is None}
        if len(related) + len(named) > max(1000, len(self.nodes) // 3):
            return Snapshot.of(db, breathe)
        fresh = SqlView(db)
        nodes, out, into = self.nodes, self._out, self._into
        if named:
            nodes = nodes.copy()
            for key in named:
                node = fresh.node(key)
                if node is None:
                    nodes.pop(key, None)
                else:
                    nodes[key] = node
        breathe()
        if related:
            out, into = out.copy(), into.copy()
            for at, key in enumerate(related):
                for table, adjacent in ((out, fresh.out(key)), (into, fresh.into(key))):
                    if adjacent[0]:
                        table[key] = adjacent
                    else:
                        table.pop(key, None)
                if at % 500 == 499:
                    breathe()
        return Snapshot(int(version), nodes, out, into, int(count))


def _adjacent(
    db: apsw.Connection, here: str, there: str, own: dict[object, object], breathe: Callable[[], None]
) -> tuple[int, dict[int, Adjacent]]:
    """What is the same is kept once: keys of nodes, and types, by ``own``."""
    found: dict[int, Adjacent] = {}
    count, at = 0, None
    held: list[tuple[object, object, int]] = []

    def end() -> None:
        if at is not None:
            found[at] = _parallel(held)
            held.clear()

    for key, other, type, relationship in db.execute(
        f"SELECT {here}, {there}, type, key FROM relationships ORDER BY {here}"
    ):
        if key != at:
            end()
            at = own.get(key, key)
        held.append((own.get(other, other), own.setdefault(type, type), relationship))
        count += 1
        if count % 5000 == 0:
            breathe()
    end()
    return count, found
