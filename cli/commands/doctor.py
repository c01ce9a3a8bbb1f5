"""cdnctl doctor: looks at everything that a fleet stands on. What it makes of it is doctor_checks.py."""

from __future__ import annotations

import itertools
import os
import resource
import shlex
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from bus.endpoints import LONGEST_SOCKET_NAME, RunDir
from bus.messages import FleetReply, HealthStatus
from cli import conf
from cli.answers import document, json_line
from cli.atlas import SILENCE, AtlasSilent, Refused, ask_fleet
from cli.belonging import Belonging, belonging
from cli.commands import doctor_checks as checks
from cli.commands.doctor_checks import Disk, Finding, Limit, Listener, Owned, Reach, Severity
from cli.context import output_options, run_dir_of, stdout_screen, write
from cli.exits import Exit, Problem
from cli.fallback import NoSupervisord, Supervisord, SupervisordRefused, SupervisordSilent, process_state
from cli.launching import configuration_of, plan
from cli.rendering import Format, Output, Screen, clean, paint
from cli.selection import ATLAS

_SOCKETS = ("supervisor.sock", "operators.sock", "agents.sock", "telemetry.sock", "feed.sock")
_WATCH_CLOCK_S = 0.2
_CHECKED_WITHIN_S = 20.0
_FILES_MOST = 5000
_PASSING = {"sockets", "atlas", "orphans"}
_AGAIN_S = 1.0
_COLOURS = {Severity.PROBLEM: "red", Severity.WARNING: "yellow"}
CHECKS = (
    "run-directory",
    "permissions",
    "sockets",
    "supervisord",
    "plugin",
    "configuration",
    "versions",
    "atlas",
    "ports",
    "limits",
    "clock",
    "disk",
    "orphans",
)


@click.command("doctor")
@click.option("-c", "--config", metavar="CONF", help="The configuration. Default: as for cdnctl up.")
@output_options(formats=(Format.TABLE, Format.JSON, Format.JSONL, Format.NAME))
@click.pass_context
def command(ctx: click.Context, config: str | None, output: Output) -> int:
    """Check the whole set-up, and say how to mend it.

    Run directory, sockets, versions, ports, the warden, limits, clock, disk, orphaned processes, permissions,
    configuration and ATLAS. Nothing is changed, and nobody is waited for longer than a few seconds. Whether the
    services themselves are well is what cdnctl status answers.

    Exit code: 0 nothing to mend, 3 there is something.

    \b
    Examples:
      cdnctl doctor
      cdnctl doctor -c /etc/cdn/supervisord.conf
      cdnctl doctor -o json | jq -r '.findings[].mend'
    """
    run_dir = run_dir_of(ctx)
    found = examine(run_dir, config)
    seen = {finding.check for finding in found}
    if seen & _PASSING and "supervisord" not in seen:
        time.sleep(_AGAIN_S)  # something may just have been starting, or ending
        found = examine(run_dir, config)
    match output.format:
        case Format.JSON:
            plain = [_plain(finding) for finding in found]
            write(document({"run_dir": str(run_dir.path), "checks": CHECKS, "findings": plain}))
        case Format.JSONL:
            write([json_line(_plain(finding)) for finding in found])
        case Format.NAME:
            write(list(dict.fromkeys(finding.check for finding in found)))
        case _:
            write([*told(found, stdout_screen()), closing(found, run_dir)])
    return Exit.NOT_WELL if found else Exit.OK


def told(found: Sequence[Finding], screen: Screen) -> list[str]:
    """Two lines for each: what it is, and how to mend it."""
    lines = []
    for finding in found:
        mark = paint(f"{finding.severity:7}", _COLOURS[finding.severity], screen)
        lines.append(f"{mark}  {finding.check}: {clean(finding.what)}: {clean(finding.value)}")
        lines.append(f"         mend: {paint(clean(finding.mend), 'bold', screen)}")
    return lines


def closing(found: Sequence[Finding], run_dir: RunDir) -> str:
    """How many there are."""
    many = {severity: sum(finding.severity is severity for finding in found) for severity in Severity}
    counted = [f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in many.items() if count]
    return f"{', '.join(counted) or 'nothing to mend'}: {len(CHECKS)} checks of {run_dir.path}"


def _plain(finding: Finding) -> dict[str, str]:
    return finding._asdict()


