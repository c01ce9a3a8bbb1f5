"""docs/threat-reaction.md: its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.threat_reaction.support import reacting


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples are curl's")
def test_the_examples_run_as_they_stand(run_path: Path, tmp_path: Path) -> None:
    """In order, against a service on another port; and what they say is so afterwards."""
    text = (ROOT / "docs" / "threat-reaction.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    (tmp_path / "run").symlink_to(run_path)
    output = []
    with reacting(run_path) as (client, _):
        for block in blocks:
            script = block.replace("127.0.0.1:18201", f"127.0.0.1:{client.port}")
            done = subprocess.run(
                ["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            output.append(done.stdout)
        reactions = client.get("/reactions")["reactions"]
        assert [(one["address"], one["state"], one["by"]) for one in reactions] == [
            ("203.0.113.9", "rolled_back", "alice")
        ]
        assert "203.0.113.77" in output[1]
        assert '"bans":1' in output[2]
        assert client.get("/playbooks/ssh-brute-force")["asks"] is False
        assert "198.51.100.7/32" not in {ban["network"] for ban in client.get("/bans")["bans"]}
        assert '"intact":true' in output[3]
        assert '"scope":"Range"' in output[4]
