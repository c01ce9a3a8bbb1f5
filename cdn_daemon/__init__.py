"""The embedded daemon, and in ``warden`` the plugin inside supervisord.

Floor 2: imports bus, never services or cli. A service's author needs what is named
here. It is loaded on first use, as supervisord imports this package for the
warden alone and must not carry an HTTP server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bus.messages import Band as Band
    from bus.messages import Limits as Limits
    from cdn_daemon.daemon import CDNDaemon as CDNDaemon
    from cdn_daemon.events import EventError as EventError
    from cdn_daemon.health import HealthMonitor as HealthMonitor
    from cdn_daemon.host import run as run
    from cdn_daemon.lifecycle import ExitCode as ExitCode
    from cdn_daemon.lifecycle import LifecycleManager as LifecycleManager
    from cdn_daemon.limits import GiB as GiB
    from cdn_daemon.limits import KiB as KiB
    from cdn_daemon.limits import MiB as MiB
    from cdn_daemon.long_calls import long_call as long_call
    from cdn_daemon.ooda import OodaLoop as OodaLoop
    from cdn_daemon.service import ConfigurationError as ConfigurationError
    from cdn_daemon.service import DeclarationError as DeclarationError
    from cdn_daemon.service import Service as Service
    from cdn_daemon.service import ServiceDaemon as ServiceDaemon
    from cdn_daemon.works import work as work

_HOMES = {
    "Band": "bus.messages",
    "GiB": "cdn_daemon.limits",
    "KiB": "cdn_daemon.limits",
    "Limits": "bus.messages",
    "MiB": "cdn_daemon.limits",
    "CDNDaemon": "cdn_daemon.daemon",
    "ConfigurationError": "cdn_daemon.service",
    "DeclarationError": "cdn_daemon.service",
    "EventError": "cdn_daemon.events",
    "ExitCode": "cdn_daemon.lifecycle",
    "HealthMonitor": "cdn_daemon.health",
    "LifecycleManager": "cdn_daemon.lifecycle",
    "OodaLoop": "cdn_daemon.ooda",
    "Service": "cdn_daemon.service",
    "ServiceDaemon": "cdn_daemon.service",
    "long_call": "cdn_daemon.long_calls",
    "run": "cdn_daemon.host",
    "work": "cdn_daemon.works",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value
