"""The HTTP interface, in process: each answer, each refusal, two instances that merge, the stream."""

from __future__ import annotations

import json
import random
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.sync.client import connect

from services.statistical.limits import Limits
from services.statistical.statsd import Kind
from tests.statistical.support import Client, serving
from tests.support import until


def latencies(seed: int, median: float, count: int = 2000) -> str:
    """Lines of StatsD."""
    rng = random.Random(seed)
    return "\n".join(f"lat:{median * rng.lognormvariate(0, 0.5):.6f}|ms" for _ in range(count))


def test_what_is_sent_is_what_is_told(tmp_path: Path) -> None:
    """Of each kind, by JSON and by lines."""
    with serving(tmp_path) as (client, _):
        samples = [
            {"name": "hits", "kind": "counter", "value": 3},
            {"name": "hits", "kind": "counter", "value": 1, "rate": 0.1},
            {"name": "load", "kind": "gauge", "value": -4.5},
            {"name": "load", "kind": "gauge", "value": 1e-7, "delta": True},
            {"name": "who", "kind": "set", "value": "2001:db8::1", "tags": {"port": "22"}},
            *[{"name": "lat", "kind": "distribution", "value": n} for n in range(1, 11)],
        ]
        assert client.call("POST", "/samples", {"samples": samples}).json == {"taken": 15}
        assert client.lines("who:2001:db8::1|s|#port:22\nhits:2|c\r\n\nlat:11:12|ms").json == {"taken": 3}

        hits = client.series("hits")
        assert (hits["total"], hits["received"]) == (15, 3)
        assert hits["total_error"] == pytest.approx(90**0.5)
        assert client.series("load")["last"] == pytest.approx(-4.5 + 1e-7)
        who = client.series("who;port=22")
        assert who["distinct"] == {"estimate": 1.0, "low": 1, "high": 2}
        assert who["top"] == [{"member": "2001:db8::1", "low": 2, "high": 2}]
        lat = client.series("lat", q="0.5,1")
        assert [(one["q"], one["value"]) for one in lat["quantiles"]] == [(0.5, 6.0), (1.0, 12.0)]
        assert lat["relative_error"] == 0
        listed = client.call("GET", "/series").json["series"]
        assert [(one["name"], one["kind"]) for one in listed] == [
            ("hits", "counter"),
            ("lat", "distribution"),
            ("load", "gauge"),
            ("who;port=22", "set"),
        ]
        page = client.call("GET", "/series?limit=1&prefix=l").json
        assert [one["name"] for one in page["series"]] == ["lat"]
        page = client.call("GET", f"/series?limit=1&prefix=l&after={page['next']}").json
        assert ([one["name"] for one in page["series"]], page["next"]) == (["load"], None)


def test_a_quantile_lies_within_its_bounds(tmp_path: Path) -> None:
    """Beyond the few values that are kept exactly."""
    rng = random.Random(6)
    values = sorted(round(rng.lognormvariate(3, 2), 6) for _ in range(3000))
    with serving(tmp_path, Limits(quantile_bytes=2048)) as (client, _):
        for _ in range(2):  # in the second round it is one of two, with the least of bins
            client.lines("\n".join(f"lat:{value!r}|ms" for value in values) + "\nother:1|ms")
        lat = client.series("lat")
        assert lat["relative_error"] > 0
        for quantile in lat["quantiles"]:
            true = values[max(0, round(quantile["q"] * 3000) - 1)]
            assert quantile["low"] <= true <= quantile["high"]


