"""ATLAS for real: it sees, it carries orders out, and nothing depends on its life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from msgspec.structs import replace

from bus.codec import MAX_FRAME_BYTES, encode
from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import (
    Band,
    CommandsReply,
    CommandsRequest,
    CommandView,
    Event,
    EventsReply,
    EventsRequest,
    FleetReply,
    FleetRequest,
    Limits,
    OodaMode,
    OrderAccepted,
    OrderOutcome,
    OrderRequest,
    OutcomeKind,
    Refusal,
    Verb,
)
from bus.operators import AtlasSilent, OperatorLink
from bus.publisher import Publisher
from bus.subscriber import Subscriber
from services.atlas.happened import TEXT_CHARS
from tests.bus.samples import STATUS
from tests.support import BIN, ServiceProcess, Supervisord, is_running, until

ATLAS = ("-m", "services.atlas")
TINY = ("-m", "tests.cdn_daemon.tiny")
FLEET = {
    "atlas": {"command": "python -m services.atlas"},
    "tiny": {"command": "python -m tests.cdn_daemon.tiny", "type": "notify", "watchdog_s": "0.6"},
}


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Callable[..., ServiceProcess]:
    """Starts processes in the test's run directory, and ends them afterwards."""

    def start(*command: str, **env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, *command, **env)
        request.addfinalizer(process.stop)
        return process

    return start


@pytest.fixture
def operator(run_dir: RunDir) -> Iterator[OperatorLink]:
    """An operator's connection."""
    link = OperatorLink(run_dir.operators)
    yield link
    link.close()


def fleet(operator: OperatorLink, timeout_s: float = 30.0) -> dict[str, Any]:
    """Instance → view, as ATLAS answers on the operators' plane."""
    request = FleetRequest(id=new_id())
    operator.request(request, timeout_s=timeout_s)
    reply = next(operator.replies(request.id, timeout_s=timeout_s))
    assert isinstance(reply, FleetReply)
    return {view.instance: view for view in reply.services} | {"counts": reply.counts}


def events(operator: OperatorLink) -> list[Event]:
    """What ATLAS remembers."""
    request = EventsRequest(id=new_id(), limit=1000)
    operator.request(request, timeout_s=30)
    reply = next(operator.replies(request.id, timeout_s=30))
    assert isinstance(reply, EventsReply)
    return list(reply.events)


def order(operator: OperatorLink, verb: Verb, *names: str, timeout_s: float = 60.0) -> dict[str, OrderOutcome]:
    """Give an order and wait for every outcome."""
    request = OrderRequest(id=new_id(), verb=verb, names=names, timeout_s=timeout_s, asked_by="test")
    operator.request(request, timeout_s=30)
    outcomes: dict[str, OrderOutcome] = {}
    for reply in operator.replies(request.id, timeout_s=timeout_s + 30):
        if isinstance(reply, OrderOutcome):
            assert reply.name not in outcomes
            outcomes[reply.name] = reply
            if len(outcomes) == len(names):
                break
    return outcomes


def is_well(operator: OperatorLink, *names: str) -> bool:
    """Whether all these run and are healthy."""
    views = fleet(operator)
    return all(name in views and (views[name].state, views[name].health) == ("RUNNING", "healthy") for name in names)


def test_it_sees(spawn: Callable[..., ServiceProcess], operator: OperatorLink) -> None:
    """A service that starts is in the fleet, on the operators' plane and by HTTP alike, ATLAS itself included."""
    atlas, tiny = spawn(*ATLAS), spawn(*TINY)
    until(lambda: is_well(operator, "atlas", "tiny"))
    view = fleet(operator)["tiny"]
    assert (view.pid, view.address, view.incarnation) == (tiny.pid, tiny.url(), 1)
    code, body = atlas.get("/api/v1/fleet")
    answer = json.loads(body)
    assert (code, answer["schema_version"]) == (200, 1)
    assert [service["instance"] for service in answer["services"]] == ["atlas", "tiny"]
    assert atlas.get("/readyz")[0] == 200
    for path in ("/api/v1/nope", "/api/v1/../../etc/passwd"):
        code, body = atlas.get(path)
        assert (code, json.loads(body)["error"]["status"]) == (404, 404)
    assert atlas.get("/api/v1/fleet", data=b"{}")[0] == 405


