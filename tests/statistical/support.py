"""A served application, the real process, and a client for both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.statistical.limits import Limits
from services.statistical.server import Statistical, make_app
from tests.support import DoneAnswer, HttpClient, ServiceProcess, ready, served


class Client(HttpClient[DoneAnswer]):
    """Requests to one server, and its StatsD port."""

    def __init__(self, port: int) -> None:
        super().__init__(port, DoneAnswer)
        self._statsd_port = 0

    def series(self, name: str, **query: Any) -> Any:
        """GET /series/NAME."""
        asked = "&".join(f"{key}={value}" for key, value in query.items())
        return self.call("GET", f"/series/{name}?{asked}").json

    def total(self, name: str, window: int = 3600) -> float:
        """Of a counter; 0 while there is none."""
        answer = self.call("GET", f"/series/{name}?kind=counter&window={window}")
        return 0.0 if answer.status == 404 else float(answer.json["total"])

    def lines(self, text: str, **headers: str) -> DoneAnswer:
        """POST /samples, as StatsD."""
        return self.call("POST", "/samples", text.encode(), content_type="text/plain", **headers)

    @property
    def statsd_port(self) -> int:
        """As GET / tells."""
        if not self._statsd_port:
            self._statsd_port = int(self.call("GET", "/").json["statsd_udp"].rpartition(":")[2])
        return self._statsd_port

    def metric(self, name: str, label: str = "") -> float:
        """One of /metrics, with that label; 0 while it is not there."""
        for line in self.call("GET", "/metrics").body.decode().splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and label in line:
                return float(line.rpartition(" ")[2])
        return 0.0

    def udp(self) -> socket.socket:
        """A socket to the StatsD port."""
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.connect(("127.0.0.1", self.statsd_port))
        return one


@contextmanager
def serving(
    directory: Path, limits: Limits | None = None, flush_s: float = 1.0
) -> Iterator[tuple[Client, Statistical]]:
    """The application on a server of its own, in a thread of this process."""
    app = make_app(directory, limits=limits, flush_s=flush_s)
    with served(app) as port:
        yield Client(port), app.state.statistical


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, ServiceProcess]]:
    """The service as its supervisor would start it, ready."""
    with ready(run_path, "services.statistical", Client, name="statistical", **env) as (client, service):
        yield client, service
