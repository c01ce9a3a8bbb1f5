"""What operators read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Event, HealthStatus, OrderOutcome, OutcomeKind, ProcessState, ServiceView, Verb
from cli.answers import (
    SERVICES,
    addresses,
    closing,
    event_cells,
    event_line,
    event_object,
    ordered,
    outcome_line,
    outcomes,
    services,
)
from cli.rendering import Cell, Format, Output, Screen, clean, columns, cpu, duration, indented, size, table
from tests.cli.support import plain, view

TABLE, JSON = Output(), Output(Format.JSON)
PIPE = Screen()
DOWN = {"pid": None, "uptime_s": None, "health": HealthStatus.UNKNOWN, "phase": None, "address": None}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-1.0, "0s"),
        (0.0, "0.0s"),
        (0.44, "0.4s"),
        (9.94, "9.9s"),
        (9.95, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (192.0, "3m12s"),
        (7500.0, "2h05m"),
        (3 * 86400 + 4 * 3600.0, "3d04h"),
    ],
)
def test_durations_have_two_units(seconds: float | None, text: str) -> None:
    """A duration is as short as it can be read."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (999, "999B"),
        (1000, "0.98KiB"),
        (33 * 2**20, "33.0MiB"),
        (999 * 2**20, "999MiB"),
        (1023 * 2**20, "1.00GiB"),
        (5 * 2**40, "5.00TiB"),
        (4096 * 2**40, "4096TiB"),
    ],
)
def test_sizes_have_three_digits(count: int | None, text: str) -> None:
    """Bytes are shown in binary units and never as 1024 of the smaller one."""
    assert size(count) == text


@pytest.mark.parametrize(("cores", "text"), [(None, "-"), (0.0, "0.0%"), (0.021, "2.1%"), (1.0, "100%"), (3.2, "320%")])
def test_cpu_is_percent_of_one_core(cores: float | None, text: str) -> None:
    """As top shows it; unknown is not zero."""
    assert cpu(cores) == text


def test_the_status_table_is_for_people_and_for_awk() -> None:
    """The columns are named as documented, and every cell off a terminal is one word but the last."""
    lines = services(
        [view("atlas"), view("web", state=ProcessState.FATAL, reason="gave up after 5", **DOWN)], TABLE, PIPE
    )
    assert lines[0].split() == ["NAME", "STATE", "HEALTH", "PID", "UPTIME", "RESTARTS", "CPU", "MEM", "SEEN", "REASON"]
    assert lines[1].split() == ["atlas", "RUNNING", "healthy", "4711", "1h01m", "0", "2.1%", "33.0MiB", "0.2s", "-"]
    assert lines[2].split(maxsplit=9)[9] == "gave up after 5"
    assert lines[-1] == "1 running, 1 fatal"


@pytest.mark.parametrize(
    ("views", "text"),
    [
        ([], "no services"),
        ([view("a"), view("b"), plain("c")], "3 running"),
        ([view("a"), view("b"), view("c", state=ProcessState.FATAL)], "2 running, 1 fatal"),
        ([view("a", state=ProcessState.BACKOFF), view("b", state=ProcessState.STOPPED)], "1 backing off, 1 stopped"),
        ([view("a"), view("b", health=HealthStatus.UNHEALTHY)], "2 running; 1 unhealthy"),
    ],
)
def test_the_closing_line_counts(views: list[object], text: str) -> None:
    """States in supervisor's words, and running but ill ones besides."""
    assert closing(views) == text  # type: ignore[arg-type]


def test_a_pipe_is_never_cut_and_never_coloured() -> None:
    """A reason of any length stays on its line, without escapes."""
    reason = "x" * 500
    lines = services([view("a", reason=reason)], TABLE, PIPE)
    assert reason in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_has_colours() -> None:
    """Where the screen has them."""
    assert "\x1b[32mRUNNING\x1b[0m" in services([view("a")], TABLE, Screen(width=200, colour=True))[1]


@given(
    width=st.integers(10, 200),
    reasons=st.lists(st.text(min_size=1, max_size=200), min_size=1, max_size=4),
    names=st.lists(st.text("abcdef漢", min_size=1, max_size=12), min_size=4, max_size=4),
)
def test_a_wrapped_column_stays_within_the_terminal(width: int, reasons: list[str], names: list[str]) -> None:
    """The last column wraps within the width, and nothing of it is lost."""
    rows = [[Cell(name), Cell(clean(reason))] for name, reason in zip(names, reasons, strict=False)]
    lines = table(("NAME", "TEXT"), rows, Screen(width=width))
    longest = max([4, *(columns(row[0].text) for row in rows)])
    limit = max(width, 12, longest + 1 + 8)
    assert all(columns(line) <= limit for line in lines)
    for row in rows:
        kept = "".join(lines).replace(" ", "")
        assert all(part in kept for part in row[1].text.split()) or columns(row[1].text) > 8


@given(st.text())
def test_nothing_a_service_says_steers_the_terminal(text: str) -> None:
    """No control character gets through, and what is printable stays."""
    shown = clean(text)
    assert shown.isprintable() or all(c.isprintable() or c.isspace() for c in shown)
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    if text.isprintable():
        assert shown == text


