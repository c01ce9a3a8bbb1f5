"""cdnctl up and down, with real supervisord and plain programs: what works, and what is refused with a reason."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.commands.down import wait
from cli.exits import Exit
from tests.cli.support import CDNCTL, cdnctl, ended_afterwards, services_of, write_conf
from tests.support import BIN, environment, kill_tree, short_dir, until

NO_RUN_DIR: dict[str, str | None] = {"CDN_RUN_DIR": None}
PLAIN = {"one": "sleep 1000", "two": "sleep 1000"}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for a supervisord.conf; what runs in its run/ in the end is killed."""
    with short_dir() as path, ended_afterwards(path / "run"):
        yield path


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A run directory that is not beside the conf."""
    with short_dir() as path, ended_afterwards(path):
        yield path


def up(home: Path, *arguments: str, env: dict[str, str | None] | None = None) -> subprocess.CompletedProcess[str]:
    """cdnctl up in that directory, with no CDN_RUN_DIR unless env says one."""
    return cdnctl(home, "up", *arguments, cwd=home, env={**NO_RUN_DIR, **(env or {})})


def down(home: Path) -> subprocess.CompletedProcess[str]:
    """cdnctl down in that directory."""
    return cdnctl(home, "down", cwd=home, env=NO_RUN_DIR)


def is_gone(pid: int) -> bool:
    """Ended; whether init has taken note of it yet is not the question."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def supervisord_pid(run_dir: Path) -> int:
    """Of the one that runs there."""
    return int((run_dir / "supervisord.pid").read_text())


def test_up_and_down(home: Path) -> None:
    """Up starts it in the background, ready; a second up says so; down leaves no process and no socket."""
    write_conf(home, PLAIN)
    first = up(home)
    assert first.returncode == Exit.OK, first.stderr
    assert first.stdout.splitlines()[-1] == "2 running"
    assert first.stderr == f"starting 2 programs in {home / 'run'}\n"  # no more, where there is no terminal
    pid = supervisord_pid(home / "run")
    children = psutil.Process(pid).children()
    assert (home / "run").stat().st_mode & 0o777 == 0o700
    assert (home / "run" / "supervisord.log").stat().st_mode & 0o777 == 0o600

    again = up(home, "--json")
    assert again.returncode == Exit.OK
    assert f"already running in {home / 'run'}, supervisord pid {pid}" in again.stderr
    assert {service["pid"] for service in services_of(again).values()} == {child.pid for child in children}

    ended = down(home)
    assert ended.returncode == Exit.OK, ended.stderr
    assert is_gone(pid)
    assert all(is_gone(child.pid) for child in children)
    assert not (home / "run" / "supervisor.sock").exists()
    assert "already down" in down(home).stderr


def test_up_starts_what_is_stopped(home: Path) -> None:
    """Of the programs that are to be started by themselves."""
    write_conf(home, PLAIN, extra="[program:manual]\ncommand=sleep 1000\nautostart=false")
    assert up(home).returncode == Exit.OK
    assert cdnctl(home, "stop", "two", cwd=home, env=NO_RUN_DIR).returncode == Exit.OK
    again = up(home)
    assert again.returncode == Exit.OK
    assert "starting two" in again.stderr
    assert again.stdout.splitlines()[-1] == "2 running, 1 stopped"


def test_up_tells_why_one_is_not_ready(home: Path) -> None:
    """Exit 1, its state and reason, and the end of its log; the others run."""
    write_conf(home, {**PLAIN, "port": "sh -c 'echo cannot listen on port 18600: it is in use; exit 78'"})
    done = up(home)
    assert done.returncode == Exit.FAILED
    assert "port is not ready: EXITED: its configuration is wrong (exit code 78)" in done.stderr
    assert "cannot listen on port 18600: it is in use" in done.stderr
    assert done.stdout.splitlines()[-1] == "2 running, 1 exited"


