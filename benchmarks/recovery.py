"""How quickly a service is back: after a crash, when stopped, with its interpreter held, with its loop blocked.

    python -m benchmarks.recovery [--runs 10] [--overload 60] [--only crash hang start idle overload]

crash     SIGKILL → the replacement answers, for one tiny service: bare, under stock supervisord, under runit
          (if runsv is on PATH), and under supervisord with the warden; all in this run, in turn
hang      a service of this project: fault → the replacement answers, for SIGSTOP, a held GIL and a blocked loop
start     fifty independent services: launch → the last one answers; also under circus, if circusd is on PATH
idle      CPU that supervisord uses with 200 idle programs, stock and with the warden
overload  8 × cores busy processes beside beating services: how many were killed

Figures are of this machine and moment; compare columns, not days.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support import ROOT, Supervisord, environment, free_port, kill_tree, short_dir, until

TINY = """
import os, socket, sys, threading, time
def tell(text):
    if "NOTIFY_SOCKET" in os.environ:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        s.setblocking(False)
        try: s.sendto(text, os.environ["NOTIFY_SOCKET"])
        except OSError: pass
        s.close()
def beats():
    while True:
        tell(b"WATCHDOG=1")
        time.sleep(0.1)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=False)
tell(b"READY=1")
threading.Thread(target=beats, daemon=True).start()
while True:
    connection, _ = server.accept()
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    connection.close()
"""

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


def answers(port: int, path: str = "/") -> bool:
    """Whether a 200 comes back within a second."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def ask_and_leave(port: int, path: str) -> None:
    """Send a request whose answer is not waited for."""
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        time.sleep(0.01)


def time_until_answering(port: int, since_s: float, within_s: float = 60.0) -> float:
    """Seconds from since_s until the port answers."""
    while not answers(port):
        if time.perf_counter() - since_s > within_s:
            raise TimeoutError(f"port {port} does not answer within {within_s} s")
        time.sleep(0.0005)
    return time.perf_counter() - since_s


