"""The whole fleet in one scrape, in Prometheus' text format. Pure.

A service that is down has its state, its health and its restarts, and no vitals: what was measured of a
process that is gone would look as if it were still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from bus.messages import (
    DaemonStatus,
    HealthStatus,
    LifecyclePhase,
    OodaMode,
    OutcomeKind,
    ProcessState,
    ServiceView,
    Verb,
    Vitals,
)
from cdn_daemon.exposition import family, labels
from services.atlas.fleet import Node

_STATES = tuple(ProcessState)
_HEALTHS = tuple(HealthStatus)
_MODES = tuple(OodaMode)

_GAUGES = {
    "agents": "Daemons and wardens that take commands.",
    "members": "Instances known by their daemons.",
    "subscribers": "Connections to the feed.",
    "open_commands": "Commands without an outcome yet.",
    "history_bytes": "Size of the history on disk.",
}
"""Those of ATLAS's counts that are how much there is now."""


@dataclass(frozen=True)
class Measured:
    """What there is to tell of."""

    now_s: float
    """Monotonic."""
    views: tuple[ServiceView, ...]
    statuses: Mapping[str, DaemonStatus]
    nodes: Mapping[str, Node]
    counts: Mapping[str, int]
    """ATLAS's own, by name."""
    outcomes: Mapping[tuple[str, OutcomeKind], int]
    """Commands that have ended: verb and how."""


def exposition(fleet: Measured) -> str:
    """Everything, as text."""
    return "\n".join([*_services(fleet), *_vitals(fleet), *_wardens(fleet), *_atlas(fleet)]) + "\n"


def _who(view: ServiceView) -> str:
    return labels(service=view.service, instance_id=view.instance, host=view.host or "")


def is_up(view: ServiceView) -> bool:
    """Whether it runs, is heard if it has a daemon, and says that it serves."""
    return view.state is ProcessState.RUNNING and view.phase in (None, LifecyclePhase.SERVING)


def _one_of(word: str, who: str, words: Iterable[str], now: str) -> Iterator[tuple[str, int]]:
    """A series for each word, 1 for the one that holds now."""
    return ((f'{who[:-1]},{word}="{each}"}}', int(each == now)) for each in words)


def _services(fleet: Measured) -> list[str]:
    views = [(_who(view), view) for view in fleet.views]
    lines = family(
        "cdn_service_up",
        "gauge",
        "1 if the service runs and, where it has a daemon, serves.",
        ((who, int(is_up(view))) for who, view in views),
    )
    lines += family(
        "cdn_service_state",
        "gauge",
        "1 for the state of the process, in supervisor's words.",
        (sample for who, view in views for sample in _one_of("state", who, _STATES, view.state)),
    )
    lines += family(
        "cdn_service_health",
        "gauge",
        "1 for the service's health; unknown where nobody is there to say.",
        (sample for who, view in views for sample in _one_of("health", who, _HEALTHS, view.health)),
    )
    lines += family(
        "cdn_service_ooda_mode",
        "gauge",
        "1 for the mode of the service's control loop.",
        (
            sample
            for who, view in views
            if view.ooda_mode is not None
            for sample in _one_of("mode", who, _MODES, view.ooda_mode)
        ),
    )
    lines += family(
        "cdn_service_enabled",
        "gauge",
        "0 if an operator has disabled it.",
        ((who, int(view.enabled)) for who, view in views),
    )
    lines += family(
        "cdn_service_maintenance",
        "gauge",
        "1 while it is in maintenance: nothing judges it.",
        ((who, int(view.maintenance)) for who, view in views),
    )
    lines += family(
        "cdn_service_shedding",
        "gauge",
        "1 while it sheds load.",
        ((who, int(view.shedding)) for who, view in views),
    )
    lines += family(
        "cdn_service_restarts_total",
        "counter",
        "Starts under the present supervisor, less the first.",
        ((who, view.restarts) for who, view in views),
    )
    lines += family(
        "cdn_service_last_status_age_seconds",
        "gauge",
        "Time since its daemon was last heard.",
        ((who, view.seen_s) for who, view in views),
    )
    return lines