REFUSED = [
    ("POST", "/samples", b"{", 400),
    ("POST", "/samples", b"[" * 100_000, 400),
    ("POST", "/samples", {"samples": []}, 400),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "counter", "value": "1"}]}, 422),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "set", "value": 1}]}, 422),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "gauge", "value": 1e300}]}, 422),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "counter", "value": 1, "rate": 0}]}, 422),
    ("POST", "/samples", {"samples": [{"name": "/", "kind": "counter", "value": 1}]}, 422),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "set", "value": "y" * 600}]}, 422),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "median", "value": 1}]}, 400),
    ("POST", "/samples", {"samples": [{"name": "x", "kind": "counter", "value": 1}] * 10_001}, 413),
    ("POST", "/samples", b" " * (1 << 20) + b"1", 413),
    ("POST", "/merge", {"series": []}, 413),
    ("POST", "/merge", {"series": [{"name": "x", "kind": "gauge", "state": {"type": "counter"}}]}, 422),
    (
        "POST",
        "/merge",
        {"series": [{"name": "x", "kind": "counter", "state": {"type": "counter", "variance": -1}}]},
        422,
    ),
    ("POST", "/merge", {"series": [{"name": "x", "kind": "set", "state": {"type": "set", "hll": "AAAA"}}]}, 422),
    ("POST", "/compare", {"first": {"series": "lat"}, "second": {"series": "lat"}, "test": "t"}, 400),
    ("POST", "/compare", {"first": {"series": "lat"}, "second": {"series": "nope"}}, 404),
    ("POST", "/compare", {"first": {"series": "lat"}, "second": {"series": "lat"}}, 422),
    ("GET", "/series/nope", None, 404),
    ("GET", "/series/lat?q=2", None, 400),
    ("GET", "/series/lat?q=a", None, 400),
    ("GET", "/series/lat?window=0", None, 400),
    ("GET", "/series/lat?window=86400&ago=86400", None, 400),
    ("GET", "/series/lat?kind=median", None, 400),
    ("GET", "/series?limit=100000", None, 400),
    ("GET", "/changes?after=-1", None, 400),
    ("DELETE", "/series", None, 405),
    ("GET", "/nope", None, 404),
]


def test_what_is_wrong_is_refused_and_nothing_of_it_is_taken(tmp_path: Path) -> None:
    """With its status and in the form of every refusal; the service goes on."""
    with serving(tmp_path) as (client, _):
        assert client.lines("lat:1|ms\nboth:1|c\nboth:1|ms").status == 200
        for method, path, body, status in REFUSED:
            assert client.call(method, path, body).error["status"] == status, (path, body)
        wrong = client.lines("x:1|c\nx:one|c").error
        assert wrong["status"] == 422
        assert wrong["what"].startswith("cannot take line 2: ")
        assert client.call("GET", "/series/both").error["status"] == 409
        assert client.series("both", kind="counter")["total"] == 1
        assert client.call("GET", "/series/x").status == 404
        assert client.call("GET", "/series/lat").status == 200


def test_a_repeated_batch_is_taken_once(tmp_path: Path) -> None:
    """By its id, also after a restart; without one each is another."""
    batch = {"samples": [{"name": "hits", "kind": "counter", "value": 1}], "id": "a"}
    for times in (1, 2):
        with serving(tmp_path) as (client, _):
            for _ in range(2):
                assert client.call("POST", "/samples", batch).json == {"taken": 1}
                client.lines("hits:10|c", idempotency_key="b")
            client.lines("hits:100|c")
            assert client.total("hits") == 11 + 100 * times


def test_instances_merge(tmp_path: Path) -> None:
    """Two took a half each, and the one that gets both sketches knows as much as one that took all."""
    rng = random.Random(8)
    lines = [f"lat:{rng.lognormvariate(3, 1):.6f}|ms\nhits:1|c\nwho:{rng.randrange(2000)}|s" for _ in range(3000)]
    with serving(tmp_path / "a") as (a, _), serving(tmp_path / "b") as (b, _), serving(tmp_path / "c") as (whole, _):
        for n in range(0, 3000, 1000):
            part = lines[n : n + 1000]
            whole.lines("\n".join(part))
            a.lines("\n".join(part[:500]))
            b.lines("\n".join(part[500:]))
        sent = [b.call("GET", f"/series/{name}/sketch?window=3600").json for name in ("lat", "hits", "who")]
        assert a.call("POST", "/merge", {"series": sent, "id": "b-1"}).json == {"merged": 3}
        assert a.call("POST", "/merge", {"series": sent, "id": "b-1"}).json == {"merged": 3}
        one, other = (client.series("lat", window=3600) for client in (a, whole))
        for quantile, expected in zip(one["quantiles"], other["quantiles"], strict=True):
            assert quantile["value"] == pytest.approx(expected["value"], rel=2 * one["relative_error"] + 1e-9)
        assert one["count"] == other["count"] == 3000
        assert a.total("hits") == 3000
        one, other = (client.series("who", window=3600)["distinct"] for client in (a, whole))
        assert one["low"] <= other["estimate"] <= one["high"]


