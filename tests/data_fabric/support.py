"""A served application, a client for it, and rows to fill it with."""

from __future__ import annotations

import csv
import http.client
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import airportsdata
import uvicorn

from services.data_fabric.limits import Limits
from services.data_fabric.server import make_app
from services.data_fabric.store import Store
from tests.support import ROOT, environment, free_port, until

AIRPORTS = Path(airportsdata.__file__).with_name("airports.csv")
TOP_20 = "SELECT icao, name, city, elevation FROM airports WHERE country = ? ORDER BY elevation DESC LIMIT 20"


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal, which must have the right form."""
        reason: dict[str, Any] = self.json["error"]
        assert set(reason) == {"status", "what", "value", "limit", "next"}
        assert reason["status"] == self.status
        assert reason["what"].startswith("cannot ")
        return reason


class Client:
    """Requests to one server, each on a connection of its own unless it is kept."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is neither bytes nor an iterator is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            if body is not None and not isinstance(body, bytes | Iterator):
                body = json.dumps(body).encode()
                headers.setdefault("content_type", "application/json")
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def sql(self, sql: str, params: Any = (), path: str = "/sql", **more: Any) -> Answer:
        """POST /sql."""
        return self.call("POST", path, {"sql": sql, "params": params, **more})

    def load(self, name: str, text: str | bytes, kind: str = "csv", method: str = "POST") -> Answer:
        """Upload a file."""
        body = text.encode() if isinstance(text, str) else text
        return self.call(method, f"/sources/{name}?kind={kind}", body)


@contextmanager
def serving(directory: Path, limits: Limits | None = None, files: Path | None = None) -> Iterator[tuple[Client, Store]]:
    """The application on a server of its own, in a thread of this process."""
    app = make_app(directory, limits=limits, files=files)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server listens")
        yield Client(server.servers[0].sockets[0].getsockname()[1]), app.state.store
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """The service as its supervisor would start it, ready."""
    port = free_port()
    log = (run_path / "service.log").open("ab")
    service = subprocess.Popen(
        [sys.executable, "-m", "services.data_fabric"],
        env=environment(run_path, CDN_PORT=str(port), **env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    log.close()
    client = Client(port)

    def ready() -> bool:
        assert service.poll() is None, (run_path / "service.log").read_text()
        try:
            return client.call("GET", "/readyz").status == 200
        except OSError:
            return False

    try:
        until(ready, what="the service is ready")
        yield client, service
    finally:
        if service.poll() is None:
            service.kill()
        service.wait(30)


def as_csv(rows: list[list[Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
