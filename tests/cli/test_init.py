"""cdnctl init: what it writes runs as it is, also from a wheel, with nothing of this project's tree in reach."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands.init import FILES
from cli.exits import Exit
from tests.cli.support import cdnctl, ended_afterwards, services_of
from tests.cli.test_doctor import doctor
from tests.support import ROOT, environment, short_dir, until

BARE: dict[str, str | None] = {"CDN_RUN_DIR": None, "CDN_PORT": "0", "PYTHONPATH": None}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for a fleet, which is ended afterwards."""
    with short_dir() as path, ended_afterwards(path / "run"):
        yield path


def test_what_it_writes_runs(home: Path) -> None:
    """From nothing to a service that answers: both commands say what to do next."""
    done = cdnctl(home, "init", cwd=home, env=BARE)
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert done.stdout.splitlines()[-1] == "next: cdnctl up"
    try:
        up = cdnctl(home, "up", "-o", "json", cwd=home, env=BARE)
        assert up.returncode == Exit.OK, up.stderr
        hello = services_of(up)["hello"]
        with urllib.request.urlopen(f"{hello['address']}/hello/you", timeout=30) as answer:
            assert answer.read() == b"hello, you\n"
        until(lambda: not doctor(home), what="nothing to mend")
    finally:
        cdnctl(home, "down", cwd=home, env=BARE)


def test_nothing_is_written_over(home: Path) -> None:
    """Neither file: then none is written at all."""
    for name in FILES:
        place = home / name.partition(".")[0]
        place.mkdir()
        (place / name).write_text("mine")
        done = cdnctl(home, "init", str(place), env=BARE)
        assert done.returncode == Exit.FAILED
        assert f"cannot write {place / name}: it is there already" in done.stderr
        assert [(path.name, path.read_text()) for path in place.iterdir()] == [(name, "mine")]


def test_where_it_cannot(home: Path) -> None:
    """A path that is too long for sockets, and a directory that cannot be made."""
    done = cdnctl(home, "init", str(home / ("long" * 25)), env=BARE)
    assert (done.returncode, "the limit is 107" in done.stderr) == (Exit.FAILED, True)
    (home / "file").write_text("")
    done = cdnctl(home, "init", str(home / "file" / "below"), env=BARE)
    assert (done.returncode, "cannot write into" in done.stderr) == (Exit.FAILED, True)
    assert sorted(path.name for path in home.iterdir()) == ["file"]


@pytest.mark.timeout(600)
def test_from_a_wheel(home: Path) -> None:
    """Built as it is installed by users, unpacked elsewhere: its ATLAS, page and example run from there alone.

    What the wheel depends on is this environment's.
    """
    source = home / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bus", "cdn_daemon", "cli", "services"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", home, source], capture_output=True, text=True)
    if built.returncode and "Could not find a version that satisfies the requirement setuptools" in built.stderr:
        pytest.skip("pip cannot fetch what builds a wheel: no network")
    assert built.returncode == 0, built.stderr
    shutil.rmtree(source)
    (wheel,) = home.glob("*.whl")
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    subprocess.run([*pip, "--python", venv / "bin" / "python", "install", "--no-deps", wheel], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "others.pth").write_text("\n".join(_dependencies()))
    env = {key: value for key, value in environment(home).items() if key not in ("CDN_RUN_DIR", "PYTHONPATH")}
    env |= {"CDN_PORT": "0", "PATH": f"{venv}/bin:{os.environ['PATH']}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=home / "fleet", env=env, capture_output=True, text=True, timeout=100)

    (home / "fleet").mkdir()
    with ended_afterwards(home / "fleet" / "run"):
        cdnctl_ = str(venv / "bin" / "cdnctl")
        assert run(cdnctl_, "init").returncode == 0
        where = run("python", "-c", "import services.atlas; print(services.atlas.__file__)").stdout
        assert where.startswith(str(site)), where
        try:
            up = run(cdnctl_, "up", "-o", "json")
            assert up.returncode == 0, up.stderr
            atlas = next(each for each in json.loads(up.stdout)["services"] if each["instance"] == "atlas")
            with urllib.request.urlopen(f"{atlas['address']}/", timeout=30) as page:
                assert b"<html" in page.read()
        finally:
            run(cdnctl_, "down")


def _dependencies() -> list[str]:
    """Where this environment has what the wheel needs; not its own finder of this project's tree."""
    return [path for path in sys.path if path.endswith("site-packages")]
