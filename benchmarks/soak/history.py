"""What a soak records: a file of JSON lines, each an event. Pure, but for reading the file.

``at_s`` is the recorder's CLOCK_MONOTONIC. Told is what was injected and asked, what an outside observer saw in /proc
and by requests, and what ATLAS and the warden wrote.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct


class Began(Struct, frozen=True, kw_only=True, tag_field="event", tag="began"):
    """The run, and what is declared of its fleet."""

    at_s: float
    unix_s: float
    """The same moment, as Unix time."""
    seed: int
    minutes: float
    services: tuple[str, ...]
    cores: int
    budget: int
    window_s: float
    healthy_s: float
    first_wait_s: float
    longest_wait_s: float
    longest_asked_wait_s: float
    jitter: float
    drain_s: float
    stop_wait_s: float
    request_every_s: float
    request_timeout_s: float


class Looked(Struct, frozen=True, kw_only=True, tag_field="event", tag="looked"):
    """The observer has looked at /proc once more: what is told after this, until the next, was so then."""

    at_s: float


class Appeared(Struct, frozen=True, kw_only=True, tag_field="event", tag="appeared"):
    """A process of the fleet was seen for the first time."""

    at_s: float
    name: str
    pid: int
    ticks: int
    """When it was started, of /proc/PID/stat: with the pid it is nobody else."""
    mark: str = ""
    """Its CDN_LIFE: which start of which program under which supervisord it belongs to."""
    child: bool = False
    """It is a descendant of that program's process, not the process."""


class Listens(Struct, frozen=True, kw_only=True, tag_field="event", tag="listens"):
    """A process has a TCP socket that listens, or has none any more."""

    at_s: float
    name: str
    pid: int
    on: bool = True


class Holds(Struct, frozen=True, kw_only=True, tag_field="event", tag="holds"):
    """Who has the lock of the instance, by /proc/locks; 0 is nobody."""

    at_s: float
    name: str
    pid: int


class Vanished(Struct, frozen=True, kw_only=True, tag_field="event", tag="vanished"):
    """A process is no more, or only waits to be reaped."""

    at_s: float
    name: str
    pid: int


class Answered(Struct, frozen=True, kw_only=True, tag_field="event", tag="answered"):
    """A request was answered, by another process than the last or after silence."""

    at_s: float
    name: str
    pid: int


class Silent(Struct, frozen=True, kw_only=True, tag_field="event", tag="silent"):
    """A request was not answered, after one that was."""

    at_s: float
    name: str
    last_s: float
    """When the last one was answered; when supervisord was started, if none was."""


class Bare(Struct, frozen=True, kw_only=True, tag_field="event", tag="bare"):
    """A service was started beside the fleet without any supervisor: fork → answers."""

    at_s: float
    took_s: float
    cpu_s: float
    """CPU that it used for that: as long as it would have taken with a processor to itself."""
    name: str = ""
    """``atlas``, if it was that."""


class Late(Struct, frozen=True, kw_only=True, tag_field="event", tag="late"):
    """The recorder itself did not get to run."""

    at_s: float
    took_s: float


class Injected(Struct, frozen=True, kw_only=True, tag_field="event", tag="injected"):
    """A fault, told before it is done. What is done to the host or the framework has no pid."""

    at_s: float
    number: int
    fault: str
    name: str = ""
    pid: int = 0
    deadly: bool = False
    """The process is to end of it."""
    kills: bool = False
    """By a signal that the soak itself sends."""
    notice_s: float = 0.0
    """How soon it is to have been noticed and acted upon, on an idle machine, as declared."""
    lasts_s: float = 0.0
    """How long it goes on, where it does not end with the process."""


class Ceased(Struct, frozen=True, kw_only=True, tag_field="event", tag="ceased"):
    """A fault that goes on was taken back."""

    at_s: float
    number: int


class Skipped(Struct, frozen=True, kw_only=True, tag_field="event", tag="skipped"):
    """A fault of the plan found nobody to be done to."""

    at_s: float
    number: int
    fault: str
    name: str
    why: str


class Asked(Struct, frozen=True, kw_only=True, tag_field="event", tag="asked"):
    """An operator's command, told before it is given; ``id`` is also in whose name it is asked."""

    at_s: float
    id: str
    verb: str
    name: str
    timeout_s: float
    again: bool = False
    """The same id once more."""


class Told(Struct, frozen=True, kw_only=True, tag_field="event", tag="told"):
    """Its outcome, as its operator was told."""

    at_s: float
    id: str
    kind: str
    reason: str = ""
    again: bool = False


class Exited(Struct, frozen=True, kw_only=True, tag_field="event", tag="exited"):
    """A program that the soak started beside the fleet has ended."""

    at_s: float
    what: str
    code: int


class Journaled(Struct, frozen=True, kw_only=True, tag_field="event", tag="journaled"):
    """How a command stood in ATLAS's journal at the end."""

    at_s: float
    id: str
    stage: str
    kind: str


class Died(Struct, frozen=True, kw_only=True, tag_field="event", tag="died"):
    """A post-mortem, as the warden wrote it; ``at_s`` is when the process ended by that."""

    at_s: float
    name: str
    pid: int
    wait_status: int
    end: str = ""
    verdict: str = ""
    spared: str = ""
    ordered_by: str = ""
    follows: str = ""
    ready_after_s: float | None = None


class Row(Struct, frozen=True, kw_only=True, tag_field="event", tag="row"):
    """What the warden's table, as ATLAS passes it on, says of a program now."""

    at_s: float
    name: str
    state: str
    pid: int = 0
    reason: str = ""


class Used(Struct, frozen=True, kw_only=True, tag_field="event", tag="used"):
    """What a process uses."""

    at_s: float
    name: str
    pid: int
    rss_bytes: int
    fds: int


class Ending(Struct, frozen=True, kw_only=True, tag_field="event", tag="ending"):
    """The fleet is told to end."""

    at_s: float


class Left(Struct, frozen=True, kw_only=True, tag_field="event", tag="left"):
    """What there was after the fleet had ended."""

    at_s: float
    down_exit: int
    """Exit code of ``cdnctl down``."""
    processes: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """In the run directory, relative to it."""
    recorder_fds: int = 0
    """Descriptors that the recorder has more than before."""


Event = (
    Began
    | Looked
    | Appeared
    | Listens
    | Holds
    | Vanished
    | Answered
    | Silent
    | Bare
    | Late
    | Injected
    | Ceased
    | Skipped
    | Asked
    | Told
    | Exited
    | Journaled
    | Died
    | Row
    | Used
    | Ending
    | Left
)


class Violation(Struct, frozen=True, kw_only=True):
    """A promise that was not kept, and when."""

    promise: str
    at_s: float
    name: str
    text: str


def line(event: Event) -> bytes:
    """The line of the file that says so."""
    return msgspec.json.encode(event) + b"\n"


def read(path: Path) -> list[Event]:
    """A recorded history. Raises msgspec.MsgspecError for what is none; a last line without an end is left out."""
    decoder = msgspec.json.Decoder(Event)
    return [decoder.decode(each) for each in path.read_bytes().split(b"\n")[:-1]]
