"""The query language: the part of PromQL that is understood, read into a tree. Pure.

What is not understood is refused by name, at the place where it stands. Half an answer would be worse than none.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from services.monitoring.exposition import LABEL, NAME
from services.monitoring.pattern import Matcher, PatternError

DEPTH = 50
AGGREGATES = ("sum", "avg", "min", "max", "count")
RANGE_FUNCTIONS = (
    "rate",
    "increase",
    "delta",
    "irate",
    "changes",
    "resets",
    "avg_over_time",
    "min_over_time",
    "max_over_time",
    "sum_over_time",
    "count_over_time",
    "last_over_time",
    "present_over_time",
    "quantile_over_time",
)
VECTOR_FUNCTIONS = ("abs", "ceil", "floor", "absent", "scalar", "vector", "time")
FUNCTIONS = (*RANGE_FUNCTIONS, *VECTOR_FUNCTIONS)
COMPARISONS = ("==", "!=", "<", ">", "<=", ">=")
SETS = ("and", "or", "unless")
_PRECEDENCE = {
    "or": 1,
    "and": 2,
    "unless": 2,
    **dict.fromkeys(COMPARISONS, 3),
    "+": 4,
    "-": 4,
    "*": 5,
    "/": 5,
    "%": 5,
    "^": 7,
}
_NEGATION = 6
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": 31_536_000_000}
LONGEST_MS = 100 * _UNITS_MS["y"]
_DURATION = re.compile(r"(?:[0-9]+y)?(?:[0-9]+w)?(?:[0-9]+d)?(?:[0-9]+h)?(?:[0-9]+m(?!s))?(?:[0-9]+s)?(?:[0-9]+ms)?")
_TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*\s*)*(?:
    (?P<duration>[0-9]+(?:ms|[smhdwy])(?:[0-9]+(?:ms|[smhdwy]))*(?![a-zA-Z0-9_]))
    |(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)
    |(?P<sign>==|!=|=~|!~|<=|>=|[-+*/%^<>(){}\[\],=@:])
    |(?P<end>$)
    )""",
    re.VERBOSE,
)


class QueryError(ValueError):
    """A query cannot be answered; tells what of it."""


class Number(NamedTuple):
    """A scalar."""

    value: float


class Selector(NamedTuple):
    """Series, and how far back of each step."""

    matchers: tuple[Matcher, ...]
    range_ms: int | None = None
    offset_ms: int = 0


class Call(NamedTuple):
    """A function."""

    name: str
    arguments: tuple[Node, ...]


class Aggregate(NamedTuple):
    """Many series into few."""

    operator: str
    inside: Node
    by: bool
    labels: tuple[str, ...]


class Binary(NamedTuple):
    """Two sides. ``on``: by these labels only; else by all but these."""

    operator: str
    left: Node
    right: Node
    is_bool: bool = False
    on: bool = False
    labels: tuple[str, ...] = ()


class Negation(NamedTuple):
    """With the other sign."""

    inside: Node


Node = Number | Selector | Call | Aggregate | Binary | Negation


def kind(node: Node) -> str:
    """scalar, vector or matrix."""
    match node:
        case Number():
            return "scalar"
        case Selector():
            return "vector" if node.range_ms is None else "matrix"
        case Call():
            return "scalar" if node.name in ("scalar", "time") else "vector"
        case Negation():
            return kind(node.inside)
        case Binary():
            return "scalar" if kind(node.left) == kind(node.right) == "scalar" else "vector"
        case Aggregate():
            return "vector"


def duration_ms(text: str) -> int:
    """``1h30m``; raises QueryError."""
    if not text or not _DURATION.fullmatch(text):
        raise QueryError(f"{text[:50]!r} is no duration; 5m, or 1h30m, is one")
    total = sum(int(number[:15]) * _UNITS_MS[unit] for number, unit in re.findall(r"([0-9]+)(ms|[smhdwy])", text))
    if total > LONGEST_MS:
        raise QueryError(f"{text[:50]} is too long: at most 100y")
    return total


def parse(text: str) -> Node:
    """The tree of a query; raises QueryError."""
    parser = _Parser(text)
    node = parser.expression(0)
    parser.expect("end")
    return node


