"""How operators read things: columns, colours, durations, sizes. Pure: no terminal is asked, nothing is printed.

Colours are given as words and painted only where the caller says that it writes
to a terminal. Without a width nothing is cut or wrapped. Control characters in
what services say are shown, never sent to the terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

ABSENT = "-"

_NUMERIC = frozenset(
    {"PID", "UPTIME", "RESTARTS", "CPU", "MEM", "SEEN", "LAG", "FLIGHT", "REQUESTS", "TOOK", "USED", "SOFT", "HARD"}
)
_SGR = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
_LEAST_WRAP = 30  # a last column narrower than this goes on lines of its own


class Screen(NamedTuple):
    """Where text goes."""

    width: int | None = None
    """Columns of a terminal; None where nothing must be cut: a pipe or a file."""
    colour: bool = False


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    colour: str = ""


class Format(StrEnum):
    """What ``-o`` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    NAME = "name"


class Output(NamedTuple):
    """The form that was asked for."""

    format: Format = Format.TABLE
    headers: bool = True
    """False: neither column names nor a closing line."""
    sort: str = ""

    @property
    def is_machine(self) -> bool:
        """Whether no person is to read it."""
        return self.format in (Format.JSON, Format.JSONL, Format.NAME)


def paint(text: str, colour: str, screen: Screen) -> str:
    """The text in that colour, where there are colours."""
    return f"\x1b[{_SGR[colour]}m{text}\x1b[0m" if screen.colour and colour else text


def clean(text: str) -> str:
    """On one line, with control characters made visible: a log line must not steer a terminal."""
    flat = " ⏎ ".join(line for line in text.splitlines() if line.strip()) if "\n" in text else text
    if flat.isprintable():
        return flat
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in flat)


def _escaped(character: str) -> str:
    return " " if character == "\t" else character.encode("unicode_escape", "backslashreplace").decode("ascii")


def columns(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def duration(seconds: float | None) -> str:
    """A duration in two units at most: 0.4s, 12s, 3m12s, 2h05m, 3d04h."""
    if seconds is None:
        return ABSENT
    if seconds < 0:
        return "0s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def size(count_bytes: int | None) -> str:
    """Bytes in binary units, three digits: 512B, 31.4MiB, 2.10GiB."""
    if count_bytes is None:
        return ABSENT
    amount = float(count_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 999.5 or unit == "TiB":
            break
        amount /= 1024
    if unit == "B":
        return f"{count_bytes}B"
    digits = 2 if amount < 9.995 else 1 if amount < 99.95 else 0
    return f"{amount:.{digits}f}{unit}"


def cpu(cores: float | None) -> str:
    """Use of CPU in percent of one core, as top shows it."""
    if cores is None:
        return ABSENT
    return f"{cores * 100:.1f}%" if cores < 0.9995 else f"{cores * 100:.0f}%"


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], screen: Screen) -> list[str]:
    """Lines of a table; its last column wraps under itself if the screen has a width."""
    *fixed, last = headers
    widths = [max([columns(header), *(columns(row[n].text) for row in rows)]) for n, header in enumerate(fixed)]
    gap = "  "
    if screen.width is not None and sum(widths) + 2 * len(fixed) + columns(last) > screen.width:
        gap = " "
    indent = sum(widths) + len(gap) * len(fixed)

    def line(cells: Sequence[Cell]) -> str:
        parts = []
        for cell, header, width in zip(cells, fixed, widths, strict=True):
            padding = " " * (width - columns(cell.text))
            text = paint(cell.text, cell.colour, screen)
            parts.append(padding + text if header in _NUMERIC else text + padding)
        return gap.join(parts)

    lines: list[str] = []
    for row in [[Cell(header, "dim") for header in headers], *rows]:
        tail = row[-1]
        start = line(row[:-1])
        if screen.width is None or indent + columns(tail.text) <= screen.width:
            lines.append(f"{start}{gap}{paint(tail.text, tail.colour, screen)}".rstrip())
            continue
        room = screen.width - indent
        if room >= _LEAST_WRAP:
            first, *more = wrapped(tail.text, room)
            lines.append(f"{start}{gap}{paint(first, tail.colour, screen)}")
            lines += [" " * indent + paint(text, tail.colour, screen) for text in more]
        elif tail.text == ABSENT:
            lines.append(start.rstrip())
        else:
            lines.append(start.rstrip())
            lines += ["    " + paint(text, tail.colour, screen) for text in wrapped(tail.text, screen.width - 4)]
    return lines


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns, broken at spaces where there are any."""
    width = max(width, 8)
    lines, line = [], ""
    for word in text.split(" "):
        while columns(word) > width:  # a path or a URL
            room = width - columns(line) - (1 if line else 0)
            if room <= 0:
                lines.append(line)
                line = ""
                continue
            taken = _fitting(word, room)
            lines.append(f"{line} {taken}" if line else taken)
            line, word = "", word[len(taken) :]
        joined = f"{line} {word}" if line else word
        if columns(joined) <= width:
            line = joined
        else:
            lines.append(line)
            line = word
    return [*lines, line]


def indented(line: str, width: int) -> list[str]:
    """The line in at most ``width`` columns, further ones four columns deeper than it begins."""
    text = line.lstrip(" ")
    at = min(len(line) - len(text), width // 2)
    if at + columns(text) <= width:
        return [" " * at + text]
    deeper = min(at + 4, width // 2)
    first, *rest = wrapped(text, width - deeper)
    return [" " * at + first, *(" " * deeper + part for part in rest)]


def _fitting(word: str, width: int) -> str:
    """The longest beginning of at most ``width`` columns, and at least one character."""
    end = 1
    while end < len(word) and columns(word[: end + 1]) <= width:
        end += 1
    return word[:end]


def moment(time_s: float) -> datetime | None:
    """That Unix time, in UTC; None for what a broken sender takes for a time."""
    try:
        return datetime.fromtimestamp(time_s, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def local_time(time_s: float) -> str:
    """For people: local, with milliseconds."""
    at = moment(time_s)
    local = at and at.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03}" if local else ABSENT


def rfc3339(time_s: float) -> str | None:
    """For machines: UTC, with milliseconds."""
    at = moment(time_s)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def quantity(dimension: str, value: float | None) -> str:
    """How much of what a service may use, in the unit that its name says."""
    if value is None:
        return ABSENT
    match dimension:
        case "rss_bytes":
            return size(round(value))
        case "cpu_cores":
            return cpu(value)
        case "loop_lag_s":
            return f"{value * 1000:.0f}ms" if value < 1 else duration(value)
        case _:
            return f"{value:g}"


_SPARKS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float | None], width: int | None = None, *, floor: float | None = None) -> str:
    """A line of small bars, the lowest value the smallest; where nothing is known there is a blank.

    ``width``: at most so many, each the largest of its share. ``floor`` is what has no height at all, the smallest
    value if it is not given.
    """
    shown = list(values) if width is None or len(values) <= width else shrunk(values, width)
    known = [value for value in shown if value is not None]
    if not known:
        return " " * len(shown)
    low = min(known) if floor is None else floor
    span = max(known) - low
    top = len(_SPARKS) - 1
    return "".join(
        " " if value is None else _SPARKS[round((value - low) / span * top)] if span > 0 else _SPARKS[0]
        for value in shown
    )


def shrunk(values: Sequence[float | None], width: int) -> list[float | None]:
    """So many values, each the largest of its share."""
    bounds = [round(n * len(values) / width) for n in range(width + 1)]
    shares = [values[bounds[n] : bounds[n + 1]] for n in range(width)]
    return [max((value for value in share if value is not None), default=None) for share in shares]