def examine(run_dir: RunDir, config: str | None) -> list[Finding]:
    """All that is found, in the order of CHECKS."""
    path, uid = run_dir.path, os.geteuid()
    own = _owned(path)
    longest = len(os.fsencode(path / LONGEST_SOCKET_NAME))
    found = checks.run_directory(path, longest, own, uid, os.access(path, os.W_OK | os.X_OK))
    members = belonging(run_dir)
    supervised = _ask_supervisord(run_dir, members)
    atlas_pid = next((member.pid for member in members if member.name == ATLAS), None)
    file, declared, problems = _configured(run_dir, config, supervised)
    files = list(_files(path))
    found += checks.permissions(files, uid, path, _owned(file) if file else None)
    if own is not None and own.uid == uid:
        reached = {name: _reach(path / name) for name in _SOCKETS}
        found += checks.sockets(reached, supervised.pid, atlas_pid)
    else:
        reached = {}
    found += checks.supervision(supervised.pid, supervised.failure, path)
    found += checks.plugin(supervised.has_warden, file)
    names = [program.name for program in declared]
    if file is not None:
        found += checks.configuration(problems, file, names, supervised.programs)
    found += _versions(members, supervised)
    is_expected = (
        supervised.pid is not None and not supervised.failure and ATLAS in (*names, *(supervised.programs or ()))
    )
    bus = reached.get("operators.sock", Reach.ABSENT)
    found += checks.atlas(_ask_atlas(run_dir, atlas_pid, bus, is_expected=is_expected))
    wanted = _ports(declared, _variable(supervised.pid, "CDN_PORT"))
    pids = {member.pid for member in members}
    found += checks.ports(wanted, _listening(set(wanted.values())), pids)
    nofile_atlas = _nofile(atlas_pid) if atlas_pid is not None else None
    found += checks.limits(
        len(supervised.programs or names), _nofile(supervised.pid), _nproc(uid), _pids(), nofile_atlas
    )
    found += checks.clock(*_clocks(), time.time(), _newest(path, files))
    found += checks.disk(_disks(path, declared) if own is not None and own.uid == uid else [])
    found += checks.orphans(members)
    return found


# -- run directory ------------------------------------------------------------------------------------------


def _owned(path: Path) -> Owned | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return Owned(str(path), found.st_uid, stat.S_IMODE(found.st_mode), stat.S_ISDIR(found.st_mode))


def _files(path: Path) -> Iterator[Owned]:
    """Files and directories below, so many at most. A socket's mode is that of its directory, which is private.

    A .gitignore is the repository's, and no secret: a clone has it readable.
    """
    walked = ((Path(at), name) for at, below, files in os.walk(path) for name in (*below, *files))
    walked = ((at, name) for at, name in walked if name != ".gitignore")
    for at, name in itertools.islice(walked, _FILES_MOST):
        try:
            found = (at / name).lstat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
            yield Owned(str(at / name), found.st_uid, stat.S_IMODE(found.st_mode), stat.S_ISDIR(found.st_mode))


def _newest(path: Path, files: Sequence[Owned]) -> tuple[str, float] | None:
    changed = []
    for file in files:
        with suppress(OSError):
            changed.append((os.path.relpath(file.path, path), Path(file.path).stat().st_mtime))
    return max(changed, key=lambda each: each[1], default=None)


def _reach(path: Path) -> Reach:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return Reach.OTHER
    except PermissionError:
        return Reach.FORBIDDEN
    except OSError:
        return Reach.ABSENT
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:  # its queue is full: somebody listens, and is slow
            return Reach.OPEN
        except PermissionError:
            return Reach.FORBIDDEN
        except OSError:
            return Reach.DEAD
    return Reach.OPEN


# -- supervisord, ATLAS -------------------------------------------------------------------------------------


class Supervised(NamedTuple):
    """What supervisord says."""

    pid: int | None
    failure: str = ""
    programs: tuple[str, ...] | None = None
    """None if it does not say."""
    has_warden: bool | None = None
    version: str | None = None


def _ask_supervisord(run_dir: RunDir, members: Sequence[Belonging]) -> Supervised:
    pid = next((member.pid for member in members if member.is_supervisord), None)
    supervisord = Supervisord(run_dir)
    try:
        pid = supervisord.pid()
        programs = tuple(program.name for program in supervisord.programs())
        return Supervised(pid, "", programs, supervisord.has_warden(), supervisord.version())
    except NoSupervisord:
        failure = f"pid {pid} does not listen on {run_dir.supervisor}" if pid is not None else ""
    except (SupervisordSilent, SupervisordRefused) as error:
        failure = str(error)
    return Supervised(pid, failure)


def _ask_atlas(run_dir: RunDir, pid: int | None, bus: Reach, *, is_expected: bool) -> checks.AtlasSeen:
    failure, reply = SILENCE, FleetReply(id="", services=())
    if bus is Reach.OPEN:
        try:
            reply, failure = ask_fleet(run_dir), ""
        except AtlasSilent:
            pass
        except Refused as error:
            failure = str(error)
    else:
        failure = f"operators.sock: {bus}"
    view = next((view for view in reply.services if view.instance == ATLAS), None)
    return checks.AtlasSeen(
        pid=pid,
        is_expected=is_expected,
        failure=failure,
        is_stopped=pid is not None and process_state(pid) in ("T", "t"),
        notes=reply.notes,
        reason=view.reason if view is not None and view.health is not HealthStatus.HEALTHY else "",
        set_aside=tuple(_set_aside(run_dir.state(ATLAS))),
    )


