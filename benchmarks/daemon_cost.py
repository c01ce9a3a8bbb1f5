"""What the embedded daemon costs: processor, memory and start, against the same server without it, in one run.

    python -m benchmarks.daemon_cost [--seconds 20] [--processes 5] [--fleet 50] [--json]

Processor time is what the kernel accounts to every thread (schedstat, in nanoseconds), over the same seconds for all
kinds at once. Run it on an idle machine: the kinds run side by side, so whatever disturbs one disturbs all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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
from benchmarks.daemon_cost import app, busy
from cdn_daemon import Service, run
if {kind!r} == "busy":
    import threading
    threading.Thread(target=busy, daemon=True).start()
run(Service("cost", app=app, port=0))
"""

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "server": "the server alone",
    "waking": "and a thread that wakes ten times a second, doing nothing",
    "daemon": "the server with the embedded daemon",
}


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    """Says hello."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"hi"})


def busy() -> None:
    """Never gives the interpreter away but when it is taken."""
    while True:
        sum(range(1000))


def cpu_s(pid: int) -> float:
    """Processor time of all threads of a process so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:  # the thread has ended
            continue
    return total / 1e9


def pss_mib(pid: int) -> float:
    """Proportional set size: what pages shared with the other processes count for is divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no Pss of {pid}")


def rss_mib(pid: int) -> float:
    """Resident set size."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


@contextmanager
def process(kind: str, run_dir: Path, name: str) -> Iterator[tuple[int, float]]:
    """(pid, seconds from its spawning until it listens) of one process of that kind."""
    source = BARE if kind in ("server", "waking") else DAEMON
    env = {key: value for key, value in os.environ.items() if not key.startswith(("CDN_", "NOTIFY_", "SUPERVISOR_"))}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # the libraries are compiled, so we must be
    env |= {"CDN_RUN_DIR": str(run_dir), "CDN_INSTANCE": name, "PYTHONUNBUFFERED": "1"}
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
        time.sleep(3)  # what is done once is not counted
        pids = {kind: [pid for pid, _ in started] for kind, started in alive.items()}
        before = {pid: cpu_s(pid) for each in pids.values() for pid in each}
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        after = {pid: cpu_s(pid) for pid in before}
        return {
            kind: {
                "cpu_percent": statistics.median(100 * (after[p] - before[p]) / took_s for p in each),
                "rss_mib": statistics.median(rss_mib(p) for p in each),
                "pss_mib": statistics.median(pss_mib(p) for p in each),
                "start_s": statistics.median(start_s for _, start_s in alive[kind]),
            }
            for kind, each in pids.items()
        }


def fleet_cost(size: int, seconds: float, run_dir: Path) -> dict[str, float]:
    """Of so many daemons and ATLAS together, in % of a core, the servers' own cost taken off by ``main``."""
    with ExitStack() as stack:
        atlas, _ = stack.enter_context(process("atlas", run_dir, "atlas"))
        pids = [stack.enter_context(process("daemon", run_dir, f"fleet-{n}"))[0] for n in range(size)]
        time.sleep(3)
        before = {pid: cpu_s(pid) for pid in (atlas, *pids)}
        began_s = time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        used = {pid: 100 * (cpu_s(pid) - before[pid]) / took_s for pid in before}
        return {"atlas_percent": used[atlas], "services_percent": sum(used[pid] for pid in pids)}


