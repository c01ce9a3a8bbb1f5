"""Dead man's switches and cron, by tables, with time in the test's hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from services.isolated_monitoring import checks, cron
from services.isolated_monitoring.checks import Action, Check, CheckError

T = 1_800_000_000.0
RID, OTHER = "0a1b2c3d-0000-0000-0000-000000000001", "0a1b2c3d-0000-0000-0000-000000000002"
NEW = Check(uuid="u", timeout_s=60, grace_s=30)
UP = checks.ping(NEW, Action.SUCCESS, T)


def test_a_life() -> None:
    """new until it is heard, up, late, down, and up again when it is heard."""
    assert checks.status(NEW, T + 1e6) == "new"
    states = [checks.status(UP, T + after_s) for after_s in (0, 59, 61, 89, 91)]
    assert states == ["up", "up", "grace", "grace", "down"]
    assert "no ping in time" in checks.why_down(UP, T + 91)
    settled = checks.settled(UP, T + 91)
    assert checks.status(settled, T) == "down"
    assert checks.settled(UP, T + 80) is UP
    assert checks.status(checks.ping(settled, Action.SUCCESS, T + 100), T + 101) == "up"


@pytest.mark.parametrize(
    ("check", "action", "rid", "status", "started", "duration_s"),
    [
        (NEW, Action.SUCCESS, "", "up", False, None),
        (NEW, Action.FAIL, "", "down", False, None),
        (NEW, Action.START, "", "new", True, None),
        (NEW, Action.LOG, "", "new", False, None),
        (UP, Action.START, RID, "up", True, None),
        (UP, Action.FAIL, "", "down", False, None),
        (UP, Action.LOG, "", "up", False, None),
        (checks.ping(UP, Action.START, T, rid=RID), Action.SUCCESS, RID, "up", False, 10.0),
        (checks.ping(UP, Action.START, T, rid=RID), Action.SUCCESS, OTHER, "up", True, None),
        (checks.ping(UP, Action.START, T, rid=RID), Action.FAIL, OTHER, "down", False, None),
        (checks.ping(UP, Action.START, T), Action.SUCCESS, "", "up", False, 10.0),
        (checks.paused(UP), Action.SUCCESS, "", "up", False, None),
        (replace(checks.paused(UP), manual_resume=True), Action.SUCCESS, "", "paused", False, None),
        (replace(NEW, methods="POST"), Action.SUCCESS, "", "new", False, None),
    ],
)
def test_pings(check: Check, action: Action, rid: str, status: str, started: bool, duration_s: float | None) -> None:
    """What each kind of ping does to each kind of check; all are counted."""
    after = checks.ping(check, action, T + 10, rid=rid)
    assert (checks.status(after, T + 10), after.last_start_s is not None) == (status, started)
    assert after.last_duration_s == duration_s
    assert after.n_pings == check.n_pings + 1


def test_a_run_that_does_not_end() -> None:
    """Started, and not done within its grace: down, though the next ping was not due yet."""
    running = checks.ping(UP, Action.START, T + 1)
    assert checks.status(running, T + 30) == "up"
    assert checks.status(running, T + 32) == "down"
    assert "not done within" in checks.why_down(running, T + 32)


def test_a_monitor_that_was_away() -> None:
    """Nobody is late for who could not listen."""
    restored = replace(UP, not_before_s=T + 1000)
    assert checks.status(restored, T + 999) == "grace"
    assert checks.status(restored, T + 1001) == "down"


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 200))
def test_a_stepped_clock(step_s: float, after_s: float) -> None:
    """Nobody's state changes by it."""
    for check in (NEW, UP, checks.ping(UP, Action.START, T)):
        assert checks.status(checks.shifted(check, step_s), T + step_s + after_s) == checks.status(check, T + after_s)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"grace": 1e9}, "grace"),
        ({"grace": "60"}, "grace"),
        ({"schedule": "* * * *"}, "schedule"),
        ({"schedule": "0 0 30 2 *"}, "schedule"),
        ({"tz": "Mars/Olympus"}, "tz"),
        ({"tz": "../../etc/passwd"}, "tz"),
        ({"name": "x" * 101}, "name"),
        ({"slug": "Ä"}, "slug"),
        ({"methods": "PUT"}, "methods"),
        ({"manual_resume": 1}, "manual_resume"),
    ],
)
def test_what_cannot_be_wished(wish: dict[str, object], field: str) -> None:
    """The field is named."""
    with pytest.raises(CheckError, match=f"^{field} "):
        checks.changed(NEW, wish)


def test_a_schedule() -> None:
    """Late is by the schedule, in its own time zone."""
    check = checks.changed(NEW, {"schedule": "30 4 * * *", "tz": "Europe/Riga", "grace": 60})
    heard = checks.ping(check, Action.SUCCESS, datetime(2026, 1, 10, 2, 31, tzinfo=UTC).timestamp())
    due = datetime(2026, 1, 11, 2, 30, tzinfo=UTC).timestamp()
    assert checks.expected_s(heard) == due
    assert [checks.status(heard, due + after_s) for after_s in (-1, 1, 61)] == ["up", "grace", "down"]


@settings(deadline=None)
@given(
    st.sampled_from(
        [
            "* * * * *",
            "*/7 * * * *",
            "5,35 */3 * * *",
            "0 9-17 * * mon-fri",
            "15 5 1,15 * *",
            "0 0 1 jan *",
            "0 12 13 * 5",
            "59 23 29 2 *",
            "10 2 * * 7",
            "@hourly",
            "@weekly",
        ]
    ),
    st.integers(0, 4_000_000_000),
)
def test_cron_as_others_have_it(text: str, after_s: int) -> None:
    """The same next time as croniter's."""
    theirs = croniter(text, datetime.fromtimestamp(after_s, UTC)).get_next(float)
    assert cron.parse(text).next_s(after_s, UTC) == theirs


def test_cron_where_the_clock_is_put_forward_and_back() -> None:
    """It goes on, forward in time, over both."""
    zone = ZoneInfo("Europe/Berlin")
    for year, month, day in ((2026, 3, 28), (2026, 10, 24)):
        at_s = datetime(year, month, day, tzinfo=zone).timestamp()
        for _ in range(100):
            next_s = cron.parse("30 * * * *").next_s(at_s, zone)
            assert 0 < next_s - at_s <= 7200
            at_s = next_s


NO_CRON = [
    "",
    "* * * *",
    "60 * * * *",
    "* 24 * * *",
    "* * 0 * *",
    "* * * 13 *",
    "* * * * 8",
    "5-1 * * * *",
    "*/0 * * * *",
    "a * * * *",
    "1,,2 * * * *",
    "0 0 31 feb *",
    "-1 * * * *",
    "٣ * * * *",
    "1/2/3 * * * *",
]


@pytest.mark.parametrize("text", NO_CRON)
def test_no_cron(text: str) -> None:
    """What is none is refused."""
    with pytest.raises(cron.CronError):
        cron.parse(text)