def test_atlas_dies_and_comes_back(spawn: Callable[..., ServiceProcess], run_dir: RunDir) -> None:
    """The services do not notice; the next ATLAS has the whole fleet again, with the same incarnations."""
    atlas, tiny = spawn(*ATLAS), spawn(*TINY)
    link = OperatorLink(run_dir.operators)
    until(lambda: is_well(link, "atlas", "tiny"))
    link.close()
    os.kill(atlas.pid, signal.SIGKILL)
    atlas.wait()
    assert tiny.get("/") == (200, b"hello")
    spawn(*ATLAS)
    link = OperatorLink(run_dir.operators)
    until(lambda: is_well(link, "atlas", "tiny"))
    view = fleet(link)["tiny"]
    assert (view.pid, view.incarnation) == (tiny.pid, 1)
    link.close()


def test_atlas_is_frozen(spawn: Callable[..., ServiceProcess], operator: OperatorLink) -> None:
    """Stopped for longer than any silence it tolerates: on waking it accuses nobody."""
    atlas, tiny = spawn(*ATLAS), spawn(*TINY)
    until(lambda: is_well(operator, "atlas", "tiny"))
    os.kill(atlas.pid, signal.SIGSTOP)
    with pytest.raises(OSError):
        atlas.get("/livez", timeout_s=5)
    os.kill(atlas.pid, signal.SIGCONT)
    until(lambda: "silence meanwhile proves nothing" in atlas.log())
    until(lambda: is_well(operator, "atlas", "tiny"))
    assert not [event for event in events(operator) if event.kind == "unreachable"]
    assert tiny.process.poll() is None


def test_a_service_falls_silent(spawn: Callable[..., ServiceProcess], operator: OperatorLink) -> None:
    """Unreachable, with an event, and reachable again; without a warden nobody calls it dead."""
    spawn(*ATLAS)
    tiny = spawn(*TINY)
    until(lambda: is_well(operator, "tiny"))
    os.kill(tiny.pid, signal.SIGSTOP)
    until(lambda: fleet(operator)["tiny"].state == "UNKNOWN")
    assert fleet(operator)["tiny"].reason.startswith("unreachable: silent for")
    os.kill(tiny.pid, signal.SIGCONT)
    until(lambda: is_well(operator, "tiny"))
    kinds = [event.kind for event in events(operator) if event.instance == "tiny"]
    assert kinds[kinds.index("unreachable") :][:2] == ["unreachable", "reachable"]


@pytest.mark.parametrize("instance", ["atlas", "atlas-2"])
def test_a_second_atlas_refuses(spawn: Callable[..., ServiceProcess], operator: OperatorLink, instance: str) -> None:
    """In one run directory there is one, whatever the second calls itself; the first is not disturbed."""
    first = spawn(*ATLAS)
    until(lambda: is_well(operator, "atlas"))
    second = spawn(*ATLAS, CDN_INSTANCE=instance)
    assert second.wait() == 78
    assert "set CDN_RUN_DIR to another directory" in second.log()
    assert first.process.poll() is None
    assert is_well(operator, "atlas")
    phases = [event.text for event in events(operator) if (event.instance, event.kind) == ("atlas-2", "phase")]
    assert all("serving" not in text for text in phases)  # who has no bus was never ready


