"""Tokens and shapes: they never fail, and calls that differ in values alone have one shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.data_fabric.sql_text import Kind, Token, shape, tokens


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", "select ?"),
        ("select  *\n from T where a='x' -- hi", "select * from t where a = ?"),
        ("select /* 'no' */ 'it''s', x'FF', 1.5e3, .5, 0x1F, ?, ?7, :a, @b, $c", "select " + " , ".join("?" * 10)),
        ("select * from t where a IN (1, 2, 3) and b in (4)", "select * from t where a in ( ? ) and b in ( ? )"),
        ("select f(1, 2)", "select f ( ? , ? )"),
        ('select "A b", [C d], `e``f` from t;', 'select "A b" , "C d" , "e`f" from t'),
        ("select a<>b, a||b, a->>'x' ;;", "select a <> b , a || b , a ->> ?"),
        ("", ""),
    ],
)
def test_a_shape_has_no_values_and_one_way_to_be_written(sql: str, expected: str) -> None:
    """Values become ?, words lower case, white space and comments nothing."""
    assert shape(sql) == expected


@given(st.text(alphabet="abX'\"`[]()-/*?:@$0.9eE ,;=<>|\n", max_size=80))
def test_any_text_has_a_shape_that_is_its_own(sql: str) -> None:
    """Even what SQLite would refuse; the shape of a shape is itself."""
    assert shape(shape(sql)) == shape(sql)


@given(st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_values_do_not_change_the_shape(number: int, text: str, real: float) -> None:
    """Literals of any value, however quoted."""
    quoted = text.replace("'", "''")
    sql = f"select * from t where a = {abs(number)} and b = '{quoted}' and c < {abs(real)!r}"
    assert shape(sql) == "select * from t where a = ? and b = ? and c < ?"


def test_unterminated_quotes_take_linear_time() -> None:
    """Each kind of quote opened 100,000 times is one pass, not one for each."""
    for quote in ("[", "'", '"', "`", "/*", "(", "["):
        assert tokens(quote * 100_000)


def test_quoted_names_keep_their_case() -> None:
    """A quoted word is never a keyword."""
    assert tokens('"SELECT"') == [Token(Kind.QUOTED, "SELECT")]
