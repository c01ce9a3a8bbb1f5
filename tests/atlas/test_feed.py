"""The feed: what a subscriber may rely on, what it may cost, and that the documents' subscribers run."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq
from msgspec.structs import replace

from bus.audience import PER_CONNECTION, STALLED_S, Audience
from bus.broker import Broker
from bus.codec import encode
from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import (
    DaemonStatus,
    LifecyclePhase,
    NodeStatus,
    ProcessRow,
    ProcessState,
    SnapshotReply,
    SnapshotRequest,
    Telemetry,
)
from bus.operators import OperatorLink
from bus.publisher import Publisher
from bus.subscriber import Subscriber
from bus.topics import topic_of
from services.atlas.fleet import FORGOTTEN_S, Fleet
from services.atlas.happened import Happened, Numbering
from services.atlas.hearing import Hearing, in_parts
from tests.atlas.test_atlas import ATLAS, TINY, fleet, is_well
from tests.bus.samples import STATUS
from tests.support import BIN, ROOT, ServiceProcess, environment, until

DOCUMENT = (ROOT / "docs" / "subscribing.md").read_text()
MODULES = Path(os.environ.get("CDN_TEST_NODE_MODULES", ROOT / ".ci" / "node" / "node_modules"))
"""Where npm has put zeromq and @msgpack/msgpack: ``npm install --prefix .ci/node zeromq @msgpack/msgpack``."""

SUBSCRIBE = """
import sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.connect(sys.argv[1])
for prefix in sys.argv[2:]:
    socket.setsockopt(zmq.SUBSCRIBE, prefix.encode())
while True:
    print(len(socket.recv_multipart()[1]), flush=True)
"""
GREEDY = """
import os, sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.setsockopt(zmq.SNDHWM, 0)
socket.connect(sys.argv[1])
for _ in range(40_000):
    socket.setsockopt(zmq.SUBSCRIBE, b"status/" + os.urandom(50).hex().encode())
socket.setsockopt(zmq.SUBSCRIBE, b"x" * 100_000)
print("subscribed", flush=True)
while True:
    socket.poll(100)  # without it nothing is subscribed to again
"""


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Callable[..., ServiceProcess]:
    """Starts processes in the test's run directory, and ends them afterwards."""

    def start(*command: str, **env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, *command, **env)
        request.addfinalizer(process.stop)
        return process

    return start


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Callable[..., subprocess.Popen[str]]:
    """Starts a process that has nothing of this project on its path."""

    def start(*command: str, cwd: Path | str = "/") -> subprocess.Popen[str]:
        env = environment(Path("/nonexistent"))
        del env["PYTHONPATH"]
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True)

        def end() -> None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

        request.addfinalizer(end)
        return process

    return start


@pytest.fixture
def broker(run_dir: RunDir) -> Iterator[Broker]:
    """On the test's own thread."""
    made = Broker(run_dir)
    yield made
    made.close()


def line(process: subprocess.Popen[str]) -> str:
    """The next that it prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def numbered(seq: int, instance: str = "cdn-data-fabric", reasons: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
    """Topic and frame of a status."""
    changed: DaemonStatus = replace(STATUS, seq=seq, instance=instance, reasons=reasons)
    return f"status/{instance}/".encode(), encode(changed)


def turn_until(broker: Broker, predicate: Callable[[], Any]) -> None:
    """Turn and replay until it holds."""

    def turned() -> Any:
        broker.turn(0.01)
        broker.replay()
        return predicate()

    until(turned, every_s=0.0)


def blocks(language: str) -> list[str]:
    """The document's examples in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


# -- the document ----------------------------------------------------------------------------------


def test_the_python_of_the_document(
    run_path: Path, spawn: Callable[..., ServiceProcess], stranger: Callable[..., subprocess.Popen[str]]
) -> None:
    """The subscriber prints what ATLAS publishes, and the other has all of the fleet in its snapshot."""
    subscriber, joiner = (block.replace("ipc://run/", f"ipc://{run_path}/") for block in blocks("python"))
    spawn(*ATLAS)
    told = line(stranger(str(BIN / "python"), "-c", subscriber))
    assert re.match(r"status/atlas/ 1 \d+ \w+ \w+\n", told)
    assert line(stranger(str(BIN / "python"), "-c", joiner)) == "complete: atlas\n"


