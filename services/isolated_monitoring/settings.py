"""What one process is told: CDN_* of its environment, and a file of targets and channels. Nothing is opened here."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.isolated_monitoring.target import Expect, Kind, Target

NAME = "cdn-isolated-monitoring"
MODES = ("off", "shadow", "on")
CONFIG_NAME = "isolated-monitoring.toml"
ALERTS_NAME = "isolated-monitoring-alerts.jsonl"
TARGETS_MAX = 1000
MAX_SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path holds 108 bytes with its closing NUL, unix(7)."""

_INSTANCE = re.compile(r"[^\W_][^\s/:\x00-\x1f\x7f]*")
_HOST_NAME = re.compile(r"[a-z0-9_.:-]+")
_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@/ -]{0,99}")
_YES, _NO = ("1", "yes", "true", "on"), ("", "0", "no", "false", "off")


class SettingError(ValueError):
    """A setting that cannot be; the text names it, its value and what it may be."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Where alerts go: exactly one of the three."""

    command: tuple[str, ...] = ()
    """argv, without a shell; it gets the alert as JSON on its standard input."""
    webhook: str = ""
    """The alert is POSTed there as JSON."""
    file: str = ""
    """The alert is appended as a line of JSON."""
    timeout_s: float = 10.0

    @property
    def name(self) -> str:
        """As it is known in the store and to people."""
        return f"command {self.command[0]}" if self.command else f"webhook {self.webhook}" if self.webhook else "file"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One process's settings; each field's docstring names its variable."""

    run_dir: Path
    """CDN_RUN_DIR"""
    instance: str = NAME
    """CDN_INSTANCE"""
    host: str = "127.0.0.1"
    """CDN_HOST; loopback, unless CDN_ALLOW_PUBLIC=yes"""
    hosts: frozenset[str] = frozenset()
    """CDN_HOSTS: names by which this host is asked, besides loopback; ``*``: any"""
    port: int
    """CDN_PORT; 0 lets the system choose"""
    mode: str = "on"
    """CDN_OODA"""
    adopt_orphans: bool = False
    """CDN_ORPHANS=adopt"""
    every_s: float = 1.0
    """CDN_ISOLATED_EVERY_S: from one probe of a target to the next, as long as the loop does not change it"""
    realert_s: float = 0.0
    """``realert_s`` of the file: an incident that lasts is told again this often; 0: never"""
    settle_s: float = 5.0
    """``settle_s`` of the file: how long all of an incident has to be well until it is over; doubles with relapses"""
    targets: tuple[Target, ...] = ()
    channels: tuple[Channel, ...] = ()

    @property
    def state(self) -> Path:
        """Where this instance keeps what must outlive it."""
        return self.run_dir / "state" / self.instance

    @property
    def token(self) -> Path:
        """What whoever changes something by HTTP has to know."""
        return self.run_dir / f"{self.instance}.token"


def default_run_dir(environ: Mapping[str, str]) -> Path:
    """The same rule as everybody's (bus/endpoints.py, which is not imported; a test holds that they agree)."""
    if configured := environ.get("CDN_RUN_DIR"):
        return Path(configured).absolute()
    if Path("supervisord.conf").is_file():
        return Path("run").absolute()
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime).absolute() / "cdn"
    return Path("/run/cdn") if os.geteuid() == 0 else Path("run").absolute()


