"""The HTTP interface: what is written is found, by pattern, path and neighbourhood; what cannot be is refused."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
import networkx as nx
import psutil
import pytest
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from services.graph.limits import Limits
from services.graph.store import Store
from tests.graph.support import Client, attack_bundle, serving
from tests.support import until

STRANGE = 'a/b?c=1&d "e" <ü> \u4e2d; 1.2.3.4/32'


def family(client: Client) -> None:
    """ann ─knows→ bob ─knows→ cid ─knows→ dan, ann ─likes→ cid; two are tall."""
    client.call(
        "POST",
        "/nodes",
        {
            "nodes": [
                {"id": "ann", "labels": ["person", "tall"], "properties": {"name": "Ann", "age": 40, "tags": ["x"]}},
                {"id": "bob", "labels": ["person"], "properties": {"name": "Bob", "age": 30}},
                {"id": "cid", "labels": ["person", "tall"], "properties": {"name": "Cid", "age": 20}},
                {"id": "dan", "labels": ["dog"], "properties": {"name": "Dan"}},
            ]
        },
    )
    client.relate(("ann", "knows", "bob"), ("bob", "knows", "cid"), ("cid", "knows", "dan"), since=2020)
    client.relate(("ann", "likes", "cid"), since=2024, cost=0.5)


def test_nodes_and_relationships(tmp_path: Path) -> None:
    """Written, replaced, merged, read, deleted; the same again changes nothing."""
    with serving(tmp_path) as (client, _):
        first = {"nodes": [{"id": STRANGE, "labels": ["b", "a", "a"], "properties": {"x": 1, "y": {"z": [None, 1.5]}}}]}
        assert client.call("POST", "/nodes", first).json["created"] == 1
        again = client.call("POST", "/nodes", first).json
        assert (again["created"], again["updated"], again["version"]) == (0, 0, 1)
        found = client.call("GET", f"/nodes/{quote(STRANGE, safe='')}").json
        assert found["node"] == {"id": STRANGE, "labels": ["a", "b"], "properties": {"x": 1, "y": {"z": [None, 1.5]}}}
        more = {"nodes": [{"id": STRANGE, "labels": ["c"], "properties": {"x": 2}}], "merge": True}
        assert client.call("POST", "/nodes", more).json["updated"] == 1
        node = client.call("GET", f"/nodes/{quote(STRANGE, safe='')}").json["node"]
        assert (node["labels"], node["properties"]["x"], len(node["properties"])) == (["a", "b", "c"], 2, 2)
        client.call("POST", "/nodes", {"nodes": [{"id": STRANGE}]})
        node = client.call("GET", f"/nodes/{quote(STRANGE, safe='')}").json["node"]
        assert (node["labels"], node["properties"]) == ([], {})

        assert client.relate((STRANGE, "to", "other"), w=1)["created"] == 2
        assert (
            client.relate((STRANGE, "to", "other"), w=1)["version"]
            == client.relate((STRANGE, "to", "other"), w=1)["version"]
        )
        id = f"{STRANGE} to other"
        found = client.call("GET", f"/relationships/{quote(id, safe='')}").json["relationship"]
        assert found == {"id": id, "type": "to", "from": STRANGE, "to": "other", "properties": {"w": 1}}
        moved = {"id": id, "type": "at", "from": "other", "to": "other"}
        assert client.call("POST", "/relationships", {"relationships": [moved]}).json["updated"] == 1
        assert client.call("GET", "/nodes/other").json["degree"] == {"out": 1, "in": 1}
        assert client.call("GET", f"/nodes/{quote(STRANGE, safe='')}").json["degree"] == {"out": 0, "in": 0}
        assert client.call("DELETE", "/nodes/other").error["status"] == 409
        assert client.call("DELETE", "/nodes/other?detach=true").json["deleted"] == 2
        assert client.call("GET", "/nodes/other").status == 404
        assert client.call("DELETE", f"/relationships/{quote(id, safe='')}").status == 404
        assert client.call("GET", "/graph").json["nodes"] == 1


@pytest.mark.parametrize("engine", ["sql", "snapshot"])
def test_patterns(tmp_path: Path, engine: str) -> None:
    """By label, property, direction, type, several hops; each relationship once; the same by either engine."""
    with serving(tmp_path) as (client, graph):
        family(client)
        if engine == "snapshot":
            graph.engine.use_snapshot(yes=True)
        person: dict[str, Any] = {"labels": ["person"]}
        knows = {"from": "a", "to": "b", "types": ["knows"]}
        assert client.rows({"a": person, "b": person}, [knows]) == [{"a": "ann", "b": "bob"}, {"a": "bob", "b": "cid"}]
        assert client.rows({"a": {"id": "cid"}, "b": {}}, [{**knows, "direction": "in"}]) == [{"a": "cid", "b": "bob"}]
        both = client.rows({"a": {"id": "cid"}, "b": {}}, [{"from": "a", "to": "b", "direction": "both"}])
        assert [row["b"] for row in both] == ["ann", "bob", "dan"]
        for where, wanted in (
            ({"name": "Bob"}, ["bob"]),
            ({"age": {"ge": 30}}, ["ann", "bob"]),
            ({"age": {"gt": 20, "lt": 40}}, ["bob"]),
            ({"age": {"in": [20, 40, "x"]}}, ["ann", "cid"]),
            ({"name": {"starts_with": "A"}, "age": 40}, ["ann"]),
            ({"name": {"contains": "AN"}}, ["ann", "dan"]),
            ({"age": {"exists": False}}, ["dan"]),
            ({"age": {"ne": 40}}, ["bob", "cid", "dan"]),
            ({"tags": {"has": "x"}}, ["ann"]),
            ({"age": True}, []),
            ({"name": {"lt": 5}}, []),
        ):
            assert [row["a"] for row in client.rows({"a": {"where": where}}, [])] == wanted, where
        assert client.rows(
            {"a": {}, "b": {}}, [{"from": "a", "to": "b", "where": {"since": {"gt": 2021}}, "name": "r"}]
        ) == [{"a": "ann", "b": "cid", "r": "ann likes cid"}]
        far = client.rows({"a": {"id": "ann"}, "b": {}}, [{**knows, "hops": [2, 3], "name": "way"}])
        assert [(row["b"], row["way"]) for row in far] == [
            ("cid", "ann knows bob bob knows cid"),
            ("dan", "ann knows bob bob knows cid cid knows dan"),
        ]
        back = client.rows({"a": {}, "b": {"id": "dan"}}, [{**knows, "hops": [3, 3], "name": "way"}])
        assert back == [{"a": "ann", "b": "dan", "way": "ann knows bob bob knows cid cid knows dan"}]
        triangle = [{"from": "a", "to": "b"}, {"from": "b", "to": "c"}, {"from": "a", "to": "c"}]
        assert client.rows({"a": {}, "b": {}, "c": {}}, triangle) == [{"a": "ann", "b": "bob", "c": "cid"}]
        # One relationship cannot be both edges, so nobody is reached from bob by way of bob's only one.
        there_and_back = [
            {**knows, "direction": "both"},
            {"from": "b", "to": "c", "types": ["likes"], "direction": "both"},
        ]
        assert client.rows({"a": {"id": "ann"}, "b": {"id": "bob"}, "c": {}}, there_and_back) == []
        page = client.query({"a": {}}, [], limit=3, properties=False)
        assert (len(page["matches"]), page["more"]) == (3, True)
        assert "properties" not in page["matches"][0]["a"]
        assert (
            len(client.rows({"a": {}, "b": {}}, [{"from": "a", "to": "b"}], **{"return": ["a"], "distinct": True})) == 3
        )


def test_a_loop_is_one_relationship_whichever_way_it_is_gone(tmp_path: Path) -> None:
    """Out, in, or both: one match."""
    with serving(tmp_path) as (client, _):
        client.call("POST", "/nodes", {"nodes": [{"id": "a"}, {"id": "b"}]})
        client.relate(("a", "knows", "a"), ("a", "knows", "b"))
        for direction, others in (("out", ["a", "b"]), ("in", ["a"]), ("both", ["a", "b"])):
            edges = [{"from": "x", "to": "y", "direction": direction}]
            rows = client.rows({"x": {"id": "a"}, "y": {}}, edges)
            assert sorted(row["y"] for row in rows) == others, direction


@pytest.mark.parametrize("engine", ["sql", "snapshot"])
def test_paths_and_neighbourhoods(tmp_path: Path, engine: str) -> None:
    """The shortest, the k shortest, the cheapest; what lies around."""
    with serving(tmp_path) as (client, graph):
        family(client)
        if engine == "snapshot":
            graph.engine.use_snapshot(yes=True)
        assert client.paths("ann", "dan", k=5) == [["ann", "cid", "dan"], ["ann", "bob", "cid", "dan"]]
        assert client.paths("ann", "dan", types="knows") == [["ann", "bob", "cid", "dan"]]
        assert client.paths("ann", "dan", max_hops=1) == []
        assert client.paths("dan", "ann") == []
        assert client.paths("dan", "ann", direction="both") == [["dan", "cid", "ann"]]
        found = client.call("GET", "/paths?from=ann&to=dan&weight=cost").json["paths"][0]
        assert (found["cost"], [one["id"] for one in found["relationships"]]) == (
            1.5,
            ["ann likes cid", "cid knows dan"],
        )
        near = client.khop("ann", 1)
        assert [(node["id"], node["distance"]) for node in near["nodes"]] == [("bob", 1), ("cid", 1)]
        assert near["snapshot"]["engine"] == engine
        assert client.khop("ann", 2)["by_distance"] == [2, 1]
        assert client.khop("ann", 8, direction="in")["reached"] == 0
        page = client.khop("ann", 2, limit=1, properties="true")
        assert (page["nodes"][0]["properties"]["name"], page["reached"], page["more"]) == ("Bob", 3, True)


def test_algorithms(tmp_path: Path) -> None:
    """On part of the graph, with who the nodes are; Hawkes from times and from a node's relationships."""
    with serving(tmp_path) as (client, _):
        family(client)
        scores = client.algorithm("pagerank", types=["knows"])["scores"]
        assert [one["id"] for one in scores] == ["dan", "cid", "bob", "ann"]
        assert sum(one["score"] for one in scores) == pytest.approx(1)
        assert client.algorithm("betweenness")["scores"][0]["id"] == "cid"
        assert [one["size"] for one in client.algorithm("components", strong=True)["groups"]] == [1, 1, 1, 1]
        assert client.algorithm("components", labels=["person"])["groups"][0]["members"] == ["ann", "bob", "cid"]
        assert client.algorithm("communities")["figures"]["groups"] >= 1
        rank = client.algorithm("matroid-rank")
        assert (rank["figures"]["rank"], rank["figures"]["nullity"]) == (3, 1)
        some = client.algorithm("matroid-rank", relationships=["ann knows bob", "bob knows cid"])
        assert some["figures"]["is_independent"]
        assert {one["id"] for one in some["basis"]} == {"ann knows bob", "bob knows cid"}
        times = [at + burst for at in range(0, 2000, 100) for burst in (0, 0.5, 0.9, 1.1)]
        fitted = client.algorithm("hawkes", times=times)["figures"]
        assert fitted["is_self_exciting"]
        assert 0.5 < fitted["branching_ratio"] < 1
        made = [{"id": f"s{at}", "from": "ann", "to": "bob", "type": "saw", "properties": {"at_s": at}} for at in times]
        client.call("POST", "/relationships", {"relationships": made})
        assert client.algorithm("hawkes", node="ann", types=["saw"])["figures"] == pytest.approx(fitted)
        assert client.call("POST", "/algorithms/hawkes", {"times": [1, 2]}).error["status"] == 422


