"""What each verb orders: of ATLAS, and while that is silent of supervisord and the warden in it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bus.endpoints import RunDir
from bus.messages import OrderOutcome, OrderRequest, OutcomeKind, ProcessState, Verb
from cli.atlas import NO_DETAILS, Details
from cli.commands import questions
from cli.exits import Exit
from cli.main import main
from tests.cli.fake_atlas import FakeAtlas, Replies
from tests.cli.support import CDNCTL, cdnctl, outcomes_of, plain, services_of, view
from tests.cli.test_terminal import terminal
from tests.support import Supervisord, environment, until

ATLAS = view("atlas", uptime_s=100.0)
FLEET = [ATLAS, view("web"), view("web-2", service="web"), view("db")]


@pytest.mark.parametrize(
    ("arguments", "verb", "names", "details"),
    [
        (["restart", "web", "--rolling"], Verb.RESTART, ("web", "web-2"), Details(batch=1)),
        (["restart", "w*", "db", "--rolling", "--batch", "2"], Verb.RESTART, ("web", "web-2", "db"), Details(batch=2)),
        (["signal", "db"], Verb.SIGNAL, ("db",), Details(signal=15)),
        (["signal", "db", "-s", "usr1"], Verb.SIGNAL, ("db",), Details(signal=10)),
        (["kill", "db", "-s", "SIGKILL"], Verb.SIGNAL, ("db",), Details(signal=9)),
        (["kill", "db", "-s", "1"], Verb.SIGNAL, ("db",), Details(signal=1)),
        (["scale", "web", "3"], Verb.SCALE, ("web",), Details(instances=3)),
        (["enable", "db"], Verb.ENABLE, ("db",), NO_DETAILS),
        (["disable", "web-2", "db"], Verb.DISABLE, ("web-2", "db"), NO_DETAILS),
        (["reset-failed", "--all", "--yes"], Verb.RESET_FAILED, ("atlas", "web", "web-2", "db"), NO_DETAILS),
        (["maintenance", "db", "--on"], Verb.MAINTENANCE, ("db",), Details(on=True)),
        (["maintenance", "db", "--on", "--for", "2h"], Verb.MAINTENANCE, ("db",), Details(on=True, for_s=7200.0)),
        (["shed", "db"], Verb.SHED, ("db",), NO_DETAILS),
        (["resume", "web"], Verb.RESUME, ("web", "web-2"), NO_DETAILS),
        (["maintenance", "db", "--off"], Verb.MAINTENANCE, ("db",), Details(on=False)),
    ],
)
def test_what_atlas_is_told(
    run_dir: RunDir, arguments: list[str], verb: Verb, names: tuple[str, ...], details: Details
) -> None:
    """The verb, the names that were meant, in the order of the fleet, and what the verb needs."""
    with FakeAtlas(run_dir, FLEET) as atlas:
        done = cdnctl(run_dir.path, *arguments, "--json")
    assert done.returncode == Exit.OK, done.stderr
    assert tuple(outcomes_of(done)) == names
    (order,) = (request for request in atlas.requests if isinstance(request, OrderRequest))
    assert (order.verb, order.names) == (verb, names)
    assert Details(*(getattr(order, field) for field in Details._fields)) == details


@pytest.mark.parametrize(
    "arguments",
    [
        ["stop", "--all"],
        ["stop"],
        ["stop", "web", "--all", "--yes"],
        ["restart", "web", "--batch", "2"],
        ["restart", "web", "--rolling", "--batch", "0"],
        ["signal", "web", "-s", "NONSENSE"],
        ["signal", "web", "-s", "99"],
        ["scale", "web", "0"],
        ["scale", "web", "65"],
        ["scale", "web"],
        ["maintenance", "web"],
        ["maintenance", "web", "--off", "--for", "1h"],
        ["maintenance", "web", "--on", "--for", "25h"],
        ["wait", "web", "--for", "nonsense"],
        ["status", "--sort", "nonsense"],
        ["status", "-o", "yaml"],
        ["completion", "tcsh"],
    ],
)
def test_what_makes_no_sense_is_2(run_dir: RunDir, arguments: list[str]) -> None:
    """Nothing is ordered then; --all is asked about, and in a script nobody answers."""
    with FakeAtlas(run_dir, FLEET) as atlas:
        done = cdnctl(run_dir.path, *arguments)
    assert (done.returncode, done.stdout) == (Exit.USAGE, ""), done.stderr
    assert "Error: " in done.stderr
    assert not any(isinstance(request, OrderRequest) for request in atlas.requests)


@pytest.mark.parametrize(("answer", "code"), [("y", Exit.OK), ("n", Exit.FAILED)])
def test_all_is_asked_about_on_a_terminal(run_dir: RunDir, answer: str, code: Exit) -> None:
    """Only after a yes is anything ordered."""
    with FakeAtlas(run_dir, FLEET) as atlas, terminal(run_dir, "enable", "--all") as screen:
        until(lambda: "enable all 4 services?" in screen.text, what="the question")
        screen.type(f"{answer}\n")
        assert screen.ended() == code
    assert any(isinstance(request, OrderRequest) for request in atlas.requests) is (code is Exit.OK)


def test_the_names_of_a_program_are_exact(run_dir: RunDir) -> None:
    """scale means the program, although its further instances are of the same service."""
    with FakeAtlas(run_dir, FLEET):
        assert cdnctl(run_dir.path, "scale", "w*", "2").returncode == Exit.UNKNOWN


def fails(request: OrderRequest) -> Replies:
    """ATLAS does all but one, and says so."""
    from bus.messages import OrderAccepted

    kinds = [OutcomeKind.DONE, *[OutcomeKind.FAILED] * (len(request.names) - 1)]
    outcomes = (
        OrderOutcome(id=request.id, name=name, kind=kind, took_s=0.1)
        for name, kind in zip(request.names, kinds, strict=True)
    )
    return [OrderAccepted(id=request.id, commands={}), *outcomes]


def test_every_form_ends_alike(run_dir: RunDir) -> None:
    """The exit code is the same; names are those that are done."""
    with FakeAtlas(run_dir, FLEET, order=fails):
        shown = {form: cdnctl(run_dir.path, "disable", "w*", "-o", form) for form in ("table", "json", "jsonl", "name")}
    assert {done.returncode for done in shown.values()} == {Exit.FAILED}
    assert shown["name"].stdout == "web\n"
    assert [json.loads(line)["outcome"] for line in shown["jsonl"].stdout.splitlines()] == ["done", "failed"]
    assert "web disabled in 0.10 s" in shown["table"].stdout


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (["web"], Exit.OK, ["active", "active"]),
        (["web", "job"], Exit.NOT_WELL, ["active", "active", "failed"]),
        (["job", "late", "web"], Exit.NOT_WELL, ["failed", "activating", "active", "active"]),
        (["late"], Exit.NOT_WELL, ["activating"]),
        (["nope"], Exit.UNKNOWN, []),
    ],
)
def test_is_active(run_dir: RunDir, names: list[str], code: Exit, words: list[str]) -> None:
    """systemctl's words; -q says nothing; the exit code decides."""
    fleet = [*FLEET, plain("job", state=ProcessState.FATAL, pid=None), plain("late", state=ProcessState.BACKOFF)]
    with FakeAtlas(run_dir, fleet):
        loud = cdnctl(run_dir.path, "is-active", *names)
        quiet = cdnctl(run_dir.path, "is-active", "-q", *names)
        failed = cdnctl(run_dir.path, "is-failed", *names)
    assert (loud.returncode, loud.stdout.split()) == (code, words)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (code, "", "")
    expected = Exit.UNKNOWN if code is Exit.UNKNOWN else Exit.OK if "failed" in words else Exit.NOT_WELL
    assert failed.returncode == expected