WARDEN = "[rpcinterface:cdn]\nsupervisor.rpcinterface_factory=cdn_daemon.warden:make_rpcinterface\n"
NEEDS = """
[program:wrong]
command=sh -c 'exit 78'
type=notify
startsecs=0
exitcodes=0,78
[program:web]
command=sleep 1000
startsecs=0
depends_on=wrong
[program:front]
command=sleep 1000
startsecs=0
depends_on=web
[program:manual]
command=sleep 1000
autostart=false
[program:report]
command=sleep 1000
startsecs=0
depends_on=manual
"""


@pytest.mark.faults
def test_up_does_not_wait_for_what_cannot_become_ready(home: Path) -> None:
    """What needs something that has failed for good, or that nobody starts, is told at once with the root of it."""
    write_conf(home, {"one": "sleep 1000"}, extra=WARDEN + NEEDS)
    done = up(home)
    assert done.returncode == Exit.FAILED
    why = "wrong: EXITED: configuration error (78)"
    assert f"cdnctl: {why.replace(':', ' is not ready:', 1)}\n" in done.stderr
    assert f"cdnctl: web is not ready: not started: it needs {why}\n" in done.stderr
    assert f"cdnctl: front is not ready: not started: it needs web, which needs {why}\n" in done.stderr
    assert "it needs manual: STOPPED, and not started by itself" in done.stderr
    assert " within " not in done.stderr  # nothing was waited for in vain
    assert done.stdout.splitlines()[-1] == "1 running, 4 stopped, 1 exited"


def test_up_leaves_down_what_is_disabled(home: Path) -> None:
    """And says so; it is not waited for."""
    write_conf(home, PLAIN, extra=WARDEN)
    assert up(home).returncode == Exit.OK
    assert cdnctl(home, "disable", "two", cwd=home, env=NO_RUN_DIR).returncode == Exit.OK
    again = up(home)
    assert again.returncode == Exit.OK, again.stderr
    assert "two stays down: disabled by an operator at" in again.stderr
    assert "starting" not in again.stderr
    assert again.stdout.splitlines()[-1] == "1 running, 1 stopped"


def test_up_tells_that_other_variables_have_no_effect(home: Path) -> None:
    """What supervisord was started with stays; whoever runs up with the same is told nothing."""
    write_conf(home, PLAIN)
    then: dict[str, str | None] = {"CDN_PORT": "0", "CDN_HOST": "127.0.0.1"}
    assert up(home, env=then).returncode == Exit.OK
    assert "was started with" not in up(home, env=then).stderr
    other = up(home, env={"CDN_PORT": "18999", "CDN_OODA": "off"})
    assert other.returncode == Exit.OK
    differing = "CDN_HOST=127.0.0.1 (now unset), CDN_OODA unset (now off), CDN_PORT=0 (now 18999)"
    assert f"what runs was started with {differing}: that stays so" in other.stderr
    assert "cdnctl down, then cdnctl up" in other.stderr


@pytest.mark.parametrize("beside", [True, False])
def test_up_tells_what_has_changed_in_the_configuration(home: Path, elsewhere: Path, beside: bool) -> None:
    """With what takes it over, also where cdnctl has derived a configuration for another run directory."""
    env: dict[str, str | None] = {} if beside else {"CDN_RUN_DIR": str(elsewhere)}
    write_conf(home, PLAIN)
    assert "is not what runs" not in up(home, env=env).stderr
    conf = write_conf(home, {"one": "sleep 2000", "three": "sleep 1000"})
    again = up(home, env=env)
    assert again.returncode == Exit.OK, again.stderr
    assert f"{conf} is not what runs: added three; changed one; removed two; to take that over: " in again.stderr
    update = again.stderr.partition("to take that over: ")[2].splitlines()[0].split()
    subprocess.run([str(BIN / update[0]), *update[1:]], check=True, capture_output=True)
    after = up(home, env=env)
    assert "is not what runs" not in after.stderr
    assert after.stdout.splitlines()[-1] == "2 running"


