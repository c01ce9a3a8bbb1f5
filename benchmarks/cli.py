"""How long an operator waits for cdnctl, beside supervisorctl for the same fleet, in one run.

    python -m benchmarks.cli [--services 50] [--runs 25]

status      of a fleet under supervisord with the warden and ATLAS; fifty services whose daemons speak once a second
completion  of a service's name, and of a verb, as a shell asks for it
python      an interpreter that does nothing: what none of them can be quicker than

The commands take turns; each row is a median. Figures are of this machine and moment; compare rows, not days. The
status commands of other supervisors are measured by benchmarks.peers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bus.endpoints import RunDir, host_name
from bus.messages import DaemonStatus, HealthStatus, LifecyclePhase, ServiceMetrics, Vitals
from bus.publisher import Publisher
from tests.support import BIN, Supervisord, short_dir, until

AIM = 0.7
"""Of supervisorctl's time."""
COMPLETION_S = 0.2

Asked = tuple[list[str], Mapping[str, str]]


@contextmanager
def fleet(directory: Path, many: int) -> Iterator[dict[str, Asked]]:
    """That many services, under supervisord; how to ask about them."""
    names = [f"service-{number:03}" for number in range(many)]
    programs = {name: {"command": "sleep 100000"} for name in names}
    atlas = {"command": f"{sys.executable} -m services.atlas", "environment": 'CDN_PORT="0"'}
    supervisord = Supervisord(directory, {"atlas": atlas, **programs})
    asked_by = without_our_own(supervisord.env)
    ended = threading.Event()
    with supervisord:
        until(lambda: list(supervisord.states().values()) == ["RUNNING"] * (many + 1), what="all run")
        speaker = threading.Thread(target=speak, args=(RunDir(directory), supervisord, ended))
        speaker.start()
        try:
            status: Asked = ([str(BIN / "cdnctl"), "status"], asked_by)
            until(lambda: is_whole(status, many), within_s=60, what="ATLAS hears them all")
            yield {
                "cdnctl status": status,
                "supervisorctl status": ([str(BIN / "supervisorctl"), "-c", str(supervisord.conf), "status"], asked_by),
                "cdnctl completion, a name": completion("cdnctl restart serv", 2, asked_by),
                "cdnctl completion, a verb": completion("cdnctl re", 1, asked_by),
                "python": ([sys.executable, "-c", "pass"], asked_by),
            }
        finally:
            ended.set()
            speaker.join()


def without_our_own(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of an operator, whose Python keeps its bytecode."""
    return {key: value for key, value in env.items() if key not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}


def speak(run_dir: RunDir, supervisord: Supervisord, ended: threading.Event) -> None:
    """What the daemons of these processes would say, once a second."""
    publisher = Publisher(run_dir.telemetry)
    lines = supervisord.ctl("status").stdout.splitlines()
    pids = {int(line.split()[3].rstrip(",")): line.split()[0] for line in lines if not line.startswith("atlas")}
    began_s = time.monotonic()
    seq = 0
    while not ended.wait(1.0):
        seq += 1
        for pid, name in pids.items():
            publisher.publish(
                DaemonStatus(
                    service=name,
                    instance=name,
                    host=host_name(),
                    incarnation=1,
                    seq=seq,
                    pid=pid,
                    time_s=time.time(),
                    monotonic_s=time.monotonic(),
                    uptime_s=time.monotonic() - began_s,
                    phase=LifecyclePhase.SERVING,
                    health=HealthStatus.HEALTHY,
                    address="http://127.0.0.1:18100",
                    metrics=ServiceMetrics(vitals=Vitals(rss_bytes=40_000_000, cpu_cores=0.013)),
                )
            )
    publisher.close()


def is_whole(status: Asked, many: int) -> bool:
    """Whether all are running and healthy, by ATLAS's word."""
    done = subprocess.run(status[0], env=dict(status[1]), capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.count(" healthy ") == many + 1


def completion(line: str, word: int, env: Mapping[str, str]) -> Asked:
    """What bash runs when TAB is pressed there."""
    told = {"_CDNCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}
    return [str(BIN / "cdnctl")], {**env, **told}


def measure(asked: Mapping[str, Asked], runs: int) -> dict[str, list[float]]:
    """Seconds of each, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(runs + 1):
        for name, (command, env) in asked.items():
            began_s = time.perf_counter()
            done = subprocess.run(command, env=dict(env), capture_output=True)
            if turn:  # the first is for the caches
                taken[name].append(time.perf_counter() - began_s)
            if done.returncode or (not done.stdout and "python" not in name):
                raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.decode()}")
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--runs", type=int, default=25)
    chosen = parser.parse_args()
    with short_dir() as directory, fleet(directory, chosen.services) as asked:
        taken = measure(asked, chosen.runs)
    base_s = statistics.median(taken["supervisorctl status"])
    print(f"{chosen.services} services, {chosen.runs} runs, {os.cpu_count()} cores")
    print(f"{'':28}{'median':>9}{'best':>9}{'of supervisorctl':>18}")
    for name, seconds in taken.items():
        median_s = statistics.median(seconds)
        print(f"{name:28}{median_s * 1000:6.1f} ms{min(seconds) * 1000:6.1f} ms{median_s / base_s:18.2f}")
    ratio = statistics.median(taken["cdnctl status"]) / base_s
    slowest_s = max(statistics.median(taken[name]) for name in taken if "completion" in name)
    print(f"cdnctl status is to take at most {AIM} of supervisorctl's: {'met' if ratio <= AIM else 'missed'}")
    print(
        f"completion is to take under {COMPLETION_S * 1000:.0f} ms: {'met' if slowest_s < COMPLETION_S else 'missed'}"
    )


if __name__ == "__main__":
    main()
