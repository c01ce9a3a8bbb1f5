"""What cdnctl answers: columns for people, documents for machines. Pure.

Each kind of thing is a Listing: its columns, its name and its JSON. The JSON is that of bus/messages.py, raw bytes
and seconds, with moments as RFC 3339 beside it; docs/cdnctl.md has the schemas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bus.messages import CommandView, Event, HealthStatus, OrderOutcome, OutcomeKind, ProcessState, ServiceView, Verb
from cli.causes import ID_CHARS, Branches
from cli.rendering import (
    ABSENT,
    Cell,
    Format,
    Output,
    Screen,
    clean,
    columns,
    cpu,
    duration,
    local_time,
    paint,
    quantity,
    rfc3339,
    size,
    table,
)

SCHEMA_VERSION = 1

STATE_COLOURS = {
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
HEALTH_COLOURS = {
    HealthStatus.HEALTHY: "green",
    HealthStatus.DEGRADED: "yellow",
    HealthStatus.UNHEALTHY: "red",
    HealthStatus.UNKNOWN: "dim",
}
PAST = {
    Verb.START: "started",
    Verb.STOP: "stopped",
    Verb.RESTART: "restarted",
    Verb.SIGNAL: "signalled",
    Verb.ENABLE: "enabled",
    Verb.DISABLE: "disabled",
    Verb.RESET_FAILED: "reset",
    Verb.MAINTENANCE: "switched",
    Verb.SCALE: "scaled",
    Verb.SHED: "told to shed load",
    Verb.RESUME: "resumed",
    Verb.LOOP_MODE: "switched",
    Verb.SET_LIMITS: "limited",
    Verb.HEALTH_CHECK: "checked",
}


class Column(NamedTuple):
    """One column of a table."""

    header: str
    cell: Callable[[Any], Cell]
    key: Callable[[Any], Any]
    """What it is sorted by; None comes last."""
    is_wide: bool = False
    """Whether only ``-o wide`` has it."""


class Listing(NamedTuple):
    """How things of one kind are shown."""

    plural: str
    """Their key in a JSON document."""
    columns: tuple[Column, ...]
    name: Callable[[Any], str]
    plain: Callable[[Any], Any]
    """A thing as what JSON has."""

    @property
    def sortable(self) -> tuple[str, ...]:
        """The words that --sort takes."""
        return tuple(column.header.lower() for column in self.columns)


def listed(listing: Listing, things: Sequence[Any], output: Output, screen: Screen) -> list[str]:
    """The lines of the answer, in that form. Without things a table has none."""
    things = ordered(listing, things, output.sort)
    match output.format:
        case Format.JSON:
            return [document({listing.plural: [listing.plain(thing) for thing in things]})]
        case Format.JSONL:
            return [json_line(listing.plain(thing)) for thing in things]
        case Format.NAME:
            return list(dict.fromkeys(listing.name(thing) for thing in things))
    shown = [column for column in listing.columns if output.format is Format.WIDE or not column.is_wide]
    rows = [[column.cell(thing) for column in shown] for thing in things]
    return table([column.header for column in shown], rows, screen)[0 if output.headers else 1 :] if things else []


def ordered(listing: Listing, things: Sequence[Any], sort: str) -> list[Any]:
    """Sorted by a column: words from a to z, numbers from the largest, what is unknown last; ``-`` turns it round."""
    if not sort:
        return list(things)
    column = next(column for column in listing.columns if column.header.lower() == sort.lstrip("-").lower())
    known = [thing for thing in things if column.key(thing) is not None]
    largest_first = any(isinstance(column.key(thing), int | float) for thing in known)
    known.sort(key=column.key, reverse=largest_first != sort.startswith("-"))
    return known + [thing for thing in things if column.key(thing) is None]


def json_line(value: object) -> str:
    """One JSON value on one line."""
    return msgspec.json.encode(value).decode()


def document(content: Mapping[str, object]) -> str:
    """A whole JSON document, for people to read too."""
    return msgspec.json.format(msgspec.json.encode({"schema_version": SCHEMA_VERSION, **content}), indent=2).decode()


def _text(value: object, colour: str = "") -> Cell:
    return Cell(ABSENT if value is None or value == "" else clean(str(value)), colour)


# -- services ---------------------------------------------------------------------------------------------


def _loop(view: ServiceView) -> str:
    return f"{view.ooda_phase}/{view.ooda_mode}" if view.ooda_phase and view.ooda_mode else str(view.ooda_phase or "")


def _marks(view: ServiceView) -> str:
    """What an operator has told of it, that stays."""
    told = ((not view.enabled, "disabled"), (view.maintenance, "maintenance"), (view.shedding, "shedding"))
    return ",".join(word for is_so, word in told if is_so)


SERVICES = Listing(
    "services",
    (
        Column("NAME", lambda v: Cell(clean(v.instance), "bold"), lambda v: v.instance),
        Column("STATE", lambda v: Cell(v.state.value, STATE_COLOURS[v.state]), lambda v: v.state.value),
        Column("HEALTH", lambda v: Cell(v.health.value, HEALTH_COLOURS[v.health]), lambda v: v.health.value),
        Column("PHASE", lambda v: _text(v.phase), lambda v: v.phase, True),
        Column("LOOP", lambda v: _text(_loop(v)), _loop, True),
        Column("MARKS", lambda v: _text(_marks(v), "yellow"), _marks, True),
        Column("PID", lambda v: _text(v.pid), lambda v: v.pid),
        Column("UPTIME", lambda v: Cell(duration(v.uptime_s)), lambda v: v.uptime_s),
        Column("RESTARTS", lambda v: _text(v.restarts, "yellow" if v.restarts else ""), lambda v: v.restarts),
        Column("CPU", lambda v: Cell(cpu(v.cpu_cores)), lambda v: v.cpu_cores),
        Column("MEM", lambda v: Cell(size(v.rss_bytes)), lambda v: v.rss_bytes),
        Column("LAG", lambda v: Cell(quantity("loop_lag_s", v.loop_lag_s)), lambda v: v.loop_lag_s, True),
        Column("FLIGHT", lambda v: _text(v.in_flight), lambda v: v.in_flight, True),
        Column("REQUESTS", lambda v: _text(v.requests), lambda v: v.requests, True),
        Column("SEEN", lambda v: Cell(duration(v.seen_s)), lambda v: v.seen_s),
        Column("HOST", lambda v: _text(v.host), lambda v: v.host, True),
        Column("ADDRESS", lambda v: _text(v.address, "cyan"), lambda v: v.address, True),
        Column("REASON", lambda v: _text(v.reason, "" if v.reason else "dim"), lambda v: v.reason),
    ),
    lambda v: str(v.instance),
    lambda v: v,
)
"""The fleet. REASON comes last, as it alone may wrap."""


def services(views: Sequence[ServiceView], output: Output, screen: Screen) -> list[str]:
    """The fleet; a table ends with how many are in which state."""
    lines = listed(SERVICES, views, output, screen)
    return lines if output.is_machine or not output.headers else [*lines, closing(views)]


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


# -- orders -----------------------------------------------------------------------------------------------


def outcome_line(verb: Verb, outcome: OrderOutcome, screen: Screen, past: str = "") -> str:
    """How one order ended, in a line; ``past`` is what is then so, if that is more than the verb says."""
    past = past or PAST[verb]
    name = paint(clean(outcome.name), "bold", screen)
    reason = clean(outcome.reason)
    if outcome.kind is OutcomeKind.DONE:
        if reason.startswith("already "):
            return f"{name} {paint(reason, 'green', screen)}"
        done = f"{name} {paint(past, 'green', screen)} in {outcome.took_s:.2f} s"
        return f"{done}: {reason}" if reason else done
    if outcome.kind is OutcomeKind.UNKNOWN:
        what = f"{name} {paint('not known to be ' + past, 'yellow', screen)} after {outcome.took_s:.1f} s"
    else:
        what = f"{name} {paint('not ' + past, 'red', screen)}"
    return f"{what}: {reason}" if reason else what


def outcomes(verb: Verb, ended: Sequence[OrderOutcome], output: Output, screen: Screen, past: str = "") -> list[str]:
    """How an order ended: one line or object for each name; ``-o name`` has those that are done."""
    match output.format:
        case Format.JSON:
            return [document({"outcomes": [_plain_outcome(verb, outcome) for outcome in ended]})]
        case Format.JSONL:
            return [json_line(_plain_outcome(verb, outcome)) for outcome in ended]
        case Format.NAME:
            return [outcome.name for outcome in ended if outcome.kind is OutcomeKind.DONE]
    return [outcome_line(verb, outcome, screen, past) for outcome in ended]


def _plain_outcome(verb: Verb, outcome: OrderOutcome) -> dict[str, object]:
    return {
        "name": outcome.name,
        "verb": verb,
        "outcome": outcome.kind,
        "reason": outcome.reason,
        "incarnation": outcome.incarnation,
        "took_s": round(outcome.took_s, 3),
    }


def accepted(verb: Verb, commands: Mapping[str, str], output: Output, screen: Screen) -> list[str]:
    """Orders that nobody waits for; commands maps a name to the id of its command, or to nothing."""
    plain = [{"name": name, "verb": verb, "command": command or None} for name, command in commands.items()]
    match output.format:
        case Format.JSON:
            return [document({"accepted": plain})]
        case Format.JSONL:
            return [json_line(thing) for thing in plain]
        case Format.NAME:
            return list(commands)
    lines = []
    for name, command in commands.items():
        known_as = paint(f", command {command}", "dim", screen) if command else ""
        lines.append(f"{paint(clean(name), 'bold', screen)} {verb} ordered{known_as}")
    return lines


# -- what happened ----------------------------------------------------------------------------------------


def event_cells(event: Event) -> list[Cell]:
    """One line of ``cdnctl events``, with local time."""
    return [column.cell(event) for column in EVENTS.columns if not column.is_wide]


def event_line(event: Event, screen: Screen, text: str | None = None) -> str:
    """An event by itself, in columns that fit most, with its own text or that."""
    time, name, kind, _ = event_cells(event)
    padded = [Cell(name.text.ljust(20), name.colour), Cell(kind.text.ljust(12), kind.colour)]
    return "  ".join(
        paint(cell.text, cell.colour, screen) for cell in (time, *padded, _text(event.text if text is None else text))
    ).rstrip()


def event_object(event: Event) -> dict[str, object]:
    """One event for JSON; its fields are Event's, and ``time`` as RFC 3339."""
    fields: dict[str, object] = msgspec.to_builtins(event)
    return {"time": rfc3339(event.time_s), **{key: value for key, value in fields.items() if key != "type"}}


