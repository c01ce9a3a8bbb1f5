"""The rules by which cdnctl selects, judges and follows: tables over pure functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.messages import (
    DaemonStatus,
    HealthStatus,
    LifecyclePhase,
    NodeStatus,
    OrderOutcome,
    OutcomeKind,
    ProcessRow,
    ProcessState,
    ServiceView,
    Verb,
)
from cli.belonging import Belonging, is_supervisord, name_of, topmost
from cli.durations import Duration
from cli.exits import Exit
from cli.fallback import Process, merged
from cli.orders import fulfilled
from cli.progress import waited_for
from cli.readiness import HEARD_S, SETTLE_S, Standing, Verdict, judge, stuck
from cli.second_look import revised
from cli.selection import exit_of, exit_of_outcomes, is_unsupervised, is_well, select
from cli.supervised import SETTLE_S as ENDED_FOR_S
from cli.supervised import Pursuit, Stage, advance
from services.atlas.fleet import Fleet as AtlasFleet
from tests.cli.support import plain, view

FLEET = [view("atlas"), view("cdn-data-fabric"), view("web-1", service="web"), view("web-2", service="web")]


@pytest.mark.parametrize(
    ("patterns", "found", "unknown"),
    [
        ([], ["atlas", "cdn-data-fabric", "web-1", "web-2"], ()),
        (["atlas"], ["atlas"], ()),
        (["*fabric"], ["cdn-data-fabric"], ()),
        (["web"], ["web-1", "web-2"], ()),
        (["web-2", "web", "web-2"], ["web-1", "web-2"], ()),
        (["*"], ["atlas", "cdn-data-fabric", "web-1", "web-2"], ()),
        (["atlas", "nope", "no*"], ["atlas"], ("nope", "no*")),
    ],
)
def test_names_select(patterns: list[str], found: list[str], unknown: tuple[str, ...]) -> None:
    """Instances, services and globs, each service once; what matches nothing is told."""
    selection = select(FLEET, patterns)
    assert [service.instance for service in selection.services] == found
    assert selection.unknown == unknown


@pytest.mark.parametrize(
    ("service", "well"),
    [
        (view("a"), True),
        (view("a", health=HealthStatus.DEGRADED), False),
        (view("a", health=HealthStatus.UNHEALTHY), False),
        (view("a", health=HealthStatus.UNKNOWN), False),
        (view("a", phase=LifecyclePhase.STARTING), False),
        (view("a", phase=LifecyclePhase.DRAINING), False),
        (view("a", health=HealthStatus.UNKNOWN, phase=None, seen_s=9.0), False),
        (plain("a"), True),
        (plain("a", health=HealthStatus.UNHEALTHY), False),
        *((view("a", state=state), False) for state in ProcessState if state is not ProcessState.RUNNING),
        *((plain("a", state=state), False) for state in ProcessState if state is not ProcessState.RUNNING),
    ],
)
def test_who_is_well(service: ServiceView, well: bool) -> None:
    """It runs and is healthy; of a plain program, that it runs is enough; a daemon gone silent is not well."""
    assert is_well(service) is well
    assert exit_of([view("b"), service]) is (Exit.OK if well else Exit.NOT_WELL)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ([OutcomeKind.DONE, OutcomeKind.DONE], Exit.OK),
        ([OutcomeKind.DONE, OutcomeKind.FAILED, OutcomeKind.UNKNOWN], Exit.FAILED),
        ([OutcomeKind.REJECTED], Exit.FAILED),
        ([OutcomeKind.DONE, OutcomeKind.UNKNOWN], Exit.TIMED_OUT),
    ],
)
def test_outcomes_make_the_exit_code(kinds: list[OutcomeKind], code: Exit) -> None:
    """A failure, even of one, outweighs a time-out, which outweighs success."""
    assert exit_of_outcomes(kinds) is code


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("2m", 120), ("1h", 3600), ("7", 7), ("1.5s", 1.5), (" 2 s ", 2)]
)
def test_durations(text: str, seconds: float) -> None:
    """A number and its unit."""
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "0", "0ms", "2h", "1 2s", "nan", "1e3s", "٣s", "30 seconds"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """As a usage error, which is exit code 2."""
    with pytest.raises(click.BadParameter) as error:
        Duration().convert(text, None, None)
    assert error.value.exit_code == Exit.USAGE


LONG = SETTLE_S + 0.1


@pytest.mark.parametrize(
    ("service", "for_s", "standing"),
    [
        (view("a"), 0.0, Standing.READY),
        (view("a", phase=LifecyclePhase.STARTING, health=HealthStatus.UNKNOWN), LONG, Standing.WAITING),
        (view("a", health=HealthStatus.UNHEALTHY), LONG, Standing.WAITING),
        (plain("a"), 0.0, Standing.WAITING),
        (plain("a"), LONG, Standing.READY),
        (plain("a", state=ProcessState.STARTING), LONG, Standing.WAITING),
        (plain("a", state=ProcessState.BACKOFF), LONG, Standing.WAITING),
        (plain("a", state=ProcessState.STOPPED), LONG, Standing.WAITING),
        (plain("a", state=ProcessState.EXITED), 0.0, Standing.WAITING),
        (plain("a", state=ProcessState.EXITED), LONG, Standing.FAILED),
        (plain("a", state=ProcessState.FATAL), 0.0, Standing.FAILED),
    ],
)
def test_who_is_ready(service: ServiceView, for_s: float, standing: Standing) -> None:
    """Ready when it says so; an end is final only if nobody starts it again; FATAL is final at once."""
    assert judge(service, for_s=for_s).standing is standing


def test_what_said_that_it_is_ready_is_not_waited_for_so_long() -> None:
    """Its daemon would have been heard by then."""
    assert judge(plain("a"), for_s=0.0, says_ready=True).standing is Standing.WAITING
    assert judge(plain("a"), for_s=HEARD_S, says_ready=True).standing is Standing.READY
    assert judge(plain("a"), for_s=HEARD_S).standing is Standing.WAITING


BAD, SLOW, FINE = (
    Verdict(Standing.FAILED, "FATAL: no"),
    Verdict(Standing.WAITING, "starting"),
    Verdict(Standing.READY, "ready"),
)


@pytest.mark.parametrize(
    ("verdicts", "needs", "told"),
    [
        ({"db": FINE, "web": SLOW}, {"web": ["db"]}, {}),
        ({"db": SLOW, "web": SLOW}, {"web": ["db"]}, {}),
        ({"db": BAD, "web": SLOW}, {}, {}),
        ({"db": BAD, "web": SLOW}, {"web": ["db"]}, {"web": "not started: it needs db: FATAL: no"}),
        ({"a": FINE, "db": BAD, "web": SLOW}, {"web": ["a", "db"]}, {"web": "not started: it needs db: FATAL: no"}),
        ({"db": BAD, "web": BAD}, {"web": ["db"]}, {}),
        (
            {"db": BAD, "web": SLOW, "front": SLOW},
            {"front": ["web"], "web": ["db"]},
            {
                "web": "not started: it needs db: FATAL: no",
                "front": "not started: it needs web, which needs db: FATAL: no",
            },
        ),
        ({"a": SLOW, "b": SLOW}, {"a": ["b"], "b": ["a"]}, {}),
    ],
)
def test_what_waits_for_what_has_failed(
    verdicts: dict[str, Verdict], needs: dict[str, list[str]], told: dict[str, str]
) -> None:
    """Has failed, too, and names the root; what waits for what is only slow goes on waiting."""
    assert stuck(verdicts, needs) == {name: Verdict(Standing.FAILED, text) for name, text in told.items()}


@pytest.mark.parametrize(
    ("first", "later", "kind", "reason"),
    [
        (("RUNNING", 7), ("RUNNING", 7), OutcomeKind.DONE, ""),
        (("RUNNING", 7), ("RUNNING", 8), OutcomeKind.FAILED, "it started, and ended again: it is RUNNING, and has"),
        (("BACKOFF", None), ("RUNNING", 8), OutcomeKind.FAILED, "it started, and ended again"),
        (("RUNNING", 7), ("BACKOFF", None), OutcomeKind.FAILED, "it started, and ended again: exit code 1"),
        (("RUNNING", 7), ("FATAL", None), OutcomeKind.FAILED, "it started, and ended again: exit code 1"),
        (("RUNNING", 7), ("EXITED", None, 1), OutcomeKind.FAILED, "it started, and ended again: exit code 1"),
        (("RUNNING", 7), ("EXITED", None, 0), OutcomeKind.DONE, "it has ended since, with exit code 0"),
        (("RUNNING", 7), ("STOPPED", None), OutcomeKind.DONE, "exit code 1"),
    ],
)
def test_a_second_look(first: tuple[Any, ...], later: tuple[Any, ...], kind: OutcomeKind, reason: str) -> None:
    """What ended again was not started; what did its work, or was stopped, is told as such."""

    def row(state: str, pid: int | None, exit_code: int | None = None) -> Process:
        why = "" if state == "RUNNING" else "exit code 1"
        return Process("web", ProcessState(state), pid, 0, None, why, None, exit_code=exit_code)

    done = OrderOutcome(id="", name="web", kind=OutcomeKind.DONE)
    seen = revised(done, row(*first), row(*later))
    assert (seen.kind, seen.reason[: len(reason)]) == (kind, reason)
    assert seen.reason != "" or kind is OutcomeKind.DONE


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ({}, ""),
        ({"a": ""}, "still waiting for a"),
        ({"a": "starting", "b": "x\x1b"}, "still waiting for a (starting), b (x\\x1b)"),
        (dict.fromkeys("abcde", ""), "still waiting for a, b, c, 2 more"),
    ],
)
def test_what_a_log_is_told_of_the_wait(texts: dict[str, str], line: str) -> None:
    """A line, however many there are."""
    assert waited_for(texts) == line


S = ProcessState


def process(state: ProcessState, pid: int | None = 7, reason: str = "") -> Process:
    """A row of supervisord's table."""
    return Process("web", state, pid, 0, None, reason, None)


