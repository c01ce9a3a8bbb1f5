"""How soon cdn-isolated-monitoring tells, how often it cries wolf, and what it costs.

    python -m benchmarks.isolated_monitoring [--minutes 10] [--runs 15] [--only detect amid stress]

detect    fault → the alert is in the file, with the loop on and off (fixed interval): SIGKILL and SIGSTOP of ATLAS and
          of a service under supervisord with the warden, and of an HTTP server of nobody's, which is only probed
amid      SIGKILL of ATLAS amid 8 × cores busy processes → the alert is in the file
stress    8 × cores busy processes beside the fleet: alerts with nothing wrong, own CPU; at the end SIGKILL of ATLAS

Figures are of this machine and moment; compare columns, not days.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import Supervisord, free_port, kill_tree, short_dir, until

NAME = "cdn-isolated-monitoring"
FLEET = {
    NAME: {"command": "python -m services.isolated_monitoring", "priority": "1"},
    "atlas": {"command": "python -m services.atlas", "priority": "10"},
    "cdn-data-fabric": {"command": "python -m services.data_fabric", "priority": "20"},
    "gateway-primary": {"command": "python -m services.gateway", "priority": "30"},
}
HOG = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
STRANGER = """
import http.server, sys
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hello).serve_forever()
"""
PARTS = ("detect", "amid", "stress")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Fleet:
    """A fleet with a monitor, and a server that is nobody's."""

    def __init__(self, run_dir: Path, supervisord: Supervisord, port: int) -> None:
        self._run_dir = run_dir
        self._port = port
        self.supervisord = supervisord
        self.stranger = self.start_stranger()
        until(lambda: "serving\n" in supervisord.log(NAME), what="the monitor serves")
        log = supervisord.log(NAME)
        self._url = "http://127.0.0.1:" + log.partition("listens on 127.0.0.1 port ")[2].split()[0]
        until(self.is_well, within_s=60, what="everything is up")

    def start_stranger(self) -> subprocess.Popen[bytes]:
        """The server that is only probed."""
        return subprocess.Popen([sys.executable, "-c", STRANGER, str(self._port)])

    def ask(self, path: str, body: Any = None) -> Any:
        """One request to the monitor."""
        content = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self._url + path, data=content), timeout=30) as answer:
            return json.loads(answer.read())

    def is_well(self) -> bool:
        """Whether everything is up and nothing open."""
        status = self.ask("/api/status")
        return (
            len(status["targets"]) >= 9
            and not status["incidents"]
            and all(each["condition"] == "up" for each in status["targets"])
        )

    def alerts(self) -> list[dict[str, Any]]:
        """What has been told."""
        path = self._run_dir / "isolated-monitoring-alerts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def opened(self) -> list[dict[str, Any]]:
        """The openings among them."""
        return [each for each in self.alerts() if each["event"] == "opened"]

    def cpu_s(self) -> float:
        """What the monitor has used so far."""
        fields = Path(f"/proc/{self.supervisord.pid(NAME)}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


@contextmanager
def fleet() -> Iterator[Fleet]:
    """One that runs."""
    with short_dir() as run_dir:
        run_dir.chmod(0o700)
        port = free_port()
        config = f'settle_s = 0.5\n[[target]]\nname = "stranger"\nhttp = "http://127.0.0.1:{port}/"\n'
        (run_dir / "isolated-monitoring.toml").write_text(config)
        with Supervisord(run_dir, FLEET, env={"CDN_PORT": "0"}) as supervisord:
            one = Fleet(run_dir, supervisord, port)
            try:
                yield one
            finally:
                kill_tree(one.stranger.pid)
                one.stranger.wait()


def detect(one: Fleet, root: str, number: signal.Signals) -> tuple[float, int]:
    """Seconds from the fault to its alert, and how many alerts there were by the time all is well again."""
    until(one.is_well, within_s=400, every_s=0.2, what="everything is up")
    before = len(one.opened())
    victim = one.stranger.pid if root == "stranger" else one.supervisord.pid(root)
    began_s = time.monotonic()
    os.kill(victim, number)
    until(lambda: len(one.opened()) > before, within_s=60, every_s=0.005, what=f"the alert of {root}")
    took_s = time.monotonic() - began_s
    assert one.opened()[before]["root"] == root, one.opened()[before]
    if root == "stranger":
        kill_tree(one.stranger.pid)
        one.stranger.wait()
        one.stranger = one.start_stranger()
    until(lambda: not one.ask("/api/status")["incidents"], within_s=400, every_s=0.2, what="it is over")
    return took_s, len(one.opened()) - before


def detection(runs: int) -> None:
    """Each fault in turn, in both modes, each fleet its own: what keeps falling is settled for longer."""
    print(f"\ndetect: fault → alert in the file, {runs} runs, seconds")
    for mode in ("on", "off"):
        taken: dict[str, list[float]] = {}
        alerts = faults = 0
        for _ in range(runs):
            with fleet() as one:
                one.ask("/ooda/mode", {"mode": mode})
                for root in ("atlas", "cdn-data-fabric", "stranger"):
                    for number in (signal.SIGKILL, signal.SIGSTOP):
                        took_s, told = detect(one, root, number)
                        taken.setdefault(f"{number.name} {root}", []).append(took_s)
                        alerts, faults = alerts + told, faults + 1
        for name, seconds in taken.items():
            print(
                f"  loop {mode:3} {name:24} p50 {statistics.median(seconds):5.2f}  p95 {quantile(seconds, 0.95):5.2f}  "
                f"max {max(seconds):5.2f}  n={len(seconds)}"
            )
        print(f"  loop {mode:3} {alerts} alerts for {faults} faults")


def quantile(values: list[float], part: float) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def amid(runs: int) -> None:
    """Detection while there is no CPU to spare; each in a fleet of its own, as relapses are told later."""
    took_s = []
    for _ in range(runs):
        with fleet() as one, busy_processes(8 * (os.cpu_count() or 1)):
            time.sleep(5.0)
            atlas = one.supervisord.pid("atlas")  # before: it is supervisorctl that tells, which takes seconds now
            began_s = time.monotonic()
            os.kill(atlas, signal.SIGKILL)
            until(lambda: one.opened(), within_s=60, every_s=0.005, what="the alert")
            took_s.append(time.monotonic() - began_s)
    told = ", ".join(f"{each_s:.2f}" for each_s in sorted(took_s))
    print(f"\namid 8 × cores busy processes: SIGKILL of ATLAS told after {told} s")


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many that never wait."""
    busy = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range(count)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def stress(minutes: float) -> None:
    """False alarms and own CPU under stress."""
    with fleet() as one:
        print(f"\nstress: {len(one.ask('/api/status')['targets'])} targets")
        for hogs in (0, 8 * (os.cpu_count() or 1)):
            for_s = 60 * minutes if hogs else min(60.0, 60 * minutes)
            with busy_processes(hogs):
                before, used_s, began_s = len(one.opened()), one.cpu_s(), time.monotonic()
                while time.monotonic() - began_s < for_s:
                    time.sleep(1.0)
                passed_s = time.monotonic() - began_s
                told = one.opened()[before:]
                cores = (one.cpu_s() - used_s) / passed_s
                status = one.ask("/api/status")
                print(
                    f"  {hogs:3} busy processes, {passed_s / 60:.1f} min: {len(told)} alerts "
                    f"({len(told) / passed_s * 3600:.1f}/h), own CPU {100 * cores:.2f} % of a core, interval "
                    f"{status['interval_s']} s, ticks late p99 {1000 * status['late_p99_s']:.0f} ms"
                )
                for alert in told:
                    print(f"      {alert['at']} {alert['title']}")
                if hogs:
                    atlas, before = one.supervisord.pid("atlas"), len(one.opened())
                    began_s = time.monotonic()
                    os.kill(atlas, signal.SIGKILL)
                    until(lambda: len(one.opened()) > before, within_s=60, every_s=0.005, what="the alert")  # noqa: B023
                    print(f"      then SIGKILL of ATLAS: told after {time.monotonic() - began_s:.2f} s")


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    if "detect" in arguments.only:
        detection(arguments.runs)
    if "amid" in arguments.only:
        amid(arguments.runs)
    if "stress" in arguments.only:
        stress(arguments.minutes)


if __name__ == "__main__":
    main()
