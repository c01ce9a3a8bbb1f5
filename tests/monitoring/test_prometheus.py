"""Debian's Prometheus and this service, given the very same samples, answer the same."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.support import Client, process
from tests.support import ROOT, free_port, until

_TOOLS = os.pathsep.join((os.environ["PATH"], str(ROOT / ".ci" / "prometheus" / "usr" / "bin")))
PROMTOOL = shutil.which("promtool", path=_TOOLS)
PROMETHEUS = shutil.which("prometheus", path=_TOOLS)
BEGIN_S = 1_700_000_000
LONG_S = 3_600

QUERIES = (
    "gauge",
    'gauge{host="a"}',
    'gauge{host!="a",zone=~"east|w.*"}',
    'gauge{host!~"(a|b)+"}',
    '{__name__=~"gau.+",host=""}',
    "gauge offset 7m",
    "rate(requests_total[2m])",
    "rate(requests_total[47s])",
    "increase(requests_total[5m] offset 3m)",
    "irate(requests_total[3m])",
    "delta(gauge[4m])",
    "changes(steps[10m])",
    "resets(requests_total[10m])",
    "avg_over_time(gauge[3m])",
    "min_over_time(gauge[3m])",
    "max_over_time(gauge[3m])",
    "sum_over_time(gauge[3m])",
    "count_over_time(gauge[3m])",
    "last_over_time(gauge[3m])",
    "present_over_time(gauge[3m])",
    "quantile_over_time(0.9, gauge[3m])",
    "quantile_over_time(2, gauge[3m])",
    "sum(gauge)",
    "sum by (zone) (gauge)",
    "avg without (host) (gauge)",
    "min by (zone, nobody) (gauge)",
    "max(rate(requests_total[2m]))",
    "count by (host) ({__name__=~'.+'})",
    "sum(rate(requests_total[2m])) by (zone)",
    "gauge * 2 + 1 - -3",
    "2 ^ 3 ^ 2 - gauge % 7",
    "-gauge ^ 2",
    "gauge / (gauge - gauge)",
    "gauge > 50",
    "50 < bool gauge",
    "gauge >= bool 50",
    "gauge > other",
    "gauge - ignoring (nobody) other",
    "gauge - on (host, zone) other",
    "sum by (zone) (gauge) / on (zone) sum by (zone) (other)",
    "gauge and other > 50",
    "gauge unless on (host) (other > 50)",
    'gauge{host="a"} or other',
    "sum(gauge > 1000) or vector(0)",
    "absent(nobody{a='b',c=~'d'})",
    "absent(gauge)",
    "scalar(sum(gauge)) + time()",
    "abs(gauge - 50) + ceil(gauge) + floor(gauge)",
    "ends",
    "count_over_time(ends[2m])",
    "vector(1) > 0 unless vector(1) == 2",
    "1 == bool 1",
    "1e3 / 0x10 + Inf",
    "odd",
    "odd > 0",
    "sum(odd)",
    "max(odd)",
    "max_over_time(odd[5m])",
    "rate(odd[1m])",
    "increase(odd[5m])",
    "absent(nobody{a!='x',a='b',c='d',c!='e'})",
    "gauge - on () absent(gauge)",
    "absent(gauge) < on () gauge",
    "gauge > on () vector(1e9)",
)
REFUSED = (
    "gauge - on () vector(1)",
    "absent(nobody) + on () gauge",
    "gauge{host='a'} - on (zone) gauge",
    "ends < on (zone) gauge",
)


def samples() -> str:
    """Scrapes that jitter and break off, counters that are reset, values of all kinds; OpenMetrics without its end."""
    rng = random.Random(7)
    lines: dict[str, list[str]] = {"gauge": [], "other": [], "requests": [], "steps": [], "ends": [], "odd": []}
    for host, zone in (("a", "east"), ("b", "east"), ("c", "west"), ("", "north")):
        labels = f'host="{host}",zone="{zone}"' if host else f'zone="{zone}"'
        at_s, counter, step = BEGIN_S + rng.random() * 10, 1e4 * rng.random(), 0
        while at_s < BEGIN_S + LONG_S:
            at_s = round(at_s + 15 + rng.uniform(-0.7, 0.7), 3)
            if rng.random() < 0.03:
                at_s = round(at_s + rng.uniform(60, 500), 3)  # nothing is heard for a while
            counter = counter + rng.randrange(50) if rng.random() > 0.02 else float(rng.randrange(10))
            step += rng.random() < 0.1
            lines["gauge"].append(f"gauge{{{labels}}} {rng.lognormvariate(4, 1)!r} {at_s}")
            lines["requests"].append(f"requests_total{{{labels}}} {counter!r} {at_s}")
            lines["steps"].append(f"steps{{{labels}}} {step} {at_s}")
            if host != "c":
                lines["other"].append(f"other{{{labels}}} {rng.uniform(0, 100)!r} {at_s}")
            if host == "a" and at_s < BEGIN_S + LONG_S / 2:
                lines["ends"].append(f"ends {rng.random()!r} {at_s}")
            if host == "b":
                lines["odd"].append(f"odd {rng.choice(('NaN', '+Inf', '-Inf', '1', '-1e300', '1e-9'))} {at_s}")
    kinds = {"requests": "counter"}
    return "".join(
        f"# TYPE {name} {kinds.get(name, 'gauge')}\n" + "\n".join(part) + "\n" for name, part in lines.items()
    )


def in_ms(text: str) -> str:
    """OpenMetrics has seconds, the older format milliseconds."""
    lines = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        series, _, at_s = line.rpartition(" ")
        lines.append(f"{series} {round(float(at_s) * 1000)}")
    return "\n".join(lines) + "\n"


def columns(result: list[Any]) -> dict[frozenset[tuple[str, str]], list[tuple[float, float]]]:
    """By labels."""
    return {
        frozenset(one["metric"].items()): [(float(at), float(value)) for at, value in one["values"]] for one in result
    }


def same(ours: Any, theirs: Any) -> bool:
    """The same series at the same steps, and values that differ by rounding alone."""
    return ours.keys() == theirs.keys() and all(
        len(ours[who]) == len(theirs[who])
        and all(
            at == their_at and (math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) or (a != a and b != b))
            for (at, a), (their_at, b) in zip(ours[who], theirs[who], strict=True)
        )
        for who in ours
    )


@pytest.mark.skipif(PROMETHEUS is None or PROMTOOL is None, reason="prometheus is not installed (Debian: prometheus)")
def test_the_same_samples_have_the_same_answers(run_path: Path, tmp_path: Path) -> None:
    """Every function, operator and matcher, over an hour of steps that lie on no sample; and listings."""
    assert PROMETHEUS is not None
    assert PROMTOOL is not None
    text = samples()
    (tmp_path / "samples").write_text(text + "# EOF\n")
    subprocess.run(
        [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", "samples", "tsdb"],
        cwd=tmp_path, check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    port = free_port()
    with (tmp_path / "prometheus.log").open("wb") as log:
        prometheus = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def theirs(path: str, **parameters: Any) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read())["data"]

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        with process(run_path, CDN_MONITORING_RETENTION_S="315360000") as (client, _):
            taken = client.take(in_ms(text)).json
            assert taken == {"taken": text.count("\n") - text.count("#"), "known": 0}
            until(is_ready, within_s=60, what="Prometheus is ready")
            times = {"start": BEGIN_S - 400.123, "end": BEGIN_S + LONG_S + 700, "step": 37.9}
            wrong = []
            for query in QUERIES:
                expected = columns(theirs("query_range", query=query, **times)["result"])
                told = columns(client.api("query_range", query=query, **times).json["data"]["result"])
                if not same(told, expected):
                    wrong.append(query)
            assert not wrong
            for query in REFUSED:
                assert client.api("query_range", query=query, **times).status == 422, query
                with pytest.raises(urllib.error.HTTPError, match="422"):
                    theirs("query_range", query=query, **times)
            assert sum(bool(theirs("query_range", query=query, **times)["result"]) for query in QUERIES) > 50
            compare_listings(client, theirs)
            asked = [PROMTOOL, "query", "instant", f"http://127.0.0.1:{client.port}", "1 + 1"]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout[:9]) == (0, "scalar: 2"), done
    finally:
        prometheus.kill()
        prometheus.wait()


def compare_listings(client: Client, theirs: Any) -> None:
    """Labels, values, series, raw ranges, instants."""
    during = {"start": BEGIN_S, "end": BEGIN_S + LONG_S}
    for path, more in (
        ("labels", {}),
        ("label/zone/values", {}),
        ("label/host/values", {"match[]": "other"}),
        ("series", {"match[]": ["ends", 'gauge{host="a"}']}),
    ):
        told = client.api(path, **during, **more).json["data"]
        expected = theirs(path, **during, **more)
        assert sorted(map(str, told)) == sorted(map(str, expected)), path
    at = {"time": BEGIN_S + 1234.5}
    for query in ("gauge[2m]", "sum(gauge)", "1 + 1", "ends offset 30m"):
        told = client.api("query", query=query, **at).json["data"]
        expected = theirs("query", query=query, **at)
        assert told["resultType"] == expected["resultType"]
        if told["resultType"] == "matrix":
            assert same(columns(told["result"]), columns(expected["result"]))
        elif told["resultType"] == "scalar":
            assert told["result"] == expected["result"]
        else:
            assert [one["metric"] for one in told["result"]] == [one["metric"] for one in expected["result"]]
            for ours, other in zip(told["result"], expected["result"], strict=True):
                assert math.isclose(float(ours["value"][1]), float(other["value"][1]), rel_tol=1e-9)
