"""What ATLAS has accepted is not lost: neither by its death at any point, nor by what becomes of the file."""

from __future__ import annotations

import json
import resource
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bus.messages import (
    Accepted,
    Command,
    DaemonStatus,
    Hello,
    NodeStatus,
    OrderAccepted,
    OrderOutcome,
    OrderRequest,
    Outcome,
    OutcomeKind,
    ProcessRow,
    ProcessState,
    Restart,
    RestartProcess,
    SignalProcess,
    StartProcess,
    StopProcess,
    Verb,
)
from services.atlas import journal
from services.atlas.coordinator import Action, CDNCoordinator, Record, ToAgent, ToOperator
from services.atlas.fleet import Fleet
from services.atlas.journal import Book, Entry, Journal, NewerVersion, Stage, line, replay
from tests.atlas.test_fleet import status


def entry(id_: str = "c1", stage: Stage = Stage.ASKED, order: str = "o", **changes: Any) -> Entry:
    """A restart of web-1."""
    request = OrderRequest(id=order, verb=Verb.RESTART, names=("web-1",), timeout_s=5.0, asked_by="me")
    plain: dict[str, Any] = {"turn": 0, "asked_at_s": 1e9, "boot_id": "b", "began_s": 0.1, "deadline_s": 5.1}
    return Entry(id=id_, request=request, stage=stage, **(plain | changes))


def ended(id_: str, **changes: Any) -> Entry:
    """The same, and over."""
    return entry(id_, Stage.ENDED, kind=OutcomeKind.DONE, took_s=0.5, **changes)


# -- lines ------------------------------------------------------------------------------------------------


def test_the_last_line_of_an_id_is_its_truth() -> None:
    """And what is over is listed in the order of its end."""
    lines = [line(entry("c1")), line(entry("c2")), line(ended("c2")), line(entry("c3")), line(ended("c1"))]
    book, corrupt = replay(lines)
    assert (list(book.ended), list(book.open), corrupt) == (["c2", "c1"], ["c3"], 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said[:-5] + b"\n",
        lambda said: said.replace(b'"web-1"', b'"web-2"'),
        lambda said: said.replace(b'"crc32":', b'"crc32":1'),
        lambda said: b"\xff\xfe\n",
        lambda said: b"[" * 100_000 + b"\n",
        lambda said: b"null\n",
        lambda said: b'{"v":1}\n',
    ],
)
def test_a_damaged_line_costs_itself(damage: Any) -> None:
    """It is counted; what stands before and after it holds."""
    book, corrupt = replay([line(entry("c1")), damage(line(entry("c2"))), line(ended("c1"))])
    assert (list(book.ended), list(book.open), corrupt) == (["c1"], [], 1)


def test_a_newer_version_is_not_guessed_at() -> None:
    """Wherever it stands."""
    with pytest.raises(NewerVersion, match="version 2"):
        replay([line(entry("c1")), line(entry("c2")).replace(b'{"v":1', b'{"v":2')])


def test_what_is_over_is_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, with its order; what is open never."""
    monkeypatch.setattr(journal, "ENDED_KEPT", 3)
    book = Book()
    book.put(entry("open", order="first", asked_at_s=9e8))
    for number in range(5):
        book.put(ended(f"c{number}", order=f"o{number}"))
    assert (list(book.ended), list(book.open)) == (["c2", "c3", "c4"], ["open"])
    assert [len(book.order(f"o{number}")) for number in range(5)] == [0, 0, 1, 1, 1]
    assert [each.id for each in book.latest(2)] == ["open", "c4"]


# -- the file -----------------------------------------------------------------------------------------------


def opened(path: Path) -> tuple[Journal, Book]:
    """The journal of an ATLAS that begins."""
    found = Journal(path)
    return found, found.open(0.0)


def test_the_file_outlives_its_writer(tmp_path: Path) -> None:
    """Without a word at the end; it is nobody else's to read."""
    path = tmp_path / "atlas" / "commands.jsonl"
    first, book = opened(path)
    for each in (entry("c1"), entry("c2"), ended("c1")):
        first.append(each)
        book.put(each)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [json.loads(each)["entry"]["id"] for each in path.read_text().splitlines()] == ["c1", "c2", "c1"]
    second, again = opened(path)
    assert again == book
    assert second.problem == ""
    first.close()
    second.close()


