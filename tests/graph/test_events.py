"""What the bus tells becomes a graph: from the attacker over the technique to what mitigates it; each event once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from bus.messages import Blocked, Event, Reaction, ReactionState, Sighting
from services.graph.heard import observable
from services.graph.limits import Limits
from services.graph.server import Graph
from tests.graph.support import Client, attack_bundle, process, serving
from tests.support import ServiceProcess, until

ADDRESS = "203.0.113.7"


def event(number: int, kind: str = "sighting", source: str = "cdn-threat-intel") -> Event:
    """Of some service."""
    return Event(
        id=f"e{number}", source=source, incarnation=1, seq=number, time_s=1e9 + number, host="here", instance=source,
        kind=kind, text="so", cause="c",
    )  # fmt: skip


def hear(graph: Graph, one: Event, facts: Any) -> None:
    """As the bus would tell."""
    asyncio.run(graph.hear(one, facts))


def sighting(*techniques: str, seen_by: str = "sshd") -> Sighting:
    """Of the address."""
    return Sighting(value=ADDRESS, value_type="ipv4-addr", confidence=80, techniques=techniques, seen_by=seen_by)


def around(client: Client) -> set[tuple[str, str, str]]:
    """What leads to and from the address."""
    edges = [{"from": "a", "to": "b", "direction": "both", "name": "r"}]
    found = client.query({"a": {"id": observable(ADDRESS)}, "b": {}}, edges)["matches"]
    return {(row["r"]["from"], row["r"]["type"], row["r"]["to"]) for row in found}


def test_from_the_attacker_to_what_mitigates(tmp_path: Path) -> None:
    """Whether ATT&CK was imported before the sighting or after it."""
    bundle = attack_bundle(0.05)
    by_id = {one["id"]: one for one in bundle["objects"]}
    mitigation = next(one for one in bundle["objects"] if one.get("relationship_type") == "mitigates")
    technique = mitigation["target_ref"]
    attack_id = by_id[technique]["external_references"][0]["external_id"]
    with serving(tmp_path) as (client, graph):
        hear(graph, event(1), sighting(attack_id))
        assert client.paths(observable(ADDRESS), f"attack:{attack_id}")
        client.call("POST", "/import", bundle)
        assert client.call("GET", f"/nodes/attack:{attack_id}").status == 404
        wanted = [[observable(ADDRESS), technique, mitigation["source_ref"]]]
        assert client.paths(observable(ADDRESS), mitigation["source_ref"], direction="both") == wanted
        hear(graph, event(2), sighting(attack_id))
        pattern: list[dict[str, Any]] = [
            {"from": "a", "to": "t", "types": ["sighted"], "name": "seen"},
            {"from": "m", "to": "t", "types": ["mitigates"]},
        ]
        nodes = {"a": {"id": observable(ADDRESS)}, "t": {}, "m": {"id": mitigation["source_ref"]}}
        assert len(client.query(nodes, pattern, distinct=True, **{"return": ["seen"]})["matches"]) == 2


def test_what_was_done_about_it(tmp_path: Path) -> None:
    """A reaction goes on in one node; a block ends; a network of one address is that address; nothing counts twice."""
    with serving(tmp_path) as (client, graph):
        hear(graph, event(1), sighting())
        for number, state in ((2, ReactionState.PROPOSED), (3, ReactionState.EXECUTED)):
            facts = Reaction(reaction="r1", state=state, action="deny", target=ADDRESS)
            hear(graph, event(number, "reaction", "cdn-threat-reaction"), facts)
        block = event(4, "blocked", "gateway-primary")
        hear(graph, block, Blocked(network=f"{ADDRESS}/32", action="deny"))
        about = {
            (observable(ADDRESS), "sighted", "sensor:sshd"),
            ("reaction:r1", "targets", observable(ADDRESS)),
            ("gateway:gateway-primary", "blocks", observable(ADDRESS)),
        }
        assert around(client) == about
        assert client.call("GET", "/nodes/reaction:r1").json["node"]["properties"]["state"] == "executed"
        version = client.call("GET", "/graph").json["snapshot"]["version"]
        hear(graph, event(1), sighting())
        hear(
            graph,
            event(2, "reaction"),
            Reaction(reaction="r1", state=ReactionState.PROPOSED, action="deny", target=ADDRESS),
        )
        hear(graph, block, Blocked(network=f"{ADDRESS}/32", action="deny"))
        assert client.call("GET", "/graph").json["snapshot"]["version"] == version
        hear(graph, event(5, "blocked", "gateway-primary"), Blocked(network=f"{ADDRESS}/32", action="delete"))
        assert around(client) == {one for one in about if one[1] != "blocks"}
        assert observable("2001:DB8::1/128") == "observable:2001:db8::1"
        assert observable("10.0.0.0/8") == "observable:10.0.0.0/8"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    """Of sightings, of which there is no end; and their times make a series."""
    with serving(tmp_path, Limits(heard=20)) as (client, graph):
        for number in range(1, 31):
            hear(graph, event(number), sighting("T1110", seen_by="sshd"))
        about = client.call("GET", "/graph").json
        assert about["types"] == {"sighted": 40}
        fitted = client.algorithm("hawkes", node=observable(ADDRESS), types=["sighted"])["figures"]
        assert fitted["events"] == 20
        assert fitted["duration_s"] == 19


def test_strange_values_are_heard(tmp_path: Path) -> None:
    """Whatever may be on the bus becomes a node that can be asked for."""
    with serving(tmp_path) as (client, graph):
        strange = ["", "\x00\n", "x" * 5000, "/32", "ü/128"]
        for number, value in enumerate(strange):
            hear(
                graph,
                event(number),
                Sighting(value=value, value_type="", confidence=0, techniques=(value,), feeds=(value,)),
            )
        assert client.call("GET", "/graph").json["types"]["sighted"] == len(strange)


def heard(client: Client) -> float:
    """How many events this process has heard."""
    for line in client.call("GET", "/metrics").body.decode().splitlines():
        if "events_heard_total" in line and not line.startswith("#"):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_over_the_bus(run_path: Path) -> None:
    """Emitted by another process, by way of ATLAS; heard once, also by the process that comes after a SIGKILL."""
    with (
        ServiceProcess(run_path, "-m", "services.atlas", name="atlas") as atlas,
        ServiceProcess(run_path, "-m", "tests.graph.teller", name="teller") as teller,
    ):
        atlas.url()
        with process(run_path) as (client, _):
            assert json.loads(teller.get("/tell", data=b"")[1]) == "told"
            until(lambda: client.call("GET", "/graph").json["nodes"] == 4, what="all is heard", within_s=60)
            version = client.call("GET", "/graph").json["snapshot"]["version"]
        with process(run_path) as (client, _):
            until(lambda: heard(client) == 3, what="all is heard again", within_s=60)
            assert client.call("GET", "/graph").json["snapshot"]["version"] == version
