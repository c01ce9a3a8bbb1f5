"""What cdnctl does on a terminal, and that it leaves the terminal as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.endpoints import RunDir
from bus.messages import Event, HealthStatus, OrderAccepted, OrderProgress, OrderRequest
from cli.exits import Exit
from cli.progress import Mark, fold
from tests.cli.fake_atlas import FakeAtlas, Replies
from tests.cli.support import CDNCTL, cdnctl, view
from tests.support import environment, until

FLEET = [view("atlas", uptime_s=100.0), view("web", health=HealthStatus.UNHEALTHY, reason="its store is gone " * 8)]
HAPPENED = Event(
    id="e", source="atlas", incarnation=1, seq=1, time_s=1.0, host="h", instance="web", kind="state", text="up"
)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Screen:
    """A process on a pseudo-terminal, and all that it wrote there."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, modes_before: list[Any]) -> None:
        self.process = process
        self.master = master
        self.modes_before = modes_before
        """As they were before the process could change them."""
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                return
            if not part:
                return
            self._written += part

    @property
    def text(self) -> str:
        """So far."""
        return self._written.decode()

    def type(self, keys: str) -> None:
        """As somebody who sits there."""
        os.write(self.master, keys.encode())

    def modes(self) -> list[Any]:
        """How the terminal treats what is typed, without the characters."""
        return termios.tcgetattr(self.master)[:4]

    def resize(self, columns: int, lines: int) -> None:
        """The window is another size now; the kernel tells the process."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def ended(self) -> int:
        """The exit code, once it has ended and all is read."""
        code = self.process.wait(30)
        self._reader.join(30)
        return code


@contextmanager
def terminal(
    run_dir: RunDir,
    *arguments: str,
    columns: int = 100,
    env: Mapping[str, str] | None = None,
    session: bool = False,
) -> Iterator[Screen]:
    """cdnctl with a terminal for stdin, stdout and stderr; with a session, Ctrl-C is a signal to it, too."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    plain = {key: value for key, value in environment(run_dir.path).items() if key != "NO_COLOR"}
    modes_before = termios.tcgetattr(master)[:4]
    process = subprocess.Popen(
        [str(CDNCTL), *arguments],
        env={**plain, "TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})},
        cwd=run_dir.path,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=session,
        # A group of its own, as a shell gives it: in one whose leader's parent is of another session Ctrl-Z is ignored.
        process_group=None if session else 0,
        preexec_fn=(lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0)) if session else None,
    )
    os.close(slave)
    screen = Screen(process, master, modes_before)
    try:
        yield screen
    finally:
        process.kill()
        screen.ended()
        os.close(master)


def test_a_terminal_has_colours_and_a_pipe_has_none(run_dir: RunDir) -> None:
    """NO_COLOR is respected, and so is a terminal that is dumb."""
    with FakeAtlas(run_dir, FLEET):
        cases: list[tuple[dict[str, str], bool]] = [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
        for env, coloured in cases:
            with terminal(run_dir, "status", env=env) as screen:
                assert screen.ended() == Exit.NOT_WELL
                assert ("\x1b[" in screen.text) is coloured, env
        piped = cdnctl(run_dir.path, "status")
    assert "\x1b" not in piped.stdout
    assert FLEET[1].reason.strip() in piped.stdout


@pytest.mark.parametrize("columns", [100, 130, 200])
def test_a_table_is_as_wide_as_its_terminal(run_dir: RunDir, columns: int) -> None:
    """A long reason wraps; nothing of it is lost."""
    with FakeAtlas(run_dir, FLEET), terminal(run_dir, "status", columns=columns, env={"NO_COLOR": "1"}) as screen:
        screen.ended()
    assert max(map(len, screen.text.splitlines())) <= columns
    assert " ".join(screen.text.split()).count("its store is gone") + screen.text.count("its\r\n") >= 1
    assert screen.text.split().count("gone") == 8


def draining(request: OrderRequest) -> Replies:
    """An order that never ends."""
    return [
        OrderAccepted(id=request.id, commands={}),
        OrderProgress(id=request.id, name="web", text="draining"),
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, 143)])
def test_the_terminal_is_restored_however_it_ends(run_dir: RunDir, number: signal.Signals, code: int) -> None:
    """While it waits it shows where things stand; afterwards the display is gone and the cursor is back."""
    with FakeAtlas(run_dir, FLEET, order=draining), terminal(run_dir, "restart", "web") as screen:
        until(lambda: "draining" in screen.text, what="the display")
        assert HIDE in screen.text
        screen.process.send_signal(number)
        assert screen.ended() == code
        assert screen.text.rindex(SHOW) > screen.text.rindex(HIDE)


