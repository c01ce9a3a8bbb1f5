"""The display of what is under way: on a terminal only, on stderr, and gone when the outcome is there.

It is drawn by whoever waits, between two looks at the world: no thread. rich is
imported at the first frame, so what is quick pays nothing for it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import click

from cli.context import is_terminal, screen_of
from cli.rendering import clean, duration, paint

if TYPE_CHECKING:
    from rich.live import Live

SHOWN_AFTER_S = 0.3
_FRAME_S = 0.08
_TOLD_EVERY_S = 5.0
"""Into a log, which somebody may read while it is written."""
_NAMED = 3
"""Of those that are waited for, in a line."""


class Mark(StrEnum):
    """How far one of the things is that are waited for."""

    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


_COLOURS = {Mark.WAITING: "yellow", Mark.DONE: "green", Mark.FAILED: "red"}
_GLYPHS = {Mark.DONE: ("✓", "+"), Mark.FAILED: ("✗", "x")}
_SPINNER = ("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\")


class Progress:
    """Lines of name, text and time, each marked; a context manager.

    Where stderr is no terminal, ``lines`` prints the title, and now and then what is still waited for.
    """

    def __init__(self, title: str, names: Iterable[str] = (), *, lines: bool = False) -> None:
        self._title = title
        self._rows: dict[str, tuple[Mark, str, float | None]] = {}
        # all asked now: while the display is up, rich puts something else in the place of sys.stderr
        self._terminal = is_terminal(sys.stderr)
        self._screen = screen_of(sys.stderr)
        self._glyph_set = 0 if (sys.stderr.encoding or "").lower().startswith("utf") else 1
        self._lines = lines and not self._terminal
        self._began_s = time.monotonic()
        self._drawn_s = self._told_s = self._began_s
        self._live: Live | None = None
        self._at_term: object = None
        for name in names:
            self._rows[name] = (Mark.WAITING, "", None)

    def __enter__(self) -> Progress:
        if self._lines:
            click.echo(self._title, err=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            signal.signal(signal.SIGTERM, self._at_term)  # type: ignore[arg-type]  # what signal() itself returned

    def show(self, name: str, text: str, mark: Mark = Mark.WAITING) -> None:
        """Where it stands now."""
        before = self._rows.get(name)
        if before is not None and before[:2] == (mark, text):
            return
        took_s = None if mark is Mark.WAITING else time.monotonic() - self._began_s
        self._rows[name] = (mark, text, took_s)

    def tick(self) -> None:
        """Draw the next frame, if it is time."""
        now_s = time.monotonic()
        if self._lines and now_s - self._told_s >= _TOLD_EVERY_S:
            self._told_s = now_s
            if left := waited_for({name: row[1] for name, row in self._rows.items() if row[0] is Mark.WAITING}):
                click.echo(f"  after {now_s - self._began_s:.0f} s {left}", err=True)
        if not self._terminal or now_s - self._began_s < SHOWN_AFTER_S or now_s - self._drawn_s < _FRAME_S:
            return
        self._drawn_s = now_s
        from rich.text import Text

        if self._live is None:
            self._live = self._opened()
        self._live.update(
            Text.from_ansi("\n".join(self._frame(now_s)), no_wrap=True, overflow="ellipsis"), refresh=True
        )

    def _opened(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._at_term = signal.signal(signal.SIGTERM, _end)  # or it would leave the terminal without a cursor
        live.start()
        return live

    def _frame(self, now_s: float) -> list[str]:
        screen, spinner = self._screen, _SPINNER[self._glyph_set]
        turning = spinner[int(now_s / _FRAME_S) % len(spinner)]
        elapsed_s = now_s - self._began_s
        name_width = max((len(name) for name in self._rows), default=0)
        text_width = max((len(clean(text)) for _, text, _ in self._rows.values()), default=0)
        lines = [f"{paint(self._title, 'bold', screen)} {paint(duration(elapsed_s), 'dim', screen)}"]
        shown, folded = fold(list(self._rows), {name: row[0] for name, row in self._rows.items()}, self._room())
        for name in shown:
            mark, text, took_s = self._rows[name]
            glyph = turning if mark is Mark.WAITING else _GLYPHS[mark][self._glyph_set]
            after = paint(duration(elapsed_s if took_s is None else took_s), "dim", screen)
            told = f"{clean(name):{name_width}}  {clean(text):{text_width}}"
            lines.append(f"  {paint(glyph, _COLOURS[mark], screen)} {told}  {after}")
        if folded:
            lines.append(paint(f"    {folded}", "dim", screen))
        return lines

    def _room(self) -> int:
        """Lines of the terminal for rows: less the title, what is folded, and the cursor's own."""
        try:
            return max(1, os.get_terminal_size(sys.__stderr__.fileno()).lines - 3) if sys.__stderr__ else 21
        except OSError:
            return 21


def fold(names: Sequence[str], marks: Mapping[str, Mark], room: int) -> tuple[list[str], str]:
    """The rows that fit, the least finished first to stay, and a word on the others. Pure."""
    if len(names) <= room:
        return list(names), ""
    order = [Mark.FAILED, Mark.WAITING, Mark.DONE]
    kept = set(sorted(names, key=lambda name: order.index(marks[name]))[:room])
    others = Counter(marks[name] for name in names if name not in kept)
    return [name for name in names if name in kept], "and " + ", ".join(f"{others[mark]} {mark}" for mark in others)


def waited_for(texts: Mapping[str, str]) -> str:
    """What is still waited for, in a line: name → what it says; empty if nothing is. Pure."""
    named = [f"{clean(name)} ({clean(text)})" if text else clean(name) for name, text in list(texts.items())[:_NAMED]]
    if len(texts) > _NAMED:
        named.append(f"{len(texts) - _NAMED} more")
    return f"still waiting for {', '.join(named)}" if named else ""


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
