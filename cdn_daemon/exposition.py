"""Prometheus' text format 0.0.4, and a service's own status in it; names and units by Prometheus' conventions. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase
from cdn_daemon.limits import bands

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METRIC = re.compile(r'(?P<name>[a-z_:][a-z0-9_:]*)(\{(?P<labels>[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*)\})?')
"""``name`` or ``name{label="value"}``; other metrics are on the bus but not in this format."""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def labels(**values: str) -> str:
    """``{name="value",…}``, whatever the values hold."""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items()) + "}"


def number(value: float) -> str:
    """As the format wants it: integers whole, and its own words for what is no number."""
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def family(name: str, kind: str, help_: str, samples: Iterable[tuple[str, float | None]]) -> list[str]:
    """The lines of one metric: (labels, value) for each series; unknown values are left out, and so is an empty one."""
    lines = [f"{name}{labels} {number(value)}" for labels, value in samples if value is not None]
    return [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", *lines] if lines else []


def exposition(status: DaemonStatus) -> str:
    """What a service says of itself."""
    return "\n".join([*framework_metrics(status), *own_metrics(status)]) + "\n"


def framework_metrics(status: DaemonStatus) -> list[str]:
    """What is measured of every service."""
    vitals, metrics = status.metrics.vitals, status.metrics
    who = _who(status)
    lines: list[str] = []

    def put(name: str, kind: str, help_: str, value: float | None) -> None:
        lines.extend(family(name, kind, help_, ((who, value),)))

    ready = status.phase is LifecyclePhase.SERVING and status.health is not HealthStatus.UNHEALTHY
    put("cdn_service_ready", "gauge", "1 if the service takes traffic.", int(ready))
    put("cdn_service_healthy", "gauge", "1 if every health check passes.", int(status.health is HealthStatus.HEALTHY))
    put("cdn_service_incarnation", "gauge", "Counts the starts of this instance.", status.incarnation)
    put("cdn_service_uptime_seconds", "gauge", "Time since the process began.", status.uptime_s)
    put("cdn_service_requests_total", "counter", "Requests answered.", metrics.requests)
    put("cdn_service_requests_in_flight", "gauge", "Requests not yet answered.", metrics.in_flight)
    put("cdn_service_cpu_cores", "gauge", "Processor use over the last second, in cores.", vitals.cpu_cores)
    put("cdn_service_resident_memory_bytes", "gauge", "Resident memory.", vitals.rss_bytes)
    put("cdn_service_open_fds", "gauge", "Open file descriptors.", vitals.fds)
    put("cdn_service_threads", "gauge", "Threads.", vitals.threads)
    put("cdn_service_loop_lag_seconds", "gauge", "How long the service's loop takes to answer.", vitals.loop_lag_s)
    for name, band in bands(status.limits).items() if status.limits is not None else ():
        levels = (("soft", band.soft), ("hard", band.hard))
        of_each = [(f'{who[:-1]},level="{level}"}}', value) for level, value in levels]
        unit = re.sub("_s$", "_seconds", name)  # Prometheus spells units out
        lines.extend(
            family(f"cdn_limit_{unit}", "gauge", f"Limit of {name} over the process and its children.", of_each)
        )
    return lines


def own_metrics(status: DaemonStatus) -> list[str]:
    """What the service measures itself."""
    lines: list[str] = []
    described = ""
    who = _who(status)
    for key, value in sorted(status.metrics.values.items()):
        match = _METRIC.fullmatch(key)
        if match is None:
            continue
        name, own = match["name"], match["labels"] or ""
        if name != described:
            described = name
            kind = "counter" if name.endswith("_total") else "gauge"
            lines.extend((f"# HELP {name} See the service's documentation.", f"# TYPE {name} {kind}"))
        lines.append(f"{name}{who[:-1]}{',' if own else ''}{own}}} {number(value)}")
    return lines


def _who(status: DaemonStatus) -> str:
    # Not ``instance``: that is Prometheus' own word for whom it scrapes.
    return labels(service=status.service, instance_id=status.instance)
