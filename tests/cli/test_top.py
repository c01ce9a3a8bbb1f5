"""cdnctl top: its picture as values, its terminal as it was afterwards, and both in a terminal of tmux's."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.endpoints import RunDir
from bus.messages import HealthStatus, OrderRequest, ProcessState, ServiceView, Verb
from cli.exits import Exit
from cli.fullscreen import decoded
from cli.live import KEYS, SORTS, Act, Key, Top, Trails, cut, frame, press, shown
from cli.rendering import Screen, columns
from tests.cli.fake_atlas import FakeAtlas
from tests.cli.support import CDNCTL, cdnctl, plain, view
from tests.cli.test_terminal import terminal
from tests.support import environment, is_running, until

ALTERNATE, BACK = "\x1b[?1049h", "\x1b[?1049l"
FLEET = [
    view("atlas", uptime_s=100.0, cpu_cores=0.5),
    view("db", cpu_cores=0.9, health=HealthStatus.DEGRADED, reason="slow disk"),
    plain("job", state=ProcessState.FATAL, pid=None, reason="gave up"),
    view("web", cpu_cores=0.1),
]
NAMES = [found.instance for found in FLEET]
ASKED = Act("order", "db", Verb.RESTART)


@pytest.mark.parametrize(
    ("before", "key", "after", "act"),
    [
        (Top(), "q", Top(), Act("quit")),
        (Top(), Key.DOWN, Top(chosen="db"), None),
        (Top(chosen="db"), "k", Top(chosen="atlas"), None),
        (Top(chosen="atlas"), Key.UP, Top(chosen="atlas"), None),
        (Top(), Key.END, Top(chosen="web"), None),
        (Top(chosen="web"), Key.PAGE_UP, Top(chosen="db"), None),
        (Top(chosen="gone"), "j", Top(chosen="db"), None),
        (Top(), "s", Top(sort="cpu"), None),
        (Top(sort=SORTS[-1], is_turned=True), "s", Top(), None),
        (Top(), "S", Top(is_turned=True), None),
        (Top(), " ", Top(held=True), None),
        (Top(), "/", Top(is_typing=True), None),
        (Top(is_typing=True), "q", Top(is_typing=True, filter="q"), None),
        (Top(is_typing=True, filter="qu"), Key.BACKSPACE, Top(is_typing=True, filter="q"), None),
        (Top(is_typing=True, filter="qu"), Key.ENTER, Top(filter="qu"), None),
        (Top(is_typing=True, filter="qu"), Key.ESCAPE, Top(), None),
        (Top(filter="qu"), Key.ESCAPE, Top(), None),
        (Top(chosen="db"), "r", Top(chosen="db", asked=ASKED), None),
        (Top(chosen="db", asked=ASKED), "y", Top(chosen="db"), ASKED),
        (Top(chosen="db", asked=ASKED), Key.ENTER, Top(chosen="db", message="nothing is done"), None),
        (Top(chosen="db", asked=ASKED), "q", Top(chosen="db", message="nothing is done"), None),
        (Top(chosen="db"), "d", Top(chosen="db", asked=Act("order", "db", Verb.STOP)), None),
        (Top(chosen="db"), "u", Top(chosen="db", asked=Act("order", "db", Verb.START)), None),
        (Top(), "w", Top(chosen="atlas"), Act("why", "atlas")),
        (Top(), "?", Top(page=KEYS), None),
        (Top(page=("a", "b", "c", "d")), Key.DOWN, Top(page=("a", "b", "c", "d"), scrolled=1), None),
        (Top(page=("a", "b", "c", "d")), Key.PAGE_DOWN, Top(page=("a", "b", "c", "d"), scrolled=2), None),
        (Top(page=("a",), scrolled=1), "q", Top(), None),
        (Top(message="old"), "x", Top(), None),
    ],
)
def test_what_a_key_does(before: Top, key: str, after: Top, act: Act | None) -> None:
    """An order is asked about first, and only y is a yes."""
    assert press(before, key, NAMES, 2) == (after, act)


@given(st.lists(st.one_of(st.sampled_from(Key), st.characters(codec="utf-8")), max_size=40), st.booleans())
def test_no_keys_order_without_a_yes(keys: list[str], is_empty: bool) -> None:
    """Whatever is typed: an order follows its question and a y, and is about what the bar was on."""
    top, names = Top(), [] if is_empty else NAMES
    for key in keys:
        before = top
        top, act = press(top, key, names, 3)
        if act is not None and act.what == "order":
            assert before.asked == act
            assert key in ("y", "Y")
        assert top.chosen in ("", *names)
        assert 0 <= top.scrolled <= max(0, len(top.page))


@pytest.mark.parametrize(
    ("wanted", "names"),
    [("", NAMES), ("w", ["web"]), ("*b", ["db", "web", "job"]), ("fatal", ["job"]), ("degraded", ["db"]), ("zzz", [])],
)
def test_the_filter(wanted: str, names: list[str]) -> None:
    """A part of a name, a glob, or a state."""
    assert {found.instance for found in shown(Top(filter=wanted), FLEET)} == set(names)


def test_the_order_of_rows() -> None:
    """The largest first; turned, the smallest; what is unknown last."""
    assert [found.instance for found in shown(Top(sort="cpu"), FLEET)] == ["db", "atlas", "web", "job"]
    assert [found.instance for found in shown(Top(sort="cpu", is_turned=True), FLEET)] == ["web", "atlas", "db", "job"]


@given(
    st.integers(1, 220),
    st.integers(2, 60),
    st.lists(st.text(max_size=30), max_size=30),
    st.sampled_from(
        [Top(), Top(is_typing=True, filter="e"), Top(page=KEYS), Top(asked=ASKED), Top(message="漢字" * 60)]
    ),
    st.booleans(),
)
def test_a_frame_fits_its_terminal(width: int, height: int, reasons: list[str], top: Top, colour: bool) -> None:
    """Exactly as many lines as there are, none wider, whatever services say of themselves."""
    views: list[ServiceView] = [view(f"s{n}", reason=reason) for n, reason in enumerate(reasons)]
    trails = Trails()
    for _ in range(3):
        trails.add(views)
    lines = frame(top, views, trails, "", "12:00:00", Screen(width, colour), height)
    assert len(lines) == height
    for line in lines:
        plainly = re.sub(r"\x1b\[\d*m", "", line)
        assert columns(plainly) <= width
        assert not any(ord(c) < 32 for c in plainly)


def test_the_bar_stays_in_sight() -> None:
    """Of more services than fit, those around the chosen one are shown, in reverse."""
    views = [view(f"s{n:03}") for n in range(500)]
    lines = frame(Top(chosen="s250"), views, Trails(), "", "12:00:00", Screen(100), 20)
    (bar,) = (line for line in lines if "\x1b[7m" in line)
    assert "s250" in bar


@given(st.text(), st.integers(0, 50))
def test_what_is_cut_says_so(text: str, width: int) -> None:
    """And what fits stays whole."""
    kept = cut(text, width)
    assert columns(kept) <= max(width, 0) or not text
    assert kept == text or kept.endswith("…") or width == 0


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"q", ["q"]),
        (b"jk", ["j", "k"]),
        (b"\x1b[A\x1bOB\x1b[5~\r\x7f", [Key.UP, Key.DOWN, Key.PAGE_UP, Key.ENTER, Key.BACKSPACE]),
        (b"\x1b", [Key.ESCAPE]),
        (b"\x1b\x1b[A", [Key.ESCAPE, Key.UP]),
        ("é漢".encode(), ["é", "漢"]),
        (b"\x1b[1;5Cx", ["x"]),
        (b"\xff\x00a", ["a"]),
    ],
)
def test_keys(typed: bytes, keys: list[str]) -> None:
    """As terminals send them; what is none is passed over."""
    assert decoded(typed) == keys


@given(st.binary(max_size=50))
def test_any_bytes_are_keys_or_nothing(typed: bytes) -> None:
    """Nothing that is typed or pasted breaks it."""
    assert all(key in list(Key) or key.isprintable() for key in decoded(typed))


# -- in a terminal ----------------------------------------------------------------------------------------


def type_q(screen: Any) -> None:
    """Leave."""
    screen.type("q")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (type_q, Exit.OK),
        (lambda screen: screen.type("\x03"), Exit.INTERRUPTED),
        (lambda screen: screen.process.send_signal(signal.SIGTERM), 143),
        (lambda screen: screen.process.send_signal(signal.SIGHUP), 129),
    ],
    ids=["q", "ctrl-c", "sigterm", "sighup"],
)
def test_the_terminal_is_as_it_was(run_dir: RunDir, end: Callable[[Any], None], code: int) -> None:
    """However it ends: the screen, the cursor, echo and lines."""
    with FakeAtlas(run_dir, FLEET), terminal(run_dir, "top", session=True) as screen:
        until(lambda: "q quit" in screen.text, what="a frame")
        assert ALTERNATE in screen.text
        assert screen.modes() != screen.modes_before
        end(screen)
        assert screen.ended() == code
        assert screen.text.rindex(BACK) > screen.text.rindex(ALTERNATE)
        assert screen.text.rindex("\x1b[?25h") > screen.text.rindex("\x1b[?25l")
        assert screen.modes() == screen.modes_before


def test_it_lets_go_while_it_is_stopped(run_dir: RunDir) -> None:
    """Ctrl-Z gives the terminal back, and fg takes it again."""
    with FakeAtlas(run_dir, FLEET), terminal(run_dir, "top") as screen:
        until(lambda: "q quit" in screen.text, what="a frame")
        screen.process.send_signal(signal.SIGTSTP)
        until(lambda: state(screen.process.pid) == "T", what="it is stopped")
        assert screen.modes() == screen.modes_before
        until(lambda: screen.text.rfind(BACK) > screen.text.rfind(ALTERNATE), what="the screen as it was before")
        screen.process.send_signal(signal.SIGCONT)
        until(lambda: screen.text.rindex(ALTERNATE) > screen.text.rindex(BACK), what="it goes on")
        until(lambda: "q quit" in screen.text[screen.text.rindex(ALTERNATE) :], what="a frame")
        screen.type("q")
        assert screen.ended() == Exit.OK
        assert screen.modes() == screen.modes_before


def state(pid: int) -> str:
    """One letter of proc(5)."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_it_goes_on_without_anybody_to_ask(run_dir: RunDir) -> None:
    """The picture stays, with a word on it, until somebody answers again."""
    with terminal_of_top(run_dir) as screen:
        until(lambda: "no fleet runs" in screen.text, what="it is told")
        with FakeAtlas(run_dir, [view("again")]):
            until(lambda: "again" in screen.text, what="it is back")
        screen.type("q")
        assert screen.ended() == Exit.OK