def test_noise(spawn: Callable[..., ServiceProcess], operator: OperatorLink, run_dir: RunDir) -> None:
    """Garbage, spoofed topics, old news and large frames are counted; the fleet is what it was."""
    atlas = spawn(*ATLAS)
    until(lambda: is_well(operator, "atlas"))
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.connect(run_dir.telemetry)
    subscriber = Subscriber(run_dir.feed, ["status/cdn-data-fabric/"])
    publisher = Publisher(run_dir.telemetry)

    def accepted() -> bool:
        publisher.publish(STATUS)
        return subscriber.receive(0.1) is not None

    until(accepted)

    def counted() -> dict[str, int]:
        pub.send_multipart([b"status/cdn-data-fabric/", os.urandom(100)])
        pub.send_multipart([b"status/atlas/", encode(STATUS)])
        pub.send_multipart([b"x"])
        pub.send_multipart([b"status/cdn-data-fabric/", encode(STATUS)])
        counts: dict[str, int] = json.loads(atlas.get("/api/v1/fleet")[1])["counts"]
        return counts if {"malformed", "wrong_topic", "wrong_parts", "old"} <= counts.keys() else {}

    until(counted)
    huge = b"\0" * (10 << 20)
    pub.send_multipart([b"status/atlas/", huge])
    for endpoint in (run_dir.agents, run_dir.operators):
        dealer = context.socket(zmq.DEALER)
        dealer.connect(endpoint)
        dealer.send(huge)
        if endpoint == run_dir.operators:
            assert dealer.poll(30_000)
            assert b"frame of 10485760 bytes: the limit is 1048576" in dealer.recv()
        dealer.send(os.urandom(1000))
        dealer.send_multipart([b"a", b"b", b"c"])
        if endpoint == run_dir.operators:
            assert dealer.poll(30_000)
            assert b"cannot understand the request" in dealer.recv()
        dealer.close(linger=1000)
    large = {"too_large": 1, "agent_too_large": 1, "operator_too_large": 1}
    until(lambda: large.items() <= json.loads(atlas.get("/api/v1/fleet")[1])["counts"].items())
    pub.close(linger=1000)
    context.term()
    subscriber.close()
    publisher.close()
    assert is_well(operator, "atlas")
    assert atlas.process.poll() is None


def test_a_reason_as_long_as_a_frame(
    spawn: Callable[..., ServiceProcess], run_dir: RunDir, operator: OperatorLink
) -> None:
    """What ATLAS tells of a status that just fits into a frame fits into one, too: its bus goes on."""
    atlas = spawn(*ATLAS)
    until(lambda: is_well(operator, "atlas"))
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.connect(run_dir.telemetry)
    status = dict.fromkeys(("pid", "time_s", "monotonic_s", "uptime_s"), 0) | {"type": "daemon_status"}
    status |= {"service": "x", "instance": "x", "host": "x", "incarnation": 1}

    seq = count(1)

    def health_is(**told: object) -> bool:
        pub.send_multipart([b"status/x/", msgspec.msgpack.encode({**status, "seq": next(seq), **told})])
        view = fleet(operator).get("x")
        return view is not None and view.health == told["health"]

    until(lambda: health_is(health="healthy"))
    bare = msgspec.msgpack.encode({**status, "seq": 1 << 16, "health": "degraded", "reasons": [""]})
    until(lambda: health_is(health="degraded", reasons=["x" * (MAX_FRAME_BYTES - len(bare) - 4)]))
    text = [event.text for event in events(operator) if (event.instance, event.kind) == ("x", "health")][-1]
    assert text.startswith("healthy → degraded: xxx")
    assert len(text) <= TEXT_CHARS
    pub.close(linger=0)
    context.term()
    assert is_well(operator, "atlas")
    assert atlas.process.poll() is None


