"""The read-only HTTP API, against a real ATLAS: what it tells, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus import why
from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import IncarnationView, Refusal, Verb, WhyReply, WhyRequest
from bus.operators import OperatorLink
from bus.postmortems import directory_of, of
from bus.publisher import Publisher
from services.atlas.api import api_routes
from services.atlas.asked import BadQuery, moment, next_page, place, whole
from services.atlas.history import History
from services.atlas.switchboard import Switchboard
from services.atlas.why import near
from tests.atlas.test_atlas import ATLAS, TINY, fleet, is_well, order
from tests.bus.samples import STATUS
from tests.support import ROOT, ServiceProcess, Supervisord, until

FLEET = {
    "atlas": {"command": "python -m services.atlas"},
    "tiny": {
        "command": "python -m tests.cdn_daemon.tiny",
        "type": "notify",
        "watchdog_s": "0.6",
        "environment": 'CDN_LIMIT_LOOP_LAG_S="0.3:0.8"',
    },
}

Get = Callable[..., tuple[int, Any]]


def getter(address: str) -> Get:
    """Status and decoded body of a GET of ATLAS."""

    def get(path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    return get


@pytest.fixture
def operator(run_dir: RunDir) -> Iterator[OperatorLink]:
    """An operator's connection."""
    link = OperatorLink(run_dir.operators)
    yield link
    link.close()


@contextmanager
def supervised(run_path: Path, operator: OperatorLink) -> Iterator[tuple[Supervisord, Get]]:
    """A fleet of ATLAS and tiny under the warden, well."""
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        until(lambda: is_well(operator, "atlas", "tiny"))
        get = getter(fleet(operator)["atlas"].address)
        until(lambda: get("/api/v1/services/tiny")[1]["process"])
        yield supervisord, get


def ask_why(operator: OperatorLink, name: str, limit: int = 1) -> WhyReply | Refusal:
    """What ATLAS answers on the operators' plane."""
    request = WhyRequest(id=new_id(), name=name, limit=limit)
    operator.request(request, timeout_s=30)
    reply = next(operator.replies(request.id, timeout_s=30))
    assert isinstance(reply, WhyReply | Refusal)
    return reply


