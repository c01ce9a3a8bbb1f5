"""cdnctl why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields

import click

from bus import postmortems
from bus.endpoints import RunDir
from bus.messages import IncarnationView, ServiceView
from bus.why import Circumstances, of_files, view
from cli.answers import document, json_line
from cli.atlas import SILENCE, AtlasSilent, Refused, ask_why
from cli.context import names_argument, output_options, run_dir_of, say, stdout_screen, unknown_names, write
from cli.exits import Exit, Problem
from cli.rendering import Format, Output
from cli.selection import matches, select
from cli.story import plain, story
from cli.view import Fleet, see

_MOST = 20
"""As many post-mortems as the warden keeps of one program."""


@click.command("why")
@names_argument(required=True)
@click.option(
    "-n", "--ends", type=click.IntRange(1, _MOST), default=1, show_default=True, help="How many of its last ends."
)
@click.option("--full", is_flag=True, help="All stacks, the whole log tail, every event.")
@output_options(formats=(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME))
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], ends: int, full: bool, output: Output) -> int:
    """Tell what happened to a service, and what to do.

    What ended, when and how, the warden's verdict with its evidence, the frame that it hung in, the limit that it
    was over, who ordered it, how often lately, the last of its log, and the next steps. ATLAS knows most; without
    it the post-mortems in the run directory are read, which need nobody to be running.

    Exit code: 0 told, 4 a name is unknown, or nothing can be found out.

    \b
    Examples:
      cdnctl why cdn-data-fabric
      cdnctl why gateway-primary -n 3
      cdnctl why gateway-primary --full
      cdnctl why '*' -o json | jq -r '.why[].incarnations[0].summary'
    """
    run_dir = run_dir_of(ctx)
    views, buried, by_atlas = _known(run_dir, names)
    told = [(name, views.get(name), _lives(run_dir, name, ends, by_atlas)) for name in [*views, *buried]]
    match output.format:
        case Format.JSON:
            write(document({"why": [plain(*each) for each in told]}))
        case Format.JSONL:
            write([json_line(plain(*each)) for each in told])
        case Format.NAME:
            write([name for name, *_ in told])
        case _:
            screen = stdout_screen()
            for number, (name, now, lives) in enumerate(told):
                lines = story(name, now, lives, now_s=time.time(), screen=screen, full=full)
                write([*([""] if number else []), *lines])
    return Exit.OK


def _known(run_dir: RunDir, names: Sequence[str]) -> tuple[dict[str, ServiceView], list[str], bool]:
    """The views of those that there are, the names of others that are meant, and whether ATLAS answers."""
    dead = _buried(run_dir)
    try:
        fleet = see(run_dir, f"tell of {', '.join(names)}", gone=Exit.UNKNOWN)
    except Problem as error:
        if not dead:
            raise
        say(f"{error.message}; reading the post-mortems that are there")
        fleet = Fleet(())
    services = fleet.services
    chosen = select(services, names)
    views = {each.instance: each for each in chosen.services}
    buried = [name for name in dead if name not in views and any(matches(pattern, name) for pattern in names)]
    unknown = [name for name in chosen.unknown if not any(matches(name, other) for other in buried)]
    if unknown:
        raise unknown_names(unknown, sorted({*dead, *(each.instance for each in services)}))
    return views, buried, bool(fleet.by_atlas)


def _buried(run_dir: RunDir) -> dict[str, str]:
    """Instance → the directory of its post-mortems, which may have the name of its group before it."""
    directory = postmortems.directory_of(run_dir)
    try:
        names = sorted(path.name for path in directory.iterdir() if path.is_dir())
    except OSError:
        return {}
    newest = {name: postmortems.listed(directory / name)[-1:] for name in names}
    found = {name: postmortems.load(directory / name / file) for name, files in newest.items() for file in files}
    return {filed.instance: name for name, filed in found.items() if filed is not None}


def _lives(run_dir: RunDir, name: str, ends: int, by_atlas: bool) -> tuple[IncarnationView, ...]:
    if by_atlas:
        try:
            return _completed(run_dir, name, ask_why(run_dir, name, ends).incarnations)
        except AtlasSilent:
            say(f"{SILENCE} to why {name}; reading its post-mortems")
        except Refused as error:  # as by one without history
            say(f"{error}; reading the post-mortems of {name}")
    return of_files(_filed(run_dir, name), ends)


def _filed(run_dir: RunDir, name: str) -> list[postmortems.Filed]:
    """Its post-mortems here, oldest first."""
    place = _buried(run_dir).get(name)
    return [] if place is None else postmortems.of(postmortems.directory_of(run_dir), place)


def _completed(run_dir: RunDir, name: str, lives: Sequence[IncarnationView]) -> tuple[IncarnationView, ...]:
    """With the post-mortems that ATLAS has not read yet: an operator asks within the second."""
    if not any(_lacks_end(life) for life in lives):
        return tuple(lives)
    by_pid = {filed.report.pid: filed for filed in _filed(run_dir, name)}
    return tuple(
        view(name, by_pid.get(life.pid or 0), _circumstances(life)) if _lacks_end(life) else life for life in lives
    )


def _lacks_end(life: IncarnationView) -> bool:
    return life.ended_s is not None and not life.end


def _circumstances(life: IncarnationView) -> Circumstances:
    return Circumstances(**{field.name: getattr(life, field.name) for field in fields(Circumstances)})
