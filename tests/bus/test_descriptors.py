"""A broker that runs short of file descriptors lives on, lets nobody else in, keeps who is there, and opens again."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from bus.endpoints import RunDir
from bus.messages import FleetRequest
from bus.operators import OperatorLink
from bus.publisher import Publisher
from tests.bus.samples import STATUS
from tests.support import ROOT, environment, until

LIMIT = 1024
BURST = 60
BROKER = f"""
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
from bus.broker import Broker
from bus.codec import encode
from bus.endpoints import RunDir
from bus.messages import FleetReply
broker = Broker(RunDir(Path(sys.argv[1])))
heard = 0
print("ready", flush=True)
while True:
    arrivals = broker.turn(0.02)
    heard += len(arrivals.telemetry)
    for routing_id, frame in arrivals.operators:
        counts = broker.all_counts() | {{"heard": heard}}
        broker.to_operator(routing_id, encode(FleetReply(id="r", services=(), counts=counts)))
    broker.rebind_missing()
"""


@pytest.fixture
def broker(run_dir: RunDir) -> Iterator[subprocess.Popen[str]]:
    """In a process of its own, with few descriptors."""
    process = subprocess.Popen(
        [sys.executable, "-c", BROKER, str(run_dir.path)],
        cwd=ROOT,
        env=environment(run_dir.path),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def counts(link: OperatorLink) -> dict[str, int]:
    """What the broker has counted."""
    link.request(FleetRequest(id="r"), timeout_s=30)
    reply = next(link.replies("r", timeout_s=30))
    told: dict[str, int] = reply.counts  # type: ignore[union-attr]
    return told


def connected_until_shut(endpoint: str, link: OperatorLink) -> list[socket.socket]:
    """Connections, in bursts, until none comes about; an operator who is there is answered after each burst."""
    path = endpoint.removeprefix("ipc://")
    made: list[socket.socket] = []
    while True:
        assert len(made) < LIMIT
        for _ in range(BURST):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            refusal = one.connect_ex(path)
            if refusal == 0:
                made.append(one)
                continue
            one.close()
            if refusal == errno.ENOENT:
                return made
        counts(link)


@pytest.fixture
def link(run_dir: RunDir, broker: subprocess.Popen[str]) -> Iterator[OperatorLink]:
    """An operator."""
    with contextlib.closing(OperatorLink(run_dir.operators)) as link:
        counts(link)
        yield link
        assert broker.poll() is None


def test_a_storm_of_connections(run_dir: RunDir, broker: subprocess.Popen[str], link: OperatorLink) -> None:
    """libzmq would abort the process; operators may come in still, and who is there stays."""
    with contextlib.closing(Publisher(run_dir.telemetry)) as publisher:
        until(publisher.has_new_subscriber)

        def is_heard() -> bool:
            before = counts(link)["heard"]
            publisher.publish(STATUS)
            return until(lambda: counts(link)["heard"] > before)

        assert is_heard()
        storm = connected_until_shut(run_dir.telemetry, link)
        assert counts(link)["endpoints_shut"] == 3
        assert psutil.Process(broker.pid).num_fds() <= LIMIT
        with contextlib.closing(OperatorLink(run_dir.operators)) as another:
            assert counts(another)
        assert is_heard()
        assert not publisher.has_new_subscriber()
        for one in storm:
            one.close()
        with contextlib.closing(Publisher(run_dir.telemetry)) as other:
            until(other.has_new_subscriber)


def test_a_storm_of_operators(run_dir: RunDir, link: OperatorLink) -> None:
    """They are not let in at the last, either, and are when there is room again."""
    for one in connected_until_shut(run_dir.operators, link):
        one.close()
    assert counts(link)["endpoints_shut"] == 4
    with contextlib.closing(OperatorLink(run_dir.operators)) as another:
        assert counts(another)
