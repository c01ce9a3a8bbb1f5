"""A monitor of the test's own, a client for it, and what it has told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import ROOT, Answer, HttpClient, environment, until

NAME = "cdn-isolated-monitoring"
MODULE = ("-m", "services.isolated_monitoring")


class Client(HttpClient[Answer]):
    """Requests to one monitor."""

    def __init__(self, run_path: Path, port: int) -> None:
        super().__init__(port, Answer, run_path / f"{NAME}.token")
        self.run_path = run_path

    def call(self, method: str, path: str, body: Any = None, *, token: str | bool = False, **headers: str) -> Answer:
        """One request; without the token, unless told otherwise."""
        return super().call(method, path, body, token=token, **headers)

    def get(self, path: str) -> Answer:
        """GET."""
        return self.call("GET", path)

    def order(self, method: str, path: str, body: Any = None) -> Answer:
        """A request with the token."""
        return self.call(method, path, body, X_Api_Key=self.token)

    def make_check(self, **wish: Any) -> dict[str, Any]:
        """A dead man's switch."""
        answer = self.order("POST", "/api/v3/checks/", wish)
        assert answer.status == 201, answer.body
        made: dict[str, Any] = answer.json
        return made

    def targets(self) -> dict[str, dict[str, Any]]:
        """What it watches, by name."""
        return {each["name"]: each for each in self.get("/api/status").json["targets"]}

    def probes(self) -> int:
        """How many it has made."""
        lines = self.get("/metrics").body.decode().splitlines()
        return int(next(line.split()[-1] for line in lines if line.startswith("isolated_probes_total{")))

    def conditions(self) -> dict[str, str]:
        """The same, and only how they are."""
        return {name: each["condition"] for name, each in self.targets().items()}


def alerts(run_path: Path) -> list[dict[str, Any]]:
    """What it has told to its file so far."""
    path = run_path / "isolated-monitoring-alerts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def opened(run_path: Path) -> list[dict[str, Any]]:
    """The openings among them."""
    return [each for each in alerts(run_path) if each["event"] == "opened"]


def client_of(run_path: Path, log: Path) -> Client:
    """Of a monitor that writes that log, once it serves."""

    def port() -> int:
        lines = log.read_text().splitlines() if log.exists() else []
        ports = [int(line.rpartition(" ")[2]) for line in lines if "listens on 127.0.0.1 port" in line]
        return ports[-1] if ports and "serving" in lines[-1] + "".join(lines[-3:]) else 0

    client = Client(run_path, until(port, what=f"{log} serves"))

    def ready() -> bool:
        try:
            return client.get("/readyz").status == 200
        except OSError:
            return False

    until(ready, what="the monitor is ready")
    return client


def write_config(run_path: Path, more: str = "") -> None:
    """Its file, with what makes a test quick."""
    (run_path / "isolated-monitoring.toml").write_text(f"settle_s = 0.5\n{more}")


@contextmanager
def monitoring(run_path: Path, config: str = "", **env: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A monitor by hand, ready, that settles quickly."""
    write_config(run_path, config)
    log_path = run_path / f"monitor.{len(os.listdir(run_path))}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *MODULE],
            env=environment(run_path, **({"CDN_PORT": "0"} | env)),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:

        def serves() -> bool:
            assert process.poll() is None, log_path.read_text()
            return "serving\n" in log_path.read_text()

        until(serves, what="the monitor serves")
        yield client_of(run_path, log_path), process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
