"""Fifty services under random faults and commands, and what must hold of that: the soak.

    python -m benchmarks.soak [--minutes 2] [--seed 1] [--services 50] [--history FILE] [--json]
    python -m benchmarks.soak --replay FILE

A real supervisord with the warden, a real ATLAS and real services in a private run directory. What is done follows
from the seed; what was done and seen is recorded in a file, and judged from that file alone, so that it can be judged
again. docs/soak.md says what is injected and what is checked. Exit 0: all was kept; 1: not, and the file's path is
told; 2: usage; 130: interrupted. Nothing is left behind in any case but the history.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.soak import history
from benchmarks.soak.doing import Doer
from benchmarks.soak.fleet import DRAIN_S, STOP_WAIT_S, Fleet, wait_until_up
from benchmarks.soak.history import Began, Ending, Journaled, Violation
from benchmarks.soak.judge import around, growth, judge
from benchmarks.soak.observer import REQUEST_EVERY_S, REQUEST_TIMEOUT_S, Observer, Recorder, start_bare
from benchmarks.soak.plan import plan
from benchmarks.soak.story import ATLAS, SUPERVISORD, Story
from cdn_daemon.warden.policy import Limits
from services.atlas.journal import replay
from tests.support import short_dir

UP_WITHIN_S = 180.0
BARES = 5
PROGRESS_EVERY_S = 1.0, 15.0
"""On a terminal, and elsewhere."""


def soak(seed: int, minutes: float, services: int, path: Path) -> None:
    """Run it, and record it there. Raises KeyboardInterrupt with everything ended."""
    fds = _fds()
    recorder = Recorder(path)
    with short_dir() as run_path:
        fleet = Fleet(run_path, services)
        names = ("atlas", *fleet.names)
        recorder.record(_began(seed, minutes, names))
        for _ in range(BARES):
            start_bare(recorder)
            start_bare(recorder, ATLAS)
        observer = Observer(recorder, fleet.run_dir, names, time.monotonic())
        doer = Doer(fleet, observer, recorder, seed)
        try:
            observer.start()
            observer.supervised_by(fleet.launch())
            _tell(f"seed {seed}: {services} services are being started; the history is in {path}")
            wait_until_up(observer.answering, names, UP_WITHIN_S)
            _play(doer, observer, seed, minutes, fleet.names)
            doer.finish()
            recorder.record(Ending(at_s=time.monotonic()))
            _tell("ending the fleet")
            down_exit = fleet.down()
            time.sleep(1.0)  # the observer is to see the last of it
            observer.read_postmortems()
            observer.stop()
            for name in (SUPERVISORD, ATLAS):
                shutil.copy(run_path / f"{name}.log", path.with_suffix(f".{name}.log"))
            _record_journal(recorder, run_path)
            left = fleet.left(down_exit)
            recorder.record(msgspec.structs.replace(left, recorder_fds=max(0, _fds() - fds - 1)))  # its own file
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once more would leave what is just being ended
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            try:
                doer.finish(now=True)
                observer.stop()
            finally:
                fleet.force_down()
                recorder.close()


def _began(seed: int, minutes: float, names: tuple[str, ...]) -> Began:
    limits = Limits()
    return Began(
        at_s=time.monotonic(),
        unix_s=time.time(),
        seed=seed,
        minutes=minutes,
        services=names,
        cores=len(os.sched_getaffinity(0)),
        budget=limits.budget,
        window_s=limits.window_s,
        healthy_s=limits.healthy_s,
        first_wait_s=limits.first_wait_s,
        longest_wait_s=limits.longest_wait_s,
        longest_asked_wait_s=limits.longest_asked_wait_s,
        jitter=limits.jitter,
        drain_s=DRAIN_S,
        stop_wait_s=STOP_WAIT_S,
        request_every_s=REQUEST_EVERY_S,
        request_timeout_s=REQUEST_TIMEOUT_S,
    )


def _play(doer: Doer, observer: Observer, seed: int, minutes: float, services: tuple[str, ...]) -> None:
    began_s = told_s = time.monotonic()
    steps = plan(seed, minutes, services)
    done = 0
    while (past_s := time.monotonic() - began_s) < 60.0 * minutes:
        while done < len(steps) and steps[done].at_s <= past_s:
            doer.do(steps[done])
            done += 1
        if time.monotonic() - told_s >= PROGRESS_EVERY_S[not sys.stderr.isatty()]:
            told_s = time.monotonic()
            up = sum(1 for pid in observer.answering.values() if pid)
            last = f"{steps[done - 1].what} {steps[done - 1].name}" if done else "calm"
            _tell(
                f"{past_s:4.0f} of {60 * minutes:.0f} s, step {done} of {len(steps)}, {up} answer; {last}", passing=True
            )
        time.sleep(0.02)


def _record_journal(recorder: Recorder, run_path: Path) -> None:
    """How the soak's commands stand in ATLAS's journal."""
    path = run_path / "state" / "atlas" / "commands.jsonl"
    book, _ = replay(path.read_bytes().split(b"\n"))
    for entry in book.entries():
        recorder.record(Journaled(at_s=time.monotonic(), id=entry.request.id, stage=entry.stage, kind=entry.kind or ""))


def _fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def _tell(text: str, *, passing: bool = False) -> None:
    if not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
    else:
        print(f"\r\x1b[K{text}", end="" if passing else "\n", file=sys.stderr, flush=True)


# -- what came of it ---------------------------------------------------------------------------------------------------


def summary(events: Sequence[history.Event], violations: Sequence[Violation]) -> dict[str, Any]:
    """What was done and seen, in numbers."""
    story = Story(events)
    looks = [event.at_s for event in events if isinstance(event, history.Looked)]
    periods = sorted(b - a for a, b in pairwise(looks)) or [0.0]
    lives = [life for name, each in story.lives.items() if name != SUPERVISORD for life in each]
    outages = sorted(each.to_s - each.from_s for each in story.outages)
    grown: dict[str, list[tuple[float, float, float]]] = {}
    for kind, _, span_s, _, rss, fds in growth(events, story):
        grown.setdefault(kind, []).append((span_s, rss / 2**20, fds))
    return {
        "seed": story.began.seed,
        "minutes": story.began.minutes,
        "services": len(story.began.services) - 1,
        "injected": dict(sorted(Counter(each.fault for each in story.faults).items())),
        "skipped": sum(isinstance(event, history.Skipped) for event in events),
        "commands": dict(Counter(asked.verb for asked in story.asked.values())),
        "outcomes": dict(Counter(next((t.kind for t in story.told[id_]), "none") for id_ in story.asked)),
        "processes": len(lives),
        "ends": sum(life.ended_s is not None and life.ended_s < story.ending_s for life in lives),
        "verdicts": sum(bool(each.verdict) for each in story.died),
        "spared": sum(bool(each.spared) for each in story.died),
        "outages": len(outages),
        "outage_s": {"median": _at(outages, 0.5), "p95": _at(outages, 0.95), "longest": _at(outages, 1.0)},
        "bare_start_s": {
            "cpu": round(story.bare_cpu_s, 3),
            "longest": round(max((each.took_s for each in story.bare), default=0.0), 3),
        },
        "looks_hz": round(1.0 / max(periods[len(periods) // 2], 1e-6), 1),
        "longest_unseen_s": round(periods[-1], 2),
        "grown": {
            kind: {
                "lives": len(each),
                "longest_s": round(max(span for span, _, _ in each)),
                "mib": round(max(rss for _, rss, _ in each), 2),
                "fds": round(max(fds for _, _, fds in each), 1),
            }
            for kind, each in grown.items()
        },
        "violations": len(violations),
    }


def _at(values: Sequence[float], part: float) -> float:
    return round(values[min(len(values) - 1, int(part * len(values)))], 2) if values else 0.0


def show(path: Path, *, as_json: bool) -> int:
    """Judge a history and say what came of it; the exit code."""
    events = history.read(path)
    violations = judge(events)
    began = next(event for event in events if isinstance(event, Began))
    if as_json:
        told = [msgspec.to_builtins(each) for each in violations]
        print(json.dumps({**summary(events, violations), "history": str(path), "broken": told}, indent=2))
        return 1 if violations else 0
    for key, value in summary(events, violations).items():
        print(f"{key:16} {_words(value)}")
    for each in violations:
        print(f"\nnot kept, with seed {began.seed}: {each.promise}")
        print(f"  at {each.at_s - began.at_s:.1f} s, {each.name or 'the fleet'}: {each.text}")
        for event in around(events, each):
            fields = {
                key: value for key, value in msgspec.to_builtins(event).items() if value not in ("", 0, False, None)
            }
            at_s, kind = fields.pop("at_s") - began.at_s, fields.pop("event")
            print(f"    {at_s:7.2f}  {kind:9} {' '.join(f'{k}={v}' for k, v in fields.items())[:180]}")
    if violations:
        print(f"\n{len(violations)} promises were not kept. Judge it again: python -m benchmarks.soak --replay {path}")
    return 1 if violations else 0


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    nested = any(isinstance(each, dict) for each in value.values())
    return ("; " if nested else ", ").join(
        f"{key}: {_words(each)}" if nested else f"{key} {each}" for key, each in value.items()
    )


def main() -> int:
    """Run what is asked for."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled, so what runs from here must be
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--services", type=int, default=50)
    parser.add_argument("--history", type=Path, metavar="FILE", help="where to record; else a new directory")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="judge that history again, and run nothing")
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    if told.minutes < 0.7 or told.services < 4:
        parser.error("it takes 0.7 minutes and 4 services at least: what is last done needs its time to be made good")
    path = told.replay
    if path is None:
        path = told.history or Path(tempfile.mkdtemp(prefix="cdn-soak-")) / f"seed-{told.seed}.jsonl"
        for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT, too: a shell's background job would ignore it
            signal.signal(number, signal.default_int_handler)
        try:
            soak(told.seed, told.minutes, told.services, path)
        except KeyboardInterrupt:
            _tell(f"interrupted; what was recorded is in {path}")
            return 130
    try:
        return show(path, as_json=told.json)
    except (OSError, msgspec.MsgspecError, StopIteration) as error:
        print(f"cannot judge {path}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
