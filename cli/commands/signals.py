"""cdnctl signal and reload."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from bus.endpoints import host_name
from bus.messages import ServiceView, Verb
from cli.atlas import Details
from cli.commands._order import order_options, run
from cli.rendering import Output


class Signal(click.ParamType[signal.Signals]):
    """A signal by its name, with or without SIG, or by its number."""

    name = "signal"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> signal.Signals:
        """The signal; a usage error if there is none."""
        if isinstance(value, signal.Signals):
            return value
        word = str(value).upper()
        try:
            return signal.Signals(int(word)) if word.isdecimal() else signal.Signals[f"SIG{word.removeprefix('SIG')}"]
        except (KeyError, ValueError):
            self.fail(f"{value!r} is no signal; say TERM, HUP, USR1, … or a number", param, ctx)


@click.command("signal")
@order_options("10s")
@click.option(
    "-s", "--signal", "number", type=Signal(), default="TERM", show_default=True, metavar="SIGNAL", help="Which one."
)
@click.pass_context
def signal_command(
    ctx: click.Context, /, names: tuple[str, ...], output: Output, number: signal.Signals, **options: Any
) -> int:
    """Send services a signal.

    To the process that supervisord started, not to its children. What ends by it is started again or not as its
    exit says; to have it stay down use cdnctl stop. cdnctl kill is the same.

    Exit code: 0 sent, 1 failed for at least one, 4 a name is unknown (nothing is done then), 124 not known to be
    sent when the time was over.

    \b
    Examples:
      cdnctl signal gateway-primary -s USR1
      cdnctl kill cdn-data-fabric -s KILL
    """
    return run(ctx, Verb.SIGNAL, names, output=output, details=Details(signal=int(number)), **options)


@click.command("reload")
@order_options("10s")
@click.pass_context
def reload_command(ctx: click.Context, /, names: tuple[str, ...], output: Output, **options: Any) -> int:
    """Have services read their configuration again.

    Sends SIGHUP, as systemctl reload does for most; refused for a process of this host that would die of it.
    What does not take it is to be restarted.

    Exit code: 0 sent, 1 failed or refused for at least one, 4 a name is unknown (nothing is done then), 124 not
    known to be sent when the time was over.

    \b
    Examples:
      cdnctl reload nginx
      cdnctl reload nginx || cdnctl restart nginx
    """
    return run(
        ctx,
        Verb.SIGNAL,
        names,
        output=output,
        details=Details(signal=int(signal.SIGHUP)),
        fits=_heeds,
        called="reload",
        **options,
    )


def _heeds(view: ServiceView) -> str:
    """Why SIGHUP would do no good, empty if it may: its default is to end the process."""
    if view.pid is None:
        return f"it is {view.state.lower()}; start it: cdnctl start {view.instance}"
    if view.host != host_name():
        return ""
    try:
        lines = Path(f"/proc/{view.pid}/status").read_text().splitlines()
    except OSError:  # it has ended meanwhile, or nobody may look: the warden will say
        return ""
    masks = dict(line.split(":\t", 1) for line in lines if line.startswith(("SigIgn", "SigCgt")))
    bit = 1 << (signal.SIGHUP - 1)
    if int(masks["SigCgt"], 16) & bit:
        return ""
    would = "ignores SIGHUP" if int(masks["SigIgn"], 16) & bit else "would die of SIGHUP"
    return f"it {would}; use: cdnctl restart {view.instance}"