def parse_selector(text: str) -> Selector:
    """A selector alone, as ``match[]`` has it; raises QueryError."""
    node = parse(text)
    if not isinstance(node, Selector) or node.range_ms is not None or node.offset_ms:
        raise QueryError(f"{text[:100]!r} is no selector of series")
    return node


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[_Token] = []
        self._next = 0
        self._depth = 0
        at = 0
        while True:
            match = _TOKEN.match(text, at)
            if match is None:
                rest = text[at:].lstrip()
                raise QueryError(f"{rest[:20]!r} at character {len(text) - len(rest) + 1} is not understood")
            group = match.lastgroup or "end"
            self._tokens.append(_Token(group, match[group], match.start(group)))
            at = match.end()
            if group == "end":
                return

    # -- tokens -----------------------------------------------------------------------------------------

    @property
    def token(self) -> _Token:
        return self._tokens[self._next]

    def take(self) -> _Token:
        token = self.token
        if token.kind != "end":
            self._next += 1
        return token

    def accept(self, text: str) -> bool:
        if self.token.text == text and self.token.kind in ("sign", "name"):
            self._next += 1
            return True
        return False

    def expect(self, wanted: str) -> _Token:
        token = self.token
        if wanted in ("end", "name", "text") and token.kind == wanted:
            return self.take()
        if token.kind == "sign" and token.text == wanted:
            return self.take()
        shown = {"end": "the end", "name": "a name", "text": "a text in quotes"}.get(wanted, repr(wanted))
        raise self.wrong(f"{shown} is expected")

    def wrong(self, why: str) -> QueryError:
        token = self.token
        shown = f"{token.text[:50]!r} at character {token.at + 1}" if token.kind != "end" else "at the end"
        return QueryError(f"{shown}: {why}")

    # -- expressions ------------------------------------------------------------------------------------

    def expression(self, least: int) -> Node:
        self._depth += 1
        if self._depth > DEPTH:
            raise QueryError(f"it is nested too deeply: at most {DEPTH} levels")
        left = self.unary()
        while True:
            operator = self.token.text.lower() if self.token.kind in ("sign", "name") else ""
            precedence = _PRECEDENCE.get(operator, 0)
            if operator == "atan2":
                raise self.wrong("it is not understood here")
            if not precedence or precedence < least:
                break
            self.take()
            is_bool, on, labels = self.modifiers(operator)
            right = self.expression(precedence if operator == "^" else precedence + 1)
            left = self.binary(operator, left, right, is_bool, on, labels)
        self._depth -= 1
        return left

    def modifiers(self, operator: str) -> tuple[bool, bool, tuple[str, ...]]:
        is_bool = self.word("bool")
        if is_bool and operator not in COMPARISONS:
            raise QueryError(f"bool is for comparisons only, not for {operator}")
        on = False
        labels: tuple[str, ...] = ()
        for word in ("on", "ignoring"):
            if self.token.text.lower() == word and self._tokens[self._next + 1].text == "(":
                self.take()
                on, labels = word == "on", self.labels()
                break
        for word in ("group_left", "group_right"):
            if self.token.text.lower() == word:
                raise self.wrong("matching of many to one is not understood here")
        return is_bool, on, labels

    def word(self, word: str) -> bool:
        if self.token.kind == "name" and self.token.text.lower() == word:
            self.take()
            return True
        return False

    def binary(self, operator: str, left: Node, right: Node, is_bool: bool, on: bool, labels: tuple[str, ...]) -> Node:
        kinds = {kind(left), kind(right)}
        if "matrix" in kinds:
            raise QueryError(f"{operator} is not for ranges: put a function such as rate() around the range")
        if operator in SETS and "scalar" in kinds:
            raise QueryError(f"{operator} is between vectors only")
        if (on or labels) and "scalar" in kinds:
            raise QueryError("on and ignoring are between vectors only")
        if operator in COMPARISONS and kinds == {"scalar"} and not is_bool:
            raise QueryError(f"two scalars are compared with {operator} bool")
        return Binary(operator, left, right, is_bool, on, labels)

    def unary(self) -> Node:
        if self.token.kind == "sign" and self.token.text in "+-":
            negative = self.take().text == "-"
            inside = self.expression(_NEGATION)
            if kind(inside) == "matrix":
                raise QueryError("a range has no sign")
            if not negative:
                return inside
            return Number(-inside.value) if isinstance(inside, Number) else Negation(inside)
        return self.suffixes(self.atom())

    def atom(self) -> Node:
        token = self.take()
        match token.kind:
            case "number":
                return Number(float(int(token.text, 16) if token.text[:2] in ("0x", "0X") else token.text))
            case "sign" if token.text == "(":
                inside = self.expression(0)
                self.expect(")")
                return inside
            case "sign" if token.text == "{":
                return Selector(self.matchers(None))
            case "name":
                return self.named(token)
        self._next -= token.kind != "end"
        raise self.wrong("an expression is expected")

    def named(self, token: _Token) -> Node:
        name, lower = token.text, token.text.lower()
        opens = self.token.text == "("
        if lower in ("inf", "nan") and not opens:
            return Number(math.inf if lower == "inf" else math.nan)
        if lower in AGGREGATES and (opens or self.token.text.lower() in ("by", "without")):
            return self.aggregate(lower)
        if opens:
            if name in FUNCTIONS:
                return self.call(name)
            known = ", ".join((*AGGREGATES, *FUNCTIONS))
            raise QueryError(f"the function {name}() is not understood here; there are {known}")
        if lower in SETS or lower in ("by", "without", "on", "ignoring", "bool", "offset"):
            self._next -= 1
            raise self.wrong("an expression is expected")
        if self.accept("{"):
            return Selector(self.matchers(name))
        return Selector((Matcher(NAME, "=", name),))

    def suffixes(self, node: Node) -> Node:
        if self.token.text == "[" and self.token.kind == "sign":
            if not isinstance(node, Selector) or node.range_ms is not None:
                raise self.wrong("subqueries are not understood here: a range is for a selector only")
            self.take()
            range_ms = self.duration()
            if self.token.text.startswith(":"):
                raise self.wrong("subqueries are not understood here")
            if range_ms == 0:
                raise QueryError("a range of nothing has no samples")
            self.expect("]")
            node = node._replace(range_ms=range_ms)
        if self.token.kind == "name" and self.token.text.lower() == "offset":
            if not isinstance(node, Selector):
                raise self.wrong("offset belongs behind a selector")
            self.take()
            sign = -1 if self.accept("-") else 1
            node = node._replace(offset_ms=sign * self.duration())
        if self.token.kind == "sign" and self.token.text == "@":
            raise self.wrong("the modifier @ is not understood here")
        return node

    def duration(self) -> int:
        token = self.take()
        if token.kind != "duration":
            self._next -= token.kind != "end"
            raise self.wrong("a duration such as 5m is expected")
        return duration_ms(token.text)

    def matchers(self, name: str | None) -> tuple[Matcher, ...]:
        found = [] if name is None else [Matcher(NAME, "=", name)]
        while not self.accept("}"):
            label = self.expect("name").text
            if not LABEL.fullmatch(label):
                raise QueryError(f"{label!r} is no label's name")
            if label == NAME and name is not None:
                raise QueryError("the metric's name is given twice")
            operator = self.take().text
            if operator not in ("=", "!=", "=~", "!~"):
                self._next -= 1
                raise self.wrong("one of = != =~ !~ is expected")
            matcher = Matcher(label, operator, _unquoted(self.expect("text").text))
            try:
                matcher.test()
            except PatternError as error:
                raise QueryError(f"the pattern {matcher.text[:100]!r} cannot be used: {error}") from error
            found.append(matcher)
            if self.token.text != "}":
                self.expect(",")
        if all(one.test()("") for one in found):
            raise QueryError("a selector needs one matcher at least that does not match the empty text")
        return tuple(found)

    def labels(self) -> tuple[str, ...]:
        self.expect("(")
        found: list[str] = []
        while not self.accept(")"):
            found.append(self.expect("name").text)
            if self.token.text != ")":
                self.expect(",")
        return tuple(found)

    def aggregate(self, operator: str) -> Node:
        grouping: tuple[bool, tuple[str, ...]] | None = None

        def read() -> tuple[bool, tuple[str, ...]] | None:
            if self.word("by"):
                return True, self.labels()
            return (False, self.labels()) if self.word("without") else None

        grouping = read()
        self.expect("(")
        inside = self.expression(0)
        if self.token.text == ",":
            raise self.wrong(f"{operator} has one argument")
        self.expect(")")
        grouping = grouping or read() or (True, ())
        if kind(inside) != "vector":
            raise QueryError(f"{operator} is for vectors, not for a {_shown(inside)}")
        return Aggregate(operator, inside, *grouping)

    def call(self, name: str) -> Node:
        self.expect("(")
        arguments: list[Node] = []
        while self.token.text != ")" or self.token.kind != "sign":
            arguments.append(self.expression(0))
            if self.token.text != ")":
                self.expect(",")
        self.take()
        wanted = {"quantile_over_time": ["scalar", "matrix"], "vector": ["scalar"], "time": []}.get(
            name, ["matrix"] if name in RANGE_FUNCTIONS else ["vector"]
        )
        if [kind(one) for one in arguments] != wanted:
            given = ", ".join(_shown(one) for one in arguments) or "nothing"
            asked = ", ".join({"matrix": "range such as m[5m]"}.get(one, one) for one in wanted) or "nothing"
            raise QueryError(f"{name}() takes {asked}, not {given}")
        return Call(name, tuple(arguments))


def _shown(node: Node) -> str:
    return {"matrix": "range"}.get(kind(node), kind(node))


def _unquoted(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    escapes = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}

    def unescape(match: re.Match[str]) -> str:
        if match[1] not in escapes:
            raise QueryError(f"{match[0]!r} in a text is not understood")
        return escapes[match[1]]

    return re.sub(r"\\(.)", unescape, text[1:-1])
