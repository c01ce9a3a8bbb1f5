"""What the commands that order something have in common."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import click

from bus.messages import OrderOutcome, OutcomeKind, ServiceView, Verb
from cli.answers import accepted, outcome_line, outcomes
from cli.atlas import NO_DETAILS, Details
from cli.context import (
    Function,
    is_terminal,
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
from cli.orders import NotLeft, carry_out, hand_over
from cli.progress import Progress
from cli.rendering import Format, Output, Screen
from cli.second_look import looked_again
from cli.selection import exactly, exit_of_outcomes, select
from cli.view import see

_DOING = {
    Verb.START: "starting",
    Verb.STOP: "stopping",
    Verb.RESTART: "restarting",
    Verb.SIGNAL: "signalling",
    Verb.ENABLE: "enabling",
    Verb.DISABLE: "disabling",
    Verb.RESET_FAILED: "resetting",
    Verb.MAINTENANCE: "switching maintenance of",
    Verb.SCALE: "scaling",
    Verb.SHED: "telling to shed load",
    Verb.RESUME: "resuming",
    Verb.LOOP_MODE: "switching the loop of",
    Verb.SET_LIMITS: "limiting",
    Verb.HEALTH_CHECK: "checking",
}
FORMATS = (Format.TABLE, Format.JSON, Format.JSONL, Format.NAME)


def order_options(timeout: str = "30s") -> Callable[[Function], Function]:
    """NAME…, --all, --yes, --timeout, --no-wait and -o."""

    def decorate(function: Function) -> Function:
        for option in (
            output_options(formats=FORMATS),
            click.option(
                "--no-wait",
                "wait",
                is_flag=True,
                default=True,
                flag_value=False,
                help="Give the order and return at once.",
            ),
            timeout_option(timeout),
            click.option("-y", "--yes", is_flag=True, help="Do not ask about --all."),
            click.option(
                "--all",
                "everything",
                is_flag=True,
                help="Every service; asks first on a terminal, and wants --yes elsewhere.",
            ),
            names_argument(required=False),
        ):
            function = option(function)
        return function

    return decorate


def run(
    ctx: click.Context,
    verb: Verb,
    names: Sequence[str],
    *,
    output: Output,
    timeout_s: float,
    wait: bool = True,
    everything: bool = False,
    yes: bool = False,
    details: Details = NO_DETAILS,
    fits: Callable[[ServiceView], str] | None = None,
    is_program: bool = False,
    called: str = "",
) -> int:
    """Resolve the names, carry out the order, show each outcome; return the exit code.

    ``fits`` says why a service cannot be meant; nothing is done then. ``is_program``: the names are those of
    supervisord.conf, not of services, which may have several instances. ``called``: the command, if not as the verb.
    """
    if bool(names) == everything:
        raise click.UsageError("NAME and --all exclude each other" if names else "name a service, or say --all")
    run_dir = run_dir_of(ctx)
    fleet = see(run_dir, f"{verb} {', '.join(names) or 'all'}", gone=Exit.FAILED)
    chosen = exactly(fleet.services, names) if is_program else select(fleet.services, names)
    if chosen.unknown:
        raise unknown_names(chosen.unknown, [view.instance for view in fleet.services])
    if everything and not yes:
        _ask(verb, len(chosen.services))
    if doubt := fleet.doubted(chosen.services):
        if fleet.is_abandoned:  # a service that is told to restart would end, and stay down
            raise Problem(f"cannot {verb} {', '.join(view.instance for view in chosen.services)}: {doubt}", Exit.FAILED)
        say(doubt)
    for view in chosen.services:
        if fits is not None and (why := fits(view)):
            raise Problem(f"cannot {called or verb} {view.instance}: {why}", Exit.FAILED)
    if not wait:
        try:
            commands = hand_over(run_dir, verb, chosen.services, timeout_s, by_atlas=fleet.by_atlas, details=details)
        except NotLeft:
            say("supervisord has no order that could be left to it: waiting")
        else:
            write(accepted(verb, commands, output, stdout_screen()))
            return Exit.OK
    ended: list[OrderOutcome] = []
    wanted = [view.instance for view in chosen.services]
    try:
        with Progress(f"{_DOING[verb]} {len(wanted)} of {len(fleet.services)}", wanted) as show:
            for outcome in carry_out(
                run_dir, verb, chosen.services, timeout_s, by_atlas=fleet.by_atlas, show=show, details=details
            ):
                ended.append(outcome)
            ended = looked_again(run_dir, verb, chosen.services, ended, show)
    finally:  # what is done is told, also when the rest is interrupted
        write(outcomes(verb, ended, output, stdout_screen(), _past(verb, details)))
        for outcome in ended:  # names alone would not say why one is not among them
            if output.format is Format.NAME and outcome.kind is not OutcomeKind.DONE:
                say(outcome_line(verb, outcome, Screen(), _past(verb, details)))
    return exit_of_outcomes(outcome.kind for outcome in ended)


def _past(verb: Verb, details: Details) -> str:
    """What is so when it is done, where the verb alone does not say it."""
    match verb:
        case Verb.MAINTENANCE:
            return "in maintenance" if details.on else "out of maintenance"
        case Verb.SIGNAL if details.signal is not None:
            return f"sent {signal.Signals(details.signal).name}"
        case Verb.SCALE:
            return f"scaled to {details.instances}"
        case Verb.LOOP_MODE:
            return f"switched to {details.mode}"
        case _:
            return ""


def _ask(verb: Verb, many: int) -> None:
    """Whether all are meant. Raises UsageError where there is nobody to ask, Problem if they are not."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise click.UsageError(f"cannot {verb} all {many} services without being asked: say --yes")
    if not click.confirm(f"{verb} all {many} services?", err=True):
        raise Problem("nothing is done", Exit.FAILED)
