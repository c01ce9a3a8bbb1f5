"""CDNCoordinator: orders in, commands out, each followed to its outcome. Pure: now_s comes in, actions go out.

A restart goes to the service's own daemon, which drains; if that does not accept
within ACCEPT_S, to the warden of its host. Starts and stops go to the warden, as
only supervisord can tell a stopped process from one that ended. What counts as
done is what the fleet then shows, not what was promised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from bus.messages import (
    Accepted,
    AgentMessage,
    Command,
    DaemonCommand,
    Hello,
    LifecyclePhase,
    NodeCommand,
    OperatorReply,
    OrderAccepted,
    OrderOutcome,
    OrderProgress,
    OrderRequest,
    Outcome,
    OutcomeKind,
    ProcessState,
    Restart,
    RestartProcess,
    ServiceView,
    StartProcess,
    StopProcess,
    Verb,
)
from services.atlas.fleet import Fleet, Happening

ACCEPT_S = 1.0
"""A daemon accepts in a tick; one that has not within ten is not listening."""
RESEND_S = 0.3
GREETED_S = 5.0
"""Agents greet every other second at least; one that has not for this long is gone."""
MAX_TIMEOUT_S = 3600.0
MAX_OPEN = 10_000

_UP = (ProcessState.RUNNING, ProcessState.STARTING)
_GIVEN_UP = (ProcessState.FATAL, ProcessState.STOPPED)
"""No start follows by itself: the process has failed too often, or somebody else has stopped it meanwhile."""
_DOWN = (ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL)


@dataclass(frozen=True)
class ToAgent:
    """Send a command to whoever has this routing id."""

    routing_id: bytes
    command: Command


@dataclass(frozen=True)
class ToOperator:
    """Send a reply to whoever has this routing id."""

    routing_id: bytes
    reply: OperatorReply


Action = ToAgent | ToOperator | Happening


@dataclass(frozen=True)
class Agent:
    """Who greeted, and where it can be reached."""

    hello: Hello
    routing_id: bytes
    heard_s: float


class _Stage(Enum):
    ASKED = auto()
    ACCEPTED = auto()


@dataclass
class _Task:
    """One command under way."""

    id: str
    order: OrderRequest
    operator: bytes
    name: str
    began_s: float
    deadline_s: float
    asks_daemon: bool
    target: str
    body: DaemonCommand | NodeCommand
    incarnation: int | None
    pid: int | None
    """Of the process that the command is about, if there is one."""
    stage: _Stage = _Stage.ASKED
    asked_s: float = 0.0
    sent_s: float | None = None
    attempts: list[str] = field(default_factory=list)

    @property
    def command_id(self) -> str:
        """The daemon's and the warden's command are two, so that each has its own effect once."""
        return self.id if self.asks_daemon else f"{self.id}w"


class CDNCoordinator:
    """Open commands and connected agents."""

    def __init__(self, fleet: Fleet, new_id: Callable[[], str]) -> None:
        self._fleet = fleet
        self._new_id = new_id
        self._agents: dict[str, Agent] = {}
        self._tasks: dict[str, _Task] = {}

    @property
    def open_commands(self) -> int:
        """Commands without an outcome yet."""
        return len(self._tasks)

    @property
    def agents(self) -> int:
        """Daemons and wardens connected."""
        return len(self._agents)

    # -- orders -------------------------------------------------------------------------------------

    def order(self, order: OrderRequest, operator: bytes, now_s: float) -> list[Action]:
        """Take an order; the commands that it makes are under way when this returns."""
        ids: dict[str, str] = {}
        actions: list[Action] = []
        later: list[Action] = []
        for name in dict.fromkeys(order.names):
            ids[name] = self._new_id()
            later += self._begin(order, operator, name, ids[name], now_s)
        actions.append(ToOperator(operator, OrderAccepted(id=order.id, commands=ids)))
        return actions + later

    def _begin(self, order: OrderRequest, operator: bytes, name: str, command_id: str, now_s: float) -> list[Action]:
        def at_once(kind: OutcomeKind, reason: str) -> list[Action]:
            outcome = OrderOutcome(id=order.id, name=name, kind=kind, reason=reason)
            text = f"{order.verb} asked by {order.asked_by}: {kind}, {reason}"
            return [ToOperator(operator, outcome), Happening(name, "command", text, host)]

        view = self._fleet.view(name, now_s)
        host = (view.host if view is not None else None) or "unknown"
        if view is None:
            return at_once(OutcomeKind.REJECTED, f"unknown service {name}")
        if not 0 < order.timeout_s <= MAX_TIMEOUT_S:
            return at_once(
                OutcomeKind.REJECTED, f"timeout_s={order.timeout_s}: it must be over 0, at most {MAX_TIMEOUT_S}"
            )
        if len(self._tasks) >= MAX_OPEN:
            return at_once(OutcomeKind.REJECTED, f"{MAX_OPEN} commands are open already")
        silent = self._fleet.silent_node(name, now_s)
        if silent is not None:
            return at_once(OutcomeKind.REJECTED, f"{silent}, so nothing would be started again; see cdnctl up")
        if order.verb not in _PAST or order.batch is not None:
            return at_once(OutcomeKind.REJECTED, f"ATLAS cannot {order.verb} yet")
        if order.verb is Verb.START and view.state is ProcessState.RUNNING:
            return at_once(OutcomeKind.DONE, "already running")
        if order.verb is Verb.STOP and view.state in _DOWN:
            return at_once(OutcomeKind.DONE, f"already {view.state.lower()}")
        task = _Task(
            id=command_id,
            order=order,
            operator=operator,
            name=name,
            began_s=now_s,
            deadline_s=now_s + order.timeout_s,
            asks_daemon=False,
            target=host,
            body=self._node_command(order.verb, name),
            incarnation=view.incarnation,
            pid=view.pid,
        )
        if order.verb is Verb.RESTART and view.state in _UP and view.phase is not None:
            task.asks_daemon, task.target, task.body = True, name, Restart()
        self._tasks[task.id] = task
        text = f"{order.verb} asked by {order.asked_by}"
        return [Happening(name, "command", text, host, view.incarnation), *self._ask(task, now_s)]

    def _node_command(self, verb: Verb, name: str) -> NodeCommand:
        """For the warden, in supervisord's own name for the process."""
        place = self._fleet.rows().get(name)
        process = place[1].name if place is not None else name
        match verb:
            case Verb.START:
                return StartProcess(name=process)
            case Verb.STOP:
                return StopProcess(name=process)
            case _:
                return RestartProcess(name=process)

    def _ask(self, task: _Task, now_s: float) -> list[Action]:
        task.asked_s = now_s
        task.stage = _Stage.ASKED
        who = "its daemon" if task.asks_daemon else f"the warden on {task.target}"
        task.attempts.append(who)
        return [self._progress(task, f"asking {who}"), *self._send(task, now_s)]

    def _send(self, task: _Task, now_s: float) -> list[Action]:
        task.sent_s = now_s
        agent = self._agents.get(task.target)
        if agent is None:
            return []
        command = Command(
            id=task.command_id,
            target=task.target,
            incarnation=task.incarnation if task.asks_daemon else None,
            timeout_s=max(0.1, task.deadline_s - now_s),
            asked_by=task.order.asked_by,
            body=task.body,
        )
        return [ToAgent(agent.routing_id, command)]

    def _progress(self, task: _Task, text: str) -> ToOperator:
        return ToOperator(task.operator, OrderProgress(id=task.order.id, name=task.name, text=text))

    # -- agents -------------------------------------------------------------------------------------

    def hear(self, message: AgentMessage, routing_id: bytes, now_s: float) -> list[Action]:
        """Take what a daemon or warden says."""
        match message:
            case Hello():
                self._greeted(message, routing_id, now_s)
                return []
            case Accepted():
                return self._accepted(message, now_s)
            case Outcome():
                return self._ended(message, now_s)

    def _greeted(self, hello: Hello, routing_id: bytes, now_s: float) -> None:
        held = self._agents.get(hello.target)
        fresh = held is not None and now_s - held.heard_s <= GREETED_S
        if held is not None and fresh and hello.incarnation < held.hello.incarnation:
            return  # a late word of the process before
        self._agents[hello.target] = Agent(hello, routing_id, now_s)

    def _find(self, command_id: str) -> _Task | None:
        task = self._tasks.get(command_id.removesuffix("w"))
        return task if task is not None and task.command_id == command_id else None

    def _accepted(self, message: Accepted, now_s: float) -> list[Action]:
        task = self._find(message.id)
        if task is None or task.stage is _Stage.ACCEPTED:
            return []
        task.stage = _Stage.ACCEPTED
        return [self._progress(task, "draining" if task.asks_daemon else "accepted"), *self._look(task, now_s)]

    def _ended(self, message: Outcome, now_s: float) -> list[Action]:
        task = self._find(message.id)
        if task is None:
            return []
        if message.kind is OutcomeKind.DONE and not self._reached(task, now_s):
            task.stage = _Stage.ACCEPTED  # the fleet has to show it; its news is on the way
            return []
        return self._close(task, message.kind, message.reason, now_s)

    # -- time ---------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> list[Action]:
        """Look at every open command; call this a few times a second."""
        self._agents = {name: agent for name, agent in self._agents.items() if now_s - agent.heard_s <= GREETED_S}
        actions: list[Action] = []
        for task in list(self._tasks.values()):
            actions += self._look(task, now_s)
        return actions

    def restart_windows(self, late_s: float) -> None:
        """ATLAS itself was away for late_s: open commands and agents get that time back."""
        for task in self._tasks.values():
            task.deadline_s += late_s
            task.asked_s += late_s
        self._agents = {
            name: Agent(agent.hello, agent.routing_id, agent.heard_s + late_s) for name, agent in self._agents.items()
        }

    def _look(self, task: _Task, now_s: float) -> list[Action]:
        view = self._fleet.view(task.name, now_s)
        if task.stage is _Stage.ACCEPTED or task.asks_daemon:
            if self._reached(task, now_s):
                return self._close(task, OutcomeKind.DONE, "", now_s)
            if view is not None and view.state in _GIVEN_UP and task.asks_daemon:  # a warden says so itself
                return self._close(task, OutcomeKind.FAILED, view.reason or view.state.lower(), now_s)
        if now_s >= task.deadline_s:
            return self._close(task, OutcomeKind.UNKNOWN, self._late_reason(task, view), now_s)
        if task.stage is _Stage.ACCEPTED:
            return []
        if task.asks_daemon and now_s - task.asked_s >= ACCEPT_S:
            task.asks_daemon, task.target = False, (view.host if view is not None else None) or task.target
            task.body = self._node_command(task.order.verb, task.name)
            return self._ask(task, now_s)
        if task.sent_s is None or now_s - task.sent_s >= RESEND_S:
            return self._send(task, now_s)
        return []

    def _reached(self, task: _Task, now_s: float) -> bool:
        """Whether the fleet shows what was asked for."""
        view = self._fleet.view(task.name, now_s)
        if view is None:
            return False
        if task.order.verb is Verb.STOP:
            return view.state in _DOWN
        ready = view.state is ProcessState.RUNNING and view.phase in (None, LifecyclePhase.SERVING)
        if task.order.verb is Verb.START:
            return ready
        is_new = view.pid is not None and view.pid != task.pid
        has_spoken = task.incarnation is None or view.incarnation != task.incarnation
        return ready and is_new and has_spoken

    def _late_reason(self, task: _Task, view: ServiceView | None) -> str:
        waited = f"within {task.order.timeout_s:g} s"
        if task.stage is _Stage.ASKED:
            return f"no answer {waited} from {' or '.join(task.attempts)}"
        state = f"{view.state}{', ' + view.reason if view.reason else ''}" if view is not None else "unknown"
        return f"not {_PAST[task.order.verb]} {waited}: it is {state}"

    def _close(self, task: _Task, kind: OutcomeKind, reason: str, now_s: float) -> list[Action]:
        del self._tasks[task.id]
        view = self._fleet.view(task.name, now_s)
        incarnation = view.incarnation if view is not None else None
        took_s = now_s - task.began_s
        outcome = OrderOutcome(
            id=task.order.id, name=task.name, kind=kind, reason=reason, incarnation=incarnation, took_s=took_s
        )
        text = f"{task.order.verb} asked by {task.order.asked_by}: {kind} after {took_s:.1f} s"
        if reason:
            text += f", {reason}"
        host = (view.host if view is not None else None) or "unknown"
        return [ToOperator(task.operator, outcome), Happening(task.name, "command", text, host, incarnation)]


_PAST = {Verb.START: "started", Verb.STOP: "stopped", Verb.RESTART: "restarted"}
