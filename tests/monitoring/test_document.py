"""docs/monitoring.md: its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.monitoring.promql import AGGREGATES, FUNCTIONS
from tests.monitoring.support import process
from tests.support import ROOT, until

TEXT = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None, reason="the examples are curl's and bash's"
)
def test_the_examples_run_as_they_stand(run_path: Path, tmp_path: Path) -> None:
    """In order, against a service on another port; what they made is there."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    with process(run_path, CDN_MONITORING_INTERVAL_S="1") as (client, _):
        for block in blocks:
            script = block.replace("127.0.0.1:18109", f"127.0.0.1:{client.port}")
            done = subprocess.run(
                ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
        until(lambda: client.query('node_load1{job="again"}'), what="the named target is scraped")
        assert client.query("increase(beats_total[1m])", time=1_700_000_040)[0]["value"][1] == "50"
        assert client.call("GET", "/ooda").json["mode"] == "off"


def test_every_function_is_named() -> None:
    """Those that are understood."""
    for name in (*FUNCTIONS, *AGGREGATES):
        assert f"`{name.removesuffix('_over_time')}`" in TEXT, name
