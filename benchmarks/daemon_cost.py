"""What the embedded daemon costs: processor, memory and start, against the same server without it, in one run.

And what it is for: how soon a service that has taken too much memory is replaced.

    python -m benchmarks.daemon_cost [--seconds 20] [--processes 5] [--fleet 50] [--runs 5] [--circus PATH] [--json]

Processor time is what the kernel accounts to every thread (schedstat, in nanoseconds), over the same seconds for all
kinds at once. Run it on an idle machine: the kinds run side by side, so whatever disturbs one disturbs all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.usage import cpu_s, rss_mib, shares_mib

BARE = """
import asyncio, os, sys, socket, threading, time
import uvicorn, uvloop
sys.path.insert(0, {root!r})
from benchmarks.daemon_cost import app
KIND = {kind!r}
async def serve():
    sock = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app, lifespan="auto", log_config=None, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    config.load(); server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[sock])
    print(sock.getsockname()[1], flush=True)
    while True:
        await server.on_tick(0)
        await asyncio.sleep(1)
def wake():
    due = time.monotonic()
    while True:
        due += 0.1
        time.sleep(max(0, due - time.monotonic()))
if KIND == "waking":
    threading.Thread(target=wake, daemon=True).start()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(serve())
"""

DAEMON = """
import sys
sys.path.insert(0, {root!r})
from benchmarks.daemon_cost import app, busy, watch_ticks
from cdn_daemon import Band, Limits, MiB, Service, run
service = Service("cost", app=app, port=0, limits=Limits(rss_bytes=Band(soft=512 * MiB, hard=768 * MiB, for_s=10)))
if {kind!r} != "daemon":
    service.metrics(watch_ticks())
if {kind!r} == "busy":
    import threading
    threading.Thread(target=busy, daemon=True).start()
run(service)
"""

GREEDY = """
import os, sys
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from cdn_daemon import Band, Limits, MiB, Service, run

TAKEN = []

async def take(request):
    TAKEN.append(bytearray(b"x") * (160 * MiB))
    return PlainTextResponse("taken")

async def home(request):
    return PlainTextResponse(str(os.getpid()))

app = Starlette(routes=[Route("/", home), Route("/take", take)])
if __name__ == "__main__":
    limits = Limits(rss_bytes=Band(soft=150 * MiB, hard=180 * MiB))
    run(Service("greedy", app=app, port=int(sys.argv[1]), limits=limits))
"""

WHAT = ("late", "body")
WARM_UP_S = 3.0
"""What is done once is not counted."""
WATCHDOG_S = 0.5
"""As our warden has it by default: a daemon says five times a second that it lives."""
NOTIFY = "told"
SAMPLES_HZ = 5
"""How often a daemon reads memory and what else may run away; see cdn_daemon/guard.py."""
ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "server": "the server alone",
    "waking": "and a thread that wakes ten times a second, doing nothing",
    "daemon": "the server with the embedded daemon and a memory limit",
}


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    """Says hello."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})


def watch_ticks() -> Callable[[], dict[str, float]]:
    """What tells percentiles of all ticks of this process's daemon since it has warmed up, in ms."""
    from cdn_daemon import guard, vitals

    made: list[Any] = []

    class Kept(vitals.TickTimes):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    guard.TickTimes = Kept  # type: ignore[attr-defined]
    since_s = time.monotonic() + WARM_UP_S
    warmed_up = False

    def ticks() -> dict[str, float]:
        nonlocal warmed_up
        if time.monotonic() < since_s:
            return {}
        if not warmed_up:
            warmed_up = True
            made[0]._ticks.clear()
            return {}
        return {
            f"{what}_p{part}_ms": 1000 * value
            for part in (50, 95, 99)
            for what, value in zip(WHAT, made[0].percentile(part / 100), strict=True)
        }

    return ticks


def busy() -> None:
    """Never gives the interpreter away but when it is taken."""
    while True:
        sum(range(1000))