REFUSED = [
    ("POST", "/nodes", b"{", 400),
    ("POST", "/nodes", b"[" * 100_000, 400),
    ("POST", "/nodes", {"nodes": []}, 413),
    ("POST", "/nodes", {"nodes": [{"id": "x"}] * 10_001}, 413),
    ("POST", "/nodes", {"nodes": [{"id": ""}]}, 400),
    ("POST", "/nodes", {"nodes": [{"id": "x\u0000"}]}, 422),
    ("POST", "/nodes", {"nodes": [{"id": "x" * 600}]}, 400),
    ("POST", "/nodes", {"nodes": [{"id": "new", "labels": [f"l{n}" for n in range(17)]}]}, 422),
    ("POST", "/nodes", {"nodes": [{"id": "new"}, {"id": "large", "properties": {"x": "y" * 300_000}}]}, 422),
    ("POST", "/nodes", {"nodes": [{"id": "new", "colour": "red"}]}, 400),
    ("POST", "/nodes", b" " * (8 << 20) + b"1", 413),
    ("POST", "/relationships", {"relationships": [{"from": "ann", "to": "nobody", "type": "x"}]}, 422),
    ("GET", "/nodes/nobody", None, 404),
    ("GET", "/relationships/nothing", None, 404),
    ("GET", "/nodes/nobody/khop", None, 404),
    ("GET", "/nodes/ann/khop?k=9", None, 400),
    ("GET", "/nodes/ann/khop?direction=up", None, 400),
    ("GET", "/nodes/ann/khop?properties=maybe", None, 400),
    ("GET", "/nodes/ann/khop?max_staleness_s=-1", None, 400),
    ("GET", "/paths?from=ann", None, 400),
    ("GET", "/paths?from=ann&to=bob&k=1000", None, 400),
    ("GET", "/paths?from=ann&to=bob&weight=negative", None, 422),
    ("POST", "/query", {"nodes": {}}, 422),
    ("POST", "/query", {"nodes": {"a": {}, "b": {}}}, 422),
    ("POST", "/query", {"nodes": {"a": {}}, "edges": [{"from": "a", "to": "z"}]}, 422),
    ("POST", "/query", {"nodes": {"a": {"where": {"x": {"like": 1}}}}}, 422),
    ("POST", "/query", {"nodes": {"a": {}}, "edges": [{"from": "a", "to": "a", "hops": [3, 2]}]}, 422),
    ("POST", "/query", {"nodes": {"a": {}}, "edges": [{"from": "a", "to": "a", "hops": [1, 99]}]}, 422),
    ("POST", "/query", {"nodes": {"a": {}}, "return": ["b"]}, 422),
    ("POST", "/query", {"nodes": {"a": {}}, "limit": 10_000}, 400),
    ("POST", "/query", {"nodes": {"a": {}}, "timeout_s": 1e9}, 400),
    ("POST", "/query", {"nodes": {f"n{n}": {} for n in range(11)}}, 422),
    ("POST", "/algorithms/magic", {}, 404),
    ("POST", "/algorithms/hawkes", {}, 422),
    ("POST", "/algorithms/betweenness", {"weight": "cost"}, 422),
    ("POST", "/algorithms/matroid-rank", {"relationships": ["nothing"]}, 404),
    ("POST", "/import", b"garbage", 400),
    ("POST", "/import?format=gexf", {"nodes": []}, 400),
    ("POST", "/import", {"edges": []}, 400),
    ("GET", "/export?format=gexf", None, 400),
    ("DELETE", "/graph", None, 405),
    ("GET", "/nope", None, 404),
]


