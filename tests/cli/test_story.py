"""What an operator reads at three in the morning: why, describe and history; and what changes of limits mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus import postmortems
from bus.endpoints import RunDir
from bus.messages import (
    Band,
    CommandView,
    HealthStatus,
    IncarnationView,
    LifecyclePhase,
    Limits,
    OutcomeKind,
    PostMortem,
    ProcessState,
    ServiceView,
    StatusSample,
    Verb,
)
from cli.bands import BandError, changed
from cli.exits import Exit
from cli.rendering import Screen, columns, spark
from cli.story import advice, story
from tests.cli.fake_atlas import FakeAtlas
from tests.cli.support import cdnctl, plain, view
from tests.cli.test_with_atlas import happened

NOW_S = 1_700_000_100.0
DOWN: dict[str, Any] = {"pid": None, "health": HealthStatus.UNKNOWN, "phase": None}


def life(**changes: Any) -> IncarnationView:
    """An end by itself, a while ago."""
    fields: dict[str, Any] = {
        "key": "41",
        "instance": "web",
        "incarnation": 41,
        "pid": 400,
        "ended_s": 1_700_000_000.0,
        "lived_s": 3600.0,
        "ready_after_s": 0.2,
        "end": "exit code 3",
        "wait_status": 3 << 8,
        "ends_last_hour": 1,
        "ends_last_day": 1,
    }
    return IncarnationView(**{**fields, **changes})


HUNG = life(
    end="killed by SIGKILL",
    wait_status=9,
    verdict="silent for 0.5 s, state R",
    guilty='File "/srv/web/parse.py", line 31 in match',
    stacks='Thread 0x1 (most recent call first):\n  File "/srv/web/parse.py", line 31 in match\n' + "  more\n" * 30,
    log_tail="".join(f"line {n}\n" for n in range(40)),
)


COMMAND = CommandView(
    id="c1",
    order="o1",
    verb=Verb.RESTART,
    name="web",
    asked_by="eve@h",
    asked_at_s=1_700_000_002.5,
    stage="ended",
    kind=OutcomeKind.DONE,
    took_s=0.4,
)
SIGNALLED = replace(COMMAND, verb=Verb.SIGNAL, asked_at_s=1_699_999_999.9)


@pytest.mark.parametrize(
    ("now", "then", "said"),
    [
        (view("web"), None, "nothing: it runs and is well"),
        (view("web"), life(), "it ended by itself: cdnctl logs web -n 100"),
        (view("web"), HUNG, "long_call"),
        (view("web"), HUNG, "line 31 in match"),
        (view("web"), life(verdict="stopped by a signal (state T) for 0.22 s", wait_status=9), "SIGSTOP"),
        (view("web"), life(ordered_by="root@h", end="exit code 0"), "ordered by root@h: nothing is to be mended"),
        (view("web"), life(end="killed by SIGKILL", wait_status=9), "out of memory"),
        (view("web"), life(end="killed by SIGSEGV", wait_status=11), "crashed in native code"),
        (view("web"), life(end="killed by SIGUSR1", wait_status=10), "somebody sent it that signal"),
        (view("web"), life(end="killed by SIGUSR1", wait_status=10, commands=(SIGNALLED,)), "a signal of eve@h"),
        (view("web"), life(limit="rss_bytes 900 MiB: over the hard limit of 800 MiB"), "--metric rss_bytes"),
        (view("web"), life(limit="rss_bytes 900 MiB: over the hard limit of 800 MiB"), "--set rss_bytes.hard="),
        (view("web"), replace(HUNG, limit="loop_lag_s 2 s: over the hard limit of 2 s"), "blocked by File"),
        (view("web"), replace(HUNG, verdict="not ready within 30 s: connecting"), "it did not say READY=1 in time"),
        (view("web"), life(ends_last_hour=7), "it keeps ending"),
        (view("web", health=HealthStatus.DEGRADED, reason="slow disk"), None, "it runs and is degraded: slow disk"),
        (view("web", maintenance=True), None, "cdnctl maintenance web --off"),
        (plain("web", state=ProcessState.FATAL, pid=None), life(), "mend the cause, then: cdnctl start web"),
        (plain("web", state=ProcessState.BACKOFF, pid=None), life(), "started again by itself"),
        (plain("web", state=ProcessState.STOPPED, pid=None), None, "start it: cdnctl start web"),
        (plain("web", state=ProcessState.EXITED, pid=None), life(wait_status=78 << 8), "its configuration is wrong"),
        (plain("web", state=ProcessState.STOPPED, pid=None, enabled=False), None, "cdnctl enable web"),
        (None, life(), "cdnctl up"),
    ],
)
def test_what_to_do_follows_from_the_evidence(now: ServiceView | None, then: IncarnationView | None, said: str) -> None:
    """A command to type, or where to look."""
    assert any(said in step for step in advice("web", now, then)), advice("web", now, then)


def test_who_is_misconfigured_is_not_told_to_start_as_it_is() -> None:
    """What it said first, then what to do."""
    wrong = life(wait_status=78 << 8, last_status="CDN_PORT is x: no number")
    assert advice("web", plain("web", state=ProcessState.EXITED, pid=None), wrong) == [
        "its configuration is wrong: CDN_PORT is x: no number",
        "mend it in [program:web] of supervisord.conf, or in what it reads; then: cdnctl start web",
    ]


@pytest.mark.parametrize(
    ("number", "wait_status", "words"),
    [
        (78, 78 << 8, "error     78: EX_CONFIG, a configuration error"),
        (70, 70 << 8, "error     70: EX_SOFTWARE, an error in the program itself"),
        (98, 1 << 8, "error     98: Address already in use (EADDRINUSE)"),
        (78, 1 << 8, "error     78: Remote address changed (EREMCHG)"),
        (78, 9, "error     78: Remote address changed (EREMCHG)"),
        (4000, 1 << 8, "error     4000, which is no errno"),
    ],
)
def test_an_error_number_is_told_in_words(number: int, wait_status: int, words: str) -> None:
    """As sysexits.h has it where it is the exit code, too; else as errno(3)."""
    told = story("web", None, [life(errno=number, wait_status=wait_status)], now_s=NOW_S, screen=Screen())
    assert any(words in line for line in told), told


def test_an_end_fits_on_a_screen() -> None:
    """The guilty frame stands before the stacks, of which there is the beginning; of the log the end."""
    lines = story("web", view("web"), [HUNG], now_s=NOW_S, screen=Screen())
    text = "\n".join(lines)
    assert len(lines) <= 40
    assert text.index("guilty") < text.index("stacks")
    assert "#41 ended 1m40s ago" in text
    assert "line 39" in text
    assert "line 20" not in text
    assert "32 lines more with --full" in text
    assert "line 0\n" in "\n".join(story("web", None, [HUNG], now_s=NOW_S, screen=Screen(), full=True)) + "\n"


def test_what_grew_is_seen() -> None:
    """Of the last statuses, as bars; what stayed as it was takes no line."""
    samples = tuple(
        StatusSample(
            time_s=NOW_S - 10 + n,
            health=HealthStatus.HEALTHY,
            phase=LifecyclePhase.SERVING,
            rss_bytes=(n + 1) * 10**8,
            cpu_cores=0.5,
        )
        for n in range(8)
    )
    text = "\n".join(story("web", view("web"), [life(statuses=samples)], now_s=NOW_S, screen=Screen()))
    assert "memory    ▁▂▃▄▅▆▇█  763MiB at the end" in text
    assert "cpu  " not in text


@given(st.text(), st.text())
def test_nothing_in_a_log_steers_the_terminal(log: str, end: str) -> None:
    """Whatever a service wrote before it died."""
    lines = story("web", view("web"), [life(log_tail=log, end=end, stacks=log)], now_s=NOW_S, screen=Screen())
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for line in lines for c in line if c != "\n")


@given(st.lists(st.one_of(st.none(), st.floats(-1e12, 1e12))), st.integers(1, 80))
def test_bars_fit(values: list[float | None], width: int) -> None:
    """One for each value, or as many as there is room; the largest is the highest."""
    bars = spark(values, width)
    assert columns(bars) == min(len(values), width)
    known = [value for value in values if value is not None]
    if known and max(known) > min(known) and width >= len(values):
        assert "█" in bars


def test_why_by_atlas(run_dir: RunDir) -> None:
    """On one screen, and as JSON with the advice."""
    with FakeAtlas(run_dir, [view("atlas", uptime_s=99.0), view("web")]) as atlas:
        atlas.lives = (HUNG,)
        shown = cdnctl(run_dir.path, "why", "web")
        document = cdnctl(run_dir.path, "why", "web", "-o", "json")
        unknown = cdnctl(run_dir.path, "why", "wbe")
    assert shown.returncode == Exit.OK, shown.stderr
    assert "guilty" in shown.stdout
    (told,) = json.loads(document.stdout)["why"]
    assert told["incarnations"][0]["guilty"] == HUNG.guilty
    assert told["service"]["instance"] == "web"
    assert any("long_call" in step for step in told["advice"])
    assert (unknown.returncode, unknown.stdout) == (Exit.UNKNOWN, "")
    assert "did you mean web?" in unknown.stderr


def test_why_when_nobody_is_left(run_dir: RunDir) -> None:
    """The post-mortems are enough, also of a process in a group."""
    report = PostMortem(
        name="grp:web",
        host="h",
        start=1,
        pid=77,
        ended_at="2023-11-14T22:13:20Z",
        lived_s=5.0,
        ready_after_s=None,
        wait_status=3 << 8,
        end="exit code 3",
        log_tail="ValueError: no such table\n",
    )
    place = postmortems.directory_of(run_dir) / postmortems.file_name("grp:web")
    place.mkdir(parents=True)
    (place / postmortems.name_at(1_700_000_000_000_000_000, 77)).write_bytes(encoded(report))
    done = cdnctl(run_dir.path, "why", "web")
    missing = cdnctl(run_dir.path, "why", "db")
    assert done.returncode == Exit.OK, done.stderr
    assert "no fleet runs in" in done.stderr
    assert "exit code 3" in done.stdout
    assert "ValueError: no such table" in done.stdout
    assert "cdnctl up" in done.stdout
    assert missing.returncode == Exit.UNKNOWN


def test_what_atlas_has_not_read_yet_is_read_here(run_dir: RunDir) -> None:
    """It knows that a process has ended, and the warden's file how."""
    report = PostMortem(
        name="web",
        host="h",
        start=1,
        pid=400,
        ended_at="2023-11-14T22:13:20Z",
        lived_s=5.0,
        ready_after_s=None,
        wait_status=9,
        end="killed by SIGKILL",
    )
    place = postmortems.directory_of(run_dir) / "web"
    place.mkdir(parents=True)
    (place / postmortems.name_at(1_700_000_000_000_000_000, 400)).write_bytes(encoded(report))
    with FakeAtlas(run_dir, [view("atlas", uptime_s=99.0), view("web")]) as atlas:
        atlas.lives = (life(end="", wait_status=None), life(end="", wait_status=None, pid=399, incarnation=40))
        (told,) = json.loads(cdnctl(run_dir.path, "why", "web", "-n", "2", "--json").stdout)["why"]
    assert [each["end"] for each in told["incarnations"]] == ["killed by SIGKILL", ""]
    assert [each["incarnation"] for each in told["incarnations"]] == [41, 40]


