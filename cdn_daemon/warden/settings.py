"""What supervisord.conf says to the warden of each program.

In ``[program:x]``, beside supervisor's own keys, which ignores these; the same
keys in ``[rpcinterface:cdn]`` are the default for all programs:

=================  =======  ==================================================================================
key                default  meaning
=================  =======  ==================================================================================
``type``           auto     ``notify``: it sends READY=1, and is STARTING until then. ``simple``: it does not,
                            and is treated as stock supervisord does. ``auto``: notify if its command is one
                            of this project's (``python -m services.…``, ``cdn-run``), else simple until it has
                            sent READY=1 for the first time, and notify from its next start on. With another
                            user= always simple: the run directory, and its notify socket in it, are private
``depends_on``              programs that must be ready before this one is started, separated by commas
``ready_s``        30       how long a program of type notify may take to READY=1
``watchdog_s``     auto     silence (no WATCHDOG=1) after which it is judged, in seconds; 0: never. It is told so
                            by WATCHDOG_USEC. auto: 0.5, for this project's programs from READY=1 on, for others
                            from their first WATCHDOG=1 on: who never beats is never judged. Other than 0, a
                            program may change it by a WATCHDOG_USEC= of its own. Of type simple it is 0
``restart_budget`` 5        starts in 60 s; the next failure quarantines it
=================  =======  ==================================================================================

A value that makes no sense is refused when supervisord starts, naming file and key.
"""

from __future__ import annotations

import configparser
import glob
import math
import os
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from cdn_daemon.warden.judge import DEFAULT_SILENCE_S, LEAST_SILENCE_S
from cdn_daemon.warden.policy import Limits

_NUMBERS = (("numprocs_start", "0"), ("numprocs", "1"))
_NUMPROCS_MOST = 10_000
_SECTIONS = ("program:", "eventlistener:", "fcgi-program:")


class SettingsError(ValueError):
    """supervisord.conf says something impossible; the text names the section, key and value."""


class Settings(Struct, frozen=True):
    """What the warden is told of one program."""

    notifies: bool = False
    learns: bool = False
    """It is nobody's word that it does not notify: once it has, it does."""
    depends_on: tuple[str, ...] = ()
    ready_s: float = 30.0
    watchdog_s: float = 0.0
    """0.0: its silence is never judged."""
    must_beat: bool = False
    """It is judged from READY=1 on; else from its first WATCHDOG=1."""
    limits: Limits = field(default_factory=Limits)


KEYS = ("type", "depends_on", "ready_s", "watchdog_s", "restart_budget")


def settings_of(
    name: str, command: str, own: Mapping[str, str], default: Mapping[str, str], uid: int | None = None
) -> Settings:
    """The settings of one program: its own keys before the defaults of ``[rpcinterface:cdn]``; uid is its ``user=``.

    Raises SettingsError.
    """
    where = f"program {name}"
    told = {**default, **own}
    kind = told.get("type", "auto").strip()
    if kind not in ("auto", "notify", "simple"):
        raise SettingsError(f"cannot use type={kind} of {where}: it must be notify, simple or auto")
    if uid not in (None, os.geteuid()):
        if own.get("type", "").strip() == "notify":
            raise SettingsError(
                f"cannot use type=notify of {where} with its user=: the run directory is private, so it cannot reach "
                f"its notify socket; leave user= out, or use type=simple"
            )
        kind = "simple"
    budget = _number(where, "restart_budget", told.get("restart_budget", "5"), at_least=1)
    if budget != int(budget):
        raise SettingsError(f"cannot use restart_budget={budget} of {where}: it must be a whole number")
    is_ours = _is_ours(command)
    watchdog = told.get("watchdog_s", "auto").strip()
    watchdog_s = DEFAULT_SILENCE_S if watchdog == "auto" else _number(where, "watchdog_s", watchdog, at_least=0.0)
    if 0.0 < watchdog_s < LEAST_SILENCE_S:
        raise SettingsError(
            f"cannot use watchdog_s={watchdog} of {where}: it must be {LEAST_SILENCE_S:g} or more, or 0 for never"
        )
    notifies = kind == "notify" or (kind == "auto" and is_ours)
    if kind == "simple" and watchdog_s and watchdog != "auto" and "watchdog_s" in own:
        raise SettingsError(f"cannot use watchdog_s={watchdog} of {where}: its type is simple, it sends no WATCHDOG=1")
    return Settings(
        notifies=notifies,
        learns=kind == "auto",
        watchdog_s=0.0 if kind == "simple" else watchdog_s,
        must_beat=notifies and (is_ours or watchdog != "auto"),
        depends_on=tuple(part for part in told.get("depends_on", "").replace(",", " ").split() if part),
        ready_s=_number(where, "ready_s", told.get("ready_s", "30"), at_least=0.1),
        limits=Limits(budget=int(budget)),
    )


def check_defaults(options: Mapping[str, str]) -> None:
    """SettingsError if ``[rpcinterface:cdn]`` has keys that mean nothing."""
    for key in options:
        if key not in KEYS:
            raise SettingsError(f"cannot use {key} in [rpcinterface:cdn]: known are {', '.join(KEYS)}")
    settings_of("[rpcinterface:cdn]", "", {}, options)


def read(conf: Path | None, expansions: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Process name → the warden's keys of its section, from supervisord.conf and the files it includes.

    supervisor keeps no key that it does not know, so the file is read once more.
    expansions are those of ``%(…)s`` beside the ones that a section has itself. Raises SettingsError.
    """
    if conf is None:
        return {}
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    here = {"host_node_name": platform.node(), **expansions, "here": str(conf.parent)}
    try:
        parser.read(conf)
        for pattern in parser.get("include", "files", fallback="").split():
            parser.read(sorted(glob.glob(os.path.join(conf.parent, _expand(pattern, here)))))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {conf}: {error}") from error
    found: dict[str, dict[str, str]] = {}
    for section in parser.sections():
        if section.startswith(_SECTIONS):
            keys = {key: _expand(value, here) for key, value in parser.items(section) if key in KEYS}
            try:
                names = _process_names(section.split(":", 1)[1].strip(), dict(parser.items(section)), here)
            except ValueError as error:
                raise SettingsError(f"cannot use [{section}] of {conf}: {error}") from error
            found.update(dict.fromkeys(names, keys))
    return found


def _process_names(program: str, options: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """As supervisor names them: ``process_name``, once for each of ``numprocs``."""
    template = options.get("process_name", "%(program_name)s")
    first, many = (int(_expand(options.get(key, default), here)) for key, default in _NUMBERS)
    if many > _NUMPROCS_MOST:
        raise ValueError(f"{many} processes; the limit is {_NUMPROCS_MOST}")
    return [
        _expand(template, {**here, "program_name": program, "group_name": program}, number)
        for number in range(first, first + many)
    ]


def _expand(text: str, names: Mapping[str, str], process_num: int = 0) -> str:
    try:
        return text % {**names, "process_num": process_num}
    except (KeyError, ValueError, TypeError):
        return text  # supervisor has judged it already, where it is its own; elsewhere a lone % is a plain one


def _number(where: str, key: str, text: str, *, at_least: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= at_least):
        raise SettingsError(f"cannot use {key}={text} of {where}: it must be a number, {at_least:g} or more")
    return number


def _is_ours(command: str) -> bool:
    if "cdn-run" not in command and "-m" not in command:
        return False  # shlex takes its time
    try:
        words = shlex.split(command)
    except ValueError:
        return False
    if words and os.path.basename(words[0]) == "cdn-run":
        return True
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return bool(module) and module[0].split(".")[0] in ("services", "cdn_daemon")
