"""What operators read: tables, lines and JSON, as text. Pure: no terminal is asked, nothing is printed.

Colours are given as words and painted only where the caller says that it writes
to a terminal. Without a width nothing is cut or wrapped. Control characters in
what services say are shown, never sent to the terminal.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from bus.messages import Event, HealthStatus, OrderOutcome, OutcomeKind, ProcessState, ServiceView, Verb

SCHEMA_VERSION = 1
STATUS_COLUMNS = ("NAME", "STATE", "HEALTH", "PID", "UPTIME", "RESTARTS", "CPU", "MEM", "SEEN", "REASON")
EVENT_COLUMNS = ("TIME", "NAME", "KIND", "TEXT")
ABSENT = "-"

_NUMERIC = frozenset({"PID", "UPTIME", "RESTARTS", "CPU", "MEM", "SEEN"})
_SGR = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
_STATE_COLOURS = {
    ProcessState.RUNNING: "green",
    ProcessState.STARTING: "yellow",
    ProcessState.STOPPING: "yellow",
    ProcessState.BACKOFF: "yellow",
    ProcessState.EXITED: "red",
    ProcessState.FATAL: "red",
    ProcessState.STOPPED: "dim",
    ProcessState.UNKNOWN: "red",
}
_STATE_WORDS = {
    ProcessState.RUNNING: "running",
    ProcessState.STARTING: "starting",
    ProcessState.STOPPING: "stopping",
    ProcessState.BACKOFF: "backing off",
    ProcessState.STOPPED: "stopped",
    ProcessState.EXITED: "exited",
    ProcessState.FATAL: "fatal",
    ProcessState.UNKNOWN: "unknown",
}
_HEALTH_COLOURS = {
    HealthStatus.HEALTHY: "green",
    HealthStatus.DEGRADED: "yellow",
    HealthStatus.UNHEALTHY: "red",
    HealthStatus.UNKNOWN: "dim",
}
_PAST = {Verb.START: "started", Verb.STOP: "stopped", Verb.RESTART: "restarted"}
_LEAST_WRAP = 30  # a last column narrower than this goes on lines of its own


class Screen(NamedTuple):
    """Where text goes."""

    width: int | None = None
    """Columns of a terminal; None where nothing must be cut: a pipe or a file."""
    colour: bool = False


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    colour: str = ""


def paint(text: str, colour: str, screen: Screen) -> str:
    """The text in that colour, where there are colours."""
    return f"\x1b[{_SGR[colour]}m{text}\x1b[0m" if screen.colour and colour else text


def clean(text: str) -> str:
    """On one line, with control characters made visible: a log line must not steer a terminal."""
    flat = " ⏎ ".join(line for line in text.splitlines() if line.strip()) if "\n" in text else text
    if flat.isprintable():
        return flat
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in flat)


def _escaped(character: str) -> str:
    return " " if character == "\t" else character.encode("unicode_escape", "backslashreplace").decode("ascii")


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def duration(seconds: float | None) -> str:
    """A duration in two units at most: 0.4s, 12s, 3m12s, 2h05m, 3d04h."""
    if seconds is None:
        return ABSENT
    if seconds < 0:
        return "0s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(count_bytes: int | None) -> str:
    """Bytes in binary units, three digits: 512B, 31.4MiB, 2.10GiB."""
    if count_bytes is None:
        return ABSENT
    amount = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 999.5 or unit == "TiB":
            break
        amount /= 1024
    if unit == "B":
        return f"{count_bytes}B"
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    return f"{amount:.{digits}f}{unit}"


def cpu(cores: float | None) -> str:
    """Use of CPU in percent of one core, as top shows it."""
    if cores is None:
        return ABSENT
    return f"{cores * 100:.1f}%" if cores < 0.9995 else f"{cores * 100:.0f}%"


def _cells(view: ServiceView) -> list[Cell]:
    return [
        Cell(clean(view.instance), "bold"),
        Cell(view.state.value, _STATE_COLOURS[view.state]),
        Cell(view.health.value, _HEALTH_COLOURS[view.health]),
        Cell(ABSENT if view.pid is None else str(view.pid)),
        Cell(duration(view.uptime_s)),
        Cell(ABSENT if view.restarts is None else str(view.restarts), "yellow" if view.restarts else ""),
        Cell(cpu(view.cpu_cores)),
        Cell(size(view.rss_bytes)),
        Cell(ABSENT if view.seen_s is None else duration(view.seen_s)),
        Cell(clean(view.reason) or ABSENT, "" if view.reason else "dim"),
    ]


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], screen: Screen) -> list[str]:
    """Lines of a table; its last column wraps under itself if the screen has a width."""
    *fixed, last = headers
    widths = [max([columns(header), *(columns(row[n].text) for row in rows)]) for n, header in enumerate(fixed)]
    gap = "  "
    if screen.width is not None and sum(widths) + 2 * len(fixed) + columns(last) > screen.width:
        gap = " "
    indent = sum(widths) + len(gap) * len(fixed)

    def line(cells: Sequence[Cell]) -> str:
        parts = []
        for cell, header, width in zip(cells, fixed, widths, strict=True):
            padding = " " * (width - columns(cell.text))
            text = paint(cell.text, cell.colour, screen)
            parts.append(padding + text if header in _NUMERIC else text + padding)
        return gap.join(parts)

    lines: list[str] = []
    for row in [[Cell(header, "dim") for header in headers], *rows]:
        tail = row[-1]
        start = line(row[:-1])
        if screen.width is None or indent + columns(tail.text) <= screen.width:
            lines.append(f"{start}{gap}{paint(tail.text, tail.colour, screen)}".rstrip())
            continue
        room = screen.width - indent
        if room >= _LEAST_WRAP:
            first, *more = _wrapped(tail.text, room)
            lines.append(f"{start}{gap}{paint(first, tail.colour, screen)}")
            lines += [" " * indent + paint(text, tail.colour, screen) for text in more]
        elif tail.text == ABSENT:
            lines.append(start.rstrip())
        else:
            lines.append(start.rstrip())
            lines += ["    " + paint(text, tail.colour, screen) for text in _wrapped(tail.text, screen.width - 4)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns, broken at spaces where there are any."""
    width = max(width, 8)
    lines, line = [], ""
    for word in text.split(" "):
        while columns(word) > width:  # a path or a URL
            room = width - columns(line) - (1 if line else 0)
            if room <= 0:
                lines.append(line)
                line = ""
                continue
            taken = _fitting(word, room)
            lines.append(f"{line} {taken}" if line else taken)
            line, word = "", word[len(taken) :]
        joined = f"{line} {word}" if line else word
        if columns(joined) <= width:
            line = joined
        else:
            lines.append(line)
            line = word
    return [*lines, line]