def encoded(report: PostMortem) -> bytes:
    """As the warden writes it."""
    import msgspec

    return msgspec.json.encode(report)


def test_describe_and_history(run_dir: RunDir) -> None:
    """Every column that is known, what happened, and each command once with who gave it and its outcome."""
    with FakeAtlas(run_dir, [view("atlas", uptime_s=99.0), view("web")], events=[happened(1, "web")]) as atlas:
        atlas.commands = (COMMAND,)
        atlas.lives = (HUNG,)
        described = cdnctl(run_dir.path, "show", "web")
        document = cdnctl(run_dir.path, "describe", "web", "--json")
        history = cdnctl(run_dir.path, "history", "web")
        lines = cdnctl(run_dir.path, "history", "web", "-o", "jsonl")
    assert described.returncode == Exit.OK, described.stderr
    for said in ("healthy", "event 1", "restart asked by eve@h: done after 0.4s", "killed by SIGKILL", "127.0.0.1"):
        assert said in described.stdout
    (service,) = json.loads(document.stdout)["services"]
    assert service["instance"] == "web"
    assert service["commands"][0]["asked_at"] == "2023-11-14T22:13:22.500Z"
    assert service["last_end"]["incarnation"] == 41
    assert [line.split()[3] for line in history.stdout.splitlines()[1:]] == ["state", "command"]
    assert [json.loads(line)["asked_by"] for line in lines.stdout.splitlines()[1:]] == ["eve@h"]


