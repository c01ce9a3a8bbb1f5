"""A service's process: its server on the main thread, its daemon beside it.

A service that is a plain function has the main thread, and its server another.
If any of them ends, the process ends, with the exit code that is the contract with
its supervisor (lifecycle.ExitCode). Runs under supervisord, under systemd, in a
container or by hand; without ATLAS or a bus it serves all the same.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from typing import IO, Any, NoReturn

import uvicorn
import uvloop
from uvicorn.server import ServerState

from bus.endpoints import RunDir, RunDirError, default_run_dir, host_name, prepare
from bus.messages import HealthStatus
from cdn_daemon.claim import Occupied, Orphaned, claim
from cdn_daemon.daemon import CDNDaemon
from cdn_daemon.ending import ENDING_SIGNALS, end_as
from cdn_daemon.health import Check
from cdn_daemon.intake import BoundedHttp
from cdn_daemon.lifecycle import ExitCode, Instruction, LifecycleEvent
from cdn_daemon.long_calls import LONG_CALLS
from cdn_daemon.main_thread import MainThread
from cdn_daemon.notify import Notifier
from cdn_daemon.service import ASGIApp, ConfigurationError, Ended, Identity, Service
from cdn_daemon.settings import SettingError, Settings, read_settings
from cdn_daemon.vitals import age_s
from cdn_daemon.web import ServiceApp, Traffic, is_worth_logging, nothing_here
from cdn_daemon.wsgi import WsgiApp

log = logging.getLogger(__name__)

BACKLOG = 2048
DAEMON_WAITS_S = 0.1
"""The daemon begins when the server listens, as what it imports would hold up the server; or after this long."""
LAST_REPORT_S = 2.0
READY_POLL_S = 0.1
HEARD_S = 2.0
"""What a service that drains gets for the events that it has heard already."""
QUIET_S, QUIET_MAX_S = 0.1, 1.0
"""A server that drains goes on accepting until nobody has asked for so long; and how long that may last."""
WSGI_PERIOD_S = 5.0
"""How long all threads may be busy before that is a finding; twice as long, and the service is unhealthy."""
TRIGGER_GRACE_S = 2.0
"""From asking the supervisor to replace a stuck process to ending it ourselves."""


def run(service: Service) -> NoReturn:
    """Serve until told to stop, then end the process; never returns.

    Ends with 0 stopped on purpose, 75 restart me, 78 configuration error, 70 a bug.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").addFilter(is_worth_logging)
    started_s = time.monotonic() - (age_s(os.getpid()) or 0.0)
    notifier = Notifier()
    try:
        host = _Host(service, notifier, started_s)
    except (SettingError, RunDirError, Occupied, ConfigurationError) as error:
        log.critical("%s", error)
        notifier.send(STATUS=str(error), ERRNO=ExitCode.CONFIGURATION)
        sys.exit(ExitCode.CONFIGURATION)
    except Orphaned as error:
        log.critical("%s", error)
        sys.exit(ExitCode.BUG)
    except OSError as error:  # such as a full disk, whose log has no room to say so; it may pass, so it is no 78
        where = f": {error.filename}" if error.filename else ""
        text = f"cannot start {service.name}: {error.strerror or error}{where}"
        log.critical("%s", text, exc_info=True)
        notifier.send(STATUS=text, ERRNO=error.errno or ExitCode.BUG)
        sys.exit(ExitCode.BUG)
    code = ExitCode.BUG
    try:
        code = host.run()
    except ConfigurationError as error:  # of the application's lifespan
        code = host.fail(error)
    except Exception as error:
        log.critical("the server failed", exc_info=True)
        code = host.fail(error)
    logging.shutdown()
    sys.exit(code)


