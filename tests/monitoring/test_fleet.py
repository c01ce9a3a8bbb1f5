"""The whole fleet of ten, as promtool, Debian's Prometheus and this service see it."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.support import Client, process
from tests.monitoring.test_prometheus import PROMETHEUS, PROMTOOL, columns, same
from tests.support import ServiceProcess, free_port, short_dir, until

FLEET = {
    "atlas": "atlas",
    "gateway-primary": "gateway",
    "glaf-graph-server": "graph",
    **{
        f"cdn-{name}": name.replace("-", "_")
        for name in (
            "data-fabric", "geospatial", "isolated-monitoring", "monitoring", "statistical", "threat-intel",
            "threat-reaction",
        )
    },
}  # fmt: skip
QUERIES = (
    "up",
    "cdn_service_healthy",
    "rate(cdn_service_requests_total[20s])",
    "max_over_time(scrape_samples_scraped[20s])",
    "sum by (job) (changes(cdn_service_uptime_seconds[20s]))",
    "count by (job) (up)",
    "quantile_over_time(0.9, scrape_duration_seconds[20s])",
    "avg without (instance) (delta(cdn_service_uptime_seconds[20s]))",
)


@pytest.fixture(scope="module")
def fleet() -> Iterator[dict[str, str]]:
    """The address of each, all running in one run directory."""
    with short_dir() as path, ExitStack() as stack:
        begun = {
            name: stack.enter_context(ServiceProcess(path, "-m", f"services.{module}", name=name, CDN_STATSD_PORT="0"))
            for name, module in FLEET.items()
        }
        addresses = {name: service.url().partition("//")[2] for name, service in begun.items()}
        for name, service in begun.items():
            until(lambda service=service: service.get("/readyz")[0] == 200, within_s=60, what=f"{name} is ready")  # type: ignore[misc]
        yield addresses


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_has_nothing_against_any(fleet: dict[str, str]) -> None:
    """Names, units, HELP and TYPE of every service's /metrics; cdn-monitoring's with all its own numbers."""
    assert PROMTOOL is not None
    for name, address in fleet.items():

        def text(url: str = f"http://{address}/metrics") -> str:
            with urllib.request.urlopen(url, timeout=30) as answer:
                told: str = answer.read().decode()
            return told

        if name == "cdn-monitoring":
            until(lambda text=text: re.search(r"^store_bytes\{", text(), re.MULTILINE), what="it has measured")  # type: ignore[misc]
        done = subprocess.run(
            [PROMTOOL, "check", "metrics"], input=text(), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (name, done.stdout, done.stderr)


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_prometheus_scrapes_the_fleet_and_both_answer_the_same(fleet: dict[str, str], tmp_path: Path) -> None:
    """All ten are up to it; its raw samples, given to a cdn-monitoring, have the same answers there."""
    assert PROMETHEUS is not None
    jobs = "".join(
        f"- {{job_name: {name}, static_configs: [{{targets: ['{address}']}}]}}\n" for name, address in fleet.items()
    )
    (tmp_path / "prometheus.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}")
    port = free_port()

    def theirs(path: str, **parameters: Any) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.loads(answer.read())["data"]["result"]
        except urllib.error.URLError:  # it does not listen yet
            return []

    with (tmp_path / "prometheus.log").open("wb") as log:
        prometheus = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        scraped = "count(count_over_time(up[1m]) >= 5 and up == 1)"
        until(
            lambda: [one["value"][1] for one in theirs("query", query=scraped)] == [str(len(fleet))],
            within_s=60,
            what="all are scraped",
        )
        (now,) = theirs("query", query="time()")[1:]
        end_s = int(float(now)) - 2  # what is scraped meanwhile is later
        raw = theirs("query", query="{__name__=~'.+'}[5m]", time=end_s)
        expected = {
            query: columns(theirs("query_range", query=query, start=end_s - 37, end=end_s, step=3.7))
            for query in QUERIES
        }
    finally:
        prometheus.kill()
        prometheus.wait()
    lines = [
        (at, f"{series(one['metric'])} {value} {round(at * 1000)}\n") for one in raw for at, value in one["values"]
    ]
    with short_dir() as path, process(path) as (client, _):
        assert client.take("".join(line for _, line in sorted(lines))).json == {"taken": len(lines), "known": 0}
        wrong = [query for query, found in expected.items() if not same(told(client, query, end_s), found)]
    assert not wrong
    assert len(expected["up"]) == len(fleet)
    assert all(len(found) >= 8 for found in expected.values()), "not every one has an embedded daemon"


def told(client: Client, query: str, end_s: int) -> Any:
    """What this service answers of the fleet; it scrapes its own host as well."""
    result = client.api("query_range", query=query, start=end_s - 37, end=end_s, step=3.7).json["data"]["result"]
    return columns([one for one in result if one["metric"].get("job") != "node"])


def series(labels: dict[str, str]) -> str:
    """As the text format has it."""
    quoted = ",".join(
        f"{name}={json.dumps(text, ensure_ascii=False)}" for name, text in labels.items() if name != "__name__"
    )
    return f"{labels['__name__']}{{{quoted}}}"
