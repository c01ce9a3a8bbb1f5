"""docs/data-fabric.md: its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.data_fabric.support import process
from tests.support import ROOT


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are curl's")
def test_the_examples_run_as_they_stand(run_path: Path, tmp_path: Path) -> None:
    """In order, against a service on another port; the last of each kind shows what the text says."""
    text = (ROOT / "docs" / "data-fabric.md").read_text(encoding="utf-8")
    blocks = [
        block
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if not re.search(r"18111|18050", block)  # with other services: test_exchange.py
    ]
    assert len(blocks) == 6
    with process(run_path) as (client, _):
        for block in blocks:
            script = block.replace("127.0.0.1:18100", f"127.0.0.1:{client.port}")
            done = subprocess.run(
                ["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
        assert client.sql("SELECT count(*) FROM peaks").json["rows"] == [[5]]
        assert client.call("GET", "/ooda").json["mode"] == "shadow"
