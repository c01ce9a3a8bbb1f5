"""The graph on disk: one SQLite database, who writes it, and when what was written.

Everything here blocks; the server calls it from threads. Nothing is opened before open(). Several processes may have
the same database open: each learns of the others' changes by SQLite's data_version.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apsw
import msgspec

from cdn_daemon.api import RefusedError
from services.graph.api import NodeRequest, RelationshipRequest, Written
from services.graph.limits import Limits
from services.graph.views import rows
from services.writer import Writer

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS nodes (
    key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, labels TEXT NOT NULL, properties TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS nodes_attack ON nodes (json_extract(properties, '$.attack_id'))
    WHERE json_extract(properties, '$.attack_id') IS NOT NULL;
CREATE TABLE IF NOT EXISTS labels (label TEXT, node INTEGER, PRIMARY KEY (label, node)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS relationships (
    key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL,
    source INTEGER NOT NULL, target INTEGER NOT NULL, properties TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS relationships_out ON relationships (source, target, type);
CREATE INDEX IF NOT EXISTS relationships_in ON relationships (target, source, type);
CREATE TABLE IF NOT EXISTS changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at_s REAL, what TEXT, id TEXT, detail TEXT, first INTEGER, second INTEGER
);
CREATE TABLE IF NOT EXISTS heard (
    number INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL UNIQUE, relationships TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS totals (nodes INTEGER, relationships INTEGER);
INSERT INTO totals SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM totals);
"""
FORMAT = 1
EXAMPLES = 10
What = Literal["node", "relationship", "node_deleted", "relationship_deleted"]


class StoreError(Exception):
    """The database is none, or is of another format."""


class Change(NamedTuple):
    """One of the newest changes; what is in /ws/stream."""

    seq: int
    at_s: float
    what: What
    id: str
    detail: str
    """JSON: labels, or type, from and to."""


def relationship_id(source: str, type: str, target: str) -> str:
    """Of one that has no other."""
    return f"{source} {type} {target}"


class Commits:
    """When what was committed, as far as this process knows. Any thread."""

    def __init__(self, version: int) -> None:
        self._lock = threading.Lock()
        self._known: deque[tuple[int, float]] = deque(maxlen=4096)
        self.newest = version

    def add(self, version: int, at_s: float) -> None:
        """The graph has this version since then, at the latest."""
        with self._lock:
            if version > self.newest:
                self.newest = version
                self._known.append((version, at_s))

    def age_s(self, version: int, now_s: float) -> float:
        """For how long the oldest change has been there that this version is without; 0 if it is the newest."""
        with self._lock:
            if version >= self.newest:
                return 0.0
            first = self._known[0]
            if version < first[0] and len(self._known) == self._known.maxlen:
                return now_s - first[1]  # at least
            return next(now_s - at_s for known, at_s in self._known if known > version)


