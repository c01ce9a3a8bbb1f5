"""The comparison with other supervisors: what its table says, and that it measures what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.__main__ import options
from benchmarks.peers.places import NotHere, from_pypi
from benchmarks.peers.supervisors import PEERS, TINY_BARE, WEB_BARE
from benchmarks.peers.table import (
    Cell,
    Nothing,
    NotWithin,
    Row,
    Taken,
    Used,
    cell_text,
    document,
    markdown,
    note_text,
    p95,
    plain,
    ratio,
    table,
    time_text,
    titles,
)
from tests.support import ROOT, environment, short_dir, until

BARE = Row("bare", cells={"crash": Taken((0.010, 0.020, 0.030))})
WAKING = Row("waking", cells={"cpu": Used(4.0, "%")})
OURS = Row(
    "ours",
    limits=("bare", "waking"),
    cells={"crash": Taken((0.024, 0.022, 0.026)), "cpu": Used(10.0, "%"), "hang": Taken((0.4,))},
    notes={"crash": "the first"},
)
OTHER = Row(
    "other",
    "4.3",
    limits=("bare", "waking"),
    cells={"crash": Taken((1.0, 1.5)), "hang": NotWithin(60.0, has_means=False), "cpu": Nothing("is blind")},
)
ROWS = [BARE, WAKING, OURS, OTHER]


@pytest.mark.parametrize(
    ("cell", "times", "text"),
    [
        (Taken((0.0016,)), None, "1.6 ms"),
        (Taken((0.020, 0.022, 0.040)), 1.25, "22 ms (40 ms) ×1.2"),
        (Taken((1.0, 1.06)), None, "1.03 s (1.06 s)"),
        (Used(2.5, "%"), 0.5, "2.50 % ×0.5"),
        (Used(0.04, "%"), 0.04, "0.04 % ×0.04"),
        (Used(17.25, "MiB"), None, "17.2 MiB"),
        (NotWithin(60.0, has_means=False), None, "never"),
        (NotWithin(60.0, has_means=True), None, "> 60 s"),
        (Nothing("has no limits"), None, "–"),
    ],
)
def test_a_cell_says_what_became_of_it(cell: Cell, times: float | None, text: str) -> None:
    """Figures with their unit; never, where there are no means; more than was waited for, where there are."""
    assert cell_text(cell, times) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00994, "9.9 ms"), (0.00996, "10 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (10, "10.0 s")],
)
def test_a_time_keeps_its_digits(seconds: float, text: str) -> None:
    """Also where its unit changes."""
    assert time_text(seconds) == text


@pytest.mark.parametrize(("values", "expected"), [([3.0], 3.0), ([1.0, 5.0, 2.0], 5.0), ([*range(1, 101)], 95)])
def test_p95_is_one_of_the_runs(values: list[float], expected: float) -> None:
    """The nearest rank: of few runs, the slowest."""
    assert p95(values) == expected


def test_a_ratio_is_to_the_limit_of_the_same_column() -> None:
    """The first row named that has one there; of what is no figure, there is none."""
    assert ratio(OURS, "crash", ROWS) == pytest.approx(1.2)
    assert ratio(OURS, "cpu", ROWS) == pytest.approx(2.5)
    assert ratio(OURS, "hang", ROWS) is None
    assert ratio(OTHER, "hang", ROWS) is None
    assert ratio(BARE, "crash", ROWS) is None


def test_what_cannot_be_done_has_a_footnote() -> None:
    """For a never, how long was waited; for what was not measured, why; each footnote once."""
    assert note_text(OTHER, "hang") == "waited for 60 s"
    assert note_text(OTHER, "cpu") == "is blind"
    assert note_text(OURS, "hang") == ""
    lines, notes = table([*ROWS, OTHER], {"crash": "crash", "hang": "hang", "cpu": "cpu"})
    assert notes == ["the first", "waited for 60 s", "is blind"]
    assert lines[3] == ["ours", "24 ms (26 ms) ×1.2 [1]", "400 ms", "10.00 % ×2.5"]
    assert lines[4] == lines[5] == ["other 4.3", "1.25 s (1.50 s) ×62", "never [2]", "– [3]"]
    assert lines[1] == ["bare", "20 ms (30 ms)", "", ""]


def test_it_is_drawn_for_a_terminal_and_for_the_readme() -> None:
    """The same cells, and the footnotes below."""
    lines, notes = table(ROWS, {"hang": titles(50, 128)["hang"]})
    assert plain(lines, notes).splitlines() == [
        "           SIGSTOP→answering",
        "bare",
        "waking",
        "ours       400 ms",
        "other 4.3  never [1]",
        "[1] waited for 60 s",
    ]
    assert markdown(lines, notes).splitlines() == [
        "|  | SIGSTOP → answering |",
        "|---|---|",
        "| bare |  |",
        "| waking |  |",
        "| ours | 400 ms |",
        "| other 4.3 | never [1] |",
        "",
        "1. waited for 60 s",
    ]


def test_other_programs_get_figures() -> None:
    """Seconds, shares of a core and ratios, unrounded."""
    other = document(ROWS)[3]["cells"]
    assert other == {
        "crash": {"median_s": 1.25, "p95_s": 1.5, "seconds": [1.0, 1.5], "ratio": pytest.approx(62.5), "note": None},
        "hang": {"not_within_s": 60.0, "never": True, "ratio": None, "note": None},
        "cpu": {"why_not": "is blind", "ratio": None, "note": None},
    }


def run(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """The benchmark, with a directory for what it makes."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers", "--cache", str(directory / "cache"), *arguments],
        env=environment(directory, TMPDIR=str(directory)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def measured(directory: Path, *arguments: str) -> dict[str, dict[str, dict[str, float]]]:
    """Row → column → what was measured there; nothing is left of it."""
    benchmark = run(directory, *arguments, "--runs", "1", "--json")
    said, progress = benchmark.communicate(timeout=110)
    assert benchmark.returncode == 0, progress
    assert made_in(directory) == []
    assert list(directory.glob("cdn-*")) == []
    return {row["name"]: row["cells"] for row in json.loads(said)["rows"]}


def made_in(directory: Path) -> list[str]:
    """Command lines of whatever runs on files in there, but the benchmark's own."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if f"{directory}/cdn-" in line]


def test_where_peers_are_cached_is_the_same_place_from_everywhere() -> None:
    """Supervisors are started in directories of their own, so a relative place would not be found there."""
    assert options(["--cache", "peers"]).cache == Path.cwd() / "peers"


def test_what_is_installed_and_does_not_run_is_left_out(tmp_path: Path) -> None:
    """As when its interpreter has been removed since: the others are measured all the same."""
    place = tmp_path / "circus"
    place.mkdir()
    (place / "whole").touch()
    with pytest.raises(NotHere, match="cannot run"):
        from_pypi("circus")(tmp_path)


def test_a_crash_is_timed_under_either() -> None:
    """What is killed is replaced by stock supervisor and by ours, and both are compared with its bare start."""
    with short_dir() as directory:
        rows = measured(directory, "--peers", "cdn", "supervisor", "--only", "crash")
    assert [name for name, cells in rows.items() if cells["crash"]["ratio"] is None] == [TINY_BARE, WEB_BARE]
    assert {name for name in rows if name.startswith(("cdn", "supervisor"))} == {
        peer.name for peer in PEERS if peer.key in ("cdn", "supervisor")
    }
    assert all(cells["crash"]["median_s"] > 0 for cells in rows.values()), rows


def test_what_is_never_replaced_is_said_to_be_so() -> None:
    """Stock supervisor does not look whether a service still runs; what is waited for is as long as was asked."""
    with short_dir() as directory:
        rows = measured(directory, "--peers", "supervisor", "--only", "hang", "--patience", "2")
    assert rows["supervisor"]["hang"]["never"] is True
    assert rows["supervisor"]["hang"]["not_within_s"] == 2


def test_interrupted_it_leaves_nothing() -> None:
    """Ctrl-C in the middle ends the supervisors, their services and the benchmark."""
    with short_dir() as directory:
        benchmark = run(directory, "--peers", "supervisor", "--only", "hang")
        try:
            until(lambda: any("service.py" in line for line in made_in(directory)), what="a service runs")
            until(lambda: any("supervisord" in line for line in made_in(directory)), what="a supervisor runs")
            os.kill(benchmark.pid, signal.SIGINT)
            _, progress = benchmark.communicate(timeout=60)
        finally:
            benchmark.kill()
        assert benchmark.returncode == 130, progress
        assert made_in(directory) == []
        assert list(directory.glob("cdn-*")) == []
