"""What the kernel holds a process to: read clearly, set for real, and where it is not permitted said and survived."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cdn_daemon.backstops import BackstopError, Backstops, apply, read_backstops
from tests.support import ServiceProcess, until

Spawn = Callable[..., ServiceProcess]


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Spawn:
    """Starts tiny services, and ends them afterwards."""

    def start(**env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", **env)
        request.addfinalizer(process.stop)
        return process

    return start


def ready(tiny: ServiceProcess) -> dict[str, Any]:
    """Answer of /readyz."""
    return dict(json.loads(tiny.get("/readyz")[1]))


@pytest.mark.parametrize(
    ("environ", "backstops"),
    [
        ({}, Backstops()),
        ({"CDN_NICE": "", "CDN_CPUS": ""}, Backstops()),
        ({"CDN_RLIMIT_DATA": "2g"}, Backstops(rlimits=(("CDN_RLIMIT_DATA", 2 << 30),))),
        ({"CDN_RLIMIT_DATA": "infinity"}, Backstops(rlimits=(("CDN_RLIMIT_DATA", resource.RLIM_INFINITY),))),
        ({"CDN_RLIMIT_NOFILE": "4k"}, Backstops(rlimits=(("CDN_RLIMIT_NOFILE", 4096),))),
        ({"CDN_RLIMIT_CORE": "0"}, Backstops(rlimits=(("CDN_RLIMIT_CORE", 0),))),
        ({"CDN_NICE": "-5"}, Backstops(nice=-5)),
        ({"CDN_IONICE": "idle"}, Backstops(ionice=("idle", None))),
        ({"CDN_IONICE": "best-effort:4"}, Backstops(ionice=("best-effort", 4))),
        ({"CDN_CPUS": "3,0-1"}, Backstops(cpus=(0, 1, 3))),
    ],
)
def test_read(environ: dict[str, str], backstops: Backstops) -> None:
    """Each variable, and what is not set stays as it is."""
    assert read_backstops(environ) == backstops


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("CDN_RLIMIT_DATA", ["0", "-1", "lots", "1.5g", "2t", "1k", str(1 << 63), "g"]),
        ("CDN_RLIMIT_NOFILE", ["3", "63", "many"]),
        ("CDN_RLIMIT_CORE", ["-1", "yes"]),
        ("CDN_NICE", ["20", "-21", "5.5", "low"]),
        ("CDN_IONICE", ["idle:3", "best-effort:8", "best-effort:", "best-effort:x", "nice"]),
        ("CDN_CPUS", ["a", "1-0", "-1", "0,", "0-99999", "0.5"]),
    ],
)
def test_wrong(key: str, values: list[str]) -> None:
    """The variable, its value and what it may be."""
    for value in values:
        with pytest.raises(BackstopError, match=f"^cannot use {key}={value}: it must be "):
            read_backstops({key: value})


def test_they_are_set(spawn: Spawn) -> None:
    """A service's process has them all, and is healthy."""
    tiny = spawn(
        CDN_RLIMIT_DATA="2g",
        CDN_RLIMIT_NOFILE="512",
        CDN_RLIMIT_CORE="0",
        CDN_NICE="5",
        CDN_IONICE="best-effort:6",
        CDN_CPUS="0",
    )
    until(lambda: ready(tiny)["health"] == "healthy")
    process = psutil.Process(tiny.pid)
    assert process.rlimit(resource.RLIMIT_DATA) == (2 << 30, 2 << 30)
    assert process.rlimit(resource.RLIMIT_NOFILE) == (512, 512)
    assert process.rlimit(resource.RLIMIT_CORE) == (0, 0)
    assert process.nice() == 5
    assert (process.ionice().ioclass, process.ionice().value) == (psutil.IOPRIO_CLASS_BE, 6)
    assert process.cpu_affinity() == [0]


def test_memory_beyond_the_backstop(spawn: Spawn) -> None:
    """An allocation that would cross it fails by itself; the process, and all that it serves, go on."""
    tiny = spawn(CDN_RLIMIT_DATA="1g")
    assert tiny.get("/")[0] == 200
    assert tiny.get("/leak?mb=2000")[0] == 200
    assert tiny.get("/") == (200, b"hello")
    assert psutil.Process(tiny.pid).memory_info().rss < 1 << 30


def test_what_the_host_does_not_permit(spawn: Spawn) -> None:
    """A processor that is not there: said in the log, degraded, and alive."""
    tiny = spawn(CDN_CPUS="4000")
    until(lambda: ready(tiny)["health"] == "degraded" and len(ready(tiny)["reasons"]) == 1)
    (reason,) = ready(tiny)["reasons"]
    assert reason.startswith("cannot set CDN_CPUS=4000: ")
    assert reason in tiny.log()
    assert ready(tiny)["ready"]


def test_without_permission(run_path: Path) -> None:
    """More priority than an ordinary user may have is refused in words; what is allowed is set all the same."""
    if os.geteuid() != 0:
        assert apply(Backstops(nice=-5), os.getpid()) == ["cannot set CDN_NICE=-5: not permitted"]
        return
    backstops = Backstops(nice=-5, cpus=(0,))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # as an ordinary user, who may not
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.write(write, repr((apply(backstops, os.getpid()), os.sched_getaffinity(0))).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as said:
        assert said.read() == repr((["cannot set CDN_NICE=-5: not permitted"], {0}))
