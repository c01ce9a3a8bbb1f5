"""What cdnctl doctor makes of what it sees: values in, findings out. Pure."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from bus.endpoints import MAX_SOCKET_PATH_BYTES
from bus.room import full_at
from cli.belonging import Belonging

CLOCK_OFF_S = 0.05
"""A wall clock that is slewed goes off by less in the time that it is watched for."""
FUTURE_S = 60.0
SPARE_BYTES, LEAST_BYTES = 256 * 2**20, 32 * 2**20
SPARE_INODES = 1000
NEAR = 0.9
FDS_OF_ATLAS, FDS_A_SERVICE, ENOUGH_FDS = 50, 2, 65536
FDS_OF_SUPERVISORD, FDS_A_PROGRAM = 64, 6
"""A program's pipes, its notify socket, its log; with as much again, as it is replaced."""
INSTALL_S = 2.0


class Severity(StrEnum):
    """How bad it is."""

    PROBLEM = "problem"
    """Something does not work, or will not."""
    WARNING = "warning"
    """Everything works, and one thing more would be too much."""


class Finding(NamedTuple):
    """Something that is not as it should be."""

    check: str
    severity: Severity
    what: str
    value: str
    """What was seen."""
    mend: str
    """A command where there is one."""


def problem(check: str, what: str, value: object, mend: str) -> Finding:
    """Something does not work, or will not."""
    return Finding(check, Severity.PROBLEM, what, str(value), mend)


def warning(check: str, what: str, value: object, mend: str) -> Finding:
    """Something that works, as yet."""
    return Finding(check, Severity.WARNING, what, str(value), mend)


# -- run directory and its files ----------------------------------------------------------------------------


class Owned(NamedTuple):
    """A file or directory, as stat(2) has it."""

    path: str
    uid: int
    mode: int
    is_directory: bool


def run_directory(path: Path, longest_bytes: int, owned: Owned | None, uid: int, can_write: bool) -> list[Finding]:
    """``longest_bytes``: of the longest socket path in it; ``owned`` is None where there is none."""
    check = "run-directory"
    found = []
    if longest_bytes > MAX_SOCKET_PATH_BYTES:
        excess = longest_bytes - MAX_SOCKET_PATH_BYTES
        found.append(
            problem(
                check,
                f"socket paths in {path} are longer than the {MAX_SOCKET_PATH_BYTES} bytes that there are",
                f"{longest_bytes} bytes",
                f"set CDN_RUN_DIR to a path at least {excess} bytes shorter",
            )
        )
    if owned is None:
        found.append(warning(check, "there is no run directory", path, "cdnctl up"))
    elif not owned.is_directory:
        found.append(problem(check, f"{path} is no directory", "a file", f"rm {shlex.quote(str(path))}"))
    elif owned.uid != uid:
        mend = f"be that user, or set CDN_RUN_DIR to a directory of your own; to take it over: sudo chown -R {uid} "
        found.append(problem(check, f"{path} is another user's", f"uid {owned.uid}", mend + shlex.quote(str(path))))
    else:
        if owned.mode != 0o700:
            mend = f"chmod 700 {shlex.quote(str(path))}"
            found.append(problem(check, f"{path} is not private to you", f"mode {owned.mode:04o}", mend))
        if not can_write:
            found.append(problem(check, f"{path} cannot be written", "read-only", "mount it read-write"))
    return found


def permissions(files: Sequence[Owned], uid: int, run_dir: Path, conf: Owned | None) -> list[Finding]:
    """Of the files in the run directory, and of the configuration, whose commands run as its reader."""
    check = "permissions"
    found = []
    place = shlex.quote(str(run_dir))
    if open_to := [file.path for file in files if file.uid == uid and file.mode & 0o077]:
        found.append(warning(check, "files are open to others", _some(open_to), f"chmod -R go= {place}"))
    if others := [file.path for file in files if file.uid != uid]:
        found.append(problem(check, "files are another user's", _some(others), f"sudo chown -R {uid} {place}"))
    if conf is not None and conf.mode & 0o022:
        mend = f"chmod go-w {shlex.quote(conf.path)}"
        found.append(
            problem(check, f"others may write {conf.path}, whose commands you run", f"mode {conf.mode:04o}", mend)
        )
    return found


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# -- who is there -------------------------------------------------------------------------------------------


class Reach(StrEnum):
    """What comes of connecting to a socket."""

    ABSENT = "there is none"
    OPEN = "open"
    DEAD = "nobody listens"
    FORBIDDEN = "not allowed"
    OTHER = "it is no socket"


