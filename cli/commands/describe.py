"""cdnctl describe."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from bus.endpoints import RunDir
from bus.messages import CommandView, Event, IncarnationView, ServiceView
from cli.answers import SERVICES, command_object, command_text, document, event_object, json_line
from cli.atlas import AtlasSilent, Refused, ask_commands, ask_events, ask_why
from cli.context import names_argument, output_options, run_dir_of, say, stdout_screen, unknown_names, write
from cli.exits import Exit
from cli.rendering import ABSENT, Format, Output, Screen, clean, local_time, paint
from cli.selection import exit_of, select
from cli.story import one_line
from cli.view import see

_EVENTS = 8
_ASKED_FOR = 1000
_KEY = 12

Known = tuple[Sequence[Event], Sequence[CommandView], Sequence[IncarnationView]]


@click.command("describe")
@names_argument(required=False)
@output_options(formats=(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME))
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], output: Output) -> int:
    """Show everything that is known of services.

    All columns of cdnctl status -o wide, one below the other, the last end, and what happened and was asked lately.
    cdnctl show is the same.

    Exit code: as cdnctl status: 0 all of them run and are healthy, 3 one does not or is not, 4 a name is unknown
    or the state cannot be obtained.

    \b
    Examples:
      cdnctl describe cdn-data-fabric
      cdnctl show '*fabric' -o json
    """
    run_dir = run_dir_of(ctx)
    fleet = see(run_dir, "describe services", gone=Exit.UNKNOWN)
    chosen = select(fleet.services, names)
    told = [(view, _known(run_dir, view.instance) if fleet.by_atlas else ((), (), ())) for view in chosen.services]
    match output.format:
        case Format.JSON:
            write(document({"services": [_plain(*each) for each in told]}))
        case Format.JSONL:
            write([json_line(_plain(*each)) for each in told])
        case Format.NAME:
            write([view.instance for view, _ in told])
        case _:
            for number, (view, known) in enumerate(told):
                write([*([""] if number else []), *_described(view, known, stdout_screen())])
    for note in fleet.notes:
        say(note)
    if chosen.unknown:
        raise unknown_names(chosen.unknown, [view.instance for view in fleet.services])
    if doubt := fleet.doubted(chosen.services):
        say(doubt)
        return Exit.NOT_WELL
    return exit_of(chosen.services)


def _known(run_dir: RunDir, name: str) -> Known:
    """What ATLAS has of it beside the view; nothing of what it does not answer."""
    try:
        events = [event for event in ask_events(run_dir, _ASKED_FOR).events if event.instance == name]
        commands = ask_commands(run_dir, _EVENTS, name).commands
        return events[-_EVENTS:], commands, ask_why(run_dir, name, 1).incarnations
    except (AtlasSilent, Refused) as error:
        say(f"cannot tell what happened to {name}: {error}")
        return (), (), ()


def _plain(view: ServiceView, known: Known) -> dict[str, object]:
    from msgspec import to_builtins

    events, commands, lives = known
    return {
        **to_builtins(view),
        "events": [event_object(event) for event in events],
        "commands": [command_object(command) for command in commands],
        "last_end": next((life for life in lives if life.ended_s is not None), None),
    }


def _described(view: ServiceView, known: Known, screen: Screen) -> list[str]:
    events, commands, lives = known
    lines = []

    def line(key: str, text: str, colour: str = "") -> None:
        if text and text != ABSENT:
            lines.append(f"{paint(key.ljust(_KEY), 'dim', screen)} {paint(clean(text), colour, screen)}")

    for column in SERVICES.columns:
        cell = column.cell(view)
        line(column.header.lower(), cell.text, cell.colour)
    line("incarnation", f"#{view.incarnation}" if view.incarnation is not None else "")
    line("last end", one_line(lives, time.time()))
    for event in events:
        if event.kind != "command":
            line("event", f"{local_time(event.time_s)}  {event.kind}: {event.text}")
    for asked in commands:
        line("command", f"{local_time(asked.asked_at_s)}  {command_text(asked)}")
    return lines
