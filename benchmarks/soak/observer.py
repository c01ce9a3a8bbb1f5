"""The outside observer: what /proc, the locks, requests and the files in the run directory show of a fleet.

It asks neither ATLAS nor the warden, but for the table that ATLAS passes on; and it never touches what it sees.
"""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Lock, Thread

import msgspec

from benchmarks.soak import history
from benchmarks.soak.history import (
    Answered,
    Appeared,
    Bare,
    Died,
    Holds,
    Late,
    Listens,
    Looked,
    Row,
    Silent,
    Used,
    Vanished,
)
from benchmarks.soak.story import ATLAS, SUPERVISORD
from bus import postmortems
from bus.endpoints import RunDir
from bus.messages import NodeStatus
from bus.subscriber import Subscriber
from bus.topics import NODE
from tests.faults.injections import Victim
from tests.support import ServiceProcess, free_port, short_dir

LOOK_EVERY_S = 0.12
REQUEST_EVERY_S, REQUEST_AGAIN_S, REQUEST_TIMEOUT_S = 0.5, 0.1, 2.0
"""Who answers is asked twice a second; who does not, ten times."""
BARE_EVERY_S = 4.0
USED_EVERY_S = 5.0
READ_EVERY_S = 0.5
_STRANGER_S = 1.0
"""Who is none of the fleet may become one of it, by exec or with the same pid."""
_TICKS_HZ = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Recorder:
    """Writes the history; any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._lock = Lock()

    def record(self, event: history.Event) -> None:
        """Write it down."""
        with self._lock:
            self._file.write(history.line(event))

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


class Known(msgspec.Struct):
    """A process of the fleet."""

    name: str
    pid: int
    ticks: int
    mark: str
    child: bool
    port: int = 0
    """That it listens on; 0: on none."""

    @property
    def supervisor(self) -> int:
        """The pid of the supervisord that has started it."""
        return int(self.mark.partition("/")[0] or 0)


class Observer:
    """Sees a fleet from its first process to its last, on threads of its own."""

    def __init__(self, recorder: Recorder, run_dir: RunDir, names: tuple[str, ...], began_s: float) -> None:
        self._recorder = recorder
        self._run_dir = run_dir
        self._names = names
        self._began_s = began_s
        self._stop = ThreadEvent()
        self._known: dict[int, Known] = {}
        self._strangers: dict[int, float] = {}
        self._holders: dict[str, int] = {}
        self._inodes: dict[int, str] = {}
        self._read: set[Path] = set()
        self.rows: dict[str, Row] = {}
        """The newest of each program."""
        self.answering: dict[str, int] = {}
        """Pid of who answered last; 0 if nobody did."""
        self.failure: BaseException | None = None
        works = (self._look_on, self._request, self._hear, self._start_bare)
        self._threads = [Thread(target=self._guard, args=(work,), daemon=True, name=work.__name__) for work in works]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """See no more; raises what has ended one of the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure

    def supervised_by(self, pid: int) -> None:
        """That is the fleet's supervisord from now on."""
        found = _stat(pid)
        if found is not None:
            self._known[pid] = Known(SUPERVISORD, pid, found[1], "", False)
            self._recorder.record(Appeared(at_s=time.monotonic(), name=SUPERVISORD, pid=pid, ticks=found[1]))

    def main(self, name: str) -> Known | None:
        """The process of that service: the one that listens, if one does."""
        mains = [each for each in list(self._known.values()) if each.name == name and not each.child]
        return max(mains, key=lambda each: bool(each.port), default=None)

    def victim(self, name: str) -> Victim | None:
        """The process that listens for that service."""
        main = self.main(name)
        if main is None or not main.port:
            return None
        return Victim(name, main.pid, f"http://127.0.0.1:{main.port}", self._run_dir.path)

    def living(self) -> dict[int, Known]:
        """All processes of the fleet that were there at the last look."""
        return dict(self._known)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by stop()
            self.failure = error

    # -- /proc ---------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        used_s = read_s = 0.0
        before_s = time.monotonic()
        while not self._stop.wait(max(0.0, before_s + LOOK_EVERY_S - time.monotonic())):
            now_s = time.monotonic()
            if now_s - before_s > 2.5 * LOOK_EVERY_S:
                self._recorder.record(Late(at_s=now_s, took_s=round(now_s - before_s - LOOK_EVERY_S, 3)))
            before_s = now_s
            self._look(now_s)
            if now_s - used_s >= USED_EVERY_S:
                used_s = now_s
                self._weigh(now_s)
            if now_s - read_s >= READ_EVERY_S:
                read_s = now_s
                self.read_postmortems()

    def _look(self, now_s: float) -> None:
        for known in list(self._known.values()):
            found = _stat(known.pid)
            if found is None or found[0] in "ZX" or found[1] != known.ticks:
                del self._known[known.pid]
                self._recorder.record(Vanished(at_s=now_s, name=known.name, pid=known.pid))
                if found is not None and found[0] == "Z" and known.name != SUPERVISORD:
                    with suppress(ChildProcessError):  # an orphan comes to us, as we are a subreaper
                        os.waitpid(known.pid, os.WNOHANG)
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) not in self._known and self._strangers.get(int(entry), 0.0) <= now_s:
                self._meet(int(entry), now_s)
        self._look_who_listens(now_s)
        self._look_who_holds(now_s)
        self._recorder.record(Looked(at_s=now_s))

    def _meet(self, pid: int, now_s: float) -> None:
        found, told = _stat(pid), _environment(pid)
        mark = told.get("CDN_LIFE", "")
        if found is None or not mark or told.get("CDN_RUN_DIR") != str(self._run_dir.path):
            self._strangers[pid] = now_s + _STRANGER_S
            return
        _, ticks, parent, group = found
        # supervisord makes each process the leader of a group; its own children have it, or us, for a parent.
        is_main = group == pid and parent in (int(mark.partition("/")[0]), os.getpid()) and _is_python(pid)
        name = mark.partition("/")[2].rpartition("/")[0]
        self._known[pid] = Known(name, pid, ticks, mark, not is_main)
        self._recorder.record(Appeared(at_s=now_s, name=name, pid=pid, ticks=ticks, mark=mark, child=not is_main))

    def _look_who_listens(self, now_s: float) -> None:
        mains = [each for each in self._known.values() if not each.child and each.name != SUPERVISORD]
        several = {each.name for each in mains if sum(other.name == each.name for other in mains) > 1}
        unknown = [each for each in mains if not each.port or each.name in several]
        if not unknown:
            return
        ports = _listening()
        for each in unknown:
            port = next((ports[inode] for inode in _sockets(each.pid) if inode in ports), 0)
            if bool(port) != bool(each.port):
                self._recorder.record(Listens(at_s=now_s, name=each.name, pid=each.pid, on=bool(port)))
            each.port = port

    def _look_who_holds(self, now_s: float) -> None:
        if len(self._inodes) < len(self._names):
            for name in self._names:
                with suppress(OSError):
                    self._inodes[self._run_dir.lock(name).stat().st_ino] = name
        holders = {
            self._inodes[inode]: pid
            for inode, pid in locks().items()
            if inode in self._inodes and pid in self._known  # who has come during this look is met at the next
        }
        for name in holders.keys() | self._holders.keys():
            if holders.get(name, 0) != self._holders.get(name, 0):
                self._recorder.record(Holds(at_s=now_s, name=name, pid=holders.get(name, 0)))
        self._holders = holders

    def _weigh(self, now_s: float) -> None:
        for each in self._known.values():
            if each.child:
                continue
            with suppress(OSError):
                rss_bytes = int(Path(f"/proc/{each.pid}/statm").read_text().split()[1]) * _PAGE
                fds = len(os.listdir(f"/proc/{each.pid}/fd"))
                self._recorder.record(Used(at_s=now_s, name=each.name, pid=each.pid, rss_bytes=rss_bytes, fds=fds))

    def read_postmortems(self) -> None:
        """Take down those that have been written since."""
        directory = postmortems.directory_of(self._run_dir)
        to_monotonic_s = time.monotonic() - time.time()
        for name in self._names:
            of_program = directory / name
            for file in postmortems.listed(of_program):
                path = of_program / file
                filed = postmortems.load(path) if path not in self._read else None
                if filed is None:
                    continue
                self._read.add(path)
                report = filed.report
                self._recorder.record(
                    Died(
                        at_s=round(filed.ended_s + to_monotonic_s, 3),
                        name=report.name,
                        pid=report.pid,
                        wait_status=report.wait_status,
                        end=report.end,
                        verdict=report.verdict,
                        spared=report.spared,
                        ordered_by=report.ordered_by,
                        follows=report.follows,
                        ready_after_s=report.ready_after_s,
                    )
                )

    # -- by requests ------------------------------------------------------------------------------------------------

    def _request(self) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self._ask_on(name) for name in self._names))

        asyncio.run(all_of_them())

    async def _ask_on(self, name: str) -> None:
        last_s, before = self._began_s, -1
        while not self._stop.is_set():
            pid = await self._ask(name)
            now_s = time.monotonic()
            if pid == 0 and before != 0:
                self._recorder.record(Silent(at_s=now_s, name=name, last_s=last_s))
            elif pid not in (0, before):
                self._recorder.record(Answered(at_s=now_s, name=name, pid=pid))
            if pid:
                last_s = now_s
            self.answering[name] = before = pid
            await asyncio.sleep(REQUEST_EVERY_S if pid else REQUEST_AGAIN_S)

    async def _ask(self, name: str) -> int:
        """The pid of who answers; 0 if nobody does in time."""
        victim = self.victim(name)
        if victim is None:
            return 0
        port = int(victim.address.rpartition(":")[2])
        writer = None
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                path = "/livez" if name == ATLAS else "/"
                writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
        except (OSError, TimeoutError):
            return 0
        finally:
            if writer is not None:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            return 0
        return victim.pid if name == ATLAS else int(body) if body.isdigit() else 0

    # -- by the feed, and beside --------------------------------------------------------------------------------------

    def _hear(self) -> None:
        feed = Subscriber(self._run_dir.feed, [NODE])
        try:
            while not self._stop.is_set():
                said = feed.receive(0.2)
                for row in said.processes if isinstance(said, NodeStatus) else ():
                    now = Row(
                        at_s=time.monotonic(), name=row.name, state=row.state, pid=row.pid or 0, reason=row.reason
                    )
                    before = self.rows.get(row.name)
                    if before is None or (before.state, before.pid, before.reason) != (now.state, now.pid, now.reason):
                        self.rows[row.name] = now
                        self._recorder.record(now)
        finally:
            feed.close()

    def _start_bare(self) -> None:
        while not self._stop.wait(BARE_EVERY_S):
            start_bare(self._recorder)


