"""What is sent and answered: typed, checked by msgspec, the documentation of the interface."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

Text = Annotated[str, Meta(min_length=1, max_length=512)]
Label = Annotated[str, Meta(min_length=1, max_length=128)]
Direction = Literal["out", "in", "both"]
Seconds = Annotated[float, Meta(gt=0, le=30)]


class NodeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """A node as it is to be."""

    id: Text
    labels: list[Label] = []
    properties: dict[str, Any] = {}


class RelationshipRequest(Struct, kw_only=True, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}):
    """A relationship as it is to be; without an id there is one of each type between two nodes."""

    source: Text
    target: Text
    type: Label
    id: Annotated[str, Meta(min_length=1, max_length=1200)] | None = None
    properties: dict[str, Any] = {}


class NodesRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /nodes``."""

    nodes: list[NodeRequest]
    merge: bool = False
    """Keep labels and properties that the node has and that are not given."""


class RelationshipsRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /relationships``."""

    relationships: list[RelationshipRequest]
    merge: bool = False
    create_nodes: bool = False
    """Make nodes that are missing, bare, instead of refusing."""


class Written(Struct, kw_only=True):
    """What has become of a write; it is on disk."""

    created: int = 0
    updated: int = 0
    deleted: int = 0
    version: int = 0
    """Of the graph, from this write on."""
    skipped: int = 0
    examples: list[str] = []
    """Of what was skipped, and why."""


class SnapshotState(Struct, kw_only=True, frozen=True):
    """As of when an answer is."""

    version: int
    age_s: float
    """For how long the oldest change has been on disk that is not in the answer; 0: it misses none."""
    behind_writes: int
    """Changes to nodes and relationships that are not in it."""
    engine: Literal["sql", "snapshot", "pinned"]


class NodeAnswer(Struct, kw_only=True, omit_defaults=True):
    """A node."""

    id: str
    labels: list[str]
    distance: int | None = None
    properties: Raw | UnsetType = UNSET


class RelationshipAnswer(Struct, kw_only=True, rename={"source": "from", "target": "to"}):
    """A relationship."""

    id: str
    type: str
    source: str
    target: str
    properties: Raw | UnsetType = UNSET


class PatternNode(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a node of a pattern must be."""

    id: Text | None = None
    labels: list[Label] = []
    """All of them."""
    where: dict[str, Any] = {}


class PatternEdge(Struct, kw_only=True, forbid_unknown_fields=True, rename={"source": "from", "target": "to"}):
    """What leads from one node of a pattern to another."""

    source: str
    target: str
    types: list[Label] = []
    """Any of them; empty: of any type."""
    direction: Direction = "out"
    hops: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]] | None = None
    """Instead of one relationship: as many, on the shortest way between the two."""
    where: dict[str, Any] = {}
    name: str | None = None
    """Under it the relationship, or the way, is in the answer."""


class QueryRequest(Struct, kw_only=True, forbid_unknown_fields=True, rename={"returned": "return"}):
    """``POST /query``."""

    nodes: dict[str, PatternNode]
    edges: list[PatternEdge] = []
    returned: list[str] | None = None
    """Names of nodes and edges; None: all of them."""
    distinct: bool = False
    properties: bool = True
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    timeout_s: Seconds | None = None
    max_staleness_s: Annotated[float, Meta(ge=0)] | None = None


class AlgorithmRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /algorithms/NAME``."""

    labels: list[Label] = []
    """Only nodes with one of them."""
    types: list[Label] = []
    """Only relationships of one of them."""
    relationships: list[str] = []
    """matroid-rank: only these."""
    weight: Text | None = None
    """Property of relationships; pagerank, communities, and the heaviest basis of matroid-rank."""
    damping: Annotated[float, Meta(gt=0, lt=1)] = 0.85
    strong: bool = False
    """components: strongly connected ones."""
    resolution: Annotated[float, Meta(gt=0, le=100)] = 1.0
    times: list[float] = []
    """hawkes: seconds."""
    node: Text | None = None
    """hawkes: instead of times, those of the relationships of this node."""
    property: Text = "at_s"
    """hawkes: where their times are."""
    now_s: float | None = None
    """hawkes: end of the time observed; the last event's if None."""
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 100
    timeout_s: Seconds | None = None
    max_staleness_s: Annotated[float, Meta(ge=0)] | None = None


class KhopQuestion(Struct, kw_only=True, frozen=True):
    """``GET /nodes/ID/khop``."""

    id: str
    k: int
    direction: Direction
    types: tuple[str, ...]
    limit: int
    properties: bool


class PathsQuestion(Struct, kw_only=True, frozen=True, rename={"source": "from", "target": "to"}):
    """``GET /paths``."""

    source: str
    target: str
    k: int
    max_hops: int
    direction: Direction
    types: tuple[str, ...]
    weight: str | None


class KhopAnswer(Struct, kw_only=True):
    """The neighbourhood of a node, the nearest first."""

    id: str
    k: int
    reached: int
    """Nodes within so many hops."""
    by_distance: list[int]
    """How many at a distance of 1, 2, …"""
    nodes: list[NodeAnswer]
    more: bool
    """There are more than are shown."""


class PathAnswer(Struct, kw_only=True):
    """One way."""

    cost: float
    hops: int
    nodes: list[NodeAnswer]
    relationships: list[RelationshipAnswer]


class PathsAnswer(Struct, kw_only=True):
    """Ways, the cheapest first."""

    paths: list[PathAnswer]


class QueryAnswer(Struct, kw_only=True):
    """Matches: under each name a node, a relationship, or a list of relationships."""

    matches: list[dict[str, Any]]
    more: bool


class ScoreAnswer(Struct, kw_only=True):
    """A node, and how it scores."""

    id: str
    labels: list[str]
    score: float


class GroupAnswer(Struct, kw_only=True):
    """Nodes that belong together."""

    size: int
    members: list[str]
    """The first of them, if they are many."""


class AlgorithmAnswer(Struct, kw_only=True, omit_defaults=True):
    """What an algorithm has found."""

    algorithm: str
    figures: dict[str, Any]
    scores: list[ScoreAnswer] = []
    groups: list[GroupAnswer] = []
    basis: list[RelationshipAnswer] = []
    elapsed_ms: float = 0.0
