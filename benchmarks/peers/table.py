"""What was measured, as a table: pure.

A cell is what became of one measure of one row. Medians and p95 are of the runs; a ratio is to the limit of its column,
the least that anybody could need, measured in the same run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Taken:
    """So many seconds, in each run."""

    seconds: tuple[float, ...]


@dataclass(frozen=True)
class NotWithin:
    """It did not happen in that time; never, where there are no means for it."""

    seconds: float
    has_means: bool


@dataclass(frozen=True)
class Used:
    """Of the processor, in % of a core, or of memory, in MiB of PSS: what 50 bare services use is taken off."""

    amount: float
    unit: str


@dataclass(frozen=True)
class Nothing:
    """Was not measured, and why."""

    why: str


Cell = Taken | NotWithin | Used | Nothing


@dataclass(frozen=True)
class Row:
    """One peer in one configuration, or one limit."""

    name: str
    version: str = ""
    limits: tuple[str, ...] = ()
    """Names of the rows whose cells are the limits of this one's, the first that has one in that column."""
    cells: Mapping[str, Cell] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    """Column → what has to be known of this cell."""


def p95(values: Sequence[float]) -> float:
    """The smallest that at least 95 % do not exceed; of fewer than twenty, the largest."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def amount(cell: Cell | None) -> float | None:
    """What can be compared: the median, or what was used."""
    match cell:
        case Taken(seconds):
            return statistics.median(seconds)
        case Used(amount=used):
            return used
    return None


def ratio(row: Row, column: str, rows: Iterable[Row]) -> float | None:
    """How many times the limit of its column, where it has one."""
    named = {each.name: amount(each.cells.get(column)) for each in rows}
    limit = next((named[name] for name in row.limits if named.get(name)), None)
    own = amount(row.cells.get(column))
    return own / limit if own is not None and limit else None


def time_text(seconds: float) -> str:
    """Three digits at most: 1.6 ms, 28 ms, 1.03 s, 19.2 s."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.1f} ms" if seconds < 0.00995 else f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"


def cell_text(cell: Cell | None, times: float | None) -> str:
    """As it stands in the table."""
    match cell:
        case Taken(seconds):
            text = time_text(statistics.median(seconds))
            text += f" ({time_text(p95(seconds))})" if len(seconds) > 1 else ""
        case NotWithin(seconds, has_means):
            return f"> {seconds:g} s" if has_means else "never"
        case Used(used, unit):
            text = f"{used:.2f} %" if unit == "%" else f"{used:.1f} {unit}"
        case _:
            return "–"
    if times is None:
        return text
    return f"{text} ×{times:.{2 if times < 0.095 else 1 if times < 9.95 else 0}f}"


def titles(services: int, limit_mib: int) -> dict[str, str]:
    """Column → what stands above it."""
    return {
        "crash": "crash → answering",
        "hang": "SIGSTOP → answering",
        "memory": f"over {limit_mib} MiB → replaced",
        "start": f"{services} started",
        "cpu": f"watching {services} idle, of a core",
        "pss": "and memory",
        "status": f"status of {services}",
    }


def note_text(row: Row, column: str) -> str:
    """What the cell's footnote says; empty, if it has none."""
    cell = row.cells.get(column)
    said = [row.notes.get(column, "")]
    if isinstance(cell, Nothing):
        said = [cell.why]
    elif isinstance(cell, NotWithin) and not cell.has_means:
        said.insert(0, f"waited for {cell.seconds:g} s")
    return "; ".join(each for each in said if each)


def table(rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[list[str]], list[str]]:
    """Lines of cells, the header first; and the footnotes, each once, by their numbers from 1."""
    notes: list[str] = []
    lines = [["", *columns.values()]]
    for row in rows:
        line = [f"{row.name} {row.version}".strip()]
        for column in columns:
            if column not in row.cells:
                line.append("")
                continue
            text = cell_text(row.cells[column], ratio(row, column, rows))
            if note := note_text(row, column):
                if note not in notes:
                    notes.append(note)
                text += f" [{notes.index(note) + 1}]"
            line.append(text)
        lines.append(line)
    return lines, notes


def plain(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """For a terminal."""
    lines = [[cell.replace(" → ", "→") for cell in line] for line in lines]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(shown + [f"[{number}] {note}" for number, note in enumerate(notes, 1)])


def markdown(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """For README.md."""
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    shown.insert(1, "|---" * len(lines[0]) + "|")
    return "\n".join(shown + ([""] if notes else []) + [f"{number}. {note}" for number, note in enumerate(notes, 1)])


def document(rows: Sequence[Row]) -> list[dict[str, object]]:
    """For other programs: rows with their cells, in seconds, % of a core and MiB."""
    return [
        {
            "name": row.name,
            "version": row.version,
            "limits": list(row.limits),
            "cells": {
                column: _cell_document(cell) | {"ratio": ratio(row, column, rows), "note": row.notes.get(column)}
                for column, cell in row.cells.items()
            },
        }
        for row in rows
    ]


def _cell_document(cell: Cell) -> dict[str, object]:
    match cell:
        case Taken(seconds):
            return {"median_s": statistics.median(seconds), "p95_s": p95(seconds), "seconds": list(seconds)}
        case NotWithin(seconds, has_means):
            return {"not_within_s": seconds, "never": not has_means}
        case Used(used, unit):
            return {"percent_of_a_core" if unit == "%" else "pss_mib": used}
        case Nothing(why):
            return {"why_not": why}