def test_orders(run_path: Path, operator: OperatorLink) -> None:
    """Restart, stop, start and restart of what is stopped, each followed to what the fleet then shows."""
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        until(lambda: is_well(operator, "atlas", "tiny"))
        before = fleet(operator)["tiny"]
        outcome = order(operator, Verb.RESTART, "tiny")["tiny"]
        after = fleet(operator)["tiny"]
        assert (outcome.kind, outcome.reason) == (OutcomeKind.DONE, "")
        assert (after.state, after.incarnation, after.restarts) == ("RUNNING", before.incarnation + 1, 1)
        assert after.pid != before.pid
        assert "told to restart by test" in supervisord.log("tiny")

        assert order(operator, Verb.STOP, "tiny")["tiny"].kind is OutcomeKind.DONE
        assert supervisord.states()["tiny"] == "STOPPED"
        assert fleet(operator)["tiny"].state == "STOPPED"
        assert not is_running(after.pid)
        assert order(operator, Verb.STOP, "tiny")["tiny"].reason == "already stopped"
        assert order(operator, Verb.START, "tiny")["tiny"].kind is OutcomeKind.DONE
        assert supervisord.states()["tiny"] == "RUNNING"
        assert order(operator, Verb.START, "tiny")["tiny"].reason == "already running"
        order(operator, Verb.STOP, "tiny")
        assert order(operator, Verb.RESTART, "tiny")["tiny"].kind is OutcomeKind.DONE
        assert supervisord.states()["tiny"] == "RUNNING"
        assert order(operator, Verb.STOP, "nope")["nope"].kind is OutcomeKind.REJECTED


def test_a_frozen_service_is_restarted_all_the_same(run_path: Path, operator: OperatorLink) -> None:
    """Its daemon cannot accept, so the warden is asked; whoever replaces it first, the order ends as done."""
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        until(lambda: is_well(operator, "atlas", "tiny"))
        before = fleet(operator)["tiny"]
        os.kill(supervisord.pid("tiny"), signal.SIGSTOP)
        assert order(operator, Verb.RESTART, "tiny")["tiny"].kind is OutcomeKind.DONE
        until(lambda: is_well(operator, "tiny"))
        assert fleet(operator)["tiny"].pid != before.pid


def test_a_crash_is_seen(run_path: Path, operator: OperatorLink) -> None:
    """SIGKILL of a service: it is back, its restart is counted, and the events say so."""
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        until(lambda: is_well(operator, "atlas", "tiny"))
        os.kill(supervisord.pid("tiny"), signal.SIGKILL)
        until(lambda: fleet(operator)["tiny"].restarts == 1 and is_well(operator, "tiny"))
        told = [event.text for event in events(operator) if event.instance == "tiny" and event.kind == "restart"]
        assert len(told) == 1
        assert told[0].startswith("started anew: #1 → #2")


def test_reload(run_path: Path, operator: OperatorLink) -> None:
    """supervisorctl reload and SIGHUP: supervisord lives on, warden and all, and the fleet is whole again."""
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        assert supervisord.process is not None
        for reload in (lambda: supervisord.ctl("reload"), lambda: os.kill(supervisord.process.pid, signal.SIGHUP)):
            until(lambda: is_well(operator, "atlas", "tiny"))
            before = supervisord.log().count("watches 2 programs")
            reload()
            until(lambda: supervisord.log().count("watches 2 programs") == before + 1)  # noqa: B023
            until(lambda: is_well(operator, "atlas", "tiny"))
            assert order(operator, Verb.RESTART, "tiny")["tiny"].kind is OutcomeKind.DONE
            assert supervisord.process.poll() is None


def test_the_feed_tells_events(spawn: Callable[..., ServiceProcess], operator: OperatorLink, run_dir: RunDir) -> None:
    """What happens to a service is published under its topic, numbered without a gap."""
    spawn(*ATLAS)
    until(lambda: is_well(operator, "atlas"))
    subscriber = Subscriber(run_dir.feed, ["event/tiny/"])
    tiny = spawn(*TINY)
    first = until(lambda: subscriber.receive(0.1))
    os.kill(tiny.pid, signal.SIGTERM)
    second = until(lambda: subscriber.receive(0.1))
    assert isinstance(first, Event)
    assert isinstance(second, Event)
    assert (first.kind, first.instance, second.seq - first.seq) == ("appeared", "tiny", 1)
    subscriber.close()


