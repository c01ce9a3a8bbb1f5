"""cdnctl start."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import Verb
from cli.commands._order import order_options, run
from cli.rendering import Output


@click.command("start")
@order_options()
@click.pass_context
def command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Start services and wait until they are ready.

    Done is a service that runs and says that it is ready; a program that cannot say so is done when it runs, and
    runs a second later still, or has ended with 0.
    What runs already is left alone.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known
    to be done when the time was over.

    \b
    Examples:
      cdnctl start gateway-primary
      cdnctl start --all --yes --timeout 2m
      cdnctl start cdn-data-fabric --no-wait
    """
    return run(ctx, Verb.START, names, output=output, **options)