@contextmanager
def watched(run_dir: Path) -> Iterator[None]:
    """Somebody who is told by all daemons that they live, as our warden is, and does nothing with it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(run_dir / NOTIFY))

        def listen() -> None:
            while told.recv(4096) != b"enough":
                continue

        listener = Thread(target=listen)
        listener.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"enough", str(run_dir / NOTIFY))
            listener.join()


@contextmanager
def process(kind: str, run_dir: Path, name: str) -> Iterator[tuple[int, float]]:
    """(pid, seconds from its spawning until it listens) of one process of that kind."""
    source = BARE if kind in ("server", "waking") else DAEMON
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CDN_", "NOTIFY_", "SUPERVISOR_"))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # the libraries are compiled, so we must be
    env |= {"CDN_RUN_DIR": str(run_dir), "CDN_INSTANCE": name, "PYTHONUNBUFFERED": "1"}
    if (run_dir / NOTIFY).exists():
        env |= {"NOTIFY_SOCKET": str(run_dir / NOTIFY), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
    if kind == "atlas":
        arguments = ["-m", "services.atlas"]
        env["CDN_PORT"] = "0"
    else:
        arguments = ["-c", source.format(root=str(ROOT), kind=kind)]
    began_s = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:
            if kind in ("server", "waking") or "listens on" in line:
                break
        else:
            raise RuntimeError(f"{kind} ended with {child.wait()}")
        yield child.pid, time.monotonic() - began_s
    finally:
        child.kill()
        child.wait()


def cost_beside_the_server(processes: int, seconds: float, run_dir: Path) -> dict[str, dict[str, float]]:
    """Per kind: processor in % of a core, memory, start; medians over the processes."""
    with ExitStack() as stack:
        alive: dict[str, list[tuple[int, float]]] = {kind: [] for kind in KINDS}
        for number in range(processes):
            for kind in KINDS:  # taking turns, so that none has the quiet moments for itself
                alive[kind].append(stack.enter_context(process(kind, run_dir, f"{kind}-{number}")))
        time.sleep(WARM_UP_S)
        pids = {kind: [pid for pid, _ in started] for kind, started in alive.items()}
        before = {pid: cpu_s(pid) for each in pids.values() for pid in each}
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        after = {pid: cpu_s(pid) for pid in before}
        shares = {pid: shares_mib(pid) for pid in before}
        return {
            kind: {
                "cpu_percent": statistics.median(100 * (after[p] - before[p]) / took_s for p in each),
                "rss_mib": statistics.median(rss_mib(p) for p in each),
                **{share: statistics.median(shares[p][share] for p in each) for share in ("pss_mib", "private_mib")},
                "start_s": statistics.median(start_s for _, start_s in alive[kind]),
            }
            for kind, each in pids.items()
        }


def fleet_cost(size: int, seconds: float, run_dir: Path) -> dict[str, float]:
    """Of so many daemons and ATLAS together, in % of a core, the servers' own cost taken off by ``main``."""
    with ExitStack() as stack:
        atlas, _ = stack.enter_context(process("atlas", run_dir, "atlas"))
        pids = [stack.enter_context(process("daemon", run_dir, f"fleet-{n}"))[0] for n in range(size)]
        time.sleep(WARM_UP_S)
        before = {pid: cpu_s(pid) for pid in (atlas, *pids)}
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        used = {pid: 100 * (cpu_s(pid) - before[pid]) / took_s for pid in before}
        return {"atlas_percent": used[atlas], "services_percent": sum(used[pid] for pid in pids)}


