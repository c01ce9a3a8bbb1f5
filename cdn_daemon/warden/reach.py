"""The one file that reaches into supervisor's objects. Written against 4.2 and 4.3; others are refused at load.

supervisor stays as it is on disk; what is bent is bent on the objects of this
one supervisord:

- each process object gets a class of ours in front of its own (adopt), which asks a Keeper before every
  transition and tells it of every state, spawn and end, and spawns without fork(2), and without a log if that cannot
  be opened (_Warded, keep_descriptors);
- ``supervisor.stopProcess``, while waiting, no longer makes the loop spin, and waits for the end of the process that
  it was to stop, whatever follows on that (calm_waiting_stops);
- its listening Unix socket is made anew if its path is gone (reopen_unix_servers);
- further instances of a program are groups beside it, which ``reread`` and ``update`` pass over (add_instance,
  keep_instances);
- whoever waits for an answer is asked again at once after a state has changed (hurry_answers);
- at the end of a run, before supervisord closes descriptors by number, we are told (at_end).

Every call into the Keeper is the Keeper's to guard: it never raises.
"""

from __future__ import annotations

import copy
import errno
import os
import time
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from supervisor import events
from supervisor.datatypes import Automatic, RestartUnconditionally
from supervisor.http import LogWrapper, supervisor_af_unix_http_server
from supervisor.options import VERSION, ProcessConfig, ProcessGroupConfig, make_namespec
from supervisor.states import STOPPED_STATES, ProcessStates, SupervisorStates

from bus.messages import ProcessState
from cdn_daemon.warden.orphans import Stop

SUPPORTED = ((4, 2), (4, 3))

Process = Any  # a supervisor.process.Subprocess
Supervisord = Any  # a supervisor.supervisord.Supervisor


_TO_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_OF_SUPERVISORD = (errno.EMFILE, errno.ENFILE)
"""It is short of descriptors itself, which says nothing of a log."""


class UnsupportedVersion(Exception):
    """supervisor is of a version that this was not written against."""


class Step(Enum):
    """What a process object does in one turn of the loop."""

    STOCK = "as supervisor would"
    SPAWN = "spawn now"
    WAIT = "nothing"


class Keeper(Protocol):
    """Who decides for the adopted processes; no method raises."""

    def next_step(self, process: Process) -> Step:
        """What the process does this turn."""

    def refusal(self, process: Process) -> str:
        """Why it may not be started at all; empty if it may."""

    def may_spawn(self, process: Process) -> bool:
        """Whether a spawn may happen now; if not it is STARTING without a pid until next_step says SPAWN."""

    def spawned(self, process: Process) -> None:
        """A spawn was tried; without pid it has failed, and spawnerr says why."""

    def log_lost(self, process: Process, error: OSError) -> None:
        """A log of it cannot be opened, so that what it writes there is lost until its next start."""

    def child_environment(self, process: Process) -> Mapping[str, str]:
        """What the child's environment has beside supervisor's."""

    def ending(self, process: Process) -> bool:
        """It has ended and supervisor is about to learn of it; whether it ever was ready."""

    def finished(self, process: Process, pid: int, wait_status: int) -> None:
        """It has ended and supervisor has put it into the state that it thinks right."""

    def changed(self, process: Process, old: ProcessState, new: ProcessState) -> None:
        """It is in another state."""


