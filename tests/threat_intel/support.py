"""A served application, a client for it, and feeds to fill it with."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn

from services.threat_intel.intel import Intel
from services.threat_intel.limits import Limits
from services.threat_intel.server import make_app
from tests.support import ROOT, environment, free_port, until

INBOX = "inbox"


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
    """Requests to one server, with its token unless told otherwise."""

    def __init__(self, port: int, token: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._token = token

    @property
    def token(self) -> str:
        """The service's."""
        return self._token.read_text().strip()

    def call(
        self, method: str, path: str, body: Any = None, *, token: bool = True, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request; a body that is no bytes is sent as JSON."""
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {self.token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        sent.setdefault("Content-Type", "")
        request = urllib.request.Request(self.url + path, data=body, headers=sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    def look(self, *values: str, **more: Any) -> list[dict[str, Any]]:
        """POST /correlate."""
        answer = self.call("POST", "/correlate", {"values": values, **more}, token=False)
        assert answer.status == 200, answer.body
        found: list[dict[str, Any]] = answer.json["values"]
        return found

    def verdict(self, value: str) -> str:
        """Of one value."""
        (found,) = self.look(value)
        return str(found["verdict"])

    def put(self, name: str, *values: str, query: str = "", method: str = "PUT") -> dict[str, Any]:
        """A list of these values."""
        answer = self.call(method, f"/feeds/{name}{query}", "\n".join(values).encode())
        assert answer.status == 201, answer.body
        found: dict[str, Any] = answer.json
        return found

    def judge(self, value: str, *, is_true: bool, **more: Any) -> None:
        """POST /verdicts."""
        verdict = "true_positive" if is_true else "false_positive"
        answer = self.call("POST", "/verdicts", {"value": value, "verdict": verdict, **more})
        assert answer.status == 201, answer.body


@contextmanager
def serving(directory: Path, limits: Limits | None = None) -> Iterator[tuple[Client, Intel]]:
    """The application on a server of its own, in a thread of this process."""
    token = directory / "token"
    app = make_app(directory, token, limits=limits)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server listens")
        yield Client(server.servers[0].sockets[0].getsockname()[1], token), app.state.intel
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
        [sys.executable, "-m", "services.threat_intel"],
        env=environment(run_path, CDN_PORT=str(port), **env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    log.close()
    client = Client(port, run_path / "cdn-threat-intel.token")

    def ready() -> bool:
        assert service.poll() is None, (run_path / "service.log").read_text()
        try:
            return client.call("GET", "/readyz", token=False).status == 200
        except OSError:
            return False

    try:
        until(ready, what="the service is ready")
        yield client, service
    finally:
        if service.poll() is None:
            service.kill()
        service.wait(30)


def stix_id(kind: str, random_: random.Random | None = None) -> str:
    """A new id."""
    bits = random_.getrandbits(128) if random_ is not None else uuid.uuid4().int
    return f"{kind}--{uuid.UUID(int=bits, version=4)}"


def when(from_now_s: float) -> str:
    """A STIX timestamp, so long from now: what is listed decays with its age."""
    at = datetime.fromtimestamp(time.time() + from_now_s, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def indicator(pattern: str, **more: Any) -> dict[str, Any]:
    """A STIX 2.1 indicator."""
    return {
        "type": "indicator",
        "spec_version": "2.1",
        "id": stix_id("indicator"),
        "created": when(-86_400),
        "modified": when(-60),
        "pattern": pattern,
        "pattern_type": "stix",
        "valid_from": when(-86_400),
        **more,
    }


def bundle(*objects: dict[str, Any]) -> dict[str, Any]:
    """A bundle of these."""
    return {"type": "bundle", "id": stix_id("bundle"), "objects": list(objects)}


def addresses(count: int, seed: int) -> list[str]:
    """Different addresses, of the part of IPv4 that is set aside for nothing else here."""
    drawn = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[socket.inet_ntoa((drawn.randrange(1 << 24, 224 << 24)).to_bytes(4, "big"))] = None
    return list(found)
