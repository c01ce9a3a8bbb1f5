"""Every bound of the service, in one place."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from cdn_daemon.settings import SettingError, number

KiB = 1024
MiB = 1024 * KiB
STATSD_PORT = 18125


class Limits(Struct, frozen=True, kw_only=True):
    """What there may be at once, and what one request may take. Bytes, seconds, series."""

    slot_s: int = 10
    """The shortest stretch that is kept; six are kept as one of a minute, and those sixty times as one of an hour."""
    series: int = 2_000
    """Series known, of all kinds. What is of one more is counted in ``cdn.overflow``."""
    sets: int = 200
    """Of those, how many may be sets: each takes some 5 KiB."""
    watched: int = 1_000
    """Series that are looked at for change points: each takes some 4 KiB."""
    panel: int = 64
    """Distributions of which some values are kept, to see how far off their quantiles are."""
    quantile_bytes: int = 2 * MiB
    """What the quantiles of all distributions may take together; the loop shares it out."""
    buffer_bytes: int = 4 * MiB
    """Of the UDP socket: the queue, which the kernel bounds."""
    share_cores: float = 0.6
    """What taking StatsD may use of a core; beyond it datagrams are sampled."""
    connections: int = 256
    """Of StatsD by TCP."""

    body_bytes: int = 1 * MiB
    samples: int = 10_000
    """In one POST /samples."""
    merge_bytes: int = 4 * MiB
    merges: int = 1_000
    """Sketches in one POST /merge."""
    waiting: int = 64
    """Batches that wait for the disk; one more is refused with 503."""
    batches_kept: int = 10_000
    """Ids of batches, by which a repeated one is known."""
    changes_kept: int = 10_000
    page: int = 1_000
    quantiles: int = 50
    """In one question."""
    questions: int = 4
    """Answered at once; some more wait for a second, then 503."""
    clients: int = 64
    """Of /ws/stream."""


def read_limits(environ: Mapping[str, str]) -> Limits:
    """The limits that an operator may set by CDN_STATISTICAL_*; raises SettingError at the first that cannot be."""
    usual = Limits()
    return Limits(
        slot_s=int(number(environ, "CDN_STATISTICAL_SLOT_S", usual.slot_s, 1, 60)),
        series=int(number(environ, "CDN_STATISTICAL_SERIES", usual.series, 1, 100_000)),
        quantile_bytes=int(number(environ, "CDN_STATISTICAL_QUANTILE_BYTES", usual.quantile_bytes, KiB, 1024 * MiB)),
        share_cores=number(environ, "CDN_STATISTICAL_SHARE", usual.share_cores, 0.001, 1.0),
    )


def statsd_port(environ: Mapping[str, str], *, is_first: bool) -> int:
    """Where StatsD is to be listened for: CDN_STATSD_PORT; raises SettingError.

    By default 18125, and a free one where the HTTP port is free to choose or another instance has the usual one.
    """
    if environ.get("CDN_STATSD_PORT", "") == "" and (environ.get("CDN_PORT") == "0" or not is_first):
        return 0
    port = number(environ, "CDN_STATSD_PORT", STATSD_PORT, 0, 65535)
    if port != int(port):
        raise SettingError(f"cannot use CDN_STATSD_PORT={port}: it must be a whole number, 0 to 65535")
    return int(port)
