"""What must hold of a recorded history. Pure: a history in, violations out.

Each check is a promise of docs/soak.md. Bounds are sums of what is declared (the policy, stopwaitsecs, how soon a
fault is to be noticed) and of what was measured beside it in the same run: a bare start of the same service, without
any supervisor.
"""

from __future__ import annotations

import os
import signal
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch

from benchmarks.soak.history import (
    Answered,
    Bare,
    Event,
    Exited,
    Journaled,
    Left,
    Listens,
    Looked,
    Used,
    Vanished,
    Violation,
)
from benchmarks.soak.story import ATLAS, SLACK, SUPERVISORD, Life, Outage, Story

EX_CONFIG = 78
REAPED_S = 2.0
"""A supervisord that is killed so soon after the end of a process may not have come to write its post-mortem."""
SWEPT_S = 5.0
"""How long the warden looks for what a process has left; cdn_daemon/warden/bailiff.py."""
ORPHAN_GRACE_S = 15.0
"""How long an orphan may take to end before its successor kills it; cdn_daemon/claim.py."""
WARM_UP_S = 20.0
"""From when it served, and no more than two were starting: what fills once is not growth."""
FLAT_AFTER_S = 30.0
"""A life of which less was sampled says nothing of growth."""
DAEMON = "a daemon"
ONCE_BYTES = {SUPERVISORD: 4 << 20, ATLAS: 24 << 20, DAEMON: 2 << 20}
"""What may still fill after the warm-up: ATLAS keeps the newest events, samples and commands, all of them bounded."""
STEADY_BYTES_PER_S = {SUPERVISORD: 2048.0, ATLAS: 8192.0, DAEMON: 1024.0}
"""Beyond that: what could not be told from noise in a run of minutes, and is 4 to 30 MiB an hour, so found in one."""
ONCE_FDS = {SUPERVISORD: 8, ATLAS: 16, DAEMON: 4}
"""Connections that come and go with the sample."""
ATLAS_FDS_EACH = 3
"""So many of ATLAS's are each service's own, and no growth: it may take some time until all of them are there again."""