def test_wait_is_over_when_it_is_so(run_dir: RunDir) -> None:
    """Not before all are; what is not in time is told, as it is, and ends with 124."""
    starting = view("web", state=ProcessState.STARTING)
    with FakeAtlas(run_dir, [ATLAS, starting]) as atlas:
        late = cdnctl(run_dir.path, "wait", "web", "--timeout", "200ms")
        with subprocess_of(run_dir, "wait", "web", "atlas", "--json") as waiting:
            seen = len(atlas.requests)
            until(lambda: len(atlas.requests) > seen + 3, what="it looks again and again")
            assert waiting.poll() is None
            atlas.services = (ATLAS, view("web"))
            shown, _ = waiting.communicate()
        stopped = cdnctl(run_dir.path, "wait", "web", "--for", "stopped", "--timeout", "100ms")
        atlas.services = (ATLAS, plain("web", state=ProcessState.STOPPED, pid=None))
        gone = cdnctl(run_dir.path, "wait", "web", "--for", "stopped", "-o", "name")
    assert (late.returncode, late.stdout) == (Exit.TIMED_OUT, "")
    assert "not ready within 0.2 s: web is STARTING" in late.stderr
    assert waiting.returncode == Exit.OK
    assert {found["name"] for found in json.loads(shown)["waited"]} == {"web", "atlas"}
    assert stopped.returncode == Exit.TIMED_OUT
    assert (gone.returncode, gone.stdout) == (Exit.OK, "web\n")


ENDED = plain("web", state=ProcessState.EXITED, pid=None, reason="ended on purpose")


