"""``cdnctl why``: what happened to a service and what to do, on one screen. Pure."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence

from bus.messages import HealthStatus, IncarnationView, ProcessState, ServiceView, Verb
from cli.answers import HEALTH_COLOURS, STATE_COLOURS, command_text
from cli.rendering import ABSENT, Screen, clean, cpu, duration, local_time, paint, quantity, size, spark
from cli.selection import is_well

_CONFIGURATION_ERROR = os.EX_CONFIG
_SYSEXITS = {
    os.EX_USAGE: "EX_USAGE, wrong arguments",
    os.EX_DATAERR: "EX_DATAERR, wrong input",
    os.EX_NOINPUT: "EX_NOINPUT, an input that is missing",
    os.EX_UNAVAILABLE: "EX_UNAVAILABLE, a service that is missing",
    os.EX_SOFTWARE: "EX_SOFTWARE, an error in the program itself",
    os.EX_OSERR: "EX_OSERR, an error of the operating system",
    os.EX_CANTCREAT: "EX_CANTCREAT, an output that cannot be made",
    os.EX_IOERR: "EX_IOERR, an input or output error",
    os.EX_TEMPFAIL: "EX_TEMPFAIL, try again",
    os.EX_NOPERM: "EX_NOPERM, no permission",
    os.EX_CONFIG: "EX_CONFIG, a configuration error",
}
"""sysexits.h"""
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS})
_STOPPED = "stopped by a signal"
_NOT_READY = "not ready within"
"""The warden's words, cdn_daemon/warden/judge.py."""
_SIGNALLED_S = 5.0
"""Between a signal and the end that it is held to have caused."""
_STACK_LINES = 9
_LOG_LINES = 8
_EVENTS = 4
_KEY = 9


def story(
    name: str,
    view: ServiceView | None,
    lives: Sequence[IncarnationView],
    *,
    now_s: float,
    screen: Screen,
    full: bool = False,
) -> list[str]:
    """One service: how it is, then each end, newest first, then what to do. ``full`` leaves nothing out."""
    ended = [life for life in lives if life.ended_s is not None or life.end]
    lines = [_headline(name, view, screen)]
    if not ended:
        lines.append("  no end of it is on record")
    for life in ended:
        lines += ["", *_end(life, now_s, screen, full)]
    steps = advice(name, view, ended[0] if ended else None)
    return [*lines, "", paint("what to do", "bold", screen), *(f"  {step}" for step in steps)]


def _headline(name: str, view: ServiceView | None, screen: Screen) -> str:
    if view is None:
        return f"{paint(name, 'bold', screen)}  is not running here; this is what its post-mortems say"
    parts = [paint(view.state.value, STATE_COLOURS[view.state], screen)]
    if view.health is not HealthStatus.UNKNOWN:
        parts.append(paint(view.health.value, HEALTH_COLOURS[view.health], screen))
    if view.pid is not None:
        since = f"pid {view.pid}, up {duration(view.uptime_s)}"
        parts.append(f"#{view.incarnation}, {since}" if view.incarnation is not None else since)
    if view.restarts:
        parts.append("1 restart" if view.restarts == 1 else f"{view.restarts} restarts")
    if not view.enabled:
        parts.append("disabled")
    if view.maintenance:
        parts.append("in maintenance")
    reason = f"\n  {clean(view.reason)}" if view.reason else ""
    return f"{paint(name, 'bold', screen)}  {', '.join(parts)}{reason}"