class Transaction:
    """One write: what it does to nodes and relationships, with all that follows from that."""

    def __init__(self, db: apsw.Connection, limits: Limits) -> None:
        self.db = db
        self.limits = limits
        self.done = Written()
        self._at_s = time.time()
        self._nodes = self._relationships = 0

    def finish(self) -> Written:
        """Count; raises RefusedError, and with that nothing has happened, if there are too many now."""
        self.db.execute(
            "UPDATE totals SET nodes = nodes + ?, relationships = relationships + ?", (self._nodes, self._relationships)
        )
        nodes, relationships = self.db.execute("SELECT nodes, relationships FROM totals").get
        for count, grown, most, what in (
            (nodes, self._nodes, self.limits.nodes, "nodes"),
            (relationships, self._relationships, self.limits.relationships, "relationships"),
        ):
            if grown > 0 and count > most:
                raise RefusedError(
                    409, f"cannot keep so many {what}", value=count, limit=most, next="delete some, or raise the limit"
                )
        version = self.db.execute("SELECT coalesce(max(seq), 0) FROM changes").get
        self.db.execute("DELETE FROM changes WHERE seq <= ?", (version - self.limits.changes,))
        self.done.version = version
        return self.done

    def _change(self, what: What, id: str, detail: Any, first: int, second: int | None = None) -> None:
        self.db.execute(
            "INSERT INTO changes (at_s, what, id, detail, first, second) VALUES (?, ?, ?, ?, ?, ?)",
            (self._at_s, what, id, msgspec.json.encode(detail).decode(), first, second),
        )

    def put_node(self, node: NodeRequest, *, merge: bool = False) -> int:
        """Its key. What it has already is replaced, or with merge is kept where nothing else is given."""
        check_node(node, self.limits)
        labels, properties = sorted(set(node.labels)), node.properties
        known = self.db.execute("SELECT key, labels, properties FROM nodes WHERE id = ?", (node.id,)).get
        if known is not None and merge:
            labels = sorted({*labels, *msgspec.json.decode(known[1])})
            properties = msgspec.json.decode(known[2]) | properties
        encoded = _encoded(properties, node.id, self.limits)
        has = msgspec.json.encode(labels).decode()
        if known is None:
            self.db.execute("INSERT INTO nodes (id, labels, properties) VALUES (?, ?, ?)", (node.id, has, encoded))
            key = self.db.last_insert_rowid()
            self.done.created += 1
            self._nodes += 1
        elif (has, encoded) == known[1:]:
            return int(known[0])
        else:
            key = int(known[0])
            self.db.execute("UPDATE nodes SET labels = ?, properties = ? WHERE key = ?", (has, encoded, key))
            self.done.updated += 1
        if known is None or has != known[1]:
            if known is not None:
                for label in msgspec.json.decode(known[1]):
                    self.db.execute("DELETE FROM labels WHERE label = ? AND node = ?", (label, key))
            self.db.executemany("INSERT INTO labels VALUES (?, ?)", [(label, key) for label in labels])
        self._change("node", node.id, {"labels": labels}, key)
        return key

    def key(self, id: str) -> int | None:
        """Of a node."""
        found = self.db.execute("SELECT key FROM nodes WHERE id = ?", (id,)).get
        return None if found is None else int(found)

    def put_relationship(self, one: RelationshipRequest, *, merge: bool = False, create_nodes: bool = False) -> int:
        """Its key; raises RefusedError 422 where a node is missing."""
        id = one.id if one.id is not None else relationship_id(one.source, one.type, one.target)
        if not id.isprintable():
            raise RefusedError(422, "cannot use this id: it has characters that cannot be printed", value=id)
        ends = []
        for end in (one.source, one.target):
            key = self.key(end)
            if key is None and create_nodes:
                key = self.put_node(NodeRequest(id=end))
            if key is None:
                raise RefusedError(
                    422, "cannot relate a node that is not there", value=end, next="POST /nodes, or create_nodes: true"
                )
            ends.append(key)
        known = self.db.execute(
            "SELECT key, type, source, target, properties FROM relationships WHERE id = ?", (id,)
        ).get
        properties = one.properties
        if known is not None and merge:
            properties = msgspec.json.decode(known[4]) | properties
        row = (one.type, *ends, _encoded(properties, id, self.limits))
        if known is not None and row == known[1:]:
            return int(known[0])
        if known is None:
            self.db.execute(
                "INSERT INTO relationships (id, type, source, target, properties) VALUES (?, ?, ?, ?, ?)", (id, *row)
            )
            key = self.db.last_insert_rowid()
            self.done.created += 1
            self._relationships += 1
        else:
            key = int(known[0])
            if (known[2], known[3]) != tuple(ends):
                self._change("relationship_deleted", id, {"type": known[1]}, known[2], known[3])
            self.db.execute(
                "UPDATE relationships SET type = ?, source = ?, target = ?, properties = ? WHERE key = ?", (*row, key)
            )
            self.done.updated += 1
        self._change("relationship", id, {"type": one.type, "from": one.source, "to": one.target}, *ends)
        return key

    def delete_relationship(self, id: str) -> bool:
        """Whether there was one."""
        known = self.db.execute("SELECT key, type, source, target FROM relationships WHERE id = ?", (id,)).get
        if known is None:
            return False
        self.db.execute("DELETE FROM relationships WHERE key = ?", (known[0],))
        self.done.deleted += 1
        self._relationships -= 1
        self._change("relationship_deleted", id, {"type": known[1]}, known[2], known[3])
        return True

    def delete_node(self, id: str, *, detach: bool) -> bool:
        """Whether there was one; raises RefusedError 409 if it has relationships that are not to go with it."""
        known = self.db.execute("SELECT key, labels FROM nodes WHERE id = ?", (id,)).get
        if known is None:
            return False
        key = known[0]
        held = rows(self.db, "SELECT id FROM relationships WHERE source = ?1 OR target = ?1", (key,))
        if held and not detach:
            raise RefusedError(
                409, "cannot delete a node that has relationships", value=len(held), next="detach=true deletes them too"
            )
        for (other,) in held:
            self.delete_relationship(other)
        self.db.execute("DELETE FROM labels WHERE node = ?", (key,))
        self.db.execute("DELETE FROM nodes WHERE key = ?", (key,))
        self.done.deleted += 1
        self._nodes -= 1
        self._change("node_deleted", id, {"labels": msgspec.json.decode(known[1])}, key)
        return True


