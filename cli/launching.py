"""Starting supervisord in the background, after looking for what would go wrong."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bus.endpoints import RunDir, RunDirError, prepare
from cli import conf
from cli.belonging import UP_LOCK, supervisords
from cli.context import say
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Supervisord, SupervisordSilent

_DAEMONISED_WITHIN_S = 30.0
_LOG_LINES = 8
_LOOK_S = 0.1
_LISTENS_WITHIN_S = 3.0
"""A supervisord that begins does not listen yet, and one that ends no longer, for less than this."""


class Plan(NamedTuple):
    """Which configuration is to run where."""

    original: Path
    """The supervisord.conf that was chosen."""
    used: Path
    """The one that supervisord is given: the original, or what is derived from it."""
    run_dir: RunDir
    text: str
    conf: conf.Conf


def plan(chosen: str | None, run_dir: str | None) -> Plan:
    """Read the configuration, and decide the run directory. Raises Problem.

    ``chosen`` is -c, ``run_dir`` is --run-dir; both fall back to the environment.
    """
    original = Path(chosen or os.environ.get("CDN_CONFIG") or "supervisord.conf").absolute()
    original = original.parent.resolve() / original.name
    directory = run_dir or os.environ.get("CDN_RUN_DIR")
    beside = original.parent / "run"
    place = RunDir(Path(directory).resolve() if directory else beside)
    try:
        text = original.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Problem(
            f"cannot read {original}: {why}; name a supervisord.conf with -c or CDN_CONFIG, or go where one is",
            Exit.FAILED,
        ) from error
    used = original
    try:
        if place.path != beside:
            used = place.path / "supervisord.conf"
            if used == original:
                if conf.origin_of(text) is None:
                    raise conf.ConfError(
                        f"cannot use {original} with itself as run directory: cdnctl would write over it; "
                        f"unset CDN_RUN_DIR, or set it to another directory"
                    )
            else:
                text = conf.derive(text, original, place.path)
        found = conf.read(text, original)
    except conf.ConfError as error:
        raise Problem(str(error), Exit.FAILED) from error
    _check(found, original, place)
    return Plan(original, used, place, text, found)


def _check(found: conf.Conf, original: Path, place: RunDir) -> None:
    if found.stays_in_foreground:
        raise Problem(
            f"cannot start {original} in the background: [supervisord] says nodaemon=true; remove that, "
            f"or run it with: supervisord -c {original}",
            Exit.FAILED,
        )
    if found.socket != str(place.supervisor):
        says = f"is {found.socket}" if found.socket else "is missing"
        raise Problem(
            f"cannot use {original}: [unix_http_server] file {says}, and cdnctl looks for {place.supervisor}; "
            f"write file=%(here)s/run/supervisor.sock",
            Exit.FAILED,
        )


@contextmanager
def made_ready(run_dir: RunDir, deadline_s: float) -> Iterator[None]:
    """The run directory, made and fit, and this cdnctl the only one that starts or ends something in it."""
    try:
        prepare(run_dir)
    except RunDirError as error:
        raise Problem(str(error), Exit.FAILED) from error
    with alone(run_dir, deadline_s, "start a fleet", Exit.FAILED):
        yield


@contextmanager
def alone(run_dir: RunDir, deadline_s: float, doing: str, too_late: Exit) -> Iterator[None]:
    """This cdnctl is the only one that starts or ends something there; where nothing was started, there is no other.

    ``doing`` completes "cannot …". Raises Problem if another one takes longer than until the deadline.
    """
    path = run_dir.lock(UP_LOCK)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise Problem(f"cannot {doing} in {run_dir.path}: {error.strerror}: {path}", Exit.FAILED) from error
    try:
        waits = False
        while not _locked(fd):
            if not waits:
                say(f"waiting for another cdnctl, which is about to start or end the fleet in {run_dir.path}")
                waits = True
            if time.monotonic() > deadline_s:
                raise Problem(f"cannot {doing}: another cdnctl is still at it; find it with: fuser {path}", too_late)
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running(planned: Plan) -> int | None:
    """The pid of the supervisord that runs in the run directory; None if none does.

    Raises Problem if it does not answer, or runs another configuration.
    """
    deadline_s = time.monotonic() + _LISTENS_WITHIN_S
    while (pid := _answering(planned)) is None:
        living = supervisords(planned.run_dir)
        if not living:
            return None
        if time.monotonic() > deadline_s:
            raise Problem(
                f"cannot start a fleet in {planned.run_dir.path}: supervisord {living[0]} runs there, and does not "
                f"listen on {planned.run_dir.supervisor}; end it with: cdnctl down",
                Exit.FAILED,
            )
        time.sleep(_LOOK_S)
    other = configuration_of(pid)
    if other is not None and not _is_same(other, planned.original):
        raise Problem(
            f"cannot start {planned.original} in {planned.run_dir.path}: the fleet of {other} runs there "
            f"(supervisord pid {pid}); stop that with cdnctl down, or set CDN_RUN_DIR to another directory",
            Exit.FAILED,
        )
    return pid


def _answering(planned: Plan) -> int | None:
    try:
        return Supervisord(planned.run_dir).pid()
    except NoSupervisord:
        return None
    except SupervisordSilent as error:
        raise Problem(f"cannot start a fleet in {planned.run_dir.path}: {error}", Exit.FAILED) from error


def configuration_of(pid: int) -> Path | None:
    """The original of what that supervisord was given; None if that cannot be seen."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        given = Path(os.fsdecode(words[words.index(b"-c") + 1]))
        path = (Path(os.readlink(f"/proc/{pid}/cwd")) / given).resolve()
        return conf.origin_of(path.read_text()) or path
    except (OSError, ValueError, IndexError):
        return None


