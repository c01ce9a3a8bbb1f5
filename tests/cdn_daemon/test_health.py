"""What the results of checks mean together."""

from __future__ import annotations

import pytest

from bus.messages import HealthStatus as H
from cdn_daemon.health import Check, HealthMonitor


def check(name: str = "store", *, every_s: float = 5.0, timeout_s: float = 1.0, fails_after: int | None = 3) -> Check:
    """A check that the test answers for."""
    return Check(
        name=name,
        function=lambda: None,
        is_async=False,
        every_s=every_s,
        timeout_s=timeout_s,
        fails_after=fails_after,
    )


def run_once(monitor: HealthMonitor, name: str, failure: str | None, now_s: float = 0.0) -> None:
    """The check starts and ends at once."""
    monitor.started(name, now_s)
    monitor.finished(name, failure)


def test_without_checks_it_is_healthy() -> None:
    """Nothing speaks against it."""
    assert HealthMonitor([]).status() is H.HEALTHY


@pytest.mark.parametrize(
    ("results", "status", "reasons"),
    [
        ([], H.UNKNOWN, ("store: not yet known",)),
        ([None], H.HEALTHY, ()),
        (["x"], H.DEGRADED, ("store (1 of 3): x",)),
        ([None, "x", "y"], H.DEGRADED, ("store (2 of 3): y",)),
        ([None, "x", "y", "z"], H.UNHEALTHY, ("store: z",)),
        (["x", "y", "z", None], H.HEALTHY, ()),
        (["x", "y", None, "z"], H.DEGRADED, ("store (1 of 3): z",)),
    ],
)
def test_failures_in_a_row(results: list[str | None], status: H, reasons: tuple[str, ...]) -> None:
    """Some failures degrade, fails_after of them in a row make unhealthy, one success heals."""
    monitor = HealthMonitor([check()])
    for failure in results:
        run_once(monitor, "store", failure)
    assert (monitor.status(), monitor.reasons()) == (status, reasons)


def test_a_check_that_only_degrades() -> None:
    """With fails_after=None no number of failures makes it unhealthy."""
    monitor = HealthMonitor([check(fails_after=None)])
    for _ in range(10):
        run_once(monitor, "store", "full")
    assert (monitor.status(), monitor.reasons()) == (H.DEGRADED, ("store: full",))


def test_the_worst_counts_and_comes_first() -> None:
    """One unhealthy check among degraded and healthy ones."""
    monitor = HealthMonitor([check("a"), check("b", fails_after=1), check("c")])
    run_once(monitor, "a", "slow")
    run_once(monitor, "b", "dead")
    run_once(monitor, "c", None)
    assert monitor.status() is H.UNHEALTHY
    assert monitor.reasons() == ("b: dead", "a (1 of 3): slow")


def test_when_a_check_is_due() -> None:
    """At once, then every_s after its last start, and never while it runs."""
    monitor = HealthMonitor([check(every_s=5.0)])
    assert [c.name for c in monitor.due(0.0)] == ["store"]
    monitor.started("store", 0.0)
    assert monitor.due(100.0) == []
    monitor.finished("store", None)
    assert monitor.due(4.9) == []
    assert [c.name for c in monitor.due(5.0)] == ["store"]


def test_a_check_that_hangs() -> None:
    """It fails once a period, is not started again until it ends, and its late answer is no success."""
    monitor = HealthMonitor([check(timeout_s=1.0, fails_after=2)])
    monitor.started("store", 0.0)
    monitor.tick(0.9)
    assert monitor.status() is H.UNKNOWN
    monitor.tick(1.0)
    monitor.tick(5.9)
    assert (monitor.status(), monitor.reasons()) == (H.DEGRADED, ("store (1 of 2): no answer within 1 s",))
    monitor.tick(6.0)
    assert (monitor.status(), monitor.reasons()) == (H.UNHEALTHY, ("store: no answer within 1 s",))
    assert monitor.due(50.0) == []
    monitor.finished("store", None)
    assert monitor.status() is H.UNHEALTHY
    assert len(monitor.due(50.0)) == 1


def test_an_observer_that_was_away_accuses_nobody() -> None:
    """What ran meanwhile gets its full time again."""
    monitor = HealthMonitor([check(timeout_s=1.0, fails_after=1)])
    monitor.started("store", 0.0)
    monitor.restart_windows(30.0)
    monitor.tick(30.5)
    assert monitor.status() is H.UNKNOWN


def test_findings() -> None:
    """The daemon's own, replaced by name and taken back."""
    monitor = HealthMonitor([])
    monitor.find("loop", H.DEGRADED, "slow")
    monitor.find("loop", H.UNHEALTHY, "stuck")
    assert (monitor.status(), monitor.reasons()) == (H.UNHEALTHY, ("stuck",))
    monitor.clear("loop")
    monitor.clear("loop")
    assert monitor.status() is H.HEALTHY


def test_all_due_and_running() -> None:
    """An operator's HealthCheck starts every check and is over when each has answered or timed out."""
    monitor = HealthMonitor([check("a"), check("b")])
    run_once(monitor, "a", None)
    run_once(monitor, "b", None)
    assert not monitor.running()
    monitor.all_due()
    assert monitor.running()
    assert len(monitor.due(0.1)) == 2
    run_once(monitor, "a", None, 0.1)
    monitor.started("b", 0.1)
    assert monitor.running()
    monitor.tick(2.0)
    assert not monitor.running()