def test_a_silent_supervisord_is_known_by_what_atlas_says() -> None:
    """ATLAS has only words for it: these are the words."""
    status = DaemonStatus(
        service="web",
        instance="web",
        host="far",
        incarnation=1,
        seq=1,
        pid=7,
        time_s=0.0,
        monotonic_s=0.0,
        uptime_s=1.0,
        phase=LifecyclePhase.SERVING,
        health=HealthStatus.HEALTHY,
    )
    row = ProcessRow(name="web", state=ProcessState.RUNNING, pid=7, uptime_s=1.0)
    fleet = AtlasFleet()
    fleet.hear_node(
        NodeStatus(host="far", incarnation=1, seq=1, pid=1, time_s=0.0, monotonic_s=0.0, processes=(row,)), 0.0
    )
    fleet.hear(status, 0.0)
    assert exit_of(fleet.views(1.0)) is Exit.OK
    fleet.hear(replace(status, seq=2), 4.0)
    fleet.tick(4.0)
    (found,) = fleet.views(4.0)
    assert found.state is ProcessState.RUNNING
    assert is_unsupervised(found)
    assert exit_of([found]) is Exit.NOT_WELL


SILENT = "supervisord on node-1 is silent for 3.9 s"


@pytest.mark.parametrize(
    ("by_atlas", "rows", "state", "reason"),
    [
        (view("web", pid=7), [process(ProcessState.RUNNING)], S.RUNNING, ""),
        (view("web", pid=7, reason="slow"), [process(ProcessState.RUNNING)], S.RUNNING, "slow"),
        (view("web", pid=7, reason=SILENT), [process(ProcessState.RUNNING)], S.RUNNING, ""),
        (view("web", pid=7, reason=f"{SILENT}; slow"), [process(ProcessState.RUNNING)], S.RUNNING, "slow"),
        (view("web", pid=None, state=S.UNKNOWN, reason=SILENT), [process(S.FATAL, None, "gone")], S.FATAL, "gone"),
        (view("web", pid=7), [], S.RUNNING, ""),
        (view("web", pid=1, host="node-2"), [process(S.FATAL, None)], S.RUNNING, ""),
        (None, [process(ProcessState.BACKOFF, None, "why")], S.BACKOFF, "why"),
    ],
)
def test_supervisord_completes_what_atlas_sees(
    by_atlas: ServiceView | None, rows: list[Process], state: ProcessState, reason: str
) -> None:
    """It knows what processes its host has; of other hosts, and of what it does not have, ATLAS's word stands."""
    (found,) = merged([by_atlas] if by_atlas else [], rows, "node-1")
    assert (found.instance, found.state, found.reason) == ("web", state, reason)


