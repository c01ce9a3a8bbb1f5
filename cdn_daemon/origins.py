"""Which requests of web pages a service takes: none that another site's page could make. Pure.

What listens on loopback is reached by every browser of this host, and so by every
page that is open in one. Such a page can send a POST, or open a WebSocket, without
being asked; the browser then says its Origin. It can have its own name point to this
host (DNS rebinding), and then read as well; the Host header then bears that name.
Clients that are no browsers send no Origin, and the address for a Host: for them
nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

ANY = "*"
ALWAYS = frozenset({"/livez", "/readyz"})
"""Balancers ask these under names of their own, and there is nothing to learn."""
_HOST = re.compile(r"(\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(:\d{1,5})?")
_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|::1")
_LOCAL = re.compile(r"[a-z0-9_-]+(:\d{1,5})?")
"""A name without a dot: of this network, and of no site's."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a request is not taken."""

    status: int
    what: str
    value: str
    limit: str
    next: str


def is_own_name(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this host; its port does not matter, as it may have been forwarded."""
    match = _HOST.fullmatch(host.lower())
    name = (match["v6"] or match["name"]) if match else None
    return name is not None and (_LOOPBACK.fullmatch(name) is not None or name in names)


def refusal(
    headers: Iterable[tuple[bytes, bytes]],
    *,
    method: str,
    path: str,
    connected: str,
    hosts: Collection[str],
    origins: Collection[str],
) -> Refused | None:
    """Why a request is not taken; None if it is.

    ``method`` is empty for a WebSocket; ``connected`` the address that was connected to. ``hosts`` are
    names that the service answers to besides loopback, ``origins`` those whose pages may change something
    besides its own; ANY among them is everybody.
    """
    asked: list[str] = []
    own: list[str] = []
    origin: str | None = None
    for name, value in headers:
        if name == b"host":
            asked.append(value.decode("latin-1").lower())
        elif name == b"x-forwarded-host":  # no page of another site can send it without being asked first
            own.append(value.decode("latin-1").lower())
        elif name == b"origin":
            origin = value.decode("latin-1").lower()
    if path in ALWAYS:
        return None
    # Beyond loopback a name that points here gives nobody more than the address.
    if ANY not in hosts and _LOOPBACK.fullmatch(connected):
        for host in asked:
            if not is_own_name(host, hosts) and not _LOCAL.fullmatch(host):
                return Refused(
                    status=421,
                    what="cannot answer under this name",
                    value=host[:200],
                    limit="a loopback address, a name without a dot, or one in CDN_HOSTS",
                    next="use http://127.0.0.1, or name it in CDN_HOSTS",
                )
    if origin is None or method in _READS or ANY in origins or origin in origins:
        return None
    if origin.partition("://")[2] in (*asked, *own):
        return None
    return Refused(
        status=403,
        what="cannot take this from another site's page",
        value=origin[:200],
        limit=f"the Origin of {(own or asked or ['this host'])[-1][:200]}, or none",
        next="send no Origin header, or have the service declare this one",
    )
