"""A served application, the real process, a client for both, and a graph of ATT&CK's shape."""

from __future__ import annotations

import json
import os
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from services.graph.limits import Limits
from services.graph.server import Graph, make_app
from tests.support import DoneAnswer, HttpClient, ServiceProcess, ready, served


class Client(HttpClient[DoneAnswer]):
    """Requests to one server."""

    def __init__(self, port: int) -> None:
        super().__init__(port, DoneAnswer)

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
    with served(app, graph.background) as port:
        yield Client(port), graph


@contextmanager
def process(run_path: Path, **env: str) -> Iterator[tuple[Client, ServiceProcess]]:
    """The service as its supervisor would start it, ready."""
    with ready(run_path, "services.graph", Client, name="graph", **env) as (client, service):
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