def _set_aside(state: Path) -> list[str]:
    """What store.py and journal.py of services/atlas rename when they cannot read it."""
    with suppress(OSError):
        names = sorted(os.listdir(state))
        return [name for name in names if any(word in name for word in (".unreadable", ".damaged", ".version-"))]
    return []


# -- configuration ------------------------------------------------------------------------------------------


class Declared(msgspec.Struct):
    """A program, as python -m cdn_daemon.warden.checking has it."""

    name: str
    command: str
    directory: str | None
    environment: dict[str, str]
    log: str | None


class Checked(msgspec.Struct):
    """What that prints."""

    problems: list[str]
    has_warden: bool
    programs: list[Declared]


def _configured(
    run_dir: RunDir, config: str | None, supervised: Supervised
) -> tuple[Path | None, Sequence[Declared], list[str]]:
    """The configuration that was meant, the programs in it, and what is wrong with it."""
    chosen = config or os.environ.get("CDN_CONFIG")
    running = configuration_of(supervised.pid) if supervised.pid is not None else None
    file = Path(chosen).absolute() if chosen else running or Path("supervisord.conf").absolute()
    try:
        text = file.read_text()
        file = conf.origin_of(text) or file
        text = file.read_text()
        if supervised.pid is None:
            plan(str(file), str(run_dir.path))
        with tempfile.TemporaryDirectory() as place:  # it may be that no run directory has been made yet
            checked = _checked(conf.derive(text, file, Path(place)), place)
    except Problem as error:
        return file, (), [error.message]
    except (conf.ConfError, UnicodeDecodeError) as error:
        return file, (), [str(error)]
    except OSError as error:
        return (file, (), [f"cannot read {file}: {error.strerror}"]) if chosen or running else (None, (), [])
    checked.problems = [
        text.replace(f"{place}/supervisord.conf", str(file)).replace(place, str(run_dir.path))
        for text in checked.problems
    ]
    for program in checked.programs:
        program.log = program.log and program.log.replace(place, str(run_dir.path))
    if not (checked.problems or checked.has_warden or supervised.has_warden is False):
        checked.problems.append("it has no [rpcinterface:cdn], so that there is no warden")
    return file, checked.programs, checked.problems


def _checked(text: str, place: str) -> Checked:
    """What supervisord and its warden would say of it. In a process of its own: they are not cdnctl's to import."""
    file = Path(place) / "supervisord.conf"
    file.write_text(text)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cdn_daemon.warden.checking", str(file)],
            capture_output=True,
            timeout=_CHECKED_WITHIN_S,
        )
        return msgspec.json.decode(done.stdout, type=Checked)
    except subprocess.TimeoutExpired:
        return Checked([f"it was not read within {_CHECKED_WITHIN_S:.0f} s"], True, [])
    except msgspec.MsgspecError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return Checked([f"it cannot be checked: {last or f'exit code {done.returncode}'}"], True, [])


# -- versions -----------------------------------------------------------------------------------------------


def _versions(members: Sequence[Belonging], supervised: Supervised) -> list[Finding]:
    import platform
    from importlib.metadata import PackageNotFoundError, distribution, version

    from bus.versions import LEAST_LIBZMQ, libzmq

    own = distribution("cdn-daemon")
    required = [*(own.requires or ()), f"libzmq>={LEAST_LIBZMQ}", f"python{own.metadata['Requires-Python'] or ''}"]
    installed = {"libzmq": libzmq(), "python": platform.python_version()}
    for requirement in required:
        name = requirement.partition(";")[0].strip()
        name = name[: next((n for n, c in enumerate(name) if c in "<>=!~ ["), len(name))]
        with suppress(PackageNotFoundError):
            installed.setdefault(name, version(name))
    record = next((own.locate_file(file) for file in own.files or () if file.name == "RECORD"), None)
    installed_s = None
    with suppress(OSError):
        installed_s = Path(str(record)).stat().st_mtime if record is not None else None
    supervisors = (supervised.version, installed["supervisor"]) if supervised.version else None
    running = [
        began
        for member in members
        if member.is_supervisord or member.name == ATLAS
        if (began := _began(member)) is not None
    ]
    return [
        *checks.versions(required, installed),
        *checks.running_versions(running, installed_s, sys.prefix, supervisors),
    ]