class _Warded:
    """Stands before supervisor's own class; see adopt."""

    keeper: Keeper
    state: int
    pid: int
    config: Any
    pipes: Mapping[str, int | None]
    group: Any
    dispatchers: Mapping[int, Any]
    _environment: Mapping[str, str]
    _ends_unready = False

    def transition(self) -> None:
        if self.state == ProcessStates.RUNNING:
            return  # stock does nothing here but repair its clock, at 200 programs a third of the turn
        step = self.keeper.next_step(self)
        if step is Step.STOCK:
            super().transition()  # type: ignore[misc]
        elif step is Step.SPAWN:
            if self.state == ProcessStates.STARTING:  # was held back: STARTING without a process
                self.state = ProcessStates.STOPPED
            self._spawn()

    def spawn(self) -> int | None:
        """supervisor's own entry, also taken by an operator's start."""
        if self.pid:  # one that is still stopping, say: stock logs that, and does nothing
            return super().spawn()  # type: ignore[misc,no-any-return]
        refusal = self.keeper.refusal(self)
        if refusal:
            self.record_spawnerr(refusal)  # type: ignore[attr-defined] # and startProcess answers SPAWN_ERROR
            return None
        if self.keeper.may_spawn(self):
            return self._spawn()
        self.spawnerr = None
        self.laststart = time.time()
        self.change_state(ProcessStates.STARTING)
        return None

    def _spawn(self) -> int | None:
        self._environment = self.keeper.child_environment(self)
        config, options = self.config, self.config.options
        lost = self._lost_logs()
        options.fork = _no_fork
        try:
            for key in lost:
                setattr(config, key, None)
            pid: int | None = super().spawn()  # type: ignore[misc]
        finally:
            del options.fork
            for key, path in lost.items():
                setattr(config, key, path)
        self.keeper.spawned(self)
        return pid

    def _lost_logs(self) -> dict[str, str]:
        """Which logs cannot be opened, by their keys: for that stock would not start it, and give it up in the end.

        Without them stock reads its output and drops it.
        """
        lost: dict[str, str] = {}
        for key in ("stdout_logfile", "stderr_logfile"):
            path = _file(getattr(self.config, key))
            if path is None or (os.path.exists(path) and not os.path.isfile(path)):
                continue  # whoever reads a pipe would see it end
            try:
                os.close(os.open(path, _TO_APPEND, 0o666))
            except OSError as error:
                if error.errno not in _OF_SUPERVISORD:
                    lost[key] = path
                    self.keeper.log_lost(self, error)
        return lost

    def _spawn_as_child(self, filename: str, argv: list[str]) -> int | None:
        """Where stock spawn goes if fork(2) says 0: here still in supervisord, as nothing has been forked."""
        try:
            if self.config.uid is None and not hasattr(self, "fcgi_sock"):
                pid = self._launch(filename, argv)
            elif (pid := os.fork()) == 0:
                os.environ.update(self._environment)
                self.config.options.minfds = 3  # else stock closes 1,000 by number; keep_descriptors has seen to them
                super()._spawn_as_child(filename, argv)  # type: ignore[misc]
        except OSError as error:
            self._not_spawned(error)
            return None
        return self._spawn_as_parent(pid)  # type: ignore[attr-defined,no-any-return]

    def _launch(self, filename: str, argv: list[str]) -> int:
        """posix_spawn(3): of a Python of 30 MB, fork(2) and what stock does in the child take 3 ms more.

        What it cannot set for the child it inherits from us: supervisord has no other thread that would notice.
        """
        config, pipes = self.config, self.pipes
        stderr = pipes["child_stdout"] if config.redirect_stderr else pipes["child_stderr"]
        ends = enumerate((pipes["child_stdin"], pipes["child_stdout"], stderr))
        umask = None
        here = os.open(".", os.O_PATH)
        try:
            if config.directory is not None:
                os.chdir(config.directory)
            if config.umask is not None:
                umask = os.umask(config.umask)
            return os.posix_spawn(
                filename,
                argv,
                self._whole_environment(),
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, standard) for standard, fd in ends],
                setpgroup=0,
            )
        finally:
            if umask is not None:
                os.umask(umask)
            os.fchdir(here)
            os.close(here)

    def _whole_environment(self) -> dict[str, str]:
        """As stock makes it in the child, with ours before that of supervisord.conf."""
        config = self.config
        environment = {**os.environ, **self._environment, "SUPERVISOR_ENABLED": "1"}
        url = config.options.serverurl if config.serverurl is None else config.serverurl
        if url:
            environment["SUPERVISOR_SERVER_URL"] = url
        environment["SUPERVISOR_PROCESS_NAME"] = config.name
        if self.group:
            environment["SUPERVISOR_GROUP_NAME"] = self.group.config.name
        return environment | (config.environment or {})

    def _not_spawned(self, error: OSError) -> None:
        """As stock does where fork(2) fails."""
        options = self.config.options
        what = error.filename or self.config.command
        if error.errno == errno.ENOENT and os.path.isfile(what):  # a script's #!, or a program's loader
            what = f"the interpreter of {what}"
        self.record_spawnerr(f"{error.strerror}: {what}")  # type: ignore[attr-defined]
        self.change_state(ProcessStates.BACKOFF)
        options.close_parent_pipes(self.pipes)
        options.close_child_pipes(self.pipes)
        self.dispatchers, self.pipes = {}, {}

    def finish(self, pid: int, sts: int) -> None:
        # Stock finish takes a process that ends in STARTING through RUNNING; one that never was ready must not.
        self._ends_unready = not self.keeper.ending(self) and self.state == ProcessStates.STARTING
        try:
            super().finish(pid, sts)  # type: ignore[misc]
        finally:
            self._ends_unready = False
        self.keeper.finished(self, pid, sts)

    def kill(self, sig: int) -> str | None:
        if self.state == ProcessStates.STARTING and not self.pid:
            self.change_state(ProcessStates.STOPPED)
            return None
        return super().kill(sig)  # type: ignore[misc,no-any-return]

    def change_state(self, new_state: int, expected: bool = True) -> bool:
        old_state = self.state
        if self._ends_unready and new_state == ProcessStates.RUNNING:
            self.state = new_state
            return True
        changed: bool = super().change_state(new_state, expected)  # type: ignore[misc]
        if changed is not False:
            self.keeper.changed(self, _WORDS[old_state], _WORDS[new_state])
        return changed


