"""``cdn-run``: any program, in any language, as a member of the fleet."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

import click

from cdn_daemon.keeper import start_keeper

# What is heavy (the server, the daemon) is imported once the keeper has been forked: so it stays small, and is
# forked before there are threads.

_EPILOG = """
\b
Exit code: that of COMMAND, or its signal, if it ends by itself; 0 when told to
stop, 75 when told to restart, 78 when COMMAND cannot be run or a setting is wrong,
2 for wrong usage.
\b
  cdn-run --http http://127.0.0.1:8080/health -- nginx -g 'daemon off;'
  cdn-run --tcp 127.0.0.1:6379 --limit rss_bytes=512m:768m -- redis-server
  cdn-run --name jobs --exec 'test -e /run/jobs/ok' -- ./jobs.sh
  cdn-run --http 'http://127.0.0.1:$PORT/' -- python -m http.server '$PORT'
"""

_PORT = re.compile(r"\$PORT\b|\$\{PORT\}")


def _signal(_: click.Context, __: click.Parameter, value: str) -> signal.Signals:
    name = value.upper()
    try:
        return signal.Signals(int(name)) if name.isdigit() else signal.Signals["SIG" + name.removeprefix("SIG")]
    except (KeyError, ValueError):
        raise click.BadParameter(f"{value!r} is no signal; such as TERM, QUIT, INT") from None


_SECONDS = click.FloatRange(min=0.0, min_open=True, max=3600.0)


@click.command(
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
    epilog=_EPILOG,
)
@click.option("--name", metavar="NAME", help="Its name in the fleet; the file name of COMMAND by default.")
@click.option("--http", metavar="URL", help="Well while GET URL has a status of 200 to 399.")
@click.option("--tcp", metavar="HOST:PORT", help="Well while it takes connections there.")
@click.option(
    "--exec", "command_line", metavar="CMD", help="Well while CMD ends with 0; split as by a shell, run without."
)
@click.option("--period", type=_SECONDS, metavar="S", default=5.0, show_default=True, help="Seconds between probes.")
@click.option(
    "--timeout", type=_SECONDS, metavar="S", default=1.0, show_default=True, help="Seconds that a probe may take."
)
@click.option(
    "--threshold",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=3,
    show_default=True,
    help="Failures in a row: unhealthy.",
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=SOFT[:HARD[:S]]",
    help="Limit of rss_bytes, cpu_cores, fds, threads or children over its whole tree, such as rss_bytes=512m:768m:10.",
)
@click.option(
    "--stop-signal", default="TERM", metavar="SIGNAL", callback=_signal, show_default=True, help="What tells it to end."
)
@click.option(
    "--drain", type=_SECONDS, metavar="S", default=10.0, show_default=True, help="Seconds from there to SIGKILL."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=0,
    help="For cdn-run's own /livez, /readyz and /metrics.",
)
@click.argument("command", nargs=-1, required=True, metavar="COMMAND [ARGUMENT]...")
def main(
    name: str | None,
    http: str | None,
    tcp: str | None,
    command_line: str | None,
    period: float,
    timeout: float,
    threshold: int,
    limits: Sequence[str],
    stop_signal: signal.Signals,
    drain: float,
    port: int,
    command: Sequence[str],
) -> NoReturn:
    """Run COMMAND under a CDN Daemon: readiness, health, limits, drain, and a place in the fleet."""
    if sum(option is not None for option in (http, tcp, command_line)) > 1:
        raise click.UsageError("--http, --tcp and --exec exclude each other: give one")
    if any(text is not None and _PORT.search(text) for text in (http, tcp, command_line, *command)):
        port_text = os.environ["PORT"] = str(_free_port())
        command = [_PORT.sub(port_text, word) for word in command]
        http, tcp, command_line = (
            None if text is None else _PORT.sub(port_text, text) for text in (http, tcp, command_line)
        )
    link = start_keeper(command, None if command_line is None else _split(command_line))

    from bus.messages import Limits
    from cdn_daemon.host import run
    from cdn_daemon.limits import LimitError
    from cdn_daemon.probes import Http, ProbeError, Tcp
    from cdn_daemon.program import Probing, Program, parse_limit
    from cdn_daemon.service import DeclarationError

    try:
        target = Http.parse(http) if http is not None else None if tcp is None else Tcp.parse(tcp)
        kind = "http" if http is not None else "tcp" if tcp is not None else "exec"
        asked = target is not None or command_line is not None
        program = Program(
            _default_name(command[0]) if name is None else name,
            command,
            link,
            probing=Probing(
                name=kind,
                ask=None if target is None else target.ask,
                every_s=period,
                timeout_s=timeout,
                fails_after=threshold,
            )
            if asked
            else None,
            address=None if target is None else target.address,
            port=port,
            limits=Limits(**dict(map(parse_limit, limits))),
            drain_s=drain,
            stop_signal=stop_signal,
        )
    except (ProbeError, LimitError, DeclarationError) as error:
        raise click.UsageError(str(error)) from error
    run(program)


def _free_port() -> int:
    """One that nobody listens on now; should another process take it first, the program fails and is started anew."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _default_name(file: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", os.path.basename(file)).lstrip("-_.")[:64] or "program"


def _split(command_line: str) -> list[str]:
    try:
        words = shlex.split(command_line)
    except ValueError as error:
        raise click.UsageError(f"cannot split --exec {command_line!r}: {error}") from error
    if not words:
        raise click.UsageError("--exec needs a command")
    return words
