"""The embedded daemon: a thread that ticks ten times a second, and owns all its sockets.

A tick: the control loop goes one phase on, health is looked at, the lifecycle
keeps its deadline, the status is published if it is due, and the watchdog is fed.
Whatever may block (checks, act, undo) runs elsewhere and is only collected here.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import select
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Event as ThreadEvent
from threading import Thread
from typing import TYPE_CHECKING, Any

from bus.codec import MAX_FRAME_BYTES, encode
from bus.endpoints import RunDir
from bus.messages import (
    Accepted,
    AgentMessage,
    Command,
    DaemonStatus,
    Event,
    HealthCheck,
    HealthStatus,
    Hello,
    LifecyclePhase,
    Limits,
    OodaPhase,
    Outcome,
    OutcomeKind,
    ReportStatus,
    Restart,
    Resume,
    ServiceMetrics,
    SetLimits,
    SetLoopMode,
    Shed,
    Shutdown,
)
from cdn_daemon.beside import Beside, Checks, LoopWork, brief
from cdn_daemon.claim import is_alive
from cdn_daemon.ending import end_of_thread
from cdn_daemon.events import AT_ONCE, KEPT, Ear, numbers
from cdn_daemon.guard import TURNS, Demand, Guard, beyond_machine
from cdn_daemon.health import HealthMonitor, fit
from cdn_daemon.lifecycle import ExitCode, Instruction, LifecycleEvent, LifecycleManager
from cdn_daemon.limits import LimitError, check_limits
from cdn_daemon.notify import Notifier
from cdn_daemon.ooda import OodaLoop
from cdn_daemon.pulse import Pulse
from cdn_daemon.service import Identity, Service, ServiceDaemon
from cdn_daemon.web import Traffic

if TYPE_CHECKING:
    from bus.commands import AgentLink
    from bus.publisher import Publisher

log = logging.getLogger(__name__)

OWED_AGAIN_S = 1.0
"""How soon the supervisor is told again what could not be sent, where no beats are wanted."""
TICK_S = 0.1
_REPORT, _GREET = 9, 1
"""The turns in which it is said how things are, and that it is there. Odd ones, as the watchdog is fed in even ones:
what wakes another thread or process gives the interpreter away, so nothing is to do that twice in a turn."""
AWAY_S = 1.0
"""A tick that begins this much late was not the service's fault: what it waited for gets its time again."""
_EVENTS = 4
"""More than the descriptors that it waits for; by default epoll makes room for a thousand."""
OUTCOMES_KEPT = 1000
VALUES_BYTES = MAX_FRAME_BYTES // 2
"""What the service's own metrics may have of a status."""
DRAIN_SLACK_S = 2.0
"""What the server gets beyond drain_s to close what it has cancelled."""


