"""What the soak checks: each promise has a history that breaks it, and one like it that does not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak.history import (
    Answered,
    Appeared,
    Asked,
    Bare,
    Began,
    Ceased,
    Died,
    Ending,
    Event,
    Exited,
    Holds,
    Injected,
    Journaled,
    Left,
    Listens,
    Looked,
    Row,
    Silent,
    Told,
    Used,
    Vanished,
    line,
    read,
)
from benchmarks.soak.judge import PROMISES, around, judge
from benchmarks.soak.story import Story
from tests.support import ROOT

SUPERVISORD_PID = 1
HUNG = int(signal.SIGABRT)
EX_TEMPFAIL = 75 << 8
"""As waitpid(2) has it."""

CALM: list[Event] = [
    Began(
        at_s=0.0,
        unix_s=1e9,
        seed=7,
        minutes=3.0,
        services=("atlas", "web", "shop"),
        cores=2,
        budget=5,
        window_s=60.0,
        healthy_s=60.0,
        first_wait_s=0.5,
        longest_wait_s=30.0,
        longest_asked_wait_s=5.0,
        jitter=0.2,
        drain_s=3.0,
        stop_wait_s=6.0,
        request_every_s=0.5,
        request_timeout_s=2.0,
    ),
    Bare(at_s=0.1, took_s=0.2, cpu_s=0.2),
    Appeared(at_s=1.0, name="supervisord", pid=SUPERVISORD_PID, ticks=1),
    Ending(at_s=200.0),
    Left(at_s=210.0, down_exit=0, files=("web.log", "locks/web.lock", "state/atlas/commands.jsonl")),
]


def begins(at_s: float, pid: int, name: str = "web", supervisor: int = SUPERVISORD_PID, start: int = 1) -> list[Event]:
    """A process is started, and serves."""
    return [
        Appeared(at_s=at_s, name=name, pid=pid, ticks=pid, mark=f"{supervisor}/{name}/{start}"),
        Holds(at_s=at_s + 0.1, name=name, pid=pid),
        Listens(at_s=at_s + 0.1, name=name, pid=pid),
        Answered(at_s=at_s + 0.2, name=name, pid=pid),
    ]


def ends(
    at_s: float,
    pid: int,
    wait_status: int = 0,
    *,
    verdict: str = "",
    by: str = "",
    name: str = "web",
    told: bool = True,
) -> list[Event]:
    """A process ends, its requests with it, and the warden writes what it knows of that."""
    report = Died(at_s=at_s, name="web", pid=pid, wait_status=wait_status, verdict=verdict, ordered_by=by)
    gone: list[Event] = [
        Vanished(at_s=at_s, name="web", pid=pid),
        Silent(at_s=at_s + 0.1, name="web", last_s=at_s - 0.1),
    ]
    return [*gone, *([report] if told else [])]


def hurt(at_s: float, fault: str, pid: int, *, deadly: bool = True, kills: bool = False, **more: float) -> Injected:
    """Something is done to web's process."""
    return Injected(
        at_s=at_s, number=int(at_s * 10), fault=fault, name="web", pid=pid, deadly=deadly, kills=kills, **more
    )


def crashed(at_s: float, pid: int, *, back_s: float | None = 0.3, successor: int = 0) -> list[Event]:
    """SIGKILL by the soak, and a successor so much later."""
    back = begins(at_s + back_s, successor or pid + 1, start=pid) if back_s is not None else []
    return [hurt(at_s, "crash", pid, kills=True), *ends(at_s + 0.05, pid, signal.SIGKILL), *back]


def ordered(at_s: float, id_: str, verb: str, *kinds: str, after_s: float = 1.0) -> list[Event]:
    """A command, and what its operator was told."""
    told = [Told(at_s=at_s + after_s, id=id_, kind=kind) for kind in kinds]
    return [Asked(at_s=at_s, id=id_, verb=verb, name="web", timeout_s=20.0), *told]


