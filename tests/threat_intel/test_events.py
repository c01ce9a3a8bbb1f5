"""On the bus: what is sighted is heard by others, and a ban that was taken back is a verdict. Real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support import ServiceProcess, until
from tests.threat_intel.support import process


def test_sightings_are_told_and_overturned_bans_are_heard(run_path: Path) -> None:
    """With the cause that was given; the feed that listed whom the ban was for was wrong."""
    with (
        ServiceProcess(run_path, "-m", "services.atlas", name="atlas") as atlas,
        ServiceProcess(run_path, "-m", "tests.threat_intel.overturner", name="overturner") as other,
        process(run_path) as (client, _),
    ):
        atlas.url()
        client.put("list", "203.0.113.7", "198.51.100.0/24")
        client.call("POST", "/sightings", {"value": "203.0.113.7", "cause": "because", "id": "mine"})
        (looked,) = client.look("198.51.100.9", cause="also")

        def seen() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = json.loads(other.get("/seen")[1])
            return found

        until(lambda: len(seen()) == 2, what="both are heard", within_s=60)
        source = "cdn-threat-intel"
        assert sorted(seen(), key=lambda one: str(one["value"])) == [
            {"id": looked["event"], "source": source, "cause": "also", "value": "198.51.100.9"},
            {"id": "mine", "source": source, "cause": "because", "value": "203.0.113.7"},
        ]
        other.get("/overturn?target=198.51.100.9/32", data=b"")
        until(lambda: client.call("GET", "/feeds/list").json["false_positives"] == 1, what="it counts", within_s=60)