def start_bare(recorder: Recorder, name: str = "") -> None:
    """Start a service of the fleet's kind, or ATLAS, without any supervisor; record how long that took, and end it."""
    module = "services.atlas" if name == ATLAS else "tests.faults.faulty"
    with short_dir() as directory:
        port = free_port()
        began_s = time.monotonic()
        with ServiceProcess(directory, "-m", module, CDN_PORT=str(port)) as bare:
            while not _lives(port) and bare.process.poll() is None:
                time.sleep(0.01)
            took_s, cpu_s = time.monotonic() - began_s, _cpu_s(bare.pid)
            if bare.process.poll() is None:  # else somebody else took the port
                recorder.record(Bare(at_s=began_s, took_s=round(took_s, 4), cpu_s=round(cpu_s, 4), name=name))


def _lives(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def locks() -> dict[int, int]:
    """Inode → pid of who has it flocked."""
    found = {}
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[3] == "WRITE":  # one that waits has "->" there
            found[int(words[5].rpartition(":")[2])] = int(words[4])
    return found


def marked(run_path: Path) -> dict[int, str]:
    """Pid → command line of every process whose environment names the run directory."""
    found = {}
    for entry in os.listdir("/proc"):
        if (
            entry.isdecimal()
            and int(entry) != os.getpid()
            and _environment(int(entry)).get("CDN_RUN_DIR") == str(run_path)
        ):
            with suppress(OSError):
                found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
    return found


def _stat(pid: int) -> tuple[str, int, int, int] | None:
    """State, start in ticks, parent and process group; None if there is no such process."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return words[0], int(words[19]), int(words[1]), int(words[2])


def _cpu_s(pid: int) -> float:
    """CPU time that it has used, with the system's share."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_HZ


def _environment(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs if pair.startswith(b"CDN_"))


def _is_python(pid: int) -> bool:
    try:
        return b"\0-m\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _listening() -> dict[int, int]:
    """Inode → port of every TCP socket that listens."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(words[9]): int(words[1].rpartition(":")[2], 16) for words in map(str.split, lines) if words[3] == "0A"}


def _sockets(pid: int) -> list[int]:
    found = []
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{pid}/fd/{entry}")
                if target.startswith("socket:["):
                    found.append(int(target[8:-1]))
    except OSError:
        return []
    return found
