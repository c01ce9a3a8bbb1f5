"""cdnctl limits."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from bus.messages import DaemonStatus, Limits, ServiceView, Verb
from cli.answers import listed
from cli.atlas import SILENCE, Details
from cli.bands import LIMITS, BandError, changed, rows
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
from cli.rendering import Output
from cli.selection import ATLAS, has_daemon, select
from cli.view import see


@click.command("limits")
@names_argument(required=True)
@click.option("--set", "changes", multiple=True, metavar="LIMIT.BOUND=VALUE", help="Change a bound; may be repeated.")
@timeout_option("10s")
@output_options(sort=LIMITS.sortable)
@click.pass_context
def command(
    ctx: click.Context, names: tuple[str, ...], changes: tuple[str, ...], timeout_s: float, output: Output
) -> int:
    """Show what services use of what they may; change it.

    Above soft a service is degraded and told to shed load, above hard it drains and is restarted; FOR is how long
    it has to be above. A change by --set lasts until the process ends; what is to stay belongs into its
    declaration or CDN_LIMIT_* of its environment. BOUND is soft, hard or for_s.

    Exit code: 0 shown or changed, 1 not changed, 4 a name is unknown or ATLAS does not answer, 124 not known to
    be changed when the time was over.

    \b
    Examples:
      cdnctl limits cdn-data-fabric
      cdnctl limits '*' --sort -limit
      cdnctl limits cdn-data-fabric --set rss_bytes.hard=1G
      cdnctl limits gateway-primary --set fds=500:800 --set threads=50:80
    """
    run_dir = run_dir_of(ctx)
    fleet = see(run_dir, f"show the limits of {', '.join(names)}", gone=Exit.UNKNOWN)
    chosen = select(fleet.services, names)
    if chosen.unknown:
        raise unknown_names(chosen.unknown, [view.instance for view in fleet.services])
    if not fleet.by_atlas:
        raise Problem(f"cannot show limits: {SILENCE}, and it alone hears of them: cdnctl start atlas", Exit.UNKNOWN)
    statuses = _statuses(fleet.services, [view for view in chosen.services if has_daemon(view)])
    if not changes:
        write(listed(LIMITS, [row for status in statuses for row in rows(status)], output, stdout_screen()))
    for view in chosen.services:
        if not has_daemon(view):
            say(f"{view.instance} has no daemon, and so no limits; cdn-run would give it one")
    if not changes:
        return Exit.OK
    return run(
        ctx,
        Verb.SET_LIMITS,
        [status.instance for status in statuses],
        output=output,
        timeout_s=timeout_s,
        details=Details(limits=_common(statuses, changes)),
        is_program=True,
    )


def _statuses(services: Sequence[ServiceView], chosen: Sequence[ServiceView]) -> list[DaemonStatus]:
    """The last of each, as ATLAS has it."""
    address = next((view.address for view in services if view.instance == ATLAS), None)
    if address is None:
        raise Problem("cannot show limits: ATLAS's address is not known; see cdnctl describe atlas", Exit.UNKNOWN)
    found = [get(address, "api", "v1", "services", view.instance).get("status") for view in chosen]
    try:
        return [msgspec.convert(status, DaemonStatus) for status in found if status is not None]
    except msgspec.ValidationError as error:
        raise Problem(f"cannot read ATLAS's answer: {error}; is it of another version?", Exit.UNKNOWN) from error


def _common(statuses: Sequence[DaemonStatus], changes: Sequence[str]) -> Limits:
    """The bands that all of them are to have. Raises Problem where they would differ."""
    try:
        wanted = {status.instance: changed(status.limits or Limits(), changes) for status in statuses}
    except BandError as error:
        raise click.UsageError(str(error)) from error
    if not wanted:
        raise Problem("cannot change limits: none of these has a daemon", Exit.FAILED)
    if any(limits != next(iter(wanted.values())) for limits in wanted.values()):
        raise click.UsageError("the bounds that --set leaves as they are differ between these: name one at a time")
    return next(iter(wanted.values()))
