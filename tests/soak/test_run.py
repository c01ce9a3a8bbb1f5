"""The soak as it is run; the whole of it is a step of its own in CI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, short_dir, until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """Nothing but the history. It begins as a job in the background, where a shell ignores SIGINT."""
    history, said = tmp_path / "history.jsonl", tmp_path / "said"
    command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-m", "benchmarks.soak"]
    command += ["--services", "4", "--history", str(history)]
    with short_dir() as temporary, said.open("wb") as output:
        environ = {**os.environ, "TMPDIR": str(temporary)}
        soak = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=output, start_new_session=True)
        try:
            until(lambda: "are being started" in said.read_text(), within_s=60)
            until(lambda: b'"answered"' in history.read_bytes(), within_s=60)
            soak.send_signal(number)
            assert soak.wait(timeout=60) == 130
            assert f"what was recorded is in {history}" in said.read_text()
            assert [each for each in psutil.process_iter() if _is_of(each, temporary)] == []
            assert list(temporary.iterdir()) == []
        finally:
            soak.kill()
            soak.wait()


def test_too_short_a_run_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "it takes 0.7 minutes and 4 services at least" in done.stderr


def _is_of(process: psutil.Process, temporary: Path) -> bool:
    try:
        return process.environ().get("TMPDIR") == str(temporary)
    except psutil.Error:
        return False
