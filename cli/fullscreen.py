"""A whole terminal for a while: the alternate screen, keys as they are pressed; and everything as it was afterwards.

However it ends: by a return, an exception, Ctrl-C, SIGTERM or SIGHUP; and while it is stopped by Ctrl-Z, until it
goes on. Only SIGKILL leaves a terminal as it is, for which there is reset(1).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import Any

from cli.live import Key

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
_LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
_ESCAPE_S = 0.05
"""What a terminal sends for one key comes at once; an escape alone is the key."""

_SEQUENCES = {
    b"\x1b[A": Key.UP,
    b"\x1bOA": Key.UP,
    b"\x1b[B": Key.DOWN,
    b"\x1bOB": Key.DOWN,
    b"\x1b[5~": Key.PAGE_UP,
    b"\x1b[6~": Key.PAGE_DOWN,
    b"\x1b[H": Key.HOME,
    b"\x1bOH": Key.HOME,
    b"\x1b[1~": Key.HOME,
    b"\x1b[F": Key.END,
    b"\x1bOF": Key.END,
    b"\x1b[4~": Key.END,
    b"\r": Key.ENTER,
    b"\n": Key.ENTER,
    b"\x7f": Key.BACKSPACE,
    b"\x08": Key.BACKSPACE,
    b"\x1b": Key.ESCAPE,
}
_LONGEST_FIRST = sorted(_SEQUENCES, key=len, reverse=True)


def decoded(typed: bytes) -> list[str]:
    """The keys that a terminal has sent; what is no key that is known here is left out. Pure."""
    keys: list[str] = []
    while typed:
        known = next((sequence for sequence in _LONGEST_FIRST if typed.startswith(sequence)), None)
        if known is not None and (known != b"\x1b" or typed[1:2] not in (b"[", b"O")):
            keys.append(_SEQUENCES[known])
            typed = typed[len(known) :]
        elif typed[:1] == b"\x1b":  # of a key that has no meaning here
            end = next((n for n in range(2, len(typed)) if 0x40 <= typed[n] <= 0x7E), len(typed) - 1)
            typed = typed[end + 1 :]
        else:
            length = next((n for n in range(1, 5) if _is_whole(typed[:n])), 1)
            character = typed[:length].decode(errors="ignore")
            keys += [character] if character.isprintable() and character else []
            typed = typed[length:]
    return keys


def _is_whole(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


class Fullscreen:
    """A context manager; one at a time, in the main thread, with stdin and stdout a terminal."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._was: list[Any] = []
        self._before: dict[int, Any] = {}
        self._woke_before = -1
        self.is_stale = True
        """Whether all is to be drawn anew: at the beginning, with another size, and after having been stopped."""

    def __enter__(self) -> Fullscreen:
        sys.stdout.flush()
        self._was = termios.tcgetattr(self._in)
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: _end,
            signal.SIGHUP: _end,
            signal.SIGWINCH: self._resized,
            signal.SIGTSTP: self._stop,
        }
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._woke_before = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._give_back()

    def _take(self) -> None:
        tty.setcbreak(self._in, termios.TCSADRAIN)
        self._write(_ENTER)
        self.is_stale = True

    def _leave(self) -> None:
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._was)
        except (OSError, termios.error):
            return  # the terminal itself has gone: there is nothing to restore

    def _give_back(self) -> None:
        self._leave()
        signal.set_wakeup_fd(self._woke_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for fd in self._wake:
            os.close(fd)

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self.is_stale = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets its terminal; this goes on here when it is told to go on."""
        self._leave()
        held = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, held)
        self._take()

    def size(self) -> tuple[int, int]:
        """Columns and lines, now."""
        try:
            found = os.get_terminal_size(self._out)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def draw(self, lines: Sequence[str]) -> None:
        """The whole screen, in one go, so that nothing flickers."""
        clear = "\x1b[2J" if self.is_stale else ""
        self.is_stale = False
        self._write(f"\x1b[H{clear}" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J")

    def keys(self, within_s: float) -> list[str]:
        """What was pressed; nothing after that time, or when a signal came."""
        ready, _, _ = select.select([self._in, self._wake[0]], [], [], max(0.0, within_s))
        if self._wake[0] in ready:
            self._drain()
        if self._in not in ready:
            return []
        typed = os.read(self._in, 1024)
        if not typed:
            raise OSError("the terminal has gone")
        deadline_s = time.monotonic() + _ESCAPE_S
        while typed.endswith((b"\x1b", b"\x1b[", b"\x1bO")) and (left_s := deadline_s - time.monotonic()) > 0:
            if select.select([self._in], [], [], left_s)[0]:
                typed += os.read(self._in, 1024)
        return decoded(typed)

    def _drain(self) -> None:
        try:
            os.read(self._wake[0], 1024)
        except BlockingIOError:
            return

    def _write(self, text: str) -> None:
        left = memoryview(text.encode(sys.stdout.encoding or "utf-8", "replace"))
        while left:
            left = left[os.write(self._out, left) :]


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