def tick_times(kind: str, seconds: float, run_dir: Path) -> dict[str, float]:
    """99th percentiles of a daemon's lateness and tick length in ms, as its own vitals tell ATLAS."""
    from bus.endpoints import RunDir
    from bus.messages import DaemonStatus
    from bus.subscriber import Subscriber

    with process("atlas", run_dir, "atlas"), process(kind, run_dir, kind):
        subscriber = Subscriber(RunDir(run_dir).feed, [f"status/{kind}/"])
        deadline_s = time.monotonic() + seconds
        last = None
        while time.monotonic() < deadline_s:
            message = subscriber.receive(0.5)
            last = message if isinstance(message, DaemonStatus) else last
        subscriber.close()
    if last is None or last.metrics.vitals.tick_body_s is None or last.metrics.vitals.tick_late_s is None:
        raise RuntimeError(f"{kind} has told nothing within {seconds} s")
    vitals = last.metrics.vitals
    return {"late_p99_ms": 1000 * (vitals.tick_late_s or 0), "body_p99_ms": 1000 * (vitals.tick_body_s or 0)}


CIRCUS = """[circus]
check_delay = 1
endpoint = ipc://{dir}/circus.endpoint
pubsub_endpoint = ipc://{dir}/circus.pubsub
stats_endpoint = ipc://{dir}/circus.stats
statsd = True
{watchers}
"""


def circus_cost(size: int, seconds: float, directory: Path) -> dict[str, float] | None:
    """circusd with circusd-stats at 1 Hz over so many sleeping processes; None where it is not installed."""
    circusd = shutil.which("circusd", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if circusd is None:
        return None
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
    with tempfile.TemporaryDirectory(prefix="cdn-") as name:
        run_dir = Path(name)
        say(f"{arguments.processes} processes of each kind, {arguments.seconds:g} s …")
        results["kinds"] = cost_beside_the_server(arguments.processes, arguments.seconds, run_dir)
        say("ticks of an idle daemon, and beside a busy thread …")
        results["idle_ticks"] = tick_times("daemon", arguments.seconds, run_dir)
        results["busy_ticks"] = tick_times("busy", arguments.seconds, run_dir)
        if arguments.fleet:
            say(f"{arguments.fleet} daemons and ATLAS …")
            results["fleet"] = fleet_cost(arguments.fleet, arguments.seconds, run_dir)
            say("circus with its statistics over as many …")
            results["circus"] = circus_cost(arguments.fleet, arguments.seconds, run_dir)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--fleet", type=int, default=50, help="0: skip")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(arguments, lambda text: print(text, file=sys.stderr))
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    kinds: dict[str, dict[str, float]] = results["kinds"]  # type: ignore[assignment]
    print(f"{'':58} {'CPU %':>7} {'RSS MiB':>8} {'PSS MiB':>8} {'start s':>8}")
    for kind, text in KINDS.items():
        row = kinds[kind]
        values = f"{row['cpu_percent']:7.3f} {row['rss_mib']:8.1f} {row['pss_mib']:8.1f} {row['start_s']:8.3f}"
        print(f"{text:58} {values}")
    server, daemon = kinds["server"], kinds["daemon"]
    print(
        f"the daemon adds {daemon['cpu_percent'] - server['cpu_percent']:.3f} % of a core, "
        f"{daemon['rss_mib'] - server['rss_mib']:.1f} MiB RSS, "
        f"{100 * (daemon['start_s'] / server['start_s'] - 1):.0f} % to the start"
    )
    for name, what in (("idle_ticks", "idle"), ("busy_ticks", "beside a busy thread")):
        ticks: dict[str, float] = results[name]  # type: ignore[assignment]
        print(f"ticks {what}: p99 late {ticks['late_p99_ms']:.1f} ms, p99 length {ticks['body_p99_ms']:.1f} ms")
    if arguments.fleet:
        fleet: dict[str, float] = results["fleet"]  # type: ignore[assignment]
        own = fleet["services_percent"] - arguments.fleet * server["cpu_percent"]
        print(
            f"{arguments.fleet} daemons: {own:.1f} % of a core over their servers, ATLAS {fleet['atlas_percent']:.1f} %"
        )
        circus = results["circus"]
        if circus is None:
            print("circus is not installed: not compared")
        else:
            print(f"circusd and circusd-stats over {arguments.fleet}: {circus['percent']:.1f} % of a core")  # type: ignore[index]


if __name__ == "__main__":
    main()
