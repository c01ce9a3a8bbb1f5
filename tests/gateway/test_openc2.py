"""OpenC2 through a real gateway: what is denied is refused at once, stays so after SIGKILL, and ends when it should."""

from __future__ import annotations

import json
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from bus.messages import Blocked, Event
from services.gateway import openc2
from services.gateway.blocklist import Blocklist, Network, Rule, parse_network
from services.gateway.blockstore import BlockStore, StoreError
from tests.gateway.sockets import Peer, echoing_heads
from tests.gateway.support import Fleet, Process, a_fleet
from tests.support import short_dir, until

PROXIED = {"FORWARDED_ALLOW_IPS": "127.0.0.1"}
"""So a test can come from any address: the gateway believes what 127.0.0.1 says of its client."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Behind a proxy, which is the test."""
    with short_dir() as path, a_fleet(path, **PROXIED) as fleet:
        yield fleet


def token(fleet: Fleet) -> str:
    """Of the gateway."""
    return (fleet.run_dir.path / "gateway-primary.openc2.token").read_text().strip()


def order(
    fleet: Fleet, action: str, target: dict[str, Any], *headers: str, bearer: str | None = None, **command: Any
) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to a command; it comes from the address of a test net."""
    body = json.dumps({"action": action, "target": target, **command}).encode()
    sent = (f"Authorization: Bearer {bearer or token(fleet)}", f"Content-Length: {len(body)}", *headers)
    answer = fleet.ask("POST", "/openc2", *sent, body=body)
    return answer.status, json.loads(answer.body or b"{}")


def ask(fleet: Fleet, client: str, path: str = "/x/") -> int:
    """What a client with this address is answered."""
    return fleet.ask("GET", path, f"X-Forwarded-For: {client}").status


def test_the_token_is_private(fleet: Fleet) -> None:
    """0600, and nothing is done without it, whatever the command."""
    path = fleet.run_dir.path / "gateway-primary.openc2.token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    status, answer = order(fleet, "deny", {"ipv4_net": "198.51.100.1"}, bearer="x" * 43)
    assert (status, answer["status"]) == (401, 401)
    assert fleet.ask("POST", "/openc2", "Content-Length: 0").one("www-authenticate") == "Bearer"
    assert fleet.ask("GET", "/openc2").status == 405
    assert order(fleet, "query", {"ipv4_net": "198.51.100.1"})[0] == 404


def test_deny_allow_delete(fleet: Fleet) -> None:
    """403 with the reason for who is denied, and for nobody else; an allow within it; then all is as it was."""
    with fleet.instance("x", echoing_heads):
        fleet.routed("x")
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.0/24"}) == (200, {"status": 200, "status_text": "OK"})
        refused = fleet.ask("GET", "/x/", "X-Forwarded-For: 198.51.100.7")
        assert (refused.status, refused.one("connection")) == (403, "close")
        assert (refused.error["value"], refused.error["limit"]) == ("198.51.100.7", "198.51.100.0/24")
        assert ask(fleet, "198.51.100.7", "/nobody/") == 403, "before anything else is done"
        assert ask(fleet, "198.51.101.7") == 200
        assert order(fleet, "allow", {"ipv4_net": "198.51.100.7"})[0] == 200
        assert ask(fleet, "198.51.100.7") == 200
        _, answer = order(fleet, "query", {"ipv4_net": "198.51.100.7"})
        rules = answer["results"]["x-cdn-gateway"]["rules"]
        assert [(rule["network"], rule["action"]) for rule in rules] == [
            ("198.51.100.0/24", "deny"),
            ("198.51.100.7/32", "allow"),
        ]
        assert order(fleet, "delete", {"ipv4_net": "198.51.100.7"})[0] == 200
        assert ask(fleet, "198.51.100.7") == 403
        assert order(fleet, "delete", {"ipv4_net": "198.51.100.0/24"})[0] == 200
        assert order(fleet, "delete", {"ipv4_net": "198.51.100.0/24"})[0] == 404
        assert ask(fleet, "198.51.100.7") == 200
        assert order(fleet, "deny", {"ipv6_net": "2001:db8:1::/48"})[0] == 200
        assert (ask(fleet, "2001:db8:1::9"), ask(fleet, "2001:db8:2::9")) == (403, 200)
        counted = 'gateway_openc2_commands_total{action="deny",status="200"}'
        until(lambda: fleet.metrics().get(counted, 0) >= 2, what="commands are counted")
        until(lambda: fleet.metrics()["gateway_blocked_total"] >= 4, what="the refused are counted")


def test_a_network_is_slowed(fleet: Fleet) -> None:
    """By a deny with a rate: what goes beyond it gets 429, for all of the network together; others are served."""
    args = {"x-cdn-gateway": {"rate_per_s": 0.001}}
    with fleet.instance("slowed", echoing_heads):
        fleet.routed("slowed")
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.80/31"}, args=args)[0] == 200
        assert [ask(fleet, f"198.51.100.{last}", "/slowed/") for last in (80, 81, 80, 82)] == [200, 429, 429, 200]
        refused = fleet.ask("GET", "/slowed/", "X-Forwarded-For: 198.51.100.80")
        assert refused.error["limit"] == "0.001 a second from 198.51.100.80/31"
        assert 0 < int(refused.one("retry-after") or 0) <= 1000
        (shown,) = order(fleet, "query", {"ipv4_net": "198.51.100.80"})[1]["results"]["x-cdn-gateway"]["rules"]
        assert (shown["action"], shown["rate_per_s"]) == ("deny", 0.001)
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.80/31"})[0] == 200
        assert ask(fleet, "198.51.100.81", "/slowed/") == 403
        assert order(fleet, "delete", {"ipv4_net": "198.51.100.80/31"})[0] == 200
        assert ask(fleet, "198.51.100.81", "/slowed/") == 200


def test_a_list_from_before_there_were_rates(tmp_path: Path) -> None:
    """It is read, and takes rates from then on."""
    path = tmp_path / "blocks.db"
    with closing(sqlite3.connect(path)) as old:
        old.execute(
            "CREATE TABLE rules (network TEXT PRIMARY KEY, allow INTEGER NOT NULL, starts_s REAL NOT NULL,"
            " ends_s REAL, command TEXT NOT NULL) WITHOUT ROWID"
        )
        old.execute("INSERT INTO rules VALUES ('192.0.2.0/24', 0, 0, NULL, 'c')")
        old.execute("PRAGMA user_version=1")
        old.commit()
    network = parse_network("198.51.100.0/24", 4)
    slow = Rule(network=network, allow=False, starts_s=time.monotonic(), rate_per_s=0.5)
    for _ in range(2):
        store = BlockStore(path, Blocklist())
        store.open()
        assert store.rules.refuses("192.0.2.1", time.monotonic()) is not None
        store.once("slow", b"x", lambda: (b"{}", slow), lambda _: b"{}")
        found = store.rules.slows("198.51.100.9", time.monotonic())
        assert found is not None
        assert found.rate_per_s == 0.5
        store.close()


def test_what_a_client_says_of_itself_counts_only_from_the_proxy(fleet: Fleet) -> None:
    """The proxy's word is the last in X-Forwarded-For; what stands before that is the client's."""
    with fleet.instance("x", echoing_heads):
        fleet.routed("x")
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.66"})[0] == 200
        assert ask(fleet, "198.51.100.1, 198.51.100.66") == 403
        assert ask(fleet, "198.51.100.66, 198.51.100.1") == 200
    with short_dir() as path, a_fleet(path) as direct, direct.instance("x", echoing_heads):
        direct.routed("x")
        assert order(direct, "deny", {"ipv4_net": "198.51.100.66"})[0] == 200
        assert ask(direct, "198.51.100.66") == 200, "nobody is believed who was not named"


def test_a_duration_ends(fleet: Fleet) -> None:
    """By itself."""
    with fleet.instance("x", echoing_heads):
        fleet.routed("x")
        begun_s = time.monotonic()
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.9"}, args={"duration": 3000})[0] == 200
        status = ask(fleet, "198.51.100.9")
        assert status == 403 or time.monotonic() - begun_s > 3
        until(lambda: ask(fleet, "198.51.100.9") == 200, what="it is over")
        assert time.monotonic() - begun_s >= 3
        later_ms = round((time.time() + 3600) * 1000)
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.9"}, args={"start_time": later_ms})[0] == 200
        assert ask(fleet, "198.51.100.9") == 200


def test_a_command_is_obeyed_once(fleet: Fleet) -> None:
    """The same id again is answered as before, and nothing is done; for another command it is refused."""
    net = {"ipv4_net": "198.51.100.20"}
    first = order(fleet, "deny", net, command_id="once-1")
    assert first[0] == 200
    assert order(fleet, "delete", net)[0] == 200
    assert order(fleet, "deny", net, command_id="once-1") == first
    assert order(fleet, "query", net)[0] == 404
    assert order(fleet, "allow", net, command_id="once-1")[0] == 400
    request = "X-Request-ID: once-2"
    assert order(fleet, "deny", net, request)[0] == 200
    assert order(fleet, "delete", net, request)[0] == 400


def test_responses_as_they_are_requested(fleet: Fleet) -> None:
    """ack says 102 in a 200, none says nothing, and both have been done."""
    for number, (wanted, status, answer) in enumerate(
        (("ack", 200, {"status": 102, "status_text": "processing"}), ("none", 204, {}), ("status", 200, None)), start=30
    ):
        net = {"ipv4_net": f"198.51.100.{number}"}
        got = order(fleet, "deny", net, args={"response_requested": wanted})
        assert got[0] == status
        assert answer is None or got[1] == answer
        assert order(fleet, "query", net)[0] == 200


def test_others_are_told(fleet: Fleet) -> None:
    """Each change is an event, once, with the cause that came with the command; what changes nothing is none."""
    net = {"ipv4_net": "203.0.113.0/24"}
    own = {"x-cdn-gateway": {"cause": "event-1"}}
    for _ in range(2):
        assert order(fleet, "deny", net, command_id="told-1", args={"duration": 60_000, **own})[0] == 200
    assert order(fleet, "query", net)[0] == 200
    assert order(fleet, "delete", net, command_id="told-2", args={"x-cdn-gateway": {}})[0] == 200
    assert order(fleet, "delete", net, command_id="told-3")[0] == 404
    assert order(fleet, "allow", net, command_id="told-4")[0] == 200

    def told() -> list[Event]:
        return [event for event in fleet.bus.events if str(event.facts.get("rule")).startswith("told-")]

    until(lambda: len(told()) == 3)
    denied, deleted, allowed = told()
    blocked = msgspec.convert(denied.facts, Blocked)
    assert (denied.kind, denied.instance, denied.cause) == ("blocked", "gateway-primary", "event-1")
    assert (blocked.network, blocked.action, blocked.rule) == ("203.0.113.0/24", "deny", "told-1")
    assert blocked.start_s is not None
    assert blocked.until_s == pytest.approx(blocked.start_s + 60)
    assert denied.text.startswith("203.0.113.0/24 is refused until ")
    assert (deleted.facts["action"], deleted.cause, deleted.text) == (
        "delete",
        None,
        "203.0.113.0/24 has no rule any more",
    )
    assert (allowed.facts["until_s"], allowed.text) == (None, "203.0.113.0/24 is never refused")
    assert order(fleet, "delete", net)[0] == 200


def test_features(fleet: Fleet) -> None:
    """What every consumer must be able to tell."""
    status, answer = order(fleet, "query", {"features": ["versions", "profiles", "pairs"]})
    assert (status, answer["results"]["versions"]) == (200, ["1.0"])
    assert "slpf" in answer["results"]["profiles"]
    assert "ipv4_net" in answer["results"]["pairs"]["deny"]
    assert "results" not in order(fleet, "query", {"features": []})[1]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (b"", 400),
        (b'{"action":"allow","target":{"ipv4_net":"192.0.2.1"},"args":{"x-cdn-gateway":{"rate_per_s":1}}}', 400),
        (b'{"action":"deny","target":{"ipv4_net":"192.0.2.1"},"args":{"x-cdn-gateway":{"rate_per_s":0}}}', 400),
        (b'{"action":"deny","target":{"ipv4_net":"192.0.2.1"},"args":{"x-cdn-gateway":{"rate_per_s":NaN}}}', 400),
        (b"[]", 400),
        (b'{"action": "deny"}', 400),
        (b"[" * 10000, 400),
        (b"\xff", 400),
        (b'{"action": "dance", "target": {"ipv4_net": "1.2.3.4"}}', 400),
        (b'{"action": "deny", "target": {}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4", "ipv6_net": "::2"}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4/8"}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": 16909060}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "127.0.0.1"}}', 400),
        (b'{"action": "deny", "target": {"ipv6_net": "::1"}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"duration": 0}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"duration": "1"}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"stop_time": 1}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"response_requested": "x"}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"slpf": {}}}', 501),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"x-cdn-gateway": 1}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"x-cdn-gateway": {"cause": ""}}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"x-cdn-gateway": {"cause": "a b"}}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "args": {"x-cdn-gateway": {"because": "x"}}}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "actuator": {"er": {}}}', 501),
        (b'{"action": "deny", "target": {"domain_name": "x.example"}}', 501),
        (b'{"action": "scan", "target": {"ipv4_net": "1.2.3.4"}}', 501),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "command_id": "a\\nb"}', 400),
        (b'{"action": "deny", "target": {"ipv4_net": "1.2.3.4"}, "also": 1}', 400),
    ],
)
def test_bad_commands(fleet: Fleet, command: bytes, status: int) -> None:
    """Each is answered with a status and a reason, and changes nothing."""
    head = (f"Authorization: Bearer {token(fleet)}", f"Content-Length: {len(command)}")
    answer = fleet.ask("POST", "/openc2", *head, body=command)
    said = json.loads(answer.body)
    assert (answer.status, said["status"]) == (status, status)
    assert said["status_text"].startswith("cannot ")
    assert order(fleet, "query", {"ipv4_net": "1.2.3.4"})[0] == 404


def dial(fleet: Fleet, client: str) -> ClientConnection:
    """A WebSocket from there."""
    headers = {"X-Forwarded-For": client}
    ws: ClientConnection = connect(f"ws://127.0.0.1:{fleet.port}/echo/", proxy=None, additional_headers=headers)
    return ws


def test_websockets_are_refused_and_open_ones_are_cut(fleet: Fleet) -> None:
    """Who is denied loses what it has open; others do not."""
    with Process(fleet.run_dir.path, "tests.gateway.echo"):
        fleet.routed("echo")
        with dial(fleet, "198.51.100.40") as bad, dial(fleet, "198.51.100.41") as good:
            for ws in (bad, good):
                ws.send("hello")
                assert ws.recv(timeout=30) == "hello"
            assert order(fleet, "deny", {"ipv4_net": "198.51.100.40"})[0] == 200
            with pytest.raises(ConnectionClosed):
                bad.recv(timeout=30)
            with pytest.raises(InvalidStatus) as refused:
                dial(fleet, "198.51.100.40")
            assert refused.value.response.status_code == 403
            good.send("still")
            assert good.recv(timeout=30) == "still"


def test_requests_under_way_are_cut(fleet: Fleet) -> None:
    """One that waits for its answer gets 403 instead; one that is being answered gets no more of it."""
    begun = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        head = peer.head()
        if b"/begun" in head:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfirst")
        begun.release()
        peer.closed()

    with fleet.instance("cuts", script), fleet.connect() as waits, fleet.connect() as reads:
        for client, path, address in ((waits, "waits", 50), (reads, "begun", 51)):
            head = f"GET /cuts/{path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.{address}\r\n\r\n"
            client.send(head.encode())
            assert begun.acquire(timeout=30)
        while b"first" not in reads.pending:
            assert reads.more()
        assert order(fleet, "deny", {"ipv4_net": "198.51.100.50/31"})[0] == 200
        assert waits.answer().status == 403
        assert reads.rest().endswith(b"first")
    until(lambda: fleet.metrics()["gateway_cut_off_total"] >= 2, what="both are counted")


def test_sigkill_forgets_nothing_and_garbage_is_not_a_list() -> None:
    """What was acknowledged is refused by the next process, without any bus; an unreadable list is not passed over."""
    with short_dir() as path:
        with a_fleet(path, **PROXIED) as fleet:
            for number in range(20):
                deny = order(fleet, "deny", {"ipv4_net": f"203.0.113.{number}"}, command_id=f"c-{number}")
                assert deny[0] == 200
            before = token(fleet)
        with Process(path, "services.gateway", **PROXIED) as gateway:
            alone = Fleet(fleet.run_dir, fleet.bus, gateway, gateway.port())
            assert [ask(alone, f"203.0.113.{number}") for number in range(21)] == [403] * 20 + [404]
            assert token(alone) == before
            assert order(alone, "deny", {"ipv4_net": "203.0.113.3"}, command_id="c-3") == deny
        database = path / "state" / "gateway-primary" / "blocks.db"
        for left in database.parent.glob("blocks.db*"):
            left.unlink()
        database.write_bytes(b"no database" * 1000)
        with Process(path, "services.gateway") as gateway:
            assert gateway.wait() == 78
            assert "cannot use the block-list in" in gateway.log()


def told(change: Rule | Network) -> bytes:
    """Of a change, for the store."""
    return f"told of {change.network if isinstance(change, Rule) else change}".encode()


def test_what_is_told_is_told_again_by_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was told in the last ten minutes, oldest first, and no more than is kept; not what changed nothing."""
    monkeypatch.setattr("services.gateway.blockstore.TOLD_KEPT", 3)
    now_s = time.time()
    monkeypatch.setattr("services.gateway.blockstore.time.time", lambda: now_s)

    def next_process() -> BlockStore:
        store = BlockStore(tmp_path / "blocks.db", Blocklist())
        store.open()
        return store

    store = next_process()
    networks = [parse_network(f"192.0.2.{number}", 4) for number in range(6)]
    rules = [Rule(network=network, allow=False, starts_s=0.0) for network in networks]
    for number, rule in enumerate(rules):
        store.once(f"c{number}", b"", lambda rule=rule: (b"", rule), told)  # type: ignore[misc]
    store.once("again", b"", lambda: (b"", None), told)
    store.close()
    store = next_process()
    assert store.told_lately() == [f"told of 192.0.2.{number}/32".encode() for number in (3, 4, 5)]
    store.close()
    now_s += 601
    store = next_process()
    assert store.told_lately() == []
    store.close()


