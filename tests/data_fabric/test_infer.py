"""Types of columns: a number only where nothing is lost by it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.data_fabric.infer import Kind, convert, json_type, kind_of, sql_type, widen


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", Kind.EMPTY), ("0", Kind.INTEGER), ("-17", Kind.INTEGER), ("9007199254740993", Kind.BIG),
        ("9223372036854775807", Kind.BIG), ("9223372036854775808", Kind.TEXT), ("1.5", Kind.REAL), ("-0.5", Kind.REAL),
        ("1e3", Kind.REAL), ("1e999", Kind.TEXT), ("007", Kind.TEXT), ("+1", Kind.TEXT), ("1_000", Kind.TEXT),
        ("NaN", Kind.TEXT), ("inf", Kind.TEXT), (" 1", Kind.TEXT), ("1 ", Kind.TEXT), ("1.", Kind.TEXT),
        (".5", Kind.TEXT), ("٣", Kind.TEXT), ("true", Kind.TEXT), ("9" * 400, Kind.TEXT),
    ],
)  # fmt: skip
def test_kind_of(text: str, kind: Kind) -> None:
    """Zip codes, signs and underscores are text."""
    assert kind_of(text) is kind


@given(st.lists(st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=5), st.just(""))))
def test_a_column_converts_whatever_it_was_judged_by(column: list[str]) -> None:
    """Every value converts to the type that all of them gave; text stays, integers come back as written."""
    kind = Kind.EMPTY
    for text in column:
        kind = widen(kind, kind_of(text))
    declared = sql_type(kind)
    for text in column:
        value = convert(text, declared)
        if declared == "TEXT":
            assert value == text
        elif not text:
            assert value is None
        elif declared == "INTEGER":
            assert str(value) == text
        else:
            assert isinstance(value, float)
            assert value == float(text)


@given(st.lists(st.sampled_from(Kind)))
def test_the_order_of_rows_does_not_matter(kinds: list[Kind]) -> None:
    """widen is commutative, and TEXT is where it ends."""
    forward = backward = Kind.EMPTY
    for kind in kinds:
        forward = widen(forward, kind)
    for kind in reversed(kinds):
        backward = widen(backward, kind)
    assert (forward is Kind.TEXT) == (backward is Kind.TEXT)
    assert sql_type(forward) == sql_type(backward)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ({int}, "INTEGER"), ({bool}, "INTEGER"), ({float}, "REAL"), ({str}, "TEXT"), ({dict, list, str}, "TEXT"),
        ({int, str}, "ANY"), (set(), "ANY"),
    ],
)  # fmt: skip
def test_json_type(types: set[type], expected: str) -> None:
    """Values of several types are kept each as it is."""
    assert json_type(types) == expected
