"""Events between services: each arrives, once, whatever becomes of ATLAS in between."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import Event, EventsReply, EventsRequest, Facts, Reaction, Sighting
from bus.operators import OperatorLink
from bus.publisher import Publisher
from cdn_daemon.events import FACTS_BYTES, KEPT, KEPT_S, TEXT_CHARS, EventError, Outbox
from cdn_daemon.service import DeclarationError, Service
from cdn_daemon.web import nothing_here
from tests.support import BIN, ROOT, ServiceProcess, environment, until

ATLAS = ("-m", "services.atlas")
GOSSIP = ("-m", "tests.cdn_daemon.gossip")
SIGHTING = Sighting(value="192.0.2.7", value_type="ipv4-addr", confidence=80)

Spawn = Callable[..., ServiceProcess]


@pytest.fixture
def spawn(run_path: Path, request: pytest.FixtureRequest) -> Spawn:
    """Starts processes in the test's run directory, and ends them afterwards."""

    def start(*command: str, **env: str) -> ServiceProcess:
        process = ServiceProcess(run_path, *command, **env)
        request.addfinalizer(process.stop)
        return process

    return start


def emit(process: ServiceProcess, value: str, **query: object) -> list[str]:
    """Have it emit; the ids."""
    more = "".join(f"&{key}={given}" for key, given in query.items())
    code, body = process.get(f"/emit?value={value}{more}", data=b"")
    assert code == 200, body
    ids: list[str] = json.loads(body)
    return ids


def heard(process: ServiceProcess, kind: str = "sighting") -> list[dict[str, Any]]:
    """What it has heard of that kind, in that order."""
    return [each for each in json.loads(process.get("/heard")[1]) if each["kind"] == kind]


def values(process: ServiceProcess) -> list[str]:
    """Of the sightings that it has heard, but for those that each process begins with."""
    return [each["value"] for each in heard(process) if each["value"] != "192.0.2.1"]


