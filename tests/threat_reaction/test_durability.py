"""Acknowledged means on disk: the real process, killed in the middle of sightings, and with bans in force."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.support import ServiceProcess, until
from tests.threat_reaction.support import MODULE, reacting


def test_every_acknowledged_sighting_survives_sigkill(run_path: Path) -> None:
    """Four clients send without pause; what was answered is there afterwards, once, and counts."""
    acknowledged: list[str] = []
    with reacting(run_path) as (client, reactor):

        def send(who: int) -> None:
            for number in range(100_000):
                id = f"{who}-{number}"
                body = {"address": f"198.51.{who}.{number % 250}", "kind": "http_refused", "id": id}
                try:
                    answer = client.call("POST", "/sightings", body)
                except OSError:
                    return
                assert answer.status == 200
                acknowledged.append(id)

        threads = [threading.Thread(target=send, args=(who,)) for who in range(1, 5)]
        for thread in threads:
            thread.start()
        until(lambda: len(acknowledged) > 200, what="sightings are acknowledged")
        reactor.stop()
        for thread in threads:
            thread.join()
    with reacting(run_path) as (client, _):
        body = [{"address": "198.51.1.1", "kind": "http_refused", "id": id} for id in acknowledged]
        for at in range(0, len(body), 1000):
            answer = client.call("POST", "/sightings", body[at : at + 1000])
            assert answer.json["accepted"] == 0, "each was there already"


def test_reactions_and_bans_survive_sigkill(run_path: Path) -> None:
    """A ban, a question, an approval, a list and a key, all as they were."""
    with reacting(run_path) as (client, reactor):
        approved, asked = client.proposed("203.0.113.9"), client.proposed("203.0.113.10")
        assert client.order(approved, "approve").status == 200
        assert client.call("PUT", "/never-block/192.0.2.0/24", {"by": "alice", "why": "us"}).status == 200
        assert client.call("POST", "/playbooks/listed/approve", {"by": "alice", "for_s": 3600}).status == 200
        held = client.call("POST", "/bouncers", {"name": "fw", "by": "alice"}).json["key"]
        before = client.get("/bans")["bans"]
        reactor.stop()
    with reacting(run_path) as (client, _):
        after = client.get("/bans")["bans"]
        assert [(ban["id"], ban["network"], ban["until_s"]) for ban in after] == [
            (ban["id"], ban["network"], ban["until_s"]) for ban in before
        ]
        assert client.get(f"/reactions/{asked}")["state"] == "proposed"
        assert client.order(asked, "deny").status == 200
        assert "192.0.2.0/24" in client.get("/never-block")["never_block"]
        assert client.get("/playbooks/listed")["standing"]["by"] == "alice"
        assert client.call("GET", "/v1/decisions/stream", token="", x_api_key=held).status == 200
        assert client.get("/audit/verify")["intact"]


def test_a_database_that_is_none_ends_it_and_stays_down(run_path: Path) -> None:
    """78, and what to do: to begin without it would free what somebody has contained."""
    state = run_path / "state" / "cdn-threat-reaction"
    state.mkdir(parents=True)
    (state / "reactions.db").write_bytes(b"this is no database" * 1000)
    reactor = ServiceProcess(run_path, "-m", MODULE)
    assert reactor.wait() == 78
    assert "mend it, or move it away" in reactor.log()


def test_a_second_instance_is_refused(run_path: Path) -> None:
    """Two would decide against each other."""
    reactor = ServiceProcess(run_path, "-m", MODULE, CDN_INSTANCE="cdn-threat-reaction-2")
    assert reactor.wait() == 78
    assert "run one" in reactor.log()
