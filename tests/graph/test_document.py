"""docs/graph.md: its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.graph.support import process
from tests.support import ROOT


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are curl's")
def test_the_examples_run_as_they_stand(run_path: Path, tmp_path: Path) -> None:
    """In order, in one shell, against a service on another port; networkx reads what they have exported."""
    text = (ROOT / "docs" / "graph.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    with process(run_path) as (client, _):
        script = "".join(blocks).replace("127.0.0.1:18050", f"127.0.0.1:{client.port}")
        done = subprocess.run(
            ["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert '"what":{"id":"M1017"' in done.stdout
        assert '"rank":2' in done.stdout
        assert '"branching_ratio":' in done.stdout
        assert client.call("GET", "/graph").json["nodes"] == 5
        assert client.call("GET", "/ooda").json["mode"] == "shadow"
        (source,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        asserted = source + "assert len(graph) == len(same) == 5\n"
        subprocess.run([sys.executable, "-c", asserted], cwd=tmp_path, check=True, timeout=60)
