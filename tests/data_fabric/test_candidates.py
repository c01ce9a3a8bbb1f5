"""Candidate indexes, by table: which columns, in which order; and nothing where the text is beyond us."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.data_fabric.candidates import MAX_CANDIDATES, MAX_INDEX_COLUMNS, IndexSpec, candidates

SCHEMA = {"airports": ["icao", "name", "city", "country", "elevation", "Big Col"], "runways": ["icao", "length"]}


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "select * from airports where country = ? order by elevation desc limit 20",
            ["airports(country, elevation)", "airports(country)"],
        ),
        ("select * from airports where city = 'x' and country = 'y'",
         ["airports(city, country)", "airports(city)", "airports(country)"]),
        ("select * from airports where country = ? and elevation between 5 and 10", ["airports(country, elevation)"]),
        ("select * from airports where elevation > ? and elevation < ?", ["airports(elevation)"]),
        ("select * from airports where ? = country", ["airports(country)"]),
        ("select * from airports where country in (?, ?)", ["airports(country)"]),
        ("select * from airports where (country = ?)", ["airports(country)"]),
        ('select * from airports where "Big Col" = ?', ["airports(Big Col)"]),
        ("select * from AIRPORTS a where a.COUNTRY = ?", ["airports(country)"]),
        ("select * from main.airports where country is null", ["airports(country)"]),
        ("select country, count(*) from airports group by country", ["airports(country)"]),
        ("select * from airports order by elevation, country desc limit 5", ["airports(elevation, country DESC)"]),
        ("select * from airports order by elevation desc, country desc limit 5", ["airports(elevation, country)"]),
        ("select * from airports a join runways r on r.icao = a.icao where r.length > 9",
         ["airports(icao)", "runways(icao, length)"]),
        ("select (select count(*) from airports b where b.city = a.city) from airports a", ["airports(city)"]),
        ("select 1 union select name from airports where country = ?", ["airports(country)"]),
        ("with t as (select * from airports where city = ?) select * from t", ["airports(city)"]),
        # what is beyond it, or not worth an index
        ("select * from airports", []),
        ("select * from airports order by elevation", []),
        ("select * from airports where country = ? or city = ?", []),
        ("select * from airports where not country = ?", []),
        ("select * from airports where country <> ?", []),
        ("select * from airports where country not in (?)", []),
        ("select * from airports where country is not null", []),
        ("select * from airports where lower(country) = ?", []),
        ("select * from airports where country = ? collate nocase", []),
        ("select * from airports where country = city", []),
        ("select * from airports where country = upper(city)", []),
        ("select * from elsewhere where country = ?", []),
        ("select * from other.airports where country = ?", []),
        ("select 1", []),
        ("", []),
    ],
)  # fmt: skip
def test_candidates(sql: str, expected: list[str]) -> None:
    """Equalities first, then what sorts or spans."""
    assert [str(spec) for spec in candidates(sql, SCHEMA)] == expected


SOUP = """select from where airports a runways join on icao country city = < ( ) , and or between order by limit
group in ? . desc as union not"""


@given(st.lists(st.sampled_from(SOUP.split()), max_size=40))
def test_any_text_gives_only_indexes_that_could_be_made(words: list[str]) -> None:
    """Of tables and columns that are there, none twice, within the limits."""
    found = candidates(" ".join(words), SCHEMA)
    assert len(found) <= MAX_CANDIDATES
    assert len(set(found)) == len(found)
    for spec in found:
        names = [name for name, _ in spec.columns]
        assert 0 < len(names) <= MAX_INDEX_COLUMNS
        assert len(set(names)) == len(names)
        assert set(names) <= set(SCHEMA[spec.table])


def test_deep_nesting_is_only_deep() -> None:
    """Ten thousand brackets do not overflow a stack."""
    sql = "select * from airports where {}country = ?{}"
    assert candidates(sql.format("(" * 10_000, ")" * 10_000), SCHEMA) == ()
    assert candidates(sql.format("(" * 50, ")" * 50), SCHEMA) != ()


def test_starts() -> None:
    """An index does what one with fewer columns does."""
    short, long = IndexSpec("t", (("a", False),)), IndexSpec("t", (("a", False), ("b", True)))
    assert short.starts(long)
    assert short.starts(short)
    assert not long.starts(short)
    assert not short.starts(IndexSpec("u", long.columns))
