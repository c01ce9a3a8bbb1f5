"""Which instances take traffic: a table folded from statuses. Pure: time comes in as now_s.

The table keeps a clock of its own that runs only while the feed speaks. So an
instance that is silent while others are heard grows old and is left out, while
the death of ATLAS or of the feed, which silences all at once, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from msgspec import Struct, field, structs

from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase, Name

SILENT_S = 5.0
"""A serving instance reports at least once a second; five missed reports and it gets no more traffic."""
FORGET_S = 3600.0
"""After this long without a report an instance is no longer known; its service may then answer 404, not 503."""
STEP_S = 1.0
"""The most that one report advances the feed's clock: a longer gap is the feed's silence, not the instances'."""
INSTANCES_MAX = 10_000

_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")  # bus.messages.Name
_TARGET = re.compile(rb"[\x21-\x7e]*")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


class BadPath(ValueError):
    """A path that cannot be routed; the text says why."""


class Target(Struct, frozen=True):
    """One instance's server."""

    service: Name
    instance: Name
    host: str
    port: int
    incarnation: int = 0

    @property
    def authority(self) -> str:
        """As in a Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Known(Struct, frozen=True, kw_only=True):
    """What was last heard of one instance."""

    target: Target | None
    """None: it has no address, or none that can be used."""
    service: Name
    incarnation: int
    seq: int
    phase: LifecyclePhase
    health: HealthStatus
    heard_s: float = 0.0
    """On the table's clock."""


class Table(Struct, frozen=True, kw_only=True):
    """The instances known, and the routes that follow from them. Immutable: swap it, never change it."""

    hidden: frozenset[str] = frozenset()
    """Services that are never routed to."""
    known: Mapping[str, Known] = field(default_factory=dict)
    """By instance."""
    routes: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    """By service, in order of instance; empty: the service is known, and nobody serves it."""
    clock_s: float = 0.0
    """How long the feed has spoken."""
    spoke_s: float | None = None
    """now_s when the feed last spoke; None before that."""


def target_of(service: str, instance: str, address: str | None, incarnation: int = 0) -> Target | None:
    """Where the instance's server is; None unless the address is a plain ``http://HOST:PORT``."""
    if address is None:
        return None
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port
    except ValueError:
        return None
    if url.scheme != "http" or not host or not port or not _HOST.fullmatch(host):
        return None
    if url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
        return None
    return Target(service=service, instance=instance, host=host, port=port, incarnation=incarnation)


def hear(table: Table, statuses: Iterable[DaemonStatus], now_s: float) -> Table:
    """Fold the statuses that came together at now_s into the table; return the new table.

    A status no newer than the one held (same incarnation, seq not larger; or an
    older incarnation, unless the newer one has fallen silent) says only that the
    feed is alive.
    """
    statuses = list(statuses)
    if not statuses:
        return table
    elapsed_s = 0.0 if table.spoke_s is None else now_s - table.spoke_s
    clock_s = table.clock_s + min(max(elapsed_s, 0.0), STEP_S)
    known = {name: held for name, held in table.known.items() if clock_s - held.heard_s <= FORGET_S}
    for status in statuses:
        held = known.get(status.instance)
        if held is None:
            if len(known) >= INSTANCES_MAX:
                continue
        elif not _is_news(status, held, clock_s):
            continue
        known[status.instance] = Known(
            target=target_of(status.service, status.instance, status.address, status.incarnation),
            service=status.service,
            incarnation=status.incarnation,
            seq=status.seq,
            phase=status.phase,
            health=status.health,
            heard_s=clock_s,
        )
    return _table(table.hidden, known, clock_s, now_s)


def restore(hidden: frozenset[str], known: Mapping[str, Known]) -> Table:
    """The table as it was left: all of it counts as just heard, until the feed speaks without it."""
    return _table(hidden, {name: structs.replace(held, heard_s=0.0) for name, held in known.items()}, 0.0, None)


def takes_traffic(held: Known, clock_s: float) -> bool:
    """Whether the instance is serving, not unhealthy, reachable by an address, and not silent."""
    return (
        held.target is not None
        and held.phase is LifecyclePhase.SERVING
        and held.health is not HealthStatus.UNHEALTHY
        and clock_s - held.heard_s <= SILENT_S
    )


def split(raw_path: bytes) -> tuple[str, bytes]:
    """``/service/rest`` → service and ``/rest``, byte for byte; raises BadPath.

    The service's name must stand there plainly, not percent-encoded. A dot
    segment, in any spelling, is refused: by the rules of URLs it may mean
    another service than the one that it seems to name.
    """
    if not raw_path.startswith(b"/") or not _TARGET.fullmatch(raw_path):
        raise BadPath("it must begin with '/' and be visible ASCII")
    service, slash, rest = raw_path[1:].partition(b"/")
    if not _NAME.fullmatch(service):
        raise BadPath("its first segment is no service's name")
    if (b"." in rest or b"%2" in rest) and _has_dot_segment(rest):
        raise BadPath("it has a dot segment")
    return service.decode(), slash + rest or b"/"


def _has_dot_segment(path: bytes) -> bool:
    plain = path.lower().replace(b"%2e", b".").replace(b"%2f", b"/").replace(b"%5c", b"/").replace(b"\\", b"/")
    return any(segment.partition(b";")[0] in (b".", b"..") for segment in plain.split(b"/"))


def _is_news(status: DaemonStatus, held: Known, clock_s: float) -> bool:
    if status.incarnation != held.incarnation:
        # Counts begin again when a run directory is made anew; the silence of the old one gives that away.
        return status.incarnation > held.incarnation or clock_s - held.heard_s > SILENT_S
    return status.seq > held.seq


def _table(hidden: frozenset[str], known: Mapping[str, Known], clock_s: float, spoke_s: float | None) -> Table:
    serving: dict[str, list[Target]] = {}
    for _, held in sorted(known.items()):
        if held.service in hidden:
            continue
        targets = serving.setdefault(held.service, [])
        if takes_traffic(held, clock_s):
            assert held.target is not None  # takes_traffic says so
            targets.append(held.target)
    routes = {service: tuple(targets) for service, targets in serving.items()}
    return Table(hidden=hidden, known=known, routes=routes, clock_s=clock_s, spoke_s=spoke_s)
