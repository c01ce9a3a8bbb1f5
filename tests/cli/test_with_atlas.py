"""cdnctl, the real command, before an ATLAS that answers as the test has it."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from bus.endpoints import RunDir
from bus.messages import (
    Event,
    HealthStatus,
    OrderAccepted,
    OrderOutcome,
    OrderRequest,
    OutcomeKind,
    ProcessState,
    Refusal,
    Verb,
)
from cli.exits import Exit
from tests.cli.fake_atlas import FakeAtlas, Replies
from tests.cli.support import CDNCTL, cdnctl, outcomes_of, plain, services_of, view
from tests.support import environment, until

ATLAS = view("atlas", uptime_s=100.0)
FLEET = [ATLAS, view("cdn-data-fabric"), view("gateway-primary")]


def happened(number: int, instance: str = "gateway-primary") -> Event:
    """The nth event."""
    return Event(
        id=f"e{number}",
        source="atlas",
        incarnation=1,
        seq=number,
        time_s=1_700_000_000.0 + number,
        host="h",
        instance=instance,
        kind="state",
        text=f"event {number}",
    )


@pytest.mark.parametrize(
    ("services", "names", "code", "shown"),
    [
        (FLEET, [], Exit.OK, "3 running"),
        (FLEET, ["*fabric", "gateway-primary"], Exit.OK, "2 running"),
        ([ATLAS, plain("job")], [], Exit.OK, "2 running"),
        ([ATLAS, view("web", health=HealthStatus.DEGRADED)], [], Exit.NOT_WELL, "2 running; 1 degraded"),
        ([ATLAS, view("web", health=HealthStatus.DEGRADED)], ["atlas"], Exit.OK, "1 running"),
        ([ATLAS, plain("web", state=ProcessState.BACKOFF)], [], Exit.NOT_WELL, "1 running, 1 backing off"),
        (FLEET, ["nope"], Exit.UNKNOWN, ""),
        (FLEET, ["atlas", "nope"], Exit.UNKNOWN, "1 running"),
    ],
)
def test_status(run_dir: RunDir, services: list[object], names: list[str], code: Exit, shown: str) -> None:
    """The table, its closing line and the exit code; the same code for JSON."""
    with FakeAtlas(run_dir, services):  # type: ignore[arg-type]
        table = cdnctl(run_dir.path, "status", *names)
        document = cdnctl(run_dir.path, "status", "--json", *names)
    assert table.returncode == code, table.stderr
    assert document.returncode == code
    assert (table.stdout.splitlines() or [""])[-1] == shown
    assert len(services_of(document)) == max(len(table.stdout.splitlines()) - 2, 0)


def test_status_goes_to_stdout_and_messages_to_stderr(run_dir: RunDir) -> None:
    """An unknown name is told on stderr, with the nearest that is known."""
    with FakeAtlas(run_dir, FLEET):
        done = cdnctl(run_dir.path, "status", "gateway-primry")
    assert done.stdout == ""
    assert done.stderr == "cdnctl: cannot find gateway-primry: did you mean gateway-primary?\n"


def test_what_is_wrong_with_a_host_is_told(run_dir: RunDir) -> None:
    """A warden's errors are on stderr, beside whatever is asked for."""
    with FakeAtlas(run_dir, FLEET) as atlas:
        atlas.notes = ("the warden on h1 has survived 1 error",)
        done = cdnctl(run_dir.path, "status", "--json")
    assert "cdnctl: the warden on h1 has survived 1 error\n" in done.stderr
    assert services_of(done)


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_an_order_is_followed_to_its_outcomes(run_dir: RunDir, verb: str) -> None:
    """Globs are resolved here; ATLAS gets names, a time and who asks, and each name's outcome is shown."""
    with FakeAtlas(run_dir, FLEET) as atlas:
        done = cdnctl(run_dir.path, verb, "*-*", "--json", "--timeout", "7s")
    assert done.returncode == Exit.OK, done.stderr
    assert {name: outcome["outcome"] for name, outcome in outcomes_of(done).items()} == {
        "cdn-data-fabric": "done",
        "gateway-primary": "done",
    }
    order = atlas.requests[-1]
    assert isinstance(order, OrderRequest)
    assert (order.verb, order.names, order.timeout_s) == (Verb(verb), ("cdn-data-fabric", "gateway-primary"), 7.0)
    assert "@" in order.asked_by