def broken(*more: Event) -> set[str]:
    """The promises that this, in an otherwise calm run, breaks."""
    kept = [each for each in CALM if type(each) not in {type(other) for other in more if isinstance(other, Left)}]
    events = sorted([*kept, *more], key=lambda event: event.at_s)
    return {violation.promise for violation in judge(events)}


LOOP = hurt(20.0, "crash_loop", 10, kills=True, lasts_s=60.0)


def looping(starts: int, every_s: float, *, last: list[Event]) -> list[Event]:
    """A process that ends with 3 again and again."""
    events: list[Event] = [*begins(2.0, 10), LOOP, *ends(20.0, 10, signal.SIGKILL)]
    for number in range(1, starts):
        at_s = 20.0 + number * every_s
        events += [*begins(at_s, 10 + number), *ends(at_s + 0.3, 10 + number, 3 << 8)]
    return [*events, *last]


def sampled(name: str, pid: int, rss_per_s: float, fds_per_s: float = 0.0, *, from_s: float = 2.0) -> list[Event]:
    """What a process uses, each 5 s until the end."""
    return [
        Used(
            at_s=from_s + 5.0 * number,
            name=name,
            pid=pid,
            rss_bytes=int(4e7 + 5.0 * number * rss_per_s),
            fds=int(20 + 5.0 * number * fds_per_s),
        )
        for number in range(38)
    ]


TWO, NONE, HANGS = (
    "never two copies of one service",
    "never none longer than restart and backoff",
    "what hangs is replaced",
)
OUTCOME = "every command ends in an outcome, with one effect at most"
BUDGET, EVIDENCE, HEALTHY = "starts within the budget", "no kill without recorded evidence", "no healthy process ends"
NOTHING, FLAT = "nothing is left", "memory and descriptors are flat"

