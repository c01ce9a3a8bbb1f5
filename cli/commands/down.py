"""cdnctl down."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import click

from bus.endpoints import RunDir
from cli.answers import document, json_line
from cli.belonging import belonging, topmost
from cli.context import output_options, run_dir_of, say, timeout_option, write
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, instance_of, recorded_pid
from cli.launching import alone
from cli.progress import Mark, Progress
from cli.rendering import Format, Output

_LOOK_S = 0.1
_GRACE_S = 15.0
"""From asking a process without a supervisord to end to killing it: what supervisord.conf gives, too."""


@click.command("down")
@timeout_option("60s")
@output_options(formats=(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME))
@click.pass_context
def command(ctx: click.Context, timeout_s: float, output: Output) -> int:
    """Stop every service, then supervisord.

    supervisord stops its programs in reverse order, each of which drains; this returns when all processes are
    gone, so that the next cdnctl up finds nothing in its way. A supervisord whose socket is gone is ended, too, and
    so are services that outlived theirs, by force if they have not ended after 15 s.

    Exit code: 0 nothing runs any more, also if nothing did; 1 supervisord does not answer; 124 something still
    ran when the time was over.

    \b
    Examples:
      cdnctl down
      cdnctl down --timeout 10s || cdnctl status
    """
    run_dir = run_dir_of(ctx)
    ended = end_fleet(run_dir, timeout_s)
    if output.format is Format.JSON:
        write(document({"ended": ended}))
    elif output.is_machine:
        write([json_line({"name": name}) if output.format is Format.JSONL else name for name in ended])
    elif not ended:
        say(f"already down: no fleet runs in {run_dir.path}")
    else:
        say(f"down: {_counted(len(ended))} ended in {run_dir.path}")
    return Exit.OK


def end_fleet(run_dir: RunDir, timeout_s: float) -> list[str]:
    """End supervisord and everything else of the run directory; the names of what has ended. Raises Problem."""
    deadline_s = time.monotonic() + timeout_s
    ended: list[str] = []
    with alone(run_dir, deadline_s, "end the fleet", Exit.TIMED_OUT):
        if found := _shut_down(run_dir):
            wait(found, deadline_s, timeout_s, ended)
        _end_what_is_left(run_dir, deadline_s, timeout_s, ended)
    return ended


def _shut_down(run_dir: RunDir) -> dict[str, int]:
    """Tell supervisord to end; name → pidfd of it and of each of its processes. None if it does not run."""
    supervisord = Supervisord(run_dir)
    try:
        pid = supervisord.pid()
        processes = {instance_of(row): row.pid for row in supervisord.processes() if row.pid is not None}
        fds = _opened({**processes, "supervisord": pid})
        supervisord.shutdown()
    except NoSupervisord:
        return {}
    except SupervisordRefused:  # it is shutting down already, and answers nothing else
        pid = recorded_pid(run_dir) or 0
        return _opened({**{f"pid {child}": child for child in _children(pid)}, "supervisord": pid})
    except SupervisordSilent as error:
        raise Problem(f"cannot stop the fleet in {run_dir.path}: {error}", Exit.FAILED) from error
    return fds


def _end_what_is_left(run_dir: RunDir, deadline_s: float, timeout_s: float, ended: list[str]) -> None:
    """End each supervisord that cannot be reached, then what has none any more, until there is nothing."""
    while left := belonging(run_dir):
        if time.monotonic() > deadline_s:
            raise _too_late([process.name for process in left], timeout_s)
        if lost := {f"supervisord {process.pid}": process.pid for process in left if process.is_supervisord}:
            say(f"{', '.join(lost)} cannot be reached at {run_dir.supervisor}: ending it, which ends its services")
            fds = _opened({**lost, **{f"pid {pid}": pid for top in lost.values() for pid in _children(top)}})
            told, kill_at_s = {name: fd for name, fd in fds.items() if name in lost}, None
        else:
            fds = told = _opened(topmost(left))
            kill_at_s = time.monotonic() + _GRACE_S
            if fds:
                say(f"no supervisord runs in {run_dir.path}, but its services do: ending {', '.join(fds)}")
        for name, fd in told.items():
            _tell(name, fd, signal.SIGTERM)
        wait(fds, deadline_s, timeout_s, ended, kill_at_s=kill_at_s)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _opened(pids: dict[str, int]) -> dict[str, int]:
    """A pidfd for each that still runs: a pid could be another process by the time it is asked about."""
    fds = {}
    for name, pid in pids.items():
        try:
            fds[name] = os.pidfd_open(pid)
        except (ProcessLookupError, OSError):
            continue
    return fds


def _tell(name: str, fd: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return  # it has ended by itself, which is what is wanted
    except PermissionError as error:
        raise Problem(f"cannot end {name}: it is another user's; ask that user, or root", Exit.FAILED) from error


def wait(
    fds: dict[str, int], deadline_s: float, timeout_s: float, ended: list[str], *, kill_at_s: float | None = None
) -> None:
    """Until all of them are gone; raises Problem if that takes too long."""
    left = dict(fds)
    try:
        with Progress(
            f"stopping {', '.join(left)}" if len(left) == 1 else f"stopping {len(left)} processes", left, lines=True
        ) as show:
            while left:
                for name, fd in list(left.items()):
                    if select.select([fd], [], [], 0)[0]:
                        del left[name]
                        ended.append(name)
                        show.show(name, "gone", Mark.DONE)
                show.tick()
                now_s = time.monotonic()
                if left and now_s > deadline_s:
                    raise _too_late(left, timeout_s)
                if left and kill_at_s is not None and now_s > kill_at_s:
                    kill_at_s = None
                    for name, fd in left.items():
                        say(f"{name} has not ended within {_GRACE_S:.0f} s: killing it")
                        _tell(name, fd, signal.SIGKILL)
                if left:
                    select.select(list(left.values()), [], [], _LOOK_S)
    finally:
        for fd in fds.values():
            os.close(fd)


def _counted(number: int) -> str:
    return "1 process has" if number == 1 else f"{number} processes have"


def _too_late(names: Iterable[str], timeout_s: float) -> Problem:
    return Problem(
        f"cannot wait longer: after {timeout_s:g} s {', '.join(names)} still runs; wait again with cdnctl down",
        Exit.TIMED_OUT,
    )