@pytest.mark.parametrize("cut_bytes", [1, 40, 200])
def test_a_torn_last_line_was_not_sent_yet(tmp_path: Path, cut_bytes: int) -> None:
    """It is dropped, not counted as damage, and what is written next is whole."""
    path = tmp_path / "commands.jsonl"
    path.write_bytes(line(entry("c1")) + line(entry("c2"))[:-cut_bytes])
    found, book = opened(path)
    assert (list(book.open), found.corrupt) == (["c1"], 0)
    found.append(entry("c3"))
    found.close()
    found, book = opened(path)
    assert (list(book.open), found.corrupt) == (["c1", "c3"], 0)
    found.close()


def test_a_newer_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under a name of its own each time, never overwritten, and the log says so."""
    path = tmp_path / "commands.jsonl"
    for _ in range(2):
        path.write_bytes(line(entry("c1")).replace(b'{"v":1', b'{"v":7'))
        found, book = opened(path)
        found.close()
        assert book == Book()
    kept = sorted(each.name for each in tmp_path.iterdir())
    assert kept == ["commands.jsonl", "commands.jsonl.version-7", "commands.jsonl.version-7-1"]
    assert "it is of version 7, this ATLAS knows 1" in caplog.text


def test_what_is_no_file(tmp_path: Path) -> None:
    """It is set aside too, and commands are written down."""
    path = tmp_path / "commands.jsonl"
    path.mkdir()
    found, book = opened(path)
    found.append(entry("c1"))
    found.close()
    assert (found.problem, book) == ("", Book())
    assert list(opened(path)[1].open) == ["c1"]


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.rename(path.with_name("moved"))])
def test_a_file_that_is_lost_in_use(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    """It is written anew with all there is: what went to a file that nobody finds would be lost with ATLAS."""
    path = tmp_path / "commands.jsonl"
    found, book = opened(path)
    book.put(entry("c1"))
    found.append(entry("c1"))
    lose(path)
    found.tick(book, 1.0)
    book.put(entry("c2"))
    found.append(entry("c2"))
    found.close()
    assert opened(path)[1] == book


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its size it is written anew with what is still listed."""
    monkeypatch.setattr(journal, "MAX_BYTES", 5000)
    monkeypatch.setattr(journal, "ENDED_KEPT", 3)
    path = tmp_path / "commands.jsonl"
    found, book = opened(path)
    for number in range(100):
        book.put(ended(f"c{number}"))
        found.append(ended(f"c{number}"))
        found.tick(book, 0.0)
        assert path.stat().st_size < 6000
    found.close()
    assert opened(path)[1] == book