def _fitting(word: str, width: int) -> str:
    """The longest beginning of at most ``width`` columns, and at least one character."""
    end = 1
    while end < len(word) and columns(word[: end + 1]) <= width:
        end += 1
    return word[:end]


def status_table(views: Sequence[ServiceView], screen: Screen) -> list[str]:
    """The fleet, one line a service, and a closing line."""
    lines = table(STATUS_COLUMNS, [_cells(view) for view in views], screen) if views else []
    return [*lines, closing(views)]


def closing(views: Sequence[ServiceView]) -> str:
    """How many are in which state: ``2 running, 1 fatal``."""
    if not views:
        return "no services"
    states = Counter(view.state for view in views)
    text = ", ".join(f"{states[state]} {word}" for state, word in _STATE_WORDS.items() if states[state])
    health = Counter(view.health for view in views if view.state is ProcessState.RUNNING)
    ill = [f"{health[kind]} {kind.value}" for kind in (HealthStatus.DEGRADED, HealthStatus.UNHEALTHY) if health[kind]]
    return f"{text}; {', '.join(ill)}" if ill else text


def addresses(views: Sequence[ServiceView], screen: Screen) -> list[str]:
    """Where each service that listens can be reached."""
    reachable = [(clean(view.instance), clean(view.address)) for view in views if view.address]
    width = max((columns(name) for name, _ in reachable), default=0)
    return [f"{name}{' ' * (width - columns(name))}  {paint(address, 'cyan', screen)}" for name, address in reachable]


