"""cdnctl shed and resume: less work for a while, and as before again."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import Verb
from cli.commands._order import order_options, run
from cli.rendering import Output


@click.command("shed")
@order_options()
@click.pass_context
def shed_command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Tell services to serve less, until cdnctl resume.

    What that means is the service's own affair; one that has nothing to shed refuses. It is degraded meanwhile.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    done when the time was over.

    \b
    Examples:
      cdnctl shed hello
    """
    return run(ctx, Verb.SHED, names, output=output, **options)


@click.command("resume")
@order_options()
@click.pass_context
def resume_command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Have services serve as before cdnctl shed.

    Exit code: 0 done, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    done when the time was over.

    \b
    Examples:
      cdnctl resume hello
    """
    return run(ctx, Verb.RESUME, names, output=output, **options)
