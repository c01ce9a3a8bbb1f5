"""Every bound of the service, in one place."""

from __future__ import annotations

from msgspec import Struct

KiB = 1024
MiB = 1024 * KiB


class Limits(Struct, frozen=True, kw_only=True):
    """What one request may take, and how much there may be at once. Bytes, rows, seconds."""

    upload_bytes: int = 64 * MiB
    """One file."""
    insert_bytes: int = 4 * MiB
    """One insert; decoding it holds the GIL, 4 MiB for about 20 ms."""
    insert_rows: int = 10_000
    sql_body_bytes: int = 256 * KiB
    sql_chars: int = 100_000
    params: int = 1_000
    columns: int = 250
    """Of a table, and of a result."""
    field_bytes: int = 1 * MiB
    """One value, one line of NDJSON, one row inside SQLite."""
    sources: int = 200
    files: int = 16
    """Attached SQLite files; each is open in every reader."""

    timeout_default_s: float = 5.0
    timeout_max_s: float = 30.0
    rows_default: int = 1_000
    rows_max: int = 100_000
    result_bytes: int = 16 * MiB
    """One JSON result, which is held in memory; a stream is held 256 KiB at a time."""
    page_rows_max: int = 10_000

    listeners: int = 64
    """Who wait for changes at once."""
    changes_max: int = 10_000
    """In one answer."""
    events: int = 100_000
    """Kept; the oldest go first."""

    readers: int = 4
    """Statements that run at once."""
    streams: int = 2
    """Of those, how many may stream to a client, whose pace is not ours."""
    waiting: int = 32
    """Statements that wait for a reader; one more is refused with 503."""
    writes_waiting: int = 64
    """Writes that wait for the writer; one more is refused with 503."""
    uploads: int = 2
    """Uploads under way at once."""
    upload_s: float = 300.0
    """From an upload's first byte to its last."""
    body_s: float = 30.0
    """The same of any other request's body."""
    heap_bytes: int = 256 * MiB
    """What SQLite may allocate in this process, all in all."""
