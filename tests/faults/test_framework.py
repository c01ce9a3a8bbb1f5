"""Faults of what supervises, carries and remembers: services do not notice, and history tells it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Thread

import msgspec
import psutil
import pytest
import zmq
from msgspec.structs import replace

from bus.codec import encode
from bus.ids import new_id
from bus.messages import (
    DaemonStatus,
    Hello,
    OodaMode,
    OrderOutcome,
    OrderRequest,
    OutcomeKind,
    ReportStatus,
    Restart,
    SetLoopMode,
    Verb,
)
from bus.operators import OperatorLink
from bus.postmortems import read
from bus.publisher import Publisher
from bus.subscriber import Subscriber
from cli.exits import Exit
from services.atlas.api import CommandsAnswer, MetricsAnswer, ServiceAnswer
from tests.atlas.test_feed import SUBSCRIBE, numbered
from tests.cli.support import cdnctl
from tests.faults import injections
from tests.faults.fleet import Fleet, faulty, is_answering
from tests.faults.injections import Victim
from tests.support import ServiceProcess, Supervisord, is_running, kill_tree, until
from tests.warden.programs import FakeAtlas, fake_atlas, rpc

pytestmark = pytest.mark.faults


@contextmanager
def answering_throughout(victim: Victim) -> Iterator[None]:
    """It is asked again and again meanwhile, and answers each time."""
    stop, failed, asked = ThreadEvent(), list[float](), list[float]()

    def asking() -> None:
        while not stop.wait(0.02):
            (asked if is_answering(victim) else failed).append(time.monotonic())

    thread = Thread(target=asking)
    thread.start()
    try:
        yield
        before = len(asked)
        until(lambda: failed or len(asked) > before + 2, what="asked a few times more")
    finally:
        stop.set()
        thread.join()
    assert not failed


def new_atlas(fleet: Fleet, before: int) -> int:
    """Wait until another ATLAS is well; its pid."""

    def found() -> int | None:
        view = fleet.view("atlas")
        is_well = view is not None and (view.state, view.health) == ("RUNNING", "healthy") and view.pid != before
        return view.pid if view is not None and is_well else None

    return until(found, within_s=60.0, what="another ATLAS is well") or 0


# -- supervisord --------------------------------------------------------------------------------------------------


def test_supervisord_killed_and_restarted(run_path: Path) -> None:
    """Services go on without it; the next one has the fleet whole again, and of none a second copy that serves."""
    with Fleet(run_path, {"web": faulty(), "plain": {"command": "sleep 1000"}}) as fleet:
        victim = fleet.serving("web")
        plain = fleet.supervisord.pid("plain")
        atlas = fleet.supervisord.pid("atlas")
        assert fleet.supervisord.process is not None
        try:
            with answering_throughout(victim):
                fleet.supervisord.process.kill()
                fleet.supervisord.process.wait()
                assert is_running(plain)
            fleet.supervisord.start()
            until(lambda: "web #2 listens" in fleet.supervisord.log("web"), within_s=60.0)
            assert not is_running(victim.pid)
            new_atlas(fleet, atlas)
            fleet.serving("web", after=victim)
            until(lambda: fleet.supervisord.pid("plain") not in (0, plain))
            assert not [pid for pid in (victim.pid, plain, atlas) if is_running(pid)]
            until(lambda: len(fleet.lives("web")) > 1, what="the new one is in history")
            old, new = fleet.lives("web")
            assert (old.incarnation, new.incarnation) == (1, 2)
            assert old.pid == victim.pid
            assert old.ended_s is not None
            assert new.ended_s is None
            until(
                lambda: [event for event in fleet.events("web") if "#2" in event.text], what="the new one is in history"
            )
        finally:
            for pid in (victim.pid, plain, atlas):
                kill_tree(pid)


def test_supervisord_stopped(run_path: Path) -> None:
    """``cdnctl`` answers, with ATLAS and without, and says what is wrong; when it wakes it kills nobody."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        atlas = fleet.supervisord.pid("atlas")
        assert fleet.supervisord.process is not None
        pid = fleet.supervisord.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with answering_throughout(victim):
                by_atlas = told_by_atlas(run_path)
                os.kill(atlas, signal.SIGSTOP)
                alone = cdnctl(run_path, "status")
        finally:
            os.kill(atlas, signal.SIGCONT)
            os.kill(pid, signal.SIGCONT)
        assert f"kill -CONT {pid}" in by_atlas.stderr
        assert alone.returncode == Exit.UNKNOWN
        assert f"kill -CONT {pid}" in alone.stderr
        until(lambda: "RUNNING" in fleet.supervisord.states().get("web", ""))
        fleet.assert_undisturbed(victim)