class _Host:
    def __init__(self, service: Service, notifier: Notifier, started_s: float) -> None:
        self._service = service
        self._notifier = notifier
        self._settings = read_settings(service, os.environ)
        run_dir = prepare(default_run_dir())
        self._claim = claim(
            run_dir,
            self._settings.instance,
            orphans=self._settings.orphans,
            waiting=lambda text: _keep_waiting(notifier, text),
        )
        self._stacks = _open_stacks(run_dir, self._settings.instance, notifier)
        LONG_CALLS.notifier = notifier
        self._socket = _listen(self._settings)
        self._traffic = Traffic()
        self._app = ServiceApp(
            _application(service),
            self._traffic,
            service.exposition_function,
            hosts=self._settings.hosts | service.hosts,
            origins=service.origins,
        )
        self._replacing_s: float | None = None
        self._is_done = False
        """Drained: nothing is left to be cut off."""
        self._ended_as: int | None = None
        """Wait status of what this process ran, if that ended by itself."""
        self._draining: asyncio.Task[None] | None = None
        self._main: MainThread | None = None if service.main is None else MainThread(service.main)
        problems = service.confine(self._settings.backstops, self._claim.fd)
        service.ooda.mode = self._settings.ooda_mode
        service.identity = Identity(
            service=service.name,
            instance=self._settings.instance,
            host=host_name(),
            incarnation=self._claim.incarnation,
            restarts=self._claim.restarts,
            pid=os.getpid(),
            started_s=started_s,
            supervised=_is_supervised(notifier),
            supervisor=self._claim.supervisor,
        )
        self._daemon = CDNDaemon(
            service,
            service.identity,
            run_dir=run_dir,
            notifier=notifier,
            traffic=self._traffic,
            perform=self._perform,
            replace=self._replace,
            limits=self._settings.limits,
            drain_s=self._settings.drain_s,
        )
        self._app.subject = self._daemon
        for problem in problems:
            log.warning("%s", problem)
            self._daemon.health_monitor.find(problem, HealthStatus.DEGRADED, problem)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Server | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._hearing: asyncio.Task[None] | None = None

    def run(self) -> ExitCode:
        """Until drained; the exit code is the lifecycle's."""
        if self._main is None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(self._serve())
        return self._main.run_beside(self._serve)

    async def _serve(self) -> ExitCode:
        loop = self._loop = asyncio.get_running_loop()
        if self._main is not None:
            self._main.attach(loop, self._told_to_end, self._main_returned)
        else:
            for number in ENDING_SIGNALS:
                loop.add_signal_handler(number, self._told_to_end)
        self._daemon.attach(loop, self._address())
        self._server = _Server(
            uvicorn.Config(
                self._app,
                lifespan="auto",
                http=BoundedHttp,
                ws_max_size=self._service.websocket_max_bytes,
                # Nobody is believed to forward for another, until the proxy in front is named.
                forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS", ""),
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, round(self._settings.drain_s)),
                backlog=BACKLOG,
            ),
        )
        loop.call_later(DAEMON_WAITS_S, self._daemon.start)
        async with self._background():
            await self._server.serve_until_drained(self._socket, self._listening, self._deafen, self._traffic)
            if self._draining is not None:
                await self._draining
        self._is_done = True
        self._daemon.start()
        self._daemon.post(LifecycleEvent.DRAINED)
        return await asyncio.to_thread(self._end)

    def _address(self) -> str | None:
        if not self._service.has_address:
            return self._service.address
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def _listening(self) -> None:
        host, port = self._socket.getsockname()[:2]
        log.info("%s #%d listens on %s port %d", self._settings.instance, self._claim.incarnation, host, port)
        self._daemon.start()
        if self._main is not None:
            self._main.begin()
        if self._daemon.ear is not None:
            self._hearing = asyncio.ensure_future(self._daemon.ear.run())
            self._hearing.add_done_callback(self._background_ended)
        if self._service.ready_function is None:
            self._daemon.post(LifecycleEvent.LISTENING)
        else:
            self._waiting = asyncio.ensure_future(self._wait_until_ready(self._service.ready_function))
            self._waiting.add_done_callback(self._background_ended)

    async def _wait_until_ready(self, why_not: Callable[[], Awaitable[str | None]]) -> None:
        told = ""
        while (reason := await why_not()) is not None:
            if reason != told:
                told = reason
                self._notifier.send(STATUS=f"not ready: {reason}")
                self._daemon.health_monitor.find("ready", HealthStatus.DEGRADED, f"not ready: {reason}")
            await asyncio.sleep(READY_POLL_S)
        self._daemon.health_monitor.clear("ready")
        self._daemon.post(LifecycleEvent.LISTENING)

    async def _deafen(self) -> None:
        """Finish with what was heard, while the application still has what it needs for that."""
        if self._hearing is not None and self._daemon.ear is not None:
            self._daemon.ear.stop()
            await asyncio.wait((self._hearing,), timeout=HEARD_S)
            self._hearing.cancel()

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        if self._service.background is None:
            yield
            return
        task = self._count(asyncio.ensure_future(self._service.background()))
        task.add_done_callback(self._background_ended)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Ended):
                await task

    def _count(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Have it among what is under way until it is done."""

        def done(_: asyncio.Task[None]) -> None:
            self._traffic.tasks -= 1

        self._traffic.tasks += 1
        task.add_done_callback(done)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._heed(task.exception())

    def _heed(self, error: BaseException | None) -> None:
        """Part of the service has ended: nothing follows if it just returned, and the end if it raised."""
        match error:
            case None:
                return
            case ConfigurationError():
                log.critical("%s", error)
                self._notifier.send(STATUS=str(error), ERRNO=ExitCode.CONFIGURATION)
                self._daemon.post(LifecycleEvent.MISCONFIGURED)
            case Ended() if self._daemon.lifecycle.exit_code is not None:
                log.info("%s, after it was told to end", error)
            case Ended(wait_status=wait_status):
                log.error("%s", error)
                self._ended_as = wait_status
                self._notifier.send(STATUS=str(error))
                self._daemon.health_monitor.find("ended", HealthStatus.UNHEALTHY, str(error))
                self._daemon.post(LifecycleEvent.FAILED)
            case _:
                log.critical("the service's background task failed", exc_info=error)
                self._daemon.post(LifecycleEvent.FAILED)

    def _main_returned(self, error: BaseException | None) -> None:
        """Of a plain function: to return is to have done its work, and the process ends with 0."""
        self._heed(error)
        if error is None and self._daemon.lifecycle.exit_code is None:
            log.info("the service's main function has returned")
            self._daemon.post(LifecycleEvent.SHUTDOWN)

    def _told_to_end(self) -> None:
        first = self._daemon.lifecycle.exit_code is None
        self._daemon.post(LifecycleEvent.SHUTDOWN if first else LifecycleEvent.HURRY)

    def _drain(self) -> None:
        """Stop accepting, and finish; on the loop."""
        assert self._server is not None
        if self._waiting is not None:
            self._waiting.cancel()
        if self._daemon.ear is not None:
            self._daemon.ear.stop()
        self._server.drain()
        self._draining = self._count(asyncio.ensure_future(self._finish_work()))

    async def _finish_work(self) -> None:
        try:
            if self._service.drain_function is not None:
                await self._service.drain_function(self._settings.drain_s)
        except Exception:
            log.error("the service's drain failed", exc_info=True)
        if self._main is not None:
            await self._main.stop()

    def _perform(self, instruction: Instruction) -> None:
        """The lifecycle's instructions; on the daemon's thread."""
        match instruction:
            case Instruction.DRAIN:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._drain)
            case Instruction.END if not self._is_done:
                logging.shutdown()
                if self._ended_as is not None:
                    end_as(self._ended_as)
                os._exit(self._daemon.lifecycle.exit_code or ExitCode.STAY_DOWN)
            case _:
                return

    def _replace(self, reason: str) -> None:
        """It is stuck or out of bounds: leave its stacks, and ask to be replaced; on the daemon's thread."""
        now_s = time.monotonic()
        if self._replacing_s is None:
            self._replacing_s = now_s
            log.critical("%s; stacks of all threads are in %s", reason, self._stacks.name)
            print(f"{reason}\n", file=self._stacks, flush=True)
            faulthandler.dump_traceback(self._stacks, all_threads=True)
            self._notifier.send(STATUS=reason, WATCHDOG="trigger")
        elif now_s - self._replacing_s > TRIGGER_GRACE_S or not self._notifier.is_supervised:
            logging.shutdown()
            os._exit(ExitCode.BUG)

    def _end(self) -> ExitCode:
        self._daemon.ended.wait(LAST_REPORT_S)
        with suppress(FileNotFoundError):
            os.unlink(self._stacks.name)
        code = self._daemon.lifecycle.exit_code
        return ExitCode.BUG if code is None else code

    def fail(self, error: Exception) -> ExitCode:
        """The server raised: say so, and end as a bug, or as misconfigured."""
        if isinstance(error, ConfigurationError):
            self._heed(error)
        else:
            self._notifier.send(STATUS="the server failed", ERRNO=ExitCode.BUG)
            self._daemon.post(LifecycleEvent.FAILED)
        self._daemon.start()
        return self._end()


class _ServerState(ServerState):
    """uvicorn's, with a Date header made when it is asked for: a server that has nothing to do need not wake for it."""

    _others: list[tuple[bytes, bytes]]
    _headers: list[tuple[bytes, bytes]]
    _dated_s = 0

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Of every answer."""
        now_s = int(time.time())
        if now_s != self._dated_s:
            self._dated_s, self._headers = now_s, [(b"date", formatdate(now_s, usegmt=True).encode()), *self._others]
        return self._headers

    @default_headers.setter
    def default_headers(self, others: list[tuple[bytes, bytes]]) -> None:
        self._dated_s, self._others = 0, others


class _Server(uvicorn.Server):
    """uvicorn's, woken by an event when it is to drain instead of looking ten times a second."""

    _drain: asyncio.Event | None = None
    _misconfigured: ConfigurationError | None = None

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = _ServerState()

    async def serve_until_drained(
        self,
        listener: socket.socket,
        listening: Callable[[], None],
        closing: Callable[[], Awaitable[None]],
        traffic: Traffic,
    ) -> None:
        self._drain = asyncio.Event()
        self.config.load()
        self.config.loaded_app = self._noting(self.config.loaded_app)
        self.lifespan = self.config.lifespan_class(self.config)
        try:
            await self.startup(sockets=[listener])
        except SystemExit as error:  # how uvicorn says that the lifespan failed; it has logged why
            raise self._misconfigured or RuntimeError("the application could not start") from error
        if self._misconfigured is not None:  # by an application that raised where Starlette says startup.failed
            raise self._misconfigured
        self.server_state.default_headers = self.config.encoded_headers
        listening()
        await self._drain.wait()
        await self._be_quiet(traffic)
        await closing()
        await self.shutdown(sockets=[listener])

    def _noting(self, app: ASGIApp) -> ASGIApp:
        """The application, whose ConfigurationError in its lifespan is kept: uvicorn would make one word of all."""

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except ConfigurationError as error:
                if scope["type"] == "lifespan":
                    self._misconfigured = error
                raise

        return noting

    async def _be_quiet(self, traffic: Traffic) -> None:
        """Whoever routes here is being told to route elsewhere: refuse nobody until that has been heard.

        A request that meets a connection which is just being closed is lost, and not every request may be sent twice.
        """
        until_s = time.monotonic() + QUIET_MAX_S
        asked = -1
        while self.server_state.connections and asked != traffic.requests + traffic.in_flight:
            if time.monotonic() >= until_s:
                return
            asked = traffic.requests + traffic.in_flight
            await asyncio.sleep(QUIET_S)

    def drain(self) -> None:
        """Stop accepting and finish; on the loop."""
        assert self._drain is not None
        self._drain.set()


def _application(service: Service) -> ASGIApp:
    """What answers beside the framework's own paths."""
    if service.app is not None:
        return service.app
    if service.wsgi is None:
        return nothing_here
    app = WsgiApp(service.wsgi, service.threads)
    service.checks.append(
        Check(
            name="wsgi_threads",
            function=app.has_free_thread,
            is_async=True,
            every_s=WSGI_PERIOD_S,
            timeout_s=WSGI_PERIOD_S,
            fails_after=2,
        )
    )
    return app


def _keep_waiting(notifier: Notifier, text: str) -> None:
    notifier.send(STATUS=text, EXTEND_TIMEOUT_USEC=5_000_000)


def _is_supervised(notifier: Notifier) -> bool:
    """Whether somebody starts this process again when it ends: supervisord, systemd or Kubernetes."""
    signs = ("SUPERVISOR_ENABLED", "INVOCATION_ID", "KUBERNETES_SERVICE_HOST")
    return notifier.is_supervised or any(sign in os.environ for sign in signs)


def _open_stacks(run_dir: RunDir, instance: str, notifier: Notifier) -> IO[str]:
    """Where the stacks go if it comes to that; kept open, as then it may be too late to open a file.

    Under our warden those of a fatal signal go there too, SIGABRT among them, which it sends to what is hung: the
    file goes into the post-mortem. Elsewhere nobody would look there, so they go to the log.
    """
    path = run_dir.stacks(instance, os.getpid())
    path.parent.mkdir(mode=0o700, exist_ok=True)
    is_ours = notifier.is_in(run_dir.path)
    for left in path.parent.glob("*.txt"):
        # Of one that no warden saw end, as its own had been killed. Elsewhere only this file tells what it hung in.
        if left.stem.rpartition(".")[0] == instance and (is_ours or not left.stat().st_size):
            left.unlink()
    file = open(path, "w", buffering=1, encoding="utf-8", opener=_private)  # noqa: SIM115
    faulthandler.enable(file=file if is_ours else sys.stderr)
    return file


def _private(path: str, flags: int) -> int:
    """Readable by its owner only, whatever the umask of who starts a service by hand."""
    return os.open(path, flags, 0o600)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host} port {settings.port}: {os.strerror(error.errno or 0)}; "
            f"stop what uses it, or set CDN_PORT to another port"
        ) from error
