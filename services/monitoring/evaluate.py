"""What a query's tree yields at each step, as Prometheus 2 has it. Pure: samples come from ``fetch``.

A vector is kept as one column of values for each set of labels, with None where there is none at a step.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from services.monitoring.exposition import NAME, Labels, is_stale
from services.monitoring.promql import (
    COMPARISONS,
    SETS,
    Aggregate,
    Binary,
    Call,
    Negation,
    Node,
    Number,
    QueryError,
    Selector,
    kind,
)
from services.monitoring.samples import Columns

Column = list[float | None]
Vector = dict[Labels, Column]
Fetch = Callable[[Selector, int, int], Iterable[tuple[Labels, Columns]]]


class Question(NamedTuple):
    """At which moments, and with what."""

    steps: Sequence[int]
    """ms since 1970, rising."""
    fetch: Fetch
    spend: Callable[[int], None]
    """Told how many samples are looked at; raises QueryError when that is too much, or takes too long."""
    lookback_ms: int = 300_000


def evaluate(node: Node, question: Question) -> Vector | list[float]:
    """A vector, or of a scalar its values; raises QueryError."""
    match node:
        case Number():
            return [node.value] * len(question.steps)
        case Selector() if node.range_ms is None:
            return _instant(node, question)
        case Selector():
            raise QueryError("a range alone has no value at a step: put a function such as rate() around it")
        case Negation():
            inside = evaluate(node.inside, question)
            if isinstance(inside, list):
                return [-value for value in inside]
            return _without_name(_mapped(inside, lambda value: -value))
        case Call():
            return _call(node, question)
        case Aggregate():
            return _aggregate(node, question)
        case Binary():
            return _binary(node, question)


def ranges(node: Selector, question: Question) -> dict[Labels, list[tuple[int, float]]]:
    """The samples of a range at the one step, as they are."""
    assert node.range_ms is not None
    (at_ms,) = question.steps
    end_ms = at_ms - node.offset_ms
    found = {}
    for labels, columns in question.fetch(node, end_ms - node.range_ms, end_ms):
        part = columns.between(end_ms - node.range_ms, end_ms)
        question.spend(len(part))
        pairs = [(at, value) for at, value in zip(part.times, part.values, strict=True) if not is_stale(value)]
        if pairs:
            found[labels] = pairs
    return found


# -- selectors --------------------------------------------------------------------------------------------


def _instant(node: Selector, question: Question) -> Vector:
    steps, lookback_ms, offset_ms = question.steps, question.lookback_ms, node.offset_ms
    found: Vector = {}
    for labels, columns in question.fetch(node, steps[0] - offset_ms - lookback_ms, steps[-1] - offset_ms):
        times, values = columns.times, columns.values
        question.spend(len(times) + len(steps))
        column: Column = []
        at = 0
        for step in steps:
            now_ms = step - offset_ms
            at = bisect_right(times, now_ms, at)
            if at and times[at - 1] >= now_ms - lookback_ms and not is_stale(values[at - 1]):
                column.append(values[at - 1])
            else:
                column.append(None)
        if any(value is not None for value in column):
            found[labels] = column
    return found


Window = Callable[[int, int, int], float | None]
"""What a function makes of the samples from .. to before .., at an end in ms."""


def _over_time(node: Call, question: Question) -> Vector:
    selector = node.arguments[-1]
    assert isinstance(selector, Selector)
    assert selector.range_ms is not None
    quantiles = evaluate(node.arguments[0], question) if node.name == "quantile_over_time" else None
    steps, range_ms, offset_ms = question.steps, selector.range_ms, selector.offset_ms
    found: Vector = {}
    for labels, columns in question.fetch(selector, steps[0] - offset_ms - range_ms, steps[-1] - offset_ms):
        columns = _unmarked(columns)
        times = columns.times
        window = _window(node.name, columns, range_ms)
        column: Column = []
        for number, step in enumerate(steps):
            end_ms = step - offset_ms
            low, high = bisect_left(times, end_ms - range_ms), bisect_right(times, end_ms)
            question.spend(high - low + 1)
            if low == high:
                column.append(None)
            elif quantiles is not None:
                assert isinstance(quantiles, list)
                column.append(quantile(quantiles[number], columns.values[low:high]))
            else:
                column.append(window(low, high, end_ms))
        if any(value is not None for value in column):
            kept = labels if node.name == "last_over_time" else _nameless(labels)
            if kept in found:
                raise QueryError(
                    f"{node.name} of several metrics gives one series twice; choose the metric by its name"
                )
            found[kept] = column
    return found


def _unmarked(columns: Columns) -> Columns:
    """Without the marks of ends."""
    if not any(value != value for value in columns.values):
        return columns
    clean = Columns()
    for at_ms, value in zip(columns.times, columns.values, strict=True):
        if not is_stale(value):
            clean.append(at_ms, value)
    return clean


def _window(name: str, columns: Columns, range_ms: int) -> Window:
    times, values = columns.times, columns.values
    match name:
        case "rate" | "increase" | "delta":
            falls = [at for at, (a, b) in enumerate(pairwise(values), 1) if b < a] if name != "delta" else []

            def extrapolate(low: int, high: int, end_ms: int) -> float | None:
                if high - low < 2:
                    return None
                # Only the resets within: one from infinity, or from 1e300, would be all that a running sum still tells.
                change = values[high - 1] - values[low]
                for fall in falls[bisect_right(falls, low) : bisect_left(falls, high)]:
                    change += values[fall - 1]
                change = extrapolated(
                    change,
                    name != "delta",
                    values[low],
                    (times[low] - (end_ms - range_ms)) / 1000,
                    (end_ms - times[high - 1]) / 1000,
                    (times[high - 1] - times[low]) / 1000,
                    high - low,
                )
                return change / (range_ms / 1000) if name == "rate" else change

            return extrapolate
        case "irate":

            def latest(low: int, high: int, _: int) -> float | None:
                if high - low < 2:
                    return None
                first, last = values[high - 2], values[high - 1]
                change = last if last < first else last - first
                return change / ((times[high - 1] - times[high - 2]) / 1000)

            return latest
        case "changes":
            pairs = pairwise(values)
            changed = list(accumulate((a != b and not (a != a and b != b) for a, b in pairs), initial=0))
            return lambda low, high, _: float(changed[high - 1] - changed[low])
        case "resets":
            fallen = list(accumulate((b < a for a, b in pairwise(values)), initial=0))
            return lambda low, high, _: float(fallen[high - 1] - fallen[low])
        case "avg_over_time":
            return lambda low, high, _: _mean(values[low:high])
        case "sum_over_time":
            return lambda low, high, _: _sum(values[low:high])
        case "min_over_time":
            return lambda low, high, _: _least(values[low:high])
        case "max_over_time":
            return lambda low, high, _: _most(values[low:high])
        case "count_over_time":
            return lambda low, high, _: float(high - low)
        case "last_over_time":
            return lambda low, high, _: values[high - 1]
        case "present_over_time":
            return lambda low, high, _: 1.0
        case _:
            return lambda low, high, _: None


def extrapolated(
    change: float, is_counter: bool, first: float, to_start_s: float, to_end_s: float, sampled_s: float, samples: int
) -> float:
    """The change over the whole range, of that between its first and last sample.

    Up to both ends of the range, where they are no further than 1.1 mean distances of samples; else half a
    distance. A counter not back to before it was 0. As Prometheus 2 does (extrapolatedRate in promql/functions.go).
    """
    mean_s = sampled_s / (samples - 1)
    if is_counter and change > 0 and first >= 0:
        to_start_s = min(to_start_s, sampled_s * (first / change))
    threshold_s = mean_s * 1.1
    whole_s = sampled_s
    whole_s += to_start_s if to_start_s < threshold_s else mean_s / 2
    whole_s += to_end_s if to_end_s < threshold_s else mean_s / 2
    return change * (whole_s / sampled_s)


def quantile(q: float, values: Sequence[float]) -> float:
    """Between the two nearest, by their distance."""
    if math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    ordered = sorted(values, key=lambda value: (value == value, value if value == value else 0.0))
    rank = q * (len(ordered) - 1)
    low = int(rank)
    high = min(len(ordered) - 1, low + 1)
    weight = rank - low
    return ordered[low] * (1 - weight) + ordered[high] * weight


def _sum(values: Iterable[float]) -> float:
    """Without losing what is small; math.fsum, save that it refuses what is infinite."""
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def _mean(values: Sequence[float]) -> float:
    return _sum(values) / len(values)


def _least(values: Iterable[float]) -> float:
    """NaN only if there is nothing else."""
    return min((value for value in values if value == value), default=math.nan)


def _most(values: Iterable[float]) -> float:
    return max((value for value in values if value == value), default=math.nan)


# -- functions of vectors ---------------------------------------------------------------------------------


def _call(node: Call, question: Question) -> Vector | list[float]:
    if node.arguments and kind(node.arguments[-1]) == "matrix":
        return _over_time(node, question)
    if node.name == "time":
        return [step / 1000 for step in question.steps]
    inside = evaluate(node.arguments[0], question)
    if node.name == "vector":
        assert isinstance(inside, list)
        return {(): list(inside)}
    assert isinstance(inside, dict)
    count = len(question.steps)
    match node.name:
        case "scalar":
            values = []
            for step in range(count):
                present = [column[step] for column in inside.values() if column[step] is not None]
                values.append(present[0] if len(present) == 1 and present[0] is not None else math.nan)
            return values
        case "absent":
            column: Column = [
                None if any(one[step] is not None for one in inside.values()) else 1.0 for step in range(count)
            ]
            return {_absent_labels(node.arguments[0]): column} if any(one is not None for one in column) else {}
        case "abs":
            return _without_name(_mapped(inside, abs))
        case "ceil" | "floor":
            whole = math.ceil if node.name == "ceil" else math.floor
            return _without_name(_mapped(inside, lambda value: float(whole(value)) if math.isfinite(value) else value))
    raise QueryError(f"the function {node.name}() is not understood here")


def _absent_labels(node: Node) -> Labels:
    """What the selector says of who is not there."""
    if not isinstance(node, Selector):
        return ()
    said: dict[str, str] = {}
    equal: set[str] = set()
    for one in node.matchers:
        if one.operator == "=" and one.label not in equal:
            equal.add(one.label)
            said[one.label] = one.text
        else:  # Prometheus takes back what was said before, not what is said after
            said[one.label] = ""
    return tuple(sorted((label, text) for label, text in said.items() if text and label != NAME))


def _nameless(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] != NAME)


def _mapped(vector: Vector, function: Callable[[float], float]) -> Vector:
    return {
        labels: [None if value is None else function(value) for value in column] for labels, column in vector.items()
    }


def _without_name(vector: Vector) -> Vector:
    named: Vector = {}
    for labels, column in vector.items():
        _put(named, _nameless(labels), column)
    return named


def _put(vector: Vector, labels: Labels, column: Column) -> None:
    """A column; of two with the same labels one only may have a value at a step."""
    known = vector.get(labels)
    if known is None:
        vector[labels] = column
        return
    if any(a is not None and b is not None for a, b in zip(known, column, strict=True)):
        raise QueryError("the result has one series twice; choose the metric by its name, or aggregate")
    vector[labels] = [b if a is None else a for a, b in zip(known, column, strict=True)]


# -- aggregation ------------------------------------------------------------------------------------------


def _aggregate(node: Aggregate, question: Question) -> Vector:
    inside = evaluate(node.inside, question)
    assert isinstance(inside, dict)
    groups: dict[Labels, list[Column]] = {}
    for labels, column in inside.items():
        groups.setdefault(_grouped(labels, node.by, node.labels), []).append(column)
    found: Vector = {}
    for labels, columns in groups.items():
        question.spend(len(columns) * len(question.steps))
        column = []
        for step in range(len(question.steps)):
            present = [value for one in columns if (value := one[step]) is not None]
            column.append(_folded(node.operator, present) if present else None)
        found[labels] = column
    return found


def _grouped(labels: Labels, by: bool, names: tuple[str, ...]) -> Labels:
    if by:
        return tuple(pair for pair in labels if pair[0] in names)
    return tuple(pair for pair in labels if pair[0] not in names and pair[0] != NAME)


def _folded(operator: str, values: list[float]) -> float:
    match operator:
        case "sum":
            return _sum(values)
        case "avg":
            return _mean(values)
        case "min":
            return _least(values)
        case "max":
            return _most(values)
        case _:
            return float(len(values))


# -- two sides --------------------------------------------------------------------------------------------


def _binary(node: Binary, question: Question) -> Vector | list[float]:
    left, right = evaluate(node.left, question), evaluate(node.right, question)
    apply = OPERATORS.get(node.operator)
    if isinstance(left, list) and isinstance(right, list):
        assert apply is not None
        return [float(apply(a, b)) for a, b in zip(left, right, strict=True)]
    if isinstance(left, dict) and isinstance(right, dict):
        question.spend((len(left) + len(right)) * len(question.steps))
        if node.operator in SETS:
            return _set(node, left, right, len(question.steps))
        return _matched(node, left, right, len(question.steps))
    assert apply is not None
    found: Vector = {}
    filters = node.operator in COMPARISONS and not node.is_bool
    vector, scalars = (left, right) if isinstance(left, dict) else (right, left)
    assert isinstance(vector, dict)
    assert isinstance(scalars, list)
    for labels, column in vector.items():
        made: Column = []
        for value, scalar in zip(column, scalars, strict=True):
            if value is None:
                made.append(None)
                continue
            result = apply(value, scalar) if vector is left else apply(scalar, value)
            made.append((value if result else None) if filters else float(result))
        if any(value is not None for value in made):
            _put(found, labels if filters else _nameless(labels), made)
    return found


def _signature(node: Binary, labels: Labels) -> Labels:
    return _grouped(labels, node.on, node.labels)


def _matched(node: Binary, left: Vector, right: Vector, steps: int) -> Vector:
    apply = OPERATORS[node.operator]
    filters = node.operator in COMPARISONS and not node.is_bool
    asked = [any(column[step] is not None for column in left.values()) for step in range(steps)]
    theirs: dict[Labels, Column] = {}
    for labels, column in right.items():
        # Where there is nothing on the left, nothing on the right can be one too many.
        here = [value if there else None for value, there in zip(column, asked, strict=True)]
        _join(theirs, _signature(node, labels), here, "right")
    ours: dict[Labels, Column] = {}
    found: Vector = {}
    for labels, column in left.items():
        signature = _signature(node, labels)
        other = theirs.get(signature)
        if other is None:
            continue
        made: Column = []
        for a, b in zip(column, other, strict=True):
            if a is None or b is None:
                made.append(None)
                continue
            result = apply(a, b)
            made.append((a if result else None) if filters else float(result))
        _join(ours, signature, made, "left")
        if any(value is not None for value in made):
            kept = _grouped(labels, node.on, node.labels) if not (filters and not node.on) else _ignoring(labels, node)
            _put(found, kept, made)
    return found


def _ignoring(labels: Labels, node: Binary) -> Labels:
    """Of a comparison that filters: the name stays."""
    return tuple(pair for pair in labels if pair[0] not in node.labels)


def _join(joined: dict[Labels, Column], signature: Labels, column: Column, side: str) -> None:
    """Put a column with the others of its signature; raises QueryError where two have a value at one step."""
    before = joined.get(signature)
    if before is None:
        joined[signature] = column
        return
    if any(a is not None and b is not None for a, b in zip(before, column, strict=True)):
        shown = ", ".join(f"{name}={text!r}" for name, text in signature) or "no labels"
        raise QueryError(f"several series of the {side} side match by {shown}; say on(…) or aggregate first")
    joined[signature] = [b if a is None else a for a, b in zip(before, column, strict=True)]


def _set(node: Binary, left: Vector, right: Vector, steps: int) -> Vector:
    def present(vector: Vector) -> dict[Labels, list[bool]]:
        found: dict[Labels, list[bool]] = {}
        for labels, column in vector.items():
            seen = found.setdefault(_signature(node, labels), [False] * steps)
            for step, value in enumerate(column):
                seen[step] = seen[step] or value is not None
        return found

    def masked(vector: Vector, by: dict[Labels, list[bool]], wanted: bool) -> Vector:
        found: Vector = {}
        for labels, column in vector.items():
            seen = by.get(_signature(node, labels), [False] * steps)
            kept = [value if there is wanted else None for value, there in zip(column, seen, strict=True)]
            if any(value is not None for value in kept):
                found[labels] = kept
        return found

    if node.operator == "and":
        return masked(left, present(right), True)
    if node.operator == "unless":
        return masked(left, present(right), False)
    found = dict(left)
    for labels, column in masked(right, present(left), False).items():
        _put(found, labels, column)
    return found


def _divide(a: float, b: float) -> float:
    if b:
        return a / b
    if a == 0 or a != a:
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def _modulo(a: float, b: float) -> float:
    try:
        return math.fmod(a, b)
    except ValueError:
        return math.nan


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and b % 2 else math.inf
    except ValueError:
        return math.inf if a == 0 else math.nan


OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": _modulo,
    "^": _power,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}
