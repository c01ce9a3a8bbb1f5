"""How many services one ATLAS can hear: simulated daemons over real sockets, ATLAS as its own process.

    python -m benchmarks.atlas_scale [--services 100,1000,10000] [--seconds 10] [--hz 10] [--per-connection 100]

Two publishing processes send honest statuses (460 bytes or so, every service its own), evenly over time. By default
100 services share a connection: with one each, 10,000 connections cost publishers and libzmq's I/O thread a system call
for every status, which on a small machine measures the kernel; ``--per-connection 1`` measures that.

Three figures for each number of services: what ATLAS uses at the offered load; how long a status takes from publish to
a subscriber of the feed; and the capacity: statuses that ATLAS takes for each second of processor time (all of its
threads) when it is sent more than it can take, as a ratio to a bare loop that receives and decodes the same, in the
same run: once as anybody would write it (recv_multipart), and once as lean as it can be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zmq

from benchmarks.daemon_cost import ROOT
from benchmarks.usage import cpu_s, rss_mib
from bus.codec import Decoder, encode
from bus.endpoints import RunDir, prepare
from bus.ids import new_id
from bus.messages import (
    DaemonStatus,
    FleetReply,
    FleetRequest,
    HealthStatus,
    LifecyclePhase,
    ServiceMetrics,
    Telemetry,
    Vitals,
)
from bus.operators import OperatorLink
from services.atlas.room import raise_fd_limit

SLOT_S = 0.002
PUBLISHERS = 2
FLOOD_PER_S = 400_000
WATCHED = 100
_SEQ = b"\xa3seq\xce"  # msgpack: the key, then a 32-bit integer
_MONOTONIC = b"\xabmonotonic_s\xcb"  # the key, then a double


def status(name: str) -> DaemonStatus:
    """Of a service that serves and is well; its seq begins where it takes four bytes."""
    return DaemonStatus(
        service=name,
        instance=name,
        host="host-1",
        incarnation=1,
        seq=1 << 16,
        pid=4242,
        time_s=time.time(),
        monotonic_s=time.monotonic(),
        uptime_s=1.5,
        phase=LifecyclePhase.SERVING,
        health=HealthStatus.HEALTHY,
        address="http://127.0.0.1:18100",
        metrics=ServiceMetrics(
            vitals=Vitals(
                rss_bytes=40_000_000, cpu_cores=0.01, fds=20, threads=5, children=0, loop_lag_s=0.001, tick_late_s=0.002
            ),
            requests=1000,
        ),
    )


def publish(endpoint: str, first: int, services: int, per_connection: int) -> None:
    """Publish for these services at the rate (statuses a second) that stdin names, until stdin ends."""
    raise_fd_limit()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, services // per_connection + 10)
    sends: list[Callable[..., object]] = []
    topics, frames, seq_at, time_at = [], [], [], []
    socket: zmq.Socket[bytes]
    for number in range(services):
        if number % per_connection == 0:
            socket = context.socket(zmq.PUB)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 100)
            socket.connect(endpoint)
        name = f"service-{first + number}"
        frame = bytearray(encode(status(name)))
        sends.append(socket.send)
        topics.append(f"status/{name}/".encode())
        frames.append(frame)
        seq_at.append(frame.index(_SEQ) + len(_SEQ))
        time_at.append(frame.index(_MONOTONIC) + len(_MONOTONIC))
    print("ready", flush=True)
    per_s, place, seq, sent = 0.0, 0, 1 << 16, 0
    began_s = time.monotonic()
    more, now = int(zmq.SNDMORE), int(zmq.DONTWAIT)
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], SLOT_S)
        if ready:
            line = sys.stdin.readline()
            if not line:
                return
            per_s, sent, began_s = float(line), 0, time.monotonic()
        owed = min(int((time.monotonic() - began_s) * per_s) - sent, services)
        for _ in range(owed):
            if place == services:
                place, seq = 0, seq + 1
            frame = frames[place]
            struct.pack_into(">I", frame, seq_at[place], seq)
            struct.pack_into(">d", frame, time_at[place], time.monotonic())
            sends[place](topics[place], more)
            sends[place](bytes(frame), now)
            place += 1
        sent += owed


def bare(endpoint: str, lean: bool) -> None:
    """Receive and decode; print how many came for every line on stdin."""
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 1000)
    socket.setsockopt(zmq.SUBSCRIBE, b"")
    socket.bind(endpoint)
    decode, receive, now = Decoder[Telemetry](Telemetry).decode, socket.recv, int(zmq.DONTWAIT)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin, zmq.POLLIN)
    count = 0
    print("ready", flush=True)
    while True:
        ready = dict(poller.poll())
        if sys.stdin.fileno() in ready:
            if not sys.stdin.readline():
                return
            print(count, flush=True)
        try:
            for _ in range(2000):
                if lean:
                    receive(now)
                    frame = receive(now)
                else:
                    _, frame = socket.recv_multipart(zmq.DONTWAIT)
                decode(frame)
                count += 1
        except zmq.Again:
            continue


def watch(endpoint: str, topics: list[str], seconds: float) -> None:
    """Subscribe to these; print how late each status came, in seconds, as JSON."""
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
    socket.connect(endpoint)
    decoder: Decoder[DaemonStatus] = Decoder(DaemonStatus)
    late_s: list[float] = []
    began_s = time.monotonic()
    while time.monotonic() < began_s + seconds:
        if socket.poll(100):
            frame = socket.recv_multipart()[1]
            now_s = time.monotonic()
            status_s = decoder.decode(frame).monotonic_s
            if status_s > began_s + 0.5:  # not what was sent for having subscribed
                late_s.append(now_s - status_s)
    print(json.dumps(late_s), flush=True)


class Helper:
    """This file as another process, that answers a line with a line."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.atlas_scale", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """Write a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Read a line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"a helper ended with {self.process.wait()}")
        return line

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def atlas(run_dir: RunDir) -> Iterator[tuple[int, str]]:
    """(pid, base URL) of a real ATLAS."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CDN_", "NOTIFY_", "SUPERVISOR_"))}
    env |= {"CDN_RUN_DIR": str(run_dir.path), "CDN_PORT": "0", "PYTHONUNBUFFERED": "1"}
    log = run_dir.path / "atlas.log"
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "services.atlas"], cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        deadline_s = time.monotonic() + 30
        while not (found := re.search(r"listens on 127\.0\.0\.1 port (\d+)\n(?s:.*)serving\n", log.read_text())):
            if child.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"ATLAS does not serve:\n{log.read_text()}")
            time.sleep(0.05)
        yield child.pid, f"http://127.0.0.1:{found[1]}"
    finally:
        child.terminate()
        child.wait()