def told_by_atlas(run_path: Path) -> subprocess.CompletedProcess[str]:
    """``cdnctl status`` once it is not well: until ATLAS has missed supervisord, it is."""

    def found() -> subprocess.CompletedProcess[str] | None:
        done = cdnctl(run_path, "status")
        return done if done.returncode == Exit.NOT_WELL else None

    done = until(found, within_s=60.0, every_s=0.2)
    assert done is not None
    return done


# -- ATLAS --------------------------------------------------------------------------------------------------------


def test_atlas_killed(run_path: Path) -> None:
    """Services answer throughout; the next ATLAS has the fleet whole, and remembers what the one before saw."""
    with Fleet(run_path, {"web": faulty(), "other": faulty()}) as fleet:
        victims = [fleet.serving(name) for name in ("web", "other")]
        atlas = fleet.supervisord.pid("atlas")
        seen = until(lambda: fleet.events("web"))
        until(lambda: time.time() > seen[-1].time_s + 2.0, what="it is on disk, as what is older than a second is")
        with answering_throughout(victims[0]):
            os.kill(atlas, signal.SIGKILL)
            new_atlas(fleet, atlas)
            fleet.assert_undisturbed(*victims)
        end = fleet.end("atlas")
        assert (end.pid, end.end) == (atlas, "killed by SIGKILL")
        assert {event.id for event in seen} <= {event.id for event in fleet.events("web")}


def test_atlas_stopped(run_path: Path) -> None:
    """10 s away, with nobody to replace it: on waking it accuses nobody, and nobody has ended."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        atlas = fleet.supervisord.pid("atlas")
        rpc(fleet.supervisord, "setMaintenance", "atlas", True, 0.0)
        os.kill(atlas, signal.SIGSTOP)
        try:
            since_s = time.monotonic()
            with answering_throughout(victim):
                until(lambda: time.monotonic() - since_s > 10.0, every_s=0.2, what="10 s")
        finally:
            os.kill(atlas, signal.SIGCONT)
        until(lambda: "silence meanwhile proves nothing" in fleet.supervisord.log("atlas"))
        fleet.assert_undisturbed(victim)
        assert fleet.events(kind="unreachable") == []
        assert {life.pid for life in until(lambda: fleet.lives("atlas"))} == {atlas}
        assert fleet.post_mortems("atlas") == []


def test_two_atlas(run_path: Path) -> None:
    """The second refuses with 78, by whatever name; the first goes on."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        atlas = fleet.supervisord.pid("atlas")
        with answering_throughout(victim):
            for instance in ("atlas", "atlas-2"):
                with ServiceProcess(run_path, "-m", "services.atlas", CDN_INSTANCE=instance) as second:
                    assert second.wait() == 78
                    assert "set CDN_RUN_DIR to another directory" in second.log()
        fleet.assert_undisturbed(victim)
        assert {life.pid for life in until(lambda: fleet.lives("atlas"))} == {atlas}
        assert not [event for event in fleet.events("atlas-2", "phase") if "serving" in event.text]


def test_bus_socket_unlinked(run_path: Path) -> None:
    """All four: bound again, counted, and what happens then is seen and ordered as before."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        sockets = [run_path / f"{name}.sock" for name in ("feed", "telemetry", "agents", "operators")]
        with answering_throughout(victim):
            for path in sockets:
                path.unlink()
            until(lambda: all(path.exists() for path in sockets), what="bound again")
        fleet.assert_undisturbed(victim)
        reply = fleet.reply()
        assert reply is not None
        assert reply.counts["rebound"] == len(sockets)
        injections.crash(victim)  # the next one has only the new sockets
        fleet.serving("web", after=victim)
        assert fleet.end("web").end == "killed by SIGKILL"
        assert fleet.order(Verb.HEALTH_CHECK, "web").kind is OutcomeKind.DONE


# -- who speaks on the bus ----------------------------------------------------------------------------------------


def counts(fleet: Fleet) -> dict[str, int]:
    """ATLAS' counters."""
    reply = fleet.reply()
    return reply.counts if reply else {}