def row(name: str, seconds: list[float]) -> str:
    """One line: median and range in ms."""
    low, middle, high = (1000 * each for each in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"  {name:34} median {middle:8.1f} ms   range {low:.1f} to {high:.1f}   n={len(seconds)}"


# -- crash -------------------------------------------------------------------------------------------------


def bare_starts(command: list[str], port: int, runs: int) -> list[float]:
    """Popen → answering, without any supervisor."""
    seconds = []
    for _ in range(runs):
        since_s = time.perf_counter()
        process = subprocess.Popen(command, env=environment(Path(os.devnull)), stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds.append(time_until_answering(port, since_s))
        process.kill()
        process.wait()
    return seconds


def crashes(pid: Callable[[], int], port: int, runs: int) -> list[float]:
    """SIGKILL → another process answers."""
    seconds = []
    for _ in range(runs):
        until(lambda: answers(port), what="answering before the crash")
        victim = pid()
        since_s = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        while psutil.pid_exists(victim) and _is_alive(victim):
            time.sleep(0.0002)
        seconds.append(time_until_answering(port, since_s))
        time.sleep(0.3)
    return seconds


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def runit(directory: Path, command: list[str]) -> Iterator[Callable[[], int]]:
    """One service under runsv; yields what tells its pid."""
    service = directory / "runit"
    service.mkdir()
    (service / "run").write_text("#!/bin/sh\nexec " + " ".join(command) + " >/dev/null 2>&1\n")
    (service / "run").chmod(0o755)
    runsv = subprocess.Popen(["runsv", str(service)], env=environment(directory))
    try:
        pid_file = service / "supervise" / "pid"
        yield lambda: int(until(lambda: pid_file.exists() and pid_file.read_text().strip(), what="runsv's pid"))
    finally:
        kill_tree(runsv.pid)
        runsv.wait()


def bench_crash(runs: int) -> None:
    """One tiny service under each."""
    print("crash: SIGKILL → the replacement answers (tiny stdlib service)")
    with short_dir() as directory:
        tiny = directory / "tiny.py"
        tiny.write_text(TINY)
        port = free_port()
        command = [sys.executable, "-S", "-E", str(tiny), str(port)]
        bare = bare_starts(command, port, runs)
        print(row("bare start (Popen)", bare))
        program = {"command": " ".join(command), "autorestart": "true"}
        with short_dir() as run_dir, Supervisord(run_dir, {"tiny": program}, warden=False) as fleet:
            stock = crashes(lambda: until(lambda: fleet.pid("tiny")), port, runs)
            print(row("supervisord, stock", stock))
        if shutil.which("runsv"):
            with short_dir() as run_dir, runit(run_dir, command) as pid:
                time.sleep(1.1)  # runsv waits a second before it restarts what lived for less
                print(row("runit", [_after(1.1, crashes(pid, port, 1)) for _ in range(runs)]))
        watched = program | {"type": "notify", "watchdog_s": "0.5", "restart_budget": str(runs + 5)}
        ours: list[float] = []
        for _ in range(runs):  # each crash in a supervisord of its own: the second in a row would wait, by policy
            with short_dir() as run_dir, Supervisord(run_dir, {"tiny": watched}) as fleet:
                ours += crashes(lambda fleet=fleet: until(lambda: fleet.pid("tiny")), port, 1)  # type: ignore[misc]
        print(row("supervisord with the warden", ours))
        ratio, quicker = statistics.median(ours) / statistics.median(bare), statistics.median(stock)
        print(f"  → {ratio:.2f} × bare start, {quicker / statistics.median(ours):.0f} × quicker than stock\n")


def _after(seconds: float, measured: list[float]) -> float:
    time.sleep(seconds)
    return measured[0]


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
                    while _is_alive(victim):
                        time.sleep(0.0005)
                    seconds.append(time_until_answering(port, since_s))
            beyond = [each - start_s for each in seconds]
            print(row(name, seconds) + f"   beyond bare start: median {1000 * statistics.median(beyond):.0f} ms")
    print()


# -- many --------------------------------------------------------------------------------------------------


def bench_start(runs: int, many: int = 50) -> None:
    """Fifty services at once."""
    print(f"start: {many} independent services, launch → all answer (tiny stdlib service)")
    ways: dict[str, Callable[[Path, dict[int, list[str]]], int]] = {
        "Popen": _start_bare,
        "supervisord, stock": lambda directory, commands: _start_supervisord(directory, commands, warden=False),
        "supervisord with the warden": lambda directory, commands: _start_supervisord(directory, commands, warden=True),
    }
    if shutil.which("circusd"):
        ways["circus"] = _start_circus
    results: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(runs):
        for name, start in ways.items():
            with short_dir() as directory:
                tiny = directory / "tiny.py"
                tiny.write_text(TINY)
                # Not free_port(): its ports may be taken by our own probes by the time that they are bound.
                first = 20000 + (turn * len(ways) + list(ways).index(name)) * many % 10000
                commands = {
                    port: [sys.executable, "-S", "-E", str(tiny), str(port)] for port in range(first, first + many)
                }
                since_s = time.perf_counter()
                pid = start(directory, commands)
                results[name].append(max(time_until_answering(port, since_s) for port in commands))
                kill_tree(pid)
    for name, seconds in results.items():
        print(row(name, seconds))
    print()


def _start_bare(directory: Path, commands: dict[int, list[str]]) -> int:
    """One process that starts them all and waits."""
    each = list(commands.values())
    code = f"import subprocess\nfor process in [subprocess.Popen(command) for command in {each!r}]: process.wait()"
    return subprocess.Popen([sys.executable, "-S", "-E", "-c", code]).pid


def _start_supervisord(directory: Path, commands: dict[int, list[str]], *, warden: bool) -> int:
    programs = {
        f"p{port}": {"command": " ".join(command)} | ({"type": "notify"} if warden else {})
        for port, command in commands.items()
    }
    fleet = Supervisord(directory, programs, warden=warden)
    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(fleet.conf)]
    return subprocess.Popen(command, env=fleet.env, cwd=directory, stdout=subprocess.DEVNULL).pid


def _start_circus(directory: Path, commands: dict[int, list[str]]) -> int:
    conf = directory / "circus.ini"
    head = f"[circus]\nendpoint=ipc://{directory}/e\npubsub_endpoint=ipc://{directory}/p\n"
    conf.write_text(head + "".join(f"[watcher:p{port}]\ncmd={' '.join(each)}\n" for port, each in commands.items()))
    quiet = subprocess.DEVNULL
    return subprocess.Popen(["circusd", str(conf)], stdout=quiet, stderr=quiet).pid


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
    names = ("crash", "hang", "start", "idle", "overload")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    told = parser.parse_args()
    if "crash" in told.only:
        bench_crash(told.runs)
    if "hang" in told.only:
        bench_hang(told.runs)
    if "start" in told.only:
        bench_start(max(1, told.runs // 2))
    if "idle" in told.only:
        bench_idle()
    if "overload" in told.only:
        bench_overload(told.overload)


if __name__ == "__main__":
    main()
