"""Order by depends_on: started when what it needs is ready, stopped before it; the pure part by histories."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdn_daemon.warden.depends import find_cycle, next_to_stop, resolve
from cdn_daemon.warden.settings import SettingsError
from tests.support import BIN, Supervisord, until
from tests.warden.programs import FakeAtlas, python


def slow(run_dir: Path, name: str, *, depends_on: str = "", **more: str) -> dict[str, str]:
    """Ready after 0.3 s, ends 0.3 s after SIGTERM."""
    body = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(0)))\n"
        "time.sleep(0.3)\ntell('READY=1')\ntime.sleep(1000)"
    )
    return {"command": python(run_dir, name, body, notifies=True), "type": "notify", "depends_on": depends_on, **more}


def log_order(fleet: Supervisord, pattern: str) -> list[str]:
    """Names in the order of supervisord's log."""
    return re.findall(pattern, fleet.log())


def test_starts_when_the_dependencies_are_ready_and_stops_in_reverse(run_dir: Path) -> None:
    programs = {
        "gateway": slow(run_dir, "gateway", depends_on="store, search"),
        "search": slow(run_dir, "search", depends_on="base"),
        "store": slow(run_dir, "store", depends_on="base"),
        "base": slow(run_dir, "base"),
    }
    with Supervisord(run_dir, programs) as fleet:
        until(lambda: set(fleet.states().values()) == {"RUNNING"}, what="all ready")
        events = log_order(fleet, r"(?:INFO )(spawned: '\w+'|success: \w+)")
        at = {event.replace("'", ""): number for number, event in enumerate(events)}
        assert at["spawned: gateway"] > max(at["success: store"], at["success: search"])
        assert min(at["spawned: store"], at["spawned: search"]) > at["success: base"]
        assert max(at["spawned: store"], at["spawned: search"]) < min(at["success: store"], at["success: search"])
        fleet.stop()
        ends = log_order(fleet, r"stopped: (\w+)")
        assert ends[0] == "gateway"
        assert ends[-1] == "base"


def test_what_waits_says_for_whom(run_dir: Path, atlas: FakeAtlas) -> None:
    programs = {
        "never": {"command": "sleep 1000", "type": "notify"},
        "patient": {"command": "sleep 1000", "depends_on": "never"},
    }
    with Supervisord(run_dir, programs):
        row = atlas.row("patient", "STOPPED")
        assert row.reason == "waiting for never"
        assert row.pid is None


def test_start_all_after_stop_all_keeps_the_order(run_dir: Path) -> None:
    programs = {"second": slow(run_dir, "second", depends_on="first"), "first": slow(run_dir, "first")}
    with Supervisord(run_dir, programs) as fleet:
        until(lambda: set(fleet.states().values()) == {"RUNNING"}, what="all ready")
        fleet.ctl("stop", "all")
        before = len(fleet.log())
        fleet.ctl("start", "all")
        assert set(fleet.states().values()) == {"RUNNING"}
        events = re.findall(r"INFO (spawned: '\w+'|success: \w+)", fleet.log()[before:])
        assert events.index("success: first") < events.index("spawned: 'second'")


def test_an_operators_word_outranks_a_dependency_that_nobody_starts(run_dir: Path) -> None:
    programs = {
        "second": slow(run_dir, "second", depends_on="first", autostart="false"),
        "first": slow(run_dir, "first", autostart="false"),
    }
    with Supervisord(run_dir, programs) as fleet:
        assert fleet.ctl("start", "second").stdout.strip() == "second: started"
        assert fleet.states() == {"first": "STOPPED", "second": "RUNNING"}


def test_a_start_that_waits_can_be_stopped(run_dir: Path, atlas: FakeAtlas) -> None:
    programs = {
        "never": {"command": "sleep 1000", "type": "notify"},
        "held": {"command": "sleep 1000", "depends_on": "never", "autostart": "false"},
    }
    with Supervisord(run_dir, programs) as fleet:
        starting = subprocess.Popen([str(BIN / "supervisorctl"), "-c", str(fleet.conf), "start", "held"], env=fleet.env)
        try:
            assert atlas.row("held", "STARTING").reason == "waiting for never"
            fleet.ctl("stop", "held")
            assert atlas.row("held", "STOPPED").pid is None
        finally:
            starting.wait(timeout=30)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"a": "b", "b": "c", "c": "a"}, "a → b → c → a is a cycle"),
        ({"a": "a"}, "a → a is a cycle"),
        ({"a": "nobody"}, "cannot use depends_on of program a: there is no program nobody"),
    ],
)
def test_cycles_and_unknown_names_are_refused_at_start(run_dir: Path, options: dict[str, str], complaint: str) -> None:
    programs = {name: {"command": "sleep 1000", "depends_on": wanted} for name, wanted in options.items()}
    fleet = Supervisord(run_dir, programs)
    with pytest.raises(AssertionError, match="supervisord ended"):
        fleet.start()
    assert complaint in fleet.log()


def test_a_group_stands_for_all_its_processes() -> None:
    names: dict[str, tuple[str, ...]] = {"web": ("worker",), "worker:0": (), "worker:1": ()}
    assert resolve(names)["web"] == ("worker:0", "worker:1")


GRAPHS = st.integers(1, 8).flatmap(
    lambda size: st.lists(st.lists(st.integers(0, size - 1), max_size=4, unique=True), min_size=size, max_size=size)
)


@given(GRAPHS)
def test_a_graph_either_has_a_cycle_or_an_order(edges: list[list[int]]) -> None:
    graph = {str(number): tuple(map(str, targets)) for number, targets in enumerate(edges)}
    cycle = find_cycle(graph)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(after in graph[before] for before, after in itertools.pairwise(cycle))
        with pytest.raises(SettingsError):
            resolve(graph)
        return
    up = {name: int(name) % 3 for name in graph}
    while up:  # whatever the priorities say, there always is somebody to stop, and never one who is needed
        stopping = next_to_stop(up, graph)
        assert stopping
        for name in stopping:
            assert not any(name in graph[other] for other in up)
            del up[name]


def test_a_start_of_what_is_still_stopping_changes_nothing(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"slow": slow(run_dir, "slow")}) as fleet:
        pid = atlas.row("slow", "RUNNING").pid
        stopping = subprocess.Popen([str(BIN / "supervisorctl"), "-c", str(fleet.conf), "stop", "slow"], env=fleet.env)
        row = atlas.row("slow", "STOPPING", "STOPPED")
        fleet.ctl("start", "slow")
        stopping.wait(timeout=30)
        after = atlas.row("slow", "STOPPED", "RUNNING")
        assert row.pid in (pid, None)
        assert after.restarts <= 1
        assert atlas.counts().get("errors", 0) == 0
