"""A served application, the real process, and a client for both."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from services.statistical.limits import Limits
from services.statistical.server import Statistical, make_app
from tests.support import ServiceProcess, until


class Answer:
    """Status and body of an answer."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON, of an answer that is no refusal."""
        assert self.status == 200, self.body
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal, which must have the right form."""
        reason: dict[str, Any] = json.loads(self.body)["error"]
        assert set(reason) == {"status", "what", "value", "limit", "next"}
        assert reason["status"] == self.status
        assert reason["what"].startswith("cannot ")
        return reason


class Client:
    """Requests to one server, and its StatsD port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._statsd_port = 0

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
                headers.setdefault("content_type", "application/json")
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()

    def series(self, name: str, **query: Any) -> Any:
        """GET /series/NAME."""
        asked = "&".join(f"{key}={value}" for key, value in query.items())
        return self.call("GET", f"/series/{name}?{asked}").json

    def total(self, name: str, window: int = 3600) -> float:
        """Of a counter; 0 while there is none."""
        answer = self.call("GET", f"/series/{name}?kind=counter&window={window}")
        return 0.0 if answer.status == 404 else float(answer.json["total"])

    def lines(self, text: str, **headers: str) -> Answer:
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
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server listens")
        yield Client(server.servers[0].sockets[0].getsockname()[1]), app.state.statistical
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, ServiceProcess]]:
    """The service as its supervisor would start it, ready."""
    with ServiceProcess(run_path, "-m", "services.statistical", name="statistical", **env) as service:
        client = Client(int(service.url().rpartition(":")[2]))
        until(lambda: client.call("GET", "/readyz").status == 200, what="the service is ready")
        yield client, service
