"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.endpoints import RunDir, prepare
from tests.support import short_dir


@pytest.fixture
def run_dir() -> Iterator[RunDir]:
    """A private run directory of the test's own, gone afterwards."""
    with short_dir() as path:
        yield prepare(RunDir(path))


@pytest.fixture
def run_path(run_dir: RunDir) -> Path:
    """The same, as a path."""
    return run_dir.path
