"""Nothing that happens to the warden harms supervisord, and it leaves nothing behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from bus import postmortems
from bus.messages import PostMortem
from cdn_daemon.warden import postmortem
from cdn_daemon.warden.inbox import Inbox
from cdn_daemon.warden.reach import UnsupportedVersion, check_version
from cdn_daemon.warden.settings import SettingsError, check_defaults, read, settings_of
from tests.support import BIN, Supervisord, is_running, kill_tree, until
from tests.warden.programs import BEATS, FakeAtlas, beating, python


def test_it_daemonises_reloads_and_takes_in_new_programs(run_dir: Path, atlas: FakeAtlas) -> None:
    fleet = Supervisord(run_dir, {"web": beating(run_dir, "web")})
    subprocess.run([str(BIN / "supervisord"), "-c", str(fleet.conf)], env=fleet.env, cwd=run_dir, check=True)
    until(lambda: fleet.ctl("pid").returncode == 0, what="supervisord answers")
    supervisord = psutil.Process(int(fleet.ctl("pid").stdout))
    try:
        first = atlas.row("web", "RUNNING")
        os.kill(first.pid or 0, signal.SIGKILL)
        until(lambda: atlas.row("web", "RUNNING").restarts == 1, what="replaced")
        fds = supervisord.num_fds()
        for reload in (2, 3, 4):
            supervisord.send_signal(signal.SIGHUP)
            until(lambda n=reload: atlas.row("web", "RUNNING") and atlas.statuses[-1].incarnation == n)  # type: ignore[misc]
            until(lambda: fleet.states().get("web") == "RUNNING", what="ready again")
        assert supervisord.num_fds() <= fds
        before = fleet.conf.read_text()
        fleet.conf.write_text(before + f"[program:new]\ncommand={beating(run_dir, 'new')['command']}\ntype=notify\n")
        assert "new: added process group" in fleet.ctl("update").stdout
        atlas.row("new", "RUNNING")
        fleet.conf.write_text(before)
        assert "new: removed process group" in fleet.ctl("update").stdout
        until(lambda: "new" not in atlas.rows(), what="gone from the table")
        assert atlas.counts().get("errors", 0) == 0
        fleet.ctl("shutdown")
        supervisord.wait(timeout=30)
        assert list((run_dir / "notify").iterdir()) == []
    finally:
        kill_tree(supervisord.pid)


def test_an_error_inside_is_survived_counted_and_shown(run_dir: Path, atlas: FakeAtlas) -> None:
    """A post-mortem that cannot be written is an error like any other; the restart happens all the same."""
    (run_dir / "postmortems").write_text("a file where the directory should be")
    with Supervisord(run_dir, {"web": {"command": "sleep 1000"}}) as fleet:
        pid = atlas.row("web", "RUNNING").pid or 0
        os.kill(pid, signal.SIGKILL)
        until(lambda: atlas.row("web", "RUNNING").restarts == 1, what="replaced")
        until(lambda: atlas.counts().get("errors", 0) >= 1, what="counted")
        assert "_write" in atlas.statuses[-1].last_error
        assert "Traceback" in fleet.log()


@pytest.mark.faults
def test_a_cleared_run_directory_is_mended_and_nobody_is_judged_for_it(run_dir: Path, atlas: FakeAtlas) -> None:
    with Supervisord(run_dir, {"web": beating(run_dir, "web")}):
        pid = atlas.row("web", "RUNNING").pid
        shutil.rmtree(run_dir / "notify")
        until(lambda: atlas.counts().get("sockets_lost", 0) >= 1, what="noticed")
        heard = len(atlas.statuses)
        until(lambda: atlas.rows() and len(atlas.statuses) > heard + 2, what="ticking")
        assert atlas.row("web").pid == pid


def test_short_of_descriptors_it_does_not_take_its_sockets_for_gone(run_dir: Path) -> None:
    inbox = Inbox(run_dir / "notify")
    inbox.open("web")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        assert inbox.lost() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    shutil.rmtree(run_dir / "notify")
    assert inbox.lost() == ["web"]
    inbox.close()


def test_supervisords_own_socket_is_made_anew_and_who_waits_gets_an_answer(run_dir: Path, atlas: FakeAtlas) -> None:
    gate = run_dir / "gate"
    body = "while not os.path.exists(sys.argv[1]): time.sleep(0.01)\ntell('READY=1')\ntime.sleep(1000)"
    command = python(run_dir, "slow", body, notifies=True) + f" {gate}"
    with Supervisord(run_dir, {"slow": {"command": command, "type": "notify", "autostart": "false"}}) as fleet:
        assert fleet.process is not None
        atlas.row("slow", "STOPPED")  # the bus is joined once it runs, and has descriptors of its own
        fds = psutil.Process(fleet.process.pid).num_fds()
        starting = subprocess.Popen(
            [str(BIN / "supervisorctl"), "-c", str(fleet.conf), "start", "slow"],
            env=fleet.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            atlas.row("slow", "STARTING")
            for many in (1, 2, 3):
                (run_dir / "supervisor.sock").unlink()
                until(lambda n=many: atlas.counts().get("sockets_lost", 0) == n, what="noticed")  # type: ignore[misc]
                assert fleet.states() == {"slow": "STARTING"}
            assert (run_dir / "supervisor.sock").stat().st_mode & 0o777 == 0o700
            gate.touch()
            output, _ = starting.communicate(timeout=30)
        finally:
            starting.kill()
            starting.wait()
        assert output.strip() == "slow: started"
        fleet.ctl("stop", "slow")
        until(lambda: psutil.Process(fleet.process.pid).num_fds() <= fds, what="none is left open")  # type: ignore[union-attr]
        assert atlas.counts().get("errors", 0) == 0
        supervisord = psutil.Process(fleet.process.pid)
        before = supervisord.cpu_times()
        heard = len(atlas.statuses)
        until(lambda: atlas.rows() and len(atlas.statuses) > heard + 2, what="ticking")
        after = supervisord.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5  # nor does its loop spin
        fleet.stop()
        assert not (run_dir / "supervisor.sock").exists()


def test_nothing_of_the_tree_is_left_behind(run_dir: Path, atlas: FakeAtlas) -> None:
    """Children in the group, one that left it by setsid, and one that did so twice."""
    body = (
        "import subprocess\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(1000)']\n"
        "pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]\n"
        "twice = subprocess.run([sys.executable, '-c', f'import subprocess; print(subprocess.Popen({sleep}, "
        "start_new_session=True, stdout=subprocess.DEVNULL).pid)'], stdout=subprocess.PIPE, start_new_session=True)\n"
        "pids.append(int(twice.stdout))\n"
        "open(sys.argv[1], 'w').write(' '.join(map(str, pids)))\n"
        "tell('READY=1')\nwhile True: time.sleep(1)"
    )
    program = beating(run_dir, "tree", body)
    program["command"] += f" {run_dir}/pids"
    with Supervisord(run_dir, {"tree": program}):
        until(lambda: len((run_dir / "pids").read_text().split()) == 3 if (run_dir / "pids").exists() else False)
        pids = [int(pid) for pid in (run_dir / "pids").read_text().split()]
        os.kill(atlas.row("tree", "RUNNING").pid or 0, signal.SIGKILL)
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the whole tree is gone")
        until(lambda: atlas.row("tree", "RUNNING").restarts == 1, what="replaced")


def test_one_that_ignores_sigterm_is_killed_after_its_grace(run_dir: Path, atlas: FakeAtlas) -> None:
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell('READY=1')\ntime.sleep(1000)"
    program = {"command": python(run_dir, "deaf", body, notifies=True), "type": "notify", "stopwaitsecs": "1"}
    with Supervisord(run_dir, {"deaf": program}) as fleet:
        atlas.row("deaf", "RUNNING")
        fleet.ctl("stop", "deaf")
        row = atlas.row("deaf", "STOPPED")
        assert row.wait_status == signal.SIGKILL
        (report,) = until(lambda: postmortems.read(run_dir / "postmortems", "deaf"), what="its post-mortem")
        assert report.ordered_by == "an operator"


def test_every_incarnation_has_a_post_mortem_and_they_are_bounded(run_dir: Path) -> None:
    for number in range(postmortem.KEPT + 5):
        report = PostMortem(
            name="a:b/../c",
            host="here",
            start=number,
            pid=number + 1,
            ended_at="2026-01-01T00:00:00Z",
            lived_s=1.0,
            ready_after_s=None,
            wait_status=9,
            end="killed by SIGKILL",
        )
        path = postmortem.new_path(run_dir / "postmortems", report.name, report.pid)
        postmortem.write(path, report)
        assert path.parent.parent == run_dir / "postmortems"
    (path.parent / "half.part").write_text('{"name": "a')
    (path.parent / "zzz-damaged.json").write_text('{"name": "a')
    starts = [report.start for report in postmortems.read(run_dir / "postmortems", "a:b/../c")]
    assert starts == list(range(5, postmortem.KEPT + 5))


def test_a_post_mortem_tells_what_is_known(run_dir: Path, atlas: FakeAtlas) -> None:
    body = (
        "os.makedirs(os.environ['CDN_RUN_DIR'] + '/stacks', exist_ok=True)\n"
        "open(f\"{os.environ['CDN_RUN_DIR']}/stacks/web.{os.getpid()}.txt\", 'w').write('Thread 1: stuck here')\n"
        "print('last line', flush=True)\ntime.sleep(0.3)\nsys.exit(4)"
    )
    with Supervisord(run_dir, {"web": beating(run_dir, "web", body, restart_budget="1")}):
        atlas.row("web", "FATAL")
    (report,) = postmortems.read(run_dir / "postmortems", "web")
    assert report.end == "exit 4"
    assert report.follows == "FATAL"
    assert report.stacks == "Thread 1: stuck here"
    assert report.log_tail.endswith("last line\n")
    assert report.last_status == "serving"
    assert report.ready_after_s is not None
    assert list((run_dir / "stacks").iterdir()) == []


@pytest.mark.parametrize("version", ["4.2.0", "4.2.5", "4.3.0", "4.3.1.dev1"])
def test_known_versions_are_taken(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["3.4.0", "4.1.0", "4.4.0", "5.0", "dev"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(UnsupportedVersion, match=r"knows 4\.2 and 4\.3"):
        check_version(version)


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ({"type": "forking"}, "cannot use type=forking of program x"),
        ({"ready_s": "soon"}, "cannot use ready_s=soon"),
        ({"ready_s": "0"}, "cannot use ready_s=0"),
        ({"ready_s": "nan"}, "cannot use ready_s=nan"),
        ({"restart_budget": "0"}, "cannot use restart_budget=0"),
        ({"restart_budget": "2.5"}, "cannot use restart_budget=2.5"),
        ({"watchdog_s": "-1"}, "cannot use watchdog_s=-1"),
        ({"watchdog_s": "0.1"}, "must be 0.3 or more, or 0 for never"),
        ({"type": "simple", "watchdog_s": "1"}, "it sends no WATCHDOG=1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(own: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        settings_of("x", "sleep 1", own, {})


def test_settings_have_their_defaults_by_the_command() -> None:
    ours = settings_of("x", "python -m services.atlas", {}, {})
    assert (ours.notifies, ours.watchdog_s) == (True, 0.5)
    assert settings_of("x", "/venv/bin/cdn-run -- sleep 1", {}, {}).notifies
    assert ours.must_beat
    other = settings_of("x", "sleep 1", {}, {})
    assert (other.notifies, other.learns, other.watchdog_s, other.must_beat) == (False, True, 0.5, False)
    told = settings_of("x", "sleep 1", {"type": "notify"}, {})
    assert (told.notifies, told.learns, told.watchdog_s, told.must_beat) == (True, False, 0.5, False)
    assert settings_of("x", "sleep 1", {"type": "notify", "watchdog_s": "2"}, {}).must_beat
    simple = settings_of("x", "sleep 1", {"type": "simple"}, {"watchdog_s": "5"})
    assert (simple.notifies, simple.learns, simple.watchdog_s, simple.must_beat) == (False, False, 0.0, False)
    assert settings_of("x", "sleep 1", {"watchdog_s": "0"}, {}).watchdog_s == 0.0
    assert settings_of("x", "sleep 1", {}, {"type": "notify", "watchdog_s": "5"}).watchdog_s == 5.0
    assert settings_of("x", "sleep 1", {"ready_s": "7"}, {"ready_s": "5"}).ready_s == 7.0
    nobodys = settings_of("x", "python -m services.atlas", {}, {}, uid=65534)
    assert (nobodys.notifies, nobodys.learns, nobodys.watchdog_s) == (False, False, 0.0)
    assert settings_of("x", "sleep 1", {"type": "notify"}, {}, uid=os.geteuid()).notifies
    with pytest.raises(SettingsError, match="with its user="):
        settings_of("x", "sleep 1", {"type": "notify"}, {}, uid=65534)
    with pytest.raises(SettingsError, match="known are"):
        check_defaults({"silence": "1"})


def test_supervisord_conf_is_read_with_its_includes_and_expansions(run_dir: Path) -> None:
    conf = run_dir / "supervisord.conf"
    conf.write_text(
        "[include]\nfiles = more/*.conf\n[program:web]\ncommand=x %d\ntype=notify ; by default\n"
        "[program:many]\nprocess_name=%(program_name)s_%(process_num)02d\nnumprocs=2\ndepends_on=%(ENV_BASE)s\n"
    )
    (run_dir / "more").mkdir()
    (run_dir / "more" / "one.conf").write_text("[program:extra]\ncommand=y\nready_s=5\n")
    assert read(conf, {"ENV_BASE": "web"}) == {
        "web": {"type": "notify"},
        "many_00": {"depends_on": "web"},
        "many_01": {"depends_on": "web"},
        "extra": {"ready_s": "5"},
    }


STEPPED_CLOCK = """
import os, time
real, path = time.time, os.environ.get("TEST_CLOCK_STEP")
def stepped():
    try:
        with open(path) as file: return real() + float(file.read() or 0)
    except (OSError, ValueError): return real()