def _no_fork() -> int:
    """In place of options.fork while an adopted process spawns."""
    return 0


_WORDS = {getattr(ProcessStates, word): ProcessState(word) for word in vars(ProcessStates) if not word.startswith("_")}

_classes: dict[type, type] = {}


def check_version(version: str = VERSION) -> None:
    """UnsupportedVersion unless this file was written against that version of supervisor."""
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found not in SUPPORTED:
        known = " and ".join(".".join(map(str, each)) for each in SUPPORTED)
        raise UnsupportedVersion(
            f"cannot load the warden into supervisor {version}: it knows {known}; install one of these"
        )


def adopt(process: Process, keeper: Keeper) -> None:
    """Have keeper decide for that process object from now on."""
    own = type(process)
    if issubclass(own, _Warded):
        return
    if own not in _classes:
        _classes[own] = type(f"Warded{own.__name__}", (_Warded, own), {})
    process.keeper = keeper
    process.__class__ = _classes[own]


def keep_descriptors() -> None:
    """Let no child inherit what is open here beside the standard three: stock closes 1,000 in each child, by number.

    What Python opens is not inherited anyway; this is about what supervisord was started with.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > 2:
                os.set_inheritable(fd, False)
        except OSError:
            continue  # it was open for the listing


# -- looking ---------------------------------------------------------------------------------------------


def processes(supervisord: Supervisord) -> Iterator[Process]:
    """Every process object there is now."""
    for group in supervisord.process_groups.values():
        yield from group.processes.values()


def full_name(process: Process) -> str:
    """supervisor's name of it: ``program``, or ``group:process`` where they differ."""
    group = process.group.config.name if process.group is not None else process.config.name
    return str(make_namespec(group, process.config.name))


def state(process: Process) -> ProcessState:
    """The state it is in."""
    return _WORDS.get(process.state, ProcessState.UNKNOWN)


def is_stopped(process: Process) -> bool:
    """Whether supervisord may end without doing anything about it."""
    return process.state in STOPPED_STATES


