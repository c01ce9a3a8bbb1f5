"""cdnctl wait, is-active and is-failed: for scripts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

import click

from bus.messages import ProcessState, ServiceView
from cli.answers import document, json_line
from cli.context import (
    names_argument,
    output_options,
    run_dir_of,
    say,
    stdout_screen,
    timeout_option,
    unknown_names,
    write,
)
from cli.exits import Exit, Problem
from cli.progress import Mark, Progress
from cli.readiness import SETTLE_S
from cli.rendering import Format, Output, Screen, clean, paint
from cli.selection import is_healthy, is_ready, is_stopped, place_of, select
from cli.view import Watch, see

_LOOK_S = 0.1
_FORMATS = (Format.TABLE, Format.JSON, Format.JSONL, Format.NAME)
_GOALS: dict[str, Callable[[ServiceView], bool]] = {"ready": is_ready, "healthy": is_healthy, "stopped": is_stopped}

_ENDED = {ProcessState.EXITED, ProcessState.FATAL}
"""Not started again by itself, if it stays so for over a lap of supervisord."""

_WORDS = {
    ProcessState.RUNNING: "active",
    ProcessState.STARTING: "activating",
    ProcessState.BACKOFF: "activating",
    ProcessState.STOPPING: "deactivating",
    ProcessState.STOPPED: "inactive",
    ProcessState.EXITED: "inactive",
    ProcessState.FATAL: "failed",
    ProcessState.UNKNOWN: "unknown",
}
"""systemctl's words, systemctl(1)."""


@click.command("wait")
@names_argument(required=True)
@click.option(
    "--for", "goal", type=click.Choice(list(_GOALS)), default="ready", show_default=True, help="What to wait for."
)
@timeout_option("30s")
@output_options(formats=_FORMATS)
@click.pass_context
def wait_command(ctx: click.Context, names: tuple[str, ...], goal: str, timeout_s: float, output: Output) -> int:
    """Wait until services are ready, healthy or stopped.

    Ready is what runs, says that it serves, and is not unhealthy; of a program without a daemon it is enough that
    it runs. Healthy is ready, and nothing speaks against it. Stopped is what has no process and gets none by
    itself. A name that nobody knows yet is waited for, too.

    What has ended and is not started again (EXITED, FATAL) does not become ready: that ends the waiting at once.

    Exit code: 0 all are, 3 one has ended instead, 124 one was not when the time was over, 4 the state cannot be
    obtained.

    \b
    Examples:
      cdnctl wait gateway-primary
      cdnctl wait '*' --for healthy --timeout 1m
      cdnctl stop web --no-wait; cdnctl wait web --for stopped
    """
    reached: list[tuple[str, float]] = []
    watch = Watch(run_dir_of(ctx), f"wait for {', '.join(names)}")
    began_s = time.monotonic()
    late: list[str] = []
    over: list[str] = []
    ended_s: dict[str, float] = {}
    try:
        with Progress(f"waiting until {goal}", names) as show:
            while True:
                chosen = select(watch.look(), names)
                took_s = time.monotonic() - began_s
                known = {name for name, _ in reached}
                late, over = [*chosen.unknown], []
                for view in chosen.services:
                    there = _GOALS[goal](view)
                    show.show(view.instance, view.state.lower(), Mark.DONE if there else Mark.WAITING)
                    if view.state not in _ENDED:
                        ended_s.pop(view.instance, None)
                    if not there:
                        late.append(_as_it_is(view))
                        if view.state in _ENDED and took_s - ended_s.setdefault(view.instance, took_s) >= SETTLE_S:
                            over.append(_as_it_is(view))
                    elif view.instance not in known:
                        reached.append((view.instance, took_s))
                if not late or over or took_s > timeout_s:
                    break
                show.tick()
                time.sleep(_LOOK_S)
    finally:
        write(_waited(goal, reached, output, stdout_screen()))
    if over:
        say(f"cannot become {goal} by waiting: {', '.join(over)}; see cdnctl why, or start it: cdnctl start")
        return Exit.NOT_WELL
    if late:
        say(f"not {goal} within {timeout_s:g} s: {', '.join(late)}")
    return Exit.TIMED_OUT if late else Exit.OK


