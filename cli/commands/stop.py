"""cdnctl stop."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import Verb
from cli.commands._order import order_options, run
from cli.rendering import Output


@click.command("stop")
@order_options()
@click.pass_context
def command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Stop services; what is in flight is finished first.

    A stopped service stays down until it is started. What does not end within its stopwaitsecs of
    supervisord.conf is killed. To stop everything, supervisord too: cdnctl down.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known
    to be done when the time was over.

    \b
    Examples:
      cdnctl stop gateway-primary
      cdnctl stop '*fabric' -o json
    """
    return run(ctx, Verb.STOP, names, output=output, **options)