def test_the_javascript_of_the_document(
    run_path: Path, spawn: Callable[..., ServiceProcess], stranger: Callable[..., subprocess.Popen[str]]
) -> None:
    """The same, with npm's zeromq."""
    node = shutil.which("node")
    if node is None or not (MODULES / "zeromq").is_dir():
        pytest.skip("needs node, and: npm install --prefix .ci/node zeromq @msgpack/msgpack")
    (run_path / "node_modules").symlink_to(MODULES)
    paths = []
    for name, block in zip(("subscriber", "joiner"), blocks("js"), strict=True):
        paths.append(run_path / f"{name}.mjs")
        paths[-1].write_text(block.replace("ipc://run/", f"ipc://{run_path}/"))
    spawn(*ATLAS)
    assert re.match(r"status/atlas/ 1 \d+ \w+ \w+\n", line(stranger(node, str(paths[0]))))
    assert line(stranger(node, str(paths[1]))) == "complete: atlas\n"


# -- the snapshot ----------------------------------------------------------------------------------


def test_a_snapshot_is_whole(run_dir: RunDir, spawn: Callable[..., ServiceProcess]) -> None:
    """Every topic's last frame, byte for byte, unknown keys among them."""
    spawn(*ATLAS)
    operator = OperatorLink(run_dir.operators)
    until(lambda: is_well(operator, "atlas"))
    spawn(*TINY)
    until(lambda: is_well(operator, "tiny"))
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.connect(run_dir.telemetry)
    newer = msgpack.packb(msgpack.unpackb(encode(replace(STATUS, instance="from-tomorrow"))) | {"added_later": 1})

    def snapshot() -> dict[str, bytes]:
        pub.send_multipart([b"status/from-tomorrow/", newer])
        request = SnapshotRequest(id=new_id())
        operator.request(request, timeout_s=30)
        frames: list[bytes] = []
        for reply in operator.replies(request.id, timeout_s=30):
            assert isinstance(reply, SnapshotReply)
            frames += reply.frames
            if not reply.left:
                break
        return {status["instance"]: frame for frame in frames if (status := msgpack.unpackb(frame))}

    held = until(lambda: found if len(found := snapshot()) == 3 else None)
    assert held is not None
    assert held.keys() == {"atlas", "tiny", "from-tomorrow"}
    assert held["from-tomorrow"] == newer
    pub.close(linger=0)
    context.term()
    operator.close()


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [([], [0]), ([1], [1]), ([1 << 20], [1]), ([200_000] * 3, [1, 1, 1]), ([100_000] * 5, [2, 2, 1])],
)
def test_in_parts(sizes: list[int], parts: list[int]) -> None:
    """Replies of a size that passes, none of them empty but the only one, counted down to 0."""
    replies = in_parts("r", [b"x" * size for size in sizes])
    assert [len(reply.frames) for reply in replies] == parts
    assert [reply.left for reply in replies] == list(range(len(parts)))[::-1]


# -- who costs -----------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_stopped_subscriber(run_dir: RunDir, broker: Broker, stranger: Callable[..., subprocess.Popen[str]]) -> None:
    """It costs bounded memory, and the others nothing; it is cut in the end, and back when it wakes."""
    stopped = stranger(sys.executable, "-c", SUBSCRIBE, run_dir.feed, "status/")
    turn_until(broker, lambda: broker.subscribers == 1)
    os.kill(stopped.pid, signal.SIGSTOP)
    other = Subscriber(run_dir.feed, ["status/"])
    turn_until(broker, lambda: broker.subscribers == 2)

    def latest() -> int:
        message = other.receive(0.1)
        return message.seq if message is not None else -1

    rss_bytes = psutil.Process().memory_info().rss
    for seq in range(1, 20_001):
        broker.publish(*numbered(seq, reasons=("x" * 6000,)), keep=True)
        if seq % 500 == 0:
            until(lambda seq=seq: latest() == seq, every_s=0.0)  # type: ignore[misc]
    grown_mib = (psutil.Process().memory_info().rss - rss_bytes) / (1 << 20)
    assert grown_mib < 100  # all of them are 125 MiB; the 10,000 that are kept for it, 62
    broker.look_at_subscribers(1000.0)
    broker.look_at_subscribers(1000.0 + STALLED_S + 1)
    assert broker.all_counts()["subscribers_cut_stalled"] == 1
    broker.publish(*numbered(99_999), keep=True)
    until(lambda: latest() == 99_999)
    os.kill(stopped.pid, signal.SIGCONT)
    turn_until(broker, lambda: broker.subscribers == 2)
    other.close()


