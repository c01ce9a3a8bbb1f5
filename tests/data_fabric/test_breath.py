"""Threads that are busy let the event loop have its turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.data_fabric import ingest, reader
from services.data_fabric.limits import Limits
from services.data_fabric.reader import BATCH_ROWS, Query
from services.data_fabric.store import Store


@pytest.fixture
def breaths(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each breath that is taken."""
    taken: list[None] = []
    for module in (ingest, reader):
        monkeypatch.setattr(module, "breathe", lambda: taken.append(None))
    return taken


@pytest.mark.parametrize(("rows", "expected"), [(BATCH_ROWS - 1, 0), (10 * BATCH_ROWS, 10)])
def test_a_large_result_breathes_between_batches(tmp_path: Path, breaths: list[None], rows: int, expected: int) -> None:
    """And a small one is not held up at all."""
    store = Store(tmp_path)
    store.open()
    connection = store.reader()
    sql = f"WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT {rows}) SELECT x FROM c"
    for _ in connection.run(Query(sql=sql, timeout_s=60, rows=rows), lambda _: None):
        pass
    connection.close()
    store.close()
    assert len(breaths) == expected


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_a_file_breathes_while_it_is_read(tmp_path: Path, breaths: list[None], kind: str) -> None:
    """Whichever its kind."""
    file = tmp_path / "file"
    if kind == "csv":
        file.write_text("n\n" + "1\n" * 1_000)
        ingest.check_csv(file, Limits())
    else:
        file.write_text('{"n": 1}\n' * 1_000)
        ingest.check_ndjson(file, Limits())
    assert len(breaths) == 10
