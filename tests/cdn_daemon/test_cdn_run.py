"""cdn-run beside a shell program: what it passes on, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bus.endpoints import RunDir
from bus.messages import LifecyclePhase, Outcome, OutcomeKind, ReportStatus, Restart, Shutdown
from tests.cdn_daemon.programs import PATIENT, STUBBORN, cdn_run, keeper_of, pid_of, ready, said
from tests.cdn_daemon.test_commands import Commander
from tests.support import BIN, ServiceProcess, Supervisord, environment, is_running, until

Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(run_path: Path, request: pytest.FixtureRequest) -> Start:
    """Starts programs under cdn-run, and ends them afterwards."""

    def begin(*arguments: str, **env: str) -> ServiceProcess:
        process = cdn_run(run_path, *arguments, **env)
        request.addfinalizer(process.stop)
        return process

    return begin


def gone(*pids: int) -> None:
    """Wait until none of them lives."""
    until(lambda: not any(map(is_running, pids)), what=f"{pids} are gone")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("exit 0", 0, "exit code 0"),
        ("exit 3", 3, "exit code 3"),
        ("exit 75", 75, "exit code 75"),
        ("exit 78", 78, "exit code 78"),
        ("kill -KILL $$", -9, "killed by SIGKILL"),
        ("kill -TERM $$", -15, "killed by SIGTERM"),
        ("kill -SEGV $$", -11, "killed by SIGSEGV"),
        ("kill -USR1 $$", -10, "killed by SIGUSR1"),
    ],
)
def test_it_ends_as_the_program_does(start: Start, script: str, code: int, words: str) -> None:
    """The exit code, or the signal, is kept, so that whoever supervises learns the truth."""
    tiny = start("--", "sh", "-c", script)
    assert tiny.wait() == code
    assert f"sh ended by itself: {words}" in tiny.log()


def test_a_port_of_its_own(start: Start, run_dir: RunDir) -> None:
    """$PORT is one, in the probe, the command and the environment; another one beside it has another."""
    serve = 'echo "port is ${PORT} $(printenv PORT)"; exec python3 -m http.server --bind 127.0.0.1 $PORT'
    options = ("--http", "http://127.0.0.1:$PORT/", "--period", "0.2", "--", "sh", "-c", serve)
    ports = set()
    for name in ("tiny", "tiny-2"):
        tiny = start(*options, CDN_INSTANCE=name, PORT="1")
        assert ready(tiny)["ready"]
        found = re.search(r"port is (\d+) (\d+)\n", tiny.log())
        assert found is not None
        assert found[1] == found[2] != "1"
        ports.add(found[1])
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("number", "told", "code"),
    [(signal.SIGTERM, "TERM", 0), (signal.SIGINT, "TERM", 0), (signal.SIGQUIT, "QUIT", 6)],
)
def test_ending_signals(start: Start, number: signal.Signals, told: str, code: int) -> None:
    """SIGTERM and SIGINT drain, by the stop signal, and end with 0; SIGQUIT is the program's own matter."""
    tiny = start("--", "sh", "-c", PATIENT)
    program = pid_of(tiny)
    os.kill(tiny.pid, number)
    assert tiny.wait() == code
    said(tiny, f"told {told}")
    gone(program)


def test_another_stop_signal(start: Start) -> None:
    """As --stop-signal says, by name or number."""
    for name in ("QUIT", "sigquit", "3"):
        tiny = start("--stop-signal", name, "--", "sh", "-c", PATIENT)
        pid_of(tiny)
        os.kill(tiny.pid, signal.SIGTERM)
        assert tiny.wait() == 0
        said(tiny, "told QUIT")


def test_signals_are_passed_on(start: Start) -> None:
    """Those that are no order to end."""
    tiny = start("--", "sh", "-c", PATIENT)
    pid_of(tiny)
    tiny.url()
    for name in ("HUP", "USR1", "USR2"):
        os.kill(tiny.pid, signal.Signals[f"SIG{name}"])
        said(tiny, f"told {name}")
    assert ready(tiny)["ready"]


