"""cdnctl status."""

from __future__ import annotations

import click

from cli.context import json_option, names_argument, run_dir_of, say, stdout_screen, unknown_names, write
from cli.exits import Exit
from cli.rendering import status_document, status_table
from cli.selection import exit_of, select
from cli.view import see


@click.command("status")
@names_argument(required=False)
@json_option
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> int:
    """Show what runs, and how it is.

    NAME is an instance, a service or a glob; without one, all are shown. STATE is supervisor's word for the
    process, HEALTH the service's own judgement, CPU percent of one core, SEEN the time since it was last heard.
    If ATLAS does not answer, supervisord is asked; what only ATLAS knows is then shown as "-".

    Exit code: 0 all of them run and are healthy, 3 one does not run or is not healthy (starting and backing
    off included) or nobody supervises it, 4 a name is unknown or the state cannot be obtained.

    \b
    Examples:
      cdnctl status
      cdnctl status gateway-primary '*fabric'
      cdnctl status --json | jq -r '.services[].address'
    """
    fleet = see(run_dir_of(ctx), "show status", gone=Exit.UNKNOWN)
    chosen = select(fleet.services, names)
    if as_json:
        write(status_document(chosen.services))
    elif chosen.services or not names:
        write(status_table(chosen.services, stdout_screen()))
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