def test_a_greedy_subscriber(
    run_dir: RunDir, spawn: Callable[..., ServiceProcess], stranger: Callable[..., subprocess.Popen[str]]
) -> None:
    """40,000 random subscriptions: it is cut again and again, ATLAS's memory is bounded, and others are served."""
    atlas = spawn(*ATLAS)
    operator = OperatorLink(run_dir.operators)
    until(lambda: is_well(operator, "atlas"))
    rss_bytes = psutil.Process(atlas.pid).memory_info().rss
    assert line(stranger(sys.executable, "-c", GREEDY, run_dir.feed)) == "subscribed\n"

    def cuts() -> int:
        counted = re.search(rb'cause="subscribers_cut_greedy"} (\d+)', atlas.get("/metrics")[1])
        return int(counted[1]) if counted else 0

    until(lambda: cuts() >= 3)
    other = Subscriber(run_dir.feed, ["status/atlas/"])
    for _ in range(3):
        until(lambda: other.receive(0.1))
    assert "atlas" in fleet(operator)
    grown_mib = (psutil.Process(atlas.pid).memory_info().rss - rss_bytes) / (1 << 20)
    assert grown_mib < 60  # all 40,000 would be 80 and more
    other.close()
    operator.close()


def test_last_values_are_sent_in_portions(run_dir: RunDir, broker: Broker) -> None:
    """One who subscribes again and again to everything does not take the others' time; all values arrive."""
    for number in range(5000):
        broker.publish(*numbered(1, f"web-{number}"), keep=True)
    subscriber = Subscriber(run_dir.feed, ["status/"])
    heard: set[str] = set()
    portions = 0

    def all_heard() -> bool:
        nonlocal portions
        before = len(heard)
        while (message := subscriber.receive(0)) is not None:
            assert isinstance(message, DaemonStatus)
            heard.add(message.instance)
        portions += len(heard) > before
        return len(heard) == 5000

    turn_until(broker, all_heard)
    assert portions > 1
    subscriber.close()


@pytest.mark.parametrize("seed", range(3))
def test_messages_of_wrong_parts_tear_no_others_apart(run_dir: RunDir, broker: Broker, seed: int) -> None:
    """Whatever is sent in whatever number of parts, what others send comes whole and in its order."""
    choice = random.Random(seed)
    parts = [b"", b"x", b"status/web-1/", b"\x80", b"\xde\x00\x01", encode(STATUS), b"status/cdn-data-fabric/"]
    context = zmq.Context()
    honest, hostile = context.socket(zmq.PUB), context.socket(zmq.PUB)
    for pub in (honest, hostile):
        pub.connect(run_dir.telemetry)
    heard: list[tuple[bytes, bytes]] = []

    def is_heard(pub: zmq.Socket[bytes], *message: bytes) -> Callable[[], bool]:
        def asked() -> bool:
            pub.send_multipart(message)
            return message in broker.turn(0.01).telemetry

        return asked

    until(is_heard(honest, b"status/a/", b"\x80"), every_s=0.0)
    until(is_heard(hostile, b"status/b/", b"\x80"), every_s=0.0)
    for seq in range(1, 501):
        for _ in range(choice.randrange(4)):
            hostile.send_multipart(choice.choices(parts, k=choice.randrange(1, 6)))
        honest.send_multipart(numbered(seq, "honest"))

    def all_heard() -> bool:
        heard.extend(pair for pair in broker.turn(0.01).telemetry if pair[0] == b"status/honest/")
        return len(heard) >= 500

    until(all_heard, every_s=0.0)
    assert heard == [numbered(seq, "honest") for seq in range(1, 501)]
    assert broker.counts["wrong_parts"]
    context.destroy(linger=0)


