"""The real process, targets that tell what a test wants, and a client."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        told = json.loads(self.body)
        if told.get("status") == "error":  # Prometheus' shape
            assert told["error"].startswith("cannot ")
            assert told["errorType"]
            reason: dict[str, Any] = told["reason"]
        else:
            reason = told["error"]
        assert set(reason) == {"status", "what", "value", "limit", "next"}
        assert reason["status"] == self.status
        assert reason["what"].startswith("cannot ")
        return reason


class Client:
    """Requests to one server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read())
        finally:
            connection.close()

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
    with ServiceProcess(run_path, "-m", "services.monitoring", name="monitoring", **env) as service:
        client = Client(int(service.url().rpartition(":")[2]))
        until(lambda: client.call("GET", "/readyz").status == 200, what="the service is ready")
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
