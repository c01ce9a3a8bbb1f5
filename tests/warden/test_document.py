"""docs/warden.md: its programs are ready and judged, its commands do what it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cdn_daemon.warden.settings import KEYS
from tests.support import ROOT, Supervisord, until
from tests.warden.programs import FakeAtlas

DOCUMENT = (ROOT / "docs" / "warden.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_every_key_is_told() -> None:
    assert tuple(re.findall(r"^\| `(\w+)` \| ", DOCUMENT, re.MULTILINE)) == KEYS


@pytest.mark.parametrize("language", ["sh", "c"])
def test_the_programs_are_ready_and_live(run_dir: Path, atlas: FakeAtlas, language: str) -> None:
    program = run_dir / "program"
    if language == "sh":
        if shutil.which("systemd-notify") is None:
            pytest.skip("no systemd-notify here")
        program.write_text(next(block for block in blocks("sh") if block.startswith("#!")))
        program.chmod(0o755)
        keys = {"type": "notify", "watchdog_s": "5"}
    else:
        if shutil.which("cc") is None:
            pytest.skip("no C compiler here")
        (run_dir / "program.c").write_text(blocks("c")[0])
        subprocess.run(["cc", "-Wall", "-Werror", "-o", program, run_dir / "program.c"], check=True)
        keys = {"type": "notify"}
    with Supervisord(run_dir, {"web": {"command": str(program), **keys}}):
        pid = atlas.row("web", "RUNNING").pid
        heard = len(atlas.statuses)
        until(lambda: atlas.rows() and len(atlas.statuses) > heard + 1, what="ticking")
        assert atlas.row("web").pid == pid


def test_the_commands_work(run_dir: Path, atlas: FakeAtlas) -> None:
    hold, newest = (block for block in blocks("sh") if not block.startswith("#!"))
    with Supervisord(run_dir, {"gateway-primary": {"command": "sh -c 'sleep 0.3; exit 78'"}}):
        atlas.row("gateway-primary", "EXITED")
        if shutil.which("curl") is not None:
            assert "fault" not in shell(hold, run_dir)
            until(lambda: atlas.row("gateway-primary").maintenance, what="maintenance")
        assert '"end": "configuration error (78)"' in shell(newest, run_dir)


def shell(block: str, run_dir: Path) -> str:
    """What it writes, in that run directory."""
    command = block.replace("run/", f"{run_dir}/")
    return subprocess.run(["sh", "-euc", command], check=True, capture_output=True, text=True, timeout=30).stdout
