"""The HTTP interface: what is refused, and how; that nobody can stop it; and what a watcher sees."""

from __future__ import annotations

import json
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.support import short_dir, until
from tests.threat_reaction.support import Client, reacting

PLAYBOOK = {
    "description": "tells",
    "steps": {
        "start": {"type": "start", "on": ["port_scan"], "next": "tell"},
        "tell": {"type": "action", "action": "detect", "next": "pause"},
        "pause": {"type": "action", "action": "disrupt", "for_s": 2, "next": "end"},
        "end": {"type": "end"},
    },
}
CHANGES = [
    ("POST", "/sightings"),
    ("POST", "/reactions/x/approve"),
    ("POST", "/bans"),
    ("DELETE", "/bans/203.0.113.9?by=a"),
    ("PUT", "/never-block/203.0.113.9"),
    ("DELETE", "/never-block/127.0.0.0/8?by=a"),
    ("PUT", "/playbooks/x?by=a"),
    ("DELETE", "/playbooks/listed?by=a"),
    ("POST", "/playbooks/listed/approve"),
    ("POST", "/bouncers"),
    ("DELETE", "/bouncers/x?by=a"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """The service, for all of them."""
    with short_dir() as path, reacting(path) as (client, _):
        yield client


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_whoever_has_no_token_changes_nothing(client: Client, method: str, path: str) -> None:
    """401 with where its owner finds it, before the body is read."""
    for token in ("wrong", client.token[:-1]):
        answer = client.call(method, path, b"{}", token=token)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "cdn-threat-reaction.token" in answer.error["next"]


def test_the_token_is_private(client: Client) -> None:
    """0600."""
    path = client.run_dir / "cdn-threat-reaction.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((client.run_dir / "state" / "cdn-threat-reaction" / "reactions.db").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/sightings", b"", 400),
        ("POST", "/sightings", b"\xff\xfe", 400),
        ("POST", "/sightings", b"[" * 10_000, 400),
        ("POST", "/sightings", {"address": "203.0.113.300", "kind": "x"}, 400),
        ("POST", "/sightings", {"address": "203.0.113.3", "kind": "Not A Kind"}, 400),
        ("POST", "/sightings", {"address": "203.0.113.3", "kind": "x", "count": 0}, 400),
        ("POST", "/sightings", {"address": "203.0.113.3", "kind": "x", "at": 1e300}, 400),
        ("POST", "/sightings", {"address": "203.0.113.3", "kind": "x", "shell": "rm"}, 400),
        ("POST", "/sightings", [{"address": "203.0.113.3", "kind": "x"}] * 1001, 413),
        ("POST", "/sightings", b" " * (2 << 20), 413),
        ("POST", "/reactions/nobody/approve", {"by": "alice"}, 404),
        ("POST", "/reactions/nobody/explode", {"by": "alice"}, 404),
        ("POST", "/reactions/nobody/approve", {"by": ""}, 400),
        ("POST", "/bans", {"network": "10.0.0.1", "by": "alice"}, 409),
        ("POST", "/bans", {"network": "100.127.255.254", "by": "alice"}, 409),
        ("POST", "/bans", {"network": "0.0.0.0/0", "by": "alice"}, 400),
        ("POST", "/bans", {"network": "203.0.113.9/24", "by": "alice"}, 400),
        ("POST", "/bans", {"network": "203.0.113.9", "for_s": 1e9, "by": "alice"}, 400),
        ("DELETE", "/bans/203.0.113.99?by=alice", None, 404),
        ("DELETE", "/bans/203.0.113.99", None, 400),
        ("PUT", "/never-block/nonsense", {"by": "alice"}, 400),
        ("PUT", "/playbooks/x?by=alice", {"steps": {}}, 400),
        ("PUT", "/playbooks/x?by=alice", {"steps": {"end": {"type": "end"}, "e2": {"type": "end"}}}, 422),
        ("PUT", "/playbooks/x%20y?by=alice", PLAYBOOK, 400),
        ("PUT", "/playbooks/x", PLAYBOOK, 400),
        ("DELETE", "/playbooks/repeated-prefix?by=alice", None, 409),
        ("POST", "/playbooks/nobody/approve", {"by": "alice"}, 404),
        ("POST", "/playbooks/nobody/simulate", {}, 404),
        ("GET", "/reactions/nobody", None, 404),
        ("GET", "/reactions?limit=0", None, 400),
        ("GET", "/audit?after=x", None, 400),
        ("GET", "/sources/nonsense", None, 400),
        ("GET", "/nothing", None, 404),
        ("PATCH", "/bans", b"{}", 405),
    ],
)
def test_what_is_wrong_is_refused_clearly(client: Client, method: str, path: str, body: Any, status: int) -> None:
    """With a status, what, and mostly what to do; and the service lives."""
    answer = client.call(method, path, body)
    assert (answer.status, answer.error["status"]) == (status, status), answer.body


def test_random_bytes_do_not_stop_it(client: Client) -> None:
    """Neither as a request nor half of one."""
    half = b"POST /sightings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    for sent in (b"\x00" * 4096, half, b"GET " + b"/" * 70_000):
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as one:
            one.sendall(sent)
    assert client.call("GET", "/readyz").status == 200