def _as_it_is(view: ServiceView) -> str:
    health = f" and {view.health}" if view.state is ProcessState.RUNNING else ""
    return f"{view.instance} is {view.state}{health}" + (f" ({clean(view.reason)})" if view.reason else "")


def _waited(goal: str, reached: Sequence[tuple[str, float]], output: Output, screen: Screen) -> list[str]:
    plain = [{"name": name, "reached": goal, "took_s": round(took_s, 3)} for name, took_s in reached]
    match output.format:
        case Format.JSON:
            return [document({"waited": plain})]
        case Format.JSONL:
            return [json_line(thing) for thing in plain]
        case Format.NAME:
            return [name for name, _ in reached]
    return [
        f"{paint(clean(name), 'bold', screen)} {paint(goal, 'green', screen)} after {took_s:.2f} s"
        for name, took_s in reached
    ]


@click.command("is-active")
@names_argument(required=True)
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
@output_options(formats=_FORMATS)
@click.pass_context
def is_active_command(ctx: click.Context, names: tuple[str, ...], quiet: bool, output: Output) -> int:
    """Say whether services run.

    Prints systemctl's word for each, in the order of the names: active, activating, deactivating, inactive,
    failed. Whether they are healthy as well is what cdnctl status answers.

    Exit code: 0 all are active, 3 one is not, 4 a name is unknown or the state cannot be obtained.

    \b
    Examples:
      cdnctl is-active gateway-primary
      cdnctl is-active -q web || cdnctl start web
    """
    return _answer(ctx, names, quiet, output, lambda words: set(words) == {"active"})


@click.command("is-failed")
@names_argument(required=True)
@click.option("-q", "--quiet", is_flag=True, help="Only the exit code.")
@output_options(formats=_FORMATS)
@click.pass_context
def is_failed_command(ctx: click.Context, names: tuple[str, ...], quiet: bool, output: Output) -> int:
    """Say whether services have failed.

    Failed is what has been given up (FATAL); the word of each is printed, as by cdnctl is-active.

    Exit code: 0 one has failed, 3 none has, 4 a name is unknown or the state cannot be obtained.

    \b
    Examples:
      cdnctl is-failed '*'
      cdnctl is-failed -q web && cdnctl why web
    """
    return _answer(ctx, names, quiet, output, lambda words: "failed" in words)


def _answer(
    ctx: click.Context, names: tuple[str, ...], quiet: bool, output: Output, holds: Callable[[list[str]], bool]
) -> int:
    if not quiet:
        return _told(ctx, names, output, holds)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return _told(ctx, names, output, holds)
        except Problem as error:
            return error.exit_code


def _told(ctx: click.Context, names: tuple[str, ...], output: Output, holds: Callable[[list[str]], bool]) -> int:
    fleet = see(run_dir_of(ctx), f"tell of {', '.join(names)}", gone=Exit.UNKNOWN)
    chosen = select(fleet.services, names)
    asked = sorted(chosen.services, key=lambda view: place_of(view, names))
    words = {view.instance: _WORDS[view.state] for view in asked}
    plain = [{"name": name, "active": word} for name, word in words.items()]
    match output.format:
        case Format.JSON:
            write(document({"services": plain}))
        case Format.JSONL:
            write([json_line(thing) for thing in plain])
        case Format.NAME:
            write(list(words))
        case _:
            write(list(words.values()))
    if chosen.unknown:
        raise unknown_names(chosen.unknown, [view.instance for view in fleet.services])
    return Exit.OK if holds(list(words.values())) else Exit.NOT_WELL