def test_up_tells_that_a_changed_configuration_is_wrong(home: Path) -> None:
    """What runs goes on."""
    write_conf(home, PLAIN)
    assert up(home).returncode == Exit.OK
    write_conf(home, PLAIN, extra="[program:bad]\ncommand=sleep 1\nautorestart=perhaps")
    again = up(home)
    assert again.returncode == Exit.OK, again.stderr
    assert f"cannot have {home / 'supervisord.conf'} read again: " in again.stderr


def test_up_does_not_wait_for_ever(home: Path) -> None:
    """What is not ready in time is told as such."""
    write_conf(home, {"slow": "sleep 1000"}, extra="")
    conf = home / "supervisord.conf"
    conf.write_text(conf.read_text().replace("startsecs=0", "startsecs=600"))
    done = up(home, "--timeout", "1s")
    assert done.returncode == Exit.FAILED
    assert "slow is not ready within 1 s: starting" in done.stderr


def test_interrupting_up_leaves_the_fleet(home: Path) -> None:
    """Ctrl-C ends the waiting, not the fleet: 130."""
    write_conf(home, {"slow": "sleep 1000"})
    conf = home / "supervisord.conf"
    conf.write_text(conf.read_text().replace("startsecs=0", "startsecs=600"))
    env = {key: value for key, value in environment(home).items() if key != "CDN_RUN_DIR"}
    with subprocess.Popen([str(CDNCTL), "up"], cwd=home, env=env, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stderr is not None
        until(lambda: "starting 1 program in" in str(waiting.stderr and waiting.stderr.readline()))
        waiting.send_signal(signal.SIGINT)
        said = waiting.stderr.read()
    assert waiting.returncode == Exit.INTERRUPTED
    assert "the fleet goes on starting" in said
    assert psutil.pid_exists(supervisord_pid(home / "run"))


def test_another_run_directory(home: Path, elsewhere: Path) -> None:
    """A conf is derived for it, which supervisorctl takes too; nothing is written beside the original."""
    write_conf(home, {"one": "sh -c 'echo %(here)s; echo $CDN_RUN_DIR; exec sleep 1000'"})
    done = up(home, env={"CDN_RUN_DIR": str(elsewhere)})
    assert done.returncode == Exit.OK, done.stderr
    assert not (home / "run").exists()
    logged = until(lambda: (elsewhere / "one.log").read_text().split())
    assert logged == [str(home), str(elsewhere)]
    ctl = subprocess.run(
        [str(BIN / "supervisorctl"), "-c", str(elsewhere / "supervisord.conf"), "status"],
        capture_output=True,
        text=True,
    )
    assert "RUNNING" in ctl.stdout, ctl.stdout + ctl.stderr
    assert cdnctl(elsewhere, "status").returncode == Exit.OK
    assert cdnctl(elsewhere, "down", env={"CDN_RUN_DIR": None, "CDN_CONFIG": None}, cwd=home).returncode == Exit.OK
    assert cdnctl(home, "--run-dir", str(elsewhere), "status", env=NO_RUN_DIR).returncode == Exit.OK
    assert cdnctl(home, "--run-dir", str(elsewhere), "down", env=NO_RUN_DIR).returncode == Exit.OK


def test_the_run_directory_may_have_any_ordinary_name(home: Path, elsewhere: Path) -> None:
    """Spaces and percent signs are the conf's own business."""
    write_conf(home, {"one": "sh -c 'echo $CDN_RUN_DIR; exec sleep 1000'"})
    odd = elsewhere / "50% of it"
    with ended_afterwards(odd):
        done = up(home, env={"CDN_RUN_DIR": str(odd)})
        assert done.returncode == Exit.OK, done.stderr
        assert until(lambda: (odd / "one.log").read_text()) == f"{odd}\n"
        assert up(home, env={"CDN_RUN_DIR": str(odd)}).returncode == Exit.OK
        ctl = [str(BIN / "supervisorctl"), "-c", str(odd / "supervisord.conf"), "status"]
        assert "RUNNING" in subprocess.run(ctl, capture_output=True, text=True).stdout
        assert cdnctl(odd, "down").returncode == Exit.OK


def test_the_configuration_may_come_from_the_environment(home: Path, elsewhere: Path) -> None:
    """CDN_CONFIG names it for up, and its run directory for everything else."""
    conf = write_conf(home, PLAIN)
    env: dict[str, str | None] = {"CDN_CONFIG": str(conf), "CDN_RUN_DIR": None}
    assert cdnctl(elsewhere, "up", env=env).returncode == Exit.OK
    assert cdnctl(elsewhere, "status", env=env).returncode == Exit.OK
    assert cdnctl(elsewhere, "down", env=env).returncode == Exit.OK


def test_a_second_fleet_in_the_same_run_directory_is_refused(home: Path, elsewhere: Path) -> None:
    """By name of the first one's configuration; the first is undisturbed."""
    write_conf(home, PLAIN)
    with short_dir() as other:
        second = write_conf(other, {"three": "sleep 1000"})
        place: dict[str, str | None] = {"CDN_RUN_DIR": str(elsewhere)}
        assert up(home, env=place).returncode == Exit.OK
        pid = supervisord_pid(elsewhere)
        done = up(other, "-c", str(second), env=place)
        assert done.returncode == Exit.FAILED
        assert f"the fleet of {home / 'supervisord.conf'} runs there (supervisord pid {pid})" in done.stderr
        assert set(services_of(cdnctl(elsewhere, "status", "--json"))) == set(PLAIN)
        assert supervisord_pid(elsewhere) == pid


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "File contains no section headers"),
        ("[program:x]\ncommand=y\n", "it has no section [supervisord]"),
        ("[supervisord]\n", "[unix_http_server] file is missing"),
        ("[supervisord]\n[unix_http_server]\nfile=/run/other.sock\n", "[unix_http_server] file is /run/other.sock"),
    ],
)
def test_a_broken_conf_is_refused(home: Path, text: str, said: str) -> None:
    """Before anything is started, with the file's name."""
    (home / "supervisord.conf").write_text(text)
    done = up(home)
    assert done.returncode == Exit.FAILED
    assert said in done.stderr
    assert str(home / "supervisord.conf") in done.stderr


