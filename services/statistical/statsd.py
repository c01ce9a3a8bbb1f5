"""Lines of StatsD, with the tags and multiple values of DogStatsD. Pure.

    NAME:VALUE[:VALUE…]|TYPE[|@RATE][|#TAG:VALUE,TAG…]

``c`` counts, ``g`` sets a gauge or with a sign moves it, ``ms``, ``h`` and ``d`` are values of a
distribution, ``s`` is a member of a set. What follows in further fields is passed over.
"""

from __future__ import annotations

import enum
import re

from services.statistical.sketch import LARGEST


class Kind(enum.StrEnum):
    """What a series is."""

    COUNTER = "counter"
    GAUGE = "gauge"
    DISTRIBUTION = "distribution"
    SET = "set"


KINDS = {
    b"c": Kind.COUNTER,
    b"g": Kind.GAUGE,
    b"ms": Kind.DISTRIBUTION,
    b"h": Kind.DISTRIBUTION,
    b"d": Kind.DISTRIBUTION,
    b"s": Kind.SET,
}
CAUSES = ("line", "type", "value", "rate", "name", "long", "utf8", "event")
"""Why a line may be refused."""
LINE_BYTES = 8192
NAME_CHARS = 200
MEMBER_BYTES = 512
RATE_MIN = 1e-6
_ALLOWED = re.compile(r"[A-Za-z0-9_.=;:@+-]+")
_SPACE = re.compile(r"\s+")

Line = tuple[Kind, bytes, bytes, float]
"""Kind, the series' name and tags as they were sent, the value or values, how many of it the sender means."""


class GarbageError(ValueError):
    """A line that is none; ``cause`` is one of CAUSES."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def parse(line: bytes) -> Line:
    """One line; raises GarbageError. The value is looked at by whoever knows the series."""
    name, _, rest = line.partition(b":")
    value, bar, tail = rest.partition(b"|")
    if not bar or not name or not value:
        if len(line) > LINE_BYTES:
            raise GarbageError("long", f"it is longer than {LINE_BYTES} bytes")
        raise GarbageError("line", "it is not NAME:VALUE|TYPE")
    kind = KINDS.get(tail)
    if kind is not None:
        return kind, name, value, 1.0
    return _with_more(line, name, value, tail)


def _with_more(line: bytes, name: bytes, value: bytes, tail: bytes) -> Line:
    if len(line) > LINE_BYTES:
        raise GarbageError("long", f"it is longer than {LINE_BYTES} bytes")
    type, *more = tail.rstrip(b"\r").split(b"|")
    kind = KINDS.get(type)
    if kind is None:
        if line.startswith((b"_e{", b"_sc|")):
            raise GarbageError("event", "events and service checks are not taken")
        raise GarbageError("type", "its type is none of c, g, ms, h, d, s")
    stands_for = 1.0
    for field in more:
        match field[:1]:
            case b"@":
                rate = number(field[1:], "rate")
                if not RATE_MIN <= rate <= 1:
                    raise GarbageError("rate", f"its rate is not {RATE_MIN:g} to 1")
                stands_for = 1 / rate
            case b"#" if len(field) > 1:
                name = name + b"|" + field
    return kind, name, value, stands_for


def number(text: bytes, cause: str = "value") -> float:
    """A finite number that is not too large; raises GarbageError."""
    try:
        value = float(text)
    except ValueError:
        raise GarbageError(cause, "it is no number") from None
    if not -LARGEST <= value <= LARGEST or b"_" in text:
        raise GarbageError(cause, f"it is no number within {LARGEST:g}")
    return value


def name_of(raw: bytes) -> str:
    """The name of a series as it is shown: the sender's, and its tags in order, as NAME;TAG=VALUE;TAG.

    What has no place in a path becomes ``-``, blanks ``_``. Raises GarbageError.
    """
    plain, _, tags = raw.partition(b"|#")
    try:
        name = _clean(plain.decode())
        pairs = sorted({_clean(tag).replace(":", "=", 1) for tag in tags.decode().split(",") if tag})
    except UnicodeDecodeError:
        raise GarbageError("utf8", "its name is not UTF-8") from None
    whole = ";".join([name, *pairs])
    if not name.strip("-_.") or len(whole) > NAME_CHARS:
        raise GarbageError("name", f"its name is not 1 to {NAME_CHARS} characters")
    return whole


def _clean(text: str) -> str:
    text = _SPACE.sub("_", text.strip())
    return text if _ALLOWED.fullmatch(text) else "".join(one if _ALLOWED.match(one) else "-" for one in text)
