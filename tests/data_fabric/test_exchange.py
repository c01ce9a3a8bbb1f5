"""Table ↔ GeoJSON ↔ graph, between the three real services; and what they say as a table, by the bus."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bus.endpoints import RunDir
from tests.data_fabric.support import Client, process
from tests.support import ROOT, ServiceProcess, until

PORTS = {"data_fabric": 18100, "geospatial": 18111, "graph": 18050}
PLACES = [
    {"type": "Point", "coordinates": [8.55, 47.46]},
    {"type": "LineString", "coordinates": [[179.5, -17.0], [180.0, -16.5]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 0]], [[5, 1], [6, 1], [6, 2], [5, 1]]]},
    None,
]


@pytest.fixture
def services(run_dir: RunDir) -> Iterator[dict[str, ServiceProcess]]:
    """The three, each its own process, in one run directory."""
    with ExitStack() as stack:
        begun = {
            name: stack.enter_context(ServiceProcess(run_dir.path, "-m", f"services.{name}", name=name))
            for name in PORTS
        }
        for service in begun.values():
            until(lambda service=service: service.get("/readyz")[0] == 200, what="ready")  # type: ignore[misc]
        yield begun


def client_of(service: ServiceProcess) -> Client:
    """Of any of the three: what is asked here they all understand."""
    return Client(int(service.url().rpartition(":")[2]))


@pytest.mark.skipif(shutil.which("curl") is None, reason="the commands are curl's")
def test_the_documents_commands(services: dict[str, ServiceProcess], run_path: Path) -> None:
    """docs/data-fabric.md's, as they stand: from a table to a window of the map, to a path, and back."""
    text = (ROOT / "docs" / "data-fabric.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    script = "".join(block for block in blocks if re.search(r"18111|18050", block))
    for name, port in PORTS.items():
        assert f"http://127.0.0.1:{port}" in script
        script = script.replace(f"http://127.0.0.1:{port}", services[name].url())
    (run_path / "run").symlink_to(run_path)
    done = subprocess.run(
        ["sh", "-e", "-c", script.replace("curl -fsS", "echo; curl -fsS")],
        cwd=run_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    _, loaded, _, swiss, _, imported, path, _, flown = answers
    assert loaded["features"] == 3
    assert swiss["rows"] == [["Zurich", 432], ["Bern", 510]]
    assert imported["created"] == 5
    assert [(found["cost"], [node["id"] for node in found["nodes"]]) for found in path["paths"]] == [
        (16590.0, ["BRN", "ZRH", "NAN"])
    ]
    assert flown["rows"] == [["Zurich", 90], ["Nadi", 16500]]


def test_a_table_goes_to_the_map_and_comes_back_as_it_was(services: dict[str, ServiceProcess], run_path: Path) -> None:
    """Each value and each kind of geometry, 2,500 of them, over more than one page; also once it was there and back."""
    fabric, map_ = client_of(services["data_fabric"]), client_of(services["geospatial"])
    token = {"Authorization": f"Bearer {(run_path / 'cdn-geospatial.token').read_text().strip()}"}
    rows = [
        {
            "id": f"p{n}", "n": n, "real": n / 7, "text": f"ü \"{n}\"", "none": None, "tags": json.dumps(["a", n]),
            "geometry": json.dumps(PLACES[n % len(PLACES)]) if PLACES[n % len(PLACES)] else None,
        }
        for n in range(2_500)
    ]  # fmt: skip
    assert fabric.load("places", json.dumps(rows), "json").status == 201
    query = {"sql": "SELECT * FROM places ORDER BY n", "limit": 10_000}
    given = fabric.call("POST", "/sql?format=geojson", query)
    assert not given.json["truncated"]
    for _ in range(2):
        put = map_.call("PUT", "/collections/places", given.body, content_type="application/geo+json", **token)
        assert put.status in (200, 201), put.body
        features: list[Any] = []
        url: str | None = "/collections/places/items?limit=1000"
        while url:
            page = map_.call("GET", url).json
            features += page["features"]
            url = next(
                (link["href"].partition(str(map_.port))[2] for link in page["links"] if link["rel"] == "next"), None
            )
        back = json.dumps({"type": "FeatureCollection", "features": features})
        assert fabric.load("back", back, "geojson", "PUT").status in (200, 201)
        difference = fabric.sql(
            "SELECT count(*), sum(b.n IS p.n AND b.real IS p.real AND b.text IS p.text AND b.none IS p.none "
            "AND b.tags IS p.tags AND json(b.geometry) IS json(p.geometry)) FROM places p JOIN back b USING (id)"
        ).json
        assert difference["rows"] == [[2_500, 2_500]]
        given = fabric.call("POST", "/sql?format=geojson", {"sql": "SELECT * FROM back ORDER BY n", "limit": 10_000})


def test_a_graph_goes_to_the_tables_and_comes_back_as_it_was(services: dict[str, ServiceProcess]) -> None:
    """Labels, types, properties, parallel relationships: from the graph to two tables, and into an empty graph."""
    fabric, graph = client_of(services["data_fabric"]), client_of(services["graph"])
    nodes = [{"id": f"n{n}", "labels": ["even", "all"] if n % 2 else [], "properties": {"n": n, "deep": {"a": [n]}}}
             for n in range(50)]  # fmt: skip
    relationships = [
        {"from": f"n{n}", "to": f"n{(n * 7) % 50}", "type": kind, "properties": {"weight": n / 3}}
        for n in range(50)
        for kind in ("likes", "knows")
    ]
    assert graph.call("POST", "/nodes", {"nodes": nodes}).status in (200, 201)
    assert graph.call("POST", "/relationships", {"relationships": relationships}).status in (200, 201)
    before = graph.call("GET", "/export?format=node-link").body
    assert fabric.load("told", before, "node-link").status == 201
    count = {"sql": "SELECT count(*), sum(properties ->> 'weight') FROM told WHERE type = 'likes'"}
    assert fabric.call("POST", "/sql", count).json["rows"] == [[50, pytest.approx(sum(range(50)) / 3)]]
    query = {"sql": "SELECT * FROM told", "limit": 10_000}
    given = fabric.call("POST", "/sql?format=node-link&nodes=told_nodes", query)
    for node in nodes:
        assert graph.call("DELETE", f"/nodes/{node['id']}?detach=true").status == 200
    answer = graph.call("POST", "/import", given.body)
    assert (answer.json["created"], answer.json["skipped"]) == (150, 0)
    after = graph.call("GET", "/export?format=node-link").json
    assert in_order(after) == in_order(json.loads(before))


def in_order(graph: Any) -> Any:
    """Nodes and edges, whatever came first."""
    return [sorted(graph[part], key=lambda one: str(one.get("key", one.get("id")))) for part in ("nodes", "edges")]


def heard(fabric: Client) -> float:
    """How many events this process has heard."""
    found = re.search(r"^events_heard_total\{.*\} (\S+)$", fabric.call("GET", "/metrics").body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_the_services_say_is_a_table(run_path: Path) -> None:
    """Emitted by another process, by way of ATLAS: docs/data-fabric.md's query has the chain, each event once.

    Also after a SIGKILL, when the next process hears the last ten minutes again.
    """
    text = (ROOT / "docs" / "data-fabric.md").read_text(encoding="utf-8")
    found = re.search(r"^    (WITH RECURSIVE chain.*\n.*\n.*)$", text, re.MULTILINE)
    assert found
    with (
        ServiceProcess(run_path, "-m", "services.atlas", name="atlas") as atlas,
        ServiceProcess(run_path, "-m", "tests.graph.teller", name="teller") as teller,
    ):
        atlas.url()
        with process(run_path) as (fabric, service):
            assert json.loads(teller.get("/tell", data=b"")[1]) == "told"
            count = "SELECT count(*), min(id) FILTER (WHERE cause IS NULL) FROM events"
            until(
                lambda: fabric.sql(count).body.startswith(b'{"columns"') and fabric.sql(count).json["rows"][0][0] == 3
            )
            (_, first) = fabric.sql(count).json["rows"][0]
            chain = fabric.sql(found[1], [first]).json["rows"]
            assert [row[1:3] for row in chain] == [["teller", kind] for kind in ("sighting", "reaction", "blocked")]
            assert [row[4] for row in chain] == [None, "203.0.113.7", None]
            os.kill(service.pid, signal.SIGKILL)
            service.wait(30)
        with process(run_path) as (fabric, _):
            until(lambda: heard(fabric) == 3, what="all is heard again", within_s=60)
            assert fabric.sql(found[1], [first]).json["rows"] == chain
            assert fabric.sql("SELECT count(*) FROM events").json["rows"] == [[3]]