# -- ATLAS dies in the middle of a command --------------------------------------------------------------------

PATIENT = {**FLEET["tiny"], "environment": 'CDN_DRAIN_S="120"', "stopwaitsecs": "120"}
"""It drains for as long as the test likes."""
TWINS = {
    "atlas": FLEET["atlas"],
    "tiny": PATIENT,
    "tiny-2": {**FLEET["tiny"], "environment": 'CDN_INSTANCE="tiny-2"', "depends_on": "tiny"},
}


def commands(operator: OperatorLink) -> dict[str, CommandView]:
    """Instance → the newest command for it."""
    request = CommandsRequest(id=new_id())
    operator.request(request, timeout_s=30)
    reply = next(operator.replies(request.id, timeout_s=30))
    assert isinstance(reply, CommandsReply)
    return {view.name: view for view in reply.commands}


def new_atlas(run_dir: RunDir, before: int) -> OperatorLink:
    """A connection to the ATLAS that takes the place of that process, once it is well."""

    def there() -> OperatorLink | None:
        link = OperatorLink(run_dir.operators)
        try:
            views = fleet(link, timeout_s=1.0)  # it may have connected to the one that dies
        except AtlasSilent:
            views = {}
        if "atlas" in views and views["atlas"].pid not in (None, before):
            return link
        link.close()
        return None

    return until(there) or OperatorLink(run_dir.operators)


def test_atlas_is_killed_in_the_middle_of_a_restart(run_path: Path, run_dir: RunDir, operator: OperatorLink) -> None:
    """The next one takes it up: cdnctl, which waits, hears that it is done, and so says the list of commands."""
    with (
        Supervisord(run_path, {**FLEET, "tiny": PATIENT}, env={"CDN_PORT": "0"}) as supervisord,
        ThreadPoolExecutor(1) as pool,
    ):
        until(lambda: is_well(operator, "atlas", "tiny"))
        views = fleet(operator)
        url = f"{views['tiny'].address}/wait?for=go"
        held = pool.submit(lambda: urllib.request.urlopen(url, timeout=60).status)
        until(lambda: fleet(operator)["tiny"].in_flight == 1)
        with subprocess.Popen(
            [str(BIN / "cdnctl"), "restart", "tiny", "--json", "--timeout", "60s"],
            env=supervisord.env,
            cwd=run_path,
            stdout=subprocess.PIPE,
            text=True,
        ) as cdnctl:
            until(lambda: "tiny" in (found := commands(operator)) and found["tiny"].stage == "accepted")
            before = commands(operator)["tiny"]
            os.kill(views["atlas"].pid, signal.SIGKILL)
            link = new_atlas(run_dir, views["atlas"].pid)
            again = commands(link)["tiny"]
            assert (again.id, again.order, again.asked_by) == (before.id, before.order, before.asked_by)
            (run_path / "go").touch()
            said, _ = cdnctl.communicate(timeout=100)
        assert held.result() == 200
        (outcome,) = json.loads(said)["outcomes"]
        assert (cdnctl.returncode, outcome["outcome"]) == (0, "done"), said
        after = commands(link)["tiny"]
        assert (after.id, after.stage, after.kind, after.attempts) == (before.id, "ended", "done", before.attempts)
        until(lambda: "tiny" in fleet(link))
        view = fleet(link)["tiny"]
        assert (view.incarnation, view.restarts) == (views["tiny"].incarnation + 1, 1)
        until(lambda: is_well(link, "tiny"))
        told = [event for event in events(link) if event.cause == before.id]
        assert told[-1].text.startswith(f"restart asked by {before.asked_by}: done after ")

        request = OrderRequest(
            id=before.order, verb=Verb.RESTART, names=("tiny",), timeout_s=60, asked_by="test", attach=True
        )
        link.request(request, timeout_s=30)
        replies = link.replies(request.id, timeout_s=30)
        assert next(reply.kind for reply in replies if isinstance(reply, OrderOutcome)) is OutcomeKind.DONE
        assert fleet(link)["tiny"].incarnation == view.incarnation
        link.close()


