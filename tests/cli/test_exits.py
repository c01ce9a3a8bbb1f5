"""Every exit code of every command in every output format: one table, held against what each help text promises."""

from __future__ import annotations

import gc
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import msgspec
import pytest
from msgspec.structs import replace

from bus.endpoints import RunDir, prepare
from bus.messages import (
    DaemonStatus,
    HealthStatus,
    OrderAccepted,
    OrderOutcome,
    OrderRequest,
    OutcomeKind,
    ProcessState,
)
from cli.exits import Exit
from cli.main import COMMANDS, main
from cli.main import cdnctl as group
from tests.cli.fake_atlas import FakeAtlas, Replies
from tests.cli.support import plain, view
from tests.support import short_dir

FLEET = [
    view("atlas", uptime_s=100.0),
    view("good"),
    view("bad"),
    view("late"),
    view("ill", health=HealthStatus.DEGRADED),
    plain("down", state=ProcessState.STOPPED, pid=None),
    plain("given-up", state=ProcessState.FATAL, pid=None),
]
KINDS = {"bad": OutcomeKind.FAILED, "late": OutcomeKind.UNKNOWN}

ORDERS = {
    "start": "",
    "stop": "",
    "restart": "",
    "reload": "",
    "signal": "",
    "enable": "",
    "disable": "",
    "reset-failed": "",
    "maintenance": "--on",
    "shed": "",
    "resume": "",
    "scale": "2",
}
"""Those that take a name, with what else they need."""

TABLE: list[tuple[str, int]] = [
    *((f"{verb} {name} {more}", code) for verb, more in ORDERS.items()
      for name, code in (("good", 0), ("bad", 1), ("late", 124), ("nope", 4))),
    *((f"{verb} {name}", code) for verb in ("status", "describe")
      for name, code in (("good", 0), ("ill", 3), ("down", 3), ("nope", 4))),
    ("why good", 0),
    ("why nope", 4),
    ("events", 0),
    ("events -n 0 good", 0),
    ("history good", 0),
    ("history nope", 4),
    ("logs good", 0),
    ("logs nope", 4),
    ("wait good --timeout 10s", 0),
    ("wait down --timeout 50ms", 124),
    ("wait good given-up --timeout 60s", 3),
    ("is-active good ill", 0),
    ("is-active good down", 3),
    ("is-active nope", 4),
    ("is-failed good given-up", 0),
    ("is-failed good down", 3),
    ("is-failed nope", 4),
    ("limits good", 0),
    ("limits nope", 4),
    ("limits good --set fds.hard=900", 0),
    ("limits bad --set fds.hard=900", 1),
    ("limits late --set fds.hard=900", 124),
    ("ooda good", 0),
    ("ooda nope", 4),
    ("ooda good --mode off", 0),
    ("ooda bad --mode off", 1),
    ("ooda late --mode off", 124),
    ("version", 0),
    ("completion bash", 0),
    ("doctor", 3),
    ("init {new}", 0),
    ("init {old}", 1),
    ("up -c {old}/nothing.conf", 1),
]  # fmt: skip
WITHOUT_A_FLEET = [
    *((f"{verb} good {more}", 1) for verb, more in ORDERS.items()),
    *((f"{verb} good", 4) for verb in ("status", "describe", "why", "events", "history", "logs", "wait", "is-active")),
    *((f"{verb} good", 4) for verb in ("is-failed", "limits", "ooda")),
    ("down", 0),
    ("doctor", 3),
]
ELSEWHERE = {
    "up": {0},  # tests/cli/test_up_down.py
    "down": {0, 1, 124},  # the same
    "doctor": {0},  # tests/cli/test_doctor.py
    "top": {0, 2, 4, 130},  # tests/cli/test_top.py
    "demo": {0, 1, 130},  # tests/cli/test_demo.py
}


def obey(request: OrderRequest) -> Replies:
    """Each name ends as it is called."""
    outcomes = (
        OrderOutcome(id=request.id, name=name, kind=KINDS.get(name, OutcomeKind.DONE), reason="so", took_s=0.1)
        for name in request.names
    )
    return [OrderAccepted(id=request.id, commands=dict.fromkeys(request.names, "c")), *outcomes]