def test_two_series_are_compared(tmp_path: Path) -> None:
    """Told apart if they differ, not if they do not; and warned when asked again and again."""
    with serving(tmp_path) as (client, _):
        client.lines(latencies(1, 10))
        client.lines(latencies(2, 10).replace("lat:", "same:"))
        client.lines(latencies(3, 12).replace("lat:", "slower:"))

        def compared(second: str, test: str) -> dict[str, object]:
            body = {"first": {"series": "lat"}, "second": {"series": second}, "test": test}
            answer: dict[str, object] = client.call("POST", "/compare", body).json
            return answer

        for at, test in enumerate(("ks", "mann-whitney")):
            differs, same = compared("slower", test), compared("same", test)
            verdict = differs["verdict"]
            assert isinstance(verdict, dict)
            assert verdict["p_value"] < 1e-9
            assert 0.1 < verdict["effect"] < 0.5
            assert isinstance(same["verdict"], dict)
            assert same["verdict"]["p_value"] > 1e-3
            assert same["comparisons"] == 2 * at + 2
            assert same["p_value_adjusted"] == min(1, same["verdict"]["p_value"] * (2 * at + 2))
            assert "p_value_adjusted" in str(same["warning"])


def test_the_stream_tells_each_second_and_change_points(tmp_path: Path) -> None:
    """A change is on the stream, in GET /changes after a restart, and names who is behind it."""
    with (
        serving(tmp_path, flush_s=0.1) as (client, statistical),
        connect(f"ws://127.0.0.1:{client.port}/ws/stream") as socket,
    ):
        client.lines("logins.failed:7|c")
        flush = next(message for message in map(json.loads, socket) if message.get("values"))
        assert flush["type"] == "flush"
        assert [(one["name"], one["kind"]) for one in flush["values"]] == [("logins.failed", "counter")]
        with statistical.store.lock:
            series = statistical.store.series[Kind.COUNTER, "logins.failed"]
            detector = statistical.store.watch(series)
            assert detector is not None
            for _ in range(100):
                detector.hear(0.0)
            detector.threshold = 1.0  # the first second that is unlike these is enough

        def attacked() -> object:
            client.lines("logins.failed:50|c\n" + "logins.failed.from:203.0.113.9|s\n" * 50)
            return client.call("GET", "/changes").json["changes"]

        until(attacked, within_s=60)
        message = next(one for one in map(json.loads, socket) if one["type"] == "change_point")
        point = message["point"]
        assert (point["series"], point["change"]["direction"]) == ("logins.failed", "up")
        assert point["source"] == "203.0.113.9"
    with serving(tmp_path) as (client, _):
        (kept,) = client.call("GET", "/changes").json["changes"]
        assert kept["point"] == point
        assert client.call("GET", f"/changes?after={kept['id']}").json["changes"] == []


def test_one_client_too_many_of_the_stream_is_refused(tmp_path: Path) -> None:
    """And told what to ask instead; the service goes on."""
    with serving(tmp_path, Limits(clients=1)) as (http, _), connect(f"ws://127.0.0.1:{http.port}/ws/stream"):
        with pytest.raises(Exception, match="503"):
            connect(f"ws://127.0.0.1:{http.port}/ws/stream")
        assert http.call("GET", "/").status == 200


def test_questions_while_samples_come_in(tmp_path: Path) -> None:
    """Each total that is told is one of what was acknowledged before and after the question."""
    with serving(tmp_path) as (client, _):
        for n in range(1, 60):
            assert client.lines("hits:1|c").status == 200
            assert Client(client.port).total("hits") == n


def test_a_web_page_cannot_post_samples_to_the_statsd_port(tmp_path: Path) -> None:
    """A browser would send them as the body of a request, by TCP: nothing of such a connection counts."""
    body = b"evil:1|c\n"
    head = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(tmp_path) as (client, statistical):
        for parts in ((head + body,), (head[:20], head[20:], body)):
            with socket.create_connection(("127.0.0.1", client.statsd_port), timeout=30) as page:
                for part in parts:
                    with suppress(OSError):  # it has been closed already
                        page.sendall(part)
                with suppress(ConnectionResetError):
                    assert page.recv(1) == b""
        with socket.create_connection(("127.0.0.1", client.statsd_port), timeout=30) as honest:
            honest.sendall(b"good:1|c\n")
            until(lambda: client.total("good") == 1)
        assert client.total("evil") == 0
        assert statistical.metrics()['statsd_garbage_total{cause="line"}'] == 2
