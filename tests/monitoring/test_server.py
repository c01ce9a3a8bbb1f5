"""The real process: what it scrapes, what it refuses, what survives."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.client import connect

from bus.endpoints import RunDir
from bus.operators import OperatorLink
from tests.atlas.test_atlas import is_well
from tests.monitoring.support import Client, process, target
from tests.support import ROOT, Supervisord, until


def scraped(client: Client, url: str) -> dict[str, Any]:
    """How a target's last scrape went."""
    targets = client.api("targets").json["data"]["activeTargets"]
    return next((one for one in targets if one["scrapeUrl"] == url), {})


def test_a_target_from_first_scrape_to_last(run_path: Path) -> None:
    """Its series with its labels, a reset, a series that ends, a failure that is told; garbage is not half taken."""
    told: dict[str, Any] = {"status": 200, "body": b""}

    def tell() -> tuple[int, bytes]:
        return told["status"], told["body"]

    told["body"] = b'# TYPE hits_total counter\nhits_total{job="theirs",path="/\\"a\\\\\\n"} 7\ngone 1\nstays 2 \n'
    with target(tell) as url, process(run_path, CDN_MONITORING_INTERVAL_S="1") as (client, _):
        asked = {"targets": [{"url": url, "labels": {"job": "mine", "site": "x"}}]}
        assert client.call("PUT", "/targets", asked).status == 200
        until(lambda: client.query("hits_total"), what="scraped")
        (hits,) = client.query("hits_total")
        assert hits["metric"]["exported_job"] == "theirs"
        assert (hits["metric"]["job"], hits["metric"]["site"], hits["metric"]["path"]) == ("mine", "x", '/"a\\\n')
        told["body"] = b"stays 3\n"
        until(lambda: not client.query("gone"), what="what is no longer told has ended at once")
        assert client.query("stays")[0]["value"][1] == "3"
        for status, body, why in (
            (500, b"", "500"),
            (200, b"stays 4\nthis is none\n", "line 2"),
            (200, b"stays 4\n\xff 1\n", "UTF-8"),
            (200, b"x" * (9 << 20), "more than"),
        ):
            told.update(status=status, body=body)
            until(lambda why=why: why in scraped(client, url).get("lastError", ""), what=why)  # type: ignore[misc]
            until(lambda: client.query('up{job="mine"}')[0]["value"][1] == "0", what="up is 0")
            assert not client.query("stays")
        told.update(status=200, body=b"stays 5\n")
        until(lambda: client.query('up{job="mine"}')[0]["value"][1] == "1", what="it is up again")
        assert client.call("PUT", "/targets", {"targets": []}).json == {"targets": []}
        until(lambda: not client.query('up{job="mine"}'), what="no target, no up")
        assert client.query("count(node_cpu_seconds_total)"), "the host is scraped too"


REFUSED = (
    ("GET", "/api/v1/query", 400),
    ("GET", "/api/v1/query?query=", 400),
    ("GET", "/api/v1/query?query=up&tiem=5", 400),
    ("GET", "/api/v1/query?query=up&query=down", 400),
    ("GET", "/api/v1/query?query=up&time=yesterday", 400),
    ("GET", "/api/v1/query?query=up&time=1e300", 400),
    ("GET", "/api/v1/query?query=%ff", 400),
    ("GET", "/api/v1/query?query=" + "(" * 5000, 400),
    ("GET", "/api/v1/query?query=1" + "%2B1" * 2000, 400),
    ("GET", "/api/v1/query?query=" + "-" * 5000, 400),
    ("GET", "/api/v1/query_range?query=up&start=0&end=1", 400),
    ("GET", "/api/v1/query_range?query=up&start=2&end=1&step=1", 400),
    ("GET", "/api/v1/query_range?query=up&start=0&end=1&step=0", 400),
    ("GET", "/api/v1/query_range?query=up&start=0&end=1&step=-5m", 400),
    ("GET", "/api/v1/query_range?query=up&start=0&end=100000&step=1", 400),
    ("GET", "/api/v1/query_range?query=up[5m]&start=0&end=1&step=1", 400),
    ("GET", "/api/v1/series", 400),
    ("GET", "/api/v1/label/a-b/values", 400),
    ("GET", "/api/v1/nothing", 404),
    ("PUT", "/rules/9", 422),
    ("DELETE", "/rules/nobody", 404),
    ("GET", "/rules/nobody", 404),
)
NOT_UNDERSTOOD = (
    "topk(3, up)",
    "histogram_quantile(0.9, x)",
    "rate(up)",
    "rate(up[5m:1m])",
    "sum(up)[5m:]",
    "up @ 5",
    "up[5m]",
    "up[0s]",
    "up + on (a) group_left up",
    "rate(sum(up)[5m])",
    "sum by (up",
    "up{a=b}",
    "up{a=~'('}",
    "up{a=~'(?=x)'}",
    "up{a=~'(x)\\\\1'}",
    "{}",
    '{a=~".*"}',
    "up offset",
    "1 and 2",
    "1 == 1",
    "up bool + 1",
    "quantile_over_time(up[5m])",
    "up atan2 up",
    "up up",
    "up $",
    "up{a='\\q'}",
    "sum(1)",
    "-up[5m]",
)


