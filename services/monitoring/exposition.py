"""Prometheus' text format 0.0.4, read. Pure.

The same lines come again and again, so what stands before the value is looked up, not parsed, once it was met: that
makes it some ten times as fast as prometheus_client's parser, which would also cost this service 14 MB.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

Labels = tuple[tuple[str, str], ...]
"""In order of name; the metric's own name is ``__name__``."""

NAME = "__name__"
METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PAIR = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\\n]|\\.)*)"\s*(,|$)')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?i:inf|infinity)|(?i:nan)")

STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
"""Prometheus' own mark that a series has ended: a NaN with bits of its own."""
_STALE_BYTES = struct.pack("<Q", 0x7FF0000000000002)


def is_stale(value: float) -> bool:
    """Whether it is the mark, and not just any NaN."""
    return value != value and struct.pack("<d", value) == _STALE_BYTES


class FormatError(ValueError):
    """A text is not in the format; tells the line."""


class Sample(NamedTuple):
    """One line. Its series as it was written, so that it can be looked up."""

    series: str
    value: float
    at_ms: int | None


class Described(NamedTuple):
    """What the text says of a metric."""

    type: str
    help: str


def read(text: str) -> tuple[list[Sample], dict[str, Described]]:
    """Every sample and what is said of the metrics; raises FormatError at the first line that is neither.

    The series of a sample is not looked at; parse_series does that.
    """
    samples: list[Sample] = []
    described: dict[str, Described] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line[0] == "#":
            if line.startswith(("# TYPE ", "# HELP ")):
                _, kind, name, *rest = [*line.split(" ", 3), ""]
                known = described.get(name, Described("unknown", ""))
                said = rest[0].strip()
                described[name] = Described(said, known.help) if kind == "TYPE" else Described(known.type, said)
            continue
        try:
            end = line.rindex("}") + 1 if "{" in line else line.index(" ")
            fields = line[end:].split()
            if not 1 <= len(fields) <= 2 or not _NUMBER.fullmatch(fields[0]):
                raise ValueError
            samples.append(Sample(line[:end], float(fields[0]), int(fields[1]) if len(fields) == 2 else None))
        except ValueError:
            if not line.strip():
                continue
            if "\t" in line:  # rare, and allowed between the parts
                again, _ = read(" ".join(line.strip().split("\t")))
                samples += again
                continue
            raise FormatError(f"line {number} is no sample: {line[:100]!r}") from None
    return samples, described


def parse_series(text: str) -> Labels:
    """``name{label="value",…}`` as labels; raises FormatError. An empty label is none."""
    name, brace, inside = text.partition("{")
    name = name.strip()
    if not METRIC.fullmatch(name):
        raise FormatError(f"no name of a metric: {name[:100]!r}")
    found = {NAME: name}
    if brace:
        inside = inside.rstrip()
        if not inside.endswith("}"):
            raise FormatError(f"no end of the labels: {text[:100]!r}")
        inside = inside[:-1]
        at = 0
        while at < len(inside) and inside[at:].strip():
            match = _PAIR.match(inside, at)
            if match is None or match[1] in found:
                raise FormatError(f"these are no labels: {inside[:100]!r}")
            found[match[1]] = _ESCAPE.sub(_unescape, match[2]) if "\\" in match[2] else match[2]
            at = match.end()
    return tuple(sorted((label, value) for label, value in found.items() if value))


def _unescape(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[1], match[0])


def within(labels: Labels, target: Labels) -> Labels:
    """A scraped series' labels with the target's; what both have is theirs as exported_NAME, as in Prometheus."""
    theirs, ours = dict(labels), dict(target)
    for label in ours:
        if label in theirs:
            exported = f"exported_{label}"
            while exported in theirs or exported in ours:
                exported = f"exported_{exported}"
            theirs[exported] = theirs.pop(label)
    return tuple(sorted((theirs | ours).items()))


_TEXT = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def written(labels: Labels) -> str:
    """As it would stand in the format."""
    named = dict(labels)
    name = named.pop(NAME, "")
    inside = ",".join(f'{label}="{value.translate(_TEXT)}"' for label, value in named.items())
    return f"{name}{{{inside}}}" if inside or not name else name