def read_settings(environ: Mapping[str, str], *, port: int) -> Settings:
    """The settings of this process; raises SettingError at the first that cannot be.

    It listens on that port, unless it is told another.
    """
    run_dir = default_run_dir(environ)
    longest = len(os.fsencode(run_dir / "supervisor.sock.1234567"))
    if longest > MAX_SOCKET_PATH_BYTES:
        raise SettingError(
            f"cannot use run directory {run_dir}: socket paths in it would have {longest} bytes, the limit is "
            f"{MAX_SOCKET_PATH_BYTES}; set CDN_RUN_DIR to a shorter path"
        )
    instance = environ.get("CDN_INSTANCE") or NAME
    if not _INSTANCE.fullmatch(instance) or not instance.isprintable() or len(instance.encode()) > 100:
        raise SettingError(
            f"cannot use CDN_INSTANCE={instance:.80}: it must be of letters, digits and the like, without blanks, "
            f"'/' and ':', at most 100 bytes"
        )
    told = environ.get("CDN_ISOLATED_CONFIG", "")
    path = Path(told) if told else run_dir / CONFIG_NAME
    content = _load(path, must_exist=bool(told))
    return Settings(
        run_dir=run_dir,
        instance=instance,
        host=_host(environ),
        hosts=_hosts(environ),
        port=int(_number(environ, "CDN_PORT", port, 0, 65535, whole=True)),
        mode=_word(environ, "CDN_OODA", "on", MODES),
        adopt_orphans=_word(environ, "CDN_ORPHANS", "replace", ("replace", "adopt")) == "adopt",
        every_s=_number(environ, "CDN_ISOLATED_EVERY_S", 1.0, 0.2, 60),
        realert_s=_of_file(path, content, "realert_s", 0.0, 0, 31536000),
        settle_s=_of_file(path, content, "settle_s", 5.0, 0.2, 300),
        targets=_targets(path, content),
        channels=(*_channels(path, content), *_told_channels(environ), Channel(file=str(run_dir / ALERTS_NAME))),
    )


def _number(
    environ: Mapping[str, str], key: str, default: float, least: float, most: float, *, whole: bool = False
) -> float:
    text = environ.get(key)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most or (whole and value != int(value)):
        raise SettingError(f"cannot use {key}={text:.80}: it must be a number from {least:g} to {most:g}")
    return value


def _word(environ: Mapping[str, str], key: str, default: str, words: tuple[str, ...]) -> str:
    text = environ.get(key) or default
    if text not in words:
        raise SettingError(f"cannot use {key}={text:.80}: it must be one of {', '.join(words)}")
    return text


def _host(environ: Mapping[str, str]) -> str:
    text = environ.get("CDN_HOST") or "127.0.0.1"
    import ipaddress  # here, as few set CDN_HOST: 2 ms of every start

    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise SettingError(f"cannot use CDN_HOST={text:.80}: it must be an IP address, such as 127.0.0.1") from error
    public = _word(
        {"CDN_ALLOW_PUBLIC": environ.get("CDN_ALLOW_PUBLIC", "").lower()}, "CDN_ALLOW_PUBLIC", "", _YES + _NO
    )
    if not address.is_loopback and public not in _YES:
        raise SettingError(
            f"cannot listen on CDN_HOST={text}: that is no loopback address, and nothing here encrypts; put a TLS "
            f"proxy in front, or set CDN_ALLOW_PUBLIC=yes"
        )
    return text


def _hosts(environ: Mapping[str, str]) -> frozenset[str]:
    names = environ.get("CDN_HOSTS", "").lower().replace(",", " ").split()
    for name in names:
        if name != "*" and not _HOST_NAME.fullmatch(name):
            raise SettingError(f"cannot use CDN_HOSTS={name:.80}: it must be names such as www.example.com, or *")
    return frozenset(names)


def _load(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if must_exist:
            raise SettingError(f"cannot read CDN_ISOLATED_CONFIG={path}: there is no such file") from None
        return {}
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}") from error
    import tomllib  # here, as many have no such file: 8 ms of every start

    try:
        read = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot use {path}: {error}") from error
    _known(path, read, "the file", {"realert_s", "settle_s", "target", "alert"})
    return read


def _known(path: Path, content: Mapping[str, Any], where: str, keys: set[str]) -> None:
    if unknown := sorted(set(content) - keys):
        raise SettingError(f"cannot use {path}: {where} has the key {unknown[0]}; known are {', '.join(sorted(keys))}")


def _of_file(path: Path, content: Mapping[str, Any], key: str, default: float, least: float, most: float) -> float:
    value = content.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise SettingError(f"cannot use {path}: {key} = {value!r} must be a number from {least:g} to {most:g}")
    return float(value)


def _tables(path: Path, content: Mapping[str, Any], key: str, most: int) -> list[dict[str, Any]]:
    tables = content.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables) or len(tables) > most:
        raise SettingError(f"cannot use {path}: {key} must be at most {most} tables, each begun by [[{key}]]")
    return tables