def _began(member: Belonging) -> checks.Began | None:
    try:
        ticks = int(Path(f"/proc/{member.pid}/stat").read_text().rpartition(")")[2].split()[19])
        words = Path(f"/proc/{member.pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return None
    booted_s = next(
        float(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime")
    )
    python = Path(os.fsdecode(words[0]))
    prefix = str(python.parent.parent) if python.is_absolute() and python.name.startswith("python") else None
    if prefix is not None and os.path.realpath(prefix) == os.path.realpath(sys.prefix):
        prefix = sys.prefix
    return checks.Began(member.name, member.pid, booted_s + ticks / os.sysconf("SC_CLK_TCK"), prefix)


# -- ports --------------------------------------------------------------------------------------------------


def _variable(pid: int | None, name: str) -> str | None:
    """Of supervisord's environment, else of ours, which would be its."""
    if pid is None:
        return os.environ.get(name)
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((os.fsdecode(word.partition(b"=")[2]) for word in words if word.startswith(f"{name}=".encode())), None)


def _ports(declared: Sequence[Declared], by_default: str | None) -> dict[str, int]:
    """Program → the port that it is told, or that its source declares; without those of which neither is known."""
    wanted = {}
    for program in declared:
        port: str | int | None = _declared_port(program)
        if port:
            port = by_default or port  # which is nothing to a program that is no service
        port = program.environment.get("CDN_PORT", port)
        if port and str(port).isdecimal() and int(port):
            wanted[program.name] = int(port)
    return wanted


def _declared_port(program: Declared) -> int | None:
    """By the source of what it runs, which is read and not imported."""
    try:
        words = shlex.split(program.command)
    except ValueError:
        return None
    places = [program.directory or ".", *sys.path]
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1].replace(".", "/")
        candidates = [Path(place) / rest for place in places for rest in (f"{module}/__main__.py", f"{module}.py")]
    else:
        candidates = [Path(places[0]) / word for word in words if word.endswith(".py")]
    for candidate in candidates:
        with suppress(OSError, UnicodeDecodeError):
            return checks.declared_port(candidate.read_text())
    return None


def _listening(ports: Collection[int]) -> dict[int, Listener]:
    """Which of them somebody listens on, and who."""
    inodes: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                port = int(words[1].rpartition(":")[2], 16)
                if words[3] == "0A" and port in ports:
                    inodes[f"socket:[{words[9]}]"] = port
    found = {port: Listener(None, "") for port in inodes.values()}
    if not inodes:
        return found
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{name}/fd"):
                with suppress(OSError):
                    port = inodes.get(os.readlink(f"/proc/{name}/fd/{fd}"), 0)
                    if port:
                        words = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace").split("\0")
                        found[port] = Listener(int(name), " ".join(words).strip())
    return found


# -- the host -----------------------------------------------------------------------------------------------


def _nofile(pid: int | None) -> int | None:
    """The limit of that process, else what a supervisord that we start could raise its own to."""
    if pid is None:
        return _most(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    try:
        return _most(resource.prlimit(pid, resource.RLIMIT_NOFILE)[0])
    except OSError:
        return None


def _nproc(uid: int) -> Limit:
    most = _most(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    if uid == 0 or most is None:  # root is not held to it
        return Limit(None, None)
    used = 0
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if Path(f"/proc/{name}").stat().st_uid == uid:
                used += len(os.listdir(f"/proc/{name}/task"))
    return Limit(used, most)


def _most(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _pids() -> Limit:
    """Of this cgroup, version 2 or 1."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers not in ("", "pids"):
                continue
            at = Path("/sys/fs/cgroup") / controllers / place.lstrip("/")
            if (at / "pids.max").exists():
                return Limit(int((at / "pids.current").read_text()), int((at / "pids.max").read_text()))
    return Limit(None, None)  # "max" is no number


def _clocks() -> tuple[float, float]:
    """What the wall clock and the monotonic one make of the same moment."""
    wall_s, monotonic_s = time.time(), time.monotonic()
    time.sleep(_WATCH_CLOCK_S)
    monotonic_s, wall_s = time.monotonic() - monotonic_s, time.time() - wall_s
    return wall_s, monotonic_s


def _disks(path: Path, declared: Sequence[Declared]) -> list[Disk]:
    """Where the fleet writes: the run directory, and wherever else logs go."""
    logs = {str(Path(program.log).parent) for program in declared if program.log and program.log.startswith("/")}
    logs.discard("/dev")
    found = []
    for place in sorted({str(path), *logs}):
        try:
            room = os.statvfs(place)
        except OSError:
            found.append(Disk(place, 0, None, False))
            continue
        free = room.f_favail if room.f_files else None
        found.append(Disk(place, room.f_bavail * room.f_frsize, free, os.access(place, os.W_OK | os.X_OK)))
    return found
