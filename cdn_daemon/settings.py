"""What the environment says of one process: ``CDN_*``, set by hand or in supervisord.conf. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from bus.messages import Limits, OodaMode
from cdn_daemon.backstops import BackstopError, Backstops, read_backstops
from cdn_daemon.claim import Orphans
from cdn_daemon.limits import DIMENSIONS, LimitError, check_limits, merge, parse_band
from cdn_daemon.service import Service

_INSTANCE = re.compile(r"[^\W_][^\s/:\x00-\x1f\x7f]*")
_INSTANCE_BYTES = 100
_NAME = re.compile(r"[a-z0-9_.:-]+")
_YES, _NO = ("1", "yes", "true", "on"), ("", "0", "no", "false", "off")


class SettingError(ValueError):
    """A setting that cannot be; the text names it, its value and what it may be."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One process's settings, with the service's own declarations for defaults."""

    instance: str
    """CDN_INSTANCE"""
    host: str
    """CDN_HOST; loopback, unless CDN_ALLOW_PUBLIC=yes"""
    hosts: frozenset[str]
    """CDN_HOSTS: names by which this host is asked, besides loopback; ``*``: any"""
    port: int
    """CDN_PORT; 0 lets the system choose"""
    drain_s: float
    """CDN_DRAIN_S"""
    limits: Limits
    """CDN_LIMIT_RSS_BYTES and so on, for each dimension of limits.py: ``SOFT[:HARD[:SECONDS]]``"""
    ooda_mode: OodaMode
    """CDN_OODA"""
    orphans: Orphans
    """CDN_ORPHANS"""
    backstops: Backstops
    """CDN_RLIMIT_DATA and so on, see backstops.py"""


def read_settings(service: Service, environ: Mapping[str, str]) -> Settings:
    """The settings of this process; raises SettingError at the first that cannot be."""
    return Settings(
        instance=_instance(environ, service.name),
        host=_host(environ),
        hosts=_hosts(environ),
        port=int(number(environ, "CDN_PORT", service.port, 0, 65535)),
        drain_s=number(environ, "CDN_DRAIN_S", service.drain_s, 0.1, 3600),
        limits=_limits(service.limits, environ),
        ooda_mode=OodaMode(_word(environ, "CDN_OODA", "on", tuple(OodaMode))),
        backstops=_backstops(environ),
        orphans="adopt" if _word(environ, "CDN_ORPHANS", "replace", get_args(Orphans)) == "adopt" else "replace",
    )


def _instance(environ: Mapping[str, str], default: str) -> str:
    """It becomes part of file names."""
    text = environ.get("CDN_INSTANCE") or default
    # What is no UTF-8 is half surrogates here, and not printable.
    if not _INSTANCE.fullmatch(text) or not text.isprintable() or len(text.encode()) > _INSTANCE_BYTES:
        rule = (
            f"it must be of letters, digits and the like, without blanks, '/' and ':', at most {_INSTANCE_BYTES} bytes"
        )
        raise SettingError(f"cannot use CDN_INSTANCE={text:.80}: {rule}")
    return text


def _limits(declared: Limits, environ: Mapping[str, str]) -> Limits:
    known = {f"CDN_LIMIT_{dimension.upper()}" for dimension in DIMENSIONS}
    for key in environ:
        if key.startswith("CDN_LIMIT_") and key not in known:
            raise SettingError(f"cannot use {key}: it must be one of {', '.join(sorted(known))}")
    limits = declared
    for dimension in DIMENSIONS:
        key = f"CDN_LIMIT_{dimension.upper()}"
        if text := environ.get(key):
            try:
                limits = merge(limits, Limits(**{dimension: parse_band(text)}))
                check_limits(limits)
            except LimitError as error:
                raise SettingError(f"cannot use {key}={text}: {error}") from error
    return limits


def _backstops(environ: Mapping[str, str]) -> Backstops:
    try:
        return read_backstops(environ)
    except BackstopError as error:
        raise SettingError(str(error)) from error


def number(environ: Mapping[str, str], key: str, default: float, least: float, most: float) -> float:
    """The variable as a number within its limits, or the default where it is not set; raises SettingError."""
    text = environ.get(key)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most or (key == "CDN_PORT" and value != int(value)):
        raise SettingError(f"cannot use {key}={text}: it must be a number from {least:g} to {most:g}")
    return value


def _word(environ: Mapping[str, str], key: str, default: str, words: tuple[str, ...]) -> str:
    text = environ.get(key) or default
    if text not in words:
        raise SettingError(f"cannot use {key}={text}: it must be one of {', '.join(words)}")
    return text


def _hosts(environ: Mapping[str, str]) -> frozenset[str]:
    names = environ.get("CDN_HOSTS", "").lower().replace(",", " ").split()
    for name in names:
        if name != "*" and not _NAME.fullmatch(name):
            raise SettingError(f"cannot use CDN_HOSTS={name:.80}: it must be names such as www.example.com, or *")
    return frozenset(names)


def _host(environ: Mapping[str, str]) -> str:
    text = environ.get("CDN_HOST") or "127.0.0.1"
    import ipaddress  # here, as few set CDN_HOST: 2 ms of every start

    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise SettingError(f"cannot use CDN_HOST={text}: it must be an IP address, such as 127.0.0.1") from error
    public = environ.get("CDN_ALLOW_PUBLIC", "").lower()
    if public not in _YES + _NO:
        raise SettingError(f"cannot use CDN_ALLOW_PUBLIC={public}: it must be yes or no")
    if not address.is_loopback and public not in _YES:
        raise SettingError(
            f"cannot listen on CDN_HOST={text}: that is no loopback address, and nothing here encrypts or asks who "
            f"it is; put a TLS proxy in front, or set CDN_ALLOW_PUBLIC=yes"
        )
    return text