def never_two(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """Never two copies of one service: one at most listens, and who answers is who holds the lock."""
    listening: dict[str, set[int]] = defaultdict(set)
    promise = "never two copies of one service"
    said: set[frozenset[int]] = set()
    for event in history:
        match event:
            case Listens(on=True):
                listening[event.name].add(event.pid)
            case Listens() | Vanished():
                listening[event.name].discard(event.pid)
            case Looked():
                for name, pids in listening.items():
                    if len(pids) > 1 and frozenset(pids) not in said:
                        said.add(frozenset(pids))
                        text = f"pids {', '.join(map(str, sorted(pids)))} of it listen at the same time"
                        yield Violation(promise=promise, at_s=event.at_s, name=name, text=text)
            case Answered():
                life = next((each for each in story.lives[event.name] if each.pid == event.pid), None)
                ended = life is not None and life.ended_s is not None and life.ended_s - life.began_s < 1.0
                if life is not None and not life.held and not ended and story.over_s - event.at_s > 2.0:
                    text = f"pid {event.pid} answers for it and never had its lock"
                    yield Violation(promise=promise, at_s=event.at_s, name=event.name, text=text)
            case _:
                continue


def never_none(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """Never none for longer than it may take to notice, to wait as declared, and to start."""
    del history
    for outage in story.outages:
        terms = allowance(story, outage)
        allowed_s, lasted_s = sum(terms.values()), outage.to_s - outage.from_s
        if lasted_s > allowed_s:
            of = " + ".join(f"{what} {seconds:.1f}" for what, seconds in terms.items() if seconds >= 0.05)
            text = f"nobody answered for {lasted_s:.1f} s; allowed were {allowed_s:.1f} s: {of}"
            yield Violation(
                promise="never none longer than restart and backoff", at_s=outage.to_s, name=outage.name, text=text
            )


def allowance(story: Story, outage: Outage) -> dict[str, float]:
    """How long that outage may last, by what it is for."""
    began, name, from_s, to_s = story.began, outage.name, outage.from_s, outage.to_s
    slowness = story.slowness(from_s, to_s)
    faults = [
        fault
        for fault in story.faults
        if fault.name == name and fault.fault != "crash_loop" and from_s - 2.0 <= fault.at_s <= to_s
    ]
    faulty = [fault for life in story.lives[name] for fault in life.faults if fault.deadly and life.began_s <= to_s]
    ends = [life for life in story.lives[name] if life.ended_s is not None and from_s - 1.0 <= life.ended_s <= to_s]
    begun = [life for life in story.lives[name] if from_s - 1.0 <= life.began_s <= to_s]
    starts = [story.start_s(name, life.began_s, min(life.ended_s or to_s, to_s)) for life in begun]
    orders = [span for span in story.orders(name, "restart", "stop", "start") if span.overlap_s(from_s - 1.0, to_s) > 0]
    replaced = any(span.overlap_s(from_s - 1.0, to_s) > 0 for span in story.unsupervised)
    return {
        "noticing": sum(story.stretched_s(fault.at_s, fault.notice_s) for fault in faults),
        "a fault that goes on": sum(fault.lasts_s for fault in faults),
        "backoff": sum(story.backoff_s(life) for life in ends),
        "starting": sum(starts) or SLACK * story.bare_s(from_s, to_s),
        "draining": (began.drain_s + slowness) * bool(ends) + began.stop_wait_s * len(orders),
        "no supervisord": story.overlap_s(story.unsupervised, from_s, to_s),
        "its orphan": 0.0 if not replaced else (ORPHAN_GRACE_S if faulty else began.drain_s + 1.0),
        "wanted down": story.overlap_s(story.put_down(name), from_s, to_s),
        "given up or held": story.overlap_s(story.given_up(name), from_s, to_s),
        "overload": story.overlap_s(story.overloads, from_s, to_s + 2.0),
        "observing": 2.0 * began.request_every_s + began.request_timeout_s + story.late_s(from_s, to_s),
    }


def noticed(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """What is to end of a fault does, in the time that noticing, draining and a grace may take."""
    del history
    for lives in story.lives.values():
        for life in lives:
            for fault in life.faults:
                if not fault.deadly or fault.fault == "crash_loop":
                    continue
                ended_s = life.ended_s if life.ended_s is not None else story.over_s
                lasted_s = ended_s - fault.at_s
                noticing_s = story.stretched_s(fault.at_s, fault.notice_s + story.began.drain_s)
                allowed_s = (
                    noticing_s
                    + SLACK * story.bare_s(fault.at_s, fault.at_s + noticing_s)
                    + story.overlap_s(story.unsupervised, fault.at_s, ended_s)
                    + story.overlap_s(story.overloads, fault.at_s, ended_s + 2.0)
                    + story.late_s(fault.at_s, ended_s)
                )
                due_s = min(ended_s, fault.at_s + noticing_s)
                if any(span.overlap_s(fault.at_s - 1.0, due_s) > 0 for span in story.unsupervised):
                    due_s = min(ended_s, due_s + ORPHAN_GRACE_S)
                    allowed_s += ORPHAN_GRACE_S + story.start_s(life.name, fault.at_s, due_s)
                if lasted_s > allowed_s and fault.at_s + allowed_s < story.ending_s:
                    text = f"{fault.fault} of pid {life.pid} ended it after {lasted_s:.1f} s; allowed: {allowed_s:.1f}"
                    if life.ended_s is None:
                        text = f"{fault.fault} of pid {life.pid} was not noticed within {allowed_s:.1f} s"
                    yield Violation(promise="what hangs is replaced", at_s=ended_s, name=life.name, text=text)


def outcomes(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """Every command ends in one outcome, and has one effect at most."""
    ends: dict[str, int] = defaultdict(int)
    for report in story.died:
        ends[report.ordered_by] += 1
    journal = {event.id: event for event in history if isinstance(event, Journaled)}
    promise = "every command ends in an outcome, with one effect at most"
    for id_, asked in story.asked.items():
        what = f"{asked.verb} {id_}"
        kinds = {told.kind for told in story.told[id_]}
        at_s = max((told.at_s for told in story.told[id_]), default=story.over_s)
        problem = ""
        if not kinds:
            problem = f"{what} has no outcome"
        elif len(kinds) > 1:
            problem = f"{what} has several outcomes: {', '.join(sorted(kinds))}"
        elif not kinds <= {"done", "failed", "rejected", "unknown"}:
            problem = f"{what} ended as {kinds.pop()!r}"
        elif id_ in journal and journal[id_].stage != "ended":
            problem = f"{what} is {journal[id_].stage} in ATLAS's journal, and its operator was told {kinds.pop()}"
        elif id_ in journal and {journal[id_].kind} != kinds:
            problem = f"{what} is {journal[id_].kind} in ATLAS's journal, and its operator was told {kinds.pop()}"
        elif ends[id_] > 1:
            problem = f"{what} ended {ends[id_]} processes"
        elif ends[id_] and (kinds == {"rejected"} or asked.verb not in ("restart", "stop")):
            problem = f"{what} was {kinds.pop()} and ended a process"
        if problem:
            yield Violation(promise=promise, at_s=at_s, name=asked.name, text=problem)


def within_budget(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """No more starts in a window than declared, but for those that somebody ordered or the process asked for itself."""
    del history
    began = story.began
    for name, lives in story.lives.items():
        if name == SUPERVISORD:
            continue
        ordered = story.orders(name, "start", "restart")
        counted: list[float] = []
        before: Life | None = None
        for life in lives:
            is_ordered = any(span.from_s - 0.5 <= life.began_s <= span.to_s + 1.0 for span in ordered)
            if is_ordered or (before is not None and before.supervisor != life.supervisor):
                counted.clear()
            counted = [each for each in counted if life.began_s - each < began.window_s - 0.5] + [life.began_s]
            status = before.report.wait_status if before is not None and before.report is not None else None
            asked_for = status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == os.EX_TEMPFAIL
            if len(counted) > began.budget and not asked_for:
                text = f"{len(counted)} starts in {began.window_s:g} s, the budget is {began.budget}"
                yield Violation(promise="starts within the budget", at_s=life.began_s, name=name, text=text)
            before = life


def quarantined(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """What ends again and again is given up."""
    del history
    for fault in story.faults:
        if fault.fault != "crash_loop":
            continue
        from_s, to_s = story.span_of(fault)
        if any(span.overlap_s(from_s - 1.0, to_s) > 0 for span in story.unsupervised):
            continue
        if not any(row.state == "FATAL" and from_s <= row.at_s <= to_s + 1.0 for row in story.rows[fault.name]):
            text = f"it ended again and again for {to_s - from_s:.1f} s and was not quarantined"
            yield Violation(promise="starts within the budget", at_s=to_s, name=fault.name, text=text)


def with_evidence(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """Every end has a post-mortem; every kill in it a verdict, an order, or the soak's own hand."""
    del history
    promise = "no kill without recorded evidence"
    for name, lives in story.lives.items():
        for life in lives:
            if name == SUPERVISORD or life.ended_s is None:
                continue
            if life.report is None:
                if not story.was_killed(life.supervisor, life.ended_s + REAPED_S) and life.ended_s < story.ending_s:
                    text = f"pid {life.pid} ended, and no post-mortem says how"
                    yield Violation(promise=promise, at_s=life.ended_s, name=name, text=text)
                continue
            report = life.report
            if not os.WIFSIGNALED(report.wait_status) or any(fault.kills for fault in life.faults):
                continue
            number = os.WTERMSIG(report.wait_status)
            if number in (signal.SIGKILL, signal.SIGABRT) and not report.verdict and not report.ordered_by:
                text = f"pid {life.pid} was killed by signal {number}; neither a verdict nor an order is recorded"
                yield Violation(promise=promise, at_s=life.ended_s, name=name, text=text)


def one_atlas(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """A second ATLAS in the run directory refuses, with 78."""
    del story
    for event in history:
        if isinstance(event, Exited) and event.what == "second_atlas" and event.code != EX_CONFIG:
            text = f"a second one was started and exited with {event.code}"
            yield Violation(promise="one ATLAS", at_s=event.at_s, name=ATLAS, text=text)


def healthy_live(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """A process to which nothing was done, and of which nobody asked it, does not end."""
    del history
    for name, lives in story.lives.items():
        for life in lives:
            ended_s = life.ended_s
            if name == SUPERVISORD or ended_s is None or ended_s >= story.ending_s:
                continue
            if any(fault.deadly for fault in life.faults) or story.was_killed(life.supervisor, ended_s):
                continue
            orders = [
                asked for asked in story.asked.values() if asked.name == name and asked.verb in ("restart", "stop")
            ]
            by = life.report.ordered_by if life.report is not None else ""
            if any(asked.at_s <= ended_s and asked.id == by for asked in orders):
                continue
            how = life.report.verdict or life.report.end if life.report is not None else "nobody knows how"
            ordered = f", ordered by {by}" if by else ""
            text = f"pid {life.pid}, to which nothing was done, ended: {how}{ordered}"
            yield Violation(promise="no healthy process ends", at_s=ended_s, name=name, text=text)


def whole_tree_ends(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """What a process has started goes with it."""
    del history
    mains = {life.mark: life for lives in story.lives.values() for life in lives if life.mark}
    for child in story.children:
        main = mains.get(child.mark)
        if main is None or main.ended_s is None:
            continue
        ended_s = child.ended_s if child.ended_s is not None else story.over_s
        allowed_s = story.stretched_s(main.ended_s, SWEPT_S)
        allowed_s += story.overlap_s(story.unsupervised, main.ended_s, ended_s)
        allowed_s += story.overlap_s(story.overloads, main.ended_s, ended_s)
        if ended_s - main.ended_s > allowed_s:
            text = f"pid {child.pid}, of pid {main.pid}, lived {ended_s - main.ended_s:.1f} s longer than that"
            yield Violation(promise="nothing is left", at_s=ended_s, name=child.name, text=text)


DOCUMENTED = (
    "*.log",
    "*.log.[0-9]*",
    "locks/*.lock",
    "operator.token",
    "postmortems/*/*.json",
    "state/*",
    "supervisord.conf",
)
"""What a run directory still holds when its fleet is down; docs/soak.md. ``*`` is also any path below."""


def nothing_left(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """In the end no process, socket, lock, descriptor or file is left but those that are documented."""
    left = next((event for event in history if isinstance(event, Left)), None)
    promise = "nothing is left"
    if left is None:
        yield Violation(promise=promise, at_s=story.over_s, name="", text="the fleet's end was not recorded")
        return
    files = tuple(each for each in left.files if not any(fnmatch(each, pattern) for pattern in DOCUMENTED))
    found = {"processes": left.processes, "sockets": left.sockets, "locks": left.locks, "files": files}
    for what, which in found.items():
        if which:
            text = f"{len(which)} {what} are left: {', '.join(which[:10])}"
            yield Violation(promise=promise, at_s=left.at_s, name="", text=text)
    if left.down_exit:
        text = f"cdnctl down exited with {left.down_exit}"
        yield Violation(promise=promise, at_s=left.at_s, name="", text=text)
    if left.recorder_fds > 0:
        text = f"the recorder has {left.recorder_fds} descriptors more than before"
        yield Violation(promise=promise, at_s=left.at_s, name="", text=text)


def flat(history: Sequence[Event], story: Story) -> Iterator[Violation]:
    """Memory and descriptors of supervisord, ATLAS and the daemons do not grow, beyond what fills once."""
    for kind, name, span_s, at_s, grown_bytes, grown_fds in growth(history, story):
        may_bytes = ONCE_BYTES[kind] + STEADY_BYTES_PER_S[kind] * span_s
        if grown_bytes > may_bytes:
            text = f"its memory grew by {grown_bytes / 2**20:.1f} MiB in {span_s:.0f} s, {may_bytes / 2**20:.1f} may be"
            yield Violation(promise="memory and descriptors are flat", at_s=at_s, name=name, text=text)
        if grown_fds > ONCE_FDS[kind]:
            text = f"its descriptors grew by {grown_fds:.0f} in {span_s:.0f} s, {ONCE_FDS[kind]} may be"
            yield Violation(promise="memory and descriptors are flat", at_s=at_s, name=name, text=text)


def growth(history: Sequence[Event], story: Story) -> Iterator[tuple[str, str, float, float, float, float]]:
    """Kind, name, seconds, when, bytes and descriptors grown, by the median slope: of each long undisturbed life."""
    used: dict[tuple[str, int], list[Used]] = defaultdict(list)
    for event in history:
        if isinstance(event, Used) and event.at_s < story.ending_s:
            used[event.name, event.pid].append(event)
    for name, lives in story.lives.items():
        kind = name if name in (SUPERVISORD, ATLAS) else DAEMON
        for life in lives:
            until_s = min([each.at_s for each in life.faults], default=story.over_s)
            until_s = min(until_s, life.ended_s or story.over_s)
            warm_s = max(story.settled_s(life.began_s), min(life.served_s, story.over_s)) + WARM_UP_S
            if kind == SUPERVISORD:
                warm_s = story.settled_s(life.began_s + WARM_UP_S) + WARM_UP_S  # it has yet to start the first one
            samples = [each for each in used[name, life.pid] if warm_s <= each.at_s < until_s]
            if len(samples) < 4 or samples[-1].at_s - samples[0].at_s < FLAT_AFTER_S:
                continue
            floor = ATLAS_FDS_EACH * len(story.began.services) if kind == ATLAS else 0
            span_s = samples[-1].at_s - samples[0].at_s
            yield (
                kind,
                name,
                span_s,
                samples[-1].at_s,
                span_s * _slope([(each.at_s, float(each.rss_bytes)) for each in samples]),
                span_s * _slope([(each.at_s, float(max(each.fds, floor))) for each in samples]),
            )


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median of the slopes between any two, which a few outliers do not move."""
    few = points[:: max(1, len(points) // 60)]
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(few) for x2, y2 in few[i + 1 :] if x2 > x1]
    return statistics.median(slopes) if slopes else 0.0


PROMISES: tuple[Callable[[Sequence[Event], Story], Iterator[Violation]], ...] = (
    never_two,
    never_none,
    noticed,
    outcomes,
    within_budget,
    quarantined,
    with_evidence,
    one_atlas,
    healthy_live,
    whole_tree_ends,
    nothing_left,
    flat,
)


def judge(history: Sequence[Event]) -> list[Violation]:
    """All that was not kept, oldest first."""
    story = Story(history)
    return sorted((each for check in PROMISES for each in check(history, story)), key=lambda each: each.at_s)


def around(
    history: Sequence[Event], violation: Violation, *, before_s: float = 15.0, after_s: float = 2.0
) -> list[Event]:
    """The events of that service, and those of everybody's concern, around a violation."""
    from_s, to_s = violation.at_s - before_s, violation.at_s + after_s
    everybodys = ("", SUPERVISORD, ATLAS)
    return [
        event
        for event in history
        if from_s <= event.at_s <= to_s
        and not isinstance(event, Looked | Used | Bare)
        and getattr(event, "name", "") in (violation.name, *everybodys)
    ]