def test_a_disk_that_takes_nothing_frees_nobody() -> None:
    """The rules on it are obeyed, a new one is refused with 500, and once it can be written it is."""
    with short_dir() as path:
        rules = Blocklist()
        state = path / "state" / "gateway-primary"
        store = BlockStore(state / "blocks.db", rules)
        store.open()
        denied = Rule(network=parse_network("203.0.113.1", 4), allow=False, starts_s=0.0)
        store.once("one", b"", lambda: (b"", denied), told)
        store.close()
        (state / "blocks.db-shm").mkdir()  # as root, permissions stop nobody
        store = BlockStore(state / "blocks.db", Blocklist())
        store.open()
        assert store.rules.refuses("203.0.113.1", time.monotonic())
        with pytest.raises(StoreError, match="cannot write the block-list"):
            store.once("two", b"", lambda: (b"", denied), told)
        with pytest.raises(StoreError):
            store.sweep()
        (state / "blocks.db-shm").rmdir()
        assert store.sweep() == 0
        assert store.once("two", b"", lambda: (b"done", denied), told) == b"done"
        store.close()


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), lambda x: st.lists(x)).map(msgspec.json.encode))
def test_any_body(body: bytes) -> None:
    """None of these is a command, and each is told so."""
    with pytest.raises(openc2.Failed) as failed:
        openc2.carry_out(openc2.read(body, None), Blocklist(), now_s=0.0, now_ms=0.0)
    assert failed.value.answer.status in (400, 404, 501)


times = st.none() | st.integers(-5, 1 << 54)


@given(times, times, times)
def test_any_times(start: int | None, stop: int | None, duration: int | None) -> None:
    """A period that ends after it begins and after now, as what was given says; or a reason."""
    args = openc2.Args(start_time=start, stop_time=stop, duration=duration)
    try:
        begins, ends = openc2.period_ms(args, 1000.0)
    except openc2.Failed:
        return
    assert begins < ends > 1000
    assert stop is None or ends == stop
    assert start is None or begins == start
    assert duration is None or ends - begins == duration
