"""cdnctl status."""

from __future__ import annotations

import sys

import click

from bus.endpoints import RunDir
from cli.answers import SERVICES, services
from cli.context import (
    is_terminal,
    names_argument,
    output_options,
    run_dir_of,
    say,
    stdout_screen,
    unknown_names,
    watch_reader,
    write,
)
from cli.durations import Duration
from cli.exits import Exit, Problem
from cli.rendering import Output
from cli.selection import exit_of, select
from cli.view import see

_HOME_AND_CLEAR = "\x1b[H\x1b[J"


@click.command("status")
@names_argument(required=False)
@output_options(sort=SERVICES.sortable)
@click.option("-w", "--watch", is_flag=True, help="Show it again and again, until interrupted.")
@click.option(
    "--interval",
    "interval_s",
    type=Duration(),
    default="2s",
    show_default=True,
    metavar="DURATION",
    help="With --watch: how often.",
)
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], output: Output, watch: bool, interval_s: float) -> int:
    """Show what runs, and how it is.

    NAME is an instance, a service or a glob; without one, all are shown. STATE is supervisor's word for the
    process, HEALTH the service's own judgement, CPU percent of one core, MEM resident memory, SEEN the time since
    it was last heard. If ATLAS does not answer, supervisord is asked; what only ATLAS knows is then shown as "-".
    cdnctl ls is the same; cdnctl top is livelier than --watch.

    Exit code: 0 all of them run and are healthy, 3 one does not run or is not healthy (starting and backing
    off included) or nobody supervises it, 4 a name is unknown or the state cannot be obtained.

    \b
    Examples:
      cdnctl status
      cdnctl status gateway-primary '*fabric'
      cdnctl status -o wide --sort mem
      cdnctl status -o name 'web*'
      cdnctl status --json | jq -r '.services[].address'
      cdnctl status --watch --interval 500ms
    """
    run_dir = run_dir_of(ctx)
    if not watch:
        return _show(run_dir, names, output)
    while True:
        if is_terminal(sys.stdout):
            write(_HOME_AND_CLEAR)
        try:
            _show(run_dir, names, output)
        except Problem as error:  # a fleet that begins anew comes back
            say(error.message)
        watch_reader(interval_s)


def _show(run_dir: RunDir, names: tuple[str, ...], output: Output) -> int:
    fleet = see(run_dir, "show status", gone=Exit.UNKNOWN)
    chosen = select(fleet.services, names)
    if output.is_machine or chosen.services or not names:
        write(services(chosen.services, output, stdout_screen()))
    for note in fleet.notes:
        say(note)
    if chosen.unknown:
        problem = unknown_names(chosen.unknown, [view.instance for view in fleet.services])
        say(problem.message)
        return problem.exit_code
    if doubt := fleet.doubted(chosen.services):
        say(doubt)
        return Exit.NOT_WELL
    return exit_of(chosen.services)