def test_no_name_of_an_order_may_be_unknown(run_dir: RunDir) -> None:
    """Nothing is done then, and nothing is ordered."""
    with FakeAtlas(run_dir, FLEET) as atlas:
        done = cdnctl(run_dir.path, "stop", "gateway-primary", "nope")
    assert done.returncode == Exit.UNKNOWN
    assert not any(isinstance(request, OrderRequest) for request in atlas.requests)


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        ((OutcomeKind.DONE, OutcomeKind.FAILED), Exit.FAILED),
        ((OutcomeKind.REJECTED, OutcomeKind.UNKNOWN), Exit.FAILED),
        ((OutcomeKind.DONE, OutcomeKind.UNKNOWN), Exit.TIMED_OUT),
    ],
)
def test_outcomes_decide_the_exit_code(run_dir: RunDir, kinds: tuple[OutcomeKind, ...], code: Exit) -> None:
    """The same for lines and for JSON."""

    def order(request: OrderRequest) -> Replies:
        outcomes = [
            OrderOutcome(id=request.id, name=name, kind=kind, reason="because", took_s=1.0)
            for name, kind in zip(request.names, kinds, strict=True)
        ]
        return [OrderAccepted(id=request.id, commands={}), *outcomes]

    with FakeAtlas(run_dir, FLEET, order=order):
        lines = cdnctl(run_dir.path, "restart", "cdn-data-fabric", "gateway-primary")
        document = cdnctl(run_dir.path, "restart", "cdn-data-fabric", "gateway-primary", "--json")
    assert (lines.returncode, document.returncode) == (code, code)
    assert len(lines.stdout.splitlines()) == 2
    assert [outcome["outcome"] for outcome in outcomes_of(document).values()] == list(kinds)


def accepts(request: OrderRequest) -> Replies:
    """ATLAS takes the order, and is never heard of it again."""
    return [OrderAccepted(id=request.id, commands=dict.fromkeys(request.names, "c1"))]


def test_no_wait_returns_when_atlas_has_accepted(run_dir: RunDir) -> None:
    """No outcome ever comes here, and none is waited for."""
    with FakeAtlas(run_dir, FLEET, order=accepts):
        done = cdnctl(run_dir.path, "stop", "gateway-primary", "--no-wait", "--json")
    assert done.returncode == Exit.OK
    assert json.loads(done.stdout)["accepted"] == [{"name": "gateway-primary", "verb": "stop", "command": "c1"}]


def test_an_order_without_an_outcome_times_out(run_dir: RunDir) -> None:
    """ATLAS is there and never says how it ended: 124 after the time that was given."""
    with FakeAtlas(run_dir, FLEET, order=accepts):
        done = cdnctl(run_dir.path, "restart", "gateway-primary", "--timeout", "300ms")
    assert done.returncode == Exit.TIMED_OUT
    assert "gateway-primary not known to be restarted" in done.stdout


def test_an_atlas_that_began_anew_has_forgotten_the_order(run_dir: RunDir) -> None:
    """What the fleet shows as done is done, although nobody says so any more."""

    def order(request: OrderRequest) -> Replies:
        atlas.forgets = True
        atlas.services = (ATLAS, view("gateway-primary", pid=5, incarnation=4), plain("x", state=ProcessState.FATAL))
        return accepts(request)

    with FakeAtlas(run_dir, [ATLAS, view("gateway-primary"), plain("x")], order=order) as atlas:
        done = cdnctl(run_dir.path, "restart", "gateway-primary", "x", "--json")
    assert done.returncode == Exit.FAILED
    assert {name: outcome["outcome"] for name, outcome in outcomes_of(done).items()} == {
        "gateway-primary": "done",
        "x": "failed",
    }


