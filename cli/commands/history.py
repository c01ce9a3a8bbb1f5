"""cdnctl history."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import click

from bus.endpoints import RunDir
from bus.messages import ServiceView
from cli.answers import (
    Column,
    Listing,
    command_object,
    command_text,
    document,
    event_object,
    json_line,
    listed,
)
from cli.atlas import SILENCE, AtlasSilent, Refused, ask_commands, ask_events
from cli.context import names_argument, output_options, run_dir_of, say, stdout_screen, unknown_names, write
from cli.durations import Duration
from cli.exits import Exit, Problem
from cli.http_json import get
from cli.rendering import (
    Cell,
    Format,
    Output,
    Screen,
    clean,
    local_time,
    paint,
    quantity,
    rfc3339,
    shrunk,
    spark,
)
from cli.selection import ATLAS, matches
from cli.view import see

METRICS = ("rss_bytes", "cpu_cores", "loop_lag_s", "in_flight", "fds", "threads", "restarts")
_ASKED_FOR = 1000
_WEEK_S = 7 * 86400.0
_CHART = 60
"""Bars, where no terminal says how many fit."""


class Entry(NamedTuple):
    """Something that happened to a service, or that somebody asked of it."""

    time_s: float
    name: str
    kind: str
    text: str
    plain: dict[str, object]


HISTORY = Listing(
    "history",
    (
        Column("TIME", lambda e: Cell(local_time(e.time_s), "dim"), lambda e: e.time_s),
        Column("NAME", lambda e: Cell(clean(e.name), "bold"), lambda e: e.name),
        Column("KIND", lambda e: Cell(clean(e.kind), "cyan"), lambda e: e.kind),
        Column("TEXT", lambda e: Cell(clean(e.text)), lambda e: e.text),
    ),
    lambda e: str(e.name),
    lambda e: e.plain,
)


@click.command("history")
@names_argument(required=True)
@click.option("-n", "--lines", type=click.IntRange(1), default=30, show_default=True, help="How much of what happened.")
@click.option("--metric", type=click.Choice(METRICS), help="Draw this instead.")
@click.option(
    "--since",
    "since_s",
    type=Duration(longest_s=_WEEK_S),
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="With --metric: from how long ago on; a week at most.",
)
@output_options()
@click.pass_context
def command(
    ctx: click.Context, names: tuple[str, ...], lines: int, metric: str | None, since_s: float, output: Output
) -> int:
    """Show what became of services, and draw their metrics.

    State, health, restarts, and every command with its outcome and who gave it, oldest first. With --metric a line
    of bars from ATLAS's history, by the second for the last hour, and by the minute for a week.

    Exit code: 0 shown, 4 a name is unknown or ATLAS does not answer.

    \b
    Examples:
      cdnctl history gateway-primary
      cdnctl history '*' -n 100 -o json
      cdnctl history cdn-data-fabric --metric rss_bytes
      cdnctl history cdn-data-fabric --metric cpu_cores --since 10m -o jsonl
    """
    run_dir = run_dir_of(ctx)
    fleet = see(run_dir, f"show the history of {', '.join(names)}", gone=Exit.UNKNOWN)
    if not fleet.by_atlas:
        raise Problem(f"cannot show history: {SILENCE}, and it alone keeps it: cdnctl start atlas", Exit.UNKNOWN)
    if metric is not None:
        _draw(fleet.services, _meant(fleet.services, names), metric, since_s, output)
        return Exit.OK
    entries = _happened(run_dir, names)[-lines:]
    if not entries:
        _meant(fleet.services, names)
    write(listed(HISTORY, entries, output, stdout_screen()))
    if not entries and not output.is_machine:
        say("nothing has happened, as far as ATLAS remembers")
    return Exit.OK


def _meant(services: Sequence[ServiceView], names: Sequence[str]) -> list[str]:
    """The instances. Raises Problem for a name that matches none."""
    known = [view.instance for view in services]
    if unknown := [name for name in names if not any(matches(name, other) for other in known)]:
        raise unknown_names(unknown, known)
    return [other for other in known if any(matches(name, other) for name in names)]


def _happened(run_dir: RunDir, names: Sequence[str]) -> list[Entry]:
    """What happened to them and what was asked of them, oldest first; a command once, with its outcome."""
    try:
        events = ask_events(run_dir, _ASKED_FOR).events
        commands = ask_commands(run_dir, _ASKED_FOR).commands
    except (AtlasSilent, Refused) as error:
        raise Problem(f"cannot show history: {error}", Exit.UNKNOWN) from error
    told = {command.id for command in commands}
    entries = [
        Entry(event.time_s, event.instance, event.kind, event.text, event_object(event))
        for event in events
        if event.kind != "command" or event.cause not in told
    ]
    entries += [
        Entry(each.asked_at_s, each.name, "command", command_text(each), command_object(each)) for each in commands
    ]
    entries.sort(key=lambda entry: entry.time_s)
    return [entry for entry in entries if any(matches(name, entry.name) for name in names)]


def _draw(services: Sequence[ServiceView], names: Sequence[str], metric: str, since_s: float, output: Output) -> None:
    address = next((view.address for view in services if view.instance == ATLAS and view.address), None)
    if address is None:
        raise Problem("cannot draw: ATLAS's address is not known; see cdnctl describe atlas", Exit.UNKNOWN)
    query = f"since={time.time() - since_s:.3f}"
    found = {
        name: get(address, "api", "v1", "services", name, "metrics", query=query).get("points", []) for name in names
    }
    plain = [
        {"name": name, "metric": metric, "time": rfc3339(point["time_s"]), **_numbers(point, metric)}
        for name, points in found.items()
        for point in points
    ]
    match output.format:
        case Format.JSON:
            write(document({"points": plain}))
        case Format.JSONL:
            write([json_line(point) for point in plain])
        case Format.NAME:
            write(list(found))
        case _:
            write([line for name, points in found.items() for line in _chart(name, points, metric, stdout_screen())])


def _numbers(point: dict[str, Any], metric: str) -> dict[str, Any]:
    """The least, the mean and the most; one number stands for all three where history has but that."""
    value = point.get(metric)
    if isinstance(value, dict):
        return value
    return {"min": value, "avg": value, "max": value}


def _chart(name: str, points: Sequence[dict[str, Any]], metric: str, screen: Screen) -> list[str]:
    """Its bars, from zero, and below them when they begin and end, and the least, the last and the most."""
    values: list[float | None] = [_numbers(point, metric)["max"] for point in points]
    known = [value for value in values if value is not None]
    title = f"{paint(clean(name), 'bold', screen)} {paint(metric, 'dim', screen)}"
    if not known:
        return [f"{title}  nothing known of that time"]
    width = max(10, min((screen.width or _CHART + 4) - 4, len(values)))
    least, most = local_time(points[0]["time_s"])[11:19], local_time(points[-1]["time_s"])[11:19]
    numbers = (
        f"least {quantity(metric, min(known))}, last {quantity(metric, known[-1])}, most {quantity(metric, max(known))}"
    )
    bars = spark(shrunk(values, width) if len(values) > width else values, floor=0.0)
    return [title, f"  {paint(bars, 'cyan', screen)}", f"  {least} – {most}  {numbers}"]