def test_what_is_wrong_is_refused_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    """With its status and in the form of every refusal; the service goes on."""
    with serving(tmp_path) as (client, _):
        family(client)
        client.relate(("ann", "owes", "bob"), negative=-1)
        before = client.call("GET", "/graph").json
        for method, path, body, status in REFUSED:
            assert client.call(method, path, body).error["status"] == status, (path, str(body)[:200])
        made = client.call("POST", "/nodes", {"nodes": [{"id": "new"}]}, Origin="https://evil.example")
        assert made.error["status"] == 403
        assert client.call("GET", "/graph").json == before


def test_no_more_than_may_be_kept(tmp_path: Path) -> None:
    """One node too many is refused, with its whole batch; a deleted one makes room."""
    with serving(tmp_path, Limits(nodes=3, relationships=1)) as (client, _):
        client.nodes("a", "b")
        refused = client.call("POST", "/nodes", {"nodes": [{"id": "c"}, {"id": "d"}]}).error
        assert (refused["status"], refused["limit"]) == (409, "3")
        assert client.call("GET", "/nodes/c").status == 404
        client.relate(("a", "x", "b"))
        assert (
            client.call("POST", "/relationships", {"relationships": [{"from": "b", "to": "a", "type": "x"}]}).status
            == 409
        )
        client.call("DELETE", "/nodes/a?detach=true")
        client.nodes("c", "d")
        client.relate(("c", "x", "d"))


