"""Other supervisors and this one, each managing the same tiny service: one table, in one run.

    python -m benchmarks.peers [--runs 5] [--only crash hang memory start cpu status] [--peers cdn circus runit …]
                               [--cache DIR] [--markdown | --json]

crash   SIGKILL → the replacement answers
hang    SIGSTOP → the replacement answers
memory  the service has taken 160 MiB of the 128 that it may have → the replacement answers
start   launch of the supervisor → fifty services answer
cpu     what watching fifty idle services costs: processor, and memory, everything that was started counted but what
        fifty bare services use by themselves
status  how long the command takes that tells of all fifty

What is not on PATH is installed below the cache directory, and nowhere else: circus and superlance by pip, pm2 by npm,
runit and monit by unpacking Debian's packages. What cannot be had, as s6 unless it is on PATH, is left out, and the
table says so. Everything
listens on loopback, lives in directories of its own, and has ended when this ends, also on Ctrl-C.

A cell has at most 30 s for further runs. "never" and "> 60 s" have been waited for so long, once, all together
(--patience). p95 of fewer than twenty runs is the slowest. × is times the limit of the same column. Figures are of this
machine and moment: compare rows, not days.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.peers.measures import (
    FAULTS,
    Failed,
    Usage,
    bare,
    below_a_reaper,
    fleet,
    nothing,
    survive,
    wait_together,
    waking,
)
from benchmarks.peers.places import NotHere, Place
from benchmarks.peers.supervisors import LIMIT_MIB, PEERS, Peer
from benchmarks.peers.table import Cell, Nothing, Row, document, markdown, plain, table, titles

MEASURES = (*FAULTS, "start", "cpu", "status")
WAKING = "as many threads of one process, waking at 10 Hz"
WAKING_ALONE = "as many processes, waking at 10 Hz"
NOTHING = "python -c pass"
KEYS = tuple(dict.fromkeys(peer.key for peer in PEERS))


def places(peers: Sequence[Peer], cache: Path, say: Callable[[str], None]) -> tuple[dict[str, Place], dict[str, str]]:
    """Where each is, by its key, and why the others cannot be had."""
    found: dict[str, Place] = {}
    left_out: dict[str, str] = {}
    for key, place in {peer.key: peer.place for peer in peers}.items():
        say(f"{key}: installed?")
        try:
            found[key] = place(cache)
        except NotHere as error:
            left_out[key] = str(error)
            say(f"{key} is left out: {error}")
    return found, left_out


def measure(told: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Row], dict[str, str]]:
    """All rows, limits first; and why what is missing is."""
    asked = [peer for peer in PEERS if peer.key in told.peers]
    found, left_out = places(asked, told.cache, say)
    peers = [peer for peer in asked if peer.key in found]
    cells: dict[str, dict[str, Cell]] = {peer.name: {} for peer in peers}
    rows, usage = limits(told, {peer.service: None for peer in peers}, say)

    hopeless = [
        (peer, found[peer.key], fault)
        for peer in peers
        for fault in FAULTS
        if fault in told.only and fault in peer.without | peer.slow
    ]
    if hopeless:
        say(f"{len(hopeless)} that should not be survived within {told.patience:g} s, all together")
        for (peer, _, fault), cell in zip(hopeless, wait_together(hopeless, told.patience), strict=True):
            cells[peer.name][fault] = cell
    for fault in FAULTS:
        for peer in peers:
            if fault in told.only and fault not in cells[peer.name]:
                say(f"{fault}: {peer.name}")
                cells[peer.name][fault] = attempt(
                    lambda peer=peer, fault=fault: survive(peer, found[peer.key], fault, told.runs, told.patience)  # type: ignore[misc]
                )
    many = [measure for measure in MEASURES if measure not in FAULTS and measure in told.only]
    for peer in peers if many else []:
        say(f"{told.services} services: {peer.name}")
        try:
            cells[peer.name] |= fleet(
                peer, found[peer.key], told.services, many, told.runs, told.seconds, usage[peer.service]
            )
        except (Failed, NotHere) as failed:
            cells[peer.name] |= dict.fromkeys(many, Nothing(f"failed: {failed}"))
    for peer in peers:
        version = "" if peer.key == "cdn" else found[peer.key].version
        rows.append(Row(peer.name, version, (peer.service, WAKING, NOTHING), cells[peer.name], peer.notes))
    return rows, left_out


def attempt(survives: Callable[[], Cell]) -> Cell:
    """A peer that does not do what it is configured for does not cost the others their figures."""
    try:
        return survives()
    except (Failed, NotHere) as failed:
        return Nothing(f"failed: {failed}")


def limits(
    told: argparse.Namespace, kinds: Iterable[str], say: Callable[[str], None]
) -> tuple[list[Row], dict[str, Usage]]:
    """What nobody can be quicker or cheaper than; and what the bare services use."""
    rows: list[Row] = []
    usage: dict[str, Usage] = {}
    if "cpu" in told.only:
        say("limits: waking at 10 Hz")
        rows = [
            Row(WAKING, cells=waking(told.services, told.seconds, processes=False)),
            Row(WAKING_ALONE, cells=waking(told.services, told.seconds, processes=True)),
        ]
    if "status" in told.only:
        rows.append(Row(NOTHING, cells=nothing(told.runs)))
    own = []
    for kind in kinds:
        say(f"limits: {kind}")
        cells, usage[kind] = bare(kind, told.services, told.only, told.runs, told.seconds)
        own.append(Row(kind, cells=cells))
    return own + rows, usage


def machine() -> str:
    """Where this was measured."""
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def default_cache() -> Path:
    """Of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdn-peers"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="for which fifty services are watched")
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--patience", type=float, default=60.0, metavar="SECONDS", help="after which it is never")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--peers", nargs="+", choices=KEYS, default=KEYS)
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="as it stands in README.md")
    told = parser.parse_args(arguments)
    told.cache = told.cache.absolute()  # supervisors are started in directories of their own
    return told


def main(told: argparse.Namespace) -> int:
    """Measure and print."""
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_s:5.0f} s  {text}", file=sys.stderr, flush=True)

    date = time.strftime("%Y-%m-%d")
    try:
        rows, left_out = measure(told, say)
    except KeyboardInterrupt:
        say("interrupted; all that was started has ended")
        return 130
    say("done")
    if told.json:
        head = {"date": date, "machine": machine(), "services": told.services, "runs": told.runs}
        head |= {"patience_s": told.patience, "limit_mib": LIMIT_MIB, "left_out": left_out}
        print(json.dumps(head | {"rows": document(rows)}, indent=2, ensure_ascii=False))
        return 0
    columns = [column for column in titles(told.services, LIMIT_MIB) if column in told.only]
    if "cpu" in columns:
        columns.insert(columns.index("cpu") + 1, "pss")
    lines, notes = table(rows, {column: titles(told.services, LIMIT_MIB)[column] for column in columns})
    notes += [f"left out: {key}: {why}" for key, why in left_out.items()]
    print(f"On {date}, {machine()}; median (p95) of up to {told.runs} runs, × the limit of the same column:\n")
    print((markdown if told.markdown else plain)(lines, notes))
    return 0


if __name__ == "__main__":
    asked = options()
    sys.exit(below_a_reaper(lambda: main(asked)))