@pytest.mark.parametrize("goal", ["ready", "healthy"])
def test_what_has_ended_is_not_waited_for(run_dir: RunDir, goal: str) -> None:
    """Once it has stayed so for longer than a supervisord takes to start it again."""
    with FakeAtlas(run_dir, [ATLAS, ENDED]):
        hopeless = cdnctl(run_dir.path, "wait", "web", "atlas", "--for", goal, "--timeout", "90s", "--json")
    assert hopeless.returncode == Exit.NOT_WELL
    assert [found["name"] for found in json.loads(hopeless.stdout)["waited"]] == ["atlas"]
    assert f"cannot become {goal} by waiting: web is EXITED (ended on purpose); see cdnctl why" in hopeless.stderr


def test_what_is_started_again_is_waited_for(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its end and its next start it is EXITED, too."""
    monkeypatch.setattr(questions, "SETTLE_S", 3600.0)  # however slow this machine is
    monkeypatch.setenv("CDN_RUN_DIR", str(run_dir.path))
    with FakeAtlas(run_dir, [ATLAS, ENDED]) as atlas:

        def start_again() -> None:
            until(lambda: len(atlas.requests) > 2, what="it has seen that it ended")
            atlas.services = (ATLAS, view("web"))

        again = threading.Thread(target=start_again)
        again.start()
        assert main(["wait", "web", "--timeout", "90s"]) == Exit.OK
        again.join()


def subprocess_of(run_dir: RunDir, *arguments: str) -> subprocess.Popen[str]:
    """cdnctl, still running."""
    from tests.cli.support import CDNCTL
    from tests.support import environment

    return subprocess.Popen(
        [str(CDNCTL), *arguments], env=environment(run_dir.path), cwd=run_dir.path, stdout=subprocess.PIPE, text=True
    )


# -- without ATLAS ----------------------------------------------------------------------------------------

HEEDING = (
    "import signal, time\n"
    "signal.signal(signal.SIGHUP, lambda *_: print('heeded', flush=True))\n"
    "print('there', flush=True)\n"
    "while True: time.sleep(0.05)"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisord]:
    """A supervisord with the warden, and no ATLAS, for all of these."""
    from tests.support import short_dir

    with short_dir() as path:
        (path / "heeding.py").write_text(HEEDING)
        programs = {
            "one": {"command": "sleep 1000"},
            "two": {"command": "sleep 1000"},
            "three": {"command": "sh -c 'exit 3'", "autostart": "false", "restart_budget": "1"},
            "brief": {"command": "sh -c 'sleep 0.1; exit 3'", "autostart": "false", "autorestart": "false"},
            "job": {"command": "sh -c 'sleep 0.1'", "autostart": "false"},
            "heeding": {"command": f"{sys.executable} {path / 'heeding.py'}"},
        }
        with Supervisord(path, programs) as supervisord:
            until(lambda: "there" in supervisord.log("heeding"))
            yield supervisord


def service(supervisord: Supervisord, name: str) -> dict[str, Any]:
    """Its line of the status."""
    return services_of(cdnctl(supervisord.run_dir, "status", "--json", name))[name]


def test_disable_lasts_until_enable(shared: Supervisord) -> None:
    """It ends, is refused to whoever starts it, and comes back when it is enabled."""
    assert cdnctl(shared.run_dir, "disable", "one").returncode == Exit.OK
    until(lambda: service(shared, "one")["state"] == "STOPPED")
    assert service(shared, "one")["enabled"] is False
    refused = cdnctl(shared.run_dir, "start", "one", "--timeout", "10s")
    assert refused.returncode == Exit.FAILED
    assert "cdnctl enable one" in refused.stdout + refused.stderr
    assert cdnctl(shared.run_dir, "enable", "one").returncode == Exit.OK
    until(lambda: service(shared, "one")["state"] == "RUNNING")


def test_maintenance(shared: Supervisord) -> None:
    """It is shown until it is over."""
    assert cdnctl(shared.run_dir, "maintenance", "one", "--on", "--for", "1h").returncode == Exit.OK
    assert service(shared, "one")["maintenance"] is True
    wide = cdnctl(shared.run_dir, "status", "-o", "wide", "one")
    assert "maintenance" in wide.stdout
    assert cdnctl(shared.run_dir, "maintenance", "one", "--off").returncode == Exit.OK
    assert service(shared, "one")["maintenance"] is False


def test_signal_and_reload(shared: Supervisord) -> None:
    """A signal arrives; SIGHUP is not sent to what would die of it."""
    assert cdnctl(shared.run_dir, "reload", "heeding").returncode == Exit.OK
    until(lambda: "heeded" in shared.log("heeding"))
    before = shared.pid("two")
    refused = cdnctl(shared.run_dir, "reload", "two", "heeding")
    assert refused.returncode == Exit.FAILED
    assert "cannot reload two: it would die of SIGHUP; use: cdnctl restart two" in refused.stderr
    assert shared.pid("two") == before
    assert cdnctl(shared.run_dir, "kill", "two", "-s", "KILL").returncode == Exit.OK
    until(lambda: shared.pid("two") not in (0, before))


def test_what_was_given_up_is_forgotten(shared: Supervisord) -> None:
    """FATAL becomes STOPPED."""
    cdnctl(shared.run_dir, "start", "three", "--no-wait")
    until(lambda: service(shared, "three")["state"] == "FATAL", within_s=60)
    assert cdnctl(shared.run_dir, "is-failed", "three").returncode == Exit.OK
    assert cdnctl(shared.run_dir, "reset-failed", "three").returncode == Exit.OK
    three = service(shared, "three")
    assert three["state"] == "STOPPED"
    assert "its failures are forgotten, by " in three["reason"]
    assert "stopped by" not in three["reason"]


def test_what_ends_again_at_once_was_not_started(shared: Supervisord) -> None:
    """Of a program that cannot say that it is ready, a second look tells."""
    failed = cdnctl(shared.run_dir, "start", "brief")
    assert failed.returncode == Exit.FAILED
    assert "brief not started: " in failed.stdout
    assert "exit 3" in failed.stdout
    done = cdnctl(shared.run_dir, "start", "job")
    assert done.returncode == Exit.OK, done.stdout
    assert done.stdout.endswith(" s: it has ended since, with exit code 0\n")


def test_wait_goes_on_while_atlas_comes_and_goes(shared: Supervisord) -> None:
    """Each change is said once; what is waited for is seen by whoever answers."""
    run_dir = RunDir(shared.run_dir)
    command = [str(CDNCTL), "wait", "two", "--for", "stopped", "--timeout", "90s"]
    with subprocess.Popen(
        command, env=environment(shared.run_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        silent = "cdnctl: no answer from ATLAS within 1.0 s; asking supervisord\n"
        assert waiting.stderr.readline() == silent
        with FakeAtlas(run_dir, [ATLAS, plain("two")]):
            assert waiting.stderr.readline() == "cdnctl: ATLAS answers again\n"
        assert waiting.stderr.readline() == silent
        assert cdnctl(shared.run_dir, "stop", "two").returncode == Exit.OK
        assert waiting.stdout.read().startswith("two stopped after ")
        assert waiting.stderr.read() == ""
    assert waiting.returncode == Exit.OK
    assert cdnctl(shared.run_dir, "start", "two").returncode == Exit.OK


def test_rolling_without_atlas(shared: Supervisord) -> None:
    """One after the other, and none after the first failure."""
    before = {name: shared.pid(name) for name in ("one", "two")}
    done = cdnctl(shared.run_dir, "restart", "one", "two", "--rolling", "--json")
    assert done.returncode == Exit.OK, done.stderr
    assert all(shared.pid(name) not in (0, pid) for name, pid in before.items())
    held = shared.pid("two")
    failed = cdnctl(shared.run_dir, "restart", "three", "two", "--rolling", "--timeout", "20s", "--json")
    outcomes = outcomes_of(failed)
    assert failed.returncode in (Exit.FAILED, Exit.TIMED_OUT)
    assert outcomes["two"]["outcome"] == "rejected"
    assert outcomes["two"]["reason"].startswith("not tried: three ")
    assert shared.pid("two") == held


def test_scale_without_atlas(shared: Supervisord) -> None:
    """The warden does it; nobody waits for the instances, and that is said."""
    done = cdnctl(shared.run_dir, "scale", "one", "2")
    assert done.returncode == Exit.OK, done.stderr
    assert "cdnctl status shows" in done.stdout
    until(lambda: "one-2" in services_of(cdnctl(shared.run_dir, "status", "--json")))
    assert cdnctl(shared.run_dir, "scale", "one", "1").returncode == Exit.OK
    until(lambda: "one-2" not in services_of(cdnctl(shared.run_dir, "status", "--json")))


def test_without_a_warden_too(run_dir: RunDir) -> None:
    """A stock supervisord sends signals, and says what it cannot do."""
    with Supervisord(run_dir.path, {"one": {"command": "sleep 1000"}}, warden=False) as stock:
        before = stock.pid("one")
        assert cdnctl(run_dir.path, "kill", "one", "-s", "KILL").returncode == Exit.OK
        until(lambda: stock.pid("one") not in (0, before))
        refused = cdnctl(run_dir.path, "disable", "one")
    assert refused.returncode == Exit.FAILED
    assert "one not disabled: supervisord runs without the warden, which alone can disable" in refused.stdout