def test_how_stale_an_answer_is(tmp_path: Path) -> None:
    """It says so; nobody waits for the newest who does not ask for it; and nothing is older than the bound."""
    with serving(tmp_path, Limits(staleness_s=1e6)) as (client, graph):
        family(client)
        graph.engine.refresh_s = 1e6
        graph.engine.use_snapshot(yes=True)
        assert client.khop("ann", 1)["snapshot"]["behind_writes"] == 0
        written = client.relate(("ann", "knows", "eve"))
        stale = client.khop("ann", 1)
        assert stale["reached"] == 2
        assert stale["snapshot"]["behind_writes"] == 2
        assert stale["snapshot"]["age_s"] > 0
        assert client.call("GET", "/nodes/eve/khop").error["next"].startswith("max_staleness_s=0")
        newest = client.khop("ann", 1, max_staleness_s=0)
        assert newest["reached"] == 3
        assert newest["snapshot"] == {
            "version": written["version"],
            "age_s": 0,
            "behind_writes": 0,
            "engine": "snapshot",
        }
    with serving(tmp_path, Limits(staleness_s=0.0)) as (client, graph):
        graph.engine.refresh_s = 1e6
        graph.engine.use_snapshot(yes=True)
        client.relate(("ann", "knows", "fay"))
        assert client.khop("ann", 1)["reached"] == 4


