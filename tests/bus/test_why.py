"""Why a process ended: what is made of its post-mortem, its stacks and its circumstances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus import postmortems, why
from bus.messages import PostMortem
from bus.postmortems import Filed
from tests.bus.samples import EVENT

STALL = """loop_lag_s 1.2 s: over the hard limit of 1 s

Thread 0x00007fa63f1646c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 982 in run
  File "/srv/shop/beside.py", line 8 in poll

Current thread 0x00007fa63fbd7b80 (most recent call first):
  File "/usr/lib/python3.11/json/decoder.py", line 337 in decode
  File "/srv/venv/lib/python3.11/site-packages/orm/query.py", line 12 in load
  File "/srv/shop/orders.py", line 34 in total
  File "/srv/venv/lib/python3.11/site-packages/starlette/routing.py", line 62 in app
  File "/srv/venv/lib/python3.11/site-packages/cdn_daemon/host.py", line 100 in run
  File "/srv/shop/__main__.py", line 9 in <module>
"""


def filed(ended_s: float = 1000.0, **fields: Any) -> Filed:
    """A post-mortem of a crash, with these fields."""
    report = PostMortem(
        **{
            "name": "shop",
            "host": "host-1",
            "start": 3,
            "pid": 77,
            "ended_at": "1970-01-01T00:16:40Z",
            "lived_s": 60.0,
            "ready_after_s": 0.5,
            "wait_status": 9,
            "end": "killed by SIGKILL",
            **fields,
        }
    )
    return Filed(Path(postmortems.name_at(int(ended_s * 1e9), report.pid)), ended_s, report)


def test_the_main_thread_comes_first_and_its_own_frame_is_guilty() -> None:
    """Not the innermost frame, which is Python's or a library's, and not another thread's."""
    stacks, guilty = why.explain(STALL)
    assert guilty == "/srv/shop/orders.py:34 in total"
    assert stacks.startswith("loop_lag_s 1.2 s: over the hard limit of 1 s\n\nCurrent thread")
    assert stacks.index("in total") < stacks.index("in poll")


@pytest.mark.parametrize(
    ("without", "guilty"),
    [
        ((), "/srv/shop/orders.py:34 in total"),
        (("shop/",), "/srv/venv/lib/python3.11/site-packages/orm/query.py:12 in load"),
        (("shop/", "orm/", "starlette/"), "/usr/lib/python3.11/json/decoder.py:337 in decode"),
    ],
)
def test_without_a_frame_of_its_own_the_next_best_is_guilty(without: tuple[str, ...], guilty: str) -> None:
    """Of an installed package, then of anything."""
    lines = [line for line in STALL.splitlines(keepends=True) if not any(part in line for part in without)]
    assert why.explain("".join(lines))[1] == guilty


@settings(deadline=None)
@given(st.text(max_size=300))
def test_what_is_no_dump_stays_as_it_is(text: str) -> None:
    """Nobody is guilty of noise."""
    if "hread 0x" not in text:
        assert why.explain(text) == (text, "")


@pytest.mark.parametrize(
    ("fields", "summary"),
    [
        ({}, "killed by SIGKILL"),
        ({"ordered_by": "root", "end": "exit 0"}, "exit 0; ordered by root"),
        ({"ready_after_s": None, "end": "exit 3"}, "exit 3; before it was ready"),
        (
            {"end": "exit 1", "log_tail": "Traceback (most recent call last):\n  File …\nKeyError: 'x'\nbye\n"},
            "exit 1; KeyError: 'x'",
        ),
        ({"end": "exit 1", "log_tail": "KeyError: 'x' was handled\nall is well\n"}, "exit 1"),
        (
            {"end": "killed by SIGABRT: silent for 0.6 s", "verdict": "silent for 0.6 s", "stacks": STALL},
            "killed by SIGABRT: silent for 0.6 s; while in /srv/shop/orders.py:34 in total",
        ),
        (
            {
                "end": "asked to be restarted (exit 75)",
                "last_status": "draining: rss_bytes 800 MiB: over the hard limit of 768 MiB",
            },
            "asked to be restarted (exit 75); rss_bytes 800 MiB: over the hard limit of 768 MiB",
        ),
    ],
)
def test_the_summary_has_the_best_reason_there_is(fields: dict[str, Any], summary: str) -> None:
    """One line: how it ended, and why."""
    assert why.view("shop", filed(**fields), why.Circumstances()).summary == summary


def test_the_limit_is_of_this_life_and_still_held() -> None:
    """Health that was said of another incarnation, or has been taken back since, explains nothing."""
    over = replace(EVENT, kind="health", text="healthy → degraded: fds 90: over the soft limit of 80")
    well = replace(over, text="degraded → healthy")
    for events, limit in (
        ((over,), "fds 90: over the soft limit of 80"),
        ((over, well), ""),
        ((replace(over, subject_incarnation=41),), ""),
    ):
        known = why.Circumstances(incarnation=42, events=events)
        assert why.view("shop", filed(incarnation=42), known).limit == limit


def test_the_key_is_the_incarnation_or_the_name_of_the_file() -> None:
    """Either leads back to it."""
    assert why.view("shop", filed(incarnation=42), why.Circumstances()).key == "42"
    assert why.view("shop", filed(), why.Circumstances(incarnation=41)).key == "41"
    assert why.view("shop", filed(), why.Circumstances()).key == "19700101T001640.000000000-77"


def test_from_files_alone() -> None:
    """Newest first, with how often it has ended lately: for when ATLAS is gone."""
    ends = [filed(at_s, start=n) for n, at_s in enumerate((1000.0, 50_000.0, 88_000.0, 88_100.0))]
    views = why.of_files(ends, 2)
    assert [view.start for view in views] == [3, 2]
    assert (views[0].ends_last_hour, views[0].ends_last_day) == (2, 3)


def test_one_without_a_post_mortem() -> None:
    """It runs, or nobody saw how it ended; nothing is made up."""
    runs = why.view("shop", None, why.Circumstances(incarnation=3, started_s=10.0))
    assert (runs.summary, runs.ended_s, runs.lived_s, runs.key) == ("runs", None, None, "3")
    over = why.view("shop", None, why.Circumstances(incarnation=3, started_s=10.0, ended_s=15.0))
    assert (over.summary, over.lived_s, over.end) == ("nobody saw how it ended", 5.0, "")
