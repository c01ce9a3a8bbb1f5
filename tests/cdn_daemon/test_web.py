"""The exposition: what a service measures, as Prometheus reads it."""

from __future__ import annotations

from msgspec.structs import replace

from bus.messages import ServiceMetrics
from cdn_daemon.exposition import exposition
from tests.bus.samples import STATUS


def lines(values: dict[str, float]) -> list[str]:
    """Of the service's own metrics with these values."""
    text = exposition(replace(STATUS, metrics=ServiceMetrics(values=values)))
    assert text.endswith("\n")
    return [line for line in text.splitlines() if "cdn_service" not in line]


def test_own_metrics() -> None:
    """A name with or without labels; each name is described once, whatever labels it comes with."""
    labels = 'service="cdn-data-fabric",instance_id="cdn-data-fabric"'
    assert lines({"rows_total": 2.0, 'up{to="a",by="x-1"}': 1.0, 'up{to="b"}': 0.0}) == [
        "# HELP rows_total See the service's documentation.",
        "# TYPE rows_total counter",
        f"rows_total{{{labels}}} 2.0",
        "# HELP up See the service's documentation.",
        "# TYPE up gauge",
        f'up{{{labels},to="a",by="x-1"}} 1.0',
        f'up{{{labels},to="b"}} 0.0',
    ]


def test_what_would_break_the_format_is_left_out() -> None:
    """Names and labels that are none, injected lines among them."""
    assert lines({"Rows": 1, "a b": 1, 'a{b="\n"}': 1, 'a{b="""}': 1, "a{b}": 1, "a\nb 1": 1, "9a": 1}) == []
