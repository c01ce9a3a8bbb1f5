"""What the commands share: which run directory, where text goes, the options that recur."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from bus.endpoints import RunDir, default_run_dir
from cli.durations import Duration
from cli.exits import Exit, Problem
from cli.rendering import Format, Output, Screen

_COMPLETE_S = 0.1
"""Somebody has pressed TAB: whoever has not answered by then is left out."""

Function = TypeVar("Function", bound=Callable[..., Any])


def run_dir_of(ctx: click.Context) -> RunDir:
    """The run directory: --run-dir, $CDN_RUN_DIR, beside $CDN_CONFIG, else the rule of bus/endpoints.py."""
    if given := ctx.obj or ctx.find_root().params.get("run_dir"):  # a shell that completes has run no command yet
        return RunDir(Path(given).absolute())
    if not os.environ.get("CDN_RUN_DIR") and (conf := os.environ.get("CDN_CONFIG")):
        return RunDir(Path(conf).absolute().parent / "run")
    return default_run_dir()


def say(text: str) -> None:
    """A message for people, on stderr."""
    click.echo(f"cdnctl: {text}", err=True)


def is_terminal(stream: Any) -> bool:
    """Whether somebody watches the stream who can be shown movement and colour."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def screen_of(stream: Any) -> Screen:
    """Width and colours where the stream is a terminal; neither where it is not. NO_COLOR, no-color.org."""
    if not is_terminal(stream):
        return Screen()
    try:
        width = os.get_terminal_size(stream.fileno()).columns
    except OSError:
        width = 80
    return Screen(width=width or 80, colour=not os.environ.get("NO_COLOR"))


def write(lines: Sequence[str] | str) -> None:
    """What was asked for, on stdout. Raises Problem if it cannot be written, BrokenPipeError if the reader has gone."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    if text:
        with _writing():
            click.echo(text, color=True)  # painted only where the screen has colours


def write_bytes(content: bytes) -> None:
    """The same for what is bytes already, such as a log, and has its line ends."""
    with _writing():
        left = memoryview(content)
        while left:  # with PYTHONUNBUFFERED a part of it may be all that is written at once
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.buffer.flush()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Problem(f"cannot write to stdout: {error.strerror}", Exit.FAILED) from error


def watch_reader(within_s: float) -> None:
    """Return after that time; raises BrokenPipeError at once when nobody can read stdout any more."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors and hang-ups are always told
    if poll.poll(within_s * 1000):
        raise BrokenPipeError


def stdout_screen() -> Screen:
    """The screen of stdout."""
    return screen_of(sys.stdout)


def names_argument(*, required: bool) -> Callable[[Function], Function]:
    """NAME…: instances, services, or globs over both."""
    metavar = "NAME..." if required else "[NAME]..."
    return click.argument("names", nargs=-1, required=required, metavar=metavar, shell_complete=complete_names)


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The instances that begin so, for a shell, less those that are named already. Never fails, says nothing."""
    from cli.atlas import AtlasSilent, Refused, ask_fleet

    run_dir = run_dir_of(ctx)
    try:
        names = [str(view.instance) for view in ask_fleet(run_dir, timeout_s=_COMPLETE_S).services]
    except (AtlasSilent, Refused):
        from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, instance_of

        try:
            names = [instance_of(row) for row in Supervisord(run_dir, timeout_s=_COMPLETE_S).processes()]
        except (NoSupervisord, SupervisordRefused, SupervisordSilent):
            return []
    named = ctx.params.get(param.name or "") or ()
    return [name for name in names if name.startswith(incomplete) and name not in named]


def output_options(
    *, formats: Sequence[Format] = tuple(Format), sort: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Give a command -o, --json, --no-headers and --sort; its function gets one ``output``.

    ``sort`` is what it can be sorted by.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def with_output(*args: Any, **kwargs: Any) -> Any:
            format_ = Format(kwargs.pop("output_format"))
            output = Output(
                Format.JSON if kwargs.pop("as_json") else format_,
                headers=not kwargs.pop("no_headers", False),
                sort=kwargs.pop("sort_by", None) or "",
            )
            return function(*args, output=output, **kwargs)

        decorated: Any = with_output
        options = [
            click.option(
                "-o",
                "--output",
                "output_format",
                type=click.Choice([str(format_) for format_ in formats]),
                default=str(formats[0]),
                show_default=True,
                help="How to print it.",
            ),
            click.option("--json", "as_json", is_flag=True, help="The same as -o json."),
        ]
        if Format.WIDE in formats:
            options.append(click.option("--no-headers", is_flag=True, help="No column names and no closing line."))
        if sort:
            words = [f"{sign}{word}" for word in sort for sign in ("", "-")]
            options.append(
                click.option(
                    "--sort",
                    "sort_by",
                    type=click.Choice(words, case_sensitive=False),
                    metavar="COLUMN",
                    help=f"Sort by {', '.join(sort)}; numbers begin with the largest. -COLUMN turns it round.",
                )
            )
        for option in reversed(options):
            decorated = option(decorated)
        result: Function = decorated
        return result

    return decorate


def timeout_option(default: str) -> Callable[[Function], Function]:
    """--timeout, as a duration."""
    return click.option(
        "--timeout",
        "timeout_s",
        type=Duration(),
        default=default,
        show_default=True,
        metavar="DURATION",
        help="How long to wait for the outcome: 500ms, 30s, 2m.",
    )


def unknown_names(unknown: Sequence[str], known: Sequence[str]) -> Problem:
    """The problem that some names are not in the fleet, with the nearest that are."""
    from difflib import get_close_matches

    named = ", ".join(unknown)
    near = [match for name in unknown for match in get_close_matches(name, known, n=1)]
    near = near or [other for name in unknown for other in known if name in other][:3]
    if "all" in unknown:
        hint = "for all of them say '*'"
    elif near:
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}?"
    elif known:
        hint = f"known are {', '.join(known[:12])}{' …' if len(known) > 12 else ''}"
    else:
        hint = "the fleet is empty"
    return Problem(f"cannot find {named}: {hint}", Exit.UNKNOWN)