def counts(url: str) -> dict[str, int]:
    """ATLAS's counters."""
    with urllib.request.urlopen(f"{url}/api/v1/fleet", timeout=60) as answer:
        result: dict[str, int] = json.loads(answer.read())["counts"]
        return result


def timed_ms(what: Callable[[], object], times: int = 5) -> float:
    """Median of how long it takes."""
    taken = []
    for _ in range(times):
        began_s = time.monotonic()
        what()
        taken.append(1000 * (time.monotonic() - began_s))
    return statistics.median(taken)


def at_share(ordered: list[float], share: float) -> float:
    """The value that this share of them does not exceed; NaN if there are none, as they all came too late."""
    return ordered[int(len(ordered) * share)] if ordered else float("nan")


def get(url: str) -> None:
    """Fetch and drop."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()


def ask(link: OperatorLink, services: int) -> None:
    """A FleetRequest and its reply."""
    request = FleetRequest(id=new_id())
    link.request(request, timeout_s=60)
    reply = next(link.replies(request.id, timeout_s=60))
    assert isinstance(reply, FleetReply), reply
    assert len(reply.services) > services


def wait_for(services: int, url: str) -> None:
    """Until ATLAS has heard them all."""
    deadline_s = time.monotonic() + 120
    while (heard := counts(url)["members"]) <= services:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"ATLAS has heard {heard} of {services} services in 120 s")
        time.sleep(0.2)


def measure(services: int, seconds: float, hz: float, per_connection: int) -> dict[str, float]:
    """All figures for this many services."""
    row: dict[str, float] = {"services": services}
    with ExitStack() as stack:
        run_dir = prepare(RunDir(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cdn-")))))
        pid, url = stack.enter_context(atlas(run_dir))
        time.sleep(1)
        empty_mib = rss_mib(pid)
        bare_endpoint = f"ipc://{run_dir.path}/bare.sock"
        each = services // PUBLISHERS

        def publishers(within: ExitStack, endpoint: str) -> list[Helper]:
            started = [
                within.enter_context(Helper("--publish", endpoint, str(n * each), str(each), str(per_connection)))
                for n in range(PUBLISHERS)
            ]
            for publisher in started:
                publisher.hear()
            return started

        def at(rate: float, started: list[Helper]) -> None:
            for publisher in started:
                publisher.tell(str(rate / PUBLISHERS))

        began_s = time.monotonic()
        senders = publishers(stack, run_dir.telemetry)
        at(services, senders)
        wait_for(each * PUBLISHERS, url)
        row["all_heard_s"] = time.monotonic() - began_s
        time.sleep(3)
        row["kib_per_service"] = 1024 * (rss_mib(pid) - empty_mib) / services
        for rate_hz in dict.fromkeys((1.0, hz)):
            at(services * rate_hz, senders)
            time.sleep(2)
            before = counts(url)["telemetry"]  # not within what is measured: it makes a view of every service
            before_cpu_s, began_s = cpu_s(pid), time.monotonic()
            time.sleep(seconds)
            used_s, took_s = cpu_s(pid) - before_cpu_s, time.monotonic() - began_s
            row[f"cpu_percent_at_{rate_hz:g}_hz"] = 100 * used_s / took_s
            row[f"statuses_per_s_at_{rate_hz:g}_hz"] = (counts(url)["telemetry"] - before) / took_s
        step = max(1, each * PUBLISHERS // WATCHED)
        names = [f"status/service-{number}/" for number in range(0, each * PUBLISHERS, step)]
        for what, topics in (("some", names), ("all", ["status/"])):
            with Helper("--watch", run_dir.feed, ",".join(topics), str(min(seconds, 5.0))) as watcher:
                before_cpu_s = cpu_s(pid)
                late_s = sorted(json.loads(watcher.hear()))
                row[f"watched_{what}_cpu_percent"] = 100 * (cpu_s(pid) - before_cpu_s) / min(seconds, 5.0)
                row[f"feed_{what}_p50_ms"] = 1000 * at_share(late_s, 0.50)
                row[f"feed_{what}_p99_ms"] = 1000 * at_share(late_s, 0.99)
        link = OperatorLink(run_dir.operators)
        row["fleet_request_under_load_ms"] = timed_ms(lambda: ask(link, each * PUBLISHERS))
        at(services, senders)
        row["fleet_request_ms"] = timed_ms(lambda: ask(link, each * PUBLISHERS))
        link.close()
        row["http_fleet_ms"] = timed_ms(lambda: get(f"{url}/api/v1/fleet"))
        row["scrape_ms"] = timed_ms(lambda: get(f"{url}/metrics"))
        environment = {**os.environ, "CDN_RUN_DIR": str(run_dir.path), "COLUMNS": "120"}
        row["cdnctl_status_ms"] = timed_ms(
            lambda: subprocess.run(
                [Path(sys.executable).with_name("cdnctl"), "status"], env=environment, capture_output=True, check=False
            )
        )

        def capacity(of_pid: int, count: Callable[[], int]) -> float:
            time.sleep(1)
            before = count()
            before_s = cpu_s(of_pid)
            time.sleep(seconds)
            used_s = cpu_s(of_pid) - before_s
            return (count() - before) / used_s

        at(FLOOD_PER_S, senders)
        ours = capacity(pid, lambda: counts(url)["telemetry"])
        at(0, senders)
        row["statuses_per_cpu_s"] = ours
        for name in ("multipart", "lean"):
            with ExitStack() as within:
                loop = within.enter_context(Helper("--bare", bare_endpoint, name))
                loop.hear()
                senders_to_it = publishers(within, bare_endpoint)

                def count(loop: Helper = loop) -> int:
                    loop.tell("")
                    return int(loop.hear())

                at(FLOOD_PER_S, senders_to_it)
                row[f"bare_{name}_per_cpu_s"] = capacity(loop.process.pid, count)
                row[f"ratio_to_{name}"] = ours / row[f"bare_{name}_per_cpu_s"]
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", default="100,1000,10000")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--hz", type=float, default=10.0)
    parser.add_argument("--per-connection", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--watch", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        endpoint, first, services, per_connection = arguments.publish
        publish(endpoint, int(first), int(services), int(per_connection))
    elif arguments.bare:
        bare(arguments.bare[0], arguments.bare[1] == "lean")
    elif arguments.watch:
        endpoint, topics, seconds = arguments.watch
        watch(endpoint, topics.split(","), float(seconds))
    else:
        rows = []
        for services in map(int, arguments.services.split(",")):
            print(f"{services} services …", file=sys.stderr)
            rows.append(
                measure(services, arguments.seconds, arguments.hz, min(arguments.per_connection, services // 2))
            )
        if arguments.json:
            print(json.dumps(rows, indent=2))
            return
        for key in rows[0]:
            print(f"{key:32}" + "".join(f"{row[key]:14,.2f}" for row in rows))


if __name__ == "__main__":
    main()