def test_what_is_removed_has_no_last_value(run_dir: RunDir, broker: Broker) -> None:
    """A service that supervisord has no more is sent to no late subscriber, and is known again when it speaks."""
    fleet = Fleet()
    hearing = Hearing(fleet, Happened(None), lambda cause, source, error: pytest.fail(f"{cause} {source!r}: {error}"))

    def hear(message: Telemetry) -> list[str]:
        frames = [(topic_of(message).encode(), encode(message))]
        return [happening.kind for happening in hearing.hear(broker, frames, 0.0)]

    row = ProcessRow(name=STATUS.instance, state=ProcessState.RUNNING)
    table = NodeStatus(host=STATUS.host, incarnation=1, seq=1, pid=1, time_s=0.0, monotonic_s=0.0, processes=(row,))
    assert hear(STATUS) == ["appeared"]
    assert hear(table) == []
    newer = replace(STATUS, seq=STATUS.seq + 1)
    assert hear(newer) == []
    assert set(broker.last_frames()) == {encode(newer), encode(table)}
    gone = replace(table, seq=2, processes=())
    assert hear(gone) == ["removed"]
    assert broker.last_frames() == [encode(gone)]
    assert hear(newer) == ["appeared"]
    assert set(broker.last_frames()) == {encode(newer), encode(gone)}
    assert hear(replace(newer, seq=newer.seq + 1, phase=LifecyclePhase.STOPPED)) == ["phase"]
    assert hearing.tick(broker, FORGOTTEN_S + 1)[0].kind == "removed"
    assert broker.last_frames() == [encode(gone)]


def test_events_are_numbered_within_bounds() -> None:
    """Names that are used keep their count; one that was forgotten never goes back."""
    numbering = Numbering(most=2)
    assert [numbering.next(name) for name in "aababca"] == [1, 2, 1, 3, 2, 1, 4]
    assert [numbering.next("c"), numbering.next("b")] == [2, 4]


class Pair:
    """A connection's two ends, as ATLAS's libzmq and a subscriber have them."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)

    @property
    def fd(self) -> int:
        """Of our end."""
        return self.ours.fileno()

    def is_cut(self) -> bool:
        """Whether the other end sees that nothing more comes."""
        try:
            while self.theirs.recv(65536):
                pass
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Both ends."""
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection."""
    made = Pair()
    yield made
    made.close()


def test_who_takes_nothing_is_cut(pair: Pair) -> None:
    """Only after STALLED_S in which not a byte moved, though some waited; ATLAS's own absence does not count."""
    audience = Audience()
    assert audience.subscribed(pair.fd, b"", 0.0)
    audience.look(1000.0)  # nothing waits
    pair.ours.send(b"x" * 100)
    audience.look(1001.0)
    audience.look(1001.0 + STALLED_S)
    pair.ours.send(b"x")
    audience.look(1002.0 + STALLED_S)
    audience.restart_windows(500.0)
    audience.look(1502.0 + 2 * STALLED_S)
    assert audience.size == 1
    audience.look(1503.0 + 2 * STALLED_S)
    assert (audience.size, audience.counts["subscribers_cut_stalled"]) == (0, 1)
    assert pair.is_cut()


def test_one_subscription_too_many(pair: Pair) -> None:
    """A connection may have so many; those that it gives back do not count."""
    audience = Audience()
    for number in range(3 * PER_CONNECTION):
        assert audience.subscribed(pair.fd, b"%d" % number, 0.0)
        audience.unsubscribed(pair.fd, b"%d" % number)
    for number in range(PER_CONNECTION):
        assert audience.subscribed(pair.fd, b"%d" % number, 0.0)
    assert not pair.is_cut()
    assert not audience.subscribed(pair.fd, b"one more", 0.0)
    assert pair.is_cut()
    assert audience.size == 0


def test_a_descriptor_that_is_no_connection_any_more(tmp_path: Path) -> None:
    """libzmq closes connections on a thread of its own, also between two looks at one: that ends nothing here."""
    audience = Audience()
    with open(tmp_path / "another", "w") as file:
        assert audience.subscribed(file.fileno(), b"", 0.0)
        audience.look(1.0)
        assert audience.size == 1
        for _ in range(PER_CONNECTION):
            audience.subscribed(file.fileno(), b"", 2.0)
        assert audience.size == 0