def test_what_is_quick_shows_no_display(run_dir: RunDir) -> None:
    """Only the outcome; and rich is not even imported."""
    with FakeAtlas(run_dir, FLEET), terminal(run_dir, "restart", "web", env={"NO_COLOR": "1"}) as screen:
        assert screen.ended() == Exit.OK
    assert screen.text == "web restarted in 0.20 s\r\n"


def test_another_encoding_breaks_nothing(run_dir: RunDir) -> None:
    """What does not fit is escaped."""
    with FakeAtlas(run_dir, [view("atlas", uptime_s=9.0, reason="#1 → #2")]):
        done = cdnctl(run_dir.path, "status", env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == Exit.OK, done.stderr
    assert "#1 \\u2192 #2" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["logs", "web", "-n", "200000"],
        ["logs", "web", "-f", "-n", "200000"],
        ["logs", "web", "-f", "-n", "5"],  # nothing is written any more: it is seen all the same
        ["events", "-f"],
    ],
)
def test_a_reader_that_leaves_ends_it_quietly(run_dir: RunDir, arguments: list[str]) -> None:
    """`cdnctl logs -f … | head -1` ends as other programs do there, with nothing on stderr."""
    (run_dir.path / "web.log").write_text(("line " * 20 + "\n") * 200_000)
    with (
        FakeAtlas(run_dir, FLEET, events=[HAPPENED]),
        subprocess.Popen(
            [str(CDNCTL), *arguments],
            env=environment(run_dir.path),
            cwd=run_dir.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == Exit.READER_GONE
    assert [line for line in said.splitlines() if "showing the logs that are there" not in line] == []


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["events"], ["logs", "web"], ["--help"]])
def test_output_that_cannot_be_written_is_told(run_dir: RunDir, arguments: list[str]) -> None:
    """In one line, exit 1: a full disk is no reason for a traceback."""
    (run_dir.path / "web.log").write_text("line\n")
    with FakeAtlas(run_dir, FLEET, events=[HAPPENED]), open("/dev/full", "wb") as full:
        done = subprocess.run(
            [str(CDNCTL), *arguments],
            env=environment(run_dir.path),
            cwd=run_dir.path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = [line for line in done.stderr.splitlines() if "showing the logs that are there" not in line]
    assert done.returncode == Exit.FAILED
    assert len(said) == 1
    assert "No space left on device" in said[0]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_nobody_has_to_listen(run_dir: RunDir, closed: str) -> None:
    """Without stdout or stderr, as from some schedulers, an order is carried out all the same."""
    with FakeAtlas(run_dir, FLEET) as atlas:
        for arguments in ("restart web", "events", "status atlas"):
            done = subprocess.run(
                ["sh", "-c", f"exec {CDNCTL} {arguments} {closed}"],
                env=environment(run_dir.path),
                cwd=run_dir.path,
                capture_output=True,
                text=True,
            )
            assert (done.returncode, "Traceback" in done.stderr) == (Exit.OK, False), done.stderr
        assert any(isinstance(request, OrderRequest) for request in atlas.requests)


@given(st.lists(st.sampled_from(Mark), min_size=1, max_size=40), st.integers(1, 30))
def test_rows_that_do_not_fit_are_counted(marks: list[Mark], room: int) -> None:
    """What failed stays longest, then what is waited for; the order is kept and every row is accounted for."""
    names = [f"s{n}" for n in range(len(marks))]
    of = dict(zip(names, marks, strict=True))
    shown, rest = fold(names, of, room)
    assert shown == [name for name in names if name in shown]
    assert len(shown) == min(room, len(names))
    assert sum(int(word) for word in rest.replace(",", "").split() if word.isdigit()) == len(names) - len(shown)
    if any(of[name] is Mark.DONE for name in shown):
        assert not any(of[name] is not Mark.DONE for name in names if name not in shown)