def ask_in_vain(url: str) -> None:
    """A request to a service that is killed meanwhile."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=60):
        pytest.fail("it was answered")


def ended(operator: OperatorLink, incarnation: int) -> IncarnationView:
    """The bundle of that incarnation of tiny, once its post-mortem has been gathered."""

    def found() -> IncarnationView | None:
        reply = ask_why(operator, "tiny", 10)
        lives = reply.incarnations if isinstance(reply, WhyReply) else ()
        return next((life for life in lives if life.incarnation == incarnation and life.end), None)

    life = until(found)
    assert life is not None
    return life


def test_why(run_path: Path, run_dir: RunDir, operator: OperatorLink) -> None:
    """A crash, a stall and a stop each leave the bundle that explains it, on the bus, by HTTP, and from the files."""
    with supervised(run_path, operator) as (supervisord, get):
        until(lambda: len(get("/api/v1/services/tiny/metrics?step=1")[1]["points"]) >= 2)
        os.kill(supervisord.pid("tiny"), signal.SIGKILL)
        crash = ended(operator, 1)
        assert (crash.end, crash.wait_status, crash.ordered_by) == ("killed by SIGKILL", signal.SIGKILL, "")
        assert crash.summary == "killed by SIGKILL"
        assert crash.statuses
        assert {status.incarnation for status in crash.statuses} == {1}
        assert crash.statuses[-1].time_s <= (crash.ended_s or 0) + 1
        assert any(event.kind == "state" and "SIGKILL" in event.text for event in crash.events)
        assert (crash.ends_last_hour, crash.ends_last_day) == (1, 1)
        assert "serving" in crash.log_tail

        until(lambda: is_well(operator, "tiny"))
        address = fleet(operator)["tiny"].address
        blocked = Thread(target=ask_in_vain, args=(f"{address}/block?s=100",))
        blocked.start()
        stall = ended(operator, 2)
        blocked.join()
        assert re.fullmatch(r".*/tests/cdn_daemon/tiny.py:\d+ in block", stall.guilty)
        assert "over the hard limit of 0.8 s" in stall.limit
        assert stall.verdict
        assert stall.summary.endswith(f"while in {stall.guilty}")
        assert stall.stacks.index("in block") < stall.stacks.rindex("Thread 0x")
        assert stall.follows.startswith("BACKOFF, to be started again in")

        until(lambda: is_well(operator, "tiny"))
        order(operator, Verb.STOP, "tiny")
        stop = ended(operator, 3)
        assert (stop.end, stop.ordered_by) == ("exit 0", "test")
        assert stop.summary == "exit 0; ordered by test"
        assert [command.verb for command in stop.commands] == [Verb.STOP]
        assert stop.ends_last_hour == 3

        status, listed = get("/api/v1/services/tiny/incarnations")
        assert (status, listed["schema_version"], listed["next"]) == (200, 1, None)
        assert [life["incarnation"] for life in listed["incarnations"]] == [3, 2, 1]
        assert all(life["ended_s"] and not life["stacks"] for life in listed["incarnations"])
        status, first = get("/api/v1/services/tiny/incarnations?limit=2")
        assert [life["key"] for life in first["incarnations"]] == ["3", "2"]
        status, second = get(first["next"])
        assert [life["key"] for life in second["incarnations"]] == ["1"]
        status, bundle = get("/api/v1/services/tiny/incarnations/2")
        assert (status, bundle["guilty"], bundle["end"]) == (200, stall.guilty, stall.end)
        assert bundle["stacks"] == stall.stacks

        alone = why.of_files(of(directory_of(run_dir), "tiny"), 10)
        assert [(life.incarnation, life.summary) for life in alone] == [
            (life.incarnation, life.summary) for life in (stop, stall, crash)
        ]
        reply = ask_why(operator, "atlas")
        assert isinstance(reply, WhyReply)
        assert [(life.summary, life.ended_s) for life in reply.incarnations] == [("runs", None)]
        refusal = ask_why(operator, "tin")
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "unknown service tin; did you mean tiny?"


def test_a_service(run_path: Path, operator: OperatorLink) -> None:
    """As it is now, its log, its loop, its metrics, and what happened to it and was asked of it."""
    with supervised(run_path, operator) as (supervisord, get):
        status, tiny = get("/api/v1/services/tiny")
        assert (status, tiny["schema_version"]) == (200, 1)
        pid = supervisord.pid("tiny")
        assert tiny["service"]["pid"] == tiny["process"]["pid"] == tiny["status"]["pid"] == pid

        status, log = get("/api/v1/services/tiny/log?bytes=200")
        assert (status, log["path"]) == (200, str(run_path / "tiny.log"))
        assert log["text"].endswith("serving\n")
        assert len(log["text"]) <= 200
        assert log["size_bytes"] == (run_path / "tiny.log").stat().st_size

        status, loop = get("/api/v1/services/tiny/ooda")
        assert (status, loop["instance"], loop["mode"]) == (200, "tiny", "on")

        def measured() -> list[Any]:
            points: list[Any] = get("/api/v1/services/tiny/metrics?step=1")[1]["points"]
            return points if len(points) >= 2 else []

        points = until(measured)
        assert [point["time_s"] for point in points] == sorted(point["time_s"] for point in points)
        assert points[-1]["rss_bytes"]["min"] <= points[-1]["rss_bytes"]["avg"] <= points[-1]["rss_bytes"]["max"]
        assert (points[-1]["incarnation"], points[-1]["phase"]) == (1, "serving")
        status, whole_week = get(f"/api/v1/services/tiny/metrics?since={time.time() - 7 * 86400:.0f}")
        assert (status, whole_week["step_s"]) == (200, 2016)
        assert sum(point["samples"] for point in whole_week["points"]) >= len(points)

        order(operator, Verb.RESTART, "tiny")
        until(lambda: get("/api/v1/commands?service=tiny")[1]["commands"][0]["kind"] == "done")
        status, commands = get("/api/v1/commands?service=tiny")
        assert (status, commands["commands"][0]["verb"], commands["commands"][0]["asked_by"]) == (
            200,
            "restart",
            "test",
        )
        assert get("/api/v1/commands?service=atlas")[1]["commands"] == []

        until(lambda: len(get("/api/v1/services/tiny/incarnations")[1]["incarnations"]) == 2)
        status, newest = get("/api/v1/services/tiny/incarnations?limit=1")
        assert [(life["key"], life["ended_s"]) for life in newest["incarnations"]] == [("2", None)]
        assert [life["key"] for life in get(newest["next"])[1]["incarnations"]] == ["1"]

        status, happened = get("/api/v1/events?service=tiny")
        assert {event["instance"] for event in happened["events"]} == {"tiny"}
        times = [event["time_s"] for event in happened["events"]]
        assert times == sorted(times, reverse=True)
        assert {event["kind"] for event in get("/api/v1/events?kind=command")[1]["events"]} == {"command"}
        pages: list[str] = []
        path = "/api/v1/events?service=tiny&limit=2"
        while path:
            _, page = get(path)
            pages += [event["id"] for event in page["events"]]
            path = page["next"]
        assert pages[-len(times) :] == [event["id"] for event in happened["events"]]


REFUSED = [
    ("/services/nope", 404, "cannot find this service"),
    ("/services/nope/metrics", 404, "cannot find this service"),
    ("/services/nope/incarnations", 404, "cannot find this service"),
    ("/services/nope/incarnations/1", 404, "cannot find this service"),
    ("/services/nope/log", 404, "cannot find this service"),
    ("/services/nope/ooda", 404, "cannot find this service"),
    ("/services/" + "x" * 4000, 404, "cannot find this service"),
    ("/services/%00%ff/incarnations", 404, "cannot find this service"),
    ("/services/..%2f..%2fetc/log", 404, "cannot find"),
    ("/services/tiny/incarnations/99", 404, "cannot find this incarnation"),
    ("/services/tiny/incarnations/" + "9" * 400, 404, "cannot find this incarnation"),
    ("/services/tiny/incarnations/..%2f1", 404, "cannot find"),
    ("/services/tiny/incarnations?limit=0", 400, "cannot use limit"),
    ("/services/tiny/incarnations?limit=1000000", 400, "cannot use limit"),
    ("/services/tiny/incarnations?limit=2&before=x", 400, "cannot use before"),
    ("/services/tiny/log?bytes=-1", 400, "cannot use bytes"),
    ("/services/tiny/log?bytes=99999999999", 400, "cannot use bytes"),
    ("/services/tiny/log?path=/etc/passwd", 400, "cannot use this parameter"),
    ("/services/tiny/log", 404, "no supervisord told of one"),
    ("/services/tiny/metrics?since=yesterday", 400, "cannot use since as a time"),
    ("/services/tiny/metrics?since=nan", 400, "cannot use since as a time"),
    ("/services/tiny/metrics?since=1e300", 400, "cannot use since as a time"),
    ("/services/tiny/metrics?until=2026-13-01T00:00:00Z", 400, "cannot use until as a time"),
    ("/services/tiny/metrics?since=20&until=10", 400, "ends before it begins"),
    ("/services/tiny/metrics?since=0&step=1", 400, "cannot give so many points"),
    ("/services/tiny/metrics?step=0.5", 400, "cannot use step"),
    ("/events?limit=1001", 400, "cannot use limit"),
    ("/events?before=1795441360.5_" + "9" * 30, 400, "cannot use before"),
    ("/events?servcie=tiny", 400, "cannot use this parameter"),
    ("/commands?since=-5", 400, "cannot use since as a time"),
]
ANSWERED = [
    "/services/tiny/metrics?since=0",
    "/services/tiny/metrics?since=2026-11-23T16:20:13%2B01:00",
    "/services/tiny/metrics?since=2026-11-23T16:20:13+01:00",
    "/services/tiny/metrics?until=99999999999",
    "/events?service=%27%20OR%201=1--&kind=%22",
    "/events?before=0_0",
    "/commands?limit=1000",
]


def test_what_is_refused(run_path: Path, operator: OperatorLink) -> None:
    """Each with a status, what is wrong, and what may be; and ATLAS is as before."""
    with ServiceProcess(run_path, *ATLAS) as atlas, ServiceProcess(run_path, *TINY):
        until(lambda: is_well(operator, "atlas", "tiny"))
        get = getter(atlas.url())
        until(lambda: get("/api/v1/services/tiny/metrics")[1]["points"])
        for path, status, what in REFUSED:
            found, body = get(f"/api/v1{path}")
            assert (found, body["error"]["status"], what in body["error"]["what"]) == (status, status, True), path
        for path in ANSWERED:
            found, body = get(f"/api/v1{path}")
            assert (found, body["schema_version"]) == (200, 1), (path, body)
        assert get("/api/v1/services/tin")[1]["error"]["next"] == "did you mean tiny?"
        for path in ("/events", "/services/tiny/log"):
            assert atlas.get(f"/api/v1{path}", data=b"x")[0] == 405
        assert is_well(operator, "atlas", "tiny")


@contextmanager
def answering(content: bytes, *, slowly: bool = False) -> Iterator[int]:
    """A server on a loopback port that says that to whoever connects, and with slowly never ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with suppress(OSError), connection:
                        connection.recv(4096)
                        connection.sendall(content)
                        while slowly:
                            connection.sendall(b"x")
                            time.sleep(0.05)

        Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_loop_that_does_not_answer_as_it_should(run_path: Path, run_dir: RunDir, operator: OperatorLink) -> None:
    """Silent, slow, endless, no JSON, elsewhere: a refusal within bounds, and ATLAS's own loop does not lag."""
    ok = b"HTTP/1.1 200 OK\r\n\r\n"
    with (
        ServiceProcess(run_path, *ATLAS) as atlas,
        answering(ok + b"{", slowly=True) as slow,
        answering(ok + b"[1]") as list_,
        answering(ok + b"{" * 100) as broken,
        answering(ok + b"[" * 600_000) as endless,
        answering(b"HTTP/1.1 500 Oh\r\n\r\n") as failing,
        answering(b"") as mute,
        answering(b"\r\n\r\n") as headless,
        answering(ok + b'{"mode":"on"}') as good,
    ):
        until(lambda: is_well(operator, "atlas"))
        get = getter(atlas.url())
        publisher = Publisher(run_dir.telemetry)
        addresses = {
            "slow": (f"http://127.0.0.1:{slow}", 504, "within 2.0 s"),
            "list": (f"http://127.0.0.1:{list_}", 502, "no JSON object"),
            "broken": (f"http://127.0.0.1:{broken}", 502, "cannot read what broken says"),
            "endless": (f"http://127.0.0.1:{endless}", 502, "is over 524288 bytes"),
            "failing": (f"http://127.0.0.1:{failing}", 502, "500 Oh"),
            "mute": (f"http://127.0.0.1:{mute}", 502, "without an answer"),
            "headless": (f"http://127.0.0.1:{headless}", 502, "the service answered ''"),
            "nobody": ("http://127.0.0.1:1", 502, "cannot reach"),
            "away": ("http://192.0.2.1:80", 502, "only http on this host's loopback"),
            "name": ("http://localhost.example:80", 502, "only http on this host's loopback"),
            "none": (None, 503, "it serves nowhere now"),
            "nonsense": ("\x00http://[", 502, "only http on this host's loopback"),
            "good": (f"http://127.0.0.1:{good}", 200, ""),
        }

        def told() -> bool:
            for number, (name, (address, _, _)) in enumerate(addresses.items()):
                publisher.publish(
                    replace(STATUS, service=name, instance=name, pid=number + 5, address=address,
                            seq=time.monotonic_ns(), host="host-1")
                )  # fmt: skip
            return len(get("/api/v1/fleet")[1]["services"]) == len(addresses) + 1

        until(told)
        for name, (_, status, what) in addresses.items():
            told()
            found, body = get(f"/api/v1/services/{name}/ooda")
            assert found == status, (name, body)
            assert what in body.get("error", {}).get("what", ""), (name, body)
        publisher.close()