def test_what_supervisord_refuses_is_told(home: Path) -> None:
    """Its own words, in a line."""
    write_conf(home, PLAIN, extra="[program:bad]\ncommand=sleep 1\nautorestart=perhaps")
    done = up(home)
    assert done.returncode == Exit.FAILED
    assert "cannot start supervisord with" in done.stderr
    assert "perhaps" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_conf_for_the_foreground_is_refused(home: Path) -> None:
    """It would never return."""
    write_conf(home, PLAIN)
    conf = home / "supervisord.conf"
    conf.write_text(conf.read_text().replace("[supervisord]", "[supervisord]\nnodaemon=true"))
    done = up(home)
    assert (done.returncode, "nodaemon=true" in done.stderr) == (Exit.FAILED, True)


def test_no_conf_is_told(home: Path) -> None:
    """With what to do."""
    done = up(home)
    assert done.returncode == Exit.FAILED
    assert f"cannot read {home / 'supervisord.conf'}: No such file or directory; name a supervisord.conf" in done.stderr


def test_a_run_directory_that_cannot_serve_is_refused(home: Path) -> None:
    """Too long for sockets, or not a directory."""
    write_conf(home, PLAIN)
    long = up(home, env={"CDN_RUN_DIR": str(home / ("x" * 100))})
    assert long.returncode == Exit.FAILED
    assert "the limit is 107" in long.stderr
    (home / "file").write_text("")
    blocked = up(home, env={"CDN_RUN_DIR": str(home / "file" / "run")})
    assert blocked.returncode == Exit.FAILED
    assert "cannot use run directory" in blocked.stderr