UP = (S.RUNNING, S.STARTING, S.BACKOFF)
DOWN = (S.STOPPED, S.EXITED, S.FATAL, S.UNKNOWN)


@pytest.mark.parametrize(
    ("verb", "stage", "states", "tell", "ended"),
    [
        (Verb.STOP, Stage.BEGIN, UP, Verb.STOP, None),
        (Verb.STOP, Stage.BEGIN, (S.STOPPING,), None, None),
        (Verb.STOP, Stage.BEGIN, DOWN, None, OutcomeKind.DONE),
        (Verb.STOP, Stage.STOPPING, (*UP, S.STOPPING), None, None),
        (Verb.STOP, Stage.STOPPING, DOWN, None, OutcomeKind.DONE),
        (Verb.START, Stage.BEGIN, (S.RUNNING,), None, OutcomeKind.DONE),
        (Verb.START, Stage.BEGIN, (S.STARTING, S.BACKOFF, S.STOPPING), None, None),
        (Verb.START, Stage.BEGIN, DOWN, Verb.START, None),
        (Verb.RESTART, Stage.BEGIN, UP, Verb.STOP, None),
        (Verb.RESTART, Stage.BEGIN, (S.STOPPING,), None, None),
        (Verb.RESTART, Stage.BEGIN, DOWN, Verb.START, None),
        (Verb.RESTART, Stage.STOPPING, (*UP, S.STOPPING), None, None),
        (Verb.RESTART, Stage.STOPPING, DOWN, Verb.START, None),
        (Verb.RESTART, Stage.STARTING, (S.RUNNING,), None, OutcomeKind.DONE),
        (Verb.START, Stage.STARTING, (S.STARTING, S.BACKOFF, S.STOPPING, S.EXITED, S.STOPPED), None, None),
        (Verb.START, Stage.STARTING, (S.FATAL, S.UNKNOWN), None, OutcomeKind.FAILED),
    ],
)
def test_an_order_through_supervisord(
    verb: Verb, stage: Stage, states: tuple[ProcessState, ...], tell: Verb | None, ended: OutcomeKind | None
) -> None:
    """What is told and what is concluded, for every state that supervisord can show."""
    for state in states:
        _, told, kind, _ = advance(Pursuit(verb, "web", stage), process(state), 0.0)
        assert (told, kind) == (tell, ended), state


