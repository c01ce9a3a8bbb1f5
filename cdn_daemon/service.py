"""What a service is: its declaration, and the interface that every service's daemon has."""

from __future__ import annotations

import inspect
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from threading import Event as ThreadEvent
from typing import Any, TypeVar

from bus.messages import (
    Command,
    DaemonStatus,
    Event,
    Facts,
    HealthStatus,
    Limits,
    OodaPhase,
    Outcome,
    ServiceMetrics,
)
from cdn_daemon.backstops import Backstops, apply
from cdn_daemon.events import EventError, Hearing, Outbox, hearing
from cdn_daemon.health import Check
from cdn_daemon.limits import LimitError, check_limits
from cdn_daemon.ooda import OodaLoop

ASGIApp = Callable[..., Any]
WSGIApp = Callable[..., Any]
CheckFunction = TypeVar("CheckFunction", bound=Callable[[], Any])

ShedFunction = TypeVar("ShedFunction", bound=Callable[[str], Any])
ResumeFunction = TypeVar("ResumeFunction", bound=Callable[[], Any])
ReadyFunction = TypeVar("ReadyFunction", bound=Callable[[], Awaitable[str | None]])
DrainFunction = TypeVar("DrainFunction", bound=Callable[[float], Awaitable[None]])
F = TypeVar("F", bound=Facts)
HearFunction = Callable[[Event, F], Awaitable[None]]
ExpositionFunction = TypeVar("ExpositionFunction", bound=Callable[[DaemonStatus], str])

_ONE_OF = "it must be one of an ASGI application (app), a WSGI application (wsgi), a function (main)"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who this process is."""

    service: str
    instance: str
    host: str
    incarnation: int
    restarts: int
    pid: int
    started_s: float
    """Monotonic."""
    supervised: bool
    """Whether somebody would start it again."""
    supervisor: str = ""
    """Which run of which supervisord has started it, as ``pid@ticks``; empty without one."""


class ServiceDaemon(ABC):
    """The interface of every service's daemon."""

    @property
    @abstractmethod
    def service_id(self) -> str:
        """Name of the service, such as ``cdn-data-fabric``."""

    @abstractmethod
    def health(self) -> HealthStatus:
        """How well it does its work, by its checks."""

    @abstractmethod
    def ooda_phase(self) -> OodaPhase:
        """Where its control loop stands."""

    @abstractmethod
    def metrics(self) -> ServiceMetrics:
        """What it measures."""

    @abstractmethod
    def report(self) -> DaemonStatus:
        """Publish the status to ATLAS, and return it."""

    @abstractmethod
    def handle_command(self, command: Command) -> Outcome | None:
        """Obey; the outcome if it is known at once, None if it will follow."""


class ConfigurationError(Exception):
    """This process cannot do its work until a person has changed something; it ends with 78 and stays down.

    For a service's background task and its lifespan to raise.
    """


class Ended(Exception):
    """What this process runs has ended by itself, and the process is to end in the same way.

    For a background task to raise. ``wait_status`` is as of waitpid(2): the exit code, or the signal, is kept.
    """

    def __init__(self, wait_status: int, text: str) -> None:
        super().__init__(text)
        self.wait_status = wait_status


class DeclarationError(ValueError):
    """A service is declared wrongly; the text names the field, its value and the limit."""