def test_a_playbook_from_its_making_to_its_end(client: Client) -> None:
    """Made, simulated, approved beforehand, at work: it pauses an address for two seconds; dropped."""
    assert client.call("PUT", "/playbooks/scans?by=alice", PLAYBOOK).status == 201
    assert client.call("PUT", "/playbooks/scans?by=alice", PLAYBOOK).status == 200
    seen = [{"address": "198.18.9.9", "kind": "port_scan", "at": 1000.0 + second} for second in range(5)]
    simulated = client.call("POST", "/playbooks/scans/simulate", {"sightings": seen}, token="").json
    assert [(one["at_s"], one["action"], one["for_s"]) for one in simulated["decisions"]] == [
        (1000.0, "detect, disrupt", 2.0),
        (1002.0, "detect, disrupt", 2.0),
        (1004.0, "detect, disrupt", 2.0),
    ]
    assert client.get("/bans")["count"] == 0, "a simulation changes nothing"
    assert client.call("POST", "/playbooks/scans/approve", {"by": "alice", "for_s": 3600}).json["asks"] is False
    (reaction,) = client.see("198.18.9.9", "port_scan")["reactions"]
    assert (reaction["state"], reaction["kind"]) == ("approved", "throttle")
    until(lambda: client.get(f"/reactions/{reaction['id']}")["state"] == "ended", what="the pause is over")
    assert client.get("/sources/198.18.9.9")["recidivism"] == 0
    assert client.call("DELETE", "/playbooks/scans?by=alice").status == 204
    assert client.see("198.18.9.9", "port_scan")["reactions"] == []


def test_a_log_of_sshd(client: Client) -> None:
    """As text: it is read line by line, and what was sent before counts once."""
    lines = [
        f"2026-01-01T00:00:0{second}+00:00 host sshd[7]: Failed password for root from 198.18.7.7 port 1 ssh2"
        for second in range(3)
    ]
    body = "\n".join([*lines, "something else"]).encode()
    for expected in ({"accepted": 3, "duplicates": 0}, {"accepted": 0, "duplicates": 3}):
        answer = client.call("POST", "/sightings", body, content_type="text/plain")
        assert {name: answer.json[name] for name in expected} == expected
    assert [one["kind"] for one in client.get("/sources/198.18.7.7")["seen"]] == ["ssh_root_failed"] * 3
    typed = f"x\u2028{lines[0].replace('198.18.7.7', '198.18.7.8')}\u2028y"
    answer = client.call("POST", "/sightings", lines[0].replace("root", typed).encode(), content_type="text/plain")
    assert answer.json["accepted"] == 1
    assert client.get("/sources/198.18.7.8")["seen"] == []  # who is accused is who typed that for a name
    simulated = client.call("POST", "/playbooks/ssh-brute-force/simulate", {"sshd": lines}).json
    assert (simulated["let_through"], simulated["bans"]) == (3, 1)


def test_pages(client: Client) -> None:
    """Newest reactions first, the audit log oldest first, each whole by its pages."""
    ids = [client.proposed(f"198.18.5.{last}") for last in range(1, 6)]
    found: list[str] = []
    before: int | None = 1 << 60
    while before is not None and not set(ids) <= set(found):
        page = client.get(f"/reactions?state=proposed&limit=2&before={before}")
        found += [reaction["id"] for reaction in page["reactions"]]
        before = page["before"]
    assert found[:5] == ids[::-1]
    numbers: list[int] = []
    after: int | None = 0
    while after is not None:
        page = client.get(f"/audit?limit=3&after={after}")
        numbers += [entry["number"] for entry in page["entries"]]
        after = page["after"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert client.get("/audit/verify") == {"entries": len(numbers), "intact": True, "first_broken": None}


def test_a_watcher_sees_each_state(client: Client) -> None:
    """With the event that it is, and the one that it is because of."""
    with connect(f"ws://127.0.0.1:{client.port}/ws/stream") as watching:
        id = client.proposed("198.18.6.6")
        first = json.loads(watching.recv(timeout=30))
        assert (first["reaction"]["id"], first["reaction"]["state"]) == (id, "proposed")
        client.order(id, "deny")
        second = json.loads(watching.recv(timeout=30))
        assert (second["reaction"]["state"], second["cause"]) == ("denied", first["event"])
        assert second["reaction"]["by"] == "alice"


def test_a_full_disk(run_path: Path) -> None:
    """507, nothing half-done, bans in force as before; degraded, and well again once there is room."""
    with reacting(run_path) as (client, reactor):
        client.ban("203.0.113.9")
        database = run_path / "state" / "cdn-threat-reaction" / "reactions.db"
        limit = (database.with_name(database.name + "-wal").stat().st_size, resource.RLIM_INFINITY)
        resource.prlimit(reactor.process.pid, resource.RLIMIT_FSIZE, limit)
        answer = client.call("POST", "/sightings", {"address": "203.0.113.10", "kind": "x"})
        assert answer.status in (503, 507), answer.body
        assert answer.error["what"].startswith("cannot write")
        assert client.get("/bans")["count"] == 1
        until(lambda: client.get("/readyz")["health"] == "degraded", what="it says so")
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(reactor.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert client.see("203.0.113.10", "x")["accepted"] == 1
        until(lambda: client.get("/readyz")["health"] == "healthy", what="it is well again")