def test_garbage(run_path: Path) -> None:
    """Random bytes, 10 MB frames, unknown tags, and what is no ZeroMQ at all: counted, dropped, ATLAS up."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        atlas = fleet.supervisord.pid("atlas")
        context = zmq.Context()
        kinds = {"telemetry": zmq.PUB, "agents": zmq.DEALER, "operators": zmq.DEALER}
        causes = {"telemetry": "malformed", "agents": "agent_malformed", "operators": "operator_malformed"}
        unknown = msgspec.msgpack.encode({"type": "nonsense", "id": "x"})
        try:
            for name, kind in kinds.items():
                cause = causes[name]
                speaker = context.socket(kind)
                speaker.connect(f"ipc://{run_path}/{name}.sock")

                def is_counted(speaker: zmq.Socket[bytes] = speaker, cause: str = cause) -> bool:
                    for frame in (os.urandom(1000), unknown):
                        speaker.send_multipart([b"status/web/", frame] if speaker.type == zmq.PUB else [frame])
                    return counts(fleet).get(cause, 0) >= 2

                until(is_counted, what=f"counted on {name}")
                frame = b"\0" * (10 << 20)
                speaker.send_multipart([b"status/web/", frame] if kind == zmq.PUB else [frame])
                large = cause.replace("malformed", "too_large")
                until(lambda large=large: counts(fleet).get(large) == 1, what=f"counted on {name}")  # type: ignore[misc]
                speaker.close(linger=2000)
                with socket.socket(socket.AF_UNIX) as raw, suppress(OSError):  # it may hang up on us in the middle
                    raw.connect(f"{run_path}/{name}.sock")
                    raw.sendall(os.urandom(100_000))
        finally:
            context.destroy(linger=0)
        fleet.assert_undisturbed(victim)
        assert {life.pid for life in until(lambda: fleet.lives("atlas"))} == {atlas}
        assert "dropped what came as" in fleet.supervisord.log("atlas")


def test_slow_subscriber(run_path: Path) -> None:
    """Stopped while 120 MB are told: the others have all of it, and ATLAS' memory, by its history, is bounded."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        atlas = psutil.Process(fleet.supervisord.pid("atlas"))
        command = [sys.executable, "-c", SUBSCRIBE, fleet.run_dir.feed, "status/"]
        publisher = Publisher(fleet.run_dir.telemetry)
        other = Subscriber(fleet.run_dir.feed, ["status/cdn-data-fabric/"])
        slow = subprocess.Popen(command, stdout=subprocess.PIPE)

        def latest(seq: int) -> bool:
            publisher.publish(numbered_status(seq))
            message = other.receive(0.1)
            return message is not None and message.seq >= seq

        try:
            assert slow.stdout is not None
            assert slow.stdout.readline()  # it has subscribed, and hears
            os.kill(slow.pid, signal.SIGSTOP)
            rss_bytes = atlas.memory_info().rss
            with answering_throughout(victim):
                for seq in range(1, 20_001):
                    publisher.publish(numbered_status(seq))
                    if seq % 500 == 0:
                        until(lambda seq=seq: latest(seq), every_s=0.0)  # type: ignore[misc]
            point_s = time.time()

            def remembered() -> list[int]:
                answer = fleet.asked("services/atlas/metrics?step=1", MetricsAnswer)
                points = answer.points if answer else []
                if not points or points[-1].time_s < point_s:
                    return []
                return [int(point.rss_bytes.max) for point in points if point.rss_bytes is not None]

            most_bytes = max(until(remembered))
            assert (most_bytes - rss_bytes) / 2**20 < 100  # all of them are 125 MiB; the 10,000 that are kept, 62
        finally:
            slow.kill()
            slow.wait()
            slow.stdout.close() if slow.stdout else None
            publisher.close()
            other.close()
        fleet.assert_undisturbed(victim)
        assert {life.pid for life in until(lambda: fleet.lives("atlas"))} == {atlas.pid}


def numbered_status(seq: int) -> DaemonStatus:
    """One of 6 KB."""
    return msgspec.msgpack.decode(numbered(seq, reasons=("x" * 6000,))[1], type=DaemonStatus)


