"""Every bound of the service, in one place."""

from __future__ import annotations

from msgspec import Struct

KiB = 1024
MiB = 1024 * KiB


class Limits(Struct, frozen=True, kw_only=True):
    """What one request may take, and how much there may be at once. Bytes, counts, seconds."""

    upload_bytes: int = 64 * MiB
    """A whole collection, or features that are added to one."""
    upload_s: float = 60.0
    body_bytes: int = 4 * MiB
    """Any other request."""
    collections: int = 200
    features: int = 2_000_000
    """In all collections; about 70 bytes of memory for each that is a point."""
    feature_bytes: int = 1 * MiB
    vertices: int = 100_000
    """Of one geometry."""
    vertices_kept: int = 10_000_000
    """Of all that are no points, which are in memory; about 16 bytes each."""
    depth: int = 4
    """Geometry collections in geometry collections."""
    properties: int = 200
    """Different names in a collection that can be asked for."""
    page: int = 10_000
    """The most that limit may ask for."""
    page_default: int = 10
    page_bytes: int = 16 * MiB
    """A page ends early when it is that large, and has a next one."""
    query_s: float = 5.0
    nearest: int = 1_000
    tracks: int = 500_000
    positions: int = 10_000
    """In one request."""
    positions_kept: int = 5_000_000
    """Of all tracks together, the newest."""
    path: int = 10_000
    """Positions in one answer."""
    fences: int = 1_000
    fence_vertices: int = 10_000
    crossings_kept: int = 200_000
    crossings_page: int = 10_000
    writes_waiting: int = 64
    watchers: int = 64
    """WebSocket clients."""
    watcher_waiting: int = 1_000
    """Crossings that wait for one of them; one more, and it is let go."""
    cached: int = 1_000
    """Answers, of each collection whose answers are kept."""
    cached_bytes: int = 16 * MiB