class Page(BaseHTTPRequestHandler):
    """What cdnctl reads by HTTP: a status of ATLAS, a control loop of a service."""

    def do_GET(self) -> None:
        """The path's last part is the instance, or the loop."""
        name = self.path.rpartition("/")[2]
        status = DaemonStatus(
            service=name,
            instance=name,
            host="h",
            incarnation=3,
            seq=1,
            pid=7,
            time_s=1.0,
            monotonic_s=1.0,
            uptime_s=1.0,
        )
        body = msgspec.json.encode({} if name == "ooda" else {"status": status})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: stderr is looked at."""


def forms(name: str) -> list[str]:
    """What -o of a command takes; a command without -o has one form."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    for option in command.params:
        if option.name == "output_format" and isinstance(option.type, click.Choice):
            return [str(choice) for choice in option.type.choices]
    return [""]


@pytest.fixture(autouse=True)
def goes_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """cdnctl tells the garbage collector that it is about to end, and may give up stdout; this process does not."""
    monkeypatch.setattr("cli.main._forget_stdout", lambda: None)
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="module")
def answering() -> Iterator[Path]:
    """A run directory with an ATLAS that answers, by HTTP, too."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with short_dir() as path:
        run_dir = prepare(RunDir(path))
        (path / "good.log").write_text("a line\n")
        with FakeAtlas(run_dir, [replace(each, address=address) for each in FLEET], order=obey):
            yield path
    server.shutdown()
    thread.join()
    server.server_close()


def check(line: str, code: int, run_path: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run it in every form; each ends with the code, and what is JSON is."""
    for number, form in enumerate(forms(line.split()[0])):
        old = place / f"old{number}"
        old.mkdir()
        (old / "supervisord.conf").write_text("")
        words = line.format(new=place / f"new{number}", old=old).split()
        ended = main([*words, "-o", form] if form else words)
        told = capsys.readouterr()
        assert ended == code, (words, form, told)
        if form == "json" and told.out and words[0] != "logs":  # which has an object a line in either form
            assert json.loads(told.out)["schema_version"] == 1
        if form == "jsonl":
            assert all(isinstance(json.loads(each), dict) for each in told.out.splitlines())
        assert code in (Exit.OK, Exit.NOT_WELL) or told.err or told.out, words


@pytest.mark.parametrize(("line", "code"), TABLE)
def test_the_code_is_that_of_the_help_in_every_form(
    line: str,
    code: int,
    answering: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before an ATLAS that does what it is told, fails or does not know, by the service's name."""
    monkeypatch.setenv("CDN_RUN_DIR", str(answering))
    check(line, code, answering, tmp_path, capsys)


@pytest.mark.parametrize(("line", "code"), WITHOUT_A_FLEET)
def test_without_a_fleet_the_code_is_the_same_in_every_form(
    line: str,
    code: int,
    run_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Orders fail, questions cannot be answered, and what is down is down."""
    monkeypatch.setenv("CDN_RUN_DIR", str(run_path))
    check(line, code, run_path, tmp_path, capsys)


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_usage_is_2_in_every_form(
    name: str, run_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anybody is asked."""
    monkeypatch.setenv("CDN_RUN_DIR", str(run_path))
    for form in forms(name):
        assert main([name, *(["-o", form] if form else []), "--nonsense"]) == Exit.USAGE
        told = capsys.readouterr()
        assert (told.out, "No such option" in told.err) == ("", True), told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_code_that_a_help_names_is_in_the_table(name: str) -> None:
    """And no other; 130 and 141 are the same for all (tests/cli/test_terminal.py), 2 is above."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    promised = {int(code) for code in re.findall(r"(?<!\d)(\d{1,3}) ", _codes(command.help or ""))} - {130}
    shown = {code for line, code in [*TABLE, *WITHOUT_A_FLEET] if line.split()[0] == name} | (
        ELSEWHERE.get(name, set()) - {130}
    )
    assert shown == promised


def _codes(text: str) -> str:
    """The paragraph on exit codes."""
    return " ".join(text.partition("Exit code: ")[2].partition("\n\n")[0].split())
