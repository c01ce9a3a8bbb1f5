"""What is watched, and what is known of it: values that everybody here shares. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

SUPERVISORD = "supervisord"
ATLAS = "atlas"
HOST = "host"
"""Root cause of what befalls most of the fleet at once; not probed."""


class Kind(Enum):
    """How a target is looked at."""

    SUPERVISORD = "supervisord"
    SERVICE = "service"
    """A process of supervisord's, and the HTTP server that it has, if it has one."""
    HTTP = "http"
    TCP = "tcp"
    UNIX = "unix"
    PIDFILE = "pidfile"


@dataclass(frozen=True, kw_only=True)
class Expect:
    """What a good answer is."""

    status: int = 0
    """0: any below 400."""
    contains: str = ""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that is watched."""

    name: str
    kind: Kind
    address: str = ""
    """URL, HOST:PORT, or path; empty where it is found while running."""
    every_s: float | None = None
    """None: as the loop says."""
    timeout_s: float = 1.0
    patience_s: float = 0.0
    """How long evidence against it has to last, besides being beyond doubt."""
    depends_on: tuple[str, ...] = ()
    """Whose failure would explain this one's."""
    within: str = ""
    """The service whose process this lives in: when that is down or on purpose away, so is this."""
    expect: Expect = field(default_factory=Expect)
    configured: bool = False
    """By the operator's file, not found."""


class Condition(Enum):
    """How a target is."""

    UNKNOWN = "unknown"
    """Nothing has been learned yet, or nobody who could tell answers."""
    UP = "up"
    SUSPECT = "suspect"
    """There is evidence, and not enough of it."""
    DOWN = "down"
    STARTING = "starting"
    STOPPED = "stopped"
    """It is away because somebody wanted that."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A target as it is judged now."""

    name: str
    condition: Condition
    reason: str = ""
    since_s: float = 0.0
    """Since when the evidence speaks; monotonic."""
    depends_on: tuple[str, ...] = ()
    within: str = ""
    is_probed: bool = True
    """False for a dead man's switch, whose silence says nothing of the host."""
