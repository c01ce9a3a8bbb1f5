"""cdnctl demo: the whole story, what each loop made of it, and that nothing of it is left."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cli import conf
from cli.demo import acts, changes
from cli.demo.acts import FABRIC, GATEWAY, INTEL, LOOPS, REACTION
from cli.demo.crowd import Crowd
from cli.demo.made_up import ATTACKER, LISTED, bad_addresses, bundle, rumours
from cli.demo.stage import staged
from cli.exits import Exit, Problem
from cli.progress import Progress
from cli.rendering import Screen, columns
from cli.selection import ATLAS
from tests.cli.support import CDNCTL, cdnctl
from tests.support import ROOT, environment, kill_tree, short_dir, until

WHOLE_S = 900
ACTS = ("up", "crowd", "index", "map and graph", "feeds", "scanners", "ill", "attack", "traces", "crash", "atlas")


@pytest.fixture
def home() -> Iterator[Path]:
    """Where everything temporary is, and an operator's run directory that is none of the demonstration's business."""
    with short_dir() as path:
        (path / "tmp").mkdir()
        yield path
        for process in left_in(path):
            kill_tree(process.pid)


def surroundings(home: Path) -> dict[str, str]:
    """An operator's, who has set this and that for a fleet of his own."""
    return environment(home / "run", TMPDIR=str(home / "tmp"), CDN_PORT="18500", CDN_OODA="off", CDN_LOG="debug")


