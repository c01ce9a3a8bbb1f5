"""cdnctl restart."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import Verb
from cli.atlas import Details
from cli.commands._order import order_options, run
from cli.rendering import Output


@click.command("restart")
@order_options()
@click.option("--rolling", is_flag=True, help="One after the other, or --batch at a time, each when those are ready.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="With --rolling: so many at a time. Default: 1.")
@click.pass_context
def command(
    ctx: click.Context, /, names: tuple[str, ...], output: Output, rolling: bool, batch: int | None, **options: Any
) -> int:
    """Stop services if they run, then start them.

    Each drains, ends, and is done when its next incarnation is ready. A stopped service is started. With --rolling
    the next begins when those before it are ready, and none after the first failure; --timeout is then for each.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known
    to be done when the time was over.

    \b
    Examples:
      cdnctl restart cdn-data-fabric
      cdnctl restart '*fabric' gateway-primary --timeout 1m
      cdnctl restart 'web*' --rolling --batch 2
      cdnctl restart --all --yes
    """
    if batch is not None and not rolling:
        raise click.UsageError("--batch needs --rolling")
    details = Details(batch=(batch or 1) if rolling else None)
    return run(ctx, Verb.RESTART, names, output=output, details=details, **options)