def test_an_ignored_signal_stays_ignored(run_path: Path) -> None:
    """Under nohup, SIGHUP reaches neither cdn-run nor the program."""
    command = ["nohup", str(BIN / "cdn-run"), "--name", "tiny", "--", "sh", "-c", PATIENT]
    with subprocess.Popen(
        command, env=environment(run_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"program is ")
        os.kill(process.pid, signal.SIGHUP)
        os.kill(process.pid, signal.SIGUSR1)
        assert process.stdout.readline() == b"told USR1\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.read() == b"told TERM\n"
    assert process.returncode == 0


def test_at_the_deadline_the_whole_tree_is_killed(start: Start) -> None:
    """What ignores its signal, and what it has started, do not outlive the drain; it still ends with 0."""
    tiny = start("--drain", "0.5", "--", "sh", "-c", STUBBORN)
    pids = pid_of(tiny), pid_of(tiny, "grandchild"), keeper_of(tiny)
    tiny.url()
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    assert "has not ended within 0.5 s of SIGTERM: killing it" in tiny.log()
    gone(*pids)


def test_a_second_sigterm_does_not_wait(start: Start) -> None:
    """Told twice, it kills at once."""
    tiny = start("--drain", "3600", "--", "sh", "-c", STUBBORN)
    pids = pid_of(tiny), pid_of(tiny, "grandchild"), keeper_of(tiny)
    tiny.url()
    os.kill(tiny.pid, signal.SIGTERM)
    said(tiny, "told TERM")
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    gone(*pids)


def test_a_stopped_program_is_drained(start: Start) -> None:
    """It is woken to hear that it is to end."""
    tiny = start("--", "sh", "-c", PATIENT)
    program = pid_of(tiny)
    os.kill(program, signal.SIGSTOP)
    os.kill(tiny.pid, signal.SIGTERM)
    assert tiny.wait() == 0
    said(tiny, "told TERM")


def test_a_stopped_program_is_left_alone_where_nobody_starts_another(start: Start) -> None:
    """Without a supervisor it may be stopped, and goes on when it is woken."""
    tiny = start("--", "sh", "-c", "echo program is $$; sleep 30 & wait $!; echo woken")
    program = pid_of(tiny)
    os.kill(program, signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        tiny.process.wait(timeout=2.0)
    assert is_running(program)
    os.kill(program, signal.SIGCONT)
    os.kill(psutil.Process(program).children()[0].pid, signal.SIGKILL)
    said(tiny, "woken")
    assert tiny.wait() == 0


def test_killed_it_leaves_no_orphan(start: Start) -> None:
    """SIGKILL of cdn-run: the program, its child, one in a session of its own, and the keeper are gone."""
    script = STUBBORN.replace("while", "setsid sh -c 'echo loner is $$; sleep 3600' &\nwhile", 1)
    tiny = start("--", "sh", "-c", script)
    pids = pid_of(tiny), pid_of(tiny, "grandchild"), pid_of(tiny, "loner"), keeper_of(tiny)
    os.kill(tiny.pid, signal.SIGKILL)
    assert tiny.wait() == -9
    gone(*pids)


def test_killed_with_its_group_it_leaves_no_orphan(run_path: Path) -> None:
    """As supervisord does at the end of its patience, with killasgroup=true."""
    command = [str(BIN / "cdn-run"), "--name", "tiny", "--", "sh", "-c", STUBBORN]
    with subprocess.Popen(
        command, env=environment(run_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stdout is not None
        program = int(process.stdout.readline().split()[-1])
        grandchild = int(process.stdout.readline().split()[-1])
        os.killpg(process.pid, signal.SIGKILL)
    gone(program, grandchild)


def test_a_killed_keeper_leaves_no_orphan(start: Start) -> None:
    """Then cdn-run ends the tree itself, and says what happened."""
    tiny = start("--", "sh", "-c", STUBBORN)
    pids = pid_of(tiny), pid_of(tiny, "grandchild")
    tiny.url()
    os.kill(keeper_of(tiny), signal.SIGKILL)
    assert tiny.wait() == 70
    assert "the keeper died, and the program with it" in tiny.log()
    gone(*pids)


def test_what_the_program_leaves_behind_ends_with_it(start: Start) -> None:
    """A child in the background, and one that made itself a daemon."""
    script = "(sleep 3600 & echo child is $!); (setsid sleep 3600 & echo loner is $!); exit 0"
    tiny = start("--", "sh", "-c", script)
    assert tiny.wait() == 0
    gone(pid_of(tiny, "child"), pid_of(tiny, "loner"))


def test_a_successor_waits_for_the_tree_to_be_gone(start: Start) -> None:
    """After a SIGKILL the next incarnation's program never meets the last one's, whose port it may need."""
    script = f"echo started with ${{OLD:-0}} alive $(kill -0 ${{OLD:-0}} && echo yes || echo no); {PATIENT}"
    first = start("--", "sh", "-c", PATIENT)
    old = pid_of(first)
    os.kill(first.pid, signal.SIGKILL)
    second = start("--", "sh", "-c", script, OLD=str(old))
    said(second, f"started with {old} alive no")
    assert re.search(r"tiny #2 listens", second.log())


@pytest.mark.parametrize("supervised", [{}, {"SUPERVISOR_ENABLED": "1"}])
def test_a_successor_stands_by_for_as_long_as_it_takes(start: Start, supervised: dict[str, str]) -> None:
    """While the last incarnation's tree is not gone it neither refuses nor starts; then it starts."""
    first = start("--", "sh", "-c", PATIENT, **supervised)
    old, keeper = pid_of(first), keeper_of(first)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait()
    second = start("--", "sh", "-c", PATIENT, **supervised)
    with pytest.raises(subprocess.TimeoutExpired):
        second.process.wait(timeout=1.5)
    assert second.log() == ""
    assert is_running(old)
    os.kill(keeper, signal.SIGCONT)
    assert pid_of(second) != old
    assert not is_running(old)


def test_output_is_passed_through_untouched(run_path: Path) -> None:
    """Every byte of the program's standard output, and nothing else on it; standard input reaches the program."""
    command = [str(BIN / "cdn-run"), "--name", "tiny", "--", "sh", "-c", r"printf 'a\000b\377\n'; cat; echo c >&2"]
    answer = subprocess.run(command, env=environment(run_path), input=b"in\xfe", capture_output=True, timeout=60)
    assert answer.returncode == 0
    assert answer.stdout == b"a\0b\xff\nin\xfe"
    assert b"\nc\n" in b"\n" + answer.stderr


def test_arguments_and_environment_reach_the_program(start: Start) -> None:
    """As given, options and all; but for the supervisor's private line."""
    tiny = start("--", "sh", "-c", 'printf "<%s>" "$0" "$@" "$COLOUR" "$NOTIFY_SOCKET"', "--name", "a  b", COLOUR="red")
    assert tiny.wait() == 0
    assert "<--name><a  b><red><>" in tiny.log()


def test_nothing_else_reaches_the_program(start: Start) -> None:
    """No descriptor of cdn-run's or the keeper's, and no signal that it would not have had blocked or ignored."""
    tiny = start("--", "sh", "-c", "ls /proc/self/fd | tr '\\n' ' '; grep -E 'SigBlk|SigIgn' /proc/self/status")
    tiny.wait()
    assert "0 1 2 3 " in tiny.log()  # 3 is ls's own
    assert tiny.log().split("0 1 2 3 ")[1].startswith("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("no-such-command", "cannot run no-such-command: command not found; install it, or name its whole path"),
        ("./no-such-file", "cannot run ./no-such-file: No such file or directory"),
        ("{}/plain", "plain: not executable by this user; see chmod +x"),
        ("{}/orphaned", "orphaned is there, but the interpreter in its first line is not"),
        ("{}/nonsense", "nonsense: no format that can be executed; a script has to begin with a line such as"),
        ("{}", ": not executable by this user"),
    ],
)
def test_what_cannot_be_run(start: Start, run_path: Path, command: str, text: str) -> None:
    """It ends with 78, as trying again would not help, and says what to do."""
    (run_path / "plain").write_text("#!/bin/sh\n")
    (run_path / "orphaned").write_text("#!/no/such/interpreter\n")
    (run_path / "nonsense").write_text("nonsense\n")
    for name in ("orphaned", "nonsense"):
        (run_path / name).chmod(0o700)
    tiny = start("--", command.format(run_path))
    assert tiny.wait() == 78
    assert text in tiny.log()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Missing argument 'COMMAND"),
        (("--http", "http://h/", "--tcp", "h:1", "--", "true"), "--http, --tcp and --exec exclude each other"),
        (("--tcp", "h:1", "--exec", "true", "--", "true"), "--http, --tcp and --exec exclude each other"),
        (("--http", "ftp://h/", "--", "true"), "cannot probe 'ftp://h/': it must be http://HOST[:PORT][/PATH]"),
        (("--tcp", "6379", "--", "true"), "cannot probe '6379': it must be HOST:PORT"),
        (("--exec", "a 'b", "--", "true"), "cannot split --exec"),
        (("--exec", " ", "--", "true"), "--exec needs a command"),
        (("--limit", "rss=1", "--", "true"), "cannot limit 'rss': it must be one of rss_bytes, cpu_cores, fds"),
        (("--limit", "rss_bytes=2m:1m", "--", "true"), "is over hard="),
        (("--limit", "rss_bytes", "--", "true"), "cannot read ''"),
        (("--stop-signal", "LOUD", "--", "true"), "'LOUD' is no signal"),
        (("--name", "a/b", "--", "true"), "cannot name a service 'a/b'"),
        (("--drain", "0", "--", "true"), "'--drain'"),
        (("--threshold", "0", "--", "true"), "'--threshold'"),
    ],
)
def test_wrong_usage(run_path: Path, arguments: tuple[str, ...], text: str) -> None:
    """Ends with 2, and names the option; nothing was run, and nothing made."""
    command = [str(BIN / "cdn-run"), *arguments]
    answer = subprocess.run(command, env=environment(run_path), capture_output=True, text=True, timeout=60)
    assert answer.returncode == 2
    assert text in answer.stderr
    assert not list((run_path / "locks").iterdir())


@pytest.mark.parametrize(("body", "code"), [(Restart(), 75), (Shutdown(), 0)])
def test_commands(start: Start, run_dir: RunDir, body: Restart | Shutdown, code: int) -> None:
    """As for any service: told to restart it ends with 75, to shut down with 0, whatever the program's own code."""
    tiny = start("--", "sh", "-c", PATIENT, SUPERVISOR_ENABLED="1")
    tiny.url()
    with Commander(run_dir) as commander:
        commander.hear(object)
        commander.send(body)
        assert tiny.wait() == code
        said(tiny, "told TERM")
        assert "sh has ended: exit code 5" in tiny.log()


def test_its_place_in_the_fleet(start: Start, run_dir: RunDir) -> None:
    """It reports as any service does; without a probe nobody knows an address of the program."""
    tiny = start("--", "sh", "-c", PATIENT)
    program = pid_of(tiny)
    tiny.url()
    until(lambda: b"program_pid" in tiny.get("/metrics")[1])
    with Commander(run_dir) as commander:
        commander.hear(object)
        commander.send(ReportStatus())
        outcome = commander.hear(Outcome, id="c1")
        assert outcome.kind is OutcomeKind.DONE
        status = outcome.status
        assert (status.instance, status.phase, status.pid, status.address) == (
            "tiny",
            LifecyclePhase.SERVING,
            tiny.pid,
            None,
        )
        assert status.metrics.values["program_pid"] == program
        assert tiny.get("/livez")[0] == 200
        code, body = tiny.get("/")
        root = json.loads(body)
        assert (code, root["service"], root["phase"], root["paths"]) == (
            200,
            "tiny",
            "serving",
            ["/livez", "/readyz", "/metrics", "/ooda"],
        )
        assert tiny.get("/nothing")[0] == 404


@pytest.mark.parametrize(
    ("limit", "script"),
    [
        ("children=4:6", f"for n in 1 2 3 4 5 6; do sleep 3600 & done; {PATIENT}"),
        ("rss_bytes=100m:200m", f"x=$(head -c 300m /dev/zero | tr '\\0' x); {PATIENT}"),
    ],
)
def test_limits_over_the_tree(start: Start, limit: str, script: str) -> None:
    """What the program and its children use counts; over hard it is drained and restarted, or replaced."""
    tiny = start("--limit", limit, "--", "sh", "-c", script, SUPERVISOR_ENABLED="1")
    assert tiny.wait() in (70, 75)
    assert "over the hard limit" in tiny.log()


def test_backstops_hold_the_program(start: Start) -> None:
    """They are set before it runs, for it and not for cdn-run."""
    tiny = start("--", "sh", "-c", PATIENT, CDN_RLIMIT_DATA="64m", CDN_RLIMIT_NOFILE="99", CDN_NICE="7")
    program = psutil.Process(pid_of(tiny))
    assert program.rlimit(resource.RLIMIT_DATA) == (64 << 20, 64 << 20)
    assert program.rlimit(resource.RLIMIT_NOFILE) == (99, 99)
    assert program.nice() == 7
    assert psutil.Process(tiny.pid).nice() != 7


def test_an_instance_runs_once(start: Start) -> None:
    """A second copy refuses, and has not run the program."""
    first = start("--", "sh", "-c", PATIENT)
    first.url()
    second = start("--", "sh", "-c", "echo ran")
    assert second.wait() == 78
    assert "already is tiny" in second.log()
    assert "ran\n" not in second.log()


def test_under_supervisord(run_path: Path) -> None:
    """RUNNING when its probe passes; started again when it or the program is killed, or the program is stopped by a
    signal; ended, nothing of it is left.
    """
    (run_path / "program.sh").write_text(f"#!/bin/sh\n{PATIENT}")
    (run_path / "program.sh").chmod(0o700)
    command = f"{BIN}/cdn-run --name tiny --exec 'test -e {run_path}/well' --period 0.2 -- {run_path}/program.sh"
    programs = {"tiny": {"command": command, "autostart": "false", "type": "notify"}}
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}) as supervisord:
        waiting = subprocess.Popen(
            [str(BIN / "supervisorctl"), "-c", str(supervisord.conf), "start", "tiny"],
            env=supervisord.env,
            stdout=subprocess.DEVNULL,
        )
        until(lambda: "program is " in supervisord.log("tiny"))
        assert supervisord.states()["tiny"] == "STARTING"
        (run_path / "well").touch()
        assert waiting.wait(timeout=60) == 0
        assert supervisord.states()["tiny"] == "RUNNING"

        def programs_seen() -> list[int]:
            return [int(pid) for pid in re.findall(r"program is (\d+)\n", supervisord.log("tiny"))]

        os.kill(programs_seen()[-1], signal.SIGKILL)
        until(lambda: len(programs_seen()) == 2)
        until(lambda: supervisord.states()["tiny"] == "RUNNING")
        os.kill(supervisord.pid("tiny"), signal.SIGKILL)
        until(lambda: len(programs_seen()) == 3)
        until(lambda: supervisord.states()["tiny"] == "RUNNING")
        os.kill(programs_seen()[-1], signal.SIGSTOP)
        until(lambda: len(programs_seen()) == 4)
        until(lambda: supervisord.states()["tiny"] == "RUNNING")
        assert "was stopped by a signal for 0.2 s: replaced" in supervisord.log("tiny")
        assert supervisord.ctl("stop", "tiny").returncode == 0
        assert supervisord.states()["tiny"] == "STOPPED"
        gone(*programs_seen())


def test_a_killed_supervisord(run_path: Path) -> None:
    """Its successor's cdn-run drains the orphaned one: there are never two programs, and no second copy."""
    (run_path / "program.sh").write_text(f"#!/bin/sh\n{PATIENT}")
    (run_path / "program.sh").chmod(0o700)
    programs = {"tiny": {"command": f"{BIN}/cdn-run --name tiny -- {run_path}/program.sh", "type": "notify"}}

    def seen(supervisord: Supervisord) -> list[int]:
        return [int(pid) for pid in re.findall(r"program is (\d+)\n", supervisord.log("tiny"))]

    first = Supervisord(run_path, programs, env={"CDN_PORT": "0"}).start()
    until(lambda: first.states()["tiny"] == "RUNNING")
    assert first.process is not None
    orphan = first.pid("tiny")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    with Supervisord(run_path, programs, env={"CDN_PORT": "0"}) as second:
        until(lambda: second.states()["tiny"] == "RUNNING")
        gone(orphan)
        old, new = seen(second)
        assert not is_running(old)
        assert is_running(new)
    gone(new)
