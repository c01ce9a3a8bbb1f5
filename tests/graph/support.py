"""A served application, the real process, a client for both, and a graph of ATT&CK's shape."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import uvicorn

from services.graph.limits import Limits
from services.graph.server import Graph, make_app
from tests.support import ServiceProcess, until


class Answer:
    """Status and body of an answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON, of an answer that is no refusal."""
        assert self.status in (200, 201), self.body
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
    """Requests to one server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def nodes(self, *ids: str, labels: tuple[str, ...] = (), **properties: Any) -> Any:
        """POST /nodes, all alike."""
        made = [{"id": id, "labels": labels, "properties": properties} for id in ids]
        return self.call("POST", "/nodes", {"nodes": made}).json

    def relate(self, *triples: tuple[str, str, str], **properties: Any) -> Any:
        """POST /relationships: (from, type, to), nodes as needed."""
        made = [{"from": a, "type": type, "to": b, "properties": properties} for a, type, b in triples]
        return self.call("POST", "/relationships", {"relationships": made, "create_nodes": True}).json

    def khop(self, id: str, k: int, **query: Any) -> Any:
        """GET /nodes/ID/khop."""
        return self.call("GET", f"/nodes/{quote(id)}/khop?{urlencode({'k': k, 'limit': 1000, **query})}").json

    def paths(self, source: str, target: str, **query: Any) -> list[list[str]]:
        """GET /paths: the ids of the nodes of each."""
        found = self.call("GET", f"/paths?{urlencode({'from': source, 'to': target, **query})}").json
        return [[node["id"] for node in path["nodes"]] for path in found["paths"]]

    def query(self, nodes: dict[str, Any], edges: list[dict[str, Any]], **more: Any) -> Any:
        """POST /query."""
        return self.call("POST", "/query", {"nodes": nodes, "edges": edges, **more}).json

    def rows(self, nodes: dict[str, Any], edges: list[dict[str, Any]], **more: Any) -> list[dict[str, str]]:
        """POST /query: the ids by name, in order."""
        found = self.query(nodes, edges, **more)["matches"]
        return sorted(
            (
                {
                    name: one["id"] if isinstance(one, dict) else " ".join(r["id"] for r in one)
                    for name, one in row.items()
                }
                for row in found
            ),
            key=str,
        )

    def algorithm(self, name: str, **asked: Any) -> Any:
        """POST /algorithms/NAME."""
        return self.call("POST", f"/algorithms/{name}", {"timeout_s": 30, **asked}).json


@contextmanager
def serving(directory: Path, limits: Limits | None = None) -> Iterator[tuple[Client, Graph]]:
    """The application on a server of its own, in a thread of this process, with what runs beside it."""
    app = make_app(directory, limits=limits)
    graph: Graph = app.state.graph
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on", access_log=False)
    server = uvicorn.Server(config)

    async def serve() -> None:
        beside = asyncio.ensure_future(graph.background())
        await server.serve()
        beside.cancel()
        await asyncio.wait({beside})

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), what="the server listens")
        yield Client(server.servers[0].sockets[0].getsockname()[1]), graph
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, ServiceProcess]]:
    """The service as its supervisor would start it, ready."""
    with ServiceProcess(run_path, "-m", "services.graph", name="graph", **env) as service:
        client = Client(int(service.url().rpartition(":")[2]))
        until(lambda: client.call("GET", "/readyz").status == 200, what="the service is ready")
        yield client, service


# -- ATT&CK -----------------------------------------------------------------------------------------------

COUNTS = {
    "x-mitre-analytic": 1739, "attack-pattern": 835, "malware": 696, "x-mitre-detection-strategy": 691,
    "course-of-action": 268, "intrusion-set": 187, "x-mitre-data-component": 109, "tool": 91, "campaign": 52,
    "x-mitre-data-source": 38, "x-mitre-tactic": 14, "x-mitre-matrix": 1, "identity": 1, "marking-definition": 1,
}  # fmt: skip
RELATIONS = {
    ("malware", "uses", "attack-pattern"): 9_700, ("intrusion-set", "uses", "attack-pattern"): 4_200,
    ("campaign", "uses", "attack-pattern"): 950, ("tool", "uses", "attack-pattern"): 800,
    ("intrusion-set", "uses", "malware"): 1_000, ("course-of-action", "mitigates", "attack-pattern"): 1_445,
    ("attack-pattern", "subtechnique-of", "attack-pattern"): 470,
    ("x-mitre-detection-strategy", "detects", "attack-pattern"): 691,
    ("campaign", "attributed-to", "intrusion-set"): 25, ("campaign", "uses", "malware"): 150,
    ("attack-pattern", "revoked-by", "attack-pattern"): 140,
    ("x-mitre-data-component", "detects", "attack-pattern"): 477,
}  # fmt: skip
"""About those of Enterprise ATT&CK 18: 4,723 objects and 20,048 relationships."""
LETTERS = {"attack-pattern": "T", "course-of-action": "M", "malware": "S", "tool": "S", "intrusion-set": "G"}


def attack_bundle(part: float = 1.0) -> dict[str, Any]:
    """A STIX bundle of ATT&CK's counts, types and shape, made up; or a part of one. Some techniques are much used."""
    drawn = random.Random(18)
    common = {"spec_version": "2.1", "created": "2020-05-21T17:43:26.506Z", "modified": "2025-04-15T19:58:01.218Z"}
    by_type: dict[str, list[str]] = {}
    objects: list[dict[str, Any]] = []
    for kind, count in COUNTS.items():
        for at in range(max(1, int(count * part))):
            id = f"{kind}--{uuid.UUID(int=drawn.getrandbits(128), version=4)}"
            by_type.setdefault(kind, []).append(id)
            made: dict[str, Any] = {
                "type": kind,
                "id": id,
                **common,
                "name": f"{kind} {at}",
                "description": "They may do so. " * 20,
            }
            if kind in LETTERS:
                made["external_references"] = [
                    {"source_name": "mitre-attack", "external_id": f"{LETTERS[kind]}{1000 + at}"}
                ]
            objects.append(made)
    for (source, type, target), count in RELATIONS.items():
        for _ in range(int(count * part)):
            some = by_type[target]
            objects.append(
                {
                    "type": "relationship", "id": f"relationship--{uuid.UUID(int=drawn.getrandbits(128), version=4)}",
                    **common, "relationship_type": type, "description": "As was seen. " * 10,
                    "source_ref": drawn.choice(by_type[source]),
                    "target_ref": some[min(int(drawn.expovariate(5 / len(some))), len(some) - 1)],
                }
            )  # fmt: skip
    return {"type": "bundle", "id": f"bundle--{uuid.UUID(int=1, version=4)}", "objects": objects}


def bundle_bytes() -> bytes:
    """The published Enterprise ATT&CK if ATTACK_ENTERPRISE_BUNDLE says where it is, else the made up one.

    It is github.com/mitre-attack/attack-stix-data, enterprise-attack/enterprise-attack.json; © The MITRE Corporation,
    and too large to be kept here.
    """
    path = os.environ.get("ATTACK_ENTERPRISE_BUNDLE")
    return Path(path).read_bytes() if path else json.dumps(attack_bundle()).encode()
