"""The change feed, cancellation when the client leaves, and the table of events."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from bus.messages import Event
from services.data_fabric import changes
from services.data_fabric.limits import Limits
from services.data_fabric.store import Store
from tests.data_fabric.support import Client, process, serving
from tests.support import until

BOMB = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Client, Store]]:
    with serving(tmp_path, Limits(readers=1, streams=1, waiting=1, events=5, timeout_max_s=600)) as (client, store):
        yield client, store


def told(found: Any) -> list[tuple[Any, ...]]:
    """Number, source, kind and rows."""
    return [(c["seq"], c["source"], c["kind"], c["first_rowid"], c["last_rowid"]) for c in found["changes"]]


def test_each_change_has_a_number(served: tuple[Client, Store]) -> None:
    """In order, whatever changes; a refused one has none; the rows of an insert can be read by it."""
    client, _ = served
    client.load("t", "a\n1\n2\n")
    client.call("POST", "/tables/t/rows", {"rows": [[3], [4]]})
    client.call("POST", "/tables/t/rows", {"rows": [["x"]]})
    client.load("u", "b\n")
    client.call("DELETE", "/sources/u")
    found = client.call("GET", "/changes").json
    assert told(found) == [
        (1, "t", "loaded", 1, 2), (2, "t", "inserted", 3, 4), (3, "u", "loaded", None, None),
        (4, "u", "dropped", None, None),
    ]  # fmt: skip
    assert (found["last"], found["gap"]) == (4, False)
    assert client.call("GET", "/tables/t/rows?after=2&limit=2").json["rows"] == [[3, 3], [4, 4]]
    assert told(client.call("GET", "/changes?since=1&limit=1").json) == [(2, "t", "inserted", 3, 4)]
    filtered = client.call("GET", "/changes?since=2&source=T").json
    assert (told(filtered), filtered["last"]) == ([], 4)
    assert client.call("GET", "/changes?since=9").json["gap"], "it is of another database"


def test_who_waits_is_told_at_once(served: tuple[Client, Store]) -> None:
    """Of a change that comes while it waits; where none comes, after its time, with none."""
    client, _ = served
    assert told(client.call("GET", "/changes?wait_s=1").json) == []
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(client.call("GET", "/changes?wait_s=30&source=t").json))
    waiting.start()
    client.load("other", "a\n1\n")
    client.load("t", "a\n1\n")
    waiting.join()
    assert told(answers[0]) == [(2, "t", "loaded", 1, 1)]


def test_a_gap_is_seen(served: tuple[Client, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for what is forgotten is told that something is missing, also by the stream."""
    client, _ = served
    monkeypatch.setattr(changes, "KEPT", 3)
    for name in "abcdef":
        client.load(name, "x\n1\n")
    found = client.call("GET", "/changes?since=1").json
    assert ([change["source"] for change in found["changes"]], found["gap"]) == (["d", "e", "f"], True)
    assert not client.call("GET", "/changes?since=3").json["gap"]
    with connect(f"ws://127.0.0.1:{client.port}/ws/stream?since=1") as stream:
        assert json.loads(stream.recv(30)) == {"type": "gap", "since": 1}
        assert json.loads(stream.recv(30))["seq"] == 4


def test_a_websocket_hears_all(served: tuple[Client, Store]) -> None:
    """From now on, or since a number; of one source, if it says so; who says something is let go."""
    client, _ = served
    client.load("t", "a\n1\n")
    url = f"ws://127.0.0.1:{client.port}/ws/stream"
    with connect(url) as all_, connect(f"{url}?since=0&source=u") as some:
        client.load("u", "a\n1\n")
        client.call("POST", "/tables/u/rows", {"rows": [[2]]})
        assert [json.loads(all_.recv(30))["seq"] for _ in range(2)] == [2, 3]
        assert [json.loads(some.recv(30))["kind"] for _ in range(2)] == ["loaded", "inserted"]
        some.send("hello")
        with pytest.raises(ConnectionClosed):
            some.recv(30)


def test_changes_survive_sigkill_and_numbers_go_on(run_path: Path) -> None:
    """What was acknowledged has its change after the restart, once; no number comes twice."""
    with process(run_path) as (client, service):
        client.load("t", "a\n1\n")
        for n in range(20):
            assert client.call("POST", "/tables/t/rows", {"rows": [[n]]}).status == 201
        client.call("DELETE", "/sources/t")
        os.kill(service.pid, signal.SIGKILL)
        service.wait(30)
    with process(run_path) as (client, _):
        client.load("t", "a\n1\n")
        found = client.call("GET", "/changes").json
        assert [change["seq"] for change in found["changes"]] == list(range(1, 24))
        assert [change["kind"] for change in found["changes"]] == ["loaded", *["inserted"] * 20, "dropped", "loaded"]