BROKEN: dict[str, tuple[str, list[Event]]] = {
    "two listen": (TWO, [*begins(2.0, 10), *begins(5.0, 11), Looked(at_s=6.0)]),
    "one answers without the lock": (
        TWO,
        [
            *begins(2.0, 10),
            *(each for each in begins(5.0, 11) if not isinstance(each, Holds)),
            Listens(at_s=5.05, name="web", pid=10, on=False),
        ],
    ),
    "down for good": (NONE, [*begins(2.0, 10), *crashed(20.0, 10, back_s=None)]),
    "down for too long": (NONE, [*begins(2.0, 10), *crashed(20.0, 10, back_s=25.0)]),
    "back later than its backoff": (
        NONE,
        [*begins(2.0, 10), *crashed(20.0, 10), *crashed(23.0, 11, back_s=15.0)],
    ),
    "frozen and left": (HANGS, [*begins(2.0, 10), hurt(20.0, "frozen", 10, notice_s=0.5)]),
    "frozen and found late": (
        HANGS,
        [
            *begins(2.0, 10),
            hurt(20.0, "frozen", 10, notice_s=0.5),
            *ends(40.0, 10, HUNG, verdict="silent"),
            *begins(40.2, 11),
        ],
    ),
    "no outcome": (OUTCOME, [*begins(2.0, 10), *ordered(20.0, "c1", "health-check")]),
    "two outcomes": (OUTCOME, [*begins(2.0, 10), *ordered(20.0, "c1", "health-check", "done", "failed")]),
    "no known outcome": (OUTCOME, [*begins(2.0, 10), *ordered(20.0, "c1", "health-check", "perhaps")]),
    "two effects": (
        OUTCOME,
        [
            *begins(2.0, 10),
            *ordered(20.0, "c1", "restart", "done", after_s=5.0),
            *ends(20.5, 10, EX_TEMPFAIL, by="c1"),
            *begins(20.7, 11),
            *ends(22.0, 11, EX_TEMPFAIL, by="c1"),
            *begins(22.2, 12),
        ],
    ),
    "an effect of what was rejected": (
        OUTCOME,
        [
            *begins(2.0, 10),
            *ordered(20.0, "c1", "restart", "rejected"),
            *ends(20.5, 10, EX_TEMPFAIL, by="c1"),
            *begins(20.7, 11),
        ],
    ),
    "an effect that was not asked": (
        OUTCOME,
        [
            *begins(2.0, 10),
            *ordered(20.0, "c1", "health-check", "done"),
            hurt(20.1, "crash", 10, kills=True),
            *ends(20.5, 10, signal.SIGKILL, by="c1"),
            *begins(20.7, 11),
        ],
    ),
    "the journal tells another outcome": (
        OUTCOME,
        [
            *begins(2.0, 10),
            *ordered(20.0, "c1", "stop", "done"),
            Journaled(at_s=209.0, id="c1", stage="ended", kind="failed"),
        ],
    ),
    "open in the journal": (
        OUTCOME,
        [
            *begins(2.0, 10),
            *ordered(20.0, "c1", "stop", "done"),
            Journaled(at_s=209.0, id="c1", stage="asked", kind=""),
        ],
    ),
    "too many starts": (BUDGET, looping(7, 5.0, last=[*begins(56.0, 30), Row(at_s=55.0, name="web", state="FATAL")])),
    "never given up": (BUDGET, looping(3, 2.0, last=[*begins(30.0, 30), Ceased(at_s=60.0, number=LOOP.number)])),
    "killed without evidence": (
        EVIDENCE,
        [*begins(2.0, 10), hurt(20.0, "frozen", 10, notice_s=0.5), *ends(20.5, 10, signal.SIGKILL), *begins(20.7, 11)],
    ),
    "no post-mortem": (
        EVIDENCE,
        [*begins(2.0, 10), hurt(20.0, "crash", 10, kills=True), *ends(20.1, 10, told=False), *begins(20.3, 11)],
    ),
    "a healthy one is killed": (
        HEALTHY,
        [*begins(2.0, 10), *ends(20.0, 10, HUNG, verdict="silent for 0.6 s"), *begins(20.2, 11)],
    ),
    "a healthy one asks to be restarted": (
        HEALTHY,
        [*begins(2.0, 10), *ends(20.0, 10, EX_TEMPFAIL), *begins(20.2, 11)],
    ),
    "killed in an overload": (
        HEALTHY,
        [
            *begins(2.0, 10),
            Injected(at_s=15.0, number=1, fault="overload", lasts_s=8.0),
            *ends(20.0, 10, HUNG, verdict="silent for 0.6 s"),
            *begins(20.2, 11),
        ],
    ),
    "killed under a debugger": (
        HEALTHY,
        [
            *begins(2.0, 10),
            hurt(19.0, "debugged", 10, deadly=False, lasts_s=2.0),
            *ends(20.0, 10, HUNG, verdict="silent"),
            *begins(20.2, 11),
        ],
    ),
    "ended by an order of another's": (
        HEALTHY,
        [*begins(2.0, 10), *ordered(20.0, "c1", "stop", "done"), *ends(20.5, 10, by="c9"), *begins(21.0, 11)],
    ),
    "a second ATLAS runs": ("one ATLAS", [*begins(2.0, 10), Exited(at_s=20.0, what="second_atlas", code=0)]),
    "a child outlives its process": (
        NOTHING,
        [
            *begins(2.0, 10),
            Appeared(at_s=10.0, name="web", pid=50, ticks=50, mark="1/web/1", child=True),
            *crashed(20.0, 10),
        ],
    ),
    "a process is left": (NOTHING, [Left(at_s=210.0, down_exit=0, processes=("50 sleep 3600",))]),
    "a socket is left": (NOTHING, [Left(at_s=210.0, down_exit=0, sockets=("/run/cdn/feed.sock",))]),
    "a lock is left": (NOTHING, [Left(at_s=210.0, down_exit=0, locks=("web.lock",))]),
    "a file is left": (NOTHING, [Left(at_s=210.0, down_exit=0, files=("stacks/web.10.txt",))]),
    "a descriptor is left": (NOTHING, [Left(at_s=210.0, down_exit=0, recorder_fds=1)]),
    "down failed": (NOTHING, [Left(at_s=210.0, down_exit=124)]),
    "a daemon's memory grows": (FLAT, [*begins(2.0, 10), *sampled("web", 10, 100_000)]),
    "a daemon's descriptors grow": (FLAT, [*begins(2.0, 10), *sampled("web", 10, 0, 0.1)]),
    "ATLAS's memory grows": (FLAT, [*begins(2.0, 10, "atlas"), *sampled("atlas", 10, 400_000)]),
    "ATLAS's descriptors grow": (FLAT, [*begins(2.0, 10, "atlas"), *sampled("atlas", 10, 0, 0.4)]),
    "supervisord's descriptors grow": (FLAT, sampled("supervisord", SUPERVISORD_PID, 0, 0.2)),
    "supervisord's memory grows": (FLAT, sampled("supervisord", SUPERVISORD_PID, 150_000)),
}
"""Which promise it breaks, and no other."""

