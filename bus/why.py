"""Why a process ended: what is known of one life of it, put together. Pure.

ATLAS gives everything; without ATLAS the post-mortems alone, as files, still tell the most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import CommandView, Event, IncarnationView, StatusSample
from bus.postmortems import Filed

HOUR_S = 3600.0
DAY_S = 86400.0

_THREAD = re.compile(r"^(?:Current t|T)hread 0x[0-9a-f]+.*:$", re.MULTILINE)
"""How faulthandler begins each thread; the main thread is the last of a dump."""
_FRAME = re.compile(r'^  File "(?P<file>[^"\n]*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_LIMIT = re.compile(r"(?P<limit>[a-z_]+ [^:;\n]{1,40}: over the (?:hard|soft) limit of [0-9.e+]+(?: [A-Za-z]+)?)")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning)(?:: .*)?$")
_FRAMEWORK = re.compile(r"(?<!/tests)/cdn_daemon/")
_LIBRARY = re.compile(r"/lib/python3[^/]*/|^<frozen ")
_INSTALLED = re.compile(r"/(?:site|dist)-packages/")
_LOG_LINES = 40


@dataclass(frozen=True)
class Circumstances:
    """What ATLAS's history has of one life beside its post-mortem; without ATLAS none of it."""

    incarnation: int | None = None
    host: str | None = None
    pid: int | None = None
    started_s: float | None = None
    ended_s: float | None = None
    """When it was last heard, if it is known to have ended."""
    statuses: Sequence[StatusSample] = ()
    events: Sequence[Event] = ()
    commands: Sequence[CommandView] = ()
    ends_last_hour: int | None = None
    ends_last_day: int | None = None


def of_files(ends: Sequence[Filed], limit: int) -> tuple[IncarnationView, ...]:
    """The last ends of one program, newest first, by its post-mortems, oldest first."""

    def count(filed: Filed, within_s: float) -> int:
        return sum(filed.ended_s - within_s < other.ended_s <= filed.ended_s for other in ends)

    return tuple(
        view(
            filed.instance,
            filed,
            Circumstances(ends_last_hour=count(filed, HOUR_S), ends_last_day=count(filed, DAY_S)),
        )
        for filed in list(reversed(ends))[:limit]
    )


def view(instance: str, filed: Filed | None, known: Circumstances) -> IncarnationView:
    """One life with all that there is of it; without a post-mortem it is not known how it ended, or it has not."""
    if filed is None:
        lived_s = known.ended_s - known.started_s if known.ended_s is not None and known.started_s is not None else None
        return IncarnationView(
            key=str(known.incarnation),
            instance=instance,
            incarnation=known.incarnation,
            host=known.host,
            pid=known.pid,
            started_s=known.started_s,
            ended_s=known.ended_s,
            lived_s=lived_s,
            summary="runs" if known.ended_s is None else "nobody saw how it ended",
            statuses=tuple(known.statuses),
            events=tuple(known.events),
            commands=tuple(known.commands),
            ends_last_hour=known.ends_last_hour,
            ends_last_day=known.ends_last_day,
        )
    report = filed.report
    incarnation = report.incarnation if report.incarnation is not None else known.incarnation
    stacks, guilty = explain(report.stacks)
    limit = limit_in(report.verdict, report.last_status, report.end, *_texts(known))
    return IncarnationView(
        key=filed.key if incarnation is None else str(incarnation),
        instance=instance,
        incarnation=incarnation,
        host=report.host,
        pid=report.pid,
        start=report.start,
        started_s=filed.ended_s - report.lived_s,
        ended_s=filed.ended_s,
        lived_s=report.lived_s,
        ready_after_s=report.ready_after_s,
        summary=summary(filed, limit, guilty),
        end=report.end,
        wait_status=report.wait_status,
        verdict=report.verdict,
        spared=report.spared,
        limit=limit,
        ordered_by=report.ordered_by,
        follows=report.follows,
        last_status=report.last_status,
        errno=report.errno,
        guilty=guilty,
        stacks=stacks,
        log_tail=report.log_tail,
        statuses=tuple(known.statuses),
        events=tuple(known.events),
        commands=tuple(known.commands),
        ends_last_hour=known.ends_last_hour,
        ends_last_day=known.ends_last_day,
    )


def summary(filed: Filed, limit: str, guilty: str) -> str:
    """How it ended and the best reason there is, in one line."""
    report = filed.report
    parts = [report.end]
    if report.ordered_by:
        parts.append(f"ordered by {report.ordered_by}")
    else:
        if limit and limit not in report.end:
            parts.append(limit)
        if report.verdict and guilty:
            parts.append(f"while in {guilty}")
        exception = raised(report.log_tail)
        if exception and not report.verdict and not limit:
            parts.append(exception)
        if report.ready_after_s is None:
            parts.append("before it was ready")
    return "; ".join(parts)


def limit_in(*texts: str) -> str:
    """The first limit that one of the texts says was exceeded, a hard one before a soft one; empty if none does."""
    found = [match["limit"] for text in texts for match in _LIMIT.finditer(text)]
    return next((limit for limit in found if "hard limit" in limit), found[0] if found else "")


def _texts(known: Circumstances) -> list[str]:
    """What was said last of this life's health, and of no other's."""
    return [
        event.text
        for event in known.events
        if event.kind == "health" and event.subject_incarnation == known.incarnation is not None
    ][-1:]


def raised(log_tail: str) -> str:
    """The exception that the log ends with; empty if it ends with none."""
    lines = log_tail.splitlines()[-_LOG_LINES:]
    in_traceback = "Traceback (most recent call last):" in log_tail
    return next((line for line in reversed(lines) if in_traceback and _EXCEPTION.match(line)), "")


def explain(stacks: str) -> tuple[str, str]:
    """The stacks with the main thread's first, and the frame of its own code that this was in.

    Its own is what belongs neither to Python nor to this project; of installed packages
    only if there is nothing else, and of anything only if there is nothing else again.
    """
    begins = [match.start() for match in _THREAD.finditer(stacks)]
    if not begins:
        return stacks, ""
    blocks = [stacks[a:b] for a, b in zip(begins, [*begins[1:], len(stacks)], strict=True)]
    main = blocks.pop()
    frames = [
        (match["file"], f"{match['file']}:{match['line']} in {match['function']}") for match in _FRAME.finditer(main)
    ]
    guilty = next(
        (
            text
            for is_own in (_is_own, lambda file: not _is_ours(file), lambda _: True)
            for file, text in frames
            if is_own(file)
        ),
        "",
    )
    before = stacks[: begins[0]].strip()
    ordered = [main.rstrip(), *(block.rstrip() for block in reversed(blocks))]
    return "\n\n".join([before, *ordered] if before else ordered) + "\n", guilty


def _is_ours(file: str) -> bool:
    """Of Python or of this project."""
    return bool(_FRAMEWORK.search(file)) or bool(_LIBRARY.search(file) and not _INSTALLED.search(file))


def _is_own(file: str) -> bool:
    return not _is_ours(file) and not _INSTALLED.search(file)
