"""ATLAS for Prometheus: the whole fleet in one scrape, and rules and a dashboard that fit it."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bus.endpoints import RunDir
from bus.messages import (
    HealthStatus,
    NodeStatus,
    OutcomeKind,
    ProcessRow,
    ProcessState,
    ServiceMetrics,
    Verb,
    Vitals,
)
from bus.operators import OperatorLink
from cdn_daemon.exposition import exposition as of_a_service
from cdn_daemon.exposition import family, labels, number
from services.atlas.fleet import Fleet
from services.atlas.prometheus import Measured, exposition
from services.atlas.room import why_full
from tests.atlas.test_atlas import FLEET, is_well
from tests.atlas.test_fleet import node, row, status
from tests.bus.samples import STATUS
from tests.support import ROOT, Supervisord, free_port, until

DOCS = ROOT / "docs"
_TOOLS = os.pathsep.join((os.environ["PATH"], str(ROOT / ".ci" / "prometheus" / "usr" / "bin")))
PROMTOOL = shutil.which("promtool", path=_TOOLS)
PROMETHEUS = shutil.which("prometheus", path=_TOOLS)
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

SAMPLE = re.compile(r'([a-z_]+)(\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (\S+)')


def measured(fleet: Fleet, now_s: float = 0.0, counts: dict[str, int] | None = None) -> Measured:
    """A fleet as the switchboard would tell of it."""
    return Measured(
        now_s=now_s,
        views=fleet.views(now_s),
        statuses={name: member.status for name, member in fleet.members.items()},
        nodes=fleet.nodes,
        counts=counts or {},
        outcomes={(Verb.RESTART, OutcomeKind.DONE): 3},
    )


def samples(text: str) -> dict[str, float]:
    """Series → value; every line has to be one of the format's."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("# "):
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        series = match[1] + (match[2] or "")
        assert series not in found, f"{series} twice"
        found[series] = float(match[3])
    return found


def names(text: str) -> set[str]:
    """Of the metrics."""
    return {series.partition("{")[0] for series in samples(text)}


def some_fleet() -> Fleet:
    """One that is well, one that was given up, one without a daemon."""
    fleet = Fleet()
    fleet.hear(status(3, 1), 0.0)
    fleet.hear_node(
        NodeStatus(
            host="h1",
            incarnation=1,
            seq=1,
            pid=9,
            time_s=0.0,
            monotonic_s=0.0,
            processes=(
                ProcessRow(name="web-1", state=ProcessState.RUNNING, pid=1003, uptime_s=1.0, restarts=4),
                ProcessRow(name="bad", state=ProcessState.FATAL, reason="exit 3"),
                ProcessRow(name="front:nginx", state=ProcessState.RUNNING, pid=5, uptime_s=3.0),
            ),
            counts={"errors": 2},
        ),
        0.0,
    )
    return fleet


def check(text: str) -> None:
    """Assert that promtool has nothing to say against it."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- the format ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.5, "0.5"), (1e300, "1e+300"), (math.nan, "NaN"), (math.inf, "+Inf"), (-math.inf, "-Inf")],
)
def test_numbers(value: float, text: str) -> None:
    """In the format's own words."""
    assert number(value) == text


def test_labels_hold_anything() -> None:
    """Quotes, backslashes and line ends do not end the label, or the line."""
    assert labels(a='x"y', b="\\", c="1\n2") == r'{a="x\"y",b="\\",c="1\n2"}'


def test_a_family_without_values_is_not_there() -> None:
    """Neither are values that nobody knows."""
    assert family("m", "gauge", "Help.", [("", None)]) == []
    assert family("m", "gauge", "Help.", [("{a}", None), ("{b}", 2)]) == ["# HELP m Help.", "# TYPE m gauge", "m{b} 2"]


# -- what is told ------------------------------------------------------------------------------------