HELD = Limits(rss_bytes=Band(soft=100.0, hard=200.0, for_s=5.0), fds=Band(soft=10.0))


@pytest.mark.parametrize(
    ("changes", "bands"),
    [
        (["rss_bytes.hard=1G"], Limits(rss_bytes=Band(soft=100.0, hard=2.0**30, for_s=5.0))),
        (["rss_bytes.soft=0.5k"], None),
        (["rss_bytes.soft=150", "rss_bytes.for_s=0"], Limits(rss_bytes=Band(soft=150.0, hard=200.0, for_s=0.0))),
        (["rss_bytes.hard=none"], Limits(rss_bytes=Band(soft=100.0, for_s=5.0))),
        (["rss_bytes=1MiB:2MiB:3"], Limits(rss_bytes=Band(soft=2.0**20, hard=2.0**21, for_s=3.0))),
        (["threads.hard=50"], Limits(threads=Band(soft=50.0, hard=50.0))),
        (["threads.soft=50"], Limits(threads=Band(soft=50.0))),
        (["fds=20", "threads=5:9"], Limits(fds=Band(soft=20.0), threads=Band(soft=5.0, hard=9.0))),
        (["threads.for_s=3"], None),
        (["threads.hard=none"], None),
        (["nonsense=1"], None),
        (["rss_bytes.middle=1"], None),
        (["rss_bytes"], None),
        (["rss_bytes=many"], None),
        (["rss_bytes=1:2:3:4"], None),
        (["rss_bytes=-1"], None),
        (["rss_bytes.soft=300"], None),
    ],
)
def test_a_change_of_limits(changes: list[str], bands: Limits | None) -> None:
    """Bounds that are not named stay; what contradicts itself is refused."""
    if bands is None:
        with pytest.raises(BandError, match="cannot set"):
            changed(HELD, ["rss_bytes.soft=300"] if changes == ["rss_bytes.soft=0.5k"] else changes)
    else:
        assert changed(HELD, changes) == bands