@contextmanager
def terminal_of_top(run_dir: RunDir) -> Iterator[Any]:
    """top, whose ATLAS has gone after the first frame."""
    with ExitStack() as stack:
        with FakeAtlas(run_dir, FLEET):
            screen = stack.enter_context(terminal(run_dir, "top", "--delay", "100ms"))
            until(lambda: "q quit" in screen.text, what="a frame")
        yield screen


def test_a_script_is_told_what_to_use(run_dir: RunDir) -> None:
    """Without a terminal there is nothing to draw on."""
    with FakeAtlas(run_dir, FLEET):
        done = cdnctl(run_dir.path, "top")
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert "cdnctl status --watch" in done.stderr


def test_there_has_to_be_a_fleet(run_dir: RunDir) -> None:
    """Told on the terminal as it is, not on one that is gone at once."""
    with terminal(run_dir, "top") as screen:
        assert screen.ended() == Exit.UNKNOWN
    assert "no fleet runs" in screen.text
    assert ALTERNATE not in screen.text


def test_an_order_from_the_keyboard(run_dir: RunDir) -> None:
    """r asks, y orders, and the outcome is shown; why is a page of its own."""
    with FakeAtlas(run_dir, FLEET) as atlas, terminal(run_dir, "top", "web") as screen:
        until(lambda: "q quit" in screen.text, what="a frame")
        screen.type("r")
        until(lambda: "restart web? y or n" in screen.text, what="the question")
        assert not any(isinstance(request, OrderRequest) for request in atlas.requests)
        screen.type("y")
        until(lambda: "web restarted in 0.20 s" in screen.text, what="the outcome")
        screen.type("w")
        until(lambda: "what to do" in screen.text, what="why")
        screen.type("xq")
        assert screen.ended() == Exit.OK
    (order,) = (request for request in atlas.requests if isinstance(request, OrderRequest))
    assert (order.verb, order.names) == (Verb.RESTART, ("web",))


