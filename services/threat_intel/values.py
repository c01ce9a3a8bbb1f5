"""What a feed lists and a client asks for: an address, a network, a name, a URL, a hash. Nothing here has effects.

Every value has one key, however it was written: ``hxxps://Evil[.]example:443`` is ``https://evil.example/``,
``::ffff:192.0.2.1`` is ``192.0.2.1``, and an upper-case hash is a lower-case one.
"""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from socket import AF_INET, inet_pton
from typing import NamedTuple
from urllib.parse import urlsplit


class Kind(StrEnum):
    """What a value is, in STIX' words; a network is of its addresses' kind."""

    IPV4 = "ipv4-addr"
    IPV6 = "ipv6-addr"
    DOMAIN = "domain-name"
    URL = "url"
    FILE = "file"


class Value(NamedTuple):
    """A value, and whether it is a network."""

    kind: Kind
    key: str
    is_network: bool = False


class NoValue(ValueError):
    """What is none of these; the text says why."""


HASHES = {32: "MD5", 40: "SHA-1", 64: "SHA-256", 128: "SHA-512"}
"""By number of digits."""
_HEX = re.compile(r"[0-9a-fA-F]+")
_LABELS = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+(?:[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)")
_MEANT_AS_NETWORK = re.compile(r"[0-9.]+/[0-9.]+|[0-9a-fA-F:.]+:[0-9a-fA-F:.]*/\d+")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_DEFANGED = (
    (re.compile(r"^h(?:xx|XX|\*\*)p(s?)(?=\[?:|\[://)", re.IGNORECASE), r"http\1"),
    (re.compile(r"^fxp(?=\[?:)", re.IGNORECASE), "ftp"),
    (re.compile(r"\[:\]|\[://\]"), lambda found: found[0][1:-1]),
    (re.compile(r"\s?[\[({](?:\.|dot)[\])}]\s?", re.IGNORECASE), "."),
)
_PORTS = {"http": "80", "https": "443", "ftp": "21"}


def refanged(text: str) -> str:
    """The text as it was before somebody made it safe to click on: ``hxxp://a[.]b`` → ``http://a.b``."""
    for pattern, replacement in _DEFANGED:
        text = pattern.sub(replacement, text)
    return text


def read(text: str) -> Value:
    """The value that the text says; raises NoValue."""
    try:  # most are this, and it is ten times as quick as what follows
        inet_pton(AF_INET, text)
        return Value(Kind.IPV4, text)
    except (OSError, ValueError, UnicodeError):
        pass
    text = text.strip()
    if len(text) in HASHES and _HEX.fullmatch(text):
        return Value(Kind.FILE, text.lower())
    text = refanged(text)
    if _SCHEME.match(text):
        return Value(Kind.URL, _url(text))
    if text[:1] == "[" and text[-1:] == "]":
        text = text[1:-1]
    elif text.count(":") == 1 and text.rpartition(":")[2].isdigit():  # a host and its port, as some lists have it
        text = text.partition(":")[0]
    if ":" in text or text[-1:].isdigit() or "/" in text:
        try:
            return _address(text)
        except ValueError:
            if "/" in text and not _MEANT_AS_NETWORK.fullmatch(text):
                return Value(Kind.URL, _url("http://" + text))
    return Value(Kind.DOMAIN, domain(text))


def _address(text: str) -> Value:
    if "/" not in text:
        return of_address(ip_address(text))
    network = ip_network(text, strict=False)
    if isinstance(network, IPv6Network) and (mapped := network.network_address.ipv4_mapped) and network.prefixlen >= 96:
        network = ip_network(f"{mapped}/{network.prefixlen - 96}")
    if network.prefixlen == network.max_prefixlen:
        return of_address(network.network_address)
    return Value(Kind.IPV4 if network.version == 4 else Kind.IPV6, str(network), True)


def of_address(address: IPv4Address | IPv6Address) -> Value:
    """The value of an address; raises NoValue for one with a zone, which means nothing elsewhere."""
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise NoValue(f"{address} has a zone")
        if address.ipv4_mapped is None:
            return Value(Kind.IPV6, str(address))
        address = address.ipv4_mapped
    return Value(Kind.IPV4, str(address))


def domain(text: str) -> str:
    """A name as DNS has it: lower case, in ASCII, without its last dot, of two labels at least. Raises NoValue."""
    name = text.rstrip(".").lower()
    if name.startswith("*."):
        name = name[2:]  # a listed name covers those below it anyway
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise NoValue("it is no name that DNS could have") from error
    if len(name) > 253 or not _LABELS.fullmatch(name):
        raise NoValue("it is no address, network, domain, URL or hash")
    return name


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise NoValue(f"it is no URL: {error}") from error
    scheme = parts.scheme.lower()
    host = _host(parts.hostname or "")
    shown = f"[{host}]" if ":" in host else host
    if port is not None and str(port) != _PORTS.get(scheme):
        shown += f":{port}"
    user = parts.netloc.rpartition("@")[0]
    query = f"?{parts.query}" if parts.query else ""
    return f"{scheme}://{user + '@' if user else ''}{shown}{parts.path or '/'}{query}"


def _host(text: str) -> str:
    try:
        return of_address(ip_address(text)).key
    except ValueError:
        return domain(text)


def host_of(url: str) -> Value:
    """The address or the name in a URL's key."""
    host = urlsplit(url).hostname or ""
    try:
        return of_address(ip_address(host))
    except ValueError:
        return Value(Kind.DOMAIN, host)


def suffixes(name: str) -> list[str]:
    """The name, and what it lies below, down to two labels: a.b.c.d, b.c.d, c.d."""
    found = [name]
    while name.count(".") > 1:
        name = name.partition(".")[2]
        found.append(name)
    return found


def bounds(key: str) -> tuple[bytes, bytes]:
    """First and last address of an address's or a network's key, as 16 bytes, IPv4 as mapped into IPv6."""
    network = ip_network(key)
    prefix = b"\0" * 10 + b"\xff\xff" if network.version == 4 else b""
    return prefix + network[0].packed, prefix + network[-1].packed
