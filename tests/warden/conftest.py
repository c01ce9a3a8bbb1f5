"""A run directory of its own for each test, and an ATLAS in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import short_dir
from tests.warden.programs import FakeAtlas, fake_atlas


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with short_dir() as path:
        yield path


@pytest.fixture
def atlas(run_dir: Path) -> Iterator[FakeAtlas]:
    with fake_atlas(run_dir) as atlas:
        yield atlas