def _vitals(fleet: Measured) -> list[str]:
    views = [(_who(view), view) for view in fleet.views]
    spoken = [
        (who, view, status.metrics.vitals)
        for who, view in views
        if view.in_flight is not None and (status := fleet.statuses.get(view.instance)) is not None
    ]

    def vital(name: str, help_: str, field: str) -> list[str]:
        def value(vitals: Vitals) -> float | None:
            held: float | None = getattr(vitals, field)
            return held

        return family(name, "gauge", help_, ((who, value(vitals)) for who, _, vitals in spoken))

    lines = family(
        "cdn_service_uptime_seconds",
        "gauge",
        "Time since the process began.",
        ((who, view.uptime_s) for who, view in views),
    )
    lines += family(
        "cdn_service_incarnation",
        "gauge",
        "Counts the starts of this instance.",
        ((who, view.incarnation) for who, view, _ in spoken),
    )
    lines += family(
        "cdn_service_requests_total", "counter", "Requests answered.", ((who, view.requests) for who, view, _ in spoken)
    )
    lines += family(
        "cdn_service_requests_in_flight",
        "gauge",
        "Requests not yet answered.",
        ((who, view.in_flight) for who, view, _ in spoken),
    )
    lines += vital("cdn_service_cpu_cores", "Processor use over the last second, in cores.", "cpu_cores")
    lines += vital("cdn_service_resident_memory_bytes", "Resident memory.", "rss_bytes")
    lines += vital("cdn_service_open_fds", "Open file descriptors.", "fds")
    lines += vital("cdn_service_threads", "Threads.", "threads")
    lines += vital("cdn_service_children", "Child processes.", "children")
    lines += vital("cdn_service_loop_lag_seconds", "How long the service's loop takes to answer.", "loop_lag_s")
    return lines


def _wardens(fleet: Measured) -> list[str]:
    nodes = [(labels(host=host), node) for host, node in sorted(fleet.nodes.items())]
    lines = family(
        "cdn_warden_up",
        "gauge",
        "1 if the host's warden is heard.",
        ((who, int(node.reachable)) for who, node in nodes),
    )
    lines += family(
        "cdn_warden_last_status_age_seconds",
        "gauge",
        "Time since the warden was last heard.",
        ((who, max(0.0, fleet.now_s - node.heard_s)) for who, node in nodes),
    )
    lines += family(
        "cdn_warden_processes",
        "gauge",
        "Processes in supervisord's table, by state.",
        (
            (f'{who[:-1]},state="{state}"}}', sum(row.state is state for row in node.status.processes))
            for who, node in nodes
            for state in _STATES
        ),
    )
    lines += family(
        "cdn_warden_counts_total",
        "counter",
        "What the warden counts: errors survived, datagrams refused, verdicts.",
        (
            (labels(host=host, what=what), value)
            for host, node in sorted(fleet.nodes.items())
            for what, value in sorted(node.status.counts.items())
        ),
    )
    return lines


def _atlas(fleet: Measured) -> list[str]:
    counts = fleet.counts
    lines: list[str] = []
    for name, help_ in _GAUGES.items():
        lines += family(f"cdn_atlas_{name}", "gauge", help_, (("", counts.get(name)),))
    lines += family(
        "cdn_atlas_telemetry_frames_total",
        "counter",
        "Statuses and events that have come in.",
        (("", counts.get("telemetry", 0)),),
    )
    lines += family(
        "cdn_atlas_counts_total",
        "counter",
        "What ATLAS counts: frames dropped, subscribers cut, sockets bound again, by cause.",
        (
            (labels(cause=cause), value)
            for cause, value in sorted(counts.items())
            if cause not in _GAUGES and cause != "telemetry"
        ),
    )
    lines += family(
        "cdn_atlas_commands_total",
        "counter",
        "Commands that have ended, by verb and outcome.",
        (  # all of them from the start: the first of a series that begins at 1 is no increase to Prometheus
            (labels(verb=verb, outcome=kind), fleet.outcomes.get((verb, kind), 0))
            for verb in Verb
            for kind in OutcomeKind
        ),
    )
    return lines