class CDNDaemon(ServiceDaemon):
    """One per process; ``run`` makes, starts and ends it."""

    def __init__(
        self,
        service: Service,
        identity: Identity,
        *,
        run_dir: RunDir,
        notifier: Notifier,
        traffic: Traffic,
        perform: Callable[[Instruction], None],
        replace: Callable[[str], None],
        limits: Limits | None = None,
        drain_s: float | None = None,
    ) -> None:
        self._service = service
        self._identity = identity
        self._run_dir = run_dir
        self._notifier = notifier
        self._traffic = traffic
        self._perform = perform
        self._replace = replace
        self.ooda: OodaLoop[Any, Any, Any] = service.ooda
        self.health_monitor = HealthMonitor(service.checks)
        self.lifecycle = LifecycleManager(drain_s=(drain_s or service.drain_s) + DRAIN_SLACK_S)
        self._address: str | None = None
        self._posted: deque[LifecycleEvent | Future[Any]] = deque()
        """What came from other threads; a Future is a directive's, which has ended."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._beside = Beside()
        self._checks = Checks(self.health_monitor, self._beside)
        self._loop_work = LoopWork(self.ooda, self._beside)
        self._asked: list[Command] = []
        """HealthChecks that wait for their results."""
        self._directives: deque[Command] = deque()
        """Shed and Resume, one after the other; the first is under way."""
        self._shedding = False
        self._outcomes: OrderedDict[str, Outcome | Accepted] = OrderedDict()
        self._outbox = service.outbox
        self.ear: Ear | None = Ear(service.hearings, run_dir, identity) if service.hearings else None
        """What hears for the service; its host starts and ends it."""
        self._guard = Guard(limits or service.limits, self.health_monitor, time.monotonic(), shed=self._shed)
        self._why = ""
        """Why it is to end, in words."""
        self._values: dict[str, float] = {}
        self._seq = 0
        self._said_version, self._said_mode = 0, self.ooda.mode
        self._said_under_way = ""
        self._turn = 5
        """Four before the first report: what it says has been read by then."""
        self._greets = False
        self._bus_stirred = True
        """Whether something may have come: a descriptor said so, or a send has swallowed its edge."""
        self._feed_s = math.inf
        """When to: not while it starts, as who has fed it is judged by its silence, and imports hold the GIL."""
        self._publisher: Publisher | None = None
        self._link: AgentLink | None = None
        self._thread = Thread(target=self._guarded, name="cdn-daemon", daemon=True)
        self.ended = ThreadEvent()
        """Set once the last status has been published."""

    # -- for the host: any thread -------------------------------------------------------------------

    def attach(self, loop: asyncio.AbstractEventLoop, address: str | None) -> None:
        """The service's loop runs, and it will answer at this base URL, if at any. Before ``start``."""
        self._beside.loop = loop
        self._guard.pulse = Pulse(loop)
        self._address = address

    def start(self) -> None:
        """Begin to tick, unless it does already; on the main thread."""
        if self._thread.ident is None:
            self._thread.start()

    def post(self, event: LifecycleEvent) -> None:
        """Tell the daemon what happened; it acts on it at once."""
        self._post(event)

    def _post(self, what: LifecycleEvent | Future[Any]) -> None:
        self._posted.append(what)
        self._wake_up()

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    # -- ServiceDaemon ------------------------------------------------------------------------------

    @property
    def service_id(self) -> str:
        """Name of the service."""
        return self._service.name

    def health(self) -> HealthStatus:
        """By its checks and the daemon's findings; unknown until it serves."""
        if self.lifecycle.phase is LifecyclePhase.STARTING:
            return HealthStatus.UNKNOWN
        return self.health_monitor.status()

    def ooda_phase(self) -> OodaPhase:
        """Where the loop stands."""
        return self.ooda.current_phase()

    def metrics(self) -> ServiceMetrics:
        """As sampled within the last second."""
        return ServiceMetrics(
            vitals=self._guard.vitals,
            in_flight=self._traffic.in_flight,
            requests=self._traffic.requests,
            values=self._values,
        )

    def report(self) -> DaemonStatus:
        """Publish the status now; the daemon's own thread only."""
        self._seq += 1
        status = self.status()
        if self._publisher is not None:
            self._publisher.publish(status)
        self._said_version, self._said_mode = self.health_monitor.version, self.ooda.mode
        if self.lifecycle.phase is LifecyclePhase.DRAINING:
            self._said_under_way = self._traffic.under_way()
        return status

    def handle_command(self, command: Command) -> Outcome | None:
        """Obey; the daemon's own thread only. A command seen before has no second effect."""
        mine = self._identity
        if command.target != mine.instance:
            return self._outcome(command, OutcomeKind.REJECTED, f"this is {mine.instance}, not {command.target}")
        if command.incarnation is not None and command.incarnation != mine.incarnation:
            reason = f"{mine.instance} is #{mine.incarnation}, the command is for #{command.incarnation}"
            return self._outcome(command, OutcomeKind.REJECTED, reason)
        match command.body:
            case Restart() if not self._is_supervised():
                return self._outcome(command, OutcomeKind.REJECTED, "nobody supervises it, so it would stay down")
            case Restart():
                self._why = f"told to restart by {command.asked_by}"
                self._on(LifecycleEvent.RESTART, time.monotonic())
                return None
            case Shutdown():
                self._why = f"told to shut down by {command.asked_by}"
                self._on(LifecycleEvent.SHUTDOWN, time.monotonic())
                return None
            case HealthCheck():
                self._checks.all_now()
                self._asked.append(command)
                return None
            case ReportStatus():
                return self._outcome(command, OutcomeKind.DONE, status=self.report())
            case SetLimits(limits=limits):
                return self._set_limits(command, limits)
            case SetLoopMode(mode=mode):
                log.info("the loop is %s, by %s", mode, command.asked_by)
                self.ooda.mode = mode
                return self._outcome(command, OutcomeKind.DONE, status=self.report())
            case Shed() if self._service.shed_function is None:
                reason = f"{mine.service} cannot shed load: it has no function for it (@service.shed)"
                return self._outcome(command, OutcomeKind.REJECTED, reason)
            case Shed() | Resume():
                self._directives.append(command)
                if len(self._directives) == 1:
                    self._direct()
                return None
            case _:
                return self._outcome(command, OutcomeKind.REJECTED, "that is for a warden, and this is a service")

    def _is_supervised(self) -> bool:
        """Whether somebody is there who would start it again; a supervisord may have died since."""
        mine = self._identity
        return mine.supervised and (not mine.supervisor or is_alive(mine.supervisor))

    def _set_limits(self, command: Command, limits: Limits) -> Outcome:
        try:
            check_limits(limits)
        except LimitError as error:
            return self._outcome(command, OutcomeKind.REJECTED, str(error))
        problems = beyond_machine(limits)
        if problems:
            return self._outcome(command, OutcomeKind.REJECTED, "; ".join(problems))
        log.info("limits set by %s: %s", command.asked_by, limits)
        self._guard.change(limits)
        return self._outcome(command, OutcomeKind.DONE, status=self.report())

    def _direct(self) -> None:
        """Begin with the next directive: the service's own function does it."""
        service = self._service
        sheds = isinstance(self._directives[0].body, Shed)
        function = service.shed_function if sheds else service.resume_function
        if function is None:  # nothing need be done to serve as before
            ended: Future[Any] = Future()
            ended.set_result(None)
            self._post(ended)
            return
        arguments = ("load",) if sheds else ()
        is_async = inspect.iscoroutinefunction(function)
        self._beside.start(function, *arguments, is_async=is_async).add_done_callback(self._post)

    def _directed(self, error: BaseException | None) -> None:
        """The directive under way has ended: say so, and go on with the next."""
        command = self._directives.popleft()
        sheds = isinstance(command.body, Shed)
        if error is not None:
            log.error("the service's %s failed", "shed" if sheds else "resume", exc_info=error)
            self._answer(self._outcome(command, OutcomeKind.FAILED, f"its function raised {brief(error)}"))
        else:
            log.info("%s, told by %s", "shedding load" if sheds else "serving as before", command.asked_by)
            note = "" if self._shedding or sheds else "it was not shedding"
            self._shedding = sheds
            if sheds:
                reason = f"shedding load, told by {command.asked_by}"
                self.health_monitor.find("shed", HealthStatus.DEGRADED, reason)
            else:
                self.health_monitor.clear("shed")
            self._answer(self._outcome(command, OutcomeKind.DONE, note, self.report()))
        if self._directives:
            self._direct()

    def _answer(self, outcome: Outcome) -> None:
        """Of a command that was accepted before."""
        self._outcomes[outcome.id] = outcome
        if self._link is not None:
            self._send(outcome)

    def _outcome(
        self, command: Command, kind: OutcomeKind, reason: str = "", status: DaemonStatus | None = None
    ) -> Outcome:
        return Outcome(id=command.id, kind=kind, reason=reason, incarnation=self._identity.incarnation, status=status)

    def status(self) -> DaemonStatus:
        """The status as it is now, not published; any thread."""
        now_s = time.monotonic()
        mine = self._identity
        return DaemonStatus(
            service=mine.service,
            instance=mine.instance,
            host=mine.host,
            incarnation=mine.incarnation,
            seq=self._seq,
            pid=mine.pid,
            time_s=time.time(),
            monotonic_s=now_s,
            uptime_s=now_s - mine.started_s,
            restarts=mine.restarts,
            phase=self.lifecycle.phase,
            health=self.health(),
            reasons=self._reasons(),
            ooda_phase=self.ooda.current_phase(),
            ooda_mode=self.ooda.mode,
            shedding=self._shedding,
            address=self._address if self.lifecycle.phase is LifecyclePhase.SERVING else None,
            metrics=self.metrics(),
            limits=self._guard.keeper.limits,
        )

    def _reasons(self) -> tuple[str, ...]:
        reasons = self.health_monitor.reasons()
        if self.lifecycle.phase is LifecyclePhase.DRAINING:
            why = f" ({self._why})" if self._why else ""
            return (f"draining{why}: {self._traffic.under_way()}{self._left()}", *reasons)
        return reasons

    def _left(self) -> str:
        """How long the drain may still take."""
        until_s = self.lifecycle.drain_until_s
        return "" if until_s is None else f", {max(0.0, until_s - DRAIN_SLACK_S - time.monotonic()):.1f} s left"

    # -- the thread ---------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException:  # noqa: BLE001 - whatever it is
            self._notifier.send(STATUS="the daemon thread died", ERRNO=ExitCode.BUG)
            end_of_thread("the daemon thread")

    def _run(self) -> None:
        # Imported here, beside the server's start: ZeroMQ's 10 ms are then nobody's to wait for.
        from bus.commands import AgentLink
        from bus.publisher import Publisher

        self._publisher = Publisher(self._run_dir.telemetry)
        self._outbox.wake = self._wake_up
        self._link = AgentLink(self._run_dir.agents)
        poll = select.epoll()  # which, other than poll(2), need not be told each time
        for fd in (self._wake, self._publisher.fileno(), self._link.fileno()):
            poll.register(fd, select.EPOLLIN)
        due_s = time.monotonic()
        while self._publisher is not None:  # until the end
            for fd, _ in poll.poll(max(0.0, due_s - time.monotonic()), _EVENTS):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._bus_stirred = True
            now_s = time.monotonic()
            if self._posted or self._bus_stirred:  # every look at a socket costs
                self._take(now_s)
            if self._outbox.waits and self._publisher is not None:
                self._say(AT_ONCE)
            if now_s < due_s or self._publisher is None:
                continue
            self._tick(now_s, late_s=now_s - due_s)
            end_s = time.monotonic()
            self._guard.ticks.add((now_s - due_s, end_s - now_s))
            due_s += TICK_S
            if due_s <= end_s:  # ticks keep their places on the clock; those that were missed are not made up for
                due_s += TICK_S * (1 + int((end_s - due_s) / TICK_S))
        self._exit_if_the_host_hangs()

    def _take(self, now_s: float) -> None:
        """What came from other threads and from ATLAS."""
        while self._posted:
            posted = self._posted.popleft()
            if isinstance(posted, LifecycleEvent):
                self._on(posted, now_s)
            elif not posted.cancelled():
                self._directed(posted.exception())
            if self.ended.is_set():
                return
        if not self._bus_stirred:
            return
        self._bus_stirred = False
        assert self._publisher is not None
        assert self._link is not None
        if self._publisher.has_new_subscriber():
            self.report()
            self._greet()
            self._outbox.again()
        for command in self._link.receive():
            known = self._outcomes.get(command.id)
            if known is None:
                self._outcomes[command.id] = Accepted(id=command.id, incarnation=self._identity.incarnation)
                if len(self._outcomes) > OUTCOMES_KEPT:
                    self._outcomes.popitem(last=False)
                outcome = self.handle_command(command)
                if outcome is not None:
                    self._outcomes[command.id] = outcome
                known = self._outcomes[command.id]
            self._send(known)

    def _say(self, most: int) -> None:
        """Publish what the service has emitted, if there is an ATLAS; else it waits for one."""
        assert self._publisher is not None
        if not self._publisher.is_subscribed:
            self._outbox.waits = False
            return
        mine = self._identity
        for said in self._outbox.take(most):
            self._publisher.publish(
                Event(
                    id=said.id,
                    source=mine.instance,
                    incarnation=mine.incarnation,
                    seq=said.number,
                    time_s=said.time_s,
                    host=mine.host,
                    instance=mine.instance,
                    subject_incarnation=mine.incarnation,
                    kind=said.kind,
                    text=said.text,
                    cause=said.cause,
                    version=said.version,
                    facts=said.facts,
                )
            )
        self._bus_stirred = True

    def _on(self, event: LifecycleEvent, now_s: float) -> None:
        before = self.lifecycle.phase
        instruction = self.lifecycle.on(event, now_s)
        if self.lifecycle.phase is not before:
            self._phase_changed()
        if instruction is not None:
            self._do(instruction)

    def _phase_changed(self) -> None:
        phase, self._feed_s = self.lifecycle.phase, 0.0
        log.info("%s%s", phase, f": {self._why}" if self._why else "")
        if phase is LifecyclePhase.SERVING:
            self._notifier.send(READY=1, STATUS="serving", MAINPID=self._identity.pid)
        elif phase is LifecyclePhase.DRAINING:
            self._notifier.send(STOPPING=1, STATUS=f"draining: {self._why}" if self._why else "draining")
        self.report()

    def _do(self, instruction: Instruction) -> None:
        if instruction is Instruction.END:
            assert self._publisher is not None
            assert self._link is not None
            self._say(KEPT)
            self._publisher.close(linger_s=0.2)
            self._link.close(linger_s=0.2)
            self._publisher = None
            self._beside.close()
            self.ended.set()
        self._perform(instruction)

    def _exit_if_the_host_hangs(self) -> None:
        """The interpreter waits for threads that a service left behind; not for ever."""
        time.sleep(DRAIN_SLACK_S)
        log.warning("threads that the service left behind do not end; ending the process without them")
        logging.shutdown()
        os._exit(self.lifecycle.exit_code or ExitCode.STAY_DOWN)

    def _tick(self, now_s: float, *, late_s: float) -> None:
        if late_s > AWAY_S:
            self._back_after(late_s, now_s)
        # Nothing is called here that has nothing to do: at ten ticks a second a call in vain costs more than its work.
        turn = self._turn = (self._turn + 1) % TURNS
        if now_s >= self._loop_work.next_s:
            self._step_ooda(now_s)
        if now_s >= self._checks.next_s:
            self._check_health(now_s)
        demand = self._guard.tick(now_s, turn)
        if demand is not None and self._heed(demand, now_s):
            return
        if self.lifecycle.drain_until_s is not None and self._ends_the_drain(now_s):
            return
        if turn == _REPORT:
            self._measure()
            self.report()
        elif self.health_monitor.version != self._said_version or self.ooda.mode is not self._said_mode:
            self.report()
        if turn == _GREET:
            self._greets = not self._greets  # every other second will do
            if self._greets:
                self._greet()
        if now_s >= self._feed_s - (0.0 if turn % 2 else TICK_S):
            self._feed_watchdog(now_s)

    def _back_after(self, late_s: float, now_s: float) -> None:
        log.warning("was away for %.1f s; whatever was waited for gets its time again", late_s)
        self.health_monitor.restart_windows(now_s)
        self.lifecycle.restart_windows(late_s)
        self._guard.restart_windows(late_s, now_s)

    def _ends_the_drain(self, now_s: float) -> bool:
        """Whether the drain's time is over, and with it the process."""
        instruction = self.lifecycle.tick(now_s)
        if instruction is None:
            if self._said_under_way != self._traffic.under_way():
                self.report()
            return False
        log.warning("the drain's deadline is over: ending with %s", self._traffic.under_way())
        self._phase_changed()
        self._do(instruction)
        return True

    def _step_ooda(self, now_s: float) -> None:
        try:
            self._loop_work.step(now_s, go_on=self.lifecycle.phase is LifecyclePhase.SERVING)
        except Exception as error:  # noqa: BLE001 - an author's code may raise anything
            self._hook_failed("ooda", f"the loop's {self.ooda.current_phase()} raised {brief(error)}", error)
            self.ooda.reset(now_s)
        else:
            if self.ooda.current_phase() is OodaPhase.OBSERVE:  # it has come round
                self.health_monitor.clear("ooda")

    def _hook_failed(self, name: str, reason: str, error: Exception) -> None:
        """A fault of the service's own code costs its health, not the process."""
        reason = fit(reason)
        if (HealthStatus.DEGRADED, reason) != self.health_monitor.finding(name):
            log.error("%s", reason, exc_info=error)
        self.health_monitor.find(name, HealthStatus.DEGRADED, reason)

    def _check_health(self, now_s: float) -> None:
        self._checks.run(now_s, start=self.lifecycle.phase is LifecyclePhase.SERVING)
        if self._asked and not self.health_monitor.running():
            status = self.report()
            asked, self._asked = self._asked, []
            for command in asked:
                self._answer(self._outcome(command, OutcomeKind.DONE, str(status.health), status))

    def _heed(self, demand: Demand, now_s: float) -> bool:
        """Do what the guard demands; True if the process is to be replaced, so that there is nothing else to do."""
        if demand is Demand.REPLACE:
            if self._why != self._guard.reason:
                self._why = self._guard.reason
                self.report()
            self._replace(self._guard.reason)
            return True
        if demand is Demand.RESTART:
            self._why = self._guard.reason
            if self._is_supervised():
                self._on(LifecycleEvent.RESTART, now_s)
            else:
                log.error("%s; nobody supervises this process, so it goes on", self._why)
        return False

    def _shed(self, dimension: str) -> None:
        """Ask the service to use less."""
        shed = self._service.shed_function
        if shed is None:
            return
        log.info("asking the service to shed %s", dimension)
        self._beside.start_and_forget("the service's shed", shed, dimension)

    def _measure(self) -> None:
        values = numbers(self._outbox, self.ear)
        if self._service.measure is None:
            self._values = values
            return
        try:
            measured = {str(name): float(value) for name, value in self._service.measure().items()}
            encode(ServiceMetrics(values=measured), max_bytes=VALUES_BYTES)  # what cannot be told costs no status
            self._values = measured | values
            self.health_monitor.clear("metrics")
        except Exception as error:  # noqa: BLE001 - an author's code may raise anything
            self._hook_failed("metrics", f"the service's metrics raised {brief(error)}", error)

    def _greet(self) -> None:
        mine = self._identity
        self._send(
            Hello(target=mine.instance, role="daemon", host=mine.host, incarnation=mine.incarnation, pid=mine.pid)
        )

    def _send(self, message: AgentMessage) -> None:
        """To ATLAS; then look at the bus once more, as sending may take the edge of what has just come."""
        assert self._link is not None
        self._link.send(message)
        self._bus_stirred = True

    def _feed_watchdog(self, now_s: float) -> None:
        """Say that this process lives, and again before its silence would be noticed."""
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s is None:
            self._feed_s = now_s + OWED_AGAIN_S
            if self._notifier.owes:
                self._notifier.send()
            return
        self._feed_s = now_s + min(watchdog_s / 3, 1.0) - TICK_S / 2
        self._notifier.send(WATCHDOG=1)