def test_same_order_twice(run_path: Path) -> None:
    """Resent under its id it has one effect: one command, one end by it, and one outcome for both."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        request = OrderRequest(id=new_id(), verb=Verb.RESTART, names=("web",), timeout_s=60, asked_by="test")
        outcomes = []
        for _ in range(2):
            link = OperatorLink(fleet.run_dir.operators)
            link.request(request, timeout_s=30)
            replies = link.replies(request.id, timeout_s=90)
            outcomes.append(next(reply for reply in replies if isinstance(reply, OrderOutcome)))
            link.close()
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.DONE, OutcomeKind.DONE]
        fleet.serving("web", after=victim)
        assert fleet.end("web").ordered_by == "test"
        until(lambda: len(fleet.lives("web")) > 1, what="the new one is in history")
        assert [life.incarnation for life in fleet.lives("web")] == [1, 2]
        commands = fleet.asked("commands?service=web", CommandsAnswer)
        assert commands is not None
        assert [(command.order, command.kind) for command in commands.commands] == [(request.id, OutcomeKind.DONE)]


def has_said_hello(atlas: FakeAtlas, pid: int) -> bool:
    """Whether that process's daemon can be commanded."""
    atlas.listen()
    return any(isinstance(said, Hello) and said.pid == pid for said in atlas.said)


def test_command_twice_and_for_an_older_incarnation(run_path: Path) -> None:
    """To the daemon itself: the second is answered from memory, the outdated is rejected; the warden knows one end."""
    with Supervisord(run_path, {"web": faulty()}, env={"CDN_PORT": "0"}) as supervisord, fake_atlas(run_path) as atlas:
        first = atlas.row("web", "RUNNING").pid or 0
        os.kill(first, signal.SIGKILL)
        until(lambda: atlas.row("web", "RUNNING").pid != first)
        until(lambda: has_said_hello(atlas, supervisord.pid("web")))
        outdated = atlas.outcome(atlas.send(Restart(), target="web", incarnation=1))
        assert (outdated.kind, outdated.reason) == (OutcomeKind.REJECTED, "web is #2, the command is for #1")
        assert atlas.outcome(atlas.send(Restart(), target="web", incarnation=1, id_=outdated.id), count=2) == outdated
        off = atlas.send(SetLoopMode(mode=OodaMode.OFF), target="web")
        done = atlas.outcome(off)
        atlas.outcome(atlas.send(SetLoopMode(mode=OodaMode.ON), target="web"))
        assert atlas.outcome(atlas.send(SetLoopMode(mode=OodaMode.OFF), target="web", id_=off), count=2) == done
        status = atlas.outcome(atlas.send(ReportStatus(), target="web")).status
        assert status is not None
        assert status.ooda_mode is OodaMode.ON
        second = supervisord.pid("web")
        restart = atlas.send(Restart(), target="web", incarnation=2)
        until(lambda: atlas.row("web", "RUNNING").pid not in (None, second))
        until(lambda: has_said_hello(atlas, supervisord.pid("web")))
        again = atlas.outcome(atlas.send(Restart(), target="web", incarnation=2, id_=restart))
        assert again.kind is OutcomeKind.REJECTED  # its successor, who does not know it, is another one
        ends = read(run_path / "postmortems", "web")
        assert [(end.incarnation, end.ordered_by) for end in ends] == [(1, ""), (2, "tester")]


def test_status_in_anothers_name(run_path: Path) -> None:
    """From another pid or host, or under another's topic: refused and counted, and the fleet shows what it did."""
    with Fleet(run_path, {"web": faulty()}) as fleet:
        victim = fleet.serving("web")
        shown = fleet.asked("services/web", ServiceAnswer)
        assert shown is not None
        assert shown.status is not None
        liar = Publisher(fleet.run_dir.telemetry)
        context = zmq.Context()
        raw = context.socket(zmq.PUB)
        raw.connect(fleet.run_dir.telemetry)
        lies = [
            replace(shown.status, seq=10**9, pid=1, address="http://127.0.0.1:1"),
            replace(shown.status, seq=10**9, host="elsewhere", address="http://127.0.0.1:1"),
        ]
        try:

            def is_refused() -> bool:
                for lie in lies:
                    liar.publish(lie)
                raw.send_multipart([b"status/atlas/", encode(lies[0])])
                return counts(fleet).get("name_clash", 0) >= 4 and counts(fleet).get("wrong_topic", 0) >= 1

            until(is_refused)
        finally:
            liar.close()
            raw.close(linger=0)
            context.term()
        assert fleet.serving("web") == victim
        fleet.assert_undisturbed(victim)