def test_a_log_that_is_no_file(run_path: Path, operator: OperatorLink) -> None:
    """A named pipe would never end, a missing file has no end: each is said, at once."""
    pipe = run_path / "pipe.log"
    os.mkfifo(pipe)
    programs = {
        "atlas": FLEET["atlas"],
        "gone": {"command": "sleep 1000", "stdout_logfile": f"{run_path}/gone.log"},
        "quiet": {"command": "sleep 1000", "stdout_logfile": "NONE"},
    }
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}):
        until(lambda: is_well(operator, "atlas") and {"gone", "quiet"} <= fleet(operator).keys())
        get = getter(fleet(operator)["atlas"].address)
        (run_path / "gone.log").unlink()
        assert get("/api/v1/services/gone/log")[1]["error"]["what"] == (
            "cannot read the log of gone: No such file or directory"
        )
        pipe.rename(run_path / "gone.log")
        assert get("/api/v1/services/gone/log")[1]["error"]["what"] == (
            "cannot read the log of gone: it is no regular file"
        )
        assert get("/api/v1/services/quiet/log")[0] == 404
        assert get("/api/v1/services/gone/ooda")[0] == 503
        assert get("/api/v1/services/gone/incarnations")[1]["incarnations"] == []
        assert get("/api/v1/services/gone/metrics")[1]["points"] == []


