"""cdnctl down."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import click

from bus.endpoints import RunDir
from cli.context import json_option, run_dir_of, say, timeout_option, write
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, instance_of, recorded_pid
from cli.orphans import orphans
from cli.progress import Mark, Progress
from cli.rendering import json_line

_LOOK_S = 0.1


@click.command("down")
@timeout_option("60s")
@json_option
@click.pass_context
def command(ctx: click.Context, timeout_s: float, as_json: bool) -> int:
    """Stop every service, then supervisord.

    supervisord stops its programs in reverse order, each of which drains; this returns when all processes are
    gone, so that the next cdnctl up finds nothing in its way. Services that outlived a supervisord which was
    killed are told to end, too.

    Exit code: 0 nothing runs any more, also if nothing did; 1 supervisord does not answer; 124 something still
    ran when the time was over.

    \b
    Examples:
      cdnctl down
      cdnctl down --timeout 10s || cdnctl status
    """
    run_dir = run_dir_of(ctx)
    deadline_s = time.monotonic() + timeout_s
    ended: list[str] = []
    found = _shut_down(run_dir)
    if found:
        _wait(found, deadline_s, timeout_s, ended)
    if left := orphans(run_dir):
        say(f"no supervisord runs in {run_dir.path}, but its services do: ending {', '.join(left)}")
        fds = _opened(left)
        for fd in fds.values():
            _terminate(fd)
        _wait(fds, deadline_s, timeout_s, ended)
        if held := orphans(run_dir):
            locks = " ".join(str(run_dir.lock(name)) for name in held)
            raise Problem(
                f"cannot end {', '.join(held)}: a process holds its lock; find it with: fuser {locks}", Exit.FAILED
            )
    if as_json:
        write(json_line({"schema_version": 1, "ended": ended}))
    elif not ended:
        say(f"already down: no fleet runs in {run_dir.path}")
    else:
        say(f"down: {len(ended)} processes have ended in {run_dir.path}")
    return Exit.OK


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


def _terminate(fd: int) -> None:
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
    except ProcessLookupError:
        return  # it has ended by itself, which is what is wanted


def _wait(fds: dict[str, int], deadline_s: float, timeout_s: float, ended: list[str]) -> None:
    """Until all of them are gone; raises Problem if that takes too long."""
    left = dict(fds)
    try:
        with Progress(f"stopping {len(left)} processes", left, lines=True) as show:
            while left:
                for name, fd in list(left.items()):
                    if select.select([fd], [], [], 0)[0]:
                        del left[name]
                        ended.append(name)
                        show.show(name, "gone", Mark.DONE)
                show.tick()
                if left and time.monotonic() > deadline_s:
                    raise Problem(
                        f"cannot wait longer: after {timeout_s:g} s {', '.join(left)} still runs; "
                        f"wait again with cdnctl down",
                        Exit.TIMED_OUT,
                    )
                if left:
                    select.select(list(left.values()), [], [], _LOOK_S)
    finally:
        for fd in fds.values():
            os.close(fd)