EVENTS = Listing(
    "events",
    (
        Column("TIME", lambda e: Cell(local_time(e.time_s), "dim"), lambda e: e.time_s),
        Column("NAME", lambda e: Cell(clean(e.instance), "bold"), lambda e: e.instance),
        Column("HOST", lambda e: _text(e.host), lambda e: e.host, True),
        Column("SOURCE", lambda e: _text(e.source), lambda e: e.source, True),
        Column("KIND", lambda e: Cell(clean(e.kind), "cyan"), lambda e: e.kind),
        Column("ID", lambda e: _text(e.id[:ID_CHARS]), lambda e: e.id, True),
        Column("CAUSE", lambda e: _text((e.cause or "")[:ID_CHARS]), lambda e: e.cause, True),
        Column("TEXT", lambda e: _text(e.text), lambda e: e.text),
    ),
    lambda e: str(e.instance),
    event_object,
)
"""What happened, to whatever."""


def events(happened: Sequence[Event], output: Output, screen: Screen) -> list[str]:
    """What happened, in that order; for people with what is because of what."""
    if output.is_machine or output.sort:
        return listed(EVENTS, happened, output, screen)
    branches = Branches()
    texts = {event.id: branches.text(event) for event in happened}
    told = Column("TEXT", lambda e: _text(texts[e.id]), lambda e: e.text)
    return listed(EVENTS._replace(columns=(*EVENTS.columns[:-1], told)), happened, output, screen)


def command_object(command: CommandView) -> dict[str, object]:
    """One command for JSON; its fields are CommandView's, and ``asked_at`` as RFC 3339."""
    return {"asked_at": rfc3339(command.asked_at_s), **msgspec.to_builtins(command)}


def command_text(command: CommandView) -> str:
    """A command in words: what was asked by whom, and what came of it."""
    text = f"{command.verb} asked by {command.asked_by}"
    if command.kind is None:
        return f"{text}: {command.stage}"
    took = f" after {duration(command.took_s)}" if command.took_s is not None else ""
    return f"{text}: {command.kind}{took}" + (f", {command.reason}" if command.reason else "")
