"""cdnctl ooda."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import OodaMode, ServiceView, Verb
from cli.answers import document, json_line
from cli.atlas import Details
from cli.commands._order import run
from cli.context import (
    names_argument,
    output_options,
    run_dir_of,
    say,
    stdout_screen,
    timeout_option,
    unknown_names,
    write,
)
from cli.exits import Exit, Problem
from cli.http_json import get
from cli.rendering import Format, Output, Screen, clean, duration, paint
from cli.selection import select
from cli.view import see

_CYCLES = 5


@click.command("ooda")
@names_argument(required=True)
@click.option("--mode", type=click.Choice([str(mode) for mode in OodaMode]), help="Have the loops run in this mode.")
@timeout_option("10s")
@output_options(formats=(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME))
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], mode: str | None, timeout_s: float, output: Output) -> int:
    """Show what control loops do; switch their mode.

    What the loop saw, decided and did, what it has changed with what effect, and whether it kept that or undid it.
    off: the loop rests. shadow: it decides and records, and does nothing. on: it acts. A mode lasts until the
    process ends.

    Exit code: 0 shown or switched, 1 not switched, 4 a name is unknown or a service does not answer, 124 not
    known to be switched when the time was over.

    \b
    Examples:
      cdnctl ooda cdn-data-fabric
      cdnctl ooda cdn-data-fabric --mode shadow
      cdnctl ooda '*' --mode off
    """
    if mode is not None:
        return run(
            ctx,
            Verb.LOOP_MODE,
            names,
            output=output,
            timeout_s=timeout_s,
            details=Details(mode=OodaMode(mode)),
            fits=lambda view: "" if view.ooda_phase else "it has no daemon, and so no loop",
            called="switch the loop of",
        )
    fleet = see(run_dir_of(ctx), f"show the loop of {', '.join(names)}", gone=Exit.UNKNOWN)
    chosen = select(fleet.services, names)
    if chosen.unknown:
        raise unknown_names(chosen.unknown, [view.instance for view in fleet.services])
    if not fleet.by_atlas:
        raise Problem("cannot show loops: ATLAS alone knows where services answer: cdnctl start atlas", Exit.UNKNOWN)
    found = {view.instance: get(view.address, "ooda") for view in chosen.services if view.address}
    match output.format:
        case Format.JSON:
            write(document({"loops": list(found.values())}))
        case Format.JSONL:
            write([json_line(loop) for loop in found.values()])
        case Format.NAME:
            write(list(found))
        case _:
            screen = stdout_screen()
            write([line for name, loop in found.items() for line in _shown(name, loop, screen)])
    if mute := [view.instance for view in chosen.services if not view.address]:
        say(f"cannot show the loop of {', '.join(mute)}: {_why_mute(chosen.services)}")
        return Exit.UNKNOWN
    return Exit.OK


def _why_mute(views: tuple[ServiceView, ...]) -> str:
    return (
        "nothing of it listens now" if len([view for view in views if not view.address]) == 1 else "they do not listen"
    )


def _shown(name: str, loop: dict[str, Any], screen: Screen) -> list[str]:
    """The loop in a line, what it has changed, and its last cycles, newest first."""
    period = f"every {duration(loop.get('period_s'))}, settling {duration(loop.get('settle_s'))}"
    changed = f"{loop.get('kept', 0)} kept, {loop.get('undone', 0)} undone, {loop.get('failed', 0)} failed"
    mode = paint(str(loop.get("mode")), "green" if loop.get("mode") == "on" else "yellow", screen)
    lines = [f"{paint(clean(name), 'bold', screen)}  {mode}, at {loop.get('phase')}, {period}; changes: {changed}"]
    for title, cycles in (("changed", loop.get("actions") or []), ("cycle", loop.get("cycles") or [])):
        for cycle in reversed(cycles[-_CYCLES:]):
            lines.append(f"  {paint(title.ljust(8), 'dim', screen)} {_cycle(cycle)}")
    return lines


def _cycle(cycle: dict[str, Any]) -> str:
    parts = [f"saw {_brief(cycle.get('picture'))}", f"decided {_brief(cycle.get('decision'))}"]
    if effect := cycle.get("effect"):
        cost = f"{_number(effect.get('before'))} → {_number(effect.get('after'))}"
        reason = f", {effect['reason']}" if effect.get("reason") else ""
        parts.append(f"effect {cost}, {effect.get('verdict')}{reason}")
    elif cycle.get("acted"):
        parts.append("acted")
    return clean("; ".join(parts))


def _brief(value: object) -> str:
    """One line of JSON, cut off where it gets long: the whole is in -o json."""
    if value is None:
        return "nothing"
    text = json_line(value)
    return text if len(text) <= 100 else text[:99] + "…"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "?"
