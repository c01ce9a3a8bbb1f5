"""The gateway's own settings: ``CDN_GATEWAY_*`` of the environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cdn_daemon.limits import GiB
from cdn_daemon.settings import SettingError, number

NAME = "gateway-primary"
GUARDED = frozenset({"atlas"})
"""Services that are routed to only where CDN_GATEWAY_EXPOSE names them: who may reach ATLAS may command the fleet."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """What an operator may change; each field's docstring names its variable."""

    instance: str = NAME
    """CDN_INSTANCE"""
    hidden: frozenset[str] = GUARDED | {NAME}
    """Never routed to: the gateway itself, and what is guarded unless CDN_GATEWAY_EXPOSE names it."""
    body_max_bytes: int = 16 * GiB
    """CDN_GATEWAY_MAX_BODY_BYTES: the largest request body"""
    connect_s: float = 2.0
    """CDN_GATEWAY_CONNECT_S: to an instance, until 504"""
    answer_s: float = 60.0
    """CDN_GATEWAY_ANSWER_S: from the end of the request to the head of its answer, until 504"""
    may_block_loopback: bool = False
    """CDN_GATEWAY_BLOCK_LOOPBACK: whether a block of 127.0.0.0/8 or ::1 is obeyed"""
    client_rate_per_s: float = 0.0
    """CDN_GATEWAY_CLIENT_RATE: requests per second of one client; 0: as many as it likes"""
    client_burst: float = 0.0
    """CDN_GATEWAY_CLIENT_BURST: requests that it may send at once; twice the rate by default"""
    stall_s: float = 300.0
    """CDN_GATEWAY_STALL_S: the longest pause within a body, on either side; a stream of events must beat faster"""
    in_flight_max: int = 1024
    """CDN_GATEWAY_IN_FLIGHT: requests and WebSockets that one instance may have at once; beyond that 503, at once"""


def read_gateway_settings(environ: Mapping[str, str]) -> GatewaySettings:
    """The settings of this process; raises SettingError at the first that cannot be."""
    exposed = frozenset(environ.get("CDN_GATEWAY_EXPOSE", "").replace(",", " ").split())
    if unknown := exposed - GUARDED:
        raise SettingError(
            f"cannot use CDN_GATEWAY_EXPOSE={' '.join(sorted(unknown))}: only {', '.join(sorted(GUARDED))} is held "
            f"back by default and can be named there"
        )
    default = GatewaySettings()
    rate_per_s = number(environ, "CDN_GATEWAY_CLIENT_RATE", default.client_rate_per_s, 0, 1_000_000)
    told = environ.get("CDN_GATEWAY_BLOCK_LOOPBACK", "")
    if told not in ("", "yes", "no"):
        raise SettingError(f"cannot use CDN_GATEWAY_BLOCK_LOOPBACK={told}: it must be yes or no")
    return GatewaySettings(
        instance=environ.get("CDN_INSTANCE") or NAME,
        hidden=(GUARDED - exposed) | {NAME},
        body_max_bytes=int(number(environ, "CDN_GATEWAY_MAX_BODY_BYTES", default.body_max_bytes, 0, 1 << 50)),
        connect_s=number(environ, "CDN_GATEWAY_CONNECT_S", default.connect_s, 0.01, 60),
        answer_s=number(environ, "CDN_GATEWAY_ANSWER_S", default.answer_s, 0.01, 86400),
        may_block_loopback=told == "yes",
        client_rate_per_s=rate_per_s,
        client_burst=number(environ, "CDN_GATEWAY_CLIENT_BURST", max(1.0, 2 * rate_per_s), 1, 10_000_000),
        in_flight_max=int(number(environ, "CDN_GATEWAY_IN_FLIGHT", default.in_flight_max, 1, 1_000_000)),
        stall_s=number(environ, "CDN_GATEWAY_STALL_S", default.stall_s, 0.1, 86400),
    )
