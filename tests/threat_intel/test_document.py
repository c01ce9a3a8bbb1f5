"""docs/threat-intel.md: its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.threat_intel.support import process


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are curl's")
def test_the_examples_run_as_they_stand(run_path: Path, tmp_path: Path) -> None:
    """In order, in one shell, against a service on another port; and what they did is there."""
    text = (ROOT / "docs" / "threat-intel.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    with process(run_path) as (client, _):
        script = "".join(blocks).replace("127.0.0.1:18110", f"127.0.0.1:{client.port}")
        script = script.replace("run/cdn-threat-intel.token", str(run_path / "cdn-threat-intel.token"))
        done = subprocess.run(
            ["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert '"value":"www.evil.example","verdict":"malicious"' in done.stdout
        assert '"verdict":"allowed"' in done.stdout
        feed = client.call("GET", "/feeds/friend").json
        assert (feed["values"], feed["confidence"], feed["true_positives"]) == (4, 90.0, 1)
        assert client.call("GET", "/ooda").json["mode"] == "shadow"