def test_what_is_wanted(pair: Pair) -> None:
    """Exactly what begins with a subscription of somebody who is there, or everything where there are many."""
    audience = Audience()
    assert not audience.wants(b"status/a/")
    other = Pair()
    audience.subscribed(pair.fd, b"status/a", 0.0)
    audience.subscribed(other.fd, b"node/", 0.0)
    assert [audience.wants(topic) for topic in (b"status/ab/", b"node/h/", b"status/b/")] == [True, True, False]
    audience.unsubscribed(other.fd, b"status/a")  # which it never had
    assert audience.wants(b"status/ab/")
    other.close()
    audience.look(1.0)
    assert not audience.wants(b"node/h/")
    for number in range(20):
        audience.subscribed(pair.fd, b"%d" % number, 0.0)
    assert audience.wants(b"anything")
    audience.subscribed(10_000_000, b"", 0.0)  # gone before it was looked at
    assert audience.size == 1


# -- many at once ----------------------------------------------------------------------------------


def test_a_whole_fleet_connects_at_once(run_dir: RunDir, spawn: Callable[..., ServiceProcess]) -> None:
    """So many connections as this machine lets one process have, in one moment: all are heard, orders go on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(2000, hard // 4)
    atlas = spawn(*ATLAS)
    operator = OperatorLink(run_dir.operators)
    until(lambda: is_well(operator, "atlas"))
    storm = f"""
import resource, sys, time, zmq
from bus.codec import encode
from msgspec.structs import replace
from tests.bus.samples import STATUS
resource.setrlimit(resource.RLIMIT_NOFILE, ({hard}, {hard}))
context = zmq.Context()
context.set(zmq.MAX_SOCKETS, {many})
sockets = [context.socket(zmq.PUB) for _ in range({many})]
for socket in sockets:
    socket.connect({run_dir.telemetry!r})
for seq in range(1000):
    for number, socket in enumerate(sockets):
        name = f"web-{{number}}"
        socket.send_multipart([f"status/{{name}}/".encode(), encode(replace(STATUS, instance=name, seq=seq))])
    time.sleep(0.3)
"""
    spawn("-c", storm)

    def members() -> int:
        counted = re.search(rb"cdn_atlas_members (\d+)", atlas.get("/metrics")[1])
        return int(counted[1]) if counted else 0

    until(lambda: members() == many + 1, within_s=100)
    assert len(fleet(operator)) > many
    operator.close()


def test_orders_do_not_wait_behind_statuses(run_dir: RunDir, spawn: Callable[..., ServiceProcess]) -> None:
    """More statuses than ATLAS can take, and it still answers, with what it has heard meanwhile."""
    atlas = spawn(*ATLAS)
    operator = OperatorLink(run_dir.operators)
    until(lambda: is_well(operator, "atlas"))
    flood = f"""
import zmq
from bus.codec import encode
from tests.bus.samples import STATUS
socket = zmq.Context().socket(zmq.PUB)
socket.connect({run_dir.telemetry!r})
frame = encode(STATUS)
while True:
    socket.send_multipart([b"status/cdn-data-fabric/", frame])
"""
    spawn("-c", flood)

    def stale() -> int:
        counted = re.search(rb'cause="old"} (\d+)', atlas.get("/metrics")[1])
        return int(counted[1]) if counted else 0

    before = until(stale)
    for _ in range(20):
        assert "cdn-data-fabric" in fleet(operator)
    until(lambda: stale() > before + 1000)
    operator.close()


def test_a_publisher_sees_gaps(run_dir: RunDir, spawn: Callable[..., ServiceProcess]) -> None:
    """What was lost on the way is missing in the numbers, and nothing is given out twice or out of order."""
    spawn(*ATLAS)
    publisher, subscriber = Publisher(run_dir.telemetry), Subscriber(run_dir.feed, ["status/cdn-data-fabric/"])

    def heard() -> DaemonStatus | None:
        publisher.publish(replace(STATUS, seq=1))
        message = subscriber.receive(0.1)
        assert message is None or isinstance(message, DaemonStatus)
        return message

    until(heard)
    for seq in (2, 5, 3, 5, 6):
        publisher.publish(replace(STATUS, seq=seq))
    seqs: list[int] = []

    def last() -> bool:
        message = subscriber.receive(0.1)
        if isinstance(message, DaemonStatus) and message.seq > 1:
            seqs.append(message.seq)
        return bool(seqs) and seqs[-1] == 6

    until(last)
    assert seqs == [2, 5, 6]
    publisher.close()
    subscriber.close()
