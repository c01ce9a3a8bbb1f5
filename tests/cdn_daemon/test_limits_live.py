"""Limits for real: what leaks is reported, shed, drained and restarted; what does not, is left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bus.endpoints import RunDir
from bus.messages import Band, Limits, Outcome, OutcomeKind, SetLimits
from cdn_daemon.guard import DEFAULT_LOOP_LAG
from cdn_daemon.limits import MiB
from tests.cdn_daemon.test_commands import Commander
from tests.support import ServiceProcess, is_running, until

Spawn = Callable[..., ServiceProcess]


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Spawn:
    """Starts tiny services that believe themselves supervised, and ends them afterwards."""

    def start(**env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", **({"SUPERVISOR_ENABLED": "1"} | env))
        request.addfinalizer(process.stop)
        return process

    return start


def ready(tiny: ServiceProcess) -> dict[str, Any]:
    """Answer of /readyz."""
    return dict(json.loads(tiny.get("/readyz")[1]))


def rss_mib(tiny: ServiceProcess) -> float:
    """Resident memory as /metrics has it, once it has been sampled."""

    def sampled() -> float | None:
        found = re.search(rb"cdn_service_resident_memory_bytes\{.*?\} (\d+)", tiny.get("/metrics")[1])
        return int(found[1]) / MiB if found else None

    return until(sampled) or 0.0


def test_a_leak(spawn: Spawn, run_path: Path) -> None:
    """50 MB/s: told to shed at the soft limit, drained and ended with 75 at the hard one, before 1.1 × of it."""
    tiny = spawn(CDN_LIMIT_RSS_BYTES="150m:300m")
    assert tiny.get("/leak?mb=5&every=0.1&times=200")[0] == 200
    assert tiny.wait() == 75
    told = re.search(r"draining: rss_bytes (\d+) MiB: over the hard limit of 300 MiB", tiny.log())
    assert told, tiny.log()
    assert 300 <= int(told[1]) < 330
    assert (run_path / "shed").read_text().split() == ["rss_bytes"]


def test_a_burst(spawn: Spawn) -> None:
    """A gigabyte at once is far beyond: replaced with its stacks, not waited for; others are not touched."""
    other = spawn(CDN_INSTANCE="other")
    tiny = spawn(CDN_LIMIT_RSS_BYTES="200m:300m")
    tiny.get("/leak?mb=1024")
    assert tiny.wait() in (70, 75)
    assert "over the hard limit of 300 MiB" in tiny.log()
    assert other.get("/") == (200, b"hello")


@pytest.mark.parametrize(
    ("limit", "path"),
    [
        ({"CDN_LIMIT_FDS": "100:200"}, "/open?n=300"),
        ({"CDN_LIMIT_THREADS": "30:50"}, "/threads?n=80"),
        ({"CDN_LIMIT_CHILDREN": "1:2"}, "/child?mb=1"),
        ({"CDN_LIMIT_RSS_BYTES": "150m:200m"}, "/child?mb=300"),
    ],
    ids=["fds", "threads", "children", "child's memory"],
)
def test_other_leaks(spawn: Spawn, limit: dict[str, str], path: str) -> None:
    """Descriptors, threads, children and what children use: drained and restarted over the hard limit."""
    tiny = spawn(**limit)
    for _ in range(3 if "CHILDREN" in str(limit) else 1):
        assert tiny.get(path)[0] == 200
    assert tiny.wait() == 75
    assert "over the hard limit" in tiny.log()


def test_soft_limits_degrade_and_heal(spawn: Spawn) -> None:
    """Above soft it is degraded with the reason, and still serves; a raised limit heals it."""
    tiny = spawn()
    until(lambda: ready(tiny)["health"] == "healthy")
    limited = spawn(CDN_INSTANCE="limited", CDN_LIMIT_RSS_BYTES=f"{rss_mib(tiny) + 60:.0f}m")
    until(lambda: ready(limited)["health"] == "healthy")
    limited.get("/leak?mb=100")
    until(lambda: ready(limited)["health"] == "degraded")
    (reason,) = ready(limited)["reasons"]
    assert re.fullmatch(r"rss_bytes \d+ MiB: over the soft limit of \d+ MiB", reason)
    assert ready(limited)["ready"]


def test_without_a_supervisor_it_goes_on(run_path: Path) -> None:
    """Nobody would start it again: degraded with the reason, and alive."""
    with ServiceProcess(run_path, "-m", "tests.cdn_daemon.tiny", CDN_LIMIT_FDS="100:200") as alone:
        alone.get("/open?n=300")
        until(lambda: "nobody supervises this process, so it goes on" in alone.log())
        assert ready(alone)["health"] == "degraded"
        assert is_running(alone.pid)


@pytest.mark.parametrize(
    ("value", "text"),
    [("300m:200m", r"soft=3\.14573e\+08 is over hard"), ("-5", "soft=-5: it must be over 0"), ("lots", "cannot read")],
)
def test_contradictory_limits(spawn: Spawn, value: str, text: str) -> None:
    """Refused at the start, naming the variable."""
    tiny = spawn(CDN_LIMIT_RSS_BYTES=value)
    assert tiny.wait() == 78
    assert re.search(f"cannot use CDN_LIMIT_RSS_BYTES={value}: .*{text}", tiny.log())


def test_limits_beyond_the_machine(spawn: Spawn) -> None:
    """They never hold, so it says so, degraded and not dead."""
    tiny = spawn(CDN_LIMIT_RSS_BYTES="900000g")
    until(lambda: ready(tiny)["health"] == "degraded")
    assert "over what this machine has" in ready(tiny)["reasons"][0]


def test_set_limits(spawn: Spawn, run_dir: RunDir) -> None:
    """A command changes them live, and its outcome and /metrics tell them; contradictions are rejected."""
    tiny = spawn()
    tiny.url()
    with Commander(run_dir) as commander:
        commander.hear(object)
        wrong = SetLimits(limits=Limits(fds=Band(soft=10, hard=5)))
        commander.send(wrong, "c1")
        outcome = commander.hear(Outcome, id="c1")
        assert (outcome.kind, outcome.reason) == (OutcomeKind.REJECTED, "cannot limit fds: soft=10 is over hard=5")
        commander.send(SetLimits(limits=Limits(rss_bytes=Band(soft=1e18))), "c2")
        assert commander.hear(Outcome, id="c2").kind is OutcomeKind.REJECTED
        commander.send(SetLimits(limits=Limits(children=Band(soft=7, hard=9))), "c0")
        limits = commander.hear(Outcome, id="c0").status.limits
        assert (limits.children, limits.loop_lag_s) == (Band(soft=7, hard=9), DEFAULT_LOOP_LAG)
        assert re.search(rb'cdn_limit_children\{.*,level="hard"\} 9', tiny.get("/metrics")[1])
        commander.send(SetLimits(limits=Limits(threads=Band(soft=1, hard=2))), "c3")
        assert commander.hear(Outcome, id="c3").kind is OutcomeKind.DONE
        assert tiny.wait() == 75
