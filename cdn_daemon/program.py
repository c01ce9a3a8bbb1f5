"""A program in any language as a service: the daemon's end of the keeper's socket.

The same host and daemon as for any service; what differs is here. It is ready when
its first probe passes, healthy while the probe does, drained by a signal, and ends
as the program does. As systemd's KillMode=mixed: the program alone is asked to end,
and all that is left of its tree at the deadline, or when it has ended, is killed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import shutil
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import Band, Limits
from cdn_daemon.backstops import Backstops, apply
from cdn_daemon.ending import in_words
from cdn_daemon.health import Check
from cdn_daemon.keeper import GONE_S, adopt_orphans, kill_descendants
from cdn_daemon.limits import DIMENSIONS, LimitError, parse_band
from cdn_daemon.probes import Probe, within
from cdn_daemon.service import ConfigurationError, Ended, Service
from cdn_daemon.web import nothing_here

log = logging.getLogger(__name__)

FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH)
"""Passed on as they come. SIGTERM and SIGINT are orders to drain, and reach the program as its stop signal."""

_LIMITED = tuple(name for name in DIMENSIONS if name != "loop_lag_s")
_MESSAGE_BYTES = 1024
_STOPPED_S = 0.2
"""Who was stopped by a signal and stays so cannot come back by itself; the warden gives its own as long."""
_SLACK_S = 1.0
"""A probe ends itself at its time-out; the monitor's own is for the case that it cannot."""


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How the program is asked whether it is well."""

    name: str
    ask: Probe | None = None
    """None: by the command that the keeper was given."""
    every_s: float = 5.0
    timeout_s: float = 1.0
    fails_after: int = 3


class Program(Service):
    """The service of a command whose keeper is at the other end of ``link``; give it to ``run``."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        link: socket.socket,
        *,
        probing: Probing | None = None,
        address: str | None = None,
        port: int = 0,
        limits: Limits | None = None,
        drain_s: float = 10.0,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        super().__init__(name, app=nothing_here, port=port, limits=limits, drain_s=drain_s, background=self._follow)
        self.has_address, self.address = False, address
        self._command = list(command)
        self._link = link
        self._stop_signal = stop_signal
        self._pid = 0
        self._runs = False
        self._stopping = False
        self._stopped: asyncio.TimerHandle | None = None
        """Since a signal has stopped it."""
        self._is_replaced = False
        self._ended: asyncio.Future[int] | None = None
        """Its wait status."""
        self._asked = 0
        self._answer: asyncio.Future[str | None] | None = None
        self._probe: Probe | None = None
        self.ready_function = self._why_not_ready
        self.drain_function = self._end_the_program
        self.measure = lambda: {"program_pid": float(self._pid)}
        if probing is not None:
            self._probe = within(probing.ask or self._run_probe, probing.timeout_s)
            check = Check(
                name=probing.name,
                function=self._probe,
                is_async=True,
                every_s=probing.every_s,
                timeout_s=probing.timeout_s + _SLACK_S,
                fails_after=probing.fails_after,
            )
            self.checks.append(check)

    def confine(self, backstops: Backstops, lock_fd: int) -> list[str]:
        """Have the program forked, and set its limits before it is let run; those of this process stay as they are."""
        adopt_orphans()
        # Descriptors are counted over the tree, so this process's own limit, inherited from a shell, is no measure.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        socket.send_fds(self._link, [b"lock"], [lock_fd])
        self._tell("fork")
        match self._link.recv(_MESSAGE_BYTES).decode().split():
            case ["forked", pid]:
                self._pid = int(pid)
            case _:
                raise RuntimeError("the keeper died")
        return apply(backstops, self._pid)

    # -- the host's hooks: on the loop ----------------------------------------------------------------

    async def _follow(self) -> None:
        """The background task: let the program run, and raise Ended when it has ended unasked."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._link.setblocking(False)
        loop.add_reader(self._link.fileno(), self._hear)
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, which the program is under too
                loop.add_signal_handler(number, self._forward, number)
        self._tell("go")
        try:
            wait_status = await asyncio.shield(self._ended)
        finally:
            loop.remove_reader(self._link.fileno())
        if self._is_replaced:
            raise Ended(wait_status, f"{self._command[0]} was stopped by a signal for {_STOPPED_S} s: replaced")
        if not self._stopping:
            raise Ended(wait_status, f"{self._command[0]} ended by itself: {in_words(wait_status)}")

    async def _why_not_ready(self) -> str | None:
        if not self._runs:
            return "it is being started"
        return None if self._probe is None else await self._probe()

    async def _end_the_program(self, within_s: float) -> None:
        assert self._ended is not None
        self._stopping = True
        if self._ended.done():
            return
        self._signal(self._stop_signal)
        self._signal(signal.SIGCONT)  # one that is stopped could not hear it
        try:
            wait_status = await asyncio.wait_for(asyncio.shield(self._ended), within_s)
        except TimeoutError:
            log.warning(
                "%s has not ended within %g s of %s: killing it", self._command[0], within_s, self._stop_signal.name
            )
            self._tell("kill")
            wait_status = await asyncio.wait_for(asyncio.shield(self._ended), GONE_S)
        log.info("%s has ended: %s", self._command[0], in_words(wait_status))

    def _stays_stopped(self) -> None:
        """Where somebody starts another one, that is better than one that does nothing."""
        assert self._ended is not None
        if self._stopping or self._ended.done() or not os.environ.get("NOTIFY_SOCKET"):
            return
        log.error("%s is stopped by a signal, for %g s now: killing it", self._command[0], _STOPPED_S)
        self._is_replaced = True
        self._tell("kill")

    async def _run_probe(self) -> str | None:
        """The probe that is a command: exit code 0, or not."""
        self._asked += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._tell(f"probe {self._asked}")
        try:
            return await self._answer
        except asyncio.CancelledError:
            self._tell("unprobe")
            raise

    # -- the keeper -----------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        try:
            self._link.send(text.encode())
        except (BrokenPipeError, ConnectionResetError):
            return  # the keeper has ended: the next look at the socket says so too

    def _signal(self, number: signal.Signals) -> None:
        self._tell(f"signal {int(number)}")

    def _forward(self, number: signal.Signals) -> None:
        log.log(logging.DEBUG if number is signal.SIGWINCH else logging.INFO, "passing on %s", number.name)
        self._signal(number)

    def _hear(self) -> None:
        assert self._ended is not None
        try:
            message = self._receive()
        except BlockingIOError:
            return
        match message.split(" ", 3):
            case ["running"]:
                self._runs = True
            case ["stopped" | "continued" as what]:
                if self._stopped is not None:
                    self._stopped.cancel()
                    self._stopped = None
                if what == "stopped":
                    self._stopped = asyncio.get_running_loop().call_later(_STOPPED_S, self._stays_stopped)
            case ["refused", number] if not self._ended.done():
                self._ended.set_exception(ConfigurationError(_cannot_run(self._command[0], int(number))))
            case ["ended", status] if not self._ended.done():
                self._ended.set_result(int(status))
            case ["probed", number, status, *text]:
                self._probed(int(number), int(status), " ".join(text))
            case [""]:
                asyncio.get_running_loop().remove_reader(self._link.fileno())
                if not self._ended.done():
                    kill_descendants()
                    self._ended.set_exception(RuntimeError("the keeper died, and the program with it"))

    def _receive(self) -> str:
        """What the keeper says next; empty once it has ended."""
        for _ in range(2):
            try:
                return self._link.recv(_MESSAGE_BYTES).decode(errors="replace")
            except ConnectionResetError:  # it ended with a message of ours unread; what it said before is still to come
                continue
        return ""

    def _probed(self, number: int, wait_status: int, text: str) -> None:
        if number == self._asked and self._answer is not None and not self._answer.done():
            failure = f"{in_words(wait_status)}{': ' if text else ''}{text}"
            self._answer.set_result(None if wait_status == 0 else failure)


def parse_limit(text: str) -> tuple[str, Band]:
    """``NAME=SOFT[:HARD[:SECONDS]]``; raises LimitError."""
    name, _, band = text.partition("=")
    if name not in _LIMITED:
        raise LimitError(f"cannot limit {name!r}: it must be one of {', '.join(_LIMITED)}")
    return name, parse_band(band)


def _cannot_run(file: str, number: int) -> str:
    """Why exec failed, and what to do about it."""
    found = file if "/" in file else shutil.which(file)
    match number:
        case errno.ENOENT if found is not None and os.path.exists(found):
            why = f"{found} is there, but the interpreter in its first line is not"
        case errno.ENOENT if "/" not in file:
            why = "command not found; install it, or name its whole path"
        case errno.EACCES:
            why = "not executable by this user; see chmod +x"
        case errno.ENOEXEC:
            why = "no format that can be executed; a script has to begin with a line such as #!/bin/sh"
        case _:
            why = os.strerror(number)
    return f"cannot run {file}: {why}"