def test_what_is_not_understood_is_refused(run_path: Path) -> None:
    """By name, in both shapes, at once; and the service answers the next question."""
    with process(run_path) as (client, _):
        for method, path, status in REFUSED:
            answer = client.call(method, path, {"expr": "up"} if method == "PUT" else None)
            assert (answer.status, answer.error["status"]) == (status, status), path[:100]
        for query in NOT_UNDERSTOOD:
            answer = client.api("query_range", query=query, start=0, end=1, step=1)
            assert answer.status == 400, query
            assert answer.error["what"], query
            rule = client.call("PUT", "/rules/r", {"expr": query})
            assert rule.status == 422, query
        bodies: tuple[tuple[str, Any], ...] = (
            ("/rules/r", {"expr": "1"}),
            ("/rules/r", {"expr": "up", "for": "5m"}),
            ("/rules/r", {"expr": "up", "for_s": -1}),
            ("/rules/r", {"expr": "up", "labels": {"a-b": "c"}}),
            ("/rules/r", {"expr": "up", "labels": {"alertname": "c"}}),
            ("/rules/r", b"{"),
            ("/targets", {"targets": [{"url": "https://a/metrics"}]}),
            ("/targets", {"targets": [{"url": "http://u:p@a/metrics"}]}),
            ("/targets", {"targets": [{"url": "http://a/\r\nX: y"}]}),
            ("/targets", {"targets": [{"url": "file:///etc/passwd"}]}),
            ("/targets", {"targets": [{"url": "http://a:1/"}, {"url": "http://a:1/"}]}),
            ("/targets", b"[" * 20_000),
        )
        for path, body in bodies:
            answer = client.call("PUT", path, body)
            assert answer.status in (400, 422), body
            assert answer.error
        for text in ("none", "a{b=c} 1", "a 1 2 3", 'a{b="c} 1', "a 1_000", "a 1 99999999999999999"):
            assert client.take(text).error["status"] in (400, 422), text
        form = urllib.parse.urlencode({"query": "1 + 1"}).encode()
        posted = client.call("POST", "/api/v1/query", form, content_type="application/x-www-form-urlencoded")
        assert posted.json["data"]["result"][1] == "2"
        assert client.call("POST", "/api/v1/query", b"{}", content_type="application/json").error["status"] == 415


def test_a_pattern_that_would_take_for_ever_does_not(run_path: Path) -> None:
    """Neither does a question about too much: it is told so, and others are answered meanwhile."""
    with process(run_path) as (client, _):
        client.take(f'm{{a="{"a" * 60}b"}} 1\n')
        assert client.query("""m{a=~"(a|aa)+(a*)*(a|a)*c"}""") == []
        assert len(client.query("""m{a=~"(a|aa)+(a*)*b"}""")) == 1


def test_every_acknowledged_sample_survives_sigkill(run_path: Path) -> None:
    """Imports, a rule and a target; killed in the middle of more. What was said to be on disk is there, once."""
    acknowledged: list[int] = []

    def send(client: Client) -> None:
        for number in range(1_000_000):  # until the service is gone
            try:
                answer = client.take(f"n {number} {1_700_000_000_000 + number * 1000}\n")
            except (OSError, http.client.HTTPException):
                return
            assert answer.status == 200
            acknowledged.append(number)

    with process(run_path) as (client, service):
        assert client.call("PUT", "/rules/Kept", {"expr": "n > 1e9", "for_s": 60}).status == 200
        assert client.call("PUT", "/targets", {"targets": [{"url": "http://127.0.0.1:1/metrics"}]}).status == 200
        sender = threading.Thread(target=send, args=(client,))
        sender.start()
        until(lambda: len(acknowledged) > 50, what="some are taken")
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait(30)
        sender.join()
    with process(run_path) as (client, _):
        at = 1_700_000_000 + 10_000
        (kept,) = client.query("n[10000s]", time=at)
        numbers = [int(float(value)) for _, value in kept["values"]]
        assert numbers[: len(acknowledged)] == acknowledged
        assert len(numbers) <= len(acknowledged) + 1
        assert client.call("GET", "/rules/Kept").json["rule"]["for_s"] == 60
        assert client.call("GET", "/targets").json["targets"][0]["url"] == "http://127.0.0.1:1/metrics"
        again = client.take(f"n {numbers[0]} {1_700_000_000_000 + numbers[0] * 1000}\n").json
        assert again == {"taken": 1, "known": 1}
        assert client.take("n 77 1700000000000\n").error["status"] == 409