class Service:
    """A service as its author declares it; give it to ``run``.

    One of three: ``app`` is an ASGI application; ``wsgi`` a WSGI application, called on
    up to ``threads`` threads; ``main`` a function without a server of its own, called on the
    main thread with an Event that is set when it is to return. /livez, /readyz, /metrics and
    /ooda come with the framework. ``port`` 0 is one that the system chooses, and the default
    with ``main``; ``CDN_PORT`` overrides it.

    ``limits`` are bands for what the process and its children may use. ``drain_s`` is
    how long requests in flight may take to finish once the service is told to end.
    ``background`` is an async function, started on the service's loop once it listens
    and cancelled when it ends; the process ends if it raises. ``websocket_max_bytes`` is
    what one message of a WebSocket client's may have: each client can make it be gathered.
    ``origins`` are those of other sites, such as ``https://app.example.com``, whose pages may change
    something here or open a WebSocket, and ``hosts`` names that it answers to on loopback besides
    loopback's own and CDN_HOSTS; ``*`` is any, for an application that decides on that itself.

    Raises DeclarationError where it is declared, before any socket is opened.
    """

    def __init__(
        self,
        name: str,
        *,
        app: ASGIApp | None = None,
        wsgi: WSGIApp | None = None,
        main: Callable[[ThreadEvent], Any] | None = None,
        port: int | None = None,
        threads: int = 10,
        ooda: OodaLoop[Any, Any, Any] | None = None,
        limits: Limits | None = None,
        drain_s: float = 10.0,
        background: Callable[[], Coroutine[Any, Any, None]] | None = None,
        websocket_max_bytes: int = 16 << 20,
        hosts: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DeclarationError(f"cannot name a service {name!r}: letters, digits, '_', '.' and '-', at most 64")
        given = {"app": app, "wsgi": wsgi, "main": main}
        wanted = [what for what, value in given.items() if value is not None]
        if len(wanted) != 1:
            raise DeclarationError(f"cannot declare {name} with {' and '.join(wanted) or 'nothing'}: {_ONE_OF}")
        if not callable(given[wanted[0]]):
            raise DeclarationError(f"cannot serve {given[wanted[0]]!r} as {name}: {_ONE_OF}")
        if port is None and main is None:
            raise DeclarationError(f"cannot serve {name} without a port: 0 lets the system choose")
        if port is not None and not 0 <= port <= 65535:
            raise DeclarationError(f"cannot listen on port {port} for {name}: it must be 0 to 65535")
        if not 1 <= threads <= 1000:
            raise DeclarationError(f"cannot serve {name} on {threads} threads: it must be 1 to 1000")
        if not 0 < drain_s <= 3600:
            raise DeclarationError(f"cannot drain {name} for {drain_s} s: it must be over 0 and at most 3600")
        self.name = name
        self.app = app
        self.wsgi = wsgi
        self.main = main
        self.threads = threads
        self.port = port or 0
        self.has_address = main is None
        """Whether its own server's address is the one that it is reached at."""
        self.address: str | None = None
        """The one that it is reached at, if not."""
        self.ooda: OodaLoop[Any, Any, Any] = ooda if ooda is not None else OodaLoop()
        self.limits = limits if limits is not None else Limits()
        try:
            check_limits(self.limits)
        except LimitError as error:
            raise DeclarationError(f"cannot declare {name}: {error}") from error
        self.drain_s = drain_s
        self.background = background
        self.websocket_max_bytes = websocket_max_bytes
        self.hosts = frozenset(host.lower() for host in hosts)
        self.origins = frozenset(origin.lower() for origin in origins)
        self.checks: list[Check] = []
        self.measure: Callable[[], Mapping[str, float]] | None = None
        self.shed_function: Callable[[str], Any] | None = None
        self.resume_function: Callable[[], Any] | None = None
        self.ready_function: Callable[[], Awaitable[str | None]] | None = None
        self.drain_function: Callable[[float], Awaitable[None]] | None = None
        self.exposition_function: Callable[[DaemonStatus], str] | None = None
        self.outbox = Outbox()
        self.hearings: list[Hearing] = []
        self.identity: Identity | None = None
        """Who this process is; set by ``run`` before anything of the service starts."""

    def check(
        self, *, every_s: float = 5.0, timeout_s: float = 1.0, fails_after: int | None = 3
    ) -> Callable[[CheckFunction], CheckFunction]:
        """Decorate a health check: it fails by raising, by returning False or a reason, or by taking too long.

        An async one runs on the service's loop, a plain one on a thread. It makes
        the service unhealthy after ``fails_after`` failures in a row, or with None never more than degraded.
        """

        def declare(function: CheckFunction) -> CheckFunction:
            if not (every_s > 0 and timeout_s > 0 and (fails_after is None or fails_after >= 1)):
                raise DeclarationError(
                    f"cannot declare check {function.__name__} of {self.name}: every_s={every_s} and "
                    f"timeout_s={timeout_s} must be over 0, fails_after={fails_after} at least 1"
                )
            check = Check(
                name=function.__name__,
                function=function,
                is_async=inspect.iscoroutinefunction(function),
                every_s=every_s,
                timeout_s=timeout_s,
                fails_after=fails_after,
            )
            if any(other.name == check.name for other in self.checks):
                raise DeclarationError(f"cannot declare check {check.name} of {self.name} twice")
            self.checks.append(check)
            return function

        return declare

    def shed(self, function: ShedFunction) -> ShedFunction:
        """Decorate what makes the service use less: called with ``"rss_bytes"`` or whatever is over its soft limit.

        ATLAS or an operator may tell it to shed ``"load"`` too, until it is to resume.
        An async one runs on the service's loop, a plain one on a thread.
        """
        self.shed_function = function
        return function

    def resume(self, function: ResumeFunction) -> ResumeFunction:
        """Decorate what makes the service serve as before it shed ``"load"``; optional, called without arguments.

        An async one runs on the service's loop, a plain one on a thread.
        """
        self.resume_function = function
        return function

    def ready(self, function: ReadyFunction) -> ReadyFunction:
        """Decorate an async function that says why the service is not ready yet, or None once it is.

        It is asked again and again, from when the server listens; until it returns None
        nobody is told that the service is ready.
        """
        self.ready_function = function
        return function

    def drain(self, function: DrainFunction) -> DrainFunction:
        """Decorate an async function that finishes the service's own work once it is told to end.

        It is called with the seconds that there are, beside the server finishing its
        requests, and before the background task is cancelled.
        """
        self.drain_function = function
        return function

    def confine(self, backstops: Backstops, lock_fd: int) -> list[str]:
        """Have the operating system hold the backstops; what it does not permit, in words.

        Called before anything of the service starts. ``lock_fd`` is the instance's lock,
        for whoever else has to end before the next incarnation may begin.
        """
        return apply(backstops, os.getpid())

    def exposition(self, function: ExpositionFunction) -> ExpositionFunction:
        """Decorate what writes all of /metrics, for a service that speaks for others too.

        It is called on a thread, with the service's own status, and returns Prometheus' text format.
        """
        self.exposition_function = function
        return function

    def metrics(self, function: Callable[[], Mapping[str, float]]) -> Callable[[], Mapping[str, float]]:
        """Decorate the function that returns the service's own numbers, called once a second; it must be quick."""
        self.measure = function
        return function

    def emit(self, facts: Facts, text: str, *, cause: str | None = None, id: str | None = None) -> str:
        """Tell the other services, and people by ``text``, that something has happened; return the event's id.

        For any thread, and never waits. ``cause`` is the id of the event or command that led to it. It arrives at
        least once while this process lives; who must be heard after that writes it down, and after a restart emits
        it again with the same ``id``: what comes twice is dropped. Raises EventError, a ValueError, for what is no
        event or too large.
        """
        return self.outbox.put(facts, text, cause=cause, id=id)

    def hears(self, facts: type[F], *, back_s: float = 0.0) -> Callable[[HearFunction[F]], HearFunction[F]]:
        """Decorate an async function that hears what other services emit: ``async def f(event, facts)``.

        It runs on the service's loop, one event at a time in the order heard, and hears each once. What happened up
        to ``back_s`` (at most 600) before this process began is heard too: give it where a restart must miss
        nothing, and expect that the process before has heard some of that.
        """

        def declare(function: HearFunction[F]) -> HearFunction[F]:
            try:
                declared = hearing(facts, function, back_s)
            except EventError as error:
                raise DeclarationError(f"cannot declare {self.name}: {error}") from error
            if any(other.kind == declared.kind for other in self.hearings):
                raise DeclarationError(f"cannot declare {self.name}: two functions hear {declared.kind}")
            self.hearings.append(declared)
            return function

        return declare