def is_up(supervisord: Supervisord) -> bool:
    """Whether supervisord is neither ending nor reloading."""
    return bool(supervisord.options.mood > SupervisorStates.RESTARTING)


def ended_as_expected(process: Process, exit_code: int | None) -> bool:
    """Whether supervisord.conf has it stay down after that exit (None: by a signal), once it was running."""
    autorestart = process.config.autorestart
    if not autorestart:
        return True
    return autorestart is not RestartUnconditionally and exit_code in process.config.exitcodes


def priority(process: Process) -> int:
    """supervisor's ``priority`` of its group: the highest is stopped first."""
    group = process.group
    return int(group.config.priority if group is not None else process.config.priority)


def stop_wait_s(process: Process) -> float:
    """Its grace to end once it is told to."""
    return float(process.config.stopwaitsecs)


def how_to_stop(process: Process) -> Stop:
    """What supervisord.conf says of its end."""
    config = process.config
    orphans = {**os.environ, **(config.environment or {})}.get("CDN_ORPHANS")
    return Stop(
        config.stopsignal, float(config.stopwaitsecs), config.stopasgroup, config.killasgroup, orphans == "adopt"
    )


def starts_by_itself(process: Process) -> bool:
    """Whether supervisord.conf has it started with supervisord."""
    return bool(process.config.autostart)


def wants_first_start(process: Process) -> bool:
    """Whether supervisord.conf has it started by itself, and it has not been yet."""
    return bool(process.config.autostart and not process.laststart)


def log_path(process: Process) -> str | None:
    """The file that holds its output, if there is one."""
    return _file(process.config.stdout_logfile)


def error_log_path(process: Process) -> str | None:
    """The file that holds its standard error, if that is another one."""
    return None if process.config.redirect_stderr else _file(process.config.stderr_logfile)


def _file(path: Any) -> str | None:
    return str(path) if path and path is not Automatic else None


def started_at(process: Process) -> float:
    """When it was started last, Unix time."""
    return float(process.laststart)


def run_dir_settings(supervisord: Supervisord) -> tuple[str | None, str | None]:
    """CDN_RUN_DIR by the environment or supervisord.conf, and the path of supervisord's Unix socket."""
    options = supervisord.options
    environment = getattr(options.configroot.supervisord, "environment", None) or {}
    configured = os.environ.get("CDN_RUN_DIR") or environment.get("CDN_RUN_DIR")
    for config in options.server_configs:
        if "file" in config:
            return configured, config["file"]
    return configured, None


def conf_file(supervisord: Supervisord) -> tuple[Path | None, Mapping[str, str]]:
    """supervisord.conf, and what ``%(ENV_…)s`` in it means."""
    options = supervisord.options
    path = options.configfile if isinstance(options.configfile, str) else None
    return (Path(path).absolute() if path else None), dict(options.environ_expansions)


# -- doing -----------------------------------------------------------------------------------------------


def set_running(process: Process) -> None:
    """STARTING → RUNNING, as it is ready."""
    process.delay = 0
    process.backoff = 0
    process.change_state(ProcessStates.RUNNING)
    process.config.options.logger.info(f"success: {process.config.name} entered RUNNING state, it says READY=1")


def set_backoff(process: Process, reason: str, after_s: float) -> None:
    """Show it as BACKOFF with that reason; the Keeper says when it is over."""
    process.spawnerr = reason
    if process.state != ProcessStates.BACKOFF:
        process.change_state(ProcessStates.BACKOFF)
    process.backoff = 0  # stock gives up by counting here; the policy has its own
    process.delay = time.time() + after_s


def set_fatal(process: Process, reason: str) -> None:
    """Show it as FATAL with that reason; it stays down."""
    process.spawnerr = reason
    process.system_stop = True
    process.delay = 0
    process.backoff = 0
    process.change_state(ProcessStates.FATAL)


