"""What the gateway costs, beside nginx and HAProxy where they are installed, and what it saves when a replica is ill.

    python -m benchmarks.gateway cost [--seconds 3] [--connections 1 32]
    python -m benchmarks.gateway fault [--rounds 2] [--per-s 100]

Cost: requests per second and latency through each, against the instance itself; one worker each, keep-alive both ways.

Fault: three replicas of cdn-data-fabric; for a while one of them takes 200 ms longer and answers every fifth request
with 500. Requests come at a fixed rate, whatever becomes of those before. Against round robin: the loop off.

Everything on this machine: load, gateway and instances share its cores, so the
figures compare the ways and promise nothing for another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from tests.gateway.support import Fleet, Process, a_fleet
from tests.support import free_port, short_dir, until

REQUEST = b"GET %b HTTP/1.1\r\nHost: bench\r\n\r\n"
ROUNDS = 3
FABRIC = "cdn-data-fabric"
CALM_S, ILL_S, AFTER_S = 5, 20, 10
WELL_S = 0.1
"""A second is well if no request of it failed, and 95 of 100 took less than this."""


class Caller(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered."""

    def __init__(self, path: bytes, latencies_s: list[float]) -> None:
        self._request = REQUEST % path
        self._latencies_s = latencies_s
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: begin."""
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self._asked_s = time.perf_counter()
        self.transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """asyncio: the answers have a length, and are short."""
        self._pending += data
        head, end, body = self._pending.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        assert head.startswith(b"HTTP/1.1 200"), self._pending
        self._latencies_s.append(time.perf_counter() - self._asked_s)
        self._pending = b""
        self._ask()


async def _load(port: int, path: bytes, connections: int, seconds: float) -> list[float]:
    loop, latencies_s = asyncio.get_running_loop(), list[float]()
    callers = [
        await loop.create_connection(lambda: Caller(path, latencies_s), "127.0.0.1", port) for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    for transport, _ in callers:
        transport.abort()
    return sorted(latencies_s)


NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
  uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e; keepalive_requests 1000000000;
  upstream echo {{ server 127.0.0.1:{echo}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://echo; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  http-reuse always
listen echo
  bind 127.0.0.1:{port}
  server echo 127.0.0.1:{echo}
"""


