"""A broker that runs short of file descriptors lives on, tells nobody else to come in, and opens again."""

from __future__ import annotations

import subprocess
import sys

import psutil
import zmq

from bus.endpoints import RunDir
from bus.messages import FleetRequest
from bus.operators import OperatorLink
from bus.publisher import Publisher
from tests.bus.samples import STATUS
from tests.support import ROOT, environment, until

LIMIT = 200
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


def test_more_connections_than_descriptors(run_dir: RunDir) -> None:
    """libzmq would abort the process; operators are answered throughout."""
    env = environment(run_dir.path)
    process = subprocess.Popen(
        [sys.executable, "-c", BROKER, str(run_dir.path)], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 3 * LIMIT)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

        def counts() -> dict[str, int]:
            assert process.poll() is None
            link = OperatorLink(run_dir.operators)
            link.request(FleetRequest(id="r"), timeout_s=30)
            reply = next(link.replies("r", timeout_s=30))
            link.close()
            told: dict[str, int] = reply.counts  # type: ignore[union-attr]
            return told

        storm: list[zmq.Socket[bytes]] = []
        while counts().get("endpoints_shut", 0) < 3:
            assert len(storm) < LIMIT
            for _ in range(5):  # more at once may be taken in by libzmq before anybody can look
                storm.append(context.socket(zmq.PUB))
                storm[-1].setsockopt(zmq.LINGER, 0)
                storm[-1].connect(run_dir.telemetry)
        for _ in range(30):  # the listener ends in its own time, and takes these in, or not
            storm.append(context.socket(zmq.PUB))
            storm[-1].setsockopt(zmq.LINGER, 0)
            storm[-1].connect(run_dir.telemetry)
        assert psutil.Process(process.pid).num_fds() <= LIMIT
        assert counts()["heard"] == 0
        for socket in storm:
            socket.close()
        publisher = Publisher(run_dir.telemetry)

        def heard() -> bool:
            publisher.publish(STATUS)
            return counts()["heard"] > 0

        until(heard)
        publisher.close()
    finally:
        context.destroy(linger=0)
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