def sockets(seen: Mapping[str, Reach], supervisord: int | None, atlas: int | None) -> list[Finding]:
    """Socket name → what came of it; the two are pids, None where there is no such process."""
    check = "sockets"
    found = []
    alike: dict[tuple[str, int | None, Reach], list[str]] = {}
    for name, reach in seen.items():
        owner = ("supervisord", supervisord) if name == "supervisor.sock" else ("ATLAS", atlas)
        alike.setdefault((*owner, reach), []).append(name)
    for (owner_name, pid, reach), names in alike.items():
        which = ", ".join(names)
        if reach is Reach.FORBIDDEN or reach is Reach.OTHER:
            found.append(problem(check, f"{which} cannot be opened", reach, f"rm {which}, in the run directory"))
        elif pid is not None and reach is not Reach.OPEN:
            restart = "cdnctl down && cdnctl up" if owner_name == "supervisord" else "cdnctl restart atlas"
            found.append(problem(check, f"{owner_name} runs without its {which}", f"pid {pid}, {reach}", restart))
        elif pid is None and reach is Reach.DEAD:
            found.append(warning(check, f"{which} of a dead {owner_name} is left over", reach, "cdnctl up replaces it"))
    return found


def supervision(pid: int | None, failure: str, path: Path) -> list[Finding]:
    """``failure``: why the supervisord with that pid does not answer; empty if it does."""
    if pid is None and not failure:
        return [warning("supervisord", "no supervisord runs", path, "cdnctl up")]
    if failure:
        mend = "cdnctl down && cdnctl up"
        if "kill -CONT" in failure:
            mend = f"kill -CONT {pid}"
        elif "another user's" in failure:
            mend = "be that user, or set CDN_RUN_DIR to a run directory of yours"
        return [problem("supervisord", "supervisord does not answer", failure.partition(": its process")[0], mend)]
    return []


def plugin(has_warden: bool | None, conf: Path | None) -> list[Finding]:
    """``has_warden``: whether cdn.* answers; None where there is nobody to ask."""
    if has_warden is not False:
        return []
    lines = "[rpcinterface:cdn] and supervisor.rpcinterface_factory=cdn_daemon.warden:make_rpcinterface"
    return [
        problem(
            "plugin",
            "the warden is not in supervisord: nothing is restarted at once, and no hang is noticed",
            "cdn.getNodeStatus is unknown",
            f"add {lines} to {conf or 'supervisord.conf'}; then: supervisorctl reload, which restarts everything",
        )
    ]


class AtlasSeen(NamedTuple):
    """What became of asking ATLAS."""

    pid: int | None
    is_expected: bool
    """It stands in the configuration, or has its sockets, and supervisord runs."""
    failure: str = ""
    """Why there is no answer; empty if there is."""
    is_stopped: bool = False
    """Its process is held by a signal."""
    notes: tuple[str, ...] = ()
    reason: str = ""
    """Why it is not healthy, by its own word."""
    set_aside: tuple[str, ...] = ()
    """Files of its state that were damaged, or of a later version."""


def atlas(seen: AtlasSeen) -> list[Finding]:
    """Whether it answers, and keeps what it is to keep."""
    check = "atlas"
    found = []
    if seen.failure and seen.is_stopped:
        found.append(problem(check, "ATLAS is stopped", f"pid {seen.pid}: state T", f"kill -CONT {seen.pid}"))
    elif seen.failure and seen.is_expected:
        mend = "cdnctl start atlas; why it ended: cdnctl logs atlas" if seen.pid is None else "cdnctl restart atlas"
        found.append(problem(check, "ATLAS does not answer", seen.failure, mend))
    for note in seen.notes:
        found.append(warning(check, "ATLAS has found something", note, "cdnctl events; cdnctl logs atlas"))
    if seen.reason:
        mend = "make room on that disk" if "history" in seen.reason else "cdnctl logs atlas"
        found.append(warning(check, "ATLAS is not well", seen.reason, mend))
    if seen.set_aside:
        mend = "nothing is lost that a copy would have; remove them when you have looked at them"
        found.append(warning(check, "files of ATLAS were damaged, and set aside", _some(seen.set_aside), mend))
    return found


def orphans(processes: Sequence[Belonging]) -> list[Finding]:
    """Services that no supervisord owns; the children of such a one go with it."""
    check = "orphans"
    pids = {process.pid for process in processes}
    tops = [process for process in processes if process.parent not in pids and not process.is_supervisord]
    supervisors = [process for process in processes if process.is_supervisord]
    found = []
    for process in tops:
        mend = f"kill {process.pid}" if supervisors else "cdnctl up replaces it, cdnctl down ends it"
        found.append(warning(check, f"no supervisord would start {process.name} again", f"pid {process.pid}", mend))
    if len(supervisors) > 1:
        which = ", ".join(f"pid {process.pid}" for process in supervisors)
        found.append(problem(check, "several supervisords have one run directory", which, "cdnctl down && cdnctl up"))
    return found