def test_a_snapshot_follows_what_is_written_while_it_is_read(tmp_path: Path) -> None:
    """By itself, without a question that has to wait for it; a pinned answer too."""
    with serving(tmp_path, Limits(staleness_s=1e6)) as (client, graph):
        family(client)
        graph.engine.use_snapshot(yes=True)
        client.khop("ann", 1)
        (question,) = graph.engine.workload.take()[1].items()
        assert question[1].answer is not None
        graph.engine.pin(question[0], question[1].answer)
        until(lambda: client.khop("ann", 1)["snapshot"]["engine"] == "pinned", what="it is kept ready")
        client.relate(("ann", "knows", "eve"))
        until(lambda: client.khop("ann", 1)["reached"] == 3, what="it follows")
        assert client.khop("ann", 1, max_staleness_s=0)["snapshot"]["behind_writes"] == 0


def test_two_processes_over_one_graph(tmp_path: Path) -> None:
    """What one has written the other answers, by SQL and by its snapshot."""
    with serving(tmp_path) as (first, _), serving(tmp_path) as (second, graph):
        family(first)
        assert second.khop("ann", 1)["reached"] == 2
        graph.engine.use_snapshot(yes=True)
        first.relate(("ann", "knows", "eve"))
        assert second.khop("ann", 1, max_staleness_s=0)["reached"] == 3


