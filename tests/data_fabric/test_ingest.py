"""Broken files are refused with the line and the reason; odd but sound ones are read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_daemon.api import RefusedError
from services.data_fabric import ingest
from services.data_fabric.limits import Limits
from tests.data_fabric.support import as_csv

LIMITS = Limits(field_bytes=1000, columns=5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", 1, "empty"),
        (b"\xef\xbb\xbf", 1, "empty"),
        (b"\n\n", 1, "empty"),
        (b"a,b\n1,2\n3\n", 3, "1 fields, the header has 2"),
        (b"a,b\n1,2\n3,4,5\n", 3, "3 fields, the header has 2"),
        (b'a,b\n"x\ny",2\n3\n', 4, "1 fields"),
        (b'a,b\n1,2\n3,"4\n', 3, "unexpected end of data"),
        (b'a,b\n"1"x,2\n', 2, "expected after"),
        (b"a,A\n1,2\n", 1, "same name"),
        (b"a,\n1,2\n", 1, "no name"),
        (b"_rowid_\n1\n", 1, "SQLite's own"),
        (b"a,b\n1,2\n\xff,3\n", 3, "not UTF-8"),
        (b"a,b,c,d,e,f\n", 1, "too many columns"),
        (b"a\n" + b"x" * 2000 + b"\n", 2, "field larger"),
    ],
)
def test_a_broken_csv_names_its_line(file: Path, content: bytes, line: int, reason: str) -> None:
    """The line is where the record begins."""
    file.write_bytes(content)
    with pytest.raises(RefusedError, match=f"cannot load line {line}: .*{reason}") as refused:
        ingest.check_csv(file, LIMITS)
    assert refused.value.reason.status == 422


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"", 1, "empty"),
        (b'{"a": 1}\n{"a": \n', 2, "truncated"),
        (b'{"a": 1}\n[1]\n', 2, "Expected `object`"),
        (b'{"a": 1}\n\n{"a": NaN}\n', 3, "invalid character"),
        (b'{"a": 1e999}\n', 1, "out of range"),
        (b'{"a": 99999999999999999999}\n', 1, "beyond 64 bits"),
        (b'{"a": "\xff"}\n', 1, "utf-8"),
        (b'{"a": ' + b"[" * 900, 1, "truncated|nested"),
        (b'{"a": 1}\n{"a": "' + b"x" * 2000 + b'"}\n', 2, "too long"),
        (b'{"a":1,"b":1,"c":1}\n{"d":1,"e":1,"f":1}', 2, "too many columns"),
        (b'{"a": 1, "A": 2}', 1, "same name"),
        (b"{}", 1, "no object"),
    ],
)
def test_a_broken_ndjson_names_its_line(file: Path, content: bytes, line: int, reason: str) -> None:
    """Counted as an editor counts them."""
    file.write_bytes(content)
    with pytest.raises(RefusedError, match=f"(?s)cannot load line {line}: .*({reason})"):
        ingest.check_ndjson(file, LIMITS)


def test_a_sound_csv(file: Path) -> None:
    """Byte-order mark, CRLF, quotes, blank lines, empty fields; types by all values."""
    file.write_bytes(b'\xef\xbb\xbfid,zip,x y,note\r\n1,007,1.5,"a, ""b""\r\nc"\r\n\r\n2,,,\r\n')
    table = ingest.check_csv(file, LIMITS)
    assert [(column.name, column.type) for column in table.columns] == [
        ("id", "INTEGER"), ("zip", "TEXT"), ("x y", "REAL"), ("note", "TEXT"),
    ]  # fmt: skip
    assert list(ingest.read_csv(file, table, LIMITS)) == [(1, "007", 1.5, 'a, "b"\r\nc'), (2, "", None, "")]


def test_a_csv_with_only_a_header(file: Path) -> None:
    """A table without rows, whose columns take anything."""
    file.write_bytes(b"a,b\n")
    table = ingest.check_csv(file, LIMITS)
    assert [column.type for column in table.columns] == ["ANY", "ANY"]
    assert table.rows == 0


def test_a_sound_ndjson(file: Path) -> None:
    """All keys are columns; what is nested is JSON text; mixed numbers are REAL, mixed kinds stay what they are."""
    file.write_bytes(b'{"a":1,"b":{"c":[1]},"d":1}\n\n{"a":2.5,"d":"x","e":true}')
    table = ingest.check_ndjson(file, LIMITS)
    assert [(column.name, column.type) for column in table.columns] == [
        ("a", "REAL"), ("b", "TEXT"), ("d", "ANY"), ("e", "INTEGER"),
    ]  # fmt: skip
    assert list(ingest.read_ndjson(file, table, LIMITS)) == [(1, '{"c":[1]}', 1, None), (2.5, None, "x", 1)]


@given(rows=st.lists(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)))
def test_text_survives_a_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """Whatever a CSV writer writes is read as it was: commas, quotes and line breaks too."""
    file = tmp_path_factory.getbasetemp() / "any.csv"
    marked = [["t" + text for text in row] for row in rows]
    file.write_text(as_csv([["a", "b"], *marked]), encoding="utf-8", newline="")
    table = ingest.check_csv(file, Limits())
    assert [list(row) for row in ingest.read_csv(file, table, Limits())] == marked


@pytest.mark.parametrize("name", ["", "1a", "a b", "a-b", "main", "TEMP", "sqlite_x", "cdn_auto_x", "_cdn_x", "x" * 64])
def test_names_that_cannot_be(name: str) -> None:
    """Reserved by SQLite or by the service, or in need of quotes."""
    with pytest.raises(RefusedError):
        ingest.check_name(name)