def left_in(home: Path) -> list[psutil.Process]:
    """Processes that were started there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR", "").startswith(str(home)):
                found.append(process)
        except psutil.Error:
            continue
    return found


def nothing_is_left(home: Path) -> None:
    """Neither a file, and so no socket, nor a process."""
    assert sorted(path.name for path in home.rglob("*")) == ["tmp"]
    until(lambda: not left_in(home), what="no process is left")


@pytest.mark.timeout(WHOLE_S)
def test_the_whole_story(home: Path) -> None:
    """Every act comes to what it is about, every loop has its row, by its own words; and all of it is gone."""
    done = subprocess.run(
        [str(CDNCTL), "demo", "--json"],
        env=surroundings(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=WHOLE_S,
        check=False,
    )
    assert done.returncode == Exit.OK, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    nothing_is_left(home)
    found = json.loads(done.stdout)
    facts: dict[str, dict[str, Any]] = {step["name"]: step["facts"] for step in found["steps"]}
    assert tuple(facts) == (*ACTS, "watching", "loops")
    assert all(step["told"] and step["took_s"] >= 0 for step in found["steps"])
    assert {*LOOPS, "shop"} == set(facts["up"]["programs"])
    assert str(home) in facts["up"]["run_dir"]
    assert facts["crowd"]["replicas"] == 3

    assert facts["index"]["decision"]["spec"]["table"] == "logins"
    assert min(facts["index"]["questions"].values()) > 5
    assert facts["map and graph"]["graph"]["nodes"] > 500
    assert facts["feeds"]["malicious"]["before"] > facts["feeds"]["malicious"]["after"]
    assert facts["scanners"]["after"] == {"asked": facts["scanners"]["after"]["asked"]} | {
        "refused": facts["scanners"]["after"]["asked"]
    }
    assert facts["scanners"]["visitor"] == 200
    assert facts["ill"]["decision"]["weight"] < 1
    assert facts["attack"]["status"] == {"before": 200, "proposed": 200, "approved": 403, "visitor": 200}
    kinds = [event["kind"] for event in facts["attack"]["chain"]]
    assert set(kinds) == {"change_point", "sighting", "reaction", "blocked"}
    assert kinds[:2] == ["change_point", "sighting"]
    assert facts["traces"]["crossing"]["crossing"] == "enter"
    assert facts["traces"]["path"] == [
        f"observable:{ATTACKER}",
        "—sighted→",
        "Brute Force",
        "←mitigates—",
        "Account Use Policies",
    ]
    assert len(facts["traces"]["rows"]) >= len(kinds)
    assert facts["traces"]["fence_events"] >= 1
    assert facts["crash"]["end"] == "killed by SIGKILL"
    assert facts["crash"]["indexes"]
    assert facts["atlas"]["status"] == {"attacker": 403, "attacker_later": 403, "visitor": 200}
    assert set(facts["atlas"]["alive"]) == set(LOOPS) - {"atlas"}
    assert facts["atlas"]["incident"]["root"] == "atlas"
    assert len(facts["watching"]["intervals_s"]) > 5

    rows = {row["service"]: row for row in found["loops"]}
    assert tuple(rows) == LOOPS
    for name, row in rows.items():
        assert row["mode"] == "on", "the operator's CDN_OODA is not this fleet's"
        assert row["verdict"] in ("kept", "undone", "failed", "settling") or row["changed"].startswith("nothing: "), (
            name
        )
        assert row["failed"] == 0, row
    for name in (GATEWAY, FABRIC, INTEL, REACTION):  # which the story has waited for
        assert rows[name]["verdict"], rows[name]
        assert rows[name]["before"] is not None
    assert rows[FABRIC]["changed"].startswith("an index on logins (address")
    assert rows[REACTION]["changed"] == "198.51.100.0/24 is banned as one"


@pytest.mark.timeout(WHOLE_S)
@pytest.mark.parametrize(
    ("number", "when", "code"),
    [(signal.SIGINT, "run/supervisor.sock", Exit.INTERRUPTED), (signal.SIGTERM, "run/shop-2.log", Exit.FAILED)],
)
def test_an_end_in_the_middle_leaves_nothing(home: Path, number: signal.Signals, when: str, code: Exit) -> None:
    """While it starts, and while the story is played."""
    with (home / "told").open("wb") as told:
        playing = subprocess.Popen(
            [str(CDNCTL), "demo"], env=surroundings(home), cwd=home, stdout=told, stderr=told, start_new_session=True
        )
    until(lambda: list((home / "tmp").glob(f"cdn-demo-*/{when}")), within_s=300, what=when)
    os.killpg(playing.pid, number)  # as a terminal does
    assert playing.wait(timeout=300) == code, (home / "told").read_text()
    assert "what each loop changed" not in (home / "told").read_text()
    (home / "told").unlink()
    nothing_is_left(home)


def test_a_guesser_whom_nobody_notices_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """He stops until he is no longer what is usual; what is told is told of the time that he was noticed."""
    monkeypatch.setattr(acts, "UNNOTICED_S", 0.2)
    monkeypatch.setattr(acts, "LEARNT_AGAIN_S", 0.2)
    paces: list[float] = []

    class Story(acts.Play):
        def _proposed(self) -> dict[str, Any] | None:
            if not paces or paces[-1] != guessing.per_s:
                paces.append(guessing.per_s)
            return {"id": "1"} if len(paces) == 3 else None

    with Crowd() as crowd, Progress("", lines=True) as show:
        guessing = crowd.add("guesser", lambda _: 200, lambda: "http://127.0.0.1:9", acts.GUESSED_PER_S)
        story = Story(None, crowd, 1)  # type: ignore[arg-type]  # nothing of the stage is needed
        story._show = show
        begun_s = time.monotonic()
        reaction, began_s = story._noticed(guessing)
        assert reaction == {"id": "1"}
        assert paces == [acts.GUESSED_PER_S, 0, acts.GUESSED_PER_S]
        assert began_s - begun_s > 0.4


def test_an_act_that_cannot_go_on_is_named() -> None:
    """Also by what nobody foresaw: a connection that is refused, an answer that is none."""
    for error in (ConnectionRefusedError(111, "Connection refused"), http.client.BadStatusLine("?")):

        def act(error: Exception = error) -> Any:
            raise error

        with Crowd() as crowd, Progress("", lines=True) as show:
            story = acts.Play(None, crowd, 1)  # type: ignore[arg-type]  # nothing of the stage is needed
            with pytest.raises(Problem, match=r"ATLAS is killed: cannot go on .*(refused|BadStatusLine)"):
                story.play("atlas", "ATLAS is killed", act, show)


def test_what_an_act_cannot_find_is_told() -> None:
    """An ATLAS that is silent, in words; an incident that is over is not the one that is waited for."""
    over = {"root": ATLAS, "is_open": False}
    stage: Any = SimpleNamespace(views=dict, call=lambda *_: {"incidents": [over]})
    story = acts.Play(stage, Crowd(), 0)
    with pytest.raises(Problem, match="cannot kill cdn-data-fabric"):
        story._kill(FABRIC)
    assert story._incident() is None


def test_another_configuration(home: Path) -> None:
    """One in which there is nothing to play with is refused, with what it lacks; nothing is left."""
    (home / "other.conf").write_text("[supervisord]\n")
    for name, why in (("other.conf", "it has no [program:atlas]"), ("missing.conf", "No such file")):
        done = cdnctl(home / "run", "demo", "-c", name, cwd=home, env={"TMPDIR": str(home / "tmp")})
        assert done.returncode == Exit.FAILED
        assert why in done.stderr
    (home / "other.conf").unlink()
    nothing_is_left(home)


def test_the_project_s_own_configuration_on_a_stage() -> None:
    """All programs and a shop; ATLAS alone is not started again."""
    path = ROOT / "supervisord.conf"
    text = staged(path.read_text(), path, Path("/tmp/x/run"))
    assert conf.read(text, path).socket == "/tmp/x/run/supervisor.sock"
    sections = dict(re.findall(r"(?ms)^\[program:([^\]]+)\]\n(.*?)(?=^\[|\Z)", text))
    assert set(sections) == {*LOOPS, "shop"}
    restarts = {name: re.findall(r"(?m)^autorestart=(.*)$", section) for name, section in sections.items()}
    assert restarts.pop("atlas") == ["false"]
    assert set(map(tuple, restarts.values())) == {("unexpected",)}
    assert "%(here)s" not in text


def test_what_is_made_up_is_nobody_s() -> None:
    """The same from the same seed; addresses of the ranges that are for documentation alone."""
    assert bad_addresses(1) == bad_addresses(1) != bad_addresses(2)
    assert ATTACKER in bad_addresses(1)
    assert len(bad_addresses(1)) == LISTED + 254
    assert bundle(1, 0.0) == bundle(1, 0.0)
    for address in (*bad_addresses(3), *rumours(3)):
        assert address.startswith(("203.0.113.", "2001:db8:", "198.18."))


def loop(**changed: Any) -> dict[str, Any]:
    """An answer to GET /ooda."""
    return {"mode": "on", "kept": 0, "undone": 0, "failed": 0, "cycles": [], "actions": []} | changed


def acted(verdict: str, before: float | None, after: float | None, weight: float = 0.25) -> dict[str, Any]:
    """A cycle of the gateway's loop."""
    seen = {"web-2": {"good": 90, "bad": 10}, "web": {"good": 100, "bad": 0}}
    return {
        "at_s": 1.0,
        "acted": True,
        "observation": {"services": {"web": seen}},
        "picture": {},
        "decision": {"service": "web", "instance": "web-2", "weight": weight},
        "effect": {"before": before, "after": after, "verdict": verdict, "reason": ""},
    }


