"""Which type a column has, judged by all its values. Pure.

Text becomes a number only if the number, written out, says the same: ``007``, ``+1``, ``1_000``,
``NaN`` and integers that 64 bits do not hold stay text.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import TypeAlias

Value: TypeAlias = "int | float | str | bytes | None"

INT64 = range(-(2**63), 2**63)
EXACT_IN_FLOAT = range(-(2**53), 2**53 + 1)
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_REAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


class Kind(IntEnum):
    """What the values of a column have been so far; the larger one holds both of two."""

    EMPTY = 0
    INTEGER = 1
    REAL = 2
    BIG = 3
    """Integers that a float would round; with a REAL beside them, they are no numbers."""
    TEXT = 4


def kind_of(text: str) -> Kind:
    """What one field of a CSV is."""
    if not text:
        return Kind.EMPTY
    if _INTEGER.fullmatch(text):
        number = int(text)
        if number in EXACT_IN_FLOAT:
            return Kind.INTEGER
        return Kind.BIG if number in INT64 else Kind.TEXT
    if len(text) <= 40 and _REAL.fullmatch(text):
        return Kind.REAL if abs(float(text)) < float("inf") else Kind.TEXT
    return Kind.TEXT


def widen(column: Kind, value: Kind) -> Kind:
    """The kind that holds both; REAL with BIG is TEXT, as neither would come back as it was."""
    if {column, value} == {Kind.REAL, Kind.BIG}:
        return Kind.TEXT
    return max(column, value)


def sql_type(column: Kind) -> str:
    """The column's type in a STRICT table (https://sqlite.org/stricttables.html)."""
    match column:
        case Kind.INTEGER | Kind.BIG:
            return "INTEGER"
        case Kind.REAL:
            return "REAL"
        case Kind.TEXT:
            return "TEXT"
    return "ANY"


def convert(text: str, declared: str) -> Value:
    """The field as the column's type has it. An empty field of a column that is not text is NULL."""
    if declared == "TEXT":
        return text
    if not text:
        return None
    if declared == "INTEGER":
        return int(text)
    return float(text)


def json_type(column: set[type]) -> str:
    """The type of a column of JSON values, by the types seen (None aside); ANY keeps each as it is."""
    kinds = {int if kind is bool else str if kind in (list, dict) else kind for kind in column}
    if kinds == {int}:
        return "INTEGER"
    if kinds == {float}:
        return "REAL"
    if kinds == {str}:
        return "TEXT"
    return "ANY"
