"""ATT&CK's bundle for industrial control systems, whole.

The published one if ATTACK_BUNDLE says where it is (github.com/mitre-attack/attack-stix-data,
ics-attack/ics-attack.json; © The MITRE Corporation, and too large to be kept here); no package registry carries it.
Always one of the same counts, types and shape, made up.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from taxii2client.v21 import Server

from tests.threat_intel.support import Client, bundle, serving, stix_id

COUNTS = {
    "attack-pattern": 95, "x-mitre-detection-strategy": 83, "x-mitre-analytic": 82, "course-of-action": 52,
    "x-mitre-data-component": 36, "malware": 30, "x-mitre-asset": 18, "x-mitre-data-source": 17, "intrusion-set": 16,
    "x-mitre-tactic": 12, "campaign": 8, "x-mitre-collection": 1, "x-mitre-matrix": 1, "identity": 1,
}  # fmt: skip
"""Of version 18.1, beside one marking-definition and the relationships."""
WORDS = ["block", "stop", "read", "write", "spoof"]
RELATIONS = {
    ("attack-pattern", "targets", "x-mitre-asset"): 685,
    ("course-of-action", "mitigates", "attack-pattern"): 331,
    ("malware", "uses", "attack-pattern"): 267,
    ("x-mitre-detection-strategy", "detects", "attack-pattern"): 83,
    ("campaign", "attributed-to", "intrusion-set"): 5,
    ("attack-pattern", "revoked-by", "attack-pattern"): 2,
}


def made_up() -> dict[str, Any]:
    """A bundle of those counts, 3 MB as JSON."""
    drawn = random.Random(18)
    common = {"spec_version": "2.1", "created": "2020-05-21T17:43:26.506Z", "modified": "2025-04-15T19:58:01.218Z"}
    marking = {
        "type": "marking-definition", "spec_version": "2.1", "id": stix_id("marking-definition", drawn),
        "created": "2017-06-01T00:00:00.000Z", "definition_type": "statement", "definition": {"statement": "made up"},
    }  # fmt: skip
    by_type: dict[str, list[dict[str, Any]]] = {}
    number = 800
    for kind, count in COUNTS.items():
        for at in range(count):
            number += 1
            made: dict[str, Any] = {
                "type": kind, **common, "id": stix_id(kind, drawn), "name": f"{kind} {at}",
                "object_marking_refs": [marking["id"]], "x_mitre_domains": ["ics-attack"],
                "description": "Adversaries may " + " ".join(drawn.choices(WORDS, k=150)),
            }  # fmt: skip
            if kind in {"attack-pattern", "course-of-action", "malware"}:
                letter = {"attack-pattern": "T", "course-of-action": "M", "malware": "S"}[kind]
                url = f"https://attack.example/{letter}{number:04}"
                made["external_references"] = [
                    {"source_name": "mitre-attack", "external_id": f"{letter}{number:04}", "url": url},
                    {"source_name": "Somebody 2011", "description": "A Taxonomy " * 20},
                ]
            if kind == "attack-pattern":
                made["kill_chain_phases"] = [
                    {"kill_chain_name": "mitre-ics-attack", "phase_name": "inhibit-response-function"}
                ]
            if kind == "x-mitre-collection":
                made["x_mitre_contents"] = [{"object_ref": stix_id("tool", drawn)} for _ in range(1_800)]
            by_type.setdefault(kind, []).append(made)
    relations = [
        {
            "type": "relationship", **common, "id": stix_id("relationship", drawn), "relationship_type": relation,
            "source_ref": drawn.choice(by_type[source])["id"], "target_ref": drawn.choice(by_type[target])["id"],
            "description": "Because " * 60,
        }
        for (source, relation, target), count in RELATIONS.items() for _ in range(count)
    ]  # fmt: skip
    return bundle(marking, *(one for some in by_type.values() for one in some), *relations)


def loads_whole(client: Client, content: bytes) -> dict[str, dict[str, Any]]:
    """Every object is stored, and comes back by TAXII as it went in; the techniques by id."""
    sent = json.loads(content)["objects"]
    loaded = client.call("PUT", "/feeds/attack-ics", content, content_type="application/json").json
    assert (loaded["accepted"], loaded["rejected"]) == (len(sent), 0), loaded
    collection = next(
        one for one in Server(f"{client.url}/taxii2/").api_roots[0].collections if one.title == "attack-ics"
    )
    found: dict[str, Any] = {}
    page = collection.get_objects()
    while True:
        found |= {one["id"]: one for one in page["objects"]}
        if not page.get("more"):
            break
        page = collection.get_objects(next=page["next"])
    assert found == {one["id"]: one for one in sent}
    techniques = {}
    for one in sent:
        for reference in one.get("external_references", []):
            if one["type"] == "attack-pattern" and reference["source_name"] == "mitre-attack":
                techniques[reference["external_id"]] = one
    return techniques


def test_a_bundle_of_its_size_and_shape_loads_whole(tmp_path: Path) -> None:
    """1,826 objects; techniques are looked up with what mitigates, uses, detects and suffers them."""
    content = json.dumps(made_up()).encode()
    with serving(tmp_path / "state") as (client, _):
        techniques = loads_whole(client, content)
        assert len(techniques) == 95
        related: dict[str, set[str]] = {}
        for id, technique in techniques.items():
            told = client.call("GET", f"/techniques/{id}").json
            assert (told["name"], told["tactics"]) == (technique["name"], ["inhibit-response-function"])
            for one in told["related"]:
                related.setdefault(one["relationship"], set()).add(one["type"])
        assert related["mitigates"] == {"course-of-action"}
        assert related["targets"] == {"x-mitre-asset"}
        assert related["uses"] == {"malware"}
        assert client.call("PUT", "/feeds/attack-ics", content).json["removed"] == 0


@pytest.mark.skipif("ATTACK_BUNDLE" not in os.environ, reason="ATTACK_BUNDLE does not say where the bundle is")
def test_the_published_bundle_loads_whole(tmp_path: Path) -> None:
    """And T0803 is Block Command Message."""
    with serving(tmp_path / "state") as (client, _):
        techniques = loads_whole(client, Path(os.environ["ATTACK_BUNDLE"]).read_bytes())
        assert len(techniques) > 80
        told = client.call("GET", "/techniques/T0803").json
        assert told["name"] == "Block Command Message"
        assert told["tactics"] == ["inhibit-response-function"]
        assert told["url"] == "https://attack.mitre.org/techniques/T0803"
        assert {"mitigates", "detects", "targets"} <= {one["relationship"] for one in told["related"]}
