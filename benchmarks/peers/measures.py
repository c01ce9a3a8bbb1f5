"""Starts supervisors, does to their services what is to be survived, and looks at the clock."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.places import Place
from benchmarks.peers.supervisors import WEB_BARE, Launch, Peer
from benchmarks.peers.table import Cell, Nothing, NotWithin, Taken, Used
from benchmarks.tiny import TINY, WEB, Tiny, ask
from benchmarks.usage import cpu_s, shares_mib
from cdn_daemon.keeper import adopt_orphans
from tests.support import ROOT, environment, short_dir

SETTLED_S = 1.3
"""How long a service has lived before something is done to it: who dies sooner is held back by some."""
CELL_S = 30.0
"""No further run is begun after that, whatever was asked for."""
ANSWERS_S = 120.0
"""How long a supervisor may take to have its services answer."""
FAULTS = ("crash", "hang", "memory")
PORTS = range(20000, 30000)
"""Outside of what the kernel gives to clients."""

SAID = "said"
"""What a supervisor has printed."""

_top: psutil.Process | None = None
"""The reaper, once there is one."""
_next_port = PORTS.start + os.getpid() % 100 * 100


class Failed(Exception):
    """A supervisor did not do what it was configured for; the text says what."""


@dataclass(frozen=True)
class Started:
    """A supervisor that has been started, when, and its services."""

    launch: Launch
    process: subprocess.Popen[bytes]
    services: Sequence[Tiny]
    since_s: float
    pids: Callable[[], list[int]]
    """Of everything that it has started, and its own."""


def services(directory: Path, kind: str, many: int, *, alone: bool = False) -> list[Tiny]:
    """As many, on ports that nobody listens on."""
    script = directory / "service.py"
    script.write_text(WEB if kind == WEB_BARE else TINY)
    options, arguments = ((), ("alone",) * alone) if kind == WEB_BARE else (("-S", "-E"), ())
    return [Tiny(free(), script, options, arguments) for _ in range(many)]


def free() -> int:
    """A port of its own for every service of this run."""
    global _next_port
    while True:
        _next_port = _next_port + 1 if _next_port + 1 in PORTS else PORTS.start
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", _next_port))
                return _next_port


def below_a_reaper(work: Callable[[], int]) -> int:
    """Do it in a child, whose orphans come to this process and are reaped here at once; its exit code.

    A daemon's end is seen by whoever watches it only when somebody has reaped it, as init would. SIGINT and SIGTERM are
    handed on, once.
    """
    global _top
    _top = psutil.Process()
    adopt_orphans()
    worker = os.fork()
    if not worker:
        os.setpgrp()  # Ctrl-C comes from the one above
        return work()

    def hand_on(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # a second one would keep it from cleaning up
        os.kill(worker, signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker:
            return os.waitstatus_to_exitcode(status)


@contextmanager
def ended_afterwards() -> Iterator[Callable[[], list[int]]]:
    """Whatever was started inside is gone afterwards, daemons too; yields what tells the pids of it.

    All of it is below this process, or below its reaper; if that one is gone, nothing is ended.
    """
    top = _top or psutil.Process()
    before = {process.pid for process in top.children(recursive=True)}

    def started() -> list[psutil.Process]:
        return [each for each in top.children(recursive=True) if each.pid not in before]

    try:
        yield lambda: [each.pid for each in started()]
    finally:
        while alive := started():  # the supervisors are the eldest, and end first: nobody is started again for long
            for process in sorted(alive, key=lambda each: each.pid):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(alive, timeout=5)


@contextmanager
def supervised(peer: Peer, place: Place, many: int) -> Iterator[Started]:
    """A supervisor with that many services, in a directory of its own; not waited for. All of it ends afterwards."""
    with short_dir() as directory, ended_afterwards() as pids:
        yield start(peer, place, many, directory, pids)


def start(peer: Peer, place: Place, many: int, directory: Path, pids: Callable[[], list[int]]) -> Started:
    """Make its files there and start it."""
    made = services(directory, peer.service, many)
    launch = peer.write(place, directory, made)
    with (directory / SAID).open("wb") as said:
        since_s = time.perf_counter()
        process = subprocess.Popen(
            launch.command,
            env=dict(launch.env),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,  # a Ctrl-C is for us to act on
        )
    return Started(launch, process, made, since_s, pids)


def answer(started: Started) -> float:
    """Waits until all answer; seconds since its launch."""
    for each in started.services:
        while not ask(each.port):
            if started.process.poll():
                said = (each.script.parent / SAID).read_text(errors="replace").strip().splitlines()
                raise Failed(f"it ended with {started.process.returncode}: {' / '.join(said[-2:])}")
            if time.perf_counter() - started.since_s > ANSWERS_S:
                raise Failed(f"{each.name} does not answer within {ANSWERS_S:g} s")
            time.sleep(0.0005)
    return time.perf_counter() - started.since_s


# -- faults -------------------------------------------------------------------------------------------------


def inflict(fault: str, port: int) -> tuple[str, float]:
    """Do it to whoever serves there: its pid, and when it was done."""
    victim = ask(port)
    if not victim:
        raise Failed(f"port {port} does not answer before the {fault}")
    if fault == "memory":
        ask(port, "/take", within_s=10.0)
        return victim, time.perf_counter()
    since_s = time.perf_counter()
    try:
        os.kill(int(victim), signal.SIGKILL if fault == "crash" else signal.SIGSTOP)
    except ProcessLookupError as error:
        raise Failed(f"its service ended before the {fault}") from error
    return victim, since_s


def replaced(port: int, victim: str, since_s: float, within_s: float, *, every_s: float = 0.0005) -> float | None:
    """Seconds until somebody else answers there; None, if nobody does in that time."""
    while ask(port) in ("", victim):
        if time.perf_counter() - since_s > within_s:
            return None
        time.sleep(every_s)
    return time.perf_counter() - since_s


def survive(peer: Peer, place: Place, fault: str, runs: int, patience_s: float) -> Cell:
    """The fault, again and again: how long until the replacement answers."""
    if fault in peer.cannot:
        return Nothing(peer.cannot[fault])
    seconds: list[float] = []
    began_s = time.perf_counter()
    with ExitStack() as whole:
        started: Started | None = None
        while len(seconds) < runs and (not seconds or time.perf_counter() - began_s < CELL_S):
            if started is None or peer.fresh:
                whole.close()
                started = whole.enter_context(supervised(peer, place, 1))
                answer(started)
            time.sleep(SETTLED_S + random.uniform(0, peer.period_s.get(fault, 0.0)))
            taken_s = replaced(*_at(fault, started), patience_s)
            if taken_s is None:
                return NotWithin(patience_s, has_means=fault not in peer.without)
            seconds.append(taken_s)
    return Taken(tuple(seconds))


def _at(fault: str, started: Started) -> tuple[int, str, float]:
    port = started.services[0].port
    return port, *inflict(fault, port)


def wait_together(hopeless: Sequence[tuple[Peer, Place, str]], patience_s: float) -> list[Cell]:
    """Faults that are thought not to be survived in that time, each once, and all at the same time."""
    with ExitStack() as whole:
        directories = [whole.enter_context(short_dir()) for _ in hopeless]
        pids = whole.enter_context(ended_afterwards())  # of all at once: one that lives would start its own again
        fleet = [
            start(peer, place, 1, directory, pids)
            for (peer, place, _), directory in zip(hopeless, directories, strict=True)
        ]
        cells: list[Cell] = [Nothing("failed: was not waited for")] * len(hopeless)

        def wait(at: int) -> None:
            cells[at] = _once(fleet[at], hopeless[at], patience_s)

        # Daemon threads, and no pool, whose threads nobody could interrupt.
        threads = [threading.Thread(target=wait, args=(at,), daemon=True) for at in range(len(hopeless))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return cells


def _once(started: Started, what: tuple[Peer, Place, str], patience_s: float) -> Cell:
    peer, _, fault = what
    try:
        answer(started)
        time.sleep(SETTLED_S)
        taken_s = replaced(*_at(fault, started), patience_s, every_s=0.1)
    except Failed as failed:
        return Nothing(f"failed: {failed}")
    return Taken((taken_s,)) if taken_s is not None else NotWithin(patience_s, has_means=fault not in peer.without)


# -- fifty --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """Of everything below this process that a stage has started."""

    cpu_percent: float
    pss_mib: float

    def beyond(self, bare: Usage | None) -> dict[str, Cell]:
        """Its cells, what the services use by themselves taken off."""
        bare = bare or Usage(0.0, 0.0)
        return {
            "cpu": Used(self.cpu_percent - bare.cpu_percent, "%"),
            "pss": Used(self.pss_mib - bare.pss_mib, "MiB"),
        }


def watch(pids: Callable[[], list[int]], seconds: float) -> Usage:
    """What all of them use in that time."""
    time.sleep(3.0)  # what is done once is not counted
    before = {pid: cpu_s(pid) for pid in pids()}
    began_s = time.perf_counter()
    time.sleep(seconds)
    took_s = time.perf_counter() - began_s
    used_s = pss_mib = 0.0
    for pid, had_s in before.items():
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):  # it has ended
            used_s += cpu_s(pid) - had_s
            pss_mib += shares_mib(pid)["pss_mib"]
    return Usage(100 * used_s / took_s, pss_mib)


def fleet(
    peer: Peer, place: Place, many: int, columns: Sequence[str], runs: int, seconds: float, bare: Usage | None
) -> dict[str, Cell]:
    """Start so many, watch them, ask how they are."""
    cells: dict[str, Cell] = {}
    taken: list[float] = []
    wanted = runs if "start" in columns else 1
    began_s = time.perf_counter()
    while len(taken) < wanted:
        with supervised(peer, place, many) as started:
            taken.append(answer(started))
            if time.perf_counter() - began_s > CELL_S:
                wanted = len(taken)
            if len(taken) == wanted:
                if "status" in columns:
                    cells["status"] = time_status(started, max(runs, 10))
                if "cpu" in columns:
                    cells |= watch(started.pids, seconds).beyond(bare)
    return cells | ({"start": Taken(tuple(taken))} if "start" in columns else {})


def time_status(started: Started, runs: int) -> Cell:
    """How long its own command takes to tell of all services."""
    names = [each.name for each in started.services]
    deadline_s = time.perf_counter() + ANSWERS_S
    while True:  # the first ones are also for the caches
        done = _status(started.launch)
        missing = [name for name in names if name not in done.stdout]
        if not missing:
            break
        if time.perf_counter() > deadline_s:
            raise Failed(f"its status does not tell of {len(missing)} services, {missing[0]} first: {done.stderr}")
        time.sleep(0.1)
    return Taken(tuple(_timed(lambda: _status(started.launch)) for _ in range(runs)))


def _status(launch: Launch) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launch.status, env={**launch.env, "COLUMNS": "200"}, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def _timed(action: Callable[[], object]) -> float:
    since_s = time.perf_counter()
    action()
    return time.perf_counter() - since_s


# -- limits: what nobody can be quicker or cheaper than ---------------------------------------------------------


def bare(kind: str, many: int, columns: Sequence[str], runs: int, seconds: float) -> tuple[dict[str, Cell], Usage]:
    """Cells of the bare service, and what so many of it use by themselves."""
    cells: dict[str, Cell] = {}
    if "crash" in columns:
        cells["crash"] = Taken(tuple(_bare_start(kind, 1)[0] for _ in range(runs)))
    if "start" in columns:
        cells["start"] = Taken(tuple(_bare_start(kind, many)[0] for _ in range(runs)))
    usage = Usage(0.0, 0.0)
    if "cpu" in columns:
        usage = _bare_start(kind, many, seconds)[1]
    return cells, usage


def nothing(runs: int) -> dict[str, Cell]:
    """An interpreter that does nothing."""
    command = [sys.executable, "-c", "pass"]
    return {"status": Taken(tuple(_timed(lambda: subprocess.run(command)) for _ in range(max(runs, 10))))}


def _bare_start(kind: str, many: int, watched_s: float = 0.0) -> tuple[float, Usage]:
    with short_dir() as directory, ended_afterwards() as pids:
        made = services(directory, kind, many, alone=True)
        env = environment(directory)
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = [each.command for each in made]
        code = f"import subprocess\nfor one in [subprocess.Popen(command) for command in {commands!r}]: one.wait()"
        starter = [sys.executable, "-S", "-E", "-c", code] if many > 1 else commands[0]
        since_s = time.perf_counter()
        with (directory / SAID).open("wb") as said:
            process = subprocess.Popen(starter, env=env, cwd=ROOT, stdout=said, stderr=said)
        taken_s = answer(Started(Launch(starter, env, []), process, made, since_s, pids))
        if not watched_s:
            return taken_s, Usage(0.0, 0.0)
        return taken_s, watch(lambda: [pid for pid in pids() if pid != process.pid], watched_s)


WAKING = """
import sys, threading, time
def wake():
    due = time.monotonic()
    while True:
        due += 0.1
        time.sleep(max(0, due - time.monotonic()))
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=wake, daemon=True).start()
wake()
"""


def waking(many: int, seconds: float, *, processes: bool) -> dict[str, Cell]:
    """So many threads that wake ten times a second and do nothing, in one process or in as many."""
    with ended_afterwards() as pids:
        command = [sys.executable, "-S", "-E", "-c", WAKING, "1" if processes else str(many)]
        for _ in range(many if processes else 1):
            subprocess.Popen(command)
        return {"cpu": watch(pids, seconds).beyond(None)["cpu"]}
