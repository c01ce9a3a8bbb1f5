"""Every bound of the service, in one place."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from cdn_daemon.settings import number

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB


class Limits(Struct, frozen=True, kw_only=True):
    """What there may be at once, and what one request may take. Bytes, seconds, series."""

    interval_s: float = 10.0
    """Of every target, while the loop has not chosen; the mean of all intervals, in samples, once it has."""
    scrape_s: float = 5.0
    scrape_bytes: int = 8 * MiB
    scrape_samples: int = 20_000
    """A target that tells of more is not scraped: up is 0."""
    scrapes: int = 64
    """At once."""
    targets: int = 2_000
    series: int = 200_000
    """Known at once; of one more nothing is kept."""
    labels: int = 64
    """Of a series."""
    label_bytes: int = 4 * KiB
    """All of a series' together."""

    seal_s: float = 600.0
    """Samples are made chunks of so often."""
    journal_bytes: int = 256 * MiB
    """Or sooner, if there are so many."""
    waiting_bytes: int = 64 * MiB
    """Samples that wait for a disk that takes nothing; beyond them the oldest are dropped and counted."""
    retention_s: float = 7 * 86_400.0
    retention_bytes: int = 2 * GiB

    query_s: float = 10.0
    query_chars: int = 8 * KiB
    query_samples: int = 10_000_000
    """That one question looks at."""
    points: int = 11_000
    """Steps of one range query, as Prometheus has it."""
    queries: int = 4
    """Answered at once; some more wait for a second."""
    lookback_s: float = 300.0
    """A sample stands for its series for so long, as in Prometheus."""
    page: int = 100_000
    """Names or series in one answer."""

    import_bytes: int = 32 * MiB
    rules: int = 1_000
    alerts: int = 10_000
    """Pending or firing at once, of all rules."""
    body_bytes: int = 1 * MiB
    rules_every_s: float = 5.0
    clients: int = 64
    """Of /ws/stream."""


def read_limits(environ: Mapping[str, str]) -> Limits:
    """The limits that an operator may set by CDN_MONITORING_*; raises SettingError at the first that cannot be."""
    usual = Limits()
    return Limits(
        interval_s=number(environ, "CDN_MONITORING_INTERVAL_S", usual.interval_s, 1, 60),
        series=int(number(environ, "CDN_MONITORING_SERIES", usual.series, 1, 2_000_000)),
        seal_s=number(environ, "CDN_MONITORING_SEAL_S", usual.seal_s, 1, 3600),
        retention_s=number(environ, "CDN_MONITORING_RETENTION_S", usual.retention_s, 60, 3650 * 86_400),
        retention_bytes=int(number(environ, "CDN_MONITORING_RETENTION_BYTES", usual.retention_bytes, MiB, 1024 * GiB)),
        rules_every_s=number(environ, "CDN_MONITORING_RULES_S", usual.rules_every_s, 0.1, 60),
    )
