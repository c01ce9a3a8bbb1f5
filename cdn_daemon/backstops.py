"""Backstops: what the kernel itself holds a process to, should everything else fail.

By environment, as the bands of limits.py act long before. They are inherited by
whatever the process starts. A host that does not permit one costs health, not the
process.

=================  ==================================================================
CDN_RLIMIT_DATA    private memory that may be written: bytes, with k, m or g; above
                   it allocations fail. The better backstop than RLIMIT_AS, which
                   the arenas of threads exhaust by themselves
CDN_RLIMIT_NOFILE  open files
CDN_RLIMIT_CORE    a core file: bytes; 0 for none
CDN_NICE           -20 (more processor time) to 19 (less)
CDN_IONICE         idle, best-effort[:0-7], realtime[:0-7]; 7 is the lowest
CDN_CPUS           processors that it may run on, such as 0,2-3
=================  ==================================================================

As with systemd's LimitDATA=, one number sets the soft limit and the hard one;
``infinity`` is one, too.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

T = TypeVar("T")

_FACTORS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_RLIMITS = {
    "CDN_RLIMIT_DATA": (resource.RLIMIT_DATA, 1 << 20, "bytes, 1m at least, such as 2g, or infinity"),
    "CDN_RLIMIT_NOFILE": (resource.RLIMIT_NOFILE, 64, "a number of files, 64 at least"),
    "CDN_RLIMIT_CORE": (resource.RLIMIT_CORE, 0, "bytes, such as 0 or 100m, or infinity"),
}
"""Resource, least value, what it may be."""
_IO_CLASSES = {"idle": "IOPRIO_CLASS_IDLE", "best-effort": "IOPRIO_CLASS_BE", "realtime": "IOPRIO_CLASS_RT"}
"""By psutil's names."""
_CPUS_MOST = 4096


class BackstopError(ValueError):
    """A backstop that cannot be; the text names the variable, its value and what it may be."""


@dataclass(frozen=True, kw_only=True)
class Backstops:
    """What is to be held; None or empty: left as it is."""

    rlimits: tuple[tuple[str, int], ...] = ()
    """Variable and value; resource.RLIM_INFINITY is -1."""
    nice: int | None = None
    ionice: tuple[str, int | None] | None = None
    """Class and level."""
    cpus: tuple[int, ...] = ()


def read_backstops(environ: Mapping[str, str]) -> Backstops:
    """The backstops that the environment sets; raises BackstopError at the first that cannot be. Pure."""
    for key in environ:
        if key.startswith("CDN_RLIMIT_") and key not in _RLIMITS:
            raise BackstopError(f"cannot use {key}: it must be one of {', '.join(_RLIMITS)}")
    rlimits = []
    for key, (_, least, may_be) in _RLIMITS.items():
        value = _read(environ, key, partial(_parse_amount, least), may_be)
        if value is not None:
            rlimits.append((key, value))
    return Backstops(
        rlimits=tuple(rlimits),
        nice=_read(environ, "CDN_NICE", _parse_nice, "a whole number from -20 to 19"),
        ionice=_read(environ, "CDN_IONICE", _parse_ionice, "idle, best-effort[:0-7] or realtime[:0-7]"),
        cpus=_read(environ, "CDN_CPUS", _parse_cpus, "numbers of processors, such as 0,2-3") or (),
    )


def _read(environ: Mapping[str, str], key: str, parse: Callable[[str], T], may_be: str) -> T | None:
    text = environ.get(key)
    if not text:
        return None
    try:
        return parse(text.strip())
    except ValueError as error:
        raise BackstopError(f"cannot use {key}={text}: it must be {may_be}") from error


def _parse_amount(least: int, text: str) -> int:
    if text == "infinity":
        return resource.RLIM_INFINITY
    factor = _FACTORS.get(text[-1:].lower(), 1)
    value = int(text[:-1] if factor != 1 else text) * factor
    if not least <= value < 1 << 63:
        raise ValueError(value)
    return value


def _parse_nice(text: str) -> int:
    value = int(text)
    if not -20 <= value <= 19:
        raise ValueError(value)
    return value


def _parse_ionice(text: str) -> tuple[str, int | None]:
    name, colon, level = text.partition(":")
    if name not in _IO_CLASSES or (name == "idle" and colon) or (colon and level not in list("01234567")):
        raise ValueError(text)
    return name, int(level) if colon else None


def _parse_cpus(text: str) -> tuple[int, ...]:
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < _CPUS_MOST:
            raise ValueError(part)
        cpus |= set(range(low, high + 1))
    return tuple(sorted(cpus))


def apply(backstops: Backstops, pid: int) -> list[str]:
    """Set them for a process of one's own; returns what the host does not permit, in words."""
    if backstops == Backstops():
        return []
    import psutil  # here, as most services set none

    process = psutil.Process(pid)
    problems: list[str] = []

    def attempt(what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError, psutil.Error) as error:  # ValueError: there is no such processor
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problems.append(f"cannot set {what}: {'not permitted' if isinstance(error, psutil.AccessDenied) else why}")

    for key, value in backstops.rlimits:
        shown = "infinity" if value == resource.RLIM_INFINITY else value
        attempt(f"{key}={shown}", partial(process.rlimit, _RLIMITS[key][0], (value, value)))
    if (nice := backstops.nice) is not None:
        attempt(f"CDN_NICE={nice}", lambda: process.nice(nice))
    if (ionice := backstops.ionice) is not None:
        attempt(f"CDN_IONICE={ionice[0]}", lambda: process.ionice(getattr(psutil, _IO_CLASSES[ionice[0]]), ionice[1]))
    if backstops.cpus:
        attempt(f"CDN_CPUS={','.join(map(str, backstops.cpus))}", lambda: process.cpu_affinity(list(backstops.cpus)))
    return problems