if path: time.time = stepped
"""


@pytest.mark.faults
@pytest.mark.parametrize("step_s", [3600, -3600])
def test_a_stepped_wall_clock_kills_nobody(run_dir: Path, atlas: FakeAtlas, step_s: int) -> None:
    """Neither who beats, nor who drains, whom stock would kill; and a wait is no longer or shorter for it."""
    (run_dir / "sitecustomize.py").write_text(STEPPED_CLOCK)
    step = run_dir / "step"
    slowly = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(0)))\n"
    loop = python(run_dir, "loop", "sys.exit(3)")
    programs = {
        "beats": beating(run_dir, "beats"),
        "drains": beating(run_dir, "drains", before=slowly),
        "loop": {"command": loop, "autostart": "false"},
    }
    fleet = Supervisord(run_dir, programs, env={"TEST_CLOCK_STEP": str(step)})
    fleet.env["PYTHONPATH"] = f"{run_dir}{os.pathsep}{fleet.env['PYTHONPATH']}"
    with fleet:
        pids = {name: atlas.row(name, "RUNNING").pid for name in ("beats", "drains")}
        stopping = subprocess.Popen(
            [str(BIN / "supervisorctl"), "-c", str(fleet.conf), "stop", "drains"], env=fleet.env
        )
        atlas.row("drains", "STOPPING")
        step.write_text(str(step_s))
        assert os.waitstatus_to_exitcode(atlas.row("drains", "STOPPED").wait_status or 0) == 0
        stopping.wait(timeout=30)
        fleet.ctl("start", "loop")
        assert atlas.row("loop", "FATAL").restarts == 4
        assert atlas.row("beats").pid == pids["beats"]
        assert atlas.counts().get("verdicts", 0) == 0


def test_a_fork_storm_goes_with_its_program(run_dir: Path, atlas: FakeAtlas) -> None:
    """It is ready when all are forked, and is not judged meanwhile: how long that takes is the host's matter."""
    body = (
        "for number in range(100):\n"
        "    if os.fork() == 0:\n"
        "        if number % 2: os.setsid()\n"
        "        time.sleep(1000)\n"
        "tell('READY=1')\nwhile True: time.sleep(1)"
    )
    program = {"command": python(run_dir, "storm", body, notifies=True), "type": "notify", "watchdog_s": "0"}
    with Supervisord(run_dir, {"storm": program}):
        pid = atlas.row("storm", "RUNNING").pid or 0
        storm = [child.pid for child in psutil.Process(pid).children()]
        assert len(storm) == 100
        os.kill(pid, signal.SIGKILL)
        until(lambda: not any(psutil.pid_exists(each) for each in storm), what="all gone", every_s=0.1)
        until(lambda: atlas.row("storm", "RUNNING").pid != pid, what="replaced")
        storm = [child.pid for child in psutil.Process(atlas.rows()["storm"].pid or 0).children()]
        assert len(storm) == 100
    assert not any(is_running(each) for each in storm)  # nor does supervisord leave any when it ends


