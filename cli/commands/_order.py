"""What cdnctl start, stop and restart have in common."""

from __future__ import annotations

import click

from bus.messages import OrderOutcome, Verb
from cli.context import (
    Function,
    json_option,
    names_argument,
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
from cli.rendering import accepted_document, accepted_lines, outcome_line, outcomes_document
from cli.selection import exit_of_outcomes, select
from cli.view import see

_DOING = {Verb.START: "starting", Verb.STOP: "stopping", Verb.RESTART: "restarting"}


def order_options(function: Function) -> Function:
    """NAME…, --timeout, --no-wait and --json."""
    no_wait = click.option(
        "--no-wait", "wait", is_flag=True, default=True, flag_value=False, help="Give the order and return at once."
    )
    for decorate in (json_option, no_wait, timeout_option("30s"), names_argument(required=True)):
        function = decorate(function)
    return function


def run(ctx: click.Context, verb: Verb, names: tuple[str, ...], *, timeout_s: float, wait: bool, as_json: bool) -> int:
    """Resolve the names, carry out the order, show each outcome; return the exit code."""
    run_dir = run_dir_of(ctx)
    fleet = see(run_dir, f"{verb} {', '.join(names)}", gone=Exit.FAILED)
    chosen = select(fleet.services, names)
    if chosen.unknown:
        raise unknown_names(chosen.unknown, [view.instance for view in fleet.services])
    if doubt := fleet.doubted(chosen.services):
        if fleet.is_abandoned:  # a service that is told to restart would end, and stay down
            raise Problem(f"cannot {verb} {', '.join(view.instance for view in chosen.services)}: {doubt}", Exit.FAILED)
        say(doubt)
    if not wait:
        try:
            commands = hand_over(run_dir, verb, chosen.services, timeout_s, by_atlas=fleet.by_atlas)
        except NotLeft:
            say("supervisord has no restart that could be left to it: waiting")
        else:
            write(accepted_document(verb, commands) if as_json else accepted_lines(verb, commands, stdout_screen()))
            return Exit.OK
    outcomes: list[OrderOutcome] = []
    wanted = [view.instance for view in chosen.services]
    try:
        with Progress(f"{_DOING[verb]} {len(wanted)} of {len(fleet.services)}", wanted) as show:
            for outcome in carry_out(run_dir, verb, chosen.services, timeout_s, by_atlas=fleet.by_atlas, show=show):
                outcomes.append(outcome)
    finally:  # what is done is told, also when the rest is interrupted
        if as_json:
            write(outcomes_document(verb, outcomes))
        else:
            write([outcome_line(verb, outcome, stdout_screen()) for outcome in outcomes])
    return exit_of_outcomes(outcome.kind for outcome in outcomes)
