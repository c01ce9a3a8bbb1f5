"""docs/geospatial.md's commands, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.geospatial.support import process
from tests.support import ROOT


def test_the_documents_commands_do_what_it_says(run_path: Path, tmp_path: Path) -> None:
    """All of them, in order, in one shell; none fails."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs" / "geospatial.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "run").symlink_to(run_path)
    with process(run_path) as (client, _):
        script = "\n".join(blocks).replace("127.0.0.1:18111", f"127.0.0.1:{client.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace("curl -fsS", "echo; curl -fsS")],
            cwd=tmp_path,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        loaded, fiji, swiss, near, around, *_, crossings, path, now = [
            line for line in done.stdout.splitlines() if line
        ]
        assert '"features":3' in loaded
        assert ['"NAN"' in fiji, '"ZRH"' in swiss, '"distance_m":0.000' in near, '"alps"' in around] == [True] * 4
        assert [crossings.count(f'"{one}"') for one in ("enter", "exit")] == [2, 1]
        assert '"LineString"' in path
        assert ['"ship"' in now, '"van"' in now] == [True, True]
