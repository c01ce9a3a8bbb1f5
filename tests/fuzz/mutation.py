"""Honest bytes, damaged: cut, flipped, doubled, joined with another's. Pure but for the chance that is handed in."""

from __future__ import annotations

import random
from collections.abc import Sequence

_TELLING = (
    b"\0",
    b"\xff",
    b"\n",
    b"=",
    b'"',
    b"{",
    b"[",
    b"%",
    b"-1",
    b"1e999",
    b"9" * 40,
    b"\\ud800",
    b"\xed\xa0\x80",
)
_ROUNDS_MOST = 8


def damaged(honest: Sequence[bytes], chance: random.Random) -> bytes:
    """One of them after one to eight damages; at times nothing of it is left."""
    content = bytearray(chance.choice(honest))
    for _ in range(chance.randint(1, _ROUNDS_MOST)):
        at, to = sorted((chance.randint(0, len(content)), chance.randint(0, len(content))))
        match chance.randrange(7):
            case 0:
                del content[at:]
            case 1 if content:
                content[at % len(content)] ^= 1 << chance.randrange(8)
            case 2:
                content[at:at] = chance.choice(_TELLING)
            case 3:
                content[at:to] = b""
            case 4:
                content[at:at] = content[at:to]
            case 5:
                other = chance.choice(honest)
                content[at:] = other[chance.randint(0, len(other)) :]
            case _:
                content[at:to] = chance.randbytes(min(to - at, 64))
    return bytes(content)
