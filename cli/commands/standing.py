"""cdnctl enable, disable, reset-failed and maintenance: what stays until it is undone."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import Verb
from cli.atlas import Details
from cli.commands._order import order_options, run
from cli.durations import Duration
from cli.rendering import Output

_DAY_S = 86400.0


@click.command("enable")
@order_options()
@click.pass_context
def enable_command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Let services be started again.

    Undoes cdnctl disable; what supervisord.conf starts by itself is started.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    done when the time was over.

    \b
    Examples:
      cdnctl enable gateway-primary
    """
    return run(ctx, Verb.ENABLE, names, output=output, **options)


@click.command("disable")
@order_options()
@click.pass_context
def disable_command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Stop services, and keep them down.

    Nobody starts them until cdnctl enable: not start, not supervisorctl, not a restart of supervisord.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    done when the time was over.

    \b
    Examples:
      cdnctl disable gateway-primary
      cdnctl status -o wide              MARKS shows what is disabled
    """
    return run(ctx, Verb.DISABLE, names, output=output, **options)


@click.command("reset-failed")
@order_options()
@click.pass_context
def reset_failed_command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Forget the failures of services.

    Their restarts are counted anew, and what was given up (FATAL) is STOPPED; nothing is started.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    done when the time was over.

    \b
    Examples:
      cdnctl reset-failed cdn-data-fabric
      cdnctl reset-failed '*' && cdnctl start --all --yes
    """
    return run(ctx, Verb.RESET_FAILED, names, output=output, **options)


@click.command("maintenance")
@order_options()
@click.option("--on/--off", "on", default=None, help="Begin it, or end it.")
@click.option(
    "--for",
    "for_s",
    type=Duration(longest_s=_DAY_S),
    metavar="DURATION",
    help="With --on: end it by itself after 30m, 1h, 24h at most.",
)
@click.pass_context
def maintenance_command(
    ctx: click.Context, /, names: tuple[str, ...], output: Output, on: bool | None, for_s: float | None, **options: Any
) -> int:
    """Have services not judged while you work on them.

    Nobody takes them for hung, so that a debugger or a slow disk costs no restart. They are still started again
    if they end. It lasts until --off, or for as long as --for says.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    done when the time was over.

    \b
    Examples:
      cdnctl maintenance cdn-data-fabric --on --for 1h
      cdnctl maintenance cdn-data-fabric --off
    """
    if on is None:
        raise click.UsageError("say --on or --off")
    if for_s is not None and not on:
        raise click.UsageError("--for needs --on")
    return run(ctx, Verb.MAINTENANCE, names, output=output, details=Details(on=on, for_s=for_s), **options)