def _end(life: IncarnationView, now_s: float, screen: Screen, full: bool) -> list[str]:
    which = f"#{life.incarnation}" if life.incarnation is not None else f"start {life.start}"
    when = "at an unknown time"
    if life.ended_s is not None:
        when = f"{duration(now_s - life.ended_s)} ago, {local_time(life.ended_s)}"
    lines = [f"{paint(f'{which} ended {when}', 'bold', screen)}"]

    def line(key: str, text: str, colour: str = "") -> None:
        if text:
            lines.append(f"  {paint(key.ljust(_KEY), 'dim', screen)} {paint(clean(text), colour, screen)}")

    lived = f"for {duration(life.lived_s)}" if life.lived_s is not None else ""
    ready = f"ready after {duration(life.ready_after_s)}" if life.ready_after_s is not None else "never ready"
    if not life.end:  # without a post-mortem nobody knows
        ready = ""
    how = life.end.partition(":")[0] if life.verdict and life.verdict in life.end else life.end
    line("how", how or "nobody saw how", "" if life.ordered_by else "red")
    line("guilty", life.guilty, "red")
    line("lived", ", ".join(part for part in (lived, ready, f"pid {life.pid}" if life.pid else "") if part))
    line("verdict", life.verdict, "yellow")
    line("limit", life.limit, "yellow")
    line("spared", life.spared)
    line("ordered", f"by {life.ordered_by}" if life.ordered_by else "by nobody")
    line("said last", life.last_status)
    line("error", _error(life))
    line("how often", _often(life))
    line("follows", life.follows)
    for command in life.commands[-3:]:
        line("asked", f"{local_time(command.asked_at_s)}  {command_text(command)}")
    for trend in _trends(life):
        line("before", trend)
    for event in life.events if full else life.events[-_EVENTS:]:
        line("event", f"{local_time(event.time_s)}  {event.kind}: {event.text}")
    lines += _block("stacks", life.stacks, None if full else _STACK_LINES, screen, newest=False)
    lines += _block("log", life.log_tail, None if full else _LOG_LINES, screen, newest=True)
    return lines


def _error(life: IncarnationView) -> str:
    """What it gave as ERRNO=, in words. Ours give the code that they end with; sd_notify(3) means errno(3)."""
    if life.errno is None:
        return ""
    if life.errno in _SYSEXITS and life.errno == _exit_code(life):
        return f"{life.errno}: {_SYSEXITS[life.errno]}"
    name = errno.errorcode.get(life.errno)
    return f"{life.errno}: {os.strerror(life.errno)} ({name})" if name else f"{life.errno}, which is no errno"


def _exit_code(life: IncarnationView) -> int | None:
    """Of an end by itself; None after a signal, or if nobody knows."""
    status = life.wait_status
    return None if status is None or status & 0x7F else status >> 8


def _often(life: IncarnationView) -> str:
    counts = ((life.ends_last_hour, "hour"), (life.ends_last_day, "day"))
    # Just after an end ATLAS may not have counted it yet.
    told = [f"{max(many, 1)} in that {span}" for many, span in counts if many is not None]
    return f"this one included, {', '.join(told)}" if told else ""


def _trends(life: IncarnationView) -> Iterator[str]:
    """The last statuses before the end, as small bars: what grew is seen at a glance."""
    samples = life.statuses
    if len(samples) < 2:
        return
    span = f"last {duration(samples[-1].time_s - samples[0].time_s)}"
    numbers: list[tuple[str, list[float | None], str]] = [
        ("memory", [sample.rss_bytes for sample in samples], size(samples[-1].rss_bytes)),
        ("cpu", [sample.cpu_cores for sample in samples], cpu(samples[-1].cpu_cores)),
        ("loop lag", [sample.loop_lag_s for sample in samples], quantity("loop_lag_s", samples[-1].loop_lag_s)),
        ("in flight", [float(sample.in_flight) for sample in samples], str(samples[-1].in_flight)),
    ]
    for label, values, last in numbers:
        known = {value for value in values if value is not None}
        if len(known) > 1:
            yield f"{label:9} {spark(values)}  {last} at the end ({span})"


