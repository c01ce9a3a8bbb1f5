"""Chains of cause and effect, and events that come twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import Event, EventsReply, EventsRequest, OperatorReply, Refusal
from bus.operators import OperatorLink
from bus.publisher import Publisher
from services.atlas.chain import NoChain, chain_of
from services.atlas.happened import EVENTS_KEPT, FACTS_BYTES, Happened
from services.atlas.store import Batch, Store
from tests.atlas.test_atlas import ATLAS
from tests.bus.samples import EVENT
from tests.support import ServiceProcess, until

MiB = 1 << 20


def event(id_: str, cause: str | None = None, **more: Any) -> Event:
    """With facts, as a service emits it."""
    facts: dict[str, Any] = {"value": id_}
    return replace(
        EVENT, **{"id": id_, "cause": cause, "kind": "sighting", "time_s": time.time(), "facts": facts} | more
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one, on disk."""
    store = Store(tmp_path / "history.db", 64 * MiB)
    yield store
    store.close()


def ids(store: Store, id_: str) -> list[str]:
    """Of the chain of that one."""
    return [each.id for each in chain_of(store.queries, id_)]


def test_a_chain(store: Store) -> None:
    """All of it from any event in it, and from the command that it began with; oldest first."""
    links = [("root", "command-1"), ("left", "root"), ("right", "root"), ("leaf", "left"), ("other", None)]
    store.write(Batch(events=[event(id_, cause, time_s=float(at)) for at, (id_, cause) in enumerate(links)]))
    for id_ in ("root", "left", "right", "leaf", "command-1"):
        assert ids(store, id_) == ["root", "left", "right", "leaf"]
    assert ids(store, "other") == ["other"]
    assert ids(store, "othe") == ["other"]
    for unknown in ("nope", "", "ot", "command", "%", "\U0010ffff"):
        with pytest.raises(NoChain, match="cannot find an event with the id"):
            ids(store, unknown)
    store.write(Batch(events=[event("other-2")]))
    with pytest.raises(NoChain, match="several ids begin so"):
        ids(store, "othe")
    assert ids(store, "other") == ["other"], "the whole id is one"


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8, unique_by=lambda pair: pair[0]))
def test_any_causes(pairs: list[tuple[int, int]]) -> None:
    """Circles among them: each chain is finite, has the event that was asked for, and none twice."""
    store = Store(None, MiB)
    store.write(Batch(events=[event(f"e{number}", f"e{cause}") for number, cause in pairs]))
    for number, _ in pairs:
        chain = ids(store, f"e{number}")
        assert f"e{number}" in chain
        assert len(chain) == len(set(chain))
    store.close()


def test_a_file_of_before(tmp_path: Path) -> None:
    """What was written by an ATLAS that knew no chains is in them."""
    path = tmp_path / "history.db"
    store = Store(path, 64 * MiB)
    store.write(Batch(events=[event("a-1"), event("a-2", "a-1")]))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP INDEX events_by_cause")
        old = {"version", "facts"}
        for seq, content in connection.execute("SELECT seq, event FROM events").fetchall():
            fields = {key: value for key, value in json.loads(content).items() if key not in old}
            connection.execute("UPDATE events SET event = ? WHERE seq = ?", (msgspec.json.encode(fields), seq))
    connection.close()
    store = Store(path, 64 * MiB)
    assert ids(store, "a-2") == ["a-1", "a-2"]
    plan = store._connection.execute(
        "EXPLAIN QUERY PLAN SELECT event FROM events WHERE json_extract(CAST(event AS TEXT), '$.cause') = 'x'"
    ).fetchall()
    assert "events_by_cause" in str(plan)
    store.close()


# -- what is at hand ------------------------------------------------------------------------------------------


def test_what_comes_twice() -> None:
    """It is no news; what is only remembered from ATLAS's life before is news once more, and stands once."""
    happened = Happened(None)
    first, second, third = event("first"), event("second"), event("third")
    assert happened.append(second) == second
    assert happened.append(second) is None
    happened.restore([first, second])
    assert happened.append(first) == first
    assert happened.append(first) is None
    assert happened.append(third) == third
    assert [each.id for each in happened.newest(9)] == ["first", "second", "third"]
    assert (happened.repeated, happened.dropped) == (2, 0)


def test_others_do_not_push_out_what_services_tell() -> None:
    """Of a kind that services tell the newest are at hand, however many others there are."""
    happened = Happened(None)
    happened.append(event("told"))
    for number in range(EVENTS_KEPT + 1):
        happened.append(event(f"state-{number}", kind="state", facts={}))
    assert "told" not in {each.id for each in happened.newest(EVENTS_KEPT)}
    assert [each.id for each in happened.newest(9, ("sighting", "x"))] == ["told"]
    assert [each.id for each in happened.newest(1, ("state",))] == [f"state-{EVENTS_KEPT}"]
    assert happened.newest(0, ("state",)) == ()


@pytest.mark.parametrize("facts", [{"x": "y" * FACTS_BYTES}, {"x": msgspec.msgpack.Ext(1, b"")}])
def test_facts_that_cannot_be_kept(facts: dict[str, Any]) -> None:
    """They are counted, and cost nobody else anything."""
    happened = Happened(None)
    assert happened.append(event("bad", facts=facts)) is None
    assert happened.append(event("good")) is not None
    assert (happened.dropped, len(happened.newest(9))) == (1, 1)


# -- a real ATLAS ----------------------------------------------------------------------------------------------


def asked(run_dir: RunDir, chain: str) -> OperatorReply:
    """What ATLAS answers an operator."""
    request = EventsRequest(id=new_id(), chain=chain)
    link = OperatorLink(run_dir.operators)
    try:
        link.request(request, timeout_s=30)
        return next(link.replies(request.id, timeout_s=30))
    finally:
        link.close()


def by_http(atlas: ServiceProcess, query: str) -> tuple[int, Any]:
    """Status and body."""
    code, body = atlas.get(f"/api/v1/events?{query}")
    return code, json.loads(body)


def test_of_a_real_atlas(run_dir: RunDir) -> None:
    """By HTTP and to an operator alike, and after a SIGKILL, as who has emitted emits it again."""
    chain = [event("cause-1"), event("effect-1", "cause-1"), event("effect-2", "effect-1")]

    def publish() -> None:
        publisher = Publisher(run_dir.telemetry)
        until(publisher.has_new_subscriber)
        for number, each in enumerate(chain):
            publisher.publish(replace(each, seq=number))
        publisher.close(linger_s=5)

    def is_there() -> bool:
        reply = asked(run_dir, "effect-1")
        return isinstance(reply, EventsReply) and [each.id for each in reply.events] == [each.id for each in chain]

    with ServiceProcess(run_dir.path, *ATLAS) as atlas:
        publish()
        publish()
        until(is_there)
        code, body = by_http(atlas, "chain=effect-2")
        assert (code, [each["id"] for each in body["events"]]) == (200, [each.id for each in chain])
        assert body["events"][0]["facts"] == {"value": "cause-1"}
        code, body = by_http(atlas, f"chain={quote('nope & nothing')}")
        assert (code, body["error"]["value"]) == (404, "nope & nothing")
        assert by_http(atlas, "chain=effect-2&limit=3")[0] == 400
        assert isinstance(asked(run_dir, "nope"), Refusal)
        os.kill(atlas.pid, signal.SIGKILL)
        atlas.wait()
    with ServiceProcess(run_dir.path, *ATLAS):
        publish()
        until(is_there)