def test_export_is_what_networkx_reads(tmp_path: Path) -> None:
    """Node-link and GraphML; and an import of either's own comes to the same graph."""
    with serving(tmp_path / "one") as (client, _), serving(tmp_path / "other") as (other, _):
        family(client)
        client.nodes(STRANGE, labels=("ü", "<b>"), text="a\u0001b & <c> \u4e2d", big=2**40, f=1.5, yes=True, none=None)
        client.relate((STRANGE, "x", "ann"), (STRANGE, "y", "ann"))
        exported = client.call("GET", "/export").body
        graph = nx.node_link_graph(json.loads(exported), edges="edges")
        assert sorted(graph) == sorted(["ann", "bob", "cid", "dan", STRANGE])
        assert graph.nodes["ann"]["properties"]["age"] == 40
        assert set(graph[STRANGE]["ann"]) == {f"{STRANGE} x ann", f"{STRANGE} y ann"}

        text = client.call("GET", "/export?format=graphml")
        read = nx.read_graphml(io.BytesIO(text.body))
        assert sorted(read) == sorted(graph)
        assert read.number_of_edges() == graph.number_of_edges()
        assert read.nodes["ann"]["labels"] == "person:tall"
        assert (read.nodes["ann"]["age"], read.nodes["ann"]["tags"]) == (40, '["x"]')
        strange = read.nodes[STRANGE]
        assert (strange["text"], strange["big"], strange["f"], strange["yes"]) == (
            "a\ufffdb & <c> \u4e2d",
            2**40,
            1.5,
            True,
        )
        assert {held["type"] for _, _, held in read.out_edges(STRANGE, data=True)} == {"x", "y"}

        assert other.call("POST", "/import", exported).json["created"] == 5 + 6
        assert other.call("GET", "/export").body == exported
        plain = nx.node_link_data(nx.path_graph(4, create_using=nx.MultiDiGraph), edges="edges")
        done = other.call("POST", "/import?format=node-link", plain).json
        assert (done["created"], done["skipped"]) == (7, 0)
        assert other.paths("0", "3") == [["0", "1", "2", "3"]]
        odd = {
            "nodes": [
                {"id": "as text", "labels": '["a"]', "properties": '{"b": 1}'},
                {"id": "others", "labels": "red", "properties": 7},
            ],
            "edges": [{"source": "as text", "target": "others", "key": None, "properties": '{"c": 2}'}],
        }
        assert other.call("POST", "/import?format=node-link", odd).json["created"] == 3
        kept = {one["id"]: one for one in other.call("GET", "/export").json["nodes"]}
        assert (kept["as text"]["labels"], kept["as text"]["properties"]) == (["a"], {"b": 1})
        assert (kept["others"]["labels"], kept["others"]["properties"]) == ([], {"labels": "red", "properties": 7})


def test_graphml_keeps_what_a_property_is_called_like(tmp_path: Path) -> None:
    """Labels and types are there beside properties of these names, such as STIX' labels."""
    with serving(tmp_path) as (client, _):
        client.nodes("a", labels=("person",))
        client.call("POST", "/nodes", {"nodes": [{"id": "b", "labels": ["x", "y"], "properties": {"labels": ["z"]}}]})
        properties = {"type": "mine", "labels": 1}
        edges = [{"from": "a", "to": "b", "type": "knows", "properties": properties}]
        assert client.call("POST", "/relationships", {"relationships": edges}).json["created"] == 1
        read = nx.read_graphml(io.BytesIO(client.call("GET", "/export?format=graphml").body))
        assert read.nodes["b"] == {"labels": "x:y", "property:labels": '["z"]'}
        ((_, _, held),) = read.edges(data=True)
        assert held.items() >= {"type": "knows", "property:type": "mine", "labels": 1}.items()


def test_a_stix_bundle(tmp_path: Path) -> None:
    """Objects and relationships under their ids; what is none is left out and told; a sighting leads to its parts."""
    bundle = attack_bundle(0.02)
    kinds = [one["type"] for one in bundle["objects"]]
    sighted = next(one["id"] for one in bundle["objects"] if one["type"] == "malware")
    bundle["objects"] += [
        {"type": "sighting", "id": "sighting--1", "sighting_of_ref": sighted, "where_sighted_refs": ["identity--9"]},
        {"type": "relationship", "id": "relationship--1", "source_ref": sighted},
        {"name": "nothing"},
        17,
    ]
    with serving(tmp_path) as (client, _):
        done = client.call("POST", "/import", bundle).json
        assert done["skipped"] == len(done["examples"]) == 3
        about = client.call("GET", "/graph").json
        assert about["relationships"] == kinds.count("relationship") + 2
        assert about["labels"]["malware"] == kinds.count("malware")
        assert client.khop("sighting--1", 1, direction="out")["reached"] == 2
        technique = client.query({"t": {"where": {"attack_id": "T1000"}}}, [])["matches"][0]["t"]
        assert technique["labels"] == ["attack-pattern"]
        assert technique["properties"]["description"].startswith("They may")
        again = client.call("POST", "/import", bundle).json
        assert (again["created"], again["updated"]) == (0, 0)