def kill(process: ServiceProcess) -> None:
    """As nobody can prepare for."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def of_atlas(run_dir: RunDir) -> list[Event]:
    """What ATLAS has at hand of what services tell each other."""
    request = EventsRequest(id=new_id(), limit=2000, kinds=("sighting", "reaction"))
    link = OperatorLink(run_dir.operators)
    link.request(request, timeout_s=30)
    reply = next(link.replies(request.id, timeout_s=30))
    link.close()
    assert isinstance(reply, EventsReply)
    return list(reply.events)


def test_one_emits_and_another_hears(spawn: Spawn, run_dir: RunDir) -> None:
    """With its facts and its cause, and once; nobody hears himself, and what a hearer raises ends nothing."""
    spawn(*ATLAS).url()
    one, other = spawn(*GOSSIP, CDN_INSTANCE="one"), spawn(*GOSSIP, CDN_INSTANCE="other")
    one.url(), other.url()
    emit(one, "raise")
    (id_,) = emit(one, "192.0.2.7")
    until(lambda: "192.0.2.7" in values(other))
    (proposed,) = until(lambda: [each for each in heard(one, "reaction") if each["value"] == "192.0.2.7"])
    assert proposed["cause"] == id_
    assert values(other) == ["raise", "192.0.2.7"]
    assert values(one) == []
    events = {event.id: event for event in of_atlas(run_dir)}
    event = events[id_]
    assert (event.instance, event.source, event.kind, event.text) == ("one", "one", "sighting", "saw 192.0.2.7")
    assert (event.version, event.facts["value"], event.facts["confidence"]) == (1, "192.0.2.7", 90)
    failed = re.compile(rb"^events_heard_failed_total\{.*\} 1\.0$", re.MULTILINE)
    until(lambda: failed.search(other.get("/metrics")[1]))


@pytest.mark.faults
def test_emitted_while_there_is_no_atlas(spawn: Spawn) -> None:
    """It arrives when there is one, in the order in which it was emitted, as does what was emitted before run()."""
    one, other = spawn(*GOSSIP, CDN_INSTANCE="one"), spawn(*GOSSIP, CDN_INSTANCE="other")
    other.url()
    wanted = [str(number) for number in range(5)]
    for value in wanted:
        emit(one, value)
    atlas = spawn(*ATLAS)
    until(lambda: values(other) == wanted)
    kill(atlas)
    more = [str(number) for number in range(5, 10)]
    for value in more:
        emit(one, value)
    spawn(*ATLAS)
    until(lambda: values(other) == wanted + more)
    ids = [each["id"] for each in heard(other)]
    assert len(ids) == len(set(ids))


@pytest.mark.faults
def test_said_again_to_an_atlas_that_remembers_nothing(spawn: Spawn, run_dir: RunDir) -> None:
    """What one ATLAS had heard, and had not written down when it was killed, the next one hears."""
    atlas, one = spawn(*ATLAS), spawn(*GOSSIP, CDN_INSTANCE="one")
    one.url()
    (id_,) = emit(one, "192.0.2.11")
    until(lambda: id_ in {event.id for event in of_atlas(run_dir)})
    kill(atlas)
    shutil.rmtree(run_dir.state("atlas"))
    atlas = spawn(*ATLAS)
    atlas.url()
    until(lambda: id_ in {event.id for event in of_atlas(run_dir)})


def test_a_burst(spawn: Spawn) -> None:
    """As many as are kept arrive all, in order."""
    spawn(*ATLAS).url()
    one, other = spawn(*GOSSIP, CDN_INSTANCE="one"), spawn(*GOSSIP, CDN_INSTANCE="other")
    one.url(), other.url()
    emit(one, "first")
    until(lambda: values(other) == ["first"])
    ids = emit(one, "192.0.2.8", n=KEPT - 10)
    until(lambda: len(values(other)) == KEPT - 9, what="all of them")
    assert [each["id"] for each in heard(other)][-len(ids) :] == ids


def test_who_hears_is_killed(spawn: Spawn) -> None:
    """With back_s it hears what happened meanwhile; without, only what happens from then on. An id is heard once."""
    spawn(*ATLAS).url()
    one = spawn(*GOSSIP, CDN_INSTANCE="one")
    far = spawn(*GOSSIP, CDN_INSTANCE="far", GOSSIP_BACK_S="600")
    near = spawn(*GOSSIP, CDN_INSTANCE="near")
    for process in (one, far, near):
        process.url()
    kill(far)
    kill(near)
    emit(one, "meanwhile")
    far = spawn(*GOSSIP, CDN_INSTANCE="far", GOSSIP_BACK_S="600")
    near = spawn(*GOSSIP, CDN_INSTANCE="near")
    until(lambda: values(far) == ["meanwhile"])
    near.url()
    emit(one, "after", id="given-1")
    emit(one, "after", id="given-1")
    emit(one, "last")
    until(lambda: values(far) == ["meanwhile", "after", "last"])
    until(lambda: values(near) == ["after", "last"])


def test_what_is_heard_is_told_before_the_end(spawn: Spawn, run_dir: RunDir) -> None:
    """A service that is told to end finishes with what it has heard, and what it emits then is heard, too."""
    spawn(*ATLAS).url()
    one, other = spawn(*GOSSIP, CDN_INSTANCE="one"), spawn(*GOSSIP, CDN_INSTANCE="other")
    one.url(), other.url()
    (id_,) = emit(one, "slow")
    until(lambda: values(other) == ["slow"])
    other.process.terminate()
    assert other.wait() == 0
    until(lambda: any(event.cause == id_ for event in of_atlas(run_dir)))


def test_hostile(spawn: Spawn, run_dir: RunDir) -> None:
    """Facts that are none, of a later version, or too large cost nobody anything; those that came are counted."""
    spawn(*ATLAS).url()
    other = spawn(*GOSSIP, CDN_INSTANCE="other")
    other.url()
    publisher = Publisher(run_dir.telemetry)
    until(publisher.has_new_subscriber)
    facts: dict[str, Any] = {"value": "192.0.2.9", "value_type": "ipv4-addr", "confidence": 50}
    forms: list[dict[str, Any]] = [
        {"facts": {}},
        {"facts": facts | {"confidence": 101}},
        {"facts": facts, "version": 2},
        {"facts": facts | {"value": "x" * FACTS_BYTES}},
        {"facts": facts | {"value": b"\xff" * 9}, "id": "y" * 300},
        {"facts": facts | {"nested": [[[[{}]]]]}, "id": "good"},
    ]
    for number, form in enumerate(forms):
        event = Event(
            id=f"e{number}",
            source="x",
            incarnation=1,
            seq=number,
            time_s=time.time(),
            host="h",
            instance="x",
            kind="sighting",
            text="",
        )
        publisher.publish(replace(event, **form))
    until(lambda: values(other) == ["192.0.2.9"])
    publisher.close()
    assert [event.id for event in of_atlas(run_dir) if event.source == "x"] == ["e0", "e1", "e2", "good"]
    assert other.get("/readyz")[0] == 200
    counted = re.compile(rb"^events_not_understood_total\{[^}]*\} 3\.0$", re.MULTILINE)
    until(lambda: counted.search(other.get("/metrics")[1]))


def test_a_stranger_hears(spawn: Spawn, run_dir: RunDir, request: pytest.FixtureRequest) -> None:
    """The ten lines of docs/events.md, with nothing of this project on their path."""
    document = (ROOT / "docs" / "events.md").read_text()
    source = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)[-1]
    assert "bus" not in source
    env = environment(run_dir.path)
    del env["PYTHONPATH"]
    spawn(*ATLAS).url()
    one = spawn(*GOSSIP, CDN_INSTANCE="one")
    one.url()
    stranger = subprocess.Popen(
        [str(BIN / "python"), "-u", "-c", source.replace("ipc://run/", f"ipc://{run_dir.path}/")],
        env=env,
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
    )
    request.addfinalizer(stranger.communicate)
    request.addfinalizer(stranger.kill)
    assert stranger.stdout is not None
    stdout = stranger.stdout
    ids: list[str] = []

    def said() -> bool:
        ids.extend(emit(one, "192.0.2.10"))
        return bool(select.select([stdout], [], [], 0.1)[0])

    until(said)
    until(lambda: re.fullmatch(r"one sighting (\w+) None .*'value': '192\.0\.2\.10'.*\n", stdout.readline()))


# -- declared -------------------------------------------------------------------------------------------


class Ownish(Facts, frozen=True, kw_only=True, tag="ownish"):
    """A service's own vocabulary."""

    what: Any