def status_document(views: Sequence[ServiceView]) -> str:
    """The fleet as JSON; the schema is ServiceView's."""
    return _json({"schema_version": SCHEMA_VERSION, "services": list(views)})


def outcome_line(verb: Verb, outcome: OrderOutcome, screen: Screen) -> str:
    """How one order ended, in a line."""
    name = paint(clean(outcome.name), "bold", screen)
    reason = clean(outcome.reason)
    if outcome.kind is OutcomeKind.DONE:
        if reason.startswith("already "):
            return f"{name} {paint(reason, 'green', screen)}"
        done = f"{name} {paint(_PAST[verb], 'green', screen)} in {outcome.took_s:.2f} s"
        return f"{done}: {reason}" if reason else done
    if outcome.kind is OutcomeKind.UNKNOWN:
        what = f"{name} {paint('not known to be ' + _PAST[verb], 'yellow', screen)} after {outcome.took_s:.1f} s"
    else:
        what = f"{name} {paint('not ' + _PAST[verb], 'red', screen)}"
    return f"{what}: {reason}" if reason else what


def outcomes_document(verb: Verb, outcomes: Sequence[OrderOutcome]) -> str:
    """How an order ended, as JSON: one outcome for each name."""
    listed = [
        {
            "name": outcome.name,
            "verb": verb,
            "outcome": outcome.kind,
            "reason": outcome.reason,
            "incarnation": outcome.incarnation,
            "took_s": round(outcome.took_s, 3),
        }
        for outcome in outcomes
    ]
    return _json({"schema_version": SCHEMA_VERSION, "outcomes": listed})


def accepted_lines(verb: Verb, commands: Mapping[str, str], screen: Screen) -> list[str]:
    """Orders that nobody waits for; commands maps a name to the id of its command, or to nothing."""
    lines = []
    for name, command in commands.items():
        known_as = paint(f", command {command}", "dim", screen) if command else ""
        lines.append(f"{paint(clean(name), 'bold', screen)} {verb} ordered{known_as}")
    return lines


def accepted_document(verb: Verb, commands: Mapping[str, str]) -> str:
    """Orders that nobody waits for, as JSON."""
    listed = [{"name": name, "verb": verb, "command": command or None} for name, command in commands.items()]
    return _json({"schema_version": SCHEMA_VERSION, "accepted": listed})


def _when(time_s: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(time_s, UTC)
    except (OverflowError, ValueError, OSError):  # what a broken sender takes for a time
        return None


def event_cells(event: Event) -> list[Cell]:
    """One line of ``cdnctl events``, with local time."""
    at = _when(event.time_s)
    local = at and at.astimezone()
    return [
        Cell(f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03}" if local else ABSENT, "dim"),
        Cell(clean(event.instance), "bold"),
        Cell(clean(event.kind), "cyan"),
        Cell(clean(event.text)),
    ]


def event_line(event: Event, screen: Screen) -> str:
    """An event by itself, in columns that fit most."""
    time, name, kind, text = event_cells(event)
    padded = [Cell(name.text.ljust(20), name.colour), Cell(kind.text.ljust(11), kind.colour)]
    return "  ".join(paint(cell.text, cell.colour, screen) for cell in (time, *padded, text)).rstrip()


def event_object(event: Event) -> dict[str, object]:
    """One event for JSON; its fields are Event's, and ``time`` as RFC 3339."""
    at = _when(event.time_s)
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None
    fields: dict[str, object] = msgspec.to_builtins(event)
    return {"time": time, **{key: value for key, value in fields.items() if key != "type"}}


def events_document(events: Sequence[Event]) -> str:
    """Events as one JSON document."""
    return _json({"schema_version": SCHEMA_VERSION, "events": [event_object(event) for event in events]})


def json_line(value: object) -> str:
    """One JSON value on one line."""
    return msgspec.json.encode(value).decode()


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