# -- parameters: pure --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1795441360", 1795441360.0),
        ("1795441360.5", 1795441360.5),
        ("2026-11-23T13:42:40Z", 1795441360.0),
        ("2026-11-23t13:42:40.5z", 1795441360.5),
        ("2026-11-23T14:42:40+01:00", 1795441360.0),
        ("2026-11-23T14:42:40 01:00", 1795441360.0),
        ("2026-11-23 13:42:40Z", 1795441360.0),
        ("", 7.0),
    ],
)
def test_times(text: str, value: float) -> None:
    """Unix seconds or RFC 3339, also where a + has become a blank on its way."""
    assert moment({"since": text}, "since", 7.0) == value


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_parameter_or_refused(text: str) -> None:
    """BadQuery, and nothing else; what is taken is within its limits."""
    query = {"since": text, "limit": text, "before": text}
    with suppress(BadQuery):
        assert 0 <= moment(query, "since", 0.0) <= 1e11
    with suppress(BadQuery):
        assert 1 <= whole(query, "limit", 1, 1, 9) <= 9
    with suppress(BadQuery):
        found = place(query)
        assert found is None or (0 <= found[0] <= 1e11 and 0 <= found[1] < 1 << 63)


@settings(deadline=None)
@given(st.floats(0, 1e10), st.integers(0, 1 << 50))
def test_the_next_page_is_where_this_one_ended(time_s: float, number: int) -> None:
    """To the last digit."""
    time_s = round(time_s, 6)
    url = next_page("/p", {"service": "a&b", "before": "1_1"}, time_s, number)
    assert url.startswith("/p?service=a%26b&before=")
    assert place({"before": url.rpartition("=")[2]}) == (time_s, number)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fabric", ["cdn-data-fabric"]),
        ("cdn-geospacial", ["cdn-geospatial"]),
        ("gateway", ["gateway-primary"]),
        ("zzz", []),
        ("", []),
        ("x" * 100_000, []),
    ],
)
def test_near_matches(name: str, meant: list[str]) -> None:
    """What holds the word first, then what is spelt like it."""
    assert near(name, ["atlas", "cdn-data-fabric", "cdn-geospatial", "gateway-primary"]) == meant


def test_the_document_has_every_path() -> None:
    """docs/atlas.md names all that can be asked for, with its parameters as they are."""
    document = (ROOT / "docs" / "atlas.md").read_text()
    routes = [
        route.path.removeprefix("/api/v1/") for route in api_routes(Switchboard(RunDir(ROOT)), History(RunDir(ROOT)))
    ]
    named = re.findall(r"^\| `([^`?]+)[^`]*` \|", document, re.MULTILINE)
    assert set(routes) | {"fleet"} == set(named) & (set(routes) | {"fleet"})
