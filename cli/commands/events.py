"""cdnctl events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bus.continuity import WITNESS, Continuity
from bus.endpoints import RunDir
from bus.messages import DaemonStatus, Event
from cli.answers import EVENTS, event_line, event_object, json_line
from cli.answers import events as listed_events
from cli.atlas import SILENCE, AtlasSilent, Refused, ask_events
from cli.causes import Branches, depth_first
from cli.context import names_argument, output_options, run_dir_of, say, stdout_screen, watch_reader, write
from cli.exits import Exit, Problem
from cli.rendering import Format, Output, Screen
from cli.selection import matches
from cli.view import refuse_absent

if TYPE_CHECKING:
    from bus.subscriber import Subscriber

_REMEMBERED = 10_000
_ALL = 1000
_WAKE_S = 0.5
_SILENT_S = 3.0
"""It says how it is once a second."""


@click.command("events")
@names_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=20, show_default=True, help="How many events to begin with."
)
@click.option("--chain", metavar="ID", help="What led to the event or command with this id, and what came of it.")
@output_options(sort=EVENTS.sortable)
@click.pass_context
def command(
    ctx: click.Context, names: tuple[str, ...], follow: bool, lines: int, chain: str | None, output: Output
) -> int:
    """Show what happened, and watch what happens.

    State changes, restarts, health, commands and their outcome, as ATLAS heard of them, and what services tell each
    other; NAME is an instance or a glob. What is because of an event that is shown stands below it after └, or names
    it. Times are local; JSON has them as RFC 3339 in UTC, and with -f is one object a line.

    ID stands in brackets, or in -o wide; its first four letters will do if no other begins so.

    Exit code: 0 shown, 4 ATLAS does not answer or knows no such chain, 130 interrupted.

    \b
    Examples:
      cdnctl events -n 50
      cdnctl events -f gateway-primary
      cdnctl events --chain 3f2a91c0
      cdnctl events -f --json | jq -r 'select(.kind == "restart") | .text'
    """
    run_dir = run_dir_of(ctx)
    if chain is not None and (names or follow):
        raise click.UsageError("--chain shows one chain whole: give neither NAME nor -f with it")
    refuse_absent(run_dir, Exit.UNKNOWN)
    if chain is not None:
        write(listed_events(depth_first(_asked(run_dir, _ALL, chain)), output, stdout_screen()))
        return Exit.OK
    # Subscribed before asking, so that nothing is lost between the two; what comes twice is known by its id.
    feed = _subscribed(run_dir) if follow else None
    try:
        known = _asked(run_dir, _ALL if names or follow else lines) if lines or follow else ()
        events = _wanted(known, names)[-lines:] if lines else []
        screen = stdout_screen()
        if feed is None:
            write(listed_events(events, output, screen))
            if not events and not output.is_machine:
                say("no events")
            return Exit.OK
        follower = _Follower(names, output, screen)
        for event in events:
            follower.show(event)
        follower.know(known)
        _follow(run_dir, feed, follower)
    finally:
        if feed is not None:
            feed.close()
    return Exit.OK


def _subscribed(run_dir: RunDir) -> Subscriber:
    """To every event; imports ZeroMQ, which what does not follow can do without."""
    from bus.subscriber import Subscriber
    from bus.topics import EVENT

    return Subscriber(run_dir.feed, [EVENT, WITNESS])


def _asked(run_dir: RunDir, limit: int, chain: str | None = None) -> Sequence[Event]:
    try:
        return ask_events(run_dir, limit, chain=chain).events
    except AtlasSilent as error:
        raise Problem(f"cannot show events: {SILENCE}; start it: cdnctl start atlas", Exit.UNKNOWN) from error
    except Refused as error:
        raise Problem(f"cannot show events: {error}", Exit.UNKNOWN) from error


def _wanted(events: Sequence[Event], names: Sequence[str]) -> list[Event]:
    return [event for event in events if not names or any(matches(name, event.instance) for name in names)]


class _Follower:
    """Writes events as they come, each once."""

    def __init__(self, names: Sequence[str], output: Output, screen: Screen) -> None:
        self._names = names
        self._output = output
        self._screen = screen
        self._known: dict[str, None] = {}
        self._branches = Branches()

    def know(self, events: Sequence[Event]) -> None:
        """These are not to be shown: after a change of ATLAS they may come again."""
        for event in events:
            self._known[event.id] = None
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]

    def show(self, event: Event) -> None:
        """Write it, if it is wanted and was not written yet."""
        if event.id in self._known or not _wanted([event], self._names):
            return
        self.know([event])
        if self._output.is_machine:
            write(event.instance if self._output.format is Format.NAME else json_line(event_object(event)))
        else:
            write(event_line(event, self._screen, self._branches.text(event)))


def _follow(run_dir: RunDir, feed: Subscriber, follower: _Follower) -> None:
    """Show what comes, and what a change of ATLAS has hidden, until interrupted; say once that ATLAS is silent."""
    continuity = Continuity()
    heard_s, is_silent = time.monotonic(), False
    while True:
        message = feed.receive(_WAKE_S)
        watch_reader(0.0)
        now_s = time.monotonic()
        if message is not None:
            heard_s = now_s
            if is_silent:
                say("ATLAS is heard again")
                is_silent = False
        elif not is_silent and now_s - heard_s > _SILENT_S:
            refuse_absent(run_dir, Exit.UNKNOWN)
            say(f"nothing heard from ATLAS for {_SILENT_S:g} s; waiting for it")
            is_silent = True
        if isinstance(message, Event):
            follower.show(message)
        elif isinstance(message, DaemonStatus) and continuity.is_broken(message):
            try:
                missed = ask_events(run_dir, _ALL).events
            except (AtlasSilent, Refused):
                continue  # its next status is another occasion
            continuity.mend(message)
            for event in missed:
                follower.show(event)
