"""Real sockets: the last value at subscription, commands both ways, strangers, thieves and noise."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Thread

import msgpack
import pytest
import zmq

from bus.broker import Arrivals, Broker, BusTaken
from bus.codec import Decoder, encode
from bus.commands import AgentLink
from bus.endpoints import RunDir
from bus.messages import Accepted, Command, FleetReply, FleetRequest, Hello, OperatorRequest, Restart, Telemetry
from bus.operators import AtlasSilent, OperatorLink
from bus.publisher import Publisher
from bus.subscriber import Subscriber
from tests.bus.samples import EVENT, STATUS, command
from tests.support import until


class Atlas:
    """A broker on a thread that forwards everything, and hands what else comes to ``seen``."""

    def __init__(self, run_dir: RunDir) -> None:
        self.seen = Arrivals()
        self.sends: list[Callable[[Broker], None]] = []
        self.rebound: list[str] = []
        self._stop = ThreadEvent()
        self._ready = ThreadEvent()
        self._thread = Thread(target=self._run, args=(run_dir,))
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self, run_dir: RunDir) -> None:
        broker = Broker(run_dir)
        self._ready.set()
        while not self._stop.is_set():
            arrivals = broker.turn(0.02)
            for topic, frame in arrivals.telemetry:
                broker.publish(topic, frame, keep=True)
            self.seen.telemetry += arrivals.telemetry
            self.seen.agents += arrivals.agents
            self.seen.operators += arrivals.operators
            while self.sends:
                self.sends.pop(0)(broker)
            broker.replay()
            self.rebound += broker.rebind_missing()
        broker.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def atlas(run_dir: RunDir) -> Iterator[Atlas]:
    """A broker that serves the run directory."""
    broker = Atlas(run_dir)
    yield broker
    broker.close()


@pytest.fixture
def publisher(run_dir: RunDir) -> Iterator[Publisher]:
    """A connected publisher."""
    link = Publisher(run_dir.telemetry)
    yield link
    link.close()


def received(subscriber: Subscriber) -> Callable[[], Telemetry | None]:
    """What until() can wait for."""
    return lambda: subscriber.receive(0.1)


def publish_until_seen(publisher: Publisher, atlas: Atlas, message: Telemetry) -> None:
    """PUB drops what it sends before the subscription has reached it, so say it until it is heard."""

    def heard() -> bool:
        publisher.publish(message)
        time.sleep(0.02)
        return bool(atlas.seen.telemetry)

    until(heard)


def test_last_value_at_subscription(run_dir: RunDir, atlas: Atlas, publisher: Publisher) -> None:
    """Who subscribes late has the last status at once, though nothing more is published."""
    publish_until_seen(publisher, atlas, STATUS)
    subscriber = Subscriber(run_dir.feed, ["status/cdn-data-fabric/"])
    assert until(received(subscriber)) == STATUS
    subscriber.close()


def test_prefix_is_exact(run_dir: RunDir, atlas: Atlas, publisher: Publisher) -> None:
    """Nobody gets another service's status for having a shorter name."""
    publish_until_seen(publisher, atlas, STATUS)
    other, own = Subscriber(run_dir.feed, ["status/cdn-data/"]), Subscriber(run_dir.feed, ["status/cdn-data-fabric/"])
    assert until(received(own)) == STATUS
    assert other.receive(0.2) is None
    other.close()
    own.close()


def test_a_stranger_subscribes(run_dir: RunDir, atlas: Atlas, publisher: Publisher) -> None:
    """Bare pyzmq and a plain msgpack decoder are enough: two parts, a topic and a map."""
    publish_until_seen(publisher, atlas, STATUS)
    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"status/")
    socket.connect(f"ipc://{run_dir.path}/feed.sock")
    assert socket.poll(10_000)
    topic, frame = socket.recv_multipart()
    status = msgpack.unpackb(frame)
    assert topic == b"status/cdn-data-fabric/"
    assert (status["seq"], status["incarnation"], status["health"]) == (7, 42, "degraded")
    socket.close(linger=0)
    context.term()


def test_commands_go_both_ways(run_dir: RunDir, atlas: Atlas) -> None:
    """An agent greets, is sent a command by its routing id, and answers."""
    link = AgentLink(run_dir.agents)
    hello = Hello(target="cdn-data-fabric", role="daemon", host="h", incarnation=42, pid=1)
    until(lambda: link.send(hello))
    routing_id, frame = until(lambda: atlas.seen.agents)[0]
    assert Decoder[Hello](Hello).decode(frame) == hello
    wanted = command(Restart())
    atlas.sends.append(lambda broker: broker.to_agent(routing_id, b"noise"))
    atlas.sends.append(lambda broker: broker.to_agent(routing_id, encode(wanted)))
    got: list[Command] = []

    def arrived() -> list[Command]:
        got.extend(link.receive())
        return got

    assert until(arrived) == [wanted]
    assert link.dropped == {"malformed": 1}
    assert link.send(Accepted(id="c1", incarnation=42))
    until(lambda: len(atlas.seen.agents) == 2)
    link.close()