# -- in tmux ----------------------------------------------------------------------------------------------


class Tmux:
    """A tmux server of its own, with one window in which cdnctl top runs."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    def run(self, *arguments: str) -> str:
        """One tmux command."""
        env = {**environment(self._run_dir.path), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        command = ["tmux", "-f", "/dev/null", "-S", str(self._run_dir.path / "tmux"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=30).stdout

    def picture(self) -> list[str]:
        """What is on the screen."""
        return self.run("capture-pane", "-p", "-t", "top").splitlines()

    def shows(self, text: str) -> None:
        """Wait until that is on the screen."""
        until(lambda: any(text in line for line in self.picture()), what=f"{text!r} on the screen")


@pytest.fixture
def tmux(run_dir: RunDir) -> Iterator[Tmux]:
    """Ended, by itself or not, with all that runs in it."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed: apt-get install tmux")
    server = Tmux(run_dir)
    try:
        yield server
    finally:
        pid = int(server.run("display-message", "-p", "-t", "top", "#{pid}"))
        server.run("kill-server")
        until(lambda: not is_running(pid), what="tmux has ended")


def test_in_a_real_terminal(run_dir: RunDir, tmux: Tmux) -> None:
    """A frame as a person sees it; a narrower window has fewer columns and no remains; the shell is back at the end."""
    with FakeAtlas(run_dir, FLEET):
        tmux.run("new-session", "-d", "-s", "top", "-x", "130", "-y", "20", "sh", "-c", f"{CDNCTL} top; echo left; cat")
        tmux.shows("q quit")
        picture = tmux.picture()
        assert "3 running, 1 fatal; 1 degraded" in picture[0]
        assert picture[2].split() == ["NAME", "STATE", "HEALTH", "CPU", "MEM", "LAG", "UPTIME", "RESTARTS", "REASON"]
        assert [line.split()[0] for line in picture[3:7]] == NAMES
        assert "slow disk" in picture[4]
        tmux.run("send-keys", "-t", "top", "s")
        tmux.shows("sorted by cpu")
        assert [line.split()[0] for line in tmux.picture()[3:7]] == ["db", "atlas", "web", "job"]
        tmux.run("resize-window", "-t", "top", "-x", "56", "-y", "9")
        until(lambda: tmux.picture()[2].split() == ["NAME", "STATE", "HEALTH", "CPU", "MEM"], what="it is narrower")
        tmux.run("send-keys", "-t", "top", "/", "fatal", "Enter")
        tmux.shows("filter /fatal (1 of 4)")
        assert [line.split()[0] for line in tmux.picture()[3:6] if line] == ["job"]
        tmux.run("send-keys", "-t", "top", "q")
        tmux.shows("left")
        assert not any("q quit" in line for line in tmux.picture())


def test_status_can_be_watched(run_dir: RunDir) -> None:
    """Again and again, on the same place of a terminal; until Ctrl-C, which leaves the last picture."""
    with FakeAtlas(run_dir, FLEET), terminal(run_dir, "status", "--watch", "--interval", "50ms") as screen:
        until(lambda: screen.text.count("3 running, 1 fatal") >= 3, what="three pictures")
        assert screen.text.count("\x1b[H\x1b[J") >= 3
        os.kill(screen.process.pid, signal.SIGINT)
        assert screen.ended() == Exit.INTERRUPTED
