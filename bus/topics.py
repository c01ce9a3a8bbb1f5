"""Topics of the feed. Pure.

A subscription is a prefix, so every topic ends in a separator: ``status/web-1/``
does not match ``status/web-10/``.
"""

from __future__ import annotations

from bus.messages import DaemonStatus, Event, NodeStatus, Telemetry

STATUS = "status/"
NODE = "node/"
EVENT = "event/"


def status_topic(instance: str) -> str:
    """The topic of this instance's statuses."""
    return f"{STATUS}{instance}/"


def topic_of(message: Telemetry) -> str:
    """The one topic under which this message may be published."""
    match message:
        case DaemonStatus():
            return status_topic(message.instance)
        case NodeStatus():
            return f"{NODE}{message.host}/"
        case Event():
            return f"{EVENT}{message.instance}/"
