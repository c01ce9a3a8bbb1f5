"""docs/statistical.md: its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.statistical.support import process
from tests.support import ROOT, until


@pytest.mark.skipif(
    shutil.which("curl") is None or shutil.which("bash") is None, reason="the examples are curl's and bash's"
)
def test_the_examples_run_as_they_stand(run_path: Path, tmp_path: Path) -> None:
    """In order, against a service on other ports; the last of each kind shows what the text says."""
    text = (ROOT / "docs" / "statistical.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    with process(run_path) as (client, _):
        for block in blocks:
            script = block.replace("127.0.0.1:18108", f"127.0.0.1:{client.port}")
            script = script.replace("127.0.0.1/18125", f"127.0.0.1/{client.statsd_port}")
            done = subprocess.run(
                ["bash", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            until(lambda: client.total("logins") >= 2, what="the lines have arrived")
        assert client.total("logins") == 5
        assert client.series("took;path=home", window=3600)["count"] == 3
        assert client.series("users", window=3600)["top"][0] == {"member": "alice", "low": 2, "high": 2}
        assert client.call("GET", "/ooda").json["mode"] == "off"
