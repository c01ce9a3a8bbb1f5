"""Where the programs of each peer are: on PATH, or in environments of their own below a cache directory.

Nothing is installed outside that directory, and nothing of it is started as a service of the system: packages of Debian
are unpacked there, PyPI's have a virtual environment each, npm's a prefix.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import BIN


class NotHere(Exception):
    """The peer cannot be had; the text says why."""


@dataclass(frozen=True)
class Place:
    """Directories of a peer's programs, what they need in their environment, and their version."""

    paths: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    version: str = ""

    def environment(self) -> dict[str, str]:
        """For its programs: that of this process, without what is meant for this one's Python and services."""
        ours = ("CDN_", "SUPERVISOR_", "NOTIFY_", "WATCHDOG_", "PYTHON", "PM2_")
        clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        return {**clean, **self.env, "PATH": os.pathsep.join((*self.paths, os.environ.get("PATH", os.defpath)))}

    def program(self, name: str) -> str:
        """Full path of one of its programs."""
        found = shutil.which(name, path=self.environment()["PATH"])
        if found is None:
            raise NotHere(f"{name} is not on PATH")
        return found


def own(_: Path) -> Place:
    """This project's environment, which has supervisor, unmodified."""
    return Place((str(BIN),), version=_output([str(BIN / "supervisord"), "--version"]))


def from_pypi(*packages: str) -> Callable[[Path], Place]:
    """A virtual environment with these; the first gives the version."""

    def place(cache: Path) -> Place:
        directory = cache / packages[0]
        python = directory / "bin" / "python"
        if not (directory / "whole").exists():
            _run([sys.executable, "-m", "venv", "--clear", str(directory)])
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
            (directory / "whole").touch()
        version = f"import importlib.metadata as m; print(m.version({packages[0]!r}))"
        return Place((str(directory / "bin"),), version=_output([str(python), "-c", version]))

    return place


def from_npm(package: str) -> Callable[[Path], Place]:
    """A prefix of its own, unless the program is on PATH."""

    def place(cache: Path) -> Place:
        paths: tuple[str, ...] = ()
        if shutil.which(package) is None:
            directory = cache / package
            if not (directory / "whole").exists():
                if shutil.which("npm") is None:
                    raise NotHere(f"neither {package} nor npm is on PATH")
                _run(["npm", "install", "--prefix", str(directory), "--silent", "--no-audit", "--no-fund", package])
                (directory / "whole").touch()
            paths = (str(directory / "node_modules" / ".bin"),)
        bare = Place(paths)
        manifest = Path(bare.program(package)).resolve().parent.parent / "package.json"
        found = re.search(r'"version": *"([^"]+)"', manifest.read_text())
        return Place(paths, version=found[1] if found else "")

    return place


def installed(package: str, program: str) -> Callable[[Path], Place]:
    """Only what is on PATH: its programs look for each other where they were built to be."""

    def place(_: Path) -> Place:
        if shutil.which(program) is None:
            raise NotHere(f"{program} is not on PATH; `apt-get install {package}`, or as it is called here, has it")
        return Place(version=_debian_version(package))

    return place


def from_debian(package: str, program: str) -> Callable[[Path], Place]:
    """What is installed, or its package and those libraries that are missing, unpacked without being installed."""

    def place(cache: Path) -> Place:
        if shutil.which(program):
            return Place(version=_debian_version(package))
        directory = cache / package
        if not (directory / "whole").exists():
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                raise NotHere(f"{program} is not on PATH, and there is no apt-get to have it from")
            wanted = ["apt-get", "install", "--simulate", "--no-install-recommends", package]
            names = re.findall(r"^Inst (\S+)", _output(wanted), re.MULTILINE)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            _run(["apt-get", "download", "--quiet", *names], cwd=directory)
            for archive in directory.glob("*.deb"):
                _run(["dpkg-deb", "-x", str(archive), str(directory)])
            (directory / "whole").touch()
        paths = tuple(str(directory / part) for part in ("usr/bin", "usr/sbin", "bin", "sbin"))
        libraries = sorted({str(path.parent) for path in directory.glob("**/lib*.so.*")})
        archive = next(directory.glob(f"{package}_*.deb"))
        version = archive.name.split("_")[1].replace("%3a", ":").partition(":")[2] or archive.name.split("_")[1]
        return Place(paths, {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}, version.partition("-")[0])

    return place


def _debian_version(package: str) -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    return done.stdout.rpartition(":")[2].partition("-")[0]


def _output(command: list[str]) -> str:
    return _run(command).stdout.strip()


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise NotHere(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotHere(f"{' '.join(command[:4])} ended with {done.returncode}: {said[-1] if said else ''}")
    return done
