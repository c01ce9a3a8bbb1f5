"""What the ten programs of supervisord.conf take together: start, memory, CPU while idle; and what ``down`` leaves.

    python -m benchmarks.fleet [--runs 3] [--seconds 30] [--json]

start     ``cdnctl up`` until all are ready, and each service alone, from its spawning to its READY=1: the limit is the
          slowest of those, as far as there are processors enough
memory    PSS, which counts what processes share once, of supervisord and all below it
CPU       of all their threads, by the kernel's schedstat, while nobody asks them anything
left      processes, sockets and files in the run directory after ``cdnctl down``

All in private run directories and on free ports. Figures are of this machine and moment.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.usage import cpu_s, shares_mib
from tests.support import BIN, ROOT, environment, kill_tree, short_dir

WARM_UP_S = 15.0
"""Until what is done once after the start is done."""
READY_WITHIN_S = 60.0


def programs() -> dict[str, list[str]]:
    """Name → command, of the project's own supervisord.conf."""
    text = (ROOT / "supervisord.conf").read_text()
    return {
        name: command.split() for name, command in re.findall(r"(?m)^\[program:([^\]]+)\]\ncommand=python (.*)$", text)
    }


def alone(name: str, arguments: list[str]) -> float:
    """Seconds from spawning it until it says READY=1, with nothing else of the fleet there."""
    with short_dir() as run_dir, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(run_dir / "notify.sock"))
        told.settimeout(READY_WITHIN_S)
        more = {"CDN_PORT": "0", "CDN_INSTANCE": name, "NOTIFY_SOCKET": str(run_dir / "notify.sock")}
        began_s = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(run_dir, **more),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in told.recv(65536).split(b"\n"):
                continue
            return time.perf_counter() - began_s
        finally:
            kill_tree(process.pid)
            process.wait()


def cdnctl(run_dir: Path, *arguments: str) -> float:
    """Seconds that it took; raises unless it ends with 0."""
    began_s = time.perf_counter()
    done = subprocess.run(
        [str(BIN / "cdnctl"), *arguments],
        env=environment(run_dir, CDN_PORT="0"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    took_s = time.perf_counter() - began_s
    if done.returncode:
        raise RuntimeError(f"cdnctl {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return took_s


def members(run_dir: Path) -> list[psutil.Process]:
    """supervisord, and all below it."""
    top = psutil.Process(int((run_dir / "supervisord.pid").read_text()))
    return [top, *top.children(recursive=True)]


def idle(run_dir: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Of each of them: PSS, and processor time in % of a core."""
    time.sleep(WARM_UP_S)
    names = {
        process.pid: process.environ().get("SUPERVISOR_PROCESS_NAME") or "supervisord" for process in members(run_dir)
    }
    before = {pid: cpu_s(pid) for pid in names}
    began_s = time.monotonic()
    time.sleep(seconds)
    after = {pid: cpu_s(pid) for pid in names}
    took_s = time.monotonic() - began_s
    found: dict[str, dict[str, float]] = {}
    for pid, name in names.items():
        one = found.setdefault(name, {"pss_mib": 0.0, "cpu_percent": 0.0})
        one["pss_mib"] += shares_mib(pid)["pss_mib"]
        one["cpu_percent"] += 100 * (after[pid] - before[pid]) / took_s
    return found


def is_there(process: psutil.Process) -> bool:
    """Whether it runs; not if it only waits to be reaped."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(run_dir: Path, processes: list[psutil.Process]) -> dict[str, Any]:
    """What there still is once ``cdnctl down`` has returned."""
    files = [path for path in run_dir.rglob("*") if not path.is_dir()]
    sockets = [str(path.relative_to(run_dir)) for path in files if path.is_socket()]
    kept = [path for path in files if path.is_file()]
    sizes: dict[str, int] = {}
    for path in kept:
        first = path.relative_to(run_dir).parts[0]
        what = first if path.parent != run_dir else f"*{path.suffix or path.name}"
        sizes[what] = sizes.get(what, 0) + path.stat().st_size
    return {"processes": sum(map(is_there, processes)), "sockets": sockets, "bytes": sizes}


def measure(runs: int, seconds: float) -> dict[str, Any]:
    """All of it."""
    bare = {}
    for name, arguments in programs().items():
        print(f"{name} alone …", file=sys.stderr)
        bare[name] = statistics.median(alone(name, arguments) for _ in range(runs))
    ups, downs = [], []
    for number in range(runs):
        print(f"the fleet, {number + 1} of {runs} …", file=sys.stderr)
        with short_dir() as run_dir:
            processes: list[psutil.Process] = []
            try:
                ups.append(cdnctl(run_dir, "up"))
                processes = members(run_dir)
                if number == runs - 1:
                    use = idle(run_dir, seconds)
                downs.append(cdnctl(run_dir, "down"))
                rest = left(run_dir, processes)
            finally:
                for process in filter(is_there, processes):
                    kill_tree(process.pid)
    return {
        "cores": os.cpu_count(),
        "up_s": statistics.median(ups),
        "down_s": statistics.median(downs),
        "alone_s": bare,
        "use": use,
        "left": rest,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each start; the medians count")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which CPU is measured")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.runs, asked.seconds)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    bare, use, rest = found["alone_s"], found["use"], found["left"]
    print(f"{'':26}{'alone, READY after':>20}{'PSS':>12}{'CPU, idle':>12}")
    for name in sorted(use):
        start = f"{bare[name] * 1000:.0f} ms" if name in bare else "-"
        print(f"{name:26}{start:>20}{use[name]['pss_mib']:8.1f} MiB{use[name]['cpu_percent']:10.2f} %")
    pss, cpu = (sum(one[what] for one in use.values()) for what in ("pss_mib", "cpu_percent"))
    print(f"{'together':26}{'':20}{pss:8.1f} MiB{cpu:10.2f} % of a core, over {asked.seconds:g} s")
    slowest = max(bare, key=lambda name: bare[name])
    print(
        f"cdnctl up, all ready: {found['up_s']:.2f} s on {found['cores']} cores, {found['up_s'] / bare[slowest]:.1f} "
        f"times the slowest alone ({slowest}, {bare[slowest]:.2f} s); one after the other they take "
        f"{sum(bare.values()):.2f} s"
    )
    sizes = ", ".join(f"{what} {size / 1024:.0f} KiB" for what, size in sorted(rest["bytes"].items()))
    sockets = ", ".join(rest["sockets"]) or "no socket"
    print(f"cdnctl down: {found['down_s']:.2f} s; leaves {rest['processes']} processes, {sockets}; files: {sizes}")


if __name__ == "__main__":
    main()