def test_up_after_supervisord_was_killed(home: Path) -> None:
    """Its stale socket and pidfile are in nobody's way."""
    write_conf(home, PLAIN)
    assert up(home).returncode == Exit.OK
    kill_tree(supervisord_pid(home / "run"))
    assert cdnctl(home, "status", cwd=home, env=NO_RUN_DIR).returncode == Exit.UNKNOWN
    assert "already down" in down(home).stderr
    assert up(home).returncode == Exit.OK


def test_down_ends_what_outlived_its_supervisord(home: Path) -> None:
    """A service whose supervisord was killed holds its lock still; down tells it to end."""
    locking = "import fcntl, time; f = open('%(here)s/run/locks/survivor.lock', 'w'); fcntl.flock(f, 2); "
    write_conf(home, {"survivor": f'{sys.executable} -uc "{locking}print(1); time.sleep(1000)"'})
    assert up(home).returncode == Exit.OK
    survivor = psutil.Process(supervisord_pid(home / "run")).children()[0]
    until(lambda: (home / "run" / "survivor.log").read_text() == "1\n")
    os.kill(supervisord_pid(home / "run"), signal.SIGKILL)
    done = down(home)
    assert done.returncode == Exit.OK
    assert "ending survivor" in done.stderr
    assert is_gone(survivor.pid)


def test_down_ends_who_was_not_seen_to_take_its_lock(home: Path) -> None:
    """A lock whose taker is gone is held by who inherited it, which the kernel's table of locks does not tell."""
    write_conf(home, {"odd": "sh -c 'exec 9>%(here)s/run/locks/odd.lock; flock -n 9; exec sleep 1000'"})
    assert up(home).returncode == Exit.OK
    holder = psutil.Process(supervisord_pid(home / "run")).children()[0]
    until(lambda: holder.name() == "sleep")
    os.kill(supervisord_pid(home / "run"), signal.SIGKILL)
    done = down(home)
    assert done.returncode == Exit.OK, done.stderr
    assert "ending odd" in done.stderr
    assert is_gone(holder.pid)


def test_down_ends_what_has_no_lock_yet_and_leaves_an_operators_shell(home: Path) -> None:
    """Killed together with supervisord's start, services live on that have claimed nothing: they are ended in order.

    Whoever only has CDN_RUN_DIR in its environment is no service.
    """
    write_conf(home, {"early": "sh -c 'sleep 1000; :'", "two": "sleep 1000"})
    assert up(home).returncode == Exit.OK
    services = psutil.Process(supervisord_pid(home / "run")).children(recursive=True)
    os.kill(supervisord_pid(home / "run"), signal.SIGKILL)
    with subprocess.Popen(["sleep", "1000"], env=environment(home / "run"), cwd=home / "run") as shell:
        done = down(home)
        assert shell.poll() is None
        shell.kill()
    assert done.returncode == Exit.OK, done.stderr
    assert "no supervisord runs in" in done.stderr
    assert "early" in done.stderr
    assert all(is_gone(service.pid) for service in services)
    assert "already down" in down(home).stderr


def test_a_supervisord_whose_socket_is_gone_is_found(home: Path) -> None:
    """Up starts no second one beside it; down ends it, and with it its services."""
    write_conf(home, PLAIN)
    assert up(home).returncode == Exit.OK
    pid = supervisord_pid(home / "run")
    services = psutil.Process(pid).children()
    (home / "run" / "supervisor.sock").unlink()
    (home / "run" / "supervisord.pid").unlink()
    again = up(home)
    assert again.returncode == Exit.FAILED
    assert f"supervisord {pid} runs there, and does not listen" in again.stderr
    assert "cdnctl down" in again.stderr
    done = down(home)
    assert done.returncode == Exit.OK, done.stderr
    assert f"supervisord {pid} cannot be reached" in done.stderr
    assert "down: 3 processes have ended" in done.stderr
    assert is_gone(pid)
    assert all(is_gone(service.pid) for service in services)