KEPT: dict[str, list[Event]] = {
    "ATLAS's members come back one after the other": [
        *begins(2.0, 10, "atlas"),
        *(
            Used(at_s=30.0 + 5.0 * number, name="atlas", pid=10, rss_bytes=1 << 25, fds=3 * min(number, 3) + 1)
            for number in range(20)
        ),
    ],
    "nothing happens": [*begins(2.0, 10), *begins(2.0, 20, "shop")],
    "a crash": [*begins(2.0, 10), *crashed(20.0, 10)],
    "three crashes, with backoff": [
        *begins(2.0, 10),
        *crashed(20.0, 10),
        *crashed(23.0, 11, back_s=0.8),
        *crashed(26.0, 12, back_s=1.4),
    ],
    "one copy drains while the next one waits for the lock": [
        *begins(2.0, 10),
        Vanished(at_s=20.0, name="supervisord", pid=SUPERVISORD_PID),
        Appeared(at_s=21.0, name="supervisord", pid=2, ticks=2),
        Listens(at_s=24.0, name="web", pid=10, on=False),
        *ends(25.0, 10, told=False),
        Appeared(at_s=21.5, name="web", pid=11, ticks=11, mark="2/web/1"),
        *begins(25.2, 11)[1:],
        Looked(at_s=26.0),
    ],
    "hung, with a verdict": [
        *begins(2.0, 10),
        hurt(20.0, "frozen", 10, notice_s=0.5),
        *ends(20.4, 10, HUNG, verdict="stopped by a signal"),
        *begins(20.6, 11),
    ],
    "quarantined, and started again": looping(
        5,
        2.0,
        last=[Row(at_s=28.4, name="web", state="FATAL"), *ordered(60.0, "c1", "start", "done"), *begins(60.3, 30)],
    ),
    "restarted by an order that came twice": [
        *begins(2.0, 10),
        *ordered(20.0, "c1", "restart", "done", "done"),
        *ends(20.3, 10, EX_TEMPFAIL, by="c1"),
        *begins(20.6, 11),
        Journaled(at_s=209.0, id="c1", stage="ended", kind="done"),
    ],
    "stopped for a minute": [
        *begins(2.0, 10),
        *ordered(20.0, "c1", "stop", "done"),
        *ends(20.3, 10, by="c1"),
        *ordered(80.0, "c2", "start", "done"),
        *begins(80.6, 11),
    ],
    "memory fills once": [
        *begins(2.0, 10),
        *sampled("web", 10, 8_000),
        *begins(2.0, 20, "atlas"),
        *sampled("atlas", 20, 60_000),
    ],
    "six starts that it asked for itself": [
        *begins(2.0, 10),
        *(
            event
            for number in range(6)
            for event in (
                hurt(20.0 + 3 * number, "leak", 10 + number, notice_s=5.0),
                *ends(20.3 + 3 * number, 10 + number, EX_TEMPFAIL),
                *begins(20.9 + 3 * number, 11 + number),
            )
        ),
    ],
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_breaks_a_promise_is_found(case: str) -> None:
    promise, events = BROKEN[case]
    assert broken(*events) == {promise}


@pytest.mark.parametrize("case", KEPT)
def test_what_breaks_none_is_passed(case: str) -> None:
    assert broken(*KEPT[case]) == set()


def test_an_end_that_was_not_recorded_is_no_good_end() -> None:
    assert {each.promise for each in judge([each for each in CALM if not isinstance(each, Left)])} == {NOTHING}


def test_every_promise_has_a_history_that_breaks_it() -> None:
    """A check that cannot fail is worth nothing."""
    found = set()
    for _, events in BROKEN.values():
        history = sorted(
            [*(each for each in CALM if not isinstance(each, Left)), *events], key=lambda event: event.at_s
        )
        story = Story(history)
        found |= {check.__name__ for check in PROMISES if any(check(history, story))}
    assert found == {check.__name__ for check in PROMISES}


def test_a_loaded_machine_has_more_time() -> None:
    """Down for three seconds: too long beside bare starts of 0.1 s, not beside ones of 2 s."""
    events = [*begins(2.0, 10), *crashed(20.0, 10, back_s=9.0)]
    assert broken(*events) == {NONE}
    assert broken(*events, Bare(at_s=22.0, took_s=2.0, cpu_s=0.2)) == set()


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And a last line that was cut short is left out."""
    path = tmp_path / "history"
    path.write_bytes(b"".join(map(line, CALM)) + line(CALM[1])[:-5])
    assert read(path) == CALM


def test_what_is_told_of_a_violation_is_of_its_service_and_time() -> None:
    events = sorted([*CALM, *begins(2.0, 10), *begins(2.0, 20, "shop"), *ends(20.0, 10)], key=lambda event: event.at_s)
    (violation,) = [each for each in judge(events) if each.promise == HEALTHY]
    assert {type(each) for each in around(events, violation)} == {Vanished, Silent, Died}


@pytest.mark.parametrize(("case", "code"), [("nothing happens", 0), ("a healthy one is killed", 1)])
def test_replay(case: str, code: int, tmp_path: Path) -> None:
    """A recorded history is judged again; what was not kept is told with the seed and the file."""
    path = tmp_path / "history.jsonl"
    events = KEPT.get(case) or BROKEN[case][1]
    path.write_bytes(b"".join(map(line, sorted([*CALM, *events], key=lambda event: event.at_s))))
    done = replay(path)
    assert done.returncode == code, done.stderr
    told = ("with seed 7: no healthy process ends", "silent for 0.6 s", f"--replay {path}")
    assert [text in done.stdout for text in told] == [code == 1] * 3


def test_replay_of_what_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("{}\n")
    done = replay(path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot judge {path}" in done.stderr


def replay(path: Path) -> subprocess.CompletedProcess[str]:
    """Run it."""
    command = [sys.executable, "-m", "benchmarks.soak", "--replay", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("fault", "promise"), [("frozen", "what hangs is replaced"), ("storm", "nothing is left")])
def test_what_was_slow_long_after_excuses_nothing(fault: str, promise: str) -> None:
    """A hang that nobody sees, and a child that stays, are found though starts took long in an overload later on."""
    hang = [hurt(20.0, "frozen", 10, notice_s=0.5)]
    child = Appeared(at_s=12.0, name="web", pid=99, ticks=99, mark="1/web/1", child=True)
    left = [child, *crashed(20.0, 10)]
    slow = [Bare(at_s=at_s, took_s=12.0, cpu_s=0.2) for at_s in (100.0, 120.0)]
    quick = [Bare(at_s=float(at_s), took_s=0.2, cpu_s=0.2) for at_s in range(10, 100, 4)]
    history = [*begins(10.0, 10), *quick, *(hang if fault == "frozen" else left)]
    assert promise in broken(*history)
    assert promise in broken(*history, *slow)
    always = [Bare(at_s=float(at_s), took_s=8.0, cpu_s=0.2) for at_s in range(10, 200, 8)]
    early = [Vanished(at_s=80.0, name="web", pid=10 if fault == "frozen" else 99)]
    assert promise in broken(*history, *early)
    assert promise not in broken(*(each for each in history if each not in quick), *always, *early)