@pytest.mark.parametrize(
    ("reply", "said"),
    [(lambda r: Refusal(id=r.id, reason="not today"), "not today"), (lambda r: FleetReplyTo(r), "was not asked for")],
)
def test_a_refusal_is_told(run_dir: RunDir, reply: object, said: str) -> None:
    """Its reason, and exit code 1."""
    with FakeAtlas(run_dir, FLEET, order=lambda request: [reply(request)]):  # type: ignore[operator]
        done = cdnctl(run_dir.path, "stop", "gateway-primary")
    assert done.returncode == Exit.FAILED
    assert said in done.stderr


def FleetReplyTo(request: OrderRequest) -> OrderOutcome:
    """An outcome before anything was accepted."""
    return OrderOutcome(id=request.id, name="gateway-primary", kind=OutcomeKind.DONE)


def test_an_answer_that_is_none_is_told(run_dir: RunDir) -> None:
    """Another version, perhaps; it does not end in a traceback."""
    with FakeAtlas(run_dir, FLEET, order=lambda _: [b"\xc1garbage"]):
        done = cdnctl(run_dir.path, "stop", "gateway-primary")
    assert done.returncode == Exit.FAILED
    assert "is not understood" in done.stderr
    assert "Traceback" not in done.stderr


def test_events_are_shown(run_dir: RunDir) -> None:
    """The newest, oldest first; by name; as one document in JSON."""
    with FakeAtlas(run_dir, FLEET, events=[happened(1), happened(2, "atlas"), happened(3)]):
        table = cdnctl(run_dir.path, "events", "-n", "2")
        named = cdnctl(run_dir.path, "events", "gate*")
        document = cdnctl(run_dir.path, "events", "--json")
    assert [line.split()[-1] for line in table.stdout.splitlines()] == ["TEXT", "2", "3"]
    assert [line.split()[-1] for line in named.stdout.splitlines()] == ["TEXT", "1", "3"]
    events = json.loads(document.stdout)["events"]
    assert [found["text"] for found in events] == ["event 1", "event 2", "event 3"]
    assert events[0]["time"] == "2023-11-14T22:13:21.000Z"


def test_events_are_followed_and_none_is_shown_twice(run_dir: RunDir) -> None:
    """History first, then the feed; one JSON object a line; Ctrl-C ends it with 130."""
    with FakeAtlas(run_dir, FLEET, events=[happened(1), happened(2)]) as atlas:
        with subprocess.Popen(
            [str(CDNCTL), "events", "-f", "--json"],
            env=environment(run_dir.path),
            cwd=run_dir.path,
            stdout=subprocess.PIPE,
            text=True,
        ) as follower:
            assert follower.stdout is not None
            atlas.publish(happened(2))
            atlas.publish(happened(3))
            lines = [json.loads(follower.stdout.readline())["id"] for _ in range(3)]
            follower.send_signal(signal.SIGINT)
            rest = follower.stdout.read()
        assert (lines, rest) == (["e1", "e2", "e3"], "")
        assert follower.returncode == Exit.INTERRUPTED


def test_an_interrupt_tells_what_is_done_already(run_dir: RunDir) -> None:
    """Ctrl-C while one of two outcomes is missing: the other is shown, and that this one goes on; exit code 130."""

    def order(request: OrderRequest) -> Replies:
        return [
            OrderAccepted(id=request.id, commands={}),
            OrderOutcome(id=request.id, name="cdn-data-fabric", kind=OutcomeKind.DONE, took_s=0.1),
        ]

    with (
        FakeAtlas(run_dir, FLEET, order=order) as atlas,
        subprocess.Popen(
            [str(CDNCTL), "restart", "*-*"],
            env=environment(run_dir.path),
            cwd=run_dir.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting,
    ):
        # it asks after ATLAS again once it has followed the order in silence for a while
        until(lambda: len(atlas.requests) >= 3, what="it waits")
        waiting.send_signal(signal.SIGINT)
        shown, said = waiting.communicate()
    assert waiting.returncode == Exit.INTERRUPTED
    assert shown == "cdn-data-fabric restarted in 0.10 s\n"
    assert (
        "goes on with the order to restart gateway-primary; what becomes of it: cdnctl history gateway-primary" in said
    )
    assert "interrupted" in said
