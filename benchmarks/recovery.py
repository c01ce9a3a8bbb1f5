"""How quickly a service with the daemon is back: when stopped, with its interpreter held, with its loop blocked.

    python -m benchmarks.recovery [--runs 10] [--overload 60] [--only hang idle overload]

hang      a service of this project: fault → the replacement answers, for SIGSTOP, a held GIL and a blocked loop
idle      CPU that supervisord uses with 200 idle programs, stock and with the warden
overload  8 × cores busy processes beside beating services: how many were killed

Figures are of this machine and moment; compare columns, not days. What other supervisors take for a crash, a stopped
service, a limit or fifty of them, is measured by benchmarks.peers.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from benchmarks.tiny import TINY, time_until_answering
from tests.support import Supervisord, environment, free_port, is_running, short_dir, until

HOG = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"

SERVICE = """
import re, time
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from cdn_daemon import Service, run

async def hold(request):
    re.match("(a+)+$", "a" * 60 + "b")

async def block(request):
    time.sleep(1000)

async def home(request):
    return PlainTextResponse("ok")

app = Starlette(routes=[Route("/", home), Route("/hold", hold), Route("/block", block)])
if __name__ == "__main__":
    run(Service("faulty", app=app, port=int(__import__("sys").argv[1])))
"""


def ask_and_leave(port: int, path: str) -> None:
    """Send a request whose answer is not waited for."""
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        time.sleep(0.01)


def row(name: str, seconds: list[float]) -> str:
    """One line: median and range in ms."""
    low, middle, high = (1000 * each for each in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"  {name:34} median {middle:8.1f} ms   range {low:.1f} to {high:.1f}   n={len(seconds)}"


# -- hang --------------------------------------------------------------------------------------------------


def bench_hang(runs: int) -> None:
    """A service with the embedded daemon."""
    print("hang: fault → the replacement answers (service with the embedded daemon, loop_lag_s limited to 1 s)")
    with short_dir() as directory:
        script = directory / "faulty.py"
        script.write_text(SERVICE)
        port = free_port()
        command = [sys.executable, str(script), str(port)]
        with short_dir() as run_dir:
            bare = []
            for _ in range(runs):
                since_s = time.perf_counter()
                env = environment(run_dir)
                process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                bare.append(time_until_answering(port, since_s))
                process.kill()
                process.wait()
        print(row("bare start (Popen)", bare))
        start_s = statistics.median(bare)
        program = {"command": " ".join(command), "type": "notify", "watchdog_s": "0.5"}
        faults: dict[str, Callable[[int], None]] = {
            "SIGSTOP": lambda pid: os.kill(pid, signal.SIGSTOP),
            "held GIL (regex)": lambda pid: ask_and_leave(port, "/hold"),
            "blocked loop (time.sleep)": lambda pid: ask_and_leave(port, "/block"),
        }
        for name, inject in faults.items():
            seconds = []
            for _ in range(runs):
                with (
                    short_dir() as run_dir,
                    Supervisord(run_dir, {"web": program}, env={"CDN_LIMIT_LOOP_LAG_S": "0.5:1"}) as fleet,
                ):
                    until(lambda fleet=fleet: fleet.states()["web"] == "RUNNING", what="ready")  # type: ignore[misc]
                    time.sleep(1.0)
                    victim = fleet.pid("web")
                    since_s = time.perf_counter()
                    inject(victim)
                    while is_running(victim):
                        time.sleep(0.0005)
                    seconds.append(time_until_answering(port, since_s))
            beyond = [each - start_s for each in seconds]
            print(row(name, seconds) + f"   beyond bare start: median {1000 * statistics.median(beyond):.0f} ms")
    print()


# -- many -------------------------------------------------------------------------------------------------


def bench_idle(seconds: float = 20.0, many: int = 200) -> None:
    """What watching costs."""
    print(f"idle: CPU of supervisord with {many} idle programs over {seconds:.0f} s")
    for name, warden in (("supervisord, stock", False), ("supervisord with the warden", True)):
        programs = {f"p{number}": {"command": "sleep 100000"} for number in range(many)}
        with short_dir() as run_dir, Supervisord(run_dir, programs, warden=warden) as fleet:
            until(lambda fleet=fleet: set(fleet.states().values()) == {"RUNNING"}, what="all up")  # type: ignore[misc]
            time.sleep(2.0)
            assert fleet.process is not None
            process = psutil.Process(fleet.process.pid)
            before, since_s = process.cpu_times(), time.perf_counter()
            time.sleep(seconds)
            after = process.cpu_times()
            used_s = after.user + after.system - before.user - before.system
            print(f"  {name:34} {100 * used_s / (time.perf_counter() - since_s):.2f} % of a core")
    print()


def bench_overload(seconds: float, many: int = 5) -> None:
    """Nobody healthy is killed."""
    cores = os.cpu_count() or 2
    print(f"overload: {8 * cores} busy processes on {cores} cores for {seconds:.0f} s, {many} beating services")
    with short_dir() as directory:
        tiny = directory / "tiny.py"
        tiny.write_text(TINY)
        programs = {
            f"p{port}": {"command": f"{sys.executable} {tiny} {port}", "type": "notify", "watchdog_s": "0.5"}
            for port in (free_port() for _ in range(many))
        }
        with short_dir() as run_dir, Supervisord(run_dir, programs) as fleet:
            until(lambda: set(fleet.states().values()) == {"RUNNING"}, what="all ready")
            time.sleep(1.0)
            hogs = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(8 * cores)]
            time.sleep(seconds)
            for hog in hogs:
                hog.kill()
                hog.wait()
            time.sleep(1.0)
            print(f"  killed: {fleet.log().count('killing ')}   spared: {fleet.log().count(', but ')}\n")


def main() -> None:
    """Run what is asked for."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled, so what runs from here must be
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--overload", type=float, default=60.0, metavar="SECONDS")
    names = ("hang", "idle", "overload")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    told = parser.parse_args()
    if "hang" in told.only:
        bench_hang(told.runs)
    if "idle" in told.only:
        bench_idle()
    if "overload" in told.only:
        bench_overload(told.overload)


if __name__ == "__main__":
    main()
