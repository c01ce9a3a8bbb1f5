"""supervisord's own XML-RPC over its Unix socket, for when ATLAS does not answer.

Every call has a socket timeout, since a frozen supervisord would hold its caller
for ever. Nothing here waits for a process: a waiting start or stop makes
supervisord spin at 100 % of a core, so orders are given with wait=False and
followed by asking (cli/supervised.py).
"""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers.expat import ExpatError

import msgspec
from msgspec.structs import replace

from bus.endpoints import RunDir
from bus.messages import HealthStatus, NodeStatus, ProcessRow, ProcessState, ServiceView
from cli.selection import is_unsupervised

TIMEOUT_S = 2.0

# Faults of supervisor/xmlrpc.py
UNKNOWN_METHOD = 1
_SHUTDOWN_STATE = 6
ALREADY_STARTED = 60
NOT_RUNNING = 70

_CONFIGURATION_ERROR = 78  # EX_CONFIG, sysexits.h


class NoSupervisord(Exception):
    """Nobody listens on supervisord's socket; the text says where."""


class SupervisordSilent(Exception):
    """supervisord has the connection and does not answer; the text says why, where that can be seen."""


class SupervisordRefused(Exception):
    """supervisord answered, and will not; ``code`` is the fault of its XML-RPC."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Process(NamedTuple):
    """A row of supervisord's process table."""

    name: str
    """``program``, or ``group:process`` where they differ."""
    state: ProcessState
    pid: int | None
    started_s: int
    """Unix time of the last start, by supervisord's clock, in whole seconds."""
    uptime_s: float | None
    reason: str
    log: Path | None
    """Where its stdout goes, and its stderr if that is redirected."""
    restarts: int | None = None
    """None where there is no warden to count them."""
    enabled: bool = True
    maintenance: bool = False
    exit_code: int | None = None
    """Of the process that ended last; None if a signal ended it, or none has ended."""
    needs: tuple[str, ...] = ()
    """The instances that have to be ready before it is started, as far as the warden says."""
    says_ready: bool = False
    """RUNNING means that it has said so itself, as the warden saw."""


class Program(NamedTuple):
    """A process as supervisord's configuration has it."""

    name: str
    autostart: bool


class Supervisord:
    """The supervisord of one run directory. Raises NoSupervisord, SupervisordSilent and SupervisordRefused."""

    def __init__(self, run_dir: RunDir, *, timeout_s: float = TIMEOUT_S) -> None:
        self._run_dir = run_dir
        self._timeout_s = timeout_s
        self._is_stock = False
        self._proxy = xmlrpc.client.ServerProxy(
            "http://supervisord/RPC2", transport=_UnixTransport(run_dir.supervisor, timeout_s)
        )

    def pid(self) -> int:
        """supervisord's own process."""
        return int(self._call("getPID"))

    def version(self) -> str:
        """supervisor's, as it runs."""
        return str(self._call("getSupervisorVersion"))

    def has_warden(self) -> bool:
        """Whether the warden in it answers."""
        return any(str(method).startswith("cdn.") for method in self._call("listMethods", space="system"))

    def processes(self) -> list[Process]:
        """Its table, in order of name, with what the warden in it has to say of each."""
        rows = [_process(found) for found in self._call("getAllProcessInfo")]
        told = self._by_warden()
        return sorted((_explained(row, told.get(row.name)) for row in rows), key=lambda row: row.name)

    def programs(self) -> list[Program]:
        """What its configuration says of each process."""
        return [
            Program(full_name(found["group"], found["name"]), bool(found["autostart"]))
            for found in self._call("getAllConfigInfo")
        ]

    def reread(self) -> tuple[list[str], list[str], list[str]]:
        """Have it read its configuration; the groups that were added, changed and removed, none of which it applies."""
        ((added, changed, removed),) = self._call("reloadConfig")
        return added, changed, removed

    def start(self, name: str) -> None:
        """Have it start a process; return at once."""
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Have it stop a process; return at once."""
        self._call("stopProcess", name, False)

    def signal(self, name: str, number: int) -> None:
        """Have it send a signal to a process."""
        self._call("signalProcess", name, str(number))

    def tell_warden(self, method: str, name: str, *arguments: Any) -> str:
        """Call one of the methods of cdn_daemon/warden/rpc.py; return what it notes."""
        return str(self._call(method, name, *arguments, space="cdn"))

    def shutdown(self) -> None:
        """Have it stop everything, then itself; return at once."""
        self._call("shutdown")

    def _by_warden(self) -> dict[str, ProcessRow]:
        """supervisord's name → the warden's row: nothing from a supervisord without it, or with one of another kind."""
        if self._is_stock:
            return {}
        try:
            status = msgspec.json.decode(self._call("getNodeStatus", space="cdn"), type=NodeStatus)
        except SupervisordRefused as error:
            self._is_stock = error.code == UNKNOWN_METHOD
            return {}
        except msgspec.MsgspecError:
            return {}
        return {row.name: row for row in status.processes}

    def _call(self, method: str, *arguments: Any, space: str = "supervisor") -> Any:
        try:
            return getattr(getattr(self._proxy, space), method)(*arguments)
        except TimeoutError as error:
            raise SupervisordSilent(self._why_silent()) from error
        except xmlrpc.client.Fault as error:
            if error.faultCode == _SHUTDOWN_STATE:
                raise SupervisordRefused(error.faultCode, "supervisord is shutting down") from error
            raise SupervisordRefused(error.faultCode, f"supervisord says {error.faultString}") from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoSupervisord(f"no fleet runs in {self._run_dir.path}; start it: cdnctl up") from error
        except PermissionError as error:
            raise SupervisordSilent(f"supervisord on {self._run_dir.supervisor} is another user's") from error
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisordSilent(f"supervisord on {self._run_dir.supervisor} broke off: {error}") from error
        except (ExpatError, xmlrpc.client.Error, ValueError, TypeError, LookupError) as error:
            where = self._run_dir.supervisor
            raise SupervisordSilent(f"what listens on {where} does not answer as supervisord does: {error}") from error

    def _why_silent(self) -> str:
        text = f"supervisord on {self._run_dir.supervisor} did not answer within {self._timeout_s:.1f} s"
        pid = recorded_pid(self._run_dir)
        if pid is not None and process_state(pid) in ("T", "t"):
            return f"{text}: its process {pid} is stopped; let it go on with: kill -CONT {pid}"
        return text


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("supervisord", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__()
        self._path = path
        self._timeout_s = timeout_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        # a new connection for each call: supervisord closes idle ones when it likes
        return _UnixConnection(self._path, self._timeout_s)


def full_name(group: str, name: str) -> str:
    """supervisor's name for a process, as supervisorctl shows it."""
    return name if group == name else f"{group}:{name}"