@pytest.mark.parametrize("form", ["json", "geojson", "ndjson"])
def test_who_leaves_takes_the_statement_along(served: tuple[Client, Store], form: str) -> None:
    """The only worker is free at once: the next client need not wait for the ten minutes that there were."""
    client, _ = served
    for _ in range(3):
        body = json.dumps({"sql": BOMB, "timeout_s": 600}).encode()
        head = f"POST /sql?format={form} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.port)) as leaving:
            leaving.sendall(head.encode() + body)
            time.sleep(0.1)  # in the middle of it, or before it; either way the same must come
        assert client.sql("SELECT 1").json["rows"] == [[1]]


def test_whoever_leaves_leaves_nothing_behind(run_path: Path) -> None:
    """The real process, full: who waited leaves its place at once, who ran or streamed its thread."""
    endless = BOMB.replace("count(*)", "hex(zeroblob(5000))")  # more than the sockets between us hold
    limits = Limits()
    with process(run_path) as (client, _):

        def metric(name: str) -> float:
            text = client.call("GET", "/metrics").body.decode()
            found = re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
            return float(found[1]) if found else -1.0  # nothing was measured yet

        def ask(stack: ExitStack, form: str, sql: str) -> socket.socket:
            body = json.dumps({"sql": sql, "timeout_s": 30}).encode()
            head = f"POST /sql?format={form} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", client.port)))
            connection.sendall(head.encode() + body)
            return connection

        with ExitStack() as running:
            for form in ("csv", "ndjson"):
                assert ask(running, form, endless).recv(12) == b"HTTP/1.1 200"
            for _ in range(limits.readers - 2):
                ask(running, "json", BOMB)
            until(lambda: metric("statements_running") == limits.readers, what="all threads are taken")
            with ExitStack() as waiting:
                for _ in range(limits.waiting):
                    ask(waiting, "json", BOMB)
                most = limits.readers + limits.waiting
                until(lambda: metric("statements_running") == most, what="all places are taken")
                assert client.sql("SELECT 1").error["status"] == 503
            until(lambda: metric("statements_cancelled_total") == limits.waiting, what="all are seen to leave")
            assert metric("statements_running") == limits.readers
        until(lambda: metric("statements_running") == 0, what="nothing runs")
        # That it was for their leaving, not for their time that was over:
        assert metric("statements_cancelled_total") == limits.waiting + limits.readers - 2
        assert metric("streams_broken_total") == 2
        assert client.sql("SELECT 1").json["rows"] == [[1]]


def test_the_chain_of_events_is_one_query(served: tuple[Client, Store]) -> None:
    """What was heard is a row, once; from an event to all that came of it; the oldest go first."""
    client, store = served

    def event(n: int, cause: str | None, kind: str) -> Event:
        return Event(
            id=f"e{n}", source="s", incarnation=1, seq=n, time_s=100.0 + n, host="h", instance=f"i{n}", kind=kind,
            text="said", cause=cause, facts={"n": n},
        )  # fmt: skip

    events = [
        event(1, None, "sighting"),
        event(2, "e1", "reaction"),
        event(3, "e2", "blocked"),
        event(4, None, "alert"),
    ]
    made = [store.hear(each).result(30) for each in [*events, events[0]]]
    assert made == [True, False, False, False, False]
    store.catch_up()
    chain = client.sql(
        "WITH RECURSIVE chain(id) AS (SELECT ? UNION SELECT e.id FROM events e JOIN chain c ON e.cause = c.id) "
        "SELECT id, cause, kind, at_s, instance, facts ->> 'n' FROM events JOIN chain USING (id) ORDER BY at_s",
        ["e1"],
    ).json
    assert chain["rows"] == [
        ["e1", None, "sighting", 101.0, "i1", 1],
        ["e2", "e1", "reaction", 102.0, "i2", 2],
        ["e3", "e2", "blocked", 103.0, "i3", 3],
    ]
    assert client.call("POST", "/tables/events/rows", {"rows": [["x"] * 7]}).error["status"] == 403
    for n in range(5, 8):
        store.hear(event(n, None, "alert")).result(30)
    assert client.sql("SELECT group_concat(id) FROM events").json["rows"] == [["e3,e4,e5,e6,e7"]]
    assert len(client.call("GET", "/changes?source=events").json["changes"]) == 7