def test_rows() -> None:
    """Of several changes the first that was kept, also of a process before; nothing is nothing."""
    before = loop(kept=1, undone=1, actions=[acted("undone", 0.01, 0.01, 0.5), acted("kept", 0.01, 0.005)])
    row = changes.row(GATEWAY, [before, loop()])
    assert row[1:5] == ("on", "web-2 failed 10 of 100 times", "web-2 gets 0.25 of its weight", 10.0)
    assert (row.after, row.verdict, row.kept, row.undone) == (5.0, "kept", 1, 1)
    assert changes.effect(row) == "10 → 5 ms, a failure as 20 answers, kept"
    settling = changes.row(GATEWAY, [loop(actions=[acted("settling", 0.01, None)])])
    assert changes.effect(settling).endswith("; not judged yet")
    calm = {**acted("", None, None), "acted": False, "decision": None, "effect": None}
    assert changes.row(GATEWAY, [loop(cycles=[calm])]).changed == "nothing: that was no reason to"
    assert changes.row(GATEWAY, [loop()]).changed == "nothing: nothing happened that concerns it"
    strange = changes.row("somebody-s", [loop(actions=[acted("kept", 2.0, 1.0)])])
    assert "web-2" in strange.changed, "as it is, if nobody knows it"


@pytest.mark.parametrize("width", [None, 200, 80, 40])
def test_the_table_fits(width: int | None) -> None:
    """Four columns where there is room; nothing is cut."""
    rows = [changes.row(GATEWAY, [loop(actions=[acted("kept", 0.01, 0.005)])]), changes.row(FABRIC, [loop()])]
    lines = changes.lines(rows, Screen(width))
    assert all(columns(line) <= (width or 1000) for line in lines)
    text = " ".join(" ".join(lines).split())
    for word in ("web-2 gets 0.25 of its weight", "10 → 5 ms", "nothing: nothing happened"):
        assert word in text or width == 40
