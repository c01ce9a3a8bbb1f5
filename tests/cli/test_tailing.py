"""The end of a log, and what comes after it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.tailing import Tail, last


@given(
    st.lists(st.binary(max_size=30000).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=12),
    st.integers(0, 8),
    st.booleans(),
)
def test_last_lines_are_those_of_the_whole_file(lines: list[bytes], count: int, ended: bool) -> None:
    """Whatever their length, and whether the last is ended or not."""
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    found = last(io.BytesIO(content), count).split(b"\n")
    if found[-1] == b"":
        found.pop()
    assert found == (expected[-count:] if count else [])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three lines."""
    path = tmp_path / "x.log"
    path.write_bytes(b"1\n2\n3\n")
    return path


def add(path: Path, text: bytes) -> None:
    """Append, as a writer does."""
    with path.open("ab") as file:
        file.write(text)


def test_a_log_is_followed_by_whole_lines(log: Path) -> None:
    """A line is shown once it is ended."""
    tail = Tail(log)
    assert tail.begin(2) == b"2\n3\n"
    assert tail.more() == b""
    add(log, b"4\n5")
    assert tail.more() == b"4\n"
    add(log, b"5\n")
    assert tail.more() == b"55\n"
    tail.close()


def test_following_survives_rotation(log: Path) -> None:
    """What was written before, at and after the renaming is shown once, in order."""
    tail = Tail(log)
    tail.begin(0)
    add(log, b"4\n")
    log.rename(log.with_suffix(".log.1"))
    add(log.with_suffix(".log.1"), b"5\n")
    assert tail.more() == b"4\n5\n"
    log.write_bytes(b"6\n")
    assert tail.more() == b"6\n"
    add(log, b"7\n")
    assert tail.more() == b"7\n"
    tail.close()


def test_following_survives_being_cut(log: Path) -> None:
    """supervisorctl clear empties the file; what follows is shown."""
    tail = Tail(log)
    tail.begin(10)
    log.write_bytes(b"")
    assert tail.more() == b""
    add(log, b"a\n")
    assert tail.more() == b"a\n"
    tail.close()


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """A service that has not begun has no log."""
    tail = Tail(tmp_path / "later.log")
    assert tail.begin(10) == b""
    assert tail.more() == b""
    (tmp_path / "later.log").write_bytes(b"1\n")
    assert tail.more() == b"1\n"
    tail.close()
