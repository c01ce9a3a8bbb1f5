"""``cdnctl top`` as values: what is shown, what a key does, and the lines of a frame. Pure.

Keys and looks at the fleet come in; a frame and what is to be done go out. The terminal is cli/fullscreen.py's,
the fleet cli/commands/top.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from bus.messages import ServiceView, Verb
from cli.answers import HEALTH_COLOURS, SERVICES, STATE_COLOURS, closing, ordered
from cli.rendering import Screen, clean, columns, cpu, duration, paint, quantity, size, spark
from cli.selection import matches

SORTS = ("name", "cpu", "mem", "lag", "restarts", "uptime", "state", "health")
TRAIL = 20
"""Looks that the small bars remember."""
VERBS = {"r": Verb.RESTART, "d": Verb.STOP, "u": Verb.START}
ASKS = {Verb.RESTART: "restart", Verb.STOP: "drain and stop", Verb.START: "start"}
KEYS = (
    "up down pgup pgdn home end   choose a service (also k and j)",
    "s                            sort by the next column",
    "S                            turn the order round",
    "/                            show only what fits: a part of a name, a glob, a state; esc shows all again",
    "enter w                      why: what happened to it, and what to do",
    "r                            restart it",
    "d                            drain and stop it",
    "u                            start it",
    "space                        hold the picture",
    "h ?                          this",
    "q                            quit",
)
_BOTTOM = "q quit  / filter  s sort  r restart  d drain  u start  w why  h help"


class Key(StrEnum):
    """Keys that are no characters."""

    UP = "up"
    DOWN = "down"
    PAGE_UP = "pgup"
    PAGE_DOWN = "pgdn"
    HOME = "home"
    END = "end"
    ENTER = "enter"
    ESCAPE = "esc"
    BACKSPACE = "backspace"


class Act(NamedTuple):
    """What is to be done because of a key."""

    what: str
    """``quit``, ``why`` or ``order``."""
    name: str = ""
    verb: Verb | None = None


@dataclass(frozen=True)
class Top:
    """What is shown, and how."""

    sort: str = "name"
    is_turned: bool = False
    filter: str = ""
    is_typing: bool = False
    """Whether keys go into the filter."""
    chosen: str = ""
    """The instance under the bar."""
    held: bool = False
    asked: Act | None = None
    """An order that waits for a yes."""
    page: tuple[str, ...] = ()
    """Text that covers the table, and how far it is scrolled."""
    scrolled: int = 0
    message: str = ""


class Trails:
    """Of each service, and of all together, the last values of CPU and memory."""

    def __init__(self) -> None:
        self.cpu: dict[str, deque[float | None]] = {}
        self.memory: dict[str, deque[float | None]] = {}

    def add(self, views: Sequence[ServiceView]) -> None:
        """One more look; what is gone is forgotten."""
        now: tuple[tuple[dict[str, deque[float | None]], dict[str, float | None]], ...] = (
            (self.cpu, {view.instance: view.cpu_cores for view in views}),
            (self.memory, {view.instance: view.rss_bytes for view in views}),
        )
        for trails, values in now:
            values[""] = sum(value or 0 for value in values.values())
            for gone in trails.keys() - values.keys():
                del trails[gone]
            for name, value in values.items():
                trails.setdefault(name, deque(maxlen=TRAIL)).append(value)


def shown(top: Top, views: Sequence[ServiceView]) -> list[ServiceView]:
    """The services that the filter lets through, in order."""
    fitting = [view for view in views if _fits(view, top.filter)]
    return ordered(SERVICES, fitting, f"-{top.sort}" if top.is_turned else top.sort)


def _fits(view: ServiceView, wanted: str) -> bool:
    if not wanted:
        return True
    words = (view.instance, view.service, view.host or "")
    states = (view.state.lower(), view.health)
    return any(wanted in word or matches(wanted, word) for word in words) or wanted.lower() in states


def press(top: Top, key: str, names: Sequence[str], page_rows: int) -> tuple[Top, Act | None]:
    """What a key does. ``names`` are those shown, in order; ``page_rows`` how many go on a screen."""
    if top.is_typing:
        return _typed(top, key), None
    if top.asked is not None:
        is_yes = key.lower() == "y"
        return replace(top, asked=None, message="" if is_yes else "nothing is done"), top.asked if is_yes else None
    if top.page:
        return _paged(top, key, page_rows)
    top = replace(top, message="")
    chosen = top.chosen if top.chosen in names else (names[0] if names else "")
    match key:
        case "q":
            return top, Act("quit")
        case Key.UP | "k" | Key.DOWN | "j" | Key.PAGE_UP | Key.PAGE_DOWN | Key.HOME | Key.END:
            return replace(top, chosen=_moved(chosen, key, names, page_rows)), None
        case "s":
            return replace(top, sort=SORTS[(SORTS.index(top.sort) + 1) % len(SORTS)], is_turned=False), None
        case "S":
            return replace(top, is_turned=not top.is_turned), None
        case "/":
            return replace(top, is_typing=True), None
        case Key.ESCAPE:
            return replace(top, filter=""), None
        case " ":
            return replace(top, held=not top.held), None
        case "h" | "?":
            return replace(top, page=KEYS, scrolled=0), None
        case "w" | Key.ENTER if chosen:
            return replace(top, chosen=chosen), Act("why", chosen)
        case "r" | "d" | "u" if chosen:
            return replace(top, chosen=chosen, asked=Act("order", chosen, VERBS[key])), None
        case _:
            return top, None


def _typed(top: Top, key: str) -> Top:
    match key:
        case Key.ENTER:
            return replace(top, is_typing=False)
        case Key.ESCAPE:
            return replace(top, is_typing=False, filter="")
        case Key.BACKSPACE:
            return replace(top, filter=top.filter[:-1])
        case _ if len(key) == 1 and key.isprintable():
            return replace(top, filter=top.filter + key)
        case _:
            return top


def _paged(top: Top, key: str, page_rows: int) -> tuple[Top, Act | None]:
    steps = {
        Key.UP: -1,
        "k": -1,
        Key.DOWN: 1,
        "j": 1,
        Key.PAGE_UP: -page_rows,
        Key.PAGE_DOWN: page_rows,
        " ": page_rows,
    }
    if key in steps:
        last = max(0, len(top.page) - page_rows)
        return replace(top, scrolled=min(last, max(0, top.scrolled + steps[key]))), None
    return replace(top, page=(), scrolled=0), None


def _moved(chosen: str, key: str, names: Sequence[str], page_rows: int) -> str:
    if not names:
        return ""
    at = names.index(chosen)
    match key:
        case Key.UP | "k":
            at -= 1
        case Key.DOWN | "j":
            at += 1
        case Key.PAGE_UP:
            at -= page_rows
        case Key.PAGE_DOWN:
            at += page_rows
        case Key.HOME:
            at = 0
        case _:
            at = len(names) - 1
    return names[max(0, min(len(names) - 1, at))]


# -- drawing ----------------------------------------------------------------------------------------------

_HEAD, _FOOT = 3, 1


def rows_of(height: int) -> int:
    """How many services go on a screen of that height."""
    return max(1, height - _HEAD - _FOOT)


def frame(
    top: Top, views: Sequence[ServiceView], trails: Trails, note: str, clock: str, screen: Screen, height: int
) -> list[str]:
    """Exactly ``height`` lines, none wider than the screen; ``note`` is what is wrong, in words."""
    width = screen.width or 80
    rows = shown(top, views)
    room = rows_of(height)
    if top.page:
        body = [cut(line, width) for line in top.page[top.scrolled : top.scrolled + height - _FOOT - 1]]
        lines = [_bold(f"{clock}  any key goes back, up and down scroll", width, screen), *body]
    else:
        names = [view.instance for view in rows]
        at = names.index(top.chosen) if top.chosen in names else 0
        first = max(0, min(at - room // 2, len(rows) - room))
        lines = _headlines(top, views, rows, trails, clock, screen, width)
        lines += _table(rows[first : first + room], at - first, trails, screen, width)
    lines = lines[: height - _FOOT]
    lines += [""] * (height - _FOOT - len(lines))
    return [*lines, _bottom(top, note, screen, width)]


def _headlines(
    top: Top,
    views: Sequence[ServiceView],
    rows: Sequence[ServiceView],
    trails: Trails,
    clock: str,
    screen: Screen,
    width: int,
) -> list[str]:
    marks = [f"sorted by {top.sort}{' turned' if top.is_turned else ''}"]
    if top.filter or top.is_typing:
        marks.append(f"filter /{clean(top.filter)} ({len(rows)} of {len(views)})")
    if top.held:
        marks.append("held")
    whole = (
        f"cpu {cpu(sum(view.cpu_cores or 0 for view in views))} {spark(trails.cpu.get('', ()))}  "
        f"mem {size(sum(view.rss_bytes or 0 for view in views))} {spark(trails.memory.get('', ()))}"
    )
    return [
        _bold(f"{clock}  {closing(views)}", width, screen),
        cut(f"{'  '.join(marks)}  {whole}", width),
    ]


class _Column(NamedTuple):
    header: str
    least: int
    """Columns that the terminal needs for it to be shown."""
    is_number: bool
    texts: list[tuple[str, str]]
    """Text and colour of each row."""


def _table(rows: Sequence[ServiceView], at: int, trails: Trails, screen: Screen, width: int) -> list[str]:
    """The heading and the rows; the row of the bar is in reverse. Narrow terminals have fewer columns."""

    def trail(of: Mapping[str, Iterable[float | None]], view: ServiceView) -> str:
        return spark(list(of.get(view.instance, ())), floor=0.0).rjust(TRAIL)

    table = [
        _Column("NAME", 0, False, [(clean(v.instance), "bold") for v in rows]),
        _Column("STATE", 0, False, [(v.state.value, STATE_COLOURS[v.state]) for v in rows]),
        _Column("HEALTH", 40, False, [(v.health.value, HEALTH_COLOURS[v.health]) for v in rows]),
        _Column("CPU", 0, True, [(cpu(v.cpu_cores), "") for v in rows]),
        _Column("", 100, False, [(trail(trails.cpu, v), "cyan") for v in rows]),
        _Column("MEM", 50, True, [(size(v.rss_bytes), "") for v in rows]),
        _Column("", 125, False, [(trail(trails.memory, v), "cyan") for v in rows]),
        _Column("LAG", 110, True, [(quantity("loop_lag_s", v.loop_lag_s), "") for v in rows]),
        _Column("FLIGHT", 140, True, [("-" if v.in_flight is None else str(v.in_flight), "") for v in rows]),
        _Column("UPTIME", 70, True, [(duration(v.uptime_s), "") for v in rows]),
        _Column("RESTARTS", 60, True, [(_count(v.restarts), "yellow" if v.restarts else "") for v in rows]),
        _Column("REASON", 60, False, [(clean(v.reason), "") for v in rows]),
    ]
    table = [column for column in table if column.least <= width]
    widths = [max([columns(column.header), *(columns(text) for text, _ in column.texts)]) for column in table]
    lines = [_line([(column.header, "dim") for column in table], table, widths, screen, width)]
    for number in range(len(rows)):
        cells = [column.texts[number] for column in table]
        if number == at:
            plain = _line(cells, table, widths, Screen(width=width), width)
            lines.append(f"\x1b[7m{plain}{' ' * (width - columns(plain))}\x1b[0m")
        else:
            lines.append(_line(cells, table, widths, screen, width))
    return lines


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _line(
    cells: Sequence[tuple[str, str]], table: Sequence[_Column], widths: Sequence[int], screen: Screen, width: int
) -> str:
    """One line, cut off at the terminal's edge, its colours not among what is cut."""
    parts: list[str] = []
    used = 0
    for (text, colour), column, wide in zip(cells, table, widths, strict=True):
        left = width - used - (2 if parts else 0)
        if left <= 0:
            break
        padded = " " * (wide - columns(text)) + text if column.is_number else text + " " * (wide - columns(text))
        fitting = cut(padded, left)
        parts.append(paint(fitting, colour, screen))
        used += columns(fitting) + (2 if len(parts) > 1 else 0)
    return "  ".join(parts)


def _bold(text: str, width: int, screen: Screen) -> str:
    return paint(cut(text, width), "bold", screen)


def _bottom(top: Top, note: str, screen: Screen, width: int) -> str:
    if top.asked is not None and top.asked.verb is not None:
        return paint(cut(f"{ASKS[top.asked.verb]} {clean(top.asked.name)}? y or n", width), "yellow", screen)
    if top.is_typing:
        return cut(f"/{clean(top.filter)}▏  enter keeps it, esc shows all", width)
    if top.message or note:
        return paint(cut(clean(top.message or note), width), "yellow", screen)
    return paint(cut(_BOTTOM, width), "dim", screen)


def cut(text: str, width: int) -> str:
    """At most ``width`` columns, with an ellipsis where something is missing."""
    if columns(text) <= width:
        return text
    kept = text[: max(0, width - 1)]
    while kept and columns(kept) > width - 1:
        kept = kept[:-1]
    return kept + "…" if width > 0 else ""
