"""cdnctl scale."""

from __future__ import annotations

from typing import Any

import click

from bus.messages import Verb
from cli.atlas import Details
from cli.commands._order import FORMATS, run
from cli.context import complete_names, output_options, timeout_option
from cli.rendering import Output

LARGEST = 64
"""The warden's limit."""


@click.command("scale")
@click.argument("name", metavar="NAME", shell_complete=complete_names)
@click.argument("instances", type=click.IntRange(1, LARGEST), metavar="N")
@timeout_option("60s")
@output_options(formats=FORMATS)
@click.pass_context
def command(ctx: click.Context, /, name: str, instances: int, output: Output, **options: Any) -> int:
    """Run so many instances of a service.

    NAME is a program of supervisord.conf; its further instances are NAME-2, NAME-3, …, each with a port of its own.
    Done when all are ready, or what is too many has drained and gone. It lasts across restarts of supervisord.

    Exit code: 0 done, 1 failed, 4 the name is unknown, 124 not known to be done when the time was over.

    \b
    Examples:
      cdnctl scale cdn-data-fabric 3
      cdnctl scale cdn-data-fabric 1
    """
    return run(
        ctx, Verb.SCALE, (name,), output=output, details=Details(instances=instances), is_program=True, **options
    )