def told_otherwise(pid: int) -> list[str]:
    """How the CDN_* variables that this supervisord was started with are other than those set now.

    Nothing if that cannot be seen.
    """
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
    then = _passed_on(dict(os.fsdecode(pair).partition("=")[::2] for pair in pairs if pair))
    now = _passed_on(os.environ)
    return [
        f"{name}{f'={then[name]}' if name in then else ' unset'} ({f'now {now[name]}' if name in now else 'now unset'})"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What reaches every service, less what names this fleet."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith("CDN_") and name not in ("CDN_RUN_DIR", "CDN_CONFIG")
    }


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is gone meanwhile
        return one == other


def launch(planned: Plan) -> None:
    """Start supervisord; return when it has daemonised. Raises Problem with what it said."""
    if planned.used != planned.original:
        _write(planned.used, planned.text)
    command = [*_supervisord(), "-c", str(planned.used)]
    if planned.conf.user is None and os.geteuid() == 0:
        command += ["-u", "0"]  # it would warn of running as root, which was asked for
    bin_dir = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "CDN_RUN_DIR": str(planned.run_dir.path),
        "PATH": os.pathsep.join([bin_dir, os.environ.get("PATH", os.defpath)]),
    }
    try:
        done = subprocess.run(
            command,
            cwd=planned.original.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DAEMONISED_WITHIN_S,
            umask=0o077,  # supervisord opens its log before it sets the one of its configuration
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise Problem(
            f"cannot start supervisord: it has not gone to the background within {_DAEMONISED_WITHIN_S:.0f} s; "
            f"see what it does with: supervisord -n -c {planned.used}",
            Exit.FAILED,
        ) from error
    if done.returncode:
        raise Problem(f"cannot start supervisord with {planned.original}: {_essence(done.stdout)}", Exit.FAILED)


def changes(planned: Plan) -> list[str]:
    """How the configuration is other than what runs, in words: ``added web``. Raises what Supervisord raises."""
    if planned.used != planned.original and planned.used.read_text() != planned.text:
        _write(planned.used, planned.text)
    found = zip(("added", "changed", "removed"), Supervisord(planned.run_dir).reread(), strict=True)
    return [f"{how} {', '.join(names)}" for how, names in found if names]


def end_of_log(planned: Plan) -> str:
    """The end of supervisord's own log, for a message: nothing if there is none."""
    tail = last_lines(planned.run_dir.path / "supervisord.log", _LOG_LINES)
    return "".join(f"\n    {line}" for line in tail)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, without empty and repeated ones: each start may have failed alike."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 64 * 1024))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    different = dict.fromkeys(line for line in reversed(lines) if line.strip())
    return list(reversed(list(different)[:count]))


def _supervisord() -> list[str]:
    """The supervisord of this very Python, whatever PATH says."""
    beside = Path(sys.executable).parent / "supervisord"
    return [str(beside)] if os.access(beside, os.X_OK) else [sys.executable, "-m", "supervisor.supervisord"]


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text)
        new.chmod(0o600)
        new.replace(path)
    except OSError as error:
        raise Problem(f"cannot write {path}: {error.strerror}", Exit.FAILED) from error


def _essence(output: str) -> str:
    """What supervisord said, without its usage hint; the last line of a traceback."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("For help, use")]
    if any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]
    return " ".join(line.strip().removeprefix("Error: ") for line in lines) or "it said nothing"
