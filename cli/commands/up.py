"""cdnctl up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from bus.endpoints import RunDir
from bus.messages import ServiceView, Verb
from cli.answers import addresses, services
from cli.context import output_options, run_dir_of, say, stdout_screen, timeout_option, write
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, instance_of
from cli.launching import Plan, changes, end_of_log, last_lines, launch, made_ready, plan, running, told_otherwise
from cli.progress import Progress
from cli.readiness import Standing
from cli.rendering import Output, clean
from cli.rising import Rise
from cli.selection import ATLAS
from cli.supervised import DOWN, tell

_LOG_LINES = 6


@click.command("up")
@click.option(
    "-c", "--config", metavar="CONF", help="The configuration. Default: $CDN_CONFIG, else ./supervisord.conf."
)
@timeout_option("60s")
@output_options()
@click.pass_context
def command(ctx: click.Context, config: str | None, timeout_s: float, output: Output) -> int:
    """Start the fleet and wait until it is ready.

    supervisord goes to the background and starts the programs of its configuration; when all that are to be
    started are ready, or cannot become so any more, the status table and their addresses are shown. If it runs
    already, what is stopped of it is started; what has changed in the configuration is told, not applied.

    Everything made at run time is in run/ beside the configuration, or in $CDN_RUN_DIR. Other CDN_* variables
    reach every service: CDN_PORT=0 lets each choose a free port.

    Exit code: 0 all are ready, 1 supervisord or one of them is not; the reason and the end of its log are shown.

    \b
    Examples:
      cdnctl up
      cdnctl up -c /etc/cdn/supervisord.conf --timeout 2m
      CDN_RUN_DIR=~/second CDN_PORT=0 cdnctl up
    """
    planned = plan(config, ctx.obj)
    rise = None
    try:
        with made_ready(planned.run_dir, time.monotonic() + timeout_s):
            wanted, title = _begin(planned)
        rise = Rise(planned.run_dir, wanted)
        with Progress(title, wanted, lines=True) as show:
            rise.wait(timeout_s, show)
    except NoSupervisord as error:
        raise Problem(
            f"cannot start the fleet: supervisord has ended; its log ends with:{end_of_log(planned)}", Exit.FAILED
        ) from error
    except (SupervisordSilent, SupervisordRefused) as error:
        raise Problem(f"cannot start the fleet: {error}", Exit.FAILED) from error
    except KeyboardInterrupt:
        if rise is not None:
            say("the fleet goes on starting; see it with cdnctl status, end it with cdnctl down")
        raise
    screen = stdout_screen()
    shown = services(rise.services, output, screen)
    reachable = [] if output.is_machine or not output.headers else addresses(rise.services, screen)
    if reachable and screen.width is not None:  # never into a pipe or a log: whoever has it can give orders
        reachable += _page(rise.services, planned.run_dir)
    write([*shown, *([""] if reachable else []), *reachable])
    place = planned.run_dir.path
    if place.resolve() != run_dir_of(ctx).path.resolve():
        say(f"its run directory is {place}; for the other commands: export CDN_RUN_DIR={place}")
    return _explain(rise, timeout_s)


def _page(views: Sequence[ServiceView], run_dir: RunDir) -> list[str]:
    """Where the page is, with the operator's token, so that it asks for none; nothing if that cannot be."""
    address = next((view.address for view in views if view.instance == ATLAS), None)
    try:
        token = run_dir.operator_token.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return []
    return ["", f"the page, where this link may give orders: {clean(address)}/#token={clean(token)}"] if address else []


def _begin(planned: Plan) -> tuple[list[str], str]:
    """Have supervisord run, and start what is to be started; return those programs and what to call this."""
    pid = running(planned)
    if pid is None:
        launch(planned)
    supervisord = Supervisord(planned.run_dir)
    wanted = {program.name for program in supervisord.programs() if program.autostart}
    instances = {}
    stopped = []
    for process in supervisord.processes():
        if process.name not in wanted:
            continue
        if not process.enabled:
            say(f"{instance_of(process)} stays down: {process.reason}")
            continue
        instances[process.name] = instance_of(process)
        if process.state in DOWN:
            stopped.append(process.name)
    names = list(instances.values())
    many = "1 program" if len(names) == 1 else f"{len(names)} programs"
    if pid is None:
        return names, f"starting {many} in {planned.run_dir.path}"
    if differences := told_otherwise(pid):
        say(
            f"what runs was started with {', '.join(differences)}: that stays so; "
            "to start it with what is set now: cdnctl down, then cdnctl up"
        )
    for name in stopped:
        if refusal := tell(supervisord, Verb.START, name):
            say(f"cannot start {name}: {refusal}")
    _tell_changes(planned)
    started = f"; starting {', '.join(instances[name] for name in stopped)}" if stopped else ""
    say(f"already running in {planned.run_dir.path}, supervisord pid {pid}{started}")
    return names, f"waiting for {many} in {planned.run_dir.path}"


def _tell_changes(planned: Plan) -> None:
    """Of the configuration, which supervisord takes over only when it is told to."""
    try:
        changed = changes(planned)
    except (SupervisordRefused, OSError) as error:
        say(f"cannot have {planned.original} read again: {error}")
        return
    if changed:
        say(
            f"{planned.original} is not what runs: {'; '.join(changed)}; "
            f"to take that over: supervisorctl -c {planned.used} update"
        )


def _explain(rise: Rise, timeout_s: float) -> Exit:
    """Say of each that is not ready why, and show the end of its log."""
    late = {name: verdict for name, verdict in rise.verdicts.items() if verdict.standing is not Standing.READY}
    for name, verdict in late.items():
        when = f" within {timeout_s:g} s" if verdict.standing is Standing.WAITING else ""
        say(f"{name} is not ready{when}: {clean(verdict.text)}")
        if log := rise.logs.get(name):
            _show_end(log, verdict.text)
    return Exit.FAILED if late else Exit.OK


def _show_end(log: Path, reason: str) -> None:
    lines = last_lines(log, _LOG_LINES)
    if all(line.partition(": ")[2] in reason for line in lines):  # after when, how grave and where from
        return
    click.echo(f"  the end of {log}:", err=True)
    for line in lines:
        click.echo(f"    {clean(line)}", err=True)