def test_silence_is_looked_for_in_the_main_process_that_was_named(run_dir: Path, atlas: FakeAtlas) -> None:
    """A wrapper that waits for the real one: MAINPID= says whom the beats come from, and whom to accuse."""
    inner = python(run_dir, "inner", BEATS + "tell(f'MAINPID={os.getpid()}')\nwhile True: time.sleep(1)", notifies=True)
    wrapper = run_dir / "wrapper.sh"
    wrapper.write_text(f"#!/bin/sh\n{inner} &\nwait\n")
    wrapper.chmod(0o755)
    program = {"command": str(wrapper), "type": "notify", "watchdog_s": "0.6"}
    with Supervisord(run_dir, {"wrapped": program}):
        pid = atlas.row("wrapped", "RUNNING").pid or 0
        (real,) = until(lambda: psutil.Process(pid).children(), what="the real one")
        real.suspend()
        until(lambda: atlas.row("wrapped", "RUNNING").pid != pid, what="replaced")
        assert not real.is_running()
        (report,) = postmortems.read(run_dir / "postmortems", "wrapped")
        assert "state T" in report.verdict


def test_a_program_in_c_is_ready_when_it_says_so(run_dir: Path, atlas: FakeAtlas) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    (run_dir / "ready.c").write_text(IN_C)
    subprocess.run([compiler, "-o", str(run_dir / "ready"), str(run_dir / "ready.c")], check=True)
    with Supervisord(run_dir, {"c": {"command": str(run_dir / "ready"), "type": "notify"}}):
        assert atlas.row("c", "STARTING", "RUNNING").reason in ("", "not ready yet", "not ready yet: nearly")
        assert atlas.row("c", "RUNNING").restarts == 0


IN_C = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static void tell(const char *text) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    strncpy(to.sun_path, getenv("NOTIFY_SOCKET"), sizeof to.sun_path - 1);
    sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&to, sizeof to);
    close(fd);
}
int main(void) {
    tell("STATUS=nearly");
    usleep(200000);
    tell("READY=1");
    pause();
}
"""


def test_a_log_that_is_a_pipe_holds_nobody_up(tmp_path: Path) -> None:
    """Opened like a file it would stop supervisord for ever; what is no file has no end to show."""
    pipe = tmp_path / "pipe.log"
    os.mkfifo(pipe)
    for path in (str(pipe), str(tmp_path), str(tmp_path / "none"), None):
        assert postmortem.tail(path, 100) == ""
    (tmp_path / "log").write_text("x" * 200 + "\nlast line\n")
    assert postmortem.tail(str(tmp_path / "log"), 100) == "last line\n"
