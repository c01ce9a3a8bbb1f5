"""A served application, a client for it, and feeds to fill it with."""

from __future__ import annotations

import random
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.threat_intel.intel import Intel
from services.threat_intel.limits import Limits
from services.threat_intel.server import make_app
from tests.support import Answer, HttpClient, ready, served

INBOX = "inbox"


class Client(HttpClient[Answer]):
    """Requests to one server, with its token unless told otherwise."""

    def __init__(self, port: int, token: Path) -> None:
        super().__init__(port, Answer, token)

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
    with served(app) as port:
        yield Client(port, token), app.state.intel


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """The service as its supervisor would start it, ready."""
    token = run_path / "cdn-threat-intel.token"
    with ready(run_path, "services.threat_intel", lambda port: Client(port, token), **env) as (client, service):
        yield client, service.process


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
