"""cdnctl restart."""

from __future__ import annotations

import click

from bus.messages import Verb
from cli.commands._order import order_options, run


@click.command("restart")
@order_options
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], timeout_s: float, wait: bool, as_json: bool) -> int:
    """Stop services if they run, then start them.

    Each drains, ends, and is done when its next incarnation is ready. A stopped service is started.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known
    to be done when the time was over.

    \b
    Examples:
      cdnctl restart cdn-data-fabric
      cdnctl restart '*fabric' gateway-primary --timeout 1m
    """
    return run(ctx, Verb.RESTART, names, timeout_s=timeout_s, wait=wait, as_json=as_json)