def test_atlas_is_killed_in_the_middle_of_a_rollout(run_path: Path, run_dir: RunDir, operator: OperatorLink) -> None:
    """The next one goes on with it: each is restarted once, one after the other."""
    with Supervisord(run_path, TWINS, env={"CDN_PORT": "0"}), ThreadPoolExecutor(1) as pool:
        until(lambda: is_well(operator, "atlas", "tiny", "tiny-2"))
        views = fleet(operator)
        url = f"{views['tiny'].address}/wait?for=go"
        held = pool.submit(lambda: urllib.request.urlopen(url, timeout=60).status)
        until(lambda: fleet(operator)["tiny"].in_flight == 1)
        request = OrderRequest(
            id=new_id(), verb=Verb.RESTART, names=("tiny-2", "tiny"), timeout_s=60, asked_by="test", batch=1
        )
        operator.request(request, timeout_s=30)

        def stages() -> dict[str, tuple[str, str]]:
            return {name: (view.stage, view.reason) for name, view in commands(operator).items()}

        until(lambda: stages() == {"tiny": ("accepted", ""), "tiny-2": ("waiting", "")})
        os.kill(views["atlas"].pid, signal.SIGKILL)
        link = new_atlas(run_dir, views["atlas"].pid)
        (run_path / "go").touch()
        assert held.result() == 200
        until(lambda: {view.kind for view in commands(link).values()} == {OutcomeKind.DONE}, within_s=60.0)
        until(lambda: is_well(link, "tiny", "tiny-2"))
        after = fleet(link)
        assert [after[name].incarnation - views[name].incarnation for name in ("tiny", "tiny-2")] == [1, 1]
        link.close()


def test_atlas_restarts_itself(run_path: Path, run_dir: RunDir, operator: OperatorLink) -> None:
    """It cannot see its own end, but the next one can: done, by another process."""
    with Supervisord(run_path, {"atlas": FLEET["atlas"]}, env={"CDN_PORT": "0"}):
        until(lambda: is_well(operator, "atlas"))
        before = fleet(operator)["atlas"]
        request = OrderRequest(id=new_id(), verb=Verb.RESTART, names=("atlas",), timeout_s=60, asked_by="test")
        operator.request(request, timeout_s=30)
        link = new_atlas(run_dir, before.pid)
        until(lambda: commands(link)["atlas"].kind is not None)
        view = commands(link)["atlas"]
        assert (view.order, view.kind, view.incarnation) == (request.id, "done", before.incarnation + 1), view
        link.close()