# -- versions -----------------------------------------------------------------------------------------------


def versions(required: Sequence[str], installed: Mapping[str, str]) -> list[Finding]:
    """``required`` as a wheel says it: ``supervisor<4.4,>=4.2``; extras are passed over."""
    found = []
    for requirement in required:
        if ";" in requirement:
            continue
        matched = re.match(r"([A-Za-z0-9._-]+?)\s*([<>=!~].*)?$", requirement)
        assert matched, requirement
        name, limits = matched[1], matched[2] or ""
        version = installed.get(name)
        if version is None:
            found.append(
                problem("versions", f"{name} is not installed", "-", f"pip install {shlex.quote(requirement)}")
            )
        elif not all(_holds(version, limit.strip()) for limit in limits.split(",") if limit.strip()):
            mend = f"pip install {shlex.quote(requirement)}"
            found.append(problem("versions", f"{name} {limits} is needed", version, mend))
    return found


def _holds(version: str, limit: str) -> bool:
    matched = re.match(r"(<=|>=|<|>)\s*([0-9.]+)", limit)
    if matched is None:
        return True
    one, other = _numbers(version), _numbers(matched[2])
    return {"<": one < other, "<=": one <= other, ">": one > other, ">=": one >= other}[matched[1]]


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


class Began(NamedTuple):
    """A process of the fleet."""

    name: str
    pid: int
    at_s: float
    """Unix time of its start."""
    prefix: str | None
    """Its Python's environment; None if that cannot be seen."""


def running_versions(
    running: Sequence[Began], installed_s: float | None, prefix: str, supervisors: tuple[str, str] | None
) -> list[Finding]:
    """Whether what runs is what is installed: ``supervisors`` are supervisor's version in supervisord and here."""
    found = []
    for process in running:
        where = f"{process.name}, pid {process.pid}"
        mend = "cdnctl restart atlas" if process.name == "atlas" else "supervisorctl reload, which restarts everything"
        if process.prefix is not None and process.prefix != prefix:
            told = f"{where} is of {process.prefix}, this cdnctl of {prefix}"
            found.append(warning("versions", "another environment's runs", told, f"use {process.prefix}/bin/cdnctl"))
        elif installed_s is not None and process.at_s + INSTALL_S < installed_s:
            found.append(warning("versions", "what runs is older than what is installed", where, mend))
    if supervisors is not None and supervisors[0] != supervisors[1]:
        told = f"{supervisors[0]} runs, {supervisors[1]} is installed"
        found.append(warning("versions", "supervisord is of another version", told, "cdnctl down && cdnctl up"))
    return found


# -- configuration and ports --------------------------------------------------------------------------------


def configuration(
    problems: Sequence[str], conf: Path, declared: Collection[str], known: Collection[str] | None
) -> list[Finding]:
    """``problems`` of the file itself; ``declared`` in it, and ``known`` to supervisord, None if nobody can tell."""
    found = [
        problem("configuration", f"supervisord would not start with {conf}", text, f"change {conf}")
        for text in problems
    ]
    if problems or known is None:
        return found
    update = f"supervisorctl -c {shlex.quote(str(conf))} update"
    if new := sorted(set(declared) - set(known)):
        found.append(warning("configuration", f"supervisord does not know yet, of {conf}", _some(new), update))
    if gone := sorted(set(known) - set(declared)):
        found.append(
            warning("configuration", f"supervisord still has what is no longer in {conf}", _some(gone), update)
        )
    return found


def declared_port(source: str) -> int | None:
    """The port that a service's source declares: the first ``port=`` with a number; None if there is none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "port" and isinstance(node.value, ast.Constant):
            return node.value.value if isinstance(node.value.value, int) and node.value.value else None
    return None


class Listener(NamedTuple):
    """Who has a port."""

    pid: int | None
    """None: another user's."""
    command: str