def check_node(node: NodeRequest, limits: Limits) -> None:
    """Raises RefusedError 422 for one that cannot be kept."""
    if len(set(node.labels)) > limits.labels:
        raise RefusedError(422, "cannot give a node so many labels", value=node.id, limit=limits.labels)
    if not node.id.isprintable():
        raise RefusedError(422, "cannot use this id: it has characters that cannot be printed", value=node.id)


def _encoded(properties: dict[str, Any], id: str, limits: Limits) -> str:
    encoded = msgspec.json.encode(properties)
    if len(encoded) > limits.properties_bytes:
        raise RefusedError(
            422, "cannot keep so large properties", value=id, limit=f"{limits.properties_bytes} bytes as JSON"
        )
    return encoded.decode()


class Store:
    """A directory with the database; its writer, and connections to read it."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self.directory = directory
        self.limits = limits if limits is not None else Limits()
        self.commits = Commits(0)
        self.written = 0
        """Changes that this process has made."""
        self.changed: Callable[[], None] = lambda: None
        """Called by any thread, when there is something new."""
        self._writer: Writer | None = None
        self._readers: queue.SimpleQueue[apsw.Connection] = queue.SimpleQueue()
        self._opening = threading.Lock()
        self._watching = threading.Lock()
        self._watcher: apsw.Connection | None = None
        self._data_version = 0
        self._looked_s = 0.0

    @property
    def path(self) -> Path:
        """The database."""
        return self.directory / "graph.db"

    @property
    def is_open(self) -> bool:
        """Whether there is something to read and write."""
        return self._writer is not None

    def open(self) -> None:
        """Open the database, creating it and its directory (0700) if there is none; raises StoreError."""
        with self._opening:
            if self._writer is not None:
                return
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                db = apsw.Connection(str(self.path))
                db.set_busy_timeout(5_000)
                db.pragma("journal_mode", "wal")
                db.pragma("synchronous", "full")
                version = db.pragma("user_version")
                if version not in (0, FORMAT):
                    raise StoreError(f"cannot use {self.path}: its format is {version}, this service knows {FORMAT}")
                with db:
                    db.execute(SCHEMA)
                db.pragma("user_version", FORMAT)
                self._watcher = self._connect()
                self._looked_s = time.monotonic()
                self._data_version = self._watcher.pragma("data_version")
                newest = self._watcher.execute("SELECT coalesce(max(seq), 0) FROM changes").get
            except (apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, OSError) as error:
                raise StoreError(f"cannot use {self.path}: {error}; mend it, or move it away") from error
            self.commits = Commits(int(newest))
            self._writer = Writer(db, waiting=self.limits.writing, look=self.look, committed=self.look)

    def close(self) -> None:
        """Finish the writes that were accepted, then close the database."""
        with self._opening:
            if self._writer is None:
                return
            self._writer.close()
            self._writer = None
            with self._watching:
                assert self._watcher is not None
                self._watcher.close()
                self._watcher = None
            while not self._readers.empty():
                self._readers.get().close()

    @property
    def writer(self) -> Writer:
        """The thread that writes; raises RefusedError while the store is not open."""
        if self._writer is None:
            raise RefusedError(503, "cannot do this: the store is not open", next="try again")
        return self._writer

    def answers(self) -> None:
        """Raises if the database cannot be read."""
        with self.reading() as db:
            db.execute("SELECT key FROM nodes LIMIT 1").fetchall()

    # -- what there is ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Notice what was committed, by this process or another. Quick: no more than reading a counter, mostly."""
        with self._watching:
            watcher = self._watcher
            if watcher is None:
                return
            now_s = time.monotonic()
            try:
                version = watcher.pragma("data_version")
                if version == self._data_version:
                    self._looked_s = now_s
                    return
                newest = int(watcher.execute("SELECT coalesce(max(seq), 0) FROM changes").get)
            except apsw.Error as error:  # whoever asks will be told; the next look sees what this one did not
                log.warning("cannot look for changes: %s", error)
                return
            is_new = newest > self.commits.newest
            self.commits.add(newest, self._looked_s)  # at the earliest: it was not there when last looked for
            self._data_version, self._looked_s = version, now_s
        if is_new:
            self.changed()

    def _connect(self) -> apsw.Connection:
        db = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(5_000)
        db.pragma("cache_size", -16_384)
        return db

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A connection to read with, in one transaction: it sees one version of the graph."""
        if not self.is_open:
            raise RefusedError(503, "cannot read: the store is not open", next="try again")
        try:
            db = self._readers.get_nowait()
        except queue.Empty:
            db = self._connect()
        try:
            db.execute("BEGIN")
            yield db
        finally:
            db.set_progress_handler(None)
            if db.in_transaction:  # there is none where BEGIN has failed
                db.execute("ROLLBACK")
            if self.is_open and self._readers.qsize() < 2 * self.limits.reading:
                self._readers.put(db)
            else:
                db.close()

    def newer(self, after: int, limit: int) -> tuple[list[Change], int]:
        """Changes after that one, in order; and the oldest that is still known."""
        with self.reading() as db:
            newer = rows(
                db,
                "SELECT seq, at_s, what, id, detail FROM changes WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            )
            oldest = db.execute("SELECT coalesce(min(seq), 0) FROM changes").get
        return [Change(*row) for row in newer], int(oldest)

    # -- writing ------------------------------------------------------------------------------------------

    def write(self, work: Callable[[Transaction], object]) -> Future[Written]:
        """Have the work done, all of it or nothing; the Future ends when it is on disk."""

        def run(db: apsw.Connection) -> Written:
            transaction = Transaction(db, self.limits)
            work(transaction)
            done = transaction.finish()
            self.written += done.created + done.updated + done.deleted
            return done

        return self.writer.submit(run)

    def put_nodes(self, nodes: Sequence[NodeRequest], *, merge: bool) -> Future[Written]:
        """All of them, or none."""
        return self.write(lambda to: [to.put_node(node, merge=merge) for node in nodes])

    def put_relationships(
        self, relationships: Sequence[RelationshipRequest], *, merge: bool, create_nodes: bool
    ) -> Future[Written]:
        """All of them, or none."""
        return self.write(
            lambda to: [to.put_relationship(one, merge=merge, create_nodes=create_nodes) for one in relationships]
        )

    def delete_node(self, id: str, *, detach: bool) -> Future[Written]:
        """The Future raises RefusedError 404 if there is none."""

        def work(to: Transaction) -> None:
            if not to.delete_node(id, detach=detach):
                raise RefusedError(404, "cannot find this node", value=id)

        return self.write(work)

    def delete_relationship(self, id: str) -> Future[Written]:
        """The Future raises RefusedError 404 if there is none."""

        def work(to: Transaction) -> None:
            if not to.delete_relationship(id):
                raise RefusedError(404, "cannot find this relationship", value=id)

        return self.write(work)

    def bring_in(self, nodes: Iterable[NodeRequest], relationships: Iterable[RelationshipRequest]) -> Future[Written]:
        """An import: missing nodes are made, bare; a technique that was only heard of becomes itself."""

        def work(to: Transaction) -> None:
            for node in nodes:
                to.put_node(node)
                attack_id = node.properties.get("attack_id")
                if isinstance(attack_id, str) and node.id != heard_technique(attack_id):
                    _become(to, heard_technique(attack_id), node.id)
            for one in relationships:
                to.put_relationship(one, create_nodes=True)

        return self.write(work)

    def hear(self, event: str, work: Callable[[Transaction], list[str]]) -> Future[Written]:
        """Do what follows from an event of the bus, once; the relationships made go when too many are kept."""

        def once(to: Transaction) -> None:
            if to.db.execute("SELECT 1 FROM heard WHERE event = ?", (event,)).get:
                return
            made = msgspec.json.encode(work(to)).decode()
            to.db.execute("INSERT INTO heard (event, relationships) VALUES (?, ?)", (event, made))
            oldest = to.db.last_insert_rowid() - self.limits.heard
            for (old,) in rows(to.db, "SELECT relationships FROM heard WHERE number <= ?", (oldest,)):
                for id in msgspec.json.decode(old):
                    to.delete_relationship(id)
            to.db.execute("DELETE FROM heard WHERE number <= ?", (oldest,))

        return self.write(once)


def heard_technique(attack_id: str) -> str:
    """Id of the node of a technique that no import has brought yet."""
    return f"attack:{attack_id}"


def _become(to: Transaction, stub: str, real: str) -> None:
    """What leads to and from the stub leads to and from the real node from now on."""
    key = to.key(stub)
    if key is None:
        return
    held = rows(
        to.db,
        "SELECT r.id, r.type, s.id, t.id, r.properties FROM relationships r JOIN nodes s ON s.key = r.source "
        "JOIN nodes t ON t.key = r.target WHERE r.source = ?1 OR r.target = ?1",
        (key,),
    )
    for id, type, source, target, properties in held:
        to.put_relationship(
            RelationshipRequest(
                id=id,
                type=type,
                source=real if source == stub else source,
                target=real if target == stub else target,
                properties=msgspec.json.decode(properties),
            )
        )
    to.delete_node(stub, detach=True)
