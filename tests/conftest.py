"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from bus.endpoints import RunDir, prepare
from tests.support import short_dir

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what is started here would ignore it, too, if the tests run under nohup
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # lest each of thousands of processes compile it all

# How long an example takes says how busy the machine is, and nothing of what it is about.
settings.register_profile("slow is not wrong", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow is not wrong")


@pytest.fixture
def run_dir() -> Iterator[RunDir]:
    """A private run directory of the test's own, gone afterwards."""
    with short_dir() as path:
        yield prepare(RunDir(path))


@pytest.fixture
def run_path(run_dir: RunDir) -> Path:
    """The same, as a path."""
    return run_dir.path