def set_exited(process: Process) -> None:
    """BACKOFF → EXITED: stock thought that it ended too soon, the policy that it is to stay down or start at once."""
    process.delay = 0
    process.backoff = 0
    if process.state != ProcessStates.EXITED:
        process.change_state(ProcessStates.EXITED)


def set_stopped(process: Process) -> None:
    """EXITED or FATAL → STOPPED: it is down, and nothing is held against it, or to come."""
    process.delay = 0
    process.backoff = 0
    process.spawnerr = None
    process.change_state(ProcessStates.STOPPED)


def start(process: Process) -> None:
    """Start it, as ``supervisorctl start`` does."""
    process.spawn()


def stop(process: Process) -> str | None:
    """Tell it to end, as ``supervisorctl stop`` does; a text if that was not possible."""
    return process.stop()  # type: ignore[no-any-return]


def send_signal(process: Process, number: int) -> str | None:
    """Send it a signal that is not meant to end it; a text if that was not possible."""
    return process.signal(number)  # type: ignore[no-any-return]


def subscribe(kind: str, callback: Callable[[Any], None]) -> None:
    """Call back at ``SupervisorRunningEvent`` and the like."""
    events.subscribe(getattr(events, kind), callback)


def socket_map(supervisord: Supervisord) -> dict[int, Any]:
    """What supervisord's loop listens to."""
    listening: dict[int, Any] = supervisord.options.get_socket_map()
    return listening


def forget_fd(supervisord: Supervisord, fd: int) -> None:
    """Take a descriptor out of the loop, before it is closed."""
    socket_map(supervisord).pop(fd, None)
    try:
        supervisord.options.poller.unregister_readable(fd)
    except (KeyError, ValueError):
        return  # it was never listened to


def at_end(supervisord: Supervisord, callback: Callable[[], None]) -> None:
    """Call back when this run of supervisord is over, also before a reload.

    A reload closes descriptors 5 to 1023 by number; under a living ZeroMQ
    context that is an abort(3) of supervisord.
    """
    poller = supervisord.options.poller
    close = poller.close

    def close_after_us() -> None:
        callback()
        close()

    poller.close = close_after_us


def take_over_shutdown(supervisord: Supervisord) -> Callable[[], None]:
    """Leave it to us to stop everybody, at SupervisorStoppingEvent; what is returned gives it back.

    Stock stops one group after the other, however little they have to do with each other.
    """
    groups = list(supervisord.stop_groups or ())
    supervisord.stop_groups = []

    def give_back() -> None:
        supervisord.stop_groups = [group for group in groups if group.get_unstopped_processes()]

    return give_back


def calm_waiting_stops(supervisord: Supervisord) -> None:
    """Make a waiting ``stopProcess`` ask 50 times a second, not as fast as the loop can turn.

    Its answer's delay is 0, which makes the connection writable for ever: 100 %
    of a core for as long as the process takes to end. And it waits for a stopped
    state, for ever if somebody has it started again at once: here it answers when
    that process has ended.
    """
    for _, server in supervisord.options.httpservers:
        for handler in server.handlers:
            interface = getattr(getattr(handler, "rpcinterface", None), "supervisor", None)
            if interface is None:  # also an authenticating handler hides it one deeper
                interface = getattr(
                    getattr(getattr(handler, "handler", None), "rpcinterface", None), "supervisor", None
                )
            if interface is not None and "stopProcess" not in vars(interface):
                _calm(interface)


def _calm(interface: Any) -> None:
    stock = interface.stopProcess

    def stopProcess(self: Any, name: str, wait: bool = True) -> Any:
        answer = stock(name, wait)
        if getattr(answer, "delay", None) != 0:
            return answer
        _, process = self._getGroupAndProcess(name)
        pid = process.pid

        def ended() -> Any:
            return True if process.pid != pid else answer()

        ended.delay = 0.02  # type: ignore[attr-defined]
        ended.rpcinterface = self  # type: ignore[attr-defined]
        return ended

    stopProcess.__doc__ = stock.__doc__
    interface.stopProcess = types.MethodType(stopProcess, interface)  # its dispatcher takes bound methods only


