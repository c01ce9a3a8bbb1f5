"""Regular expressions that take time in proportion to the text, whatever they are. Pure.

Python's own may take for ever on a pattern that somebody sends, and hold the interpreter all the while. Here one is
read by Python's parser and run as a finite automaton; what needs more (look-around, back-references) is refused,
as in Prometheus, whose RE2 has none either.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

_parser: Any = re._parser  # type: ignore[attr-defined]
CHARS = 1_000
STATES = 5_000
CACHED = 2_000


class PatternError(ValueError):
    """A pattern cannot be used; tells why."""


Test = Callable[[str], bool]


class _Automaton:
    """Thompson's construction; sets of states are remembered as they are met."""

    def __init__(self) -> None:
        self.tests: list[Test | None] = []
        self.next: list[list[int]] = []

    def state(self, test: Test | None = None) -> int:
        if len(self.tests) >= STATES:
            raise PatternError(f"it is too large: at most {STATES} states")
        self.tests.append(test)
        self.next.append([])
        return len(self.tests) - 1

    def sequence(self, items: Any, at: int) -> int:
        """Add what is to be matched after ``at``; the state after it."""
        for operator, argument in items:
            at = self.one(str(operator), argument, at)
        return at

    def one(self, operator: str, argument: Any, at: int) -> int:
        match operator:
            case "LITERAL":
                return self.char(lambda char: ord(char) == argument, at)
            case "NOT_LITERAL":
                return self.char(lambda char: ord(char) != argument, at)
            case "ANY":
                return self.char(lambda _: True, at)
            case "IN":
                return self.char(_one_of(argument), at)
            case "CATEGORY":
                return self.char(_one_of([(operator, argument)]), at)
            case "SUBPATTERN":
                _, add, remove, inside = argument
                if add or remove:
                    raise PatternError("flags inside it are not understood")
                return self.sequence(inside, at)
            case "BRANCH":
                end = self.state()
                for branch in argument[1]:
                    begin = self.state()
                    self.next[at].append(begin)
                    self.next[self.sequence(branch, begin)].append(end)
                return end
            case "MAX_REPEAT" | "MIN_REPEAT":
                low, high, inside = argument
                return self.repeat(low, high, inside, at)
            case "AT" if str(argument) in ("AT_BEGINNING", "AT_BEGINNING_STRING") and at == 0:
                return at
        raise PatternError(f"{operator.lower()} is not understood")

    def char(self, test: Test, at: int) -> int:
        state = self.state(test)
        self.next[at].append(state)
        end = self.state()
        self.next[state].append(end)
        return end

    def repeat(self, low: int, high: Any, inside: Any, at: int) -> int:
        for _ in range(low):
            at = self.sequence(inside, at)
        end = self.state()
        if high is _parser.MAXREPEAT:
            begin = self.state()
            self.next[at].append(begin)
            self.next[self.sequence(inside, begin)].append(begin)
            self.next[begin].append(end)
            return end
        self.next[at].append(end)
        for _ in range(high - low):
            at = self.sequence(inside, at)
            self.next[at].append(end)
        return end


def _one_of(items: Any) -> Test:
    """A class of characters."""
    negated, alike = False, list[Test]()
    for operator, argument in items:
        match str(operator):
            case "NEGATE":
                negated = True
            case "LITERAL":
                alike.append(lambda char, code=argument: ord(char) == code)  # type: ignore[misc]
            case "RANGE":
                alike.append(lambda char, low=argument[0], high=argument[1]: low <= ord(char) <= high)  # type: ignore[misc]
            case "CATEGORY":
                alike.append(_CATEGORIES[str(argument)])
            case other:
                raise PatternError(f"{other.lower()} in a class is not understood")
    return lambda char: any(test(char) for test in alike) is not negated


_CATEGORIES: dict[str, Test] = {
    "CATEGORY_DIGIT": lambda char: char.isascii() and char.isdigit(),
    "CATEGORY_NOT_DIGIT": lambda char: not (char.isascii() and char.isdigit()),
    "CATEGORY_SPACE": lambda char: char in " \t\n\r\f\v",
    "CATEGORY_NOT_SPACE": lambda char: char not in " \t\n\r\f\v",
    "CATEGORY_WORD": lambda char: char.isascii() and (char.isalnum() or char == "_"),
    "CATEGORY_NOT_WORD": lambda char: not (char.isascii() and (char.isalnum() or char == "_")),
}


class Pattern:
    """Matches the whole of a text or not; raises PatternError where it is none."""

    def __init__(self, text: str) -> None:
        if len(text) > CHARS:
            raise PatternError(f"it is too long: at most {CHARS} characters")
        try:
            # DOTALL is RE2's as Prometheus sets it.
            parsed = _parser.parse(text, re.DOTALL)
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(str(error)) from error
        if parsed.state.flags & re.IGNORECASE:
            raise PatternError("flags inside it are not understood")
        items = list(parsed)
        if items and str(items[-1][0]) == "AT" and str(items[-1][1]) in ("AT_END", "AT_END_STRING"):
            items.pop()
        self._automaton = _Automaton()
        first = self._automaton.state()
        try:
            self._last = self._automaton.sequence(items, first)
        except RecursionError as error:
            raise PatternError("it is nested too deeply") from error
        self._first = self._closed((first,))
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, text: str) -> bool:
        """Whether it is the whole text."""
        states = self._first
        for char in text:
            known = self._steps.get((states, char))
            if known is None:
                known = self._step(states, char)
                if len(self._steps) < CACHED:
                    self._steps[states, char] = known
            states = known
            if not states:
                return False
        return self._last in states

    def _step(self, states: frozenset[int], char: str) -> frozenset[int]:
        automaton = self._automaton
        after: list[int] = []
        for state in states:
            test = automaton.tests[state]
            if test is not None and test(char):
                after += automaton.next[state]
        return self._closed(after)

    def _closed(self, states: Any) -> frozenset[int]:
        """With all that is reached without a character."""
        automaton = self._automaton
        found: set[int] = set()
        left = list(states)
        while left:
            state = left.pop()
            if state not in found:
                found.add(state)
                if automaton.tests[state] is None:
                    left += automaton.next[state]
        return frozenset(found)


@lru_cache(maxsize=256)
def pattern(text: str) -> Test:
    """Whether a text is matched as a whole; raises PatternError."""
    if not re.search(r"[^\w|:/ ,@=-]", text):  # words, perhaps several
        return frozenset(text.split("|")).__contains__
    return Pattern(text).matches


class Matcher(NamedTuple):
    """``label = "text"``, and !=, =~, !~ likewise."""

    label: str
    operator: str
    text: str

    def test(self) -> Callable[[str], bool]:
        """Whether a label's value is meant; that of a label that is not there is empty. Raises PatternError."""
        text = self.text
        match self.operator:
            case "=":
                return text.__eq__
            case "!=":
                return text.__ne__
            case "=~":
                return pattern(text)
            case _:
                matches = pattern(text)
                return lambda value: not matches(value)