def test_a_start_that_ends_again_fails_once_nobody_starts_it_anew() -> None:
    """EXITED lasts for a lap of supervisord even if the next start is due."""
    pursuit = Pursuit(Verb.START, "web", Stage.STARTING)
    pursuit, _, kind, _ = advance(pursuit, process(S.EXITED), 10.0)
    assert kind is None
    pursuit, _, kind, _ = advance(pursuit, process(S.STARTING), 10.5)
    assert kind is None
    pursuit, _, kind, _ = advance(pursuit, process(S.EXITED), 11.0)
    _, _, kind, why = advance(pursuit, process(S.EXITED, reason="exit 1"), 11.0 + ENDED_FOR_S)
    assert (kind, why) == (OutcomeKind.FAILED, "exit 1")


@given(st.sampled_from([Verb.START, Verb.STOP, Verb.RESTART]), st.lists(st.sampled_from(ProcessState), max_size=30))
def test_an_order_is_told_once(verb: Verb, states: list[ProcessState]) -> None:
    """Whatever supervisord shows, each of stop and start is told at most once, and stop before start."""
    pursuit, told = Pursuit(verb, "web"), []
    for at, state in enumerate(states):
        pursuit, act, ended, _ = advance(pursuit, process(state), float(at))
        if act is not None:
            told.append(act)
        if ended is not None:
            break
    assert told in ([], [Verb.STOP], [Verb.START], [Verb.STOP, Verb.START])
    assert verb is Verb.RESTART or told in ([], [verb])