def test_the_stream_tells_every_change(tmp_path: Path) -> None:
    """In order, from now on or from a change on; what is no longer kept is said to be missed."""
    with serving(tmp_path, Limits(changes=5)) as (client, _):
        client.nodes("a")
        with connect(f"ws://127.0.0.1:{client.port}/ws/stream") as stream:
            client.relate(("a", "x", "b"))
            client.call("DELETE", "/nodes/b?detach=true")
            told = [json.loads(stream.recv(timeout=30)) for _ in range(4)]
        assert [(one["seq"], one["what"], one["id"]) for one in told] == [
            (2, "node", "b"),
            (3, "relationship", "a x b"),
            (4, "relationship_deleted", "a x b"),
            (5, "node_deleted", "b"),
        ]
        assert told[1]["detail"] == {"type": "x", "from": "a", "to": "b"}
        with connect(f"ws://127.0.0.1:{client.port}/ws/stream?after=3") as stream:
            assert json.loads(stream.recv(timeout=30))["seq"] == 4
        client.nodes(*(f"n{n}" for n in range(10)))
        with connect(f"ws://127.0.0.1:{client.port}/ws/stream?after=3") as stream:
            assert json.loads(stream.recv(timeout=30)) == {"missed": 7}
            assert json.loads(stream.recv(timeout=30))["seq"] == 11
        until(lambda: client.call("GET", "/graph").status == 200)