def tick_times(kind: str, seconds: float, run_dir: Path) -> dict[str, float]:
    """Percentiles of a daemon's lateness and tick length in ms, over the last minute of it."""
    from bus.endpoints import RunDir
    from bus.messages import DaemonStatus
    from bus.subscriber import Subscriber

    with process("atlas", run_dir, "atlas"), process(kind, run_dir, kind):
        subscriber = Subscriber(RunDir(run_dir).feed, [f"status/{kind}/"])
        deadline_s = time.monotonic() + WARM_UP_S + seconds
        last: dict[str, float] = {}
        while time.monotonic() < deadline_s:
            message = subscriber.receive(0.5)
            if isinstance(message, DaemonStatus) and message.metrics.values:
                vitals = message.metrics.vitals
                told = {"vitals_late_ms": vitals.tick_late_s, "vitals_body_ms": vitals.tick_body_s}
                last = message.metrics.values | {name: 1000 * (value or 0.0) for name, value in told.items()}
        subscriber.close()
    if not last:
        raise RuntimeError(f"{kind} has told nothing within {seconds} s")
    return last


def over_its_limit(runs: int) -> dict[str, float]:
    """From when a service has taken more than its hard limit until its replacement answers; and its bare start."""
    from benchmarks.tiny import time_until_answering
    from tests.support import Supervisord, environment, free_port, short_dir, until

    def asked(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    port = free_port()
    with short_dir() as directory:
        (directory / "greedy.py").write_text(GREEDY)
        command = [sys.executable, str(directory / "greedy.py"), str(port)]
        seconds = []
        with Supervisord(directory, {"greedy": {"command": " ".join(command)}}):
            for _ in range(runs):
                pid = until(lambda: asked("/"))
                time.sleep(2)  # it has settled, as far as the daemon is concerned
                while not asked("/take"):
                    continue
                since_s = time.perf_counter()
                until(lambda pid=pid: asked("/") not in ("", pid), every_s=0.001)  # type: ignore[misc]
                seconds.append(time.perf_counter() - since_s)
        bare = []
        for _ in range(runs):
            since_s = time.perf_counter()
            alone = subprocess.Popen(command, env=environment(directory), cwd=ROOT, stderr=subprocess.DEVNULL)
            bare.append(time_until_answering(port, since_s))
            alone.kill()
            alone.wait()
    return {"replaced_s": statistics.median(seconds), "slowest_s": max(seconds), "start_s": statistics.median(bare)}


CIRCUS = """[circus]
check_delay = 1
endpoint = ipc://{dir}/circus.endpoint
pubsub_endpoint = ipc://{dir}/circus.pubsub
stats_endpoint = ipc://{dir}/circus.stats
statsd = True
{watchers}
"""


def circus_cost(circusd: str, size: int, seconds: float, directory: Path) -> dict[str, float]:
    """circusd with circusd-stats at 1 Hz over so many sleeping processes."""
    watchers = "\n".join(f"[watcher:w{n}]\ncmd = sleep 3600\nnumprocesses = 1" for n in range(size))
    (directory / "circus.ini").write_text(CIRCUS.format(dir=directory, watchers=watchers))
    env = os.environ | {"PATH": os.pathsep.join([str(Path(circusd).parent), os.environ["PATH"]])}
    daemon = subprocess.Popen(
        [circusd, str(directory / "circus.ini")], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(8)
        pids = [daemon.pid, *_children_like(daemon.pid, "circus")]
        before = {pid: cpu_s(pid) for pid in pids}
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        return {
            "percent": sum(100 * (cpu_s(pid) - before[pid]) / took_s for pid in pids),
            "processes": float(len(pids)),
        }
    finally:
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _children_like(pid: int, word: str) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if word in Path(f"/proc/{child}/cmdline").read_text()]


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, object]:
    """All of it."""
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="cdn-") as name, watched(Path(name)):
        run_dir = Path(name)
        say(f"{arguments.processes} processes of each kind, {arguments.seconds:g} s …")
        with process("atlas", run_dir, "atlas"):  # as a fleet has one; alone, a daemon tries to reach it twice a second
            results["kinds"] = cost_beside_the_server(arguments.processes, arguments.seconds, run_dir)
        say("ticks of an idle daemon, and beside a busy thread …")
        results["idle_ticks"] = tick_times("idle", arguments.seconds, run_dir)
        results["busy_ticks"] = tick_times("busy", arguments.seconds, run_dir)
        if arguments.fleet:
            say(f"{arguments.fleet} daemons and ATLAS …")
            results["fleet"] = fleet_cost(arguments.fleet, arguments.seconds, run_dir)
            circusd = arguments.circus or shutil.which("circusd")
            if circusd:
                say("circus with its statistics over as many …")
                results["circus"] = circus_cost(circusd, arguments.fleet, arguments.seconds, run_dir)
        if arguments.runs:
            say(f"over a memory limit, {arguments.runs} times …")
            results["limit"] = over_its_limit(arguments.runs)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--fleet", type=int, default=50, help="0: skip")
    parser.add_argument("--runs", type=int, default=5, help="over a memory limit; 0: skip")
    parser.add_argument("--circus", metavar="PATH", help="circusd, if it is not on PATH")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments, lambda text: print(text, file=sys.stderr))
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    kinds: dict[str, dict[str, float]] = results["kinds"]  # type: ignore[assignment]
    print(f"{'':58} {'CPU %':>7} {'RSS MiB':>8} {'PSS MiB':>8} {'private':>8} {'start s':>8}")
    for kind, text in KINDS.items():
        row = kinds[kind]
        memory = " ".join(f"{row[f'{what}_mib']:8.1f}" for what in ("rss", "pss", "private"))
        print(f"{text:58} {row['cpu_percent']:7.3f} {memory} {row['start_s']:8.3f}")
    server, daemon = kinds["server"], kinds["daemon"]
    print(
        f"the daemon adds {daemon['cpu_percent'] - server['cpu_percent']:.3f} % of a core, "
        f"{daemon['rss_mib'] - server['rss_mib']:.1f} MiB RSS, of which "
        f"{daemon['private_mib'] - server['private_mib']:.1f} MiB are its own and the rest libraries' shared pages, "
        f"{100 * (daemon['start_s'] / server['start_s'] - 1):.0f} % to the start"
    )
    for name, what in (("idle_ticks", "idle"), ("busy_ticks", "beside a busy thread")):
        ticks: dict[str, float] = results[name]  # type: ignore[assignment]
        shown = ", ".join(f"{kind} {ticks[f'{kind}_p95_ms']:.2f} / {ticks[f'{kind}_p99_ms']:.2f}" for kind in WHAT)
        told = " / ".join(f"{ticks[f'vitals_{kind}_ms']:.2f}" for kind in WHAT)
        print(f"ticks {what}, p95 / p99 in ms: {shown}; p99 in its vitals, of the last minute: {told}")
    if arguments.fleet:
        fleet: dict[str, float] = results["fleet"]  # type: ignore[assignment]
        own = fleet["services_percent"] - arguments.fleet * server["cpu_percent"]
        together = own + fleet["atlas_percent"]
        print(
            f"{arguments.fleet} daemons: {own:.1f} % of a core over their servers, "
            f"ATLAS {fleet['atlas_percent']:.1f} %; "
            f"a sample ({SAMPLES_HZ} a second each): {together / arguments.fleet / SAMPLES_HZ * 10:.3f} ms"
        )
    if "circus" in results:
        circus: float = results["circus"]["percent"]  # type: ignore[index]
        print(
            f"circusd and circusd-stats over {arguments.fleet}: {circus:.1f} % of a core; "
            f"a sample (one a second each): {circus / arguments.fleet * 10:.3f} ms"
        )
    if "limit" in results:
        limit: dict[str, float] = results["limit"]  # type: ignore[assignment]
        print(
            f"over its hard memory limit → the replacement answers: {limit['replaced_s']:.3f} s "
            f"(slowest {limit['slowest_s']:.3f}), of which its bare start is {limit['start_s']:.3f}"
        )


if __name__ == "__main__":
    main()
