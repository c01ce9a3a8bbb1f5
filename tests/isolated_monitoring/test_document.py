"""What docs/isolated-monitoring.md shows is what happens."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

from services.isolated_monitoring.settings import read_settings
from tests.isolated_monitoring.support import monitoring
from tests.support import ROOT

DOCUMENT = (ROOT / "docs" / "isolated-monitoring.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_the_commands_work(run_path: Path) -> None:
    """Each is run as it stands, but for port and run directory."""
    with monitoring(run_path) as (client, _):
        for block in blocks("sh"):
            command = block.replace(":18990", f":{client.port}").replace("run/", f"{run_path}/")
            done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert '"error"' not in done.stdout
        (window,) = client.get("/api/maintenance").json["maintenance"]
        assert window["target"] == "cdn-*"
        (check,) = client.order("GET", "/api/v3/checks/?slug=backup").json["checks"]
        assert check["status"] == "up"


def test_the_file_is_one(run_path: Path) -> None:
    """All of its keys are taken."""
    (text,) = blocks("toml")
    (run_path / "isolated-monitoring.toml").write_text(text)
    settings = read_settings({"CDN_RUN_DIR": str(run_path)}, port=18990)
    assert [target.name for target in settings.targets] == ["shop", "db"]
    assert len(settings.channels) == 3 + 1
    assert tomllib.loads(text)["settle_s"] == settings.settle_s


def test_the_alert_is_json() -> None:
    """What is shown can be read."""
    assert json.loads(blocks("json")[0])["event"] == "opened"