@pytest.mark.parametrize(
    ("verb", "now", "kind"),
    [
        (Verb.RESTART, process(S.RUNNING, pid=4711), None),
        (Verb.RESTART, process(S.RUNNING, pid=5), OutcomeKind.DONE),
        (Verb.RESTART, process(S.FATAL, pid=None), OutcomeKind.FAILED),
        (Verb.RESTART, None, None),
        (Verb.START, process(S.RUNNING), OutcomeKind.DONE),
        (Verb.START, process(S.STARTING), None),
        (Verb.STOP, process(S.STOPPED, pid=None), OutcomeKind.DONE),
        (Verb.STOP, process(S.BACKOFF, pid=None), None),
        (Verb.STOP, process(S.STOPPING), None),
    ],
)
def test_an_order_that_atlas_left_behind(verb: Verb, now: Process | None, kind: OutcomeKind | None) -> None:
    """Only another process than before is a restart."""
    assert fulfilled(verb, view("web", pid=4711), now) is kind


RUN = Path("/srv/run")
STARTED = {"SUPERVISOR_ENABLED": "1", "SUPERVISOR_PROCESS_NAME": "web", "CDN_RUN_DIR": "/srv/run"}


@pytest.mark.parametrize(
    ("environ", "opened", "name"),
    [
        ({}, [], None),
        ({"CDN_RUN_DIR": "/srv/run"}, ["/srv/run/web.log"], None),  # an operator's editor
        (STARTED, [], "web"),
        ({**STARTED, "CDN_RUN_DIR": "/srv/run/"}, [], "web"),
        ({**STARTED, "CDN_RUN_DIR": "/srv/run2"}, [], None),
        ({"SUPERVISOR_ENABLED": "1", "CDN_RUN_DIR": "/srv/run"}, [], ""),
        ({}, ["/srv/run/locks/web.lock"], "web"),
        ({}, ["/srv/run/locks/bus.lock", "/srv/run/locks/atlas.lock"], "atlas"),
        ({}, ["/srv/run/locks/cdnctl-up.lock", "/srv/run/locks/bus.lock"], None),
        ({}, ["/srv/run2/locks/web.lock", "/srv/run/locks/web.txt"], None),
    ],
)
def test_who_belongs_to_a_run_directory(environ: dict[str, str], opened: list[str], name: str | None) -> None:
    """Only who has a lock of it, or was started for it by a supervisord."""
    assert name_of(environ, [Path(path) for path in opened], RUN) == name


def test_a_run_directory_may_be_named_by_a_link(tmp_path: Path) -> None:
    """What was started by way of the link belongs to the directory."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    environ = {**STARTED, "CDN_RUN_DIR": str(tmp_path / "link")}
    assert name_of(environ, [], (tmp_path / "run").resolve()) == "web"


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        (b"/v/bin/python /v/bin/supervisord -c x", True),
        (b"supervisord", True),
        (b"python -m supervisor.supervisord -n", True),
        (b"vim supervisord.conf", False),
        (b"supervisorctl -c supervisord.conf", False),
        (b"", False),
    ],
)
def test_who_is_a_supervisord(line: bytes, is_one: bool) -> None:
    """By its command line."""
    assert is_supervisord(line.split(b" ")) is is_one


def test_only_the_topmost_are_told_to_end() -> None:
    """A service ends its own children; each is named once."""
    found = [
        Belonging(2, 1, "web", False),
        Belonging(3, 2, "web", False),
        Belonging(4, 3, "web", False),
        Belonging(5, 1, "web", False),
        Belonging(6, 1, "job", False),
    ]
    assert topmost(found) == {"web": 2, "web (pid 5)": 5, "job": 6}