def ports(wanted: Mapping[str, int], listening: Mapping[int, Listener], ours: Collection[int]) -> list[Finding]:
    """Program → the port it listens on; the pids in ``ours`` may have them."""
    found = []
    for name, port in wanted.items():
        for other, its in wanted.items():
            if its == port and other > name:
                mend = f'give one of them another: environment=CDN_PORT="0" in [program:{other}]'
                found.append(problem("ports", f"{name} and {other} want the same port", port, mend))
        listener = listening.get(port)
        if listener is None or listener.pid in ours:
            continue
        who = f"pid {listener.pid} ({listener.command})" if listener.pid else "another user's process"
        mend = (
            f"end that, then cdnctl start {name}; or give it another port: "
            f'environment=CDN_PORT="0" in [program:{name}], then supervisorctl -c supervisord.conf update'
        )
        found.append(problem("ports", f"port {port} of {name} is taken", who, mend))
    return found


# -- the host -----------------------------------------------------------------------------------------------


class Limit(NamedTuple):
    """Of the kernel; None is unlimited, or unknown."""

    used: int | None
    most: int | None


def limits(
    programs: int, nofile: int | None, nproc: Limit, pids: Limit, nofile_atlas: int | None = None
) -> list[Finding]:
    """``nofile``: of supervisord, else what it could have; ``nofile_atlas``: of ATLAS, None if it does not run."""
    found = []
    needed = FDS_OF_SUPERVISORD + FDS_A_PROGRAM * programs
    if nofile is not None and nofile < needed:
        mend = f"ulimit -n {needed} before cdnctl up; LimitNOFILE= under systemd; minfds= in supervisord.conf"
        found.append(problem("limits", f"supervisord needs {needed} open files for {programs} programs", nofile, mend))
    needed = FDS_OF_ATLAS + FDS_A_SERVICE * programs
    if nofile_atlas is not None and full_at(nofile_atlas) < needed:
        what = f"ATLAS has room for {max(0, full_at(nofile_atlas) - FDS_OF_ATLAS) // FDS_A_SERVICE} services"
        mend = f"ulimit -Hn {ENOUGH_FDS} before cdnctl up; LimitNOFILE= under systemd; minfds= in supervisord.conf"
        found.append(problem("limits", f"{what}, not for {programs}: its limit of open files", nofile_atlas, mend))
    for what, limit, mend in (
        (
            "threads of this user (RLIMIT_NPROC)",
            nproc,
            "raise it in /etc/security/limits.conf; LimitNPROC= under systemd",
        ),
        ("processes of this cgroup (pids.max)", pids, "TasksMax= under systemd; --pids-limit of the container"),
    ):
        if limit.used is not None and limit.most is not None and limit.used > NEAR * limit.most:
            found.append(warning("limits", f"nearly no more {what}", f"{limit.used} of {limit.most}", mend))
    return found


def clock(wall_s: float, monotonic_s: float, now_s: float, newest: tuple[str, float] | None) -> list[Finding]:
    """What two clocks made of the same time; ``newest`` file of the run directory and its Unix time."""
    found = []
    off_s = wall_s - monotonic_s
    if abs(off_s) > CLOCK_OFF_S:
        told = f"{off_s:+.3f} s in {monotonic_s:.1f} s"
        mend = "no service is hurt by it, but times in logs lie; see to NTP: timedatectl, chronyc tracking"
        found.append(warning("clock", "the wall clock jumps", told, mend))
    if newest is not None and newest[1] > now_s + FUTURE_S:
        told = f"{newest[0]}, {newest[1] - now_s:.0f} s ahead"
        mend = "the clock is behind, or was ahead; see to NTP: timedatectl, chronyc tracking"
        found.append(warning("clock", "a file is from the future", told, mend))
    return found


class Disk(NamedTuple):
    """Of a directory, for whoever is not root."""

    path: str
    free_bytes: int
    free_inodes: int | None
    """None where the file system does not count them."""
    can_write: bool


def disk(places: Sequence[Disk]) -> list[Finding]:
    """The directories that are written to."""
    found = []
    for place in places:
        if not place.can_write:
            mend = f"make it writable: ls -ld {shlex.quote(place.path)}; findmnt -T {shlex.quote(place.path)}"
            found.append(problem("disk", "logs go where nothing can be written", place.path, mend))
            continue
        told = f"{place.free_bytes / 2**20:.0f} MiB free for {place.path}"
        look = f"du -ah {shlex.quote(place.path)} | sort -h | tail"
        if place.free_bytes < LEAST_BYTES:
            found.append(problem("disk", "the disk is full", told, look))
        elif place.free_bytes < SPARE_BYTES:
            found.append(warning("disk", "the disk is nearly full", told, look))
        if place.free_inodes is not None and place.free_inodes < SPARE_INODES:
            told = f"{place.free_inodes} for {place.path}"
            found.append(warning("disk", "nearly no inodes are left", told, "remove small files: df -i"))
    return found