def test_addresses_are_those_that_listen() -> None:
    """Services without an address are left out."""
    assert addresses([view("atlas"), plain("job")], PIPE) == ["atlas  http://127.0.0.1:18100"]


def test_the_status_document_has_the_schema() -> None:
    """Exactly the documented keys, raw bytes and seconds, unknown as null."""
    document = json.loads(services([view("atlas"), plain("job", restarts=None)], JSON, PIPE)[0])
    assert document["schema_version"] == 1
    assert list(document["services"][0]) == list(ServiceView.__struct_fields__)
    assert document["services"][0]["rss_bytes"] == 33 * 2**20
    assert document["services"][1]["restarts"] is None


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("", ["b", "a", "c"]),
        ("name", ["a", "b", "c"]),
        ("-name", ["c", "b", "a"]),
        ("CPU", ["a", "b", "c"]),
        ("-cpu", ["b", "a", "c"]),
    ],
)
def test_sorted_by_a_column(sort: str, names: list[str]) -> None:
    """Words from a to z, numbers from the largest; what is unknown comes last, whichever way."""
    views = [view("b", cpu_cores=0.1), view("a", cpu_cores=0.5), view("c", cpu_cores=None)]
    assert [found.instance for found in ordered(SERVICES, views, sort)] == names


@pytest.mark.parametrize("column", SERVICES.sortable)
def test_every_column_can_be_sorted_by(column: str) -> None:
    """Also where services are without it."""
    views = [view("b"), plain("a"), view("c", restarts=None, uptime_s=None, reason="x")]
    for sort in (column, f"-{column}"):
        assert {found.instance for found in ordered(SERVICES, views, sort)} == {"a", "b", "c"}


def test_the_forms_of_the_status() -> None:
    """Wide has every column, jsonl an object a line, name names only, and no headers no closing line either."""
    views = [view("a"), plain("b")]
    wide = services(views, Output(Format.WIDE), PIPE)
    assert wide[0].split() == [column.header for column in SERVICES.columns]
    assert [json.loads(line)["instance"] for line in services(views, Output(Format.JSONL), PIPE)] == ["a", "b"]
    assert services(views, Output(Format.NAME), PIPE) == ["a", "b"]
    assert [line.split()[0] for line in services(views, Output(headers=False), PIPE)] == ["a", "b"]
    assert services([], TABLE, PIPE) == ["no services"]
    assert services([], Output(headers=False), PIPE) == []


@pytest.mark.parametrize(
    ("kind", "reason", "text"),
    [
        (OutcomeKind.DONE, "", "web restarted in 0.41 s"),
        (OutcomeKind.DONE, "already running", "web already running"),
        (OutcomeKind.FAILED, "exit 1", "web not restarted: exit 1"),
        (OutcomeKind.REJECTED, "unknown service web", "web not restarted: unknown service web"),
        (OutcomeKind.UNKNOWN, "still STOPPING", "web not known to be restarted after 0.4 s: still STOPPING"),
    ],
)
def test_every_outcome_is_a_line(kind: OutcomeKind, reason: str, text: str) -> None:
    """It says what is true, and why."""
    assert (
        outcome_line(Verb.RESTART, OrderOutcome(id="1", name="web", kind=kind, reason=reason, took_s=0.41), PIPE)
        == text
    )


def test_outcomes_are_a_document() -> None:
    """One object for each name."""
    outcome = OrderOutcome(id="1", name="web", kind=OutcomeKind.DONE, incarnation=4, took_s=0.4123)
    assert json.loads(outcomes(Verb.STOP, [outcome], JSON, PIPE)[0]) == {
        "schema_version": 1,
        "outcomes": [
            {"name": "web", "verb": "stop", "outcome": "done", "reason": "", "incarnation": 4, "took_s": 0.412}
        ],
    }


def event(time_s: float) -> Event:
    """Something that happened then."""
    return Event(
        id="e1",
        source="atlas",
        incarnation=1,
        seq=1,
        time_s=time_s,
        host="h",
        instance="web",
        kind="state",
        text="RUNNING",
    )


def test_events_have_rfc3339_times_in_json() -> None:
    """In UTC, with milliseconds."""
    assert event_object(event(1_700_000_000.5))["time"] == "2023-11-14T22:13:20.500Z"
    assert event_line(event(1_700_000_000.5), PIPE).endswith("web                   state         RUNNING")


@pytest.mark.parametrize("time_s", [float("inf"), float("nan"), 1e300, -1e300])
def test_an_impossible_time_is_absent(time_s: float) -> None:
    """A broken sender does not break the table."""
    assert event_cells(event(time_s))[0].text == "-"
    assert event_object(event(time_s))["time"] is None


@given(st.text("ab ", max_size=120), st.integers(0, 30), st.integers(20, 60))
def test_what_is_indented_stays_so(text: str, at: int, width: int) -> None:
    """Within the terminal, every line as deep as the first at least, and no word lost."""
    lines = indented(" " * at + text, width)
    assert all(columns(line) <= width for line in lines)
    deep = min(at, width // 2)
    assert all(line.startswith(" " * deep) for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_line_goes_on_a_little_deeper() -> None:
    """So that one sees where the next begins."""
    assert indented("  how   killed by SIGKILL after all", 20) == [
        "  how   killed",
        "      by SIGKILL",
        "      after all",
    ]