async def hearer(event: Event, facts: Any) -> None:
    """Nothing."""


def test_declarations() -> None:
    """What can never work is refused where it is declared."""
    service = Service("x", app=nothing_here, port=0)
    service.hears(Ownish)(hearer)
    for declare in (
        lambda: service.hears(Ownish)(hearer),
        lambda: service.hears(Sighting, back_s=601.0)(hearer),
        lambda: service.hears(Reaction)(lambda event, facts: None),  # type: ignore[arg-type,return-value]
        lambda: service.hears(Facts)(hearer),
        lambda: service.hears(int)(hearer),  # type: ignore[type-var]
    ):
        with pytest.raises(DeclarationError, match="cannot declare x: "):
            declare()


@pytest.mark.parametrize(
    "what", ["x" * FACTS_BYTES, object(), {1j: 2}, [[]] * FACTS_BYTES, 1 << 70, "\ud800"], ids=type
)
def test_what_cannot_be_emitted(what: Any) -> None:
    """It is refused at once, and nothing of it is kept."""
    outbox = Outbox()
    with pytest.raises(EventError, match=r"^cannot emit ownish: "):
        outbox.put(Ownish(what=what), "text")
    with pytest.raises(EventError, match=r"^cannot take <class 'str'> for facts"):
        outbox.put("x", "text")  # type: ignore[arg-type]
    for bad in ("x" * 300, "", "a b", "\ud800", "ü"):
        with pytest.raises(EventError, match="with cause"):
            outbox.put(SIGHTING, "text", cause=bad)
        with pytest.raises(EventError, match="with id"):
            outbox.put(SIGHTING, "text", id=bad)
    assert outbox.take() == []


def test_any_text_can_be_emitted() -> None:
    """It is cut and mended, so that the daemon can send it."""
    outbox = Outbox()
    outbox.put(SIGHTING, "\ud800 ü" + "x" * 5000)
    (emitted,) = outbox.take()
    assert emitted.text.startswith("? ü")
    assert len(emitted.text) == TEXT_CHARS


# -- the outbox, against a small model -------------------------------------------------------------------


@given(st.lists(st.one_of(st.just("put"), st.just("again"), st.integers(1, 40)), max_size=60))
def test_the_outbox_keeps_order(steps: list[str | int]) -> None:
    """To each ATLAS it gives all that is kept, in order, once; and says whether there is more."""
    outbox, put, given_to_this = Outbox(), 0, 0
    for step in steps:
        if step == "put":
            outbox.put(SIGHTING, "text")
            put += 1
        elif step == "again":
            outbox.again()
            given_to_this = 0
        else:
            assert isinstance(step, int)
            taken = [emitted.number for emitted in outbox.take(step)]
            assert taken == list(range(given_to_this + 1, min(put, given_to_this + step) + 1))
            given_to_this += len(taken)
        assert outbox.waits == (given_to_this < put)
    assert outbox.dropped == 0


def test_the_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, by number and by age, and counted if nobody has heard it."""
    now_s = 1000.0
    monkeypatch.setattr("cdn_daemon.events.time.monotonic", lambda: now_s)
    outbox = Outbox()
    for _ in range(KEPT + 5):
        outbox.put(SIGHTING, "text")
    assert outbox.dropped == 5
    assert [emitted.number for emitted in outbox.take(3)] == [6, 7, 8]
    now_s += KEPT_S + 1
    outbox.put(SIGHTING, "text")
    assert outbox.dropped == 5 + KEPT - 3
    outbox.again()
    assert [emitted.number for emitted in outbox.take()] == [KEPT + 6]


def test_emitting_wakes_once() -> None:
    """Of a burst only the first wakes the daemon."""
    outbox, woken = Outbox(), []
    outbox.wake = lambda: woken.append(1)
    for _ in range(10):
        outbox.put(SIGHTING, "text")
    assert len(woken) == 1
    outbox.take()
    outbox.put(SIGHTING, "text")
    assert len(woken) == 2