def test_down_waits_for_an_up_that_has_begun(home: Path) -> None:
    """It does not find the run directory empty while supervisord is about to start; in the end nothing runs."""
    write_conf(home, PLAIN)
    assert up(home).returncode == Exit.OK
    assert down(home).returncode == Exit.OK
    env = {key: value for key, value in environment(home).items() if key != "CDN_RUN_DIR"}
    with (home / "run" / "locks" / "cdnctl-up.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # an up that is about to start supervisord
        late = cdnctl(home, "down", "--timeout", "200ms", cwd=home, env=NO_RUN_DIR)
        assert late.returncode == Exit.TIMED_OUT
        assert f"fuser {home / 'run' / 'locks' / 'cdnctl-up.lock'}" in late.stderr
        with subprocess.Popen([str(CDNCTL), "down"], cwd=home, env=env, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert "waiting for another cdnctl" in waiting.stderr.readline()
            command = [str(BIN / "supervisord"), "-c", str(home / "supervisord.conf")]
            subprocess.run(command, env=env, check=True)
            pidfile = home / "run" / "supervisord.pid"
            pid = int(until(lambda: pidfile.exists() and pidfile.read_text().strip(), what="supervisord runs") or 0)
            fcntl.flock(lock, fcntl.LOCK_UN)
            said = waiting.stderr.read()
    assert waiting.returncode == Exit.OK, said
    assert "cdnctl: down: " in said
    assert is_gone(pid)


def test_down_says_what_still_runs(home: Path) -> None:
    """124 when the time is over; it goes on, and waiting again ends well."""
    write_conf(home, {"deaf": "sh -c 'trap \"\" TERM; while :; do sleep 0.05; done'"})
    conf = home / "supervisord.conf"
    conf.write_text(conf.read_text().replace("startsecs=0", "startsecs=0\nstopwaitsecs=3\nkillasgroup=true"))
    assert up(home).returncode == Exit.OK
    late = cdnctl(home, "down", "--timeout", "300ms", cwd=home, env=NO_RUN_DIR)
    assert late.returncode == Exit.TIMED_OUT
    assert "still runs" in late.stderr
    assert down(home).returncode == Exit.OK


def test_a_supervisord_that_dies_meanwhile_is_told(home: Path) -> None:
    """With the end of its log; nobody waits for the time to be over."""
    write_conf(home, {"murderer": "sh -c 'sleep 0.5; kill -9 $PPID; sleep 1000'"})
    conf = home / "supervisord.conf"
    conf.write_text(conf.read_text().replace("startsecs=0", "startsecs=600"))
    done = up(home, "--timeout", "50s")
    for orphan in psutil.process_iter(["cmdline", "cwd"]):
        if orphan.info["cwd"] == str(home):
            kill_tree(orphan.pid)
    assert done.returncode == Exit.FAILED
    assert "supervisord has ended; its log ends with:" in done.stderr
    assert "spawned: 'murderer'" in done.stderr


def test_a_fleet_of_which_nothing_is_to_be_started(home: Path) -> None:
    """Is up at once."""
    write_conf(home, {}, extra="[program:manual]\ncommand=sleep 1000\nautostart=false")
    done = up(home)
    assert done.returncode == Exit.OK, done.stderr
    assert done.stdout.splitlines()[-1] == "1 stopped"


def test_what_does_not_heed_sigterm_is_killed_in_the_end() -> None:
    """When the grace is over, which is told; down ends well."""
    deaf = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(1000)"]
    with subprocess.Popen([*deaf[:1], "-u", *deaf[1:]], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        ended: list[str] = []
        now_s = time.monotonic()
        wait({"deaf": os.pidfd_open(process.pid)}, now_s + 60, 60, ended, kill_at_s=now_s)
    assert ended == ["deaf"]
    assert process.returncode == -signal.SIGKILL