def test_a_fleet() -> None:
    """State, health and vitals of who runs; no vitals of who does not; ATLAS's and the wardens' own counts."""
    told = samples(exposition(measured(some_fleet(), counts={"agents": 2, "telemetry": 7, "old": 1})))
    web = 'service="web",instance_id="web-1",host="h1"'
    bad = 'service="bad",instance_id="bad",host="h1"'
    nginx = 'service="nginx",instance_id="nginx",host="h1"'
    expected = {
        f"cdn_service_up{{{web}}}": 1,
        f"cdn_service_up{{{bad}}}": 0,
        f"cdn_service_up{{{nginx}}}": 1,
        f'cdn_service_state{{{web},state="RUNNING"}}': 1,
        f'cdn_service_state{{{web},state="FATAL"}}': 0,
        f'cdn_service_state{{{bad},state="FATAL"}}': 1,
        f'cdn_service_health{{{web},health="healthy"}}': 1,
        f'cdn_service_health{{{bad},health="unknown"}}': 1,
        f"cdn_service_restarts_total{{{web}}}": 4,
        f"cdn_service_resident_memory_bytes{{{web}}}": 40_000_000,
        f"cdn_service_uptime_seconds{{{nginx}}}": 3,
        'cdn_warden_up{host="h1"}': 1,
        'cdn_warden_processes{host="h1",state="RUNNING"}': 2,
        'cdn_warden_counts_total{host="h1",what="errors"}': 2,
        "cdn_atlas_agents": 2,
        "cdn_atlas_telemetry_frames_total": 7,
        'cdn_atlas_counts_total{cause="old"}': 1,
        'cdn_atlas_commands_total{verb="restart",outcome="done"}': 3,
        'cdn_atlas_commands_total{verb="stop",outcome="failed"}': 0,
    }
    assert {series: told.get(series) for series in expected} == expected
    assert f"cdn_service_resident_memory_bytes{{{bad}}}" not in told
    assert f"cdn_service_cpu_cores{{{nginx}}}" not in told


def test_who_has_gone_has_no_vitals() -> None:
    """What was measured of a silent process would look as if it were still there."""
    fleet = some_fleet()
    fleet.tick(100.0)
    told = samples(exposition(measured(fleet, 100.0)))
    assert not [series for series in told if series.startswith("cdn_service_resident_memory_bytes")]
    assert told['cdn_service_last_status_age_seconds{service="web",instance_id="web-1",host="h1"}'] == 100
    assert told['cdn_warden_up{host="h1"}'] == 0


def test_odd_names() -> None:
    """Whatever supervisor allows as a name, each line stays one."""
    fleet = Fleet()
    fleet.hear_node(node(odd=row(name='we"ird\\\n{x}'), plain=row(name="plain")), 0.0)
    text = exposition(measured(fleet))
    assert len([series for series in samples(text) if series.startswith("cdn_service_up")]) == 2


@needs_promtool
def test_promtool_has_nothing_against_it() -> None:
    """Names, units, HELP and TYPE: of the fleet, of an empty fleet, and of a service with numbers of all kinds."""
    wild = ServiceMetrics(
        vitals=Vitals(rss_bytes=1, cpu_cores=0.5, fds=1, threads=1, children=0, loop_lag_s=0.1),
        values={"rows_written_total": math.nan, 'queue_bytes{of="a"}': math.inf, 'queue_bytes{of="b"}': -1.0},
    )
    for text in (
        exposition(measured(some_fleet(), counts={"agents": 1, "members": 1, "subscribers": 0, "history_bytes": 5})),
        exposition(measured(Fleet())),
        of_a_service(STATUS),
        of_a_service(replace(STATUS, metrics=wild)),
    ):
        check(text)


# -- the documents -----------------------------------------------------------------------------------


def all_names() -> set[str]:
    """Every metric that ATLAS may tell."""
    whole = ServiceMetrics(vitals=Vitals(rss_bytes=1, cpu_cores=0.5, fds=1, threads=1, children=0, loop_lag_s=0.1))
    fleet = some_fleet()
    fleet.hear(status(3, 2, metrics=whole), 0.0)
    counts = dict.fromkeys(("agents", "members", "subscribers", "open_commands", "old"), 1)
    return names(exposition(measured(fleet, counts=counts)))


