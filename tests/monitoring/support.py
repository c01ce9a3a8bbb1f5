"""The real process, targets that tell what a test wants, and a client."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import DoneAnswer, HttpClient, ServiceProcess, ready


class Answer(DoneAnswer):
    """An answer, of Prometheus' shape or of this project's."""

    @property
    def error(self) -> dict[str, Any]:
        """The reason of a refusal, which must have the right form."""
        told = json.loads(self.body)
        if told.get("status") != "error":
            return super().error
        assert told["error"].startswith("cannot ")
        assert told["errorType"]
        return Answer(self.status, self.headers, json.dumps({"error": told["reason"]}).encode()).error


class Client(HttpClient[Answer]):
    """Requests to one server."""

    def __init__(self, port: int) -> None:
        super().__init__(port, Answer)

    def api(self, path: str, **parameters: Any) -> Answer:
        """GET /api/v1/PATH."""
        return self.call("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}")

    def query(self, query: str, **more: Any) -> list[Any]:
        """The result of an instant query."""
        result: list[Any] = self.api("query", query=query, **more).json["data"]["result"]
        return result

    def take(self, text: str) -> Answer:
        """Import samples."""
        return self.call("POST", "/api/v1/import/prometheus", text.encode())


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, ServiceProcess]]:
    """The service as its supervisor would start it, ready."""
    with ready(run_path, "services.monitoring", Client, name="monitoring", **env) as (client, service):
        yield client, service


@contextmanager
def target(tell: Callable[[], tuple[int, bytes]]) -> Iterator[str]:
    """A server whose /metrics answers as ``tell`` says; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = tell()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