@contextmanager
def full_disk(max_bytes: int) -> Iterator[None]:
    """No file of this process may become larger: EFBIG, as ENOSPC would be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(tmp_path: Path) -> None:
    """Counted and told; once there is room again, the file has everything."""
    path = tmp_path / "commands.jsonl"
    found, book = opened(path)
    with full_disk(len(line(entry("c1"))) + 100):
        for each in (entry("c1"), entry("c2"), ended("c1")):
            book.put(each)
            found.append(each)
        assert found.lost == 2
        assert found.problem
        found.tick(book, 1.0)
        assert found.problem
        before, cut = opened(path)
        before.close()
        assert list(cut.open) == ["c1"]
    found.tick(book, 2.0)
    assert found.problem == ""
    found.close()
    assert opened(path)[1] == book


# -- any history ----------------------------------------------------------------------------------------


class Process:
    """A service with its daemon: what it is, and what it remembers."""

    def __init__(self, name: str, pids: Iterator[int]) -> None:
        self.name = name
        self._pids = pids
        self.incarnation = 0
        self.pid: int | None = None
        self.was_pid: int | None = None
        self.start()

    def start(self) -> None:
        self.incarnation += 1
        self.pid = self.was_pid = next(self._pids)
        self.seq = 0
        self.memory: dict[str, Accepted | Outcome] = {}

    def stop(self) -> None:
        self.pid = None


class History:
    """A host with two services, its warden, ATLAS and its journal; what is sent may be lost, late and doubled."""

    def __init__(self) -> None:
        pids = count(1001)
        self.processes = {name: Process(name, pids) for name in ("web-1", "web-2")}
        self.warden_memory: dict[str, Outcome] = {}
        self.warden_incarnation = self.node_seq = 1
        self.effects: Counter[str] = Counter()
        self.ids = count(1)
        self.now_s = 100.0
        self.journal = b""
        self.to_agents: list[tuple[bytes, Command]] = []
        self.to_atlas: list[Accepted | Outcome] = []
        self.accepted: dict[str, OrderAccepted] = {}
        self.told: dict[tuple[str, str], OrderOutcome] = {}
        self.dies_after: int | None = None
        self.orders: list[OrderRequest] = []
        self.boot()

    # ATLAS

    def boot(self) -> None:
        """ATLAS begins with what the journal holds, and knows of nobody."""
        book, corrupt = replay(self.journal.rpartition(b"\n")[0].split(b"\n"))
        assert corrupt == 0
        self.journal = b"".join(line(each) for each in book.entries())
        self.fleet = Fleet()
        self.coordinator = CDNCoordinator(self.fleet, lambda: f"c{next(self.ids)}", boot_id="b", book=book)
        self.perform(self.coordinator.resume(self.now_s))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if self.dies_after is not None:
                self.dies_after -= 1
                if self.dies_after < 0:
                    self.dies_after = None
                    if isinstance(action, Record):
                        self.journal += line(action.entry)[:-20]
                    self.boot()
                    return
            self.do(action)
        whole, _ = replay(self.journal.split(b"\n"))
        assert whole == self.coordinator.book

    def do(self, action: Action) -> None:
        match action:
            case Record(each):
                self.journal += line(each)
            case ToAgent(routing_id, command):
                self.to_agents.append((routing_id, command))
            case ToOperator(_, OrderAccepted() as reply):
                self.accepted[reply.id] = reply
            case ToOperator(_, OrderOutcome() as reply):
                known = self.told.setdefault((reply.id, reply.name), reply)
                assert known == reply, "an outcome is told again as it was"

    def report(self) -> None:
        """Everybody greets, and says how it is."""
        for process in self.processes.values():
            if process.pid is not None:
                process.seq += 1
                hello = Hello(
                    target=process.name, role="daemon", host="h1", incarnation=process.incarnation, pid=process.pid
                )
                self.coordinator.hear(hello, process.name.encode(), self.now_s)
                self.fleet.hear(self.status(process), self.now_s)
        hello = Hello(target="h1", role="warden", host="h1", incarnation=self.warden_incarnation, pid=9)
        self.coordinator.hear(hello, b"warden", self.now_s)
        self.node_seq += 1
        rows = tuple(
            ProcessRow(
                name=process.name,
                state=ProcessState.STOPPED if process.pid is None else ProcessState.RUNNING,
                pid=process.pid,
                uptime_s=None if process.pid is None else 1.0,
                depends_on=("web-1",) if process.name == "web-2" else (),
            )
            for process in self.processes.values()
        )
        table = NodeStatus(
            host="h1",
            incarnation=self.warden_incarnation,
            seq=self.node_seq,
            pid=9,
            time_s=0.0,
            monotonic_s=0.0,
            processes=rows,
        )
        self.fleet.hear_node(table, self.now_s)

    def status(self, process: Process) -> DaemonStatus:
        return replace(
            status(process.incarnation, process.seq), service="web", instance=process.name, pid=process.pid or 0
        )

    # receivers

    def obey(self, routing_id: bytes, command: Command) -> None:
        if routing_id == b"warden":
            self.to_atlas.append(self.obey_as_warden(command))
            return
        process = self.processes[routing_id.decode()]
        if process.pid is None:
            return
        if command.id not in process.memory:
            process.memory[command.id] = self.obey_as_daemon(process, command)
        answer = process.memory.get(command.id)
        if answer is not None:  # else it has ended over it
            self.to_atlas.append(answer)

    def obey_as_daemon(self, process: Process, command: Command) -> Accepted | Outcome:
        mine = process.incarnation
        if command.incarnation != mine:
            return Outcome(id=command.id, kind=OutcomeKind.REJECTED, reason=f"I am #{mine}", incarnation=mine)
        self.effects[command.id] += 1
        if isinstance(command.body, Restart):
            self.to_atlas.append(Accepted(id=command.id, incarnation=mine))
            process.start()
            return Outcome(id=command.id, kind=OutcomeKind.REJECTED, reason="another", incarnation=process.incarnation)
        return Outcome(id=command.id, kind=OutcomeKind.DONE, incarnation=mine)

    def obey_as_warden(self, command: Command) -> Outcome:
        if command.id not in self.warden_memory:
            kind = self.effect_by_warden(command)
            self.warden_memory[command.id] = Outcome(
                id=command.id, kind=kind, incarnation=self.warden_incarnation, reason="" if kind == "done" else "no"
            )
        return self.warden_memory[command.id]

    def effect_by_warden(self, command: Command) -> OutcomeKind:
        body, id_ = command.body, command.id.removesuffix("w")
        state_wanted = f"{id_} of supervisord #{self.warden_incarnation}"  # a new one begins with all of them up
        assert isinstance(body, StartProcess | StopProcess | RestartProcess | SignalProcess)
        process = self.processes[body.name]
        match body:
            case StartProcess() if process.pid is None:
                self.effects[state_wanted] += 1
                process.start()
            case StopProcess() if process.pid is not None:
                self.effects[state_wanted] += 1
                process.stop()
            case RestartProcess(pid=pid) if pid == process.was_pid:
                self.effects[id_] += 1
                process.start()
            case RestartProcess() if process.pid is None:
                return OutcomeKind.REJECTED
            case SignalProcess(pid=pid):
                if process.pid is None or process.pid != pid:
                    return OutcomeKind.REJECTED
                self.effects[id_] += 1
        return OutcomeKind.DONE

    # what happens

    def order(self, verb: Verb, names: tuple[str, ...], **details: Any) -> None:
        request = OrderRequest(
            id=f"o{len(self.orders)}", verb=verb, names=names, timeout_s=5.0, asked_by="me", **details
        )
        self.orders.append(request)
        self.perform(self.coordinator.order(request, b"me", self.now_s, self.now_s))

    def happens(self, event: str, number: int) -> None:
        match event:
            case "restart":
                self.order(Verb.RESTART, (f"web-{1 + number % 2}",))
            case "rollout":
                self.order(Verb.RESTART, ("web-2", "web-1", "nope")[: 2 + number % 2], batch=1)
            case "start":
                self.order(Verb.START, ("web-2", "web-1"))
            case "stop":
                self.order(Verb.STOP, ("web-1", "web-2"))
            case "shed":
                self.order(Verb.SHED, ("web-1",))
            case "signal":
                self.order(Verb.SIGNAL, ("web-1",), signal=1)
            case "again" if self.orders:
                request = replace(self.orders[number % len(self.orders)], attach=True)
                self.perform(self.coordinator.order(request, b"again", self.now_s, self.now_s))
            case "report":
                self.report()
            case "deliver" | "double" if self.to_agents:
                routing_id, command = self.to_agents[number % len(self.to_agents)]
                if event == "deliver":
                    self.to_agents.remove((routing_id, command))
                self.obey(routing_id, command)
            case "answer" | "answer twice" if self.to_atlas:
                message = self.to_atlas[number % len(self.to_atlas)]
                if event == "answer":
                    self.to_atlas.remove(message)
                self.perform(self.coordinator.hear(message, b"", self.now_s))
            case "lose":
                self.to_agents = self.to_agents[: -1 - number]
                self.to_atlas = self.to_atlas[: -1 - number]
            case "crash":
                self.processes[f"web-{1 + number % 2}"].start()
            case "supervisord dies":
                self.warden_incarnation += 1
                self.node_seq = 0
                self.warden_memory.clear()
                for process in self.processes.values():
                    process.start()
            case "tick":
                self.tick((0.1, 0.3, 1.0, 3.0)[number % 4])
            case "atlas dies":
                self.boot()
            case "atlas dies soon":
                self.dies_after = number

    def tick(self, after_s: float) -> None:
        self.now_s += after_s
        self.fleet.tick(self.now_s)
        self.perform(self.coordinator.tick(self.now_s))

    def settle(self) -> None:
        """Everything arrives from now on, and nobody dies; until nothing is open."""
        self.dies_after = None
        for _ in range(400):
            self.report()
            while self.to_agents:
                self.obey(*self.to_agents.pop(0))
            while self.to_atlas:
                self.perform(self.coordinator.hear(self.to_atlas.pop(0), b"", self.now_s))
            self.tick(0.25)
            if not self.coordinator.open_commands:
                return
        raise AssertionError(f"still open: {self.coordinator.commands(10)}")


HAPPENINGS = (
    "restart",
    "rollout",
    "start",
    "stop",
    "shed",
    "signal",
    "again",
    "report",
    "report",
    "deliver",
    "deliver",
    "double",
    "answer",
    "answer",
    "answer twice",
    "lose",
    "crash",
    "supervisord dies",
    "tick",
    "tick",
    "atlas dies",
    "atlas dies soon",
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.integers(0, 7)), max_size=40))
def test_any_history(happenings: list[tuple[str, int]]) -> None:
    """Every order that was accepted ends exactly once, takes effect at most once, and is never forgotten."""
    history = History()
    history.report()
    for event, number in happenings:
        history.happens(event, number)
    history.settle()
    for request in history.orders:
        history.perform(
            history.coordinator.order(replace(request, attach=True), b"again", history.now_s, history.now_s)
        )
        accepted = history.accepted.get(request.id)
        if accepted is None:
            continue
        assert {name for id_, name in history.told if id_ == request.id} == set(request.names)
        for name, id_ in accepted.commands.items():
            view = history.coordinator.command(id_)
            assert view is not None
            assert (view.stage, view.kind) == ("ended", history.told[request.id, name].kind)
    for id_, many in history.effects.items():
        assert many <= 1, f"{id_} took effect {many} times"
