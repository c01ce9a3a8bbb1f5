"""supervisord.conf read and derived, as text. Pure.

``%(here)s/run`` in it is the run directory by convention. For another one a copy
is derived, which says that directory instead, and the original's directory
wherever else it says ``%(here)s``.
"""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path
from typing import NamedTuple

_HERE = "%(here)s"
_DEFAULT_RUN_DIR = re.compile(r"%\(here\)s/run(?![\w.-])")
_ORIGIN = "; derived from "
_INCLUDED = re.compile(r"^(\s*files\s*[=:])(.*)$", re.IGNORECASE)
_EXPANDED_TWICE = frozenset({"stdout_logfile", "stderr_logfile"})  # supervisor/options.py, processes_from_section
_KEY = re.compile(r"([\w.]+)\s*[=:]")
_UNFIT = re.compile(r"""["'\\\n]|[ \t][;#]""")


class ConfError(ValueError):
    """A supervisord.conf that cannot serve; the text names file, section and key."""


class Conf(NamedTuple):
    """What cdnctl has to know of a supervisord.conf."""

    socket: str | None
    """[unix_http_server] file, with %(here)s expanded."""
    user: str | None
    """[supervisord] user."""
    stays_in_foreground: bool


def read(text: str, path: Path) -> Conf:
    """The conf's text, as the file at path. Raises ConfError."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        parser.read_string(text, source=str(path))
    except configparser.Error as error:
        raise ConfError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not parser.has_section("supervisord"):
        raise ConfError(f"cannot use {path}: it has no section [supervisord]")
    socket = parser.get("unix_http_server", "file", fallback=None)
    nodaemon = parser.get("supervisord", "nodaemon", fallback="false").strip().lower()
    return Conf(
        socket=None if socket is None else os.path.normpath(_expanded(socket, path.parent)),
        user=parser.get("supervisord", "user", fallback=None),
        stays_in_foreground=nodaemon in ("true", "yes", "on", "1"),
    )


def derive(text: str, path: Path, run_dir: Path) -> str:
    """The conf of the file at path, for that run directory. Raises ConfError."""
    for directory in (path.parent, run_dir):
        if found := _UNFIT.search(str(directory)):
            raise ConfError(
                f"cannot write {str(directory)!r} into a supervisord.conf: {found[0]!r} has a meaning there; "
                f"use a directory without it"
            )
    section = key = ""
    lines = [f"{_ORIGIN}{path}", "; by cdnctl up, which writes it anew each time: change that file instead", ""]
    for line in text.splitlines():
        if line.startswith("["):
            section = line.partition("]")[0].lstrip("[").strip()
        elif named := _KEY.match(line):
            key = named[1].lower()
        found = _INCLUDED.match(line) if section == "include" else None
        if found:  # relative to the file that says it
            patterns = found[2].partition(" ;")[0].split()
            line = found[1] + " ".join(p if p.startswith(("/", "%")) else f"{_HERE}/{p}" for p in patterns)
        times = 2 if key in _EXPANDED_TWICE or (section, key) == ("supervisord", "environment") else 1
        run, here = _escaped(run_dir, times), _escaped(path.parent, times)
        lines.append(run.join(_DEFAULT_RUN_DIR.split(line)).replace(_HERE, here))
    return "\n".join(lines) + "\n"


def origin_of(text: str) -> Path | None:
    """The file that a derived conf comes from; None if it is an original."""
    first = text.partition("\n")[0]
    return Path(first.removeprefix(_ORIGIN)) if first.startswith(_ORIGIN) else None


def _escaped(directory: Path, times: int) -> str:
    """For that many expansions by supervisor."""
    return str(directory).replace("%", "%" * 2**times)


def _expanded(value: str, here: Path) -> str:
    """Only what is needed to compare paths; an expansion of another kind stays as it is."""
    return value.replace(_HERE, str(here)).replace("%%", "%")