def recorded_pid(run_dir: RunDir) -> int | None:
    """The pid in supervisord's pidfile, if there is one; its process may be gone."""
    try:
        return int((run_dir.path / "supervisord.pid").read_text())
    except (OSError, ValueError):
        return None


def process_state(pid: int) -> str | None:
    """One letter of proc(5), such as ``T`` for stopped; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def _process(found: dict[str, Any]) -> Process:
    state = ProcessState(found["statename"])
    pid = int(found["pid"]) or None
    return Process(
        name=full_name(found["group"], found["name"]),
        state=state,
        pid=pid,
        started_s=int(found["start"]),
        uptime_s=max(0.0, float(found["now"] - found["start"])) if pid else None,
        reason=_reason(state, found),
        log=Path(found["stdout_logfile"]) if found["stdout_logfile"] else None,
        exit_code=int(found["exitstatus"]) if found["stop"] and found["exitstatus"] >= 0 else None,
    )


def _explained(process: Process, row: ProcessRow | None) -> Process:
    """With the warden's reason, which knows the service's last words, if it speaks of the same state."""
    if row is None:
        return process
    needs = tuple(name.rpartition(":")[2] for name in row.depends_on)
    process = process._replace(enabled=row.enabled, maintenance=row.maintenance, needs=needs, says_ready=row.says_ready)
    if (row.state, row.pid) != (process.state, process.pid):
        return process
    return process._replace(reason=row.reason or process.reason, restarts=row.restarts)


def _reason(state: ProcessState, found: dict[str, Any]) -> str:
    """Why it is not running, as far as supervisord tells."""
    match state:
        case ProcessState.FATAL | ProcessState.BACKOFF:
            return found["spawnerr"] or "supervisord says no more"
        case ProcessState.EXITED if found["exitstatus"] == -1:
            return "ended by a signal"
        case ProcessState.EXITED if found["exitstatus"] == _CONFIGURATION_ERROR:
            return f"its configuration is wrong (exit code {_CONFIGURATION_ERROR})"
        case ProcessState.EXITED:
            return f"ended with exit code {found['exitstatus']}"
        case ProcessState.STOPPED if not found["start"]:
            return "not started yet"
        case _:
            return ""


def instance_of(process: Process) -> str:
    """The instance that a process is: its name without the group, as ATLAS has it."""
    return process.name.rpartition(":")[2]


def as_view(process: Process, host: str) -> ServiceView:
    """The row as a line of the fleet; what only ATLAS knows is None."""
    return ServiceView(
        service=instance_of(process),
        instance=instance_of(process),
        host=host,
        state=process.state,
        health=HealthStatus.UNKNOWN,
        phase=None,
        ooda_phase=None,
        pid=process.pid,
        incarnation=None,
        uptime_s=process.uptime_s,
        restarts=process.restarts,
        cpu_cores=None,
        rss_bytes=None,
        seen_s=None,
        reason=process.reason,
        address=None,
        enabled=process.enabled,
        maintenance=process.maintenance,
    )


def merged(services: Sequence[ServiceView], processes: Sequence[Process], host: str) -> tuple[ServiceView, ...]:
    """ATLAS's view, with supervisord's word where the two differ, and with the programs that ATLAS does not know."""
    rows = {instance_of(process): process for process in processes}
    views = [
        _corrected(view, row) if (row := rows.pop(view.instance, None)) and view.host == host else view
        for view in services
    ]
    return tuple(sorted([*views, *(as_view(row, host) for row in rows.values())], key=lambda view: view.instance))


def _corrected(view: ServiceView, row: Process) -> ServiceView:
    if (view.state, view.pid) != (row.state, row.pid):
        return replace(view, state=row.state, pid=row.pid, uptime_s=row.uptime_s, reason=row.reason)
    if is_unsupervised(view):  # ATLAS does not hear the warden, but supervisord answers
        return replace(view, reason=view.reason.partition("; ")[2])
    return view