def _block(key: str, text: str, most: int | None, screen: Screen, *, newest: bool) -> list[str]:
    """Some lines of a text, the last or the first of it; and how many there are more."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    shown = lines if most is None else lines[-most:] if newest else lines[:most]
    more = len(lines) - len(shown)
    left = f", {more} {'line' if more == 1 else 'lines'} more with --full" if more else ""
    return [f"  {paint(f'{key}{left}', 'dim', screen)}", *(f"    {clean(line)}" for line in shown)]


def advice(name: str, view: ServiceView | None, life: IncarnationView | None) -> list[str]:
    """The next steps that the evidence suggests, the most pressing first; commands are to be typed as they stand."""
    return list(dict.fromkeys([*_about_the_present(name, view, life), *_about_the_end(name, view, life)])) or [
        "nothing: it runs and is well"
        if view is not None and is_well(view)
        else f"see what it wrote: cdnctl logs {name} -n 100"
    ]


def _about_the_present(name: str, view: ServiceView | None, life: IncarnationView | None) -> Iterator[str]:
    if view is None:
        yield "start the fleet: cdnctl up"
        return
    if not view.enabled:
        yield f"it is kept down on purpose; when it may run again: cdnctl enable {name}"
    elif view.state is ProcessState.FATAL:
        yield f"it was given up after too many failures: mend the cause, then: cdnctl start {name}"
    elif view.state is ProcessState.BACKOFF:
        yield "it is started again by itself, at the time that its reason names; sooner: cdnctl restart " + name
    elif view.state is ProcessState.EXITED and life is not None and _exit_code(life) == _CONFIGURATION_ERROR:
        pass  # to start it as it is would help nobody
    elif view.state in (ProcessState.STOPPED, ProcessState.EXITED):
        yield f"it is down and stays down; start it: cdnctl start {name}"
    elif view.state is ProcessState.RUNNING and view.health in (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED):
        yield f"it runs and is {view.health}: {clean(view.reason) or 'it does not say why'}"
    if view.maintenance:
        yield f"it is in maintenance, so that no hang is noticed; when you are done: cdnctl maintenance {name} --off"


def _about_the_end(name: str, view: ServiceView | None, life: IncarnationView | None) -> Iterator[str]:
    if life is None:
        return
    status = life.wait_status
    if life.ordered_by:
        yield f"its last end was ordered by {life.ordered_by}: nothing is to be mended"
        return
    if _exit_code(life) == _CONFIGURATION_ERROR:
        wrong = clean(life.last_status) or f"the end of its log says how: cdnctl logs {name}"
        yield f"its configuration is wrong: {wrong}"
        yield f"mend it in [program:{name}] of supervisord.conf, or in what it reads; then: cdnctl start {name}"
        return
    if life.limit:
        dimension = life.limit.split()[0]
        if life.guilty:  # known of a blocked loop only
            yield f"its event loop was blocked by {life.guilty}: have that in a thread (asyncio.to_thread)"
        yield f"see how it grew: cdnctl history {name} --metric {dimension}"
        yield f"if it needs that much: cdnctl limits {name} --set {dimension}.hard=…, and in its own declaration"
    elif _STOPPED in life.verdict:
        yield "somebody stopped it with a signal, such as SIGSTOP, and did not let it go on"
        yield f"where that has to be: cdnctl maintenance {name} --on --for 1h"
    elif life.verdict.startswith(_NOT_READY):
        yield f"it did not say READY=1 in time; what it waited for may be in its log: cdnctl logs {name} -n 100"
        yield f"if it needs longer: ready_s= in [program:{name}] of supervisord.conf"
    elif life.verdict:
        where = f" in {life.guilty}" if life.guilty else ""
        yield f"it hung{where}: that call has to end sooner, or be declared with long_call(seconds)"
        yield f"while you look at it with a debugger: cdnctl maintenance {name} --on --for 1h"
    elif sender := _sender(life):
        yield f"a signal of {sender} ended it: nothing is to be mended"
    elif status is not None and status & 0x7F == 9:
        yield "somebody killed it, and not the warden: was it out of memory? journalctl -k | grep -i 'out of memory'"
    elif status is not None and status & 0x7F in _CRASHES:
        yield "it crashed in native code: see the stacks, and the core if there is one: coredumpctl info"
    elif status is not None and status & 0x7F:
        yield "somebody sent it that signal, and not by way of ATLAS or the warden"
    elif life.end:
        yield f"it ended by itself: cdnctl logs {name} -n 100"
    if (life.ends_last_hour or 0) > 3:
        yield f"it keeps ending: what changed before the first of them? cdnctl history {name}"
    if view is not None and view.state is ProcessState.RUNNING and (life.ends_last_hour or 0) <= 1:
        yield "it runs again; once is no pattern"


def _sender(life: IncarnationView) -> str:
    """Who had sent it a signal just before its end; empty if nobody had."""
    return next(
        (
            command.asked_by
            for command in reversed(life.commands)
            if command.verb is Verb.SIGNAL
            and life.ended_s is not None
            and 0 <= life.ended_s - command.asked_at_s <= _SIGNALLED_S
        ),
        "",
    )


def plain(name: str, view: ServiceView | None, lives: Sequence[IncarnationView]) -> dict[str, object]:
    """The same for JSON."""
    ended = [life for life in lives if life.ended_s is not None or life.end]
    return {
        "name": name,
        "service": view,
        "incarnations": list(lives),
        "advice": advice(name, view, ended[0] if ended else None),
    }


def one_line(lives: Sequence[IncarnationView], now_s: float) -> str:
    """The last end in a line."""
    life = next((life for life in lives if life.ended_s is not None), None)
    if life is None or life.ended_s is None:
        return ABSENT
    return f"{duration(now_s - life.ended_s)} ago: {clean(life.summary or life.end)}"