@contextmanager
def _foreign(program: str, conf: str, arguments: list[str], directory: Path, echo: int) -> Iterator[int]:
    """The program in front of the instance; the port that it listens on."""
    port, path = free_port(), directory / f"{program}.conf"
    path.write_text(conf.format(dir=directory, port=port, echo=echo))
    with subprocess.Popen([program, *arguments, str(path)], stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: _listens(port), what=f"{program} listens")
            yield port
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cost(seconds: float, counts: list[int]) -> None:
    """Measure and print what each way costs, the ways in turn in each round."""
    with ExitStack() as stack:
        path = stack.enter_context(short_dir())
        fleet = stack.enter_context(a_fleet(path))
        echo = stack.enter_context(Process(path, "tests.gateway.echo")).port()
        fleet.routed("echo")
        until(lambda: "echo" in fleet.bus.heard)
        ways = {"direct": (echo, b"/"), "gateway": (fleet.port, b"/echo/")}
        for program, conf, arguments in (("nginx", NGINX, ["-c"]), ("haproxy", HAPROXY, ["-db", "-f"])):
            if shutil.which(program):
                port = stack.enter_context(_foreign(program, conf, arguments, path, echo))
                ways[program] = (port, b"/")
        for connections in counts:
            rounds: dict[str, list[list[float]]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, (port, target) in ways.items():
                    rounds[name].append(uvloop.run(_load(port, target, connections, seconds)))
            direct_s = 0.0
            for name, runs in rounds.items():
                rate = statistics.median(len(run) / seconds for run in runs)
                p50_s = statistics.median(run[len(run) // 2] for run in runs)
                p99_s = statistics.median(run[len(run) * 99 // 100] for run in runs)
                direct_s = direct_s or p50_s
                added = f"  added {(p50_s - direct_s) * 1e3:6.3f} ms" if name != "direct" else ""
                times = f"p50 {p50_s * 1e3:7.3f} ms  p99 {p99_s * 1e3:7.3f} ms"
                print(f"{name:8} {connections:4} connections {rate:8.0f} requests/s  {times}{added}", flush=True)


async def _request(port: int, path: bytes) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(REQUEST % path)
        head = await reader.readuntil(b"\r\n\r\n")
        return head.startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def _arrivals(port: int, per_s: float, seconds: float, switch: Path) -> list[tuple[float, float, bool]]:
    """(when it was due, how long it took, whether it was answered well) of each request."""
    done: list[tuple[float, float, bool]] = []
    begun_s = time.perf_counter()

    async def one(due_s: float) -> None:
        try:
            is_good = await _request(port, b"/" + FABRIC.encode() + b"/sources")
        except (OSError, asyncio.IncompleteReadError):
            is_good = False
        done.append((due_s, time.perf_counter() - begun_s - due_s, is_good))

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(per_s * seconds)):
            due_s = number / per_s
            await asyncio.sleep(begun_s + due_s - time.perf_counter())
            if number == int(per_s * CALM_S):
                switch.touch()
            elif number == int(per_s * (CALM_S + ILL_S)):
                switch.unlink()
            tasks.create_task(one(due_s))
    return done


def _quantile(latencies_s: list[float], share: float) -> float:
    return sorted(latencies_s)[min(int(len(latencies_s) * share), len(latencies_s) - 1)]


def _bad_seconds(done: list[tuple[float, float, bool]]) -> list[int]:
    """Which seconds from the beginning of the fault to its end were not well."""
    bad = []
    for second in range(ILL_S):
        of = [one for one in done if CALM_S + second <= one[0] < CALM_S + second + 1]
        if not all(good for _, _, good in of) or _quantile([took_s for _, took_s, _ in of], 0.95) >= WELL_S:
            bad.append(second)
    return bad


def _fault_round(mode: str, per_s: float) -> None:
    with ExitStack() as stack:
        path = stack.enter_context(short_dir())
        fleet: Fleet = stack.enter_context(a_fleet(path, CDN_OODA=mode))
        names = [FABRIC, f"{FABRIC}-2", f"{FABRIC}-3"]
        for name in names:
            stack.enter_context(Process(path, "tests.gateway.faulty", CDN_INSTANCE=name)).port()
        until(lambda: set(names) <= fleet.bus.heard.keys(), what="all replicas are heard")
        until(lambda: fleet.metrics().get("gateway_targets") == 3, what="all replicas are routed to")
        switch = fleet.run_dir.state(names[1]) / "faulty"
        done = uvloop.run(_arrivals(fleet.port, per_s, CALM_S + ILL_S + AFTER_S, switch))
        spans = (("calm", 0, CALM_S), ("ill", CALM_S, CALM_S + ILL_S), ("after", CALM_S + ILL_S, 10**9))
        for what, begin_s, end_s in spans:
            of = [one for one in done if begin_s <= one[0] < end_s]
            took_s = [one[1] for one in of]
            wrong = sum(not good for _, _, good in of)
            p50, p95, p99 = (_quantile(took_s, share) * 1e3 for share in (0.5, 0.95, 0.99))
            times = f"p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f} ms"
            print(f"{mode:4} {what:6} {len(of):6} requests  {times}  errors {wrong:4} ({wrong / len(of):.2%})")
        bad = _bad_seconds(done)
        first = next((str(second) for second in range(ILL_S) if second not in bad), "none")
        print(f"{mode:4} first second that was well: {first}; not well: {len(bad)} of {ILL_S}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    costs = what.add_parser("cost")
    costs.add_argument("--seconds", type=float, default=3.0)
    costs.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    faults = what.add_parser("fault")
    faults.add_argument("--rounds", type=int, default=2)
    faults.add_argument("--per-s", type=float, default=100.0)
    options = parser.parse_args()
    if options.what == "cost":
        cost(options.seconds, options.connections)
        return
    for _ in range(options.rounds):
        for mode in ("off", "on"):
            _fault_round(mode, options.per_s)


if __name__ == "__main__":
    main()
