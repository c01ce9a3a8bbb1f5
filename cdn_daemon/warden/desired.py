"""What operators want to last, beyond restarts of supervisord: who is disabled, in maintenance, scaled. Pure.

Who keeps it on disk and carries it out is steward.py. Times are of the day
(Unix), as they have to mean something after a boot too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from bus.messages import ProcessName

V = TypeVar("V")

UnixTime = Annotated[float, Meta(ge=0.0, le=2.5e11)]
"""Up to the year 9892: a date in every time zone, as people are shown it."""

VERSION = 1
INSTANCES_MAX = 64


class UnusableError(ValueError):
    """A file that says nothing to this version; the text says why."""


class Disabled(Struct, frozen=True, kw_only=True):
    """Who wants a process to stay down, and since when."""

    by: str
    at_s: UnixTime


class Maintenance(Struct, frozen=True, kw_only=True):
    """Who wants a process not to be judged, and until when."""

    by: str
    until_s: UnixTime | None = None
    """None: until it is ended."""


class Desired(Struct, frozen=True, kw_only=True):
    """All of it, by supervisor's full names; the content of desired.json."""

    version: int = VERSION
    disabled: dict[ProcessName, Disabled] = {}
    maintenance: dict[ProcessName, Maintenance] = {}
    instances: dict[ProcessName, Annotated[int, Meta(ge=2, le=INSTANCES_MAX)]] = {}
    """How many of a program there are to be, where it is more than one."""

    def disable(self, name: str, disabled: Disabled | None) -> Desired:
        """With that process disabled; None: not."""
        return replace(self, disabled=_put(self.disabled, name, disabled))

    def maintain(self, name: str, maintenance: Maintenance | None) -> Desired:
        """With that process in maintenance; None: not."""
        return replace(self, maintenance=_put(self.maintenance, name, maintenance))

    def scale(self, program: str, instances: int) -> Desired:
        """With so many of that program; what was said of those that are no more is forgotten."""
        gone = set(names(program, self.instances.get(program, 1))) - set(names(program, instances))
        return replace(
            self,
            disabled={name: each for name, each in self.disabled.items() if name not in gone},
            maintenance={name: each for name, each in self.maintenance.items() if name not in gone},
            instances=_put(self.instances, program, instances if instances > 1 else None),
        )


class _Version(Struct):
    version: int


def encode(desired: Desired) -> bytes:
    """As it stands in the file; people may read it too."""
    return msgspec.json.format(msgspec.json.encode(desired)) + b"\n"


def decode(content: bytes) -> Desired:
    """What a file says; raises UnusableError."""
    try:
        version = msgspec.json.decode(content, type=_Version).version
        if version != VERSION:
            raise UnusableError(f"it is of version {version}, and this knows {VERSION}")
        return msgspec.json.decode(content, type=Desired)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableError(str(error)) from error


def names(program: str, instances: int) -> tuple[str, ...]:
    """NAME, NAME-2, NAME-3 …"""
    return (program, *(f"{program}-{number}" for number in range(2, instances + 1)))


def why_disabled(name: str, disabled: Disabled) -> str:
    """In words, with what to do about it."""
    return f"disabled by {disabled.by} at {_local(disabled.at_s)}; cdnctl enable {name}"


def why_maintained(maintenance: Maintenance) -> str:
    """In words."""
    until = "" if maintenance.until_s is None else f", until {_local(maintenance.until_s)}"
    return f"maintenance by {maintenance.by}{until}"


# -- instances: from what there is to what is wanted -----------------------------------------------------


class Instance(Struct, frozen=True):
    """A further instance of a program, as there is one now."""

    program: str
    is_current: bool
    """Made of the program's configuration as it is now."""
    is_down: bool
    is_stopping: bool
    is_surplus: bool = False
    """It was told to end as one too many; wanted again, it is made anew once it has."""


class Add(Struct, frozen=True):
    """Make it."""

    name: str
    program: str


class Stop(Struct, frozen=True):
    """Have it drain and end."""

    name: str


class Remove(Struct, frozen=True):
    """Forget it; it is down."""

    name: str


Step = Add | Stop | Remove


def plan(wanted: Mapping[str, int], there: Mapping[str, Instance], programs: Collection[str]) -> list[Step]:
    """What to do now. wanted: program → instances; programs: those that supervisord has."""
    steps: list[Step] = []
    for name, instance in there.items():
        is_wanted = instance.program in programs and name in names(instance.program, wanted.get(instance.program, 1))
        if is_wanted and instance.is_current and not instance.is_surplus:
            continue
        if instance.is_down:
            steps.append(Remove(name))
        elif not instance.is_stopping:
            steps.append(Stop(name))
    for program, instances in wanted.items():
        if program in programs:
            steps += [Add(name, program) for name in names(program, instances)[1:] if name not in there]
    return steps


def _put(entries: dict[str, V], name: str, value: V | None) -> dict[str, V]:
    rest = {key: each for key, each in entries.items() if key != name}
    return rest if value is None else {**rest, name: value}


def _local(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).isoformat(sep=" ", timespec="seconds")