def test_the_table_of_the_document() -> None:
    """Every metric there is, and none that is not."""
    document = (DOCS / "prometheus.md").read_text()
    table = "\n".join(line for line in document.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(cdn_[a-z_]+)`", table)) == all_names()


def test_the_dashboard() -> None:
    """Valid, and every query and variable asks for metrics that exist."""
    dashboard: dict[str, Any] = json.loads((DOCS / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    assert len(asked) > 15
    for expression in asked:
        found = set(re.findall(r"\bcdn_[a-z_]+", expression))
        assert found, expression
        assert found <= all_names(), expression


@needs_promtool
def test_the_alert_rules(tmp_path: Path) -> None:
    """Correct, on metrics that exist; each fires when it should and is quiet when all is well."""
    assert PROMTOOL is not None
    rules = (DOCS / "alerts.yml").read_text()
    expressions = re.findall(r"expr: (.*)", rules)
    assert len(expressions) == rules.count("- alert:")
    assert {name for each in expressions for name in re.findall(r"\bcdn_[a-z_]+", each)} <= all_names()
    shutil.copy(DOCS / "alerts.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([PROMTOOL, *command], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stdout + done.stderr


# -- for real ----------------------------------------------------------------------------------------


def query(port: int, expression: str) -> list[tuple[dict[str, str], float]]:
    """What that Prometheus knows now; nothing while it does not listen."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            result = json.loads(answer.read())["data"]["result"]
    except OSError:
        return []
    return [(each["metric"], float(each["value"][1])) for each in result]


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus(run_dir: RunDir, run_path: Path) -> None:
    """It scrapes a real fleet as the document says, evaluates the rules, and sees a service die and come back."""
    assert PROMETHEUS is not None
    port = free_port()
    document = (DOCS / "prometheus.md").read_text()
    (configuration,) = re.findall(r"^```yaml\n(scrape_configs.*?)^```$", document, re.MULTILINE | re.DOTALL)
    with Supervisord(run_path, FLEET, env={"CDN_PORT": "0"}) as supervisord:
        operator = OperatorLink(run_dir.operators)
        until(lambda: is_well(operator, "atlas", "tiny"))
        atlas = re.search(r"listens on 127\.0\.0\.1 port (\d+)", supervisord.log("atlas"))
        assert atlas
        configuration = configuration.replace("18500", atlas[1]).replace("scrape_interval: 10s", "scrape_interval: 1s")
        (run_path / "prometheus.yml").write_text(
            f"global: {{evaluation_interval: 1s}}\nrule_files: [{DOCS / 'alerts.yml'}]\n{configuration}"
        )
        with (run_path / "prometheus.log").open("wb") as log:
            prometheus = subprocess.Popen(
                [
                    PROMETHEUS,
                    f"--config.file={run_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={run_path / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            until(lambda: query(port, 'cdn_service_up{instance_id="tiny"} == 1'), within_s=60)
            ((who, _),) = query(port, 'cdn_service_up{instance_id="tiny"}')
            assert (who["service"], who["job"], who["instance"]) == ("tiny", "cdn-atlas", f"127.0.0.1:{atlas[1]}")
            os.kill(supervisord.pid("tiny"), signal.SIGKILL)
            until(lambda: query(port, 'cdn_service_restarts_total{instance_id="tiny"} == 1'), within_s=60)
            until(lambda: query(port, 'cdn_service_health{instance_id="tiny",health="healthy"} == 1'), within_s=60)
            rules = f"http://127.0.0.1:{port}/api/v1/rules"
            with urllib.request.urlopen(rules, timeout=10) as answer:
                (group,) = json.loads(answer.read())["data"]["groups"]
            assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}  # unknown: not evaluated yet
        finally:
            prometheus.kill()
            prometheus.wait()
            operator.close()


# -- room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("used", "says"), [(0, False), (7000, False), (7001, True), (10000, True)])
def test_room_for_more_services(used: int, says: bool) -> None:
    """Said when seven tenths of the descriptors are gone, with what to do."""
    reason = why_full(used, 10_000)
    assert (reason is not None) is says
    if reason:
        assert f"{used} of at most 10000" in reason
        assert "ulimit -Hn" in reason


def test_health_is_one_of_four() -> None:
    """A service has exactly one health, and one state."""
    told = samples(exposition(measured(some_fleet())))
    for word, many in (("health", len(HealthStatus)), ("state", len(ProcessState))):
        series = [value for name, value in told.items() if name.startswith(f'cdn_service_{word}{{service="web"')]
        assert (len(series), sum(series)) == (many, 1)
