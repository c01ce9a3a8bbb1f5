"""cdnctl top."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import click

from bus.endpoints import RunDir
from bus.messages import OrderOutcome, OrderProgress, ServiceView, Verb
from cli import atlas
from cli.answers import outcome_line
from cli.atlas import AtlasSilent, Order, Refused, ask_fleet, ask_why
from cli.context import is_terminal, run_dir_of, screen_of
from cli.durations import Duration
from cli.exits import Exit, Problem
from cli.fullscreen import Fullscreen
from cli.live import SORTS, Act, Top, Trails, frame, press, rows_of, shown
from cli.rendering import Screen, indented
from cli.story import story
from cli.view import by_supervisord, refuse_absent

_ASK_S = 0.3
"""Keys are not heard meanwhile."""
_ORDER_S = 60.0
_BUSY_S = 0.1
"""How often to look for the outcome of an order."""


@click.command("top")
@click.argument("filter_", metavar="[FILTER]", required=False, default="")
@click.option(
    "-d", "--delay", "delay_s", type=Duration(), default="1s", show_default=True, metavar="DURATION",
    help="Between two looks.",
)  # fmt: skip
@click.option("--sort", type=click.Choice(SORTS), default="name", show_default=True, help="By what to begin with.")
@click.pass_context
def command(ctx: click.Context, filter_: str, delay_s: float, sort: str) -> int:
    """Watch the fleet live; sort, filter, restart.

    Every second what ATLAS sees, or supervisord while ATLAS is silent. The small bars are the last twenty looks.
    FILTER is a part of a name, a glob, or a state; h shows the keys. Scripts use cdnctl status --watch.

    Exit code: 0 quit, 2 this is no terminal, 4 the state cannot be obtained, 130 interrupted.

    \b
    Examples:
      cdnctl top
      cdnctl top 'web*' --sort cpu
      cdnctl top --delay 250ms
    """
    if not (is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise click.UsageError("cannot draw without a terminal: use cdnctl status --watch")
    run_dir = run_dir_of(ctx)
    refuse_absent(run_dir, Exit.UNKNOWN)
    _Watching(run_dir, Top(sort=sort, filter=filter_), delay_s).run()
    return Exit.OK


class _Watching:
    """The loop: look, draw, hear keys, follow what was ordered."""

    def __init__(self, run_dir: RunDir, top: Top, delay_s: float) -> None:
        self._run_dir = run_dir
        self._top = top
        self._delay_s = delay_s
        self._views: tuple[ServiceView, ...] = ()
        self._trails = Trails()
        self._note = ""
        self._orders: list[tuple[Verb, Order, float]] = []
        """With when they are given up."""

    def run(self) -> None:
        """Until somebody quits."""
        self._look()  # before the screen is taken: what cannot be seen at all is told on a plain terminal
        due_s = time.monotonic() + self._delay_s
        with Fullscreen() as terminal:
            try:
                while True:
                    now_s = time.monotonic()
                    if now_s >= due_s:
                        due_s = now_s + self._delay_s
                        if not self._top.held:
                            self._look_again()
                    self._follow()
                    width, height = terminal.size()
                    screen = screen_of(sys.stdout)._replace(width=width)
                    terminal.draw(self._frame(screen, height))
                    wait_s = due_s - time.monotonic()
                    for key in terminal.keys(min(wait_s, _BUSY_S) if self._orders else wait_s):
                        if self._pressed(key, screen, height):
                            return
            finally:
                for _, order, _ in self._orders:
                    order.close()

    def _frame(self, screen: Screen, height: int) -> list[str]:
        clock = time.strftime("%H:%M:%S")
        return frame(self._top, self._views, self._trails, self._note, clock, screen, height)

    def _look(self) -> None:
        """Raises Problem if nobody can tell."""
        try:
            reply = ask_fleet(self._run_dir, timeout_s=_ASK_S)
            self._views, self._note = reply.services, "; ".join(reply.notes)
        except (AtlasSilent, Refused) as error:
            self._views = by_supervisord(self._run_dir, "watch the fleet", gone=Exit.UNKNOWN)
            self._note = f"ATLAS: {error}; this is supervisord's table"
        self._trails.add(self._views)

    def _look_again(self) -> None:
        """As it was, with a word on it, while nobody can tell: a fleet that restarts comes back."""
        try:
            self._look()
        except Problem as error:
            self._note = error.message

    def _pressed(self, key: str, screen: Screen, height: int) -> bool:
        """Do what a key means; whether that is to quit."""
        names = [view.instance for view in shown(self._top, self._views)]
        self._top, act = press(self._top, key, names, rows_of(height))
        match act:
            case None:
                return False
            case Act("why"):
                self._top = replace(self._top, page=tuple(self._why(act.name, screen)), scrolled=0)
            case Act("order", verb=Verb() as verb):
                self._order(verb, act.name)
            case _:
                return True
        return False

    def _why(self, name: str, screen: Screen) -> list[str]:
        view = next((view for view in self._views if view.instance == name), None)
        try:
            lives = ask_why(self._run_dir, name, 3).incarnations
        except (AtlasSilent, Refused) as error:
            return [f"{error}; leave this and use: cdnctl why {name}"]
        lines = story(name, view, lives, now_s=time.time(), screen=Screen())
        return [part for line in lines for part in indented(line, screen.width or 80)]

    def _order(self, verb: Verb, name: str) -> None:
        try:
            order = atlas.order(self._run_dir, verb, [name], _ORDER_S)
            self._orders.append((verb, order, time.monotonic() + _ORDER_S))
            self._top = replace(self._top, message=f"{verb} {name}: ordered")
        except (AtlasSilent, Refused) as error:
            self._top = replace(self._top, message=f"cannot {verb} {name}: {error}; use: cdnctl {verb} {name}")

    def _follow(self) -> None:
        """Show what the open orders have come to."""
        for each in list(self._orders):
            verb, order, until_s = each
            is_open = time.monotonic() < until_s
            try:
                while (reply := order.next(0.001)) is not None:
                    if isinstance(reply, OrderProgress):
                        self._top = replace(self._top, message=f"{verb} {reply.name}: {reply.text}")
                    elif isinstance(reply, OrderOutcome):
                        self._top = replace(self._top, message=outcome_line(verb, reply, Screen()))
                        is_open = False
            except (Refused, atlas.Forgotten) as error:
                self._top = replace(self._top, message=f"{verb}: {error}")
                is_open = False
            if not is_open:
                order.close()
                self._orders.remove(each)