def _text(path: Path, table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise SettingError(f"cannot use {path}: {key} of {where} must be a text")
    return value


def _texts(path: Path, table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SettingError(f"cannot use {path}: {key} of {where} must be a list of texts")
    return tuple(value)


def _targets(path: Path, content: Mapping[str, Any]) -> tuple[Target, ...]:
    found: dict[str, Target] = {}
    for number, table in enumerate(_tables(path, content, "target", TARGETS_MAX), 1):
        name = _text(path, table, "name", f"target {number}")
        where = f"target {name or number}"
        keys = {"name", "http", "tcp", "unix", "pidfile", "every_s", "timeout_s", "depends_on", "status", "contains"}
        _known(path, table, where, keys)
        if not _TARGET_NAME.fullmatch(name) or name in found:
            raise SettingError(f"cannot use {path}: the name of {where} must be its own, of letters and digits")
        kinds = [Kind(key) for key in ("http", "tcp", "unix", "pidfile") if key in table]
        if len(kinds) != 1:
            raise SettingError(f"cannot use {path}: {where} must have one of http, tcp, unix and pidfile")
        address = _text(path, table, kinds[0].value, where)
        _check_address(path, where, kinds[0], address)
        found[name] = Target(
            name=name,
            kind=kinds[0],
            address=address,
            every_s=_of_file(path, table, "every_s", 0.0, 0, 3600) or None,
            timeout_s=_of_file(path, table, "timeout_s", 1.0, 0.05, 60),
            depends_on=_texts(path, table, "depends_on", where),
            expect=Expect(
                status=int(_of_file(path, table, "status", 0, 0, 599)), contains=_text(path, table, "contains", where)
            ),
            configured=True,
        )
    return tuple(found.values())


def _check_address(path: Path, where: str, kind: Kind, address: str) -> None:
    try:
        if kind is Kind.HTTP:
            url = urlsplit(address)
            good = url.scheme in ("http", "https") and bool(_sought(url.hostname or "")) and (url.port or 1) > 0
        elif kind is Kind.TCP:
            host, _, port = address.rpartition(":")
            good = bool(_sought(host)) and 0 < int(port) < 65536
        else:
            good = address.startswith("/")
    except ValueError:
        good = False
    if not good or any(character.isspace() or ord(character) < 32 for character in address):
        form = {Kind.HTTP: "http://HOST[:PORT]/PATH", Kind.TCP: "HOST:PORT"}.get(kind, "an absolute path")
        raise SettingError(f"cannot use {path}: {kind.value} = {address!r} of {where} must be {form}")


def _sought(host: str) -> bytes:
    """How a name server is asked for it. Raises ValueError: asyncio would too, and not as an OSError."""
    return host.encode("idna")


def _channels(path: Path, content: Mapping[str, Any]) -> tuple[Channel, ...]:
    found = []
    for number, table in enumerate(_tables(path, content, "alert", 20), 1):
        where = f"alert {number}"
        _known(path, table, where, {"command", "webhook", "file", "timeout_s"})
        command, webhook = _texts(path, table, "command", where), _text(path, table, "webhook", where)
        file = _text(path, table, "file", where)
        if sum(map(bool, (command, webhook, file))) != 1:
            raise SettingError(f"cannot use {path}: {where} must have one of command, webhook and file")
        if webhook:
            _check_address(path, where, Kind.HTTP, webhook)
        timeout_s = _of_file(path, table, "timeout_s", 10.0, 0.1, 60)
        found.append(
            Channel(command=command, webhook=webhook, file=file and str(path.parent / file), timeout_s=timeout_s)
        )
    return tuple(found)


def _told_channels(environ: Mapping[str, str]) -> tuple[Channel, ...]:
    found = []
    if text := environ.get("CDN_ISOLATED_ALERT_COMMAND"):
        try:
            command = tuple(shlex.split(text))
        except ValueError as error:
            raise SettingError(f"cannot use CDN_ISOLATED_ALERT_COMMAND={text:.80}: {error}") from error
        found.append(Channel(command=command))
    if text := environ.get("CDN_ISOLATED_ALERT_WEBHOOK"):
        _check_address(Path("CDN_ISOLATED_ALERT_WEBHOOK"), "the environment", Kind.HTTP, text)
        found.append(Channel(webhook=text))
    return tuple(found)
