"""Every bound of the service, in one place."""

from __future__ import annotations

from msgspec import Struct

KiB = 1024
MiB = 1024 * KiB


class Limits(Struct, frozen=True, kw_only=True):
    """What one request may take, and how much there may be at once. Bytes, counts, seconds."""

    feed_bytes: int = 64 * MiB
    """One list or bundle; also TAXII's max_content_length."""
    feed_body_s: float = 60.0
    body_bytes: int = 4 * MiB
    """Any other request."""
    values: int = 10_000
    """In one POST /correlate."""
    value_chars: int = 4_096
    inline_values: int = 200
    """So many are correlated on the event loop, in well under a millisecond; more on a thread."""
    inside: int = 100
    """What lies inside a network that is asked for: so many are shown."""
    matches: int = 50
    """Shown for one value."""
    feeds: int = 200
    listings: int = 2_000_000
    """Values in all feeds together; about 300 bytes of memory each."""
    objects: int = 1_000_000
    object_bytes: int = 4 * MiB
    pattern_chars: int = 8_192
    allowed: int = 100_000
    page: int = 1_000
    """Objects in a TAXII page, and the most that limit may ask for."""
    page_bytes: int = 8 * MiB
    sightings_kept: int = 1_000_000
    sightings_page: int = 10_000
    verdicts_kept: int = 100_000
    statuses_kept: int = 1_000
    writes_waiting: int = 64
    watchers: int = 64
    """WebSocket clients."""
    watcher_waiting: int = 1_000
    """Sightings that wait for one of them; one more, and it is let go."""