def test_noise_does_not_hide_a_command(run_dir: RunDir, atlas: Atlas) -> None:
    """receive has nothing only when nothing is left, however much of what came was no command."""
    link = AgentLink(run_dir.agents)
    until(lambda: link.send(Accepted(id="c1", incarnation=1)))
    routing_id, _ = until(lambda: atlas.seen.agents)[0]
    wanted = command(Restart())
    frames = [b"noise", b"noise", encode(wanted)]

    def send(broker: Broker) -> None:
        for frame in frames:
            broker.to_agent(routing_id, frame)

    def taken_at_once() -> bool:
        atlas.sends.append(send)
        until(lambda: not atlas.sends)
        time.sleep(0.1)  # for all of it to come together; where it does not, that proves nothing
        first = link.receive(limit=1)
        while not (first or link.receive(limit=1)):
            pass
        return bool(first)

    until(taken_at_once)
    link.close()


def test_an_agent_does_not_queue_for_an_atlas_that_is_away(run_dir: RunDir) -> None:
    """send says False at once, and nothing stale comes out later."""
    link = AgentLink(run_dir.agents)
    assert link.send(Accepted(id="c1", incarnation=1)) is False
    link.close()


def test_operators(run_dir: RunDir, atlas: Atlas) -> None:
    """A request gets the reply with its id, and others are passed over."""
    link = OperatorLink(run_dir.operators)
    link.request(FleetRequest(id="mine"), timeout_s=10)
    routing_id, frame = until(lambda: atlas.seen.operators)[0]
    assert Decoder[OperatorRequest](OperatorRequest).decode(frame) == FleetRequest(id="mine")
    other, mine = (encode(FleetReply(id=id_, services=())) for id_ in ("other", "mine"))
    atlas.sends.append(lambda broker: broker.to_operator(routing_id, other))
    atlas.sends.append(lambda broker: broker.to_operator(routing_id, mine))
    assert next(link.replies("mine", timeout_s=10)) == FleetReply(id="mine", services=())
    link.close()


def test_a_silent_atlas_is_said_to_be(run_dir: RunDir) -> None:
    """Nobody listens: AtlasSilent, in the time given."""
    link = OperatorLink(run_dir.operators)
    with pytest.raises(AtlasSilent, match="does not listen"):
        link.request(FleetRequest(id="1"), timeout_s=0.05)
    link.close()


def test_an_atlas_that_does_not_answer(run_dir: RunDir, atlas: Atlas) -> None:
    """It takes the request and says nothing: AtlasSilent too."""
    link = OperatorLink(run_dir.operators)
    link.request(FleetRequest(id="1"), timeout_s=10)
    with pytest.raises(AtlasSilent, match=r"no answer from ATLAS within 0\.1 s"):
        next(link.replies("1", timeout_s=0.1))
    link.close()


def test_a_second_broker_refuses(run_dir: RunDir, atlas: Atlas) -> None:
    """It would have stolen the sockets."""
    with pytest.raises(BusTaken, match="another ATLAS"):
        Broker(run_dir)


def test_sockets_are_private(run_dir: RunDir, atlas: Atlas) -> None:
    """0600, in a directory that is 0700."""
    for name in ("telemetry.sock", "feed.sock", "agents.sock", "operators.sock"):
        assert os.stat(run_dir.path / name).st_mode & 0o777 == 0o600


def test_nothing_is_left_behind(run_dir: RunDir) -> None:
    """A broker that is closed leaves no socket."""
    Atlas(run_dir).close()
    assert not list(Path(run_dir.path).glob("*.sock"))


@pytest.mark.parametrize("name", ["feed.sock", "telemetry.sock", "agents.sock", "operators.sock"])
def test_an_unlinked_socket_is_bound_again(run_dir: RunDir, atlas: Atlas, name: str) -> None:
    """rm of a socket is found out and mended, and who comes then is served."""
    (run_dir.path / name).unlink()
    until(lambda: atlas.rebound == [f"ipc://{run_dir.path}/{name}"])
    publisher = Publisher(run_dir.telemetry)
    subscriber = Subscriber(run_dir.feed)
    publish_until_seen(publisher, atlas, EVENT)
    assert until(received(subscriber)) == EVENT
    link = AgentLink(run_dir.agents)
    until(lambda: link.send(Accepted(id="c1", incarnation=1)))
    until(lambda: atlas.seen.agents)
    for socket in (publisher, subscriber, link):
        socket.close()


def test_noise_reaches_nobody(run_dir: RunDir, atlas: Atlas, publisher: Publisher) -> None:
    """Frames too large, too many or too few cost their sender its connection at most."""
    context = zmq.Context()
    for endpoint, kind in ((run_dir.telemetry, zmq.PUB), (run_dir.agents, zmq.DEALER), (run_dir.operators, zmq.DEALER)):
        socket = context.socket(kind)
        socket.connect(endpoint)
        for parts in ([b"x"], [b"a", b"b", b"c"], [b"t", b"z" * (2 << 20)]):
            socket.send_multipart(parts)
        socket.close(linger=500)
    context.term()
    publish_until_seen(publisher, atlas, STATUS)
    subscriber = Subscriber(run_dir.feed, ["status/cdn-data-fabric/"])
    assert until(received(subscriber)) == STATUS
    subscriber.close()


def test_a_context_ends_though_signals_come(run_dir: RunDir) -> None:
    """An interval timer, such as supervisord has under the warden, leaves no thread of ZeroMQ's alive."""

    def zmq_threads() -> int:
        return sum("ZMQ" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())

    before = zmq_threads()
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        for _ in range(20):
            publisher, link = Publisher(run_dir.telemetry), AgentLink(run_dir.agents)
            publisher.publish(STATUS)
            publisher.close(linger_s=0.05)
            link.close(linger_s=0.05)
            assert zmq_threads() == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
