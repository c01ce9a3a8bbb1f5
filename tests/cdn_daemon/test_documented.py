"""The examples of docs/writing-a-service.md and docs/any-program.md do what is said beside them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.cdn_daemon.test_foreign import ask_redis, installed
from tests.support import BIN, ROOT, ServiceProcess, Supervisord, environment, free_port, until

WRITING = (ROOT / "docs" / "writing-a-service.md").read_text()
ANY = (ROOT / "docs" / "any-program.md").read_text()


def python_of(title: str) -> str:
    """The Python block of a section."""
    found = re.search(rf"^## {title}\n.*?^```python\n(.*?)^```$", WRITING, re.MULTILINE | re.DOTALL)
    assert found, f"no Python in section {title}"
    return found[1]


def test_five_minutes(run_path: Path) -> None:
    """From an empty directory to a supervised service that is in the fleet, answers, and can be seen to decide."""
    (run_path / "greeter.py").write_text(python_of("Five minutes"))
    conf = re.search(r"^```ini\n(.*?)^```$", WRITING, re.MULTILINE | re.DOTALL)
    assert conf
    (run_path / "supervisord.conf").write_text(conf[1])
    env = environment(run_path / "run", CDN_PORT="0", PATH=f"{BIN}:{os.environ['PATH']}")

    def cdnctl(*arguments: str) -> str:
        done = subprocess.run(
            [BIN / "cdnctl", *arguments], cwd=run_path, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode in (0, 3), done.stderr  # 3: a check may time out on a busy machine
        return done.stdout

    try:
        cdnctl("up")
        (greeter,) = json.loads(cdnctl("status", "greeter", "--json"))["services"]
        assert urlopen(f"{greeter['address']}/hello/you").read() == b"hello, you\n"
        ooda = json.loads(urlopen(f"{greeter['address']}/ooda").read())
        assert (ooda["mode"], ooda["settle_s"]) == ("on", 2.0)
        assert b'cdn_limit_rss_bytes{service="greeter"' in urlopen(f"{greeter['address']}/metrics").read()
    finally:
        cdnctl("down")


@pytest.mark.parametrize(
    ("title", "path", "answer"), [("WSGI", "/", (200, b"hello\n")), ("A plain function", "/readyz", None)]
)
def test_other_kinds_of_service(run_path: Path, title: str, path: str, answer: tuple[int, bytes] | None) -> None:
    """Copied out they run, answer, and end when told to."""
    (run_path / "example.py").write_text(python_of(title))
    with ServiceProcess(run_path, str(run_path / "example.py")) as example:
        got = example.get(path)
        assert got == answer if answer else got[0] == 200
        if title == "A plain function":
            until(lambda: "one piece of work done" in example.log())
        os.kill(example.pid, signal.SIGTERM)
        assert example.wait() == 0


def test_a_program_of_supervisord(run_path: Path) -> None:
    """``start`` returns when redis takes connections; ``stop`` leaves nothing of it."""
    installed("redis-server", "redis-server")
    found = re.search(r"^\[program:redis\]\n(.*?)^```$", ANY, re.MULTILINE | re.DOTALL)
    assert found
    port = free_port()
    program = dict(line.split("=", 1) for line in found[1].replace("6379", str(port)).strip().splitlines())
    program["stdout_logfile"] = program["stdout_logfile"].replace("/run/", "/")
    env = {"CDN_PORT": "0", "PATH": f"{BIN}:{os.environ['PATH']}"}
    with Supervisord(run_path, {"redis": program | {"autostart": "false", "directory": str(run_path)}}, env=env) as it:
        assert it.ctl("start", "redis").returncode == 0
        assert ask_redis(port, "PING") == "+PONG\r\n"
        assert it.states()["redis"] == "RUNNING"
        assert it.ctl("stop", "redis").returncode == 0
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=30):
            raise AssertionError("redis still listens")
