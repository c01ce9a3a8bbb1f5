"""cdnctl logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from bus.endpoints import RunDir
from cli.answers import json_line
from cli.context import (
    names_argument,
    output_options,
    run_dir_of,
    say,
    stdout_screen,
    unknown_names,
    watch_reader,
    write,
    write_bytes,
)
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, instance_of
from cli.rendering import Format, Output, Screen, paint
from cli.selection import matches
from cli.tailing import Tail

_LOOK_S = 0.1
_COLOURS = ("cyan", "yellow", "green", "red")


@click.command("logs")
@names_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is added, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=20, show_default=True, help="How many lines to begin with."
)
@output_options(formats=(Format.TABLE, Format.JSONL, Format.JSON, Format.NAME))
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], follow: bool, lines: int, output: Output) -> int:
    """Show the end of services' logs, and follow them.

    The log is what the service wrote to stdout and stderr; without a NAME, those of all are shown. Following goes
    on across rotation and restarts. With several services every line begins with the name of its own. JSON is one
    object a line, with name and line; -o name prints the paths of the log files.

    Exit code: 0 shown, 4 a name is unknown or its log cannot be read, 130 interrupted.

    \b
    Examples:
      cdnctl logs gateway-primary
      cdnctl logs -f -n 100 '*fabric' atlas
      cdnctl logs -n 3
    """
    logs = _chosen(run_dir_of(ctx), names)
    if output.format is Format.NAME:
        write([str(path) for path in logs.values()])
        return Exit.OK
    writer = _Writer(list(logs), output.is_machine, stdout_screen())
    tails = {name: Tail(path) for name, path in logs.items()}
    try:
        for name, tail in tails.items():
            try:
                text = tail.begin(lines)
            except OSError as error:
                raise Problem(f"cannot read the log of {name}: {logs[name]}: {error.strerror}", Exit.UNKNOWN) from error
            writer.write(name, text)
        if not follow:
            for name, path in logs.items():
                if not path.exists():
                    say(f"{name} has written no log yet ({path})")
        while follow:
            watch_reader(_LOOK_S)
            for name, tail in tails.items():
                writer.write(name, tail.more())
    finally:
        for tail in tails.values():
            tail.close()
    return Exit.OK


class _Writer:
    """Puts lines on stdout as they are, with their service in front if there are several."""

    def __init__(self, names: Sequence[str], as_json: bool, screen: Screen) -> None:
        width = max((len(name) for name in names), default=0)
        self._as_json = as_json
        self._prefixes = {
            name: f"{paint(name.ljust(width), _COLOURS[n % len(_COLOURS)], screen)} | ".encode()
            if len(names) > 1
            else b""
            for n, name in enumerate(names)
        }

    def write(self, name: str, text: bytes) -> None:
        """Whole lines; a last one without its end is ended."""
        if not text:
            return
        lines = []
        for line in text.splitlines():
            if self._as_json:
                shown = json_line({"name": name, "line": line.decode(errors="replace")}).encode()
            else:
                shown = self._prefixes[name] + line
            lines.append(shown + b"\n")
        write_bytes(b"".join(lines))


def _chosen(run_dir: RunDir, names: Sequence[str]) -> dict[str, Path]:
    """Instance → log file of everything that the names match. Raises Problem."""
    logs = _by_supervisord(run_dir)
    unknown = [pattern for pattern in names if not any(matches(pattern, name) for name in logs)]
    if unknown:
        raise unknown_names(unknown, sorted(logs))
    chosen = {name: path for name, path in logs.items() if not names or any(matches(each, name) for each in names)}
    if names and (silent := [name for name, path in chosen.items() if path is None]):
        raise Problem(f"cannot show the log of {', '.join(silent)}: its stdout_logfile is NONE", Exit.UNKNOWN)
    return {name: path for name, path in chosen.items() if path is not None}


def _by_supervisord(run_dir: RunDir) -> dict[str, Path | None]:
    """Where supervisord says that the logs are; those in the run directory if it does not answer."""
    try:
        return {instance_of(row): row.log for row in Supervisord(run_dir).processes()}
    except (NoSupervisord, SupervisordSilent, SupervisordRefused) as error:
        found: dict[str, Path | None] = {path.stem: path for path in sorted(run_dir.path.glob("*.log"))}
        if not found:
            raise Problem(f"cannot find logs: {error}", Exit.UNKNOWN) from error
        why = f"no supervisord runs in {run_dir.path}" if isinstance(error, NoSupervisord) else str(error)
        say(f"{why}; showing the logs that are there")
        return found
