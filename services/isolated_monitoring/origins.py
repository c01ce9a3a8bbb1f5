"""Which requests of web pages the monitor takes: those that every service takes. Pure.

The rule is cdn_daemon/origins.py's, which is not imported; a test holds that both
say the same. Beyond it: a ping changes something by GET too,
which an image of any page can send, without an Origin; browsers then tell by
Sec-Fetch-Site whose page it was.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from services.isolated_monitoring.web import RefusedError

ANY = "*"
ALWAYS = frozenset({"/livez", "/readyz"})
_HOST = re.compile(r"(\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9_.-]+))(:\d{1,5})?")
_LOOPBACK = re.compile(r"(.+\.)?localhost|127(\.\d{1,3}){3}|::1")
_LOCAL = re.compile(r"[a-z0-9_-]+(:\d{1,5})?")
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def check(
    headers: Mapping[str, str], *, method: str, path: str, connected: str, hosts: Collection[str], is_ping: bool
) -> None:
    """Raises RefusedError: 421 for a name that is not this host's, 403 for what another site's page has sent.

    ``connected`` is the address that was connected to, ``hosts`` the names of CDN_HOSTS.
    """
    if path in ALWAYS:
        return
    host = headers.get("host")
    # Beyond loopback a name that points here gives nobody more than the address.
    if host is not None and ANY not in hosts and _LOOPBACK.fullmatch(connected) and not _is_known(host.lower(), hosts):
        raise RefusedError(
            421,
            "cannot answer under this name",
            value=host[:200],
            limit="a loopback address, a name without a dot, or one in CDN_HOSTS",
            next="use http://127.0.0.1, or name it in CDN_HOSTS",
        )
    if method in _READS and not is_ping:
        return
    origin = headers.get("origin")
    if origin is None and not (is_ping and headers.get("sec-fetch-site") in ("cross-site", "same-site")):
        return
    own = [headers[name].lower() for name in ("host", "x-forwarded-host") if name in headers]
    if origin is None or origin.lower().partition("://")[2] not in own:
        raise RefusedError(
            403,
            "cannot take this from another site's page",
            value=(headers["sec-fetch-site"] if origin is None else origin)[:200],
            limit=f"the Origin of {(own or ['this host'])[-1][:200]}, or none",
            next="send no Origin header",
        )


def _is_known(host: str, hosts: Collection[str]) -> bool:
    match = _HOST.fullmatch(host)
    name = (match["v6"] or match["name"]) if match else None
    if name is not None and (_LOOPBACK.fullmatch(name) or name in hosts):
        return True
    return _LOCAL.fullmatch(host) is not None
