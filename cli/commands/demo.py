"""cdnctl demo."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from cli.answers import document
from cli.context import output_options, say, stdout_screen, write
from cli.exits import Exit, Problem
from cli.progress import Progress
from cli.rendering import Format, Output, Screen, indented, paint, wrapped

SEED = 1


@click.command("demo")
@click.option(
    "-c", "--config", metavar="CONF", help="The configuration of the ten services. Default: the project's own."
)
@click.option("--keep", is_flag=True, help="Leave the fleet running, and say how to look at it and how to end it.")
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of what is made up.")
@output_options(formats=(Format.TABLE, Format.JSON))
def command(config: str | None, keep: bool, seed: int, output: Output) -> int:
    """Play a small real story through all services.

    A fleet of its own is started, in a private directory and on free ports, with a shop in it; yours is not
    touched. Questions are slow until an index is made; a list of bad addresses is wrong; a network scans; an
    instance falls ill; somebody guesses passwords and is refused; a service is killed, then ATLAS. It is told what
    happened at each step, and at the end what each control loop saw, changed and gained by it, by its own word.
    It takes about a minute, two cores and 0.5 GiB of memory; then all of it is taken down, and nothing is left.

    Exit code: 0 played to the end, 1 it could not go on (why is said), 130 interrupted.

    \b
    Examples:
      cdnctl demo
      cdnctl demo --keep
      cdnctl demo --json
    """
    from cli.demo.acts import LOOPS, Play, Step
    from cli.demo.changes import lines, row
    from cli.demo.crowd import Crowd
    from cli.demo.stage import SHIPPED, Stage

    screen = stdout_screen()
    steps: list[Step] = []
    began_s = time.monotonic()
    with _ended_as_by_ctrl_c(), Stage(Path(config).absolute() if config else SHIPPED) as stage:
        with Crowd() as crowd:
            play = Play(stage, crowd, seed)
            for name, title, act in play.acts():
                with Progress(title, lines=output.is_machine) as show:
                    step = play.play(name, title, act, show)
                steps.append(step)
                if not output.is_machine:
                    write(_told(len(steps), step, screen))
        rows = [row(name, play.loops[name]) for name in LOOPS]
        took_s = time.monotonic() - began_s
        if output.is_machine:
            plain = [one._asdict() for one in steps]
            write(document({"steps": plain, "loops": [one._asdict() for one in rows], "took_s": took_s}))
        else:
            write(["", paint("what each loop changed", "bold", screen), *lines(rows, screen), ""])
        stage.is_kept = keep
        if keep:
            page = stage.address("atlas")
            run_dir = stage.run_dir.path
            say(f"played in {took_s:.0f} s. The fleet runs on: cdnctl --run-dir {run_dir} status; the page is {page}/")
            say(f"to end it: cdnctl --run-dir {run_dir} down && rm -r {stage.home}")
            return Exit.OK
    say(f"played in {took_s:.0f} s; the fleet is down, and nothing of it is left")
    return Exit.OK


def _told(number: int, step: object, screen: Screen) -> list[str]:
    """One act, on as many lines as it takes."""
    from cli.demo.acts import Step

    assert isinstance(step, Step)
    head = f"{number:2}. {paint(step.title, 'bold', screen)} {paint(f'{step.took_s:.1f} s', 'dim', screen)}"
    lines = [head]
    for text in step.told:
        if screen.width is None:
            lines.append(f"    {text}")
        elif text.startswith(" "):  # a line of a list
            lines += indented(f"    {text}", screen.width)
        else:
            lines += [f"    {part}" for part in wrapped(text, screen.width - 4)]
    return lines


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and a terminal that is closed take the fleet down as Ctrl-C does."""
    from cli.demo.stage import ENDING

    def interrupt(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Problem(f"told to end by {signal.Signals(number).name}: the fleet is taken down", Exit.FAILED)

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