def reopen_unix_servers(supervisord: Supervisord) -> list[str]:
    """Listen anew at the paths that somebody has removed; which these were. OSError if that cannot be.

    Only the listening socket is another: connections, handlers and whoever waits for an answer stay.
    """
    reopened: list[str] = []
    servers = supervisord.options.httpservers
    for number, (config, server) in enumerate(servers):
        path = config.get("file")
        if path is None or os.path.lexists(path):
            continue
        log = LogWrapper(supervisord.options.logger)
        fresh = supervisor_af_unix_http_server(path, config["chmod"], config["chown"], log)
        fresh.handlers = server.handlers
        servers[number] = (config, fresh)
        forget_fd(supervisord, server.socket.fileno())
        server.close()
        reopened.append(path)
    return reopened


def hurry_answers(supervisord: Supervisord) -> None:
    """Have every answer that waits asked in the next turn: a state has changed."""
    for dispatcher in list(socket_map(supervisord).values()):
        if getattr(dispatcher, "delay", 0):
            dispatcher.last_writable_check = 0


# -- further instances of a program ------------------------------------------------------------------------


def has_group(supervisord: Supervisord, name: str) -> bool:
    """Whether supervisord has a group of that name, or is about to: it stands in supervisord.conf as last read."""
    configured = supervisord.options.process_group_configs
    return name in supervisord.process_groups or any(group.name == name for group in configured)


def why_not_scalable(process: Process) -> str:
    """Why there can be no further instances of it; empty if there can."""
    group = process.group
    if group is None or type(group.config) is not ProcessGroupConfig or type(process.config) is not ProcessConfig:
        return "it is an event listener or a FastCGI program"
    if len(group.processes) > 1:
        return f"its group {group.config.name} has {len(group.processes)} processes: set its numprocs"
    if group.config.name != process.config.name:
        return f"it is a process of the group {group.config.name}: only a program by itself can be scaled"
    if "services.atlas" in process.config.command.split():
        return "there is one ATLAS in a run directory: the second would not start, or keep the first from it"
    return ""


def instance_config(process: Process, name: str) -> Any:
    """The configuration of a further instance: its program's, with a name, a log and a port of its own."""
    first = process.config
    config = copy.copy(first)
    config.name = name
    config.environment = {**(first.environment or {}), "CDN_INSTANCE": name, "CDN_PORT": "0"}
    suffix = name.removeprefix(first.name)
    config.stdout_logfile = _own_log(first.stdout_logfile, suffix)
    config.stderr_logfile = _own_log(first.stderr_logfile, suffix)
    return config


def _own_log(path: Any, suffix: str) -> Any:
    if not isinstance(path, str) or path.startswith(("/dev/", "/proc/")):
        return path  # none, or one that all may share
    stem, extension = os.path.splitext(path)
    return f"{stem}{suffix}{extension}"


def add_instance(supervisord: Supervisord, process: Process, name: str) -> None:
    """Make one; supervisord then starts it, if it does so with its program."""
    config = instance_config(process, name)
    group = process.group.config
    supervisord.add_process_group(ProcessGroupConfig(group.options, name, group.priority, [config]))


def is_current(process: Process, instance: Process) -> bool:
    """Whether that instance is made of the program's present configuration."""
    return bool(instance_config(process, instance.config.name) == instance.config)


def remove_group(supervisord: Supervisord, name: str) -> bool:
    """Forget a group; False if it is not down."""
    return bool(supervisord.remove_process_group(name))


def keep_instances(supervisord: Supervisord, is_instance: Callable[[str], bool]) -> None:
    """Have ``reread`` and ``update`` not call those removed that never stood in supervisord.conf."""
    stock = supervisord.diff_to_active

    def diff_to_active() -> Any:
        added, changed, removed = stock()
        return added, changed, [config for config in removed if not is_instance(config.name)]

    supervisord.diff_to_active = diff_to_active
