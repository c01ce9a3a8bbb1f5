"""What a process is given when it is spawned is what supervisord.conf says, though nothing is forked for it."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.support import BIN, Supervisord, until
from tests.warden.programs import fake_atlas, python

TELLS = """
print(json.dumps({
    "directory": os.getcwd(),
    "umask": os.umask(0),
    "told": {key: os.environ.get(key) for key in (
        "CDN_RUN_DIR", "MINE", "SUPERVISOR_ENABLED", "SUPERVISOR_PROCESS_NAME", "SUPERVISOR_GROUP_NAME")},
    "url": os.environ["SUPERVISOR_SERVER_URL"],
    "leads_its_group": os.getpgrp() == os.getpid(),
    "open": [fd for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")],
}), flush=True)
print("trouble", file=sys.stderr, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("forks", [False, True])
def test_directory_umask_environment_group_and_descriptors(run_dir: Path, forks: bool) -> None:
    """With user= supervisord has to fork; what the program sees is the same."""
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    program = {
        "command": python(run_dir, "tells", "import json\n" + TELLS),
        "directory": str(elsewhere),
        "umask": "027",
        "environment": 'MINE="yes"',
        "redirect_stderr": "false",
        "stderr_logfile": str(run_dir / "tells.err.log"),
    }
    if forks:
        program["user"] = pwd.getpwuid(os.getuid()).pw_name
    fleet = Supervisord(run_dir, {"tells": program})
    reader, writer = os.pipe()  # supervisord is started with more descriptors than it knows of
    fleet.process = subprocess.Popen(
        [str(BIN / "supervisord"), "-n", "-c", str(fleet.conf)],
        env=fleet.env,
        cwd=run_dir,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[reader, writer],
    )
    try:
        os.close(reader)
        os.close(writer)
        said = json.loads(until(lambda: fleet.log("tells").partition("\n")[0], what="output"))
        assert said["directory"] == str(elsewhere)
        assert said["umask"] == 0o027
        assert said["told"] == {
            "CDN_RUN_DIR": str(run_dir),
            "MINE": "yes",
            "SUPERVISOR_ENABLED": "1",
            "SUPERVISOR_PROCESS_NAME": "tells",
            "SUPERVISOR_GROUP_NAME": "tells",
        }
        assert said["url"] == f"unix://{run_dir}/supervisor.sock"
        assert said["leads_its_group"]
        assert said["open"] == [0, 1, 2]
        until(lambda: fleet.log("tells.err") == "trouble\n", what="stderr in its own log")
        assert os.readlink(f"/proc/{fleet.process.pid}/cwd") == str(run_dir)
    finally:
        fleet.stop()


@pytest.mark.parametrize("wrong", ["directory", "interpreter"])
def test_what_cannot_be_executed_is_quarantined_with_the_reason(run_dir: Path, wrong: str) -> None:
    script = run_dir / "script"
    script.write_text("#!/nonexistent/sh\n" if wrong == "interpreter" else "#!/bin/sh\n")
    script.chmod(0o700)
    missing = str(run_dir / "missing")
    program = {"command": str(script), "directory": missing if wrong == "directory" else str(run_dir)}
    with fake_atlas(run_dir) as atlas, Supervisord(run_dir, {"gone": program}) as fleet:
        assert fleet.process is not None
        reason = atlas.row("gone", "FATAL").reason
        about = missing if wrong == "directory" else f"the interpreter of {script}"
        assert reason.endswith(f"cannot spawn: No such file or directory: {about}")
        assert os.readlink(f"/proc/{fleet.process.pid}/cwd") == str(run_dir)
        assert atlas.counts().get("errors", 0) == 0
