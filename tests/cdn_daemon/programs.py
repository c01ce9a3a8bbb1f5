"""Runs programs under cdn-run, as its tests need it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.support import BIN, ServiceProcess, until

Start = Callable[..., ServiceProcess]

PATIENT = """
trap 'echo told TERM; exit 5' TERM
trap 'echo told QUIT; exit 6' QUIT
trap 'echo told HUP' HUP
trap 'echo told USR1' USR1
trap 'echo told USR2' USR2
trap 'echo told INT' INT
echo program is $$
while :; do sleep 0.05; done
"""
"""A shell program that says what it is told."""

STUBBORN = """
trap 'echo told TERM' TERM
echo program is $$
(trap '' TERM; echo grandchild is $(sh -c 'echo $PPID'); while :; do sleep 0.05; done) &
while :; do sleep 0.05; done
"""
"""A shell program, and its child, that do not end when they are told to."""


def cdn_run(run_path: Path, *arguments: str, name: str = "tiny", **env: str) -> ServiceProcess:
    """A program under cdn-run; it is called tiny, as the other tests' service is."""
    return ServiceProcess(run_path, str(BIN / "cdn-run"), "--name", name, *arguments, **env)


def said(process: ServiceProcess, text: str) -> None:
    """Wait until it, or its program, has written a line."""
    until(lambda: f"{text}\n" in process.log(), what=f"it says {text!r}: {process.log()}")


def pid_of(process: ServiceProcess, what: str = "program") -> int:
    """Pid that the shell programs tell of themselves."""
    text = f"{what} is "
    until(lambda: text in process.log() and process.log().split(text)[1].split("\n")[0].isdigit())
    return int(process.log().split(text)[1].split("\n")[0])


def keeper_of(process: ServiceProcess) -> int:
    """Pid of its keeper."""
    (keeper,) = psutil.Process(process.pid).children()
    return keeper.pid


def ready(process: ServiceProcess) -> dict[str, Any]:
    """Answer of its own /readyz."""
    return dict(json.loads(process.get("/readyz")[1]))