def dense(client: Client, count: int) -> None:
    """Everybody knows everybody."""
    client.nodes(*(f"n{n}" for n in range(count)), labels=("n",))
    pairs = [{"from": f"n{a}", "to": f"n{b}", "type": "x"} for a in range(count) for b in range(count) if a != b]
    for at in range(0, len(pairs), 10_000):
        assert client.call("POST", "/relationships", {"relationships": pairs[at : at + 10_000]}).status == 201


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    """At its deadline; and when the client has gone, long before it. Others are answered meanwhile."""
    with serving(tmp_path) as (client, graph):
        dense(client, 60)
        client.nodes("nobody")
        far = {
            "nodes": {f"v{n}": {} for n in range(6)},
            "edges": [{"from": f"v{n}", "to": f"v{n + 1}"} for n in range(5)],
        }
        far["nodes"]["v5"] = {"where": {"no": "such"}}  # type: ignore[index]
        far["nodes"]["v0"] = {"id": "n0"}  # type: ignore[index]
        refused = client.call("POST", "/query", {**far, "timeout_s": 0.3}).error
        assert (refused["status"], refused["limit"]) == (422, "0.3 s")
        refused = client.call("POST", "/algorithms/betweenness", {"timeout_s": 0.001}).error
        assert refused["status"] == 422

        body = json.dumps({**far, "timeout_s": 30}).encode()
        with socket.create_connection(("127.0.0.1", client.port)) as leaving:
            leaving.sendall(b"POST /query HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            until(lambda: graph.engine._under_way == 1, what="it is under way")
            assert client.khop("n0", 1)["reached"] == 59
        until(lambda: graph.engine._under_way == 0, what="it has ended", within_s=20)


def test_more_than_can_be_answered_at_once(tmp_path: Path) -> None:
    """Is refused with 503; when those who asked have gone, there is room."""
    with serving(tmp_path, Limits(reading=1, reading_waiting=1)) as (client, graph):
        dense(client, 60)
        names = [f"v{n}" for n in range(6)]
        far: dict[str, Any] = {
            "nodes": {name: {} for name in names} | {"v0": {"id": "n0"}, "v5": {"where": {"no": "such"}}},
            "edges": [{"from": one, "to": other} for one, other in pairwise(names)],
            "timeout_s": 30,
        }
        with asking(client, "/query", far), asking(client, "/query", far):
            until(lambda: graph.engine._under_way == 2, what="both are under way")
            assert client.call("GET", "/graph").error["status"] == 503
        until(lambda: graph.engine._under_way == 0, what="they have ended", within_s=20)
        assert client.call("GET", "/graph").status == 200


def asking(client: Client, path: str, asked: Any) -> socket.socket:
    """Somebody who may leave before the answer."""
    body = json.dumps(asked).encode()
    connection = socket.create_connection(("127.0.0.1", client.port))
    connection.sendall(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
    )
    return connection


def test_an_algorithm_ends_with_who_asked(tmp_path: Path) -> None:
    """Its process is gone long before it would have ended."""

    def computing() -> list[int]:
        found = []
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if "services.graph.compute" in child.cmdline():
                    found.append(child.pid)
        return found

    drawn = random.Random(1)
    with serving(tmp_path) as (client, _):
        with asking(client, "/algorithms/hawkes", {"times": [drawn.random() for _ in range(20_000)], "timeout_s": 30}):
            (pid,) = until(computing)
        until(lambda: not psutil.pid_exists(pid), within_s=20)
        assert client.algorithm("components")["figures"] == {"groups": 0}


def test_who_leaves_an_export_holds_nobody_up(tmp_path: Path) -> None:
    """One more than may be is refused; as soon as one leaves there is room again; a slow one is cut off."""

    def exporting(client: Client) -> socket.socket:
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(b"GET /export HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        return slow

    with serving(tmp_path, Limits(exports=1)) as (client, graph):
        for batch in range(20):  # more than the kernel holds for who does not read
            made = [{"id": f"n{batch}-{n}", "properties": {"text": "x" * 20_000}} for n in range(100)]
            assert client.call("POST", "/nodes", {"nodes": made}).status == 201
        with exporting(client):
            assert client.call("GET", "/export").error["status"] == 503
        until(lambda: graph._exports == 0, what="it has ended")
        assert len(json.loads(client.call("GET", "/export").body)["nodes"]) == 2000
        until(lambda: graph._exports == 0, what="it has ended")
    with serving(tmp_path, Limits(exports=1, export_s=0.5)) as (client, graph), exporting(client):
        until(lambda: graph._exports == 0, what="it is cut off")


def test_a_listener_that_cannot_be_accepted_keeps_no_place(tmp_path: Path) -> None:
    """It went away meanwhile: there is room for as many as before."""

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(_: object) -> None:
        raise OSError("gone")

    with serving(tmp_path) as (_, graph):
        scope = {"type": "websocket", "path": "/ws/stream", "query_string": b"", "headers": []}
        with pytest.raises(OSError, match="gone"):
            asyncio.run(graph.stream.serve(WebSocket(scope, receive, send)))
        assert len(graph.stream) == 0


ODD = ['a"b', "a\\", 'a\\"', "a.b", "$[0]", "\n", "é"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_of_a_property(tmp_path: Path, name: str) -> None:
    """Can be asked for, and weighed by."""
    with serving(tmp_path) as (client, _):
        x: dict[str, Any] = {name: "x"}
        client.nodes("ann", **x)
        client.relate(("ann", "knows", "cid"), **{name: 5})
        client.relate(("ann", "knows", "bob"), ("bob", "knows", "cid"), **{name: 1})
        assert client.rows({"a": {"where": x}}, []) == [{"a": "ann"}]
        assert client.paths("ann", "cid", weight=name) == [["ann", "bob", "cid"]]


def test_a_transaction_that_cannot_begin(tmp_path: Path) -> None:
    """What is raised is why, and the connection goes on to serve."""
    store = Store(tmp_path)
    store.open()
    with store.reading() as db:
        db.set_progress_handler(None)
    db.execute("BEGIN")
    db.execute("ROLLBACK")
    db.authorizer = lambda *_: apsw.SQLITE_DENY
    with pytest.raises(apsw.AuthError, match="not authorized"), store.reading():
        pass
    db.authorizer = None
    with store.reading() as again:
        assert again is db
    store.close()