def test_a_file_that_may_not_grow(run_path: Path) -> None:
    """What cannot be written is refused with 507, questions are answered, and with room again everything goes on."""
    with process(run_path) as (client, service):
        assert client.take("n 1 1000\n").status == 200
        limited = psutil.Process(service.pid)
        _, hard = limited.rlimit(psutil.RLIMIT_FSIZE)
        limited.rlimit(psutil.RLIMIT_FSIZE, (4096, hard))

        def refused() -> bool:
            answer = client.call("PUT", "/rules/R", {"expr": "up == 0"})
            return answer.status != 200 and answer.error["status"] == 507

        until(refused, what="a rule is refused")
        assert client.query("n", time=2)[0]["value"][1] == "1"
        limited.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        until(lambda: client.take("n 2 2000\n").status == 200, what="it is taken again")


def test_slow_and_broken_targets_hold_nobody_up(run_path: Path) -> None:
    """One that never answers and one that speaks no HTTP are down; the one beside them is scraped in its time."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        target(lambda: (200, b"quick 1\n")) as url,
        process(run_path, CDN_MONITORING_INTERVAL_S="1") as (client, _),
    ):
        mute = f"http://127.0.0.1:{silent.getsockname()[1]}/metrics"
        asked = {"targets": [{"url": mute}, {"url": url}, {"url": "http://127.0.0.1:1/"}]}
        assert client.call("PUT", "/targets", asked).status == 200
        until(lambda: client.query("count_over_time(quick[1h]) > 3"), what="the quick one is scraped")
        until(lambda: "within" in scraped(client, mute)["lastError"], what="the silent one is told")
        assert scraped(client, "http://127.0.0.1:1/")["health"] == "down"


FLEET = {
    "atlas": {"command": f"{sys.executable} -m services.atlas", "priority": "10"},
    "tiny": {"command": f"{sys.executable} -m tests.cdn_daemon.tiny", "priority": "30"},
    "cdn-monitoring": {"command": f"{sys.executable} -m services.monitoring", "priority": "40"},
}


def test_a_fleet_is_found_and_an_alert_is_told(run_dir: RunDir, run_path: Path) -> None:
    """Every service without being named; a killed ATLAS costs nothing; an alert is an event, and told live."""
    env = {"CDN_PORT": "0", "CDN_MONITORING_INTERVAL_S": "1", "CDN_MONITORING_RULES_S": "0.2"}
    with Supervisord(run_path, FLEET, env=env) as supervisord:
        operator = OperatorLink(run_dir.operators)
        until(lambda: is_well(operator, *FLEET), what="the fleet is well")
        operator.close()
        found = re.search(r"listens on 127\.0\.0\.1 port (\d+)", supervisord.log("cdn-monitoring"))
        atlas = re.search(r"listens on 127\.0\.0\.1 port (\d+)", supervisord.log("atlas"))
        assert found
        assert atlas
        client = Client(int(found[1]))
        jobs = {"atlas", "tiny", "cdn-monitoring", "node"}

        def scraped_jobs() -> set[str]:
            return {one["metric"]["job"] for one in client.query("up == 1")}

        until(lambda: scraped_jobs() == jobs, what="all are scraped")
        told: list[dict[str, Any]] = []
        with connect(f"ws://127.0.0.1:{found[1]}/ws/stream") as live:
            rule = {"expr": 'cdn_service_up{instance_id="tiny"} == 0', "for_s": 0.5, "annotations": {"do": "look"}}
            assert client.call("PUT", "/rules/TinyDown", rule).status == 200
            supervisord.ctl("stop", "tiny")
            while len(told) < 2:
                told.append(json.loads(live.recv(timeout=30)))
            supervisord.ctl("start", "tiny")
            told.append(json.loads(live.recv(timeout=30)))
        assert [one["state"] for one in told] == ["pending", "firing", "resolved"]
        assert told[1]["annotations"] == {"do": "look"}
        chain = Client(int(atlas[1]))

        def events() -> list[Any]:
            answer = chain.api("events", chain=told[2]["event"])
            return list(answer.json["events"]) if answer.status == 200 else []

        until(lambda: len(events()) == 3, what="ATLAS has the chain")
        assert [one["event"]["facts"]["state"] if "event" in one else one["facts"]["state"] for one in events()] == [
            "pending",
            "firing",
            "resolved",
        ]
        until(lambda: scraped_jobs() == jobs, what="the one that was started again is scraped where it is now")
        os.kill(supervisord.pid("atlas"), signal.SIGKILL)
        assert scraped_jobs() >= jobs - {"atlas"}
        until(lambda: scraped_jobs() == jobs, what="the fleet is whole")


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_the_fleets_own_rules_and_dashboard_are_understood(name: str) -> None:
    """Every expression that the project ships for Prometheus."""
    from services.monitoring.promql import parse

    text = (ROOT / "docs" / name).read_text()
    if name.endswith("json"):
        expressions = [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]
    else:
        expressions = re.findall(r"expr: (.*)", text)
    assert len(expressions) > 5
    for expression in expressions:
        parse(re.sub(r"\$\w+", ".+", expression))