def is_stopped(pid: int) -> bool:
    """Whether every thread of it is: on another core one may go on for a moment, proc(5)."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_an_order_that_lay_in_the_socket(spawn: Callable[..., ServiceProcess], operator: OperatorLink) -> None:
    """ATLAS was stopped; whoever ordered has gone to supervisord meanwhile. It refuses, and takes it if asked again."""
    atlas = spawn(*ATLAS)
    spawn(*TINY)
    until(lambda: is_well(operator, "atlas", "tiny"))
    os.kill(atlas.pid, signal.SIGSTOP)
    until(lambda: is_stopped(atlas.pid))
    asked_s = time.monotonic()
    request = OrderRequest(id=new_id(), verb=Verb.SHED, names=("tiny",), timeout_s=60, asked_by="test", asked_s=asked_s)
    operator.request(request, timeout_s=30)
    until(lambda: time.monotonic() - asked_s > 1.0)  # as long as cdnctl waits
    os.kill(atlas.pid, signal.SIGCONT)
    refusal = next(operator.replies(request.id, timeout_s=30))
    assert isinstance(refusal, Refusal)
    assert refusal.again
    assert commands(operator) == {}
    operator.request(replace(request, asked_s=None), timeout_s=30)
    kinds = [type(reply) for reply in islice(operator.replies(request.id, timeout_s=30), 2)]
    assert kinds[0] is OrderAccepted
    until(lambda: commands(operator)["tiny"].kind == "done")


@pytest.mark.faults
def test_a_full_disk(run_path: Path, operator: OperatorLink) -> None:
    """Nothing can be written: orders are carried out, their outcomes and the fleet's notes say that it was not."""
    full = {**FLEET, "atlas": {"command": "sh -c 'ulimit -f 1; exec python -m services.atlas'", "type": "notify"}}
    with Supervisord(run_path, full, env={"CDN_PORT": "0"}):
        until(lambda: {"atlas", "tiny"} <= fleet(operator).keys())
        until(lambda: fleet(operator)["tiny"].state == "RUNNING")
        for verb in (Verb.RESTART, Verb.STOP, Verb.START):
            outcome = order(operator, verb, "tiny")["tiny"]
            assert outcome.kind is OutcomeKind.DONE, outcome
        assert outcome.reason.startswith("not journaled: ")
        request = FleetRequest(id=new_id())
        operator.request(request, timeout_s=30)
        reply = next(operator.replies(request.id, timeout_s=30))
        assert isinstance(reply, FleetReply)
        assert any(note.startswith("ATLAS's commands are not written down: ") for note in reply.notes)
        assert [view.kind for view in commands(operator).values()] == ["done"]


def test_every_verb_reaches_its_receiver(run_path: Path, run_dir: RunDir, operator: OperatorLink) -> None:
    """What a daemon and a warden do for an order, and what the fleet then shows of it."""

    def gives(verb: Verb, **arguments: Any) -> OrderOutcome:
        request = OrderRequest(id=new_id(), verb=verb, names=("tiny",), timeout_s=60, asked_by="test", **arguments)
        operator.request(request, timeout_s=30)
        return next(reply for reply in operator.replies(request.id, timeout_s=90) if isinstance(reply, OrderOutcome))

    def shows(**fields: Any) -> bool:
        view = fleet(operator)["tiny"]
        return all(getattr(view, name) == value for name, value in fields.items())

    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        until(lambda: is_well(operator, "atlas", "tiny"))
        for verb, arguments, shown in (
            (Verb.SHED, {}, {"shedding": True}),
            (Verb.RESUME, {}, {"shedding": False}),
            (Verb.LOOP_MODE, {"mode": OodaMode.SHADOW}, {"ooda_mode": OodaMode.SHADOW}),
            (Verb.SET_LIMITS, {"limits": Limits(fds=Band(soft=500.0))}, {}),
            (Verb.HEALTH_CHECK, {}, {}),
            (Verb.MAINTENANCE, {"on": True, "for_s": 600.0}, {"maintenance": True}),
            (Verb.MAINTENANCE, {"on": False}, {"maintenance": False}),
            (Verb.DISABLE, {}, {"enabled": False, "state": "STOPPED"}),
            (Verb.ENABLE, {}, {"enabled": True, "state": "RUNNING"}),
            (Verb.RESET_FAILED, {}, {}),
        ):
            outcome = gives(verb, **arguments)
            assert outcome.kind is OutcomeKind.DONE, f"{verb}: {outcome}"
            until(lambda: shows(**shown), what=f"{verb} is shown")  # noqa: B023
        assert commands(operator)["tiny"].verb is Verb.RESET_FAILED
        until(lambda: is_well(operator, "tiny"))
        pid = supervisord.pid("tiny")
        assert gives(Verb.SIGNAL, signal=signal.SIGKILL).kind is OutcomeKind.DONE
        until(lambda: is_well(operator, "tiny") and supervisord.pid("tiny") != pid)
