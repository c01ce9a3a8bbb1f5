"""What becomes of headers on their way through, by RFC 9110 §7.6 and RFC 9112 §6. Pure.

Names are lower case, as ASGI has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.gateway.errors import Refusal

Headers = Iterable[tuple[bytes, bytes]]
HeaderList = list[tuple[bytes, bytes]]

HEADERS_MAX = 200
HEADERS_MAX_BYTES = 64 << 10
"""Sum of names and values; the servers behind have limits of 8 to 64 KiB."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""RFC 9110 §7.6.1, with those of RFC 2616 §13.5.1; trailers themselves are dropped too."""

_OURS = frozenset({b"host", b"content-length", b"expect", b"forwarded"})
_SPOOFED = re.compile(rb"x[-_](forwarded|real)([-_].*)?")  # '_' too: CGI and WSGI take it for '-'
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_AUTHORITY = re.compile(rb"[A-Za-z0-9._~:\[\]%!$&'()*+,;=-]{1,255}")
_DIGITS = re.compile(rb"[0-9]{1,18}")


@dataclass(frozen=True)
class Body:
    """How a request's body is framed; length None: chunked."""

    length: int | None


def nominated(headers: Headers) -> frozenset[bytes]:
    """The headers that Connection names, which end at this hop."""
    names: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            names.update(token.strip().lower() for token in value.split(b","))
    return frozenset(names)


def check(headers: HeaderList, *, http_version: str) -> bytes:
    """See that the request's headers are within limits and mean one thing; return its Host.

    Raises Refusal. The server's parser has refused what is malformed; this holds
    without it, too.
    """
    size_bytes = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > HEADERS_MAX:
        raise Refusal(431, "cannot forward so many headers", value=len(headers), limit=HEADERS_MAX)
    if size_bytes > HEADERS_MAX_BYTES:
        raise Refusal(431, "cannot forward headers of this size in bytes", value=size_bytes, limit=HEADERS_MAX_BYTES)
    if has_control(headers):
        raise Refusal(400, "cannot forward a header with a control character in it")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and http_version != "1.0"):
        raise Refusal(400, "cannot forward a request without exactly one Host header", value=len(hosts), limit=1)
    if hosts and not _AUTHORITY.fullmatch(hosts[0]):
        raise Refusal(400, "cannot forward a request with this Host", value=hosts[0].decode("latin-1")[:100])
    return hosts[0] if hosts else b""


def body_of(headers: HeaderList) -> Body | None:
    """How the request's body is framed; None if it has none. Raises Refusal where that is in doubt."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if codings and lengths:
        raise Refusal(400, "cannot forward a request with both Content-Length and Transfer-Encoding")
    if codings:
        if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            raise Refusal(400, "cannot forward this Transfer-Encoding", value=_text(codings), limit="chunked")
        return Body(length=None)
    if not lengths:
        return None
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        raise Refusal(400, "cannot forward this Content-Length", value=_text(lengths), limit="one number")
    return Body(length=int(lengths[0]))


def _text(values: list[bytes]) -> str:
    return b", ".join(values).decode("latin-1")[:100]


@dataclass(frozen=True, kw_only=True)
class Hop:
    """What the next server is told of this one and of the client."""

    client: str | None
    scheme: str
    host: bytes
    prefix: bytes
    http_version: str
    pseudonym: bytes


def request_headers(headers: HeaderList, hop: Hop) -> HeaderList:
    """The headers for the instance, without Host and framing.

    Whatever the client says of forwarding is dropped: only what this server has
    seen for itself is passed on.
    """
    ends_here = nominated(headers) | HOP_BY_HOP | _OURS
    kept = [
        (name, value)
        for name, value in headers
        if name not in ends_here and not (name[:1] == b"x" and _SPOOFED.fullmatch(name))
    ]
    if hop.client is not None:
        kept.append((b"x-forwarded-for", hop.client.encode("latin-1")))
    kept.append((b"x-forwarded-proto", hop.scheme.encode()))
    if hop.host:
        kept.append((b"x-forwarded-host", hop.host))
    kept.append((b"x-forwarded-prefix", hop.prefix))
    kept.append((b"via", hop.http_version.encode() + b" " + hop.pseudonym))
    return kept


def is_loop(headers: Headers, pseudonym: bytes) -> bool:
    """Whether the request has been through this gateway before."""
    if not any(name == b"via" for name, _ in headers):
        return False
    hops = [hop.split() for name, value in headers if name == b"via" for hop in value.split(b",")]
    return any(len(hop) > 1 and hop[1] == pseudonym for hop in hops)


def response_headers(headers: HeaderList, *, status: int, authority: bytes, prefix: bytes, via: bytes) -> HeaderList:
    """The headers for the client.

    Date is the server's own to write. A Location that names the instance itself
    is turned into the path that leads there through this gateway.
    """
    ends_here = nominated(headers) | HOP_BY_HOP
    bodiless = status in (204, 304)  # Content-Length is forbidden in the one and needless in the other
    kept: HeaderList = []
    for name, value in headers:
        if name in ends_here or name == b"date" or (bodiless and name == b"content-length"):
            continue
        kept.append((name, through(value, authority, prefix) if name == b"location" else value))
    kept.append((b"via", b"1.1 " + via))
    return kept


def through(location: bytes, authority: bytes, prefix: bytes) -> bytes:
    """``http://INSTANCE/path`` → ``/service/path``; anything else is left as it is."""
    base = b"http://" + authority
    if location == base:
        return prefix + b"/"
    if location.startswith((base + b"/", base + b"?")):
        rest = location[len(base) :]
        return prefix + (rest if rest.startswith(b"/") else b"/" + rest)
    return location


def has_control(headers: Headers) -> bool:
    """Whether any value holds a control character, which no server may pass on."""
    return _CONTROL.search(b"".join(value for _, value in headers)) is not None
