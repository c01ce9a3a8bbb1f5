"""Every bound of the service, in one place."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from cdn_daemon.settings import number

KiB = 1024
MiB = 1024 * KiB


class Limits(Struct, frozen=True, kw_only=True):
    """What there may be at once, and what one request may take."""

    nodes: int = 1_000_000
    relationships: int = 5_000_000
    staleness_s: float = 2.0
    """No answer misses what was acknowledged longer ago than this."""
    changes: int = 100_000
    """Kept for /ws/stream and for snapshots that catch up."""
    heard: int = 50_000
    """Events whose relationships are kept; the oldest go first."""

    body_bytes: int = 8 * MiB
    batch: int = 10_000
    """Nodes or relationships in one request."""
    import_bytes: int = 64 * MiB
    import_s: float = 60.0
    properties_bytes: int = 256 * KiB
    id_chars: int = 512
    labels: int = 16

    results: int = 1_000
    """Rows in one answer."""
    hops: int = 8
    paths: int = 20
    pattern_nodes: int = 10
    pattern_edges: int = 12
    timeout_s: float = 5.0
    """Of a question, unless it asks for another; and the most that it may ask for."""
    timeout_max_s: float = 30.0
    reading: int = 4
    """Questions answered at once; some more wait for as long as they may take, then 503."""
    reading_waiting: int = 64
    computing: int = 2
    """Algorithms at once, each in a process of its own."""
    computing_bytes: int = 2048 * MiB
    """Memory of each."""
    events: int = 20_000
    """Times in one event series."""
    writing: int = 64
    """Writes that wait; one more is refused with 503."""
    exports: int = 2
    export_s: float = 300.0
    watchers: int = 64
    pinned: int = 64
    pinned_bytes: int = 32 * MiB


def read_limits(environ: Mapping[str, str]) -> Limits:
    """The limits that an operator may set by CDN_GRAPH_*; raises SettingError at the first that cannot be."""
    usual = Limits()
    return Limits(
        nodes=int(number(environ, "CDN_GRAPH_NODES", usual.nodes, 1, 100_000_000)),
        relationships=int(number(environ, "CDN_GRAPH_RELATIONSHIPS", usual.relationships, 1, 500_000_000)),
        staleness_s=number(environ, "CDN_GRAPH_STALENESS_S", usual.staleness_s, 0.0, 3600.0),
    )
