"""SQL as text: its tokens, and the shape that calls differing only in values share. Pure.

This is a lexer of SQLite's SQL (https://sqlite.org/lang.html), not a parser: SQLite has
accepted the text before any of this sees it. It never fails, and takes linear time on any text.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from msgspec import Struct


class Kind(Enum):
    """What a token is."""

    WORD = auto()
    """Keyword or bare identifier; its text is lower-cased, as SQLite does not mind case."""
    QUOTED = auto()
    """Identifier in quotes; its text is without them."""
    VALUE = auto()
    """A literal or a parameter."""
    OPERATOR = auto()


class Token(Struct, frozen=True):
    """One token; ``text`` of every VALUE is ``?``."""

    kind: Kind
    text: str


_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<value>[xX]?'(?:[^']|'')*+(?:'|\Z)
        |0[xX][0-9a-fA-F_]+|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?
        |\?[0-9]*|[:@$][^\W\d]\w*)
    |(?P<quoted>"(?:[^"]|"")*+(?:"|\Z)|`(?:[^`]|``)*+(?:`|\Z)|\[[^\]]*(?:\]|\Z))
    |(?P<word>[^\W\d][\w$]*)
    |(?P<operator><=|>=|<>|!=|==|\|\||<<|>>|->>|->|.)
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens(sql: str) -> list[Token]:
    """The tokens of the text, without white space and comments."""
    found = []
    for match in _TOKEN.finditer(sql):
        text = match.group()
        match match.lastgroup:
            case "value":
                found.append(Token(Kind.VALUE, "?"))
            case "word":
                found.append(Token(Kind.WORD, text.lower()))
            case "quoted":
                quote = text[-1] if text[0] != "[" else None
                inner = text[1:-1] if len(text) > 1 else ""
                found.append(Token(Kind.QUOTED, inner.replace(quote * 2, quote) if quote else inner))
            case "operator":
                found.append(Token(Kind.OPERATOR, text))
    return found


def shape(sql: str) -> str:
    """The text with every value as ``?``, bare words in lower case, one space between tokens.

    Lists of values (``IN (1, 2, 3)``) become one ``( ? )``; a closing semicolon is dropped. The shape of a
    shape is itself.
    """
    texts: list[str] = []
    for token in tokens(sql):
        if token.kind is Kind.VALUE and texts[-2:] == ["?", ","] and _opens_values(texts):
            texts.pop()
            continue
        texts.append(f'"{token.text.replace(chr(34), chr(34) * 2)}"' if token.kind is Kind.QUOTED else token.text)
    while texts and texts[-1] == ";":
        texts.pop()
    return " ".join(texts)


def _opens_values(texts: list[str]) -> bool:
    return len(texts) >= 4 and texts[-3] == "(" and texts[-4] == "in"
