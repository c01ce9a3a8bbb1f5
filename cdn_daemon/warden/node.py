"""The warden on the bus: publishes the process table, takes orders and answers them.

Losing the bus or ATLAS is never an outage: what cannot be sent is dropped, and
nothing here waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from bus.commands import AgentLink
from bus.endpoints import RunDir
from bus.messages import (
    Accepted,
    Command,
    DisableProcess,
    EnableProcess,
    ForgetFailures,
    Hello,
    HoldRestarts,
    NodeCommand,
    NodeStatus,
    Outcome,
    OutcomeKind,
    ProcessState,
    RestartProcess,
    ScaleProcess,
    SetMaintenance,
    SignalProcess,
    StartProcess,
    StopProcess,
)
from bus.publisher import Publisher
from cdn_daemon.warden.desired import names
from cdn_daemon.warden.orders import (
    Act,
    Ended,
    Goal,
    Memory,
    Order,
    Scaling,
    StartOne,
    Wait,
    next_move,
    next_scaling,
)
from cdn_daemon.warden.program import Program
from cdn_daemon.warden.steward import Refused, Steward

_GOALS = {
    StartProcess: (Goal.UP,),
    StopProcess: (Goal.DOWN,),
    RestartProcess: (Goal.DOWN, Goal.UP),
}


class Node:
    """This host's warden on the bus. Make it after daemonising: ZeroMQ's thread does not survive a fork."""

    def __init__(
        self,
        run_dir: RunDir,
        host: str,
        incarnation: int,
        steward: Steward,
        *,
        act: Callable[[str, Goal, str], str | None],
        signal: Callable[[str, int], str | None],
    ) -> None:
        """act brings a program up or down for somebody; signal sends it one. Both answer None, or why not."""
        self._host = host
        self._steward = steward
        self._act = act
        self._signal = signal
        self.incarnation = incarnation
        self._publisher = Publisher(run_dir.telemetry)
        self._link = AgentLink(run_dir.agents)
        self._orders: dict[str, Order | Scaling] = {}
        self._memory = Memory()
        self.fd = self._link.fileno()

    @property
    def is_waiting(self) -> bool:
        """Whether orders are under way."""
        return bool(self._orders)

    def close(self) -> None:
        """Leave the bus; what was just sent gets a moment to go."""
        self._publisher.close(linger_s=0.2)
        self._link.close(linger_s=0.2)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Frames that were no commands, by cause."""
        return self._link.dropped

    def publish(self, status: NodeStatus) -> None:
        """Send the table; FrameError if it is too large for a frame."""
        self._publisher.publish(status)

    def greet(self) -> None:
        """Say who is here; ATLAS may be a new one."""
        self._link.send(
            Hello(target=self._host, role="warden", host=self._host, incarnation=self.incarnation, pid=os.getpid())
        )

    def receive(self, programs: Mapping[str, Program], is_up: bool, now_s: float) -> None:
        """Take the orders that have come."""
        for command in self._link.receive():
            if self._memory.knows(command.id):
                self._answer(command.id, self._memory.outcome(command.id))
                continue
            self._memory.begin(command.id)
            refusal = self._refusal(command, programs, is_up)
            if refusal:
                self._end(command.id, Ended(OutcomeKind.REJECTED, refusal))
                continue
            assert isinstance(command.body, NodeCommand)
            try:
                begun = self._begin(command, programs[command.body.name], now_s)
            except Refused as refused:
                self._end(command.id, Ended(OutcomeKind.REJECTED, str(refused)))
                continue
            if isinstance(begun, Ended):
                self._end(command.id, begun)
            else:
                self._answer(command.id, None)
                self._orders[command.id] = begun
        self.advance(programs, now_s)

    def _begin(self, command: Command, program: Program, now_s: float) -> Order | Scaling | Ended:
        """Do what can be done at once, and say what is to be followed; raises Refused."""
        by, deadline_s, steward = command.asked_by, now_s + command.timeout_s, self._steward
        match command.body:
            case SignalProcess(name=name, signal=number):
                problem = self._signal(name, number)
                return Ended(OutcomeKind.FAILED, problem) if problem else Ended(OutcomeKind.DONE)
            case ForgetFailures(name=name):
                return Ended(OutcomeKind.DONE, steward.forget_failures(name, by))
            case SetMaintenance(name=name, on=on, for_s=for_s):
                return Ended(OutcomeKind.DONE, steward.set_maintenance(name, on=on, for_s=for_s, by=by))
            case HoldRestarts(name=name, for_s=for_s, reason=reason):
                return Ended(OutcomeKind.DONE, steward.hold(name, for_s, reason, by))
            case DisableProcess(name=name):
                note = steward.disable(name, by)
                return Order(command.id, name, by, (Goal.DOWN,), deadline_s, begun=True, note=note)
            case EnableProcess(name=name):
                was_disabled = bool(steward.refusal(name))
                note = steward.enable(name, by)
                if not (was_disabled and steward.starts_by_itself(name)):
                    return Ended(OutcomeKind.DONE, note)
                return Order(command.id, name, by, (Goal.UP,), deadline_s, note=note)
            case ScaleProcess(name=name, instances=instances):
                note = steward.scale(name, instances, by)
                return Scaling(command.id, by, names(name, instances), deadline_s, note=note)
            case StartProcess(name=name) | RestartProcess(name=name) | StopProcess(name=name):
                goals = _goals(command.body, program)
                if Goal.UP in goals and (refusal := steward.refusal(name)):
                    raise Refused(f"cannot start {name}: {refusal}")
                return Order(command.id, name, by, goals, deadline_s)
        raise Refused(f"{type(command.body).__name__} is for a daemon, and this is a warden")

    def _refusal(self, command: Command, programs: Mapping[str, Program], is_up: bool) -> str:
        if command.target != self._host:
            return f"this is {self._host}, the command is for {command.target}"
        if command.incarnation is not None and command.incarnation != self.incarnation:
            return f"{self._host} is #{self.incarnation}, the command is for #{command.incarnation}"
        if not isinstance(command.body, NodeCommand):
            return f"{type(command.body).__name__} is for a daemon, and this is a warden"
        if command.body.name not in programs:
            return f"supervisord has no process {command.body.name}"
        if isinstance(command.body, SignalProcess) and _is_replaced(command.body, programs[command.body.name]):
            return f"{command.body.name} is no longer pid {command.body.pid}"
        if isinstance(command.body, RestartProcess):
            program = programs[command.body.name]
            if _is_replaced(command.body, program) and program.state in (ProcessState.STOPPED, ProcessState.FATAL):
                return f"{command.body.name} has restarted already, and is {program.state} since"
        if not is_up:
            return "supervisord is shutting down"
        return ""

    def advance(self, programs: Mapping[str, Program], now_s: float) -> None:
        """Go on with every order under way; call it when states have changed, and every tick."""
        for order in list(self._orders.values()):
            if isinstance(order, Scaling):
                self._scale(order, now_s)
            else:
                self._advance(order, programs, now_s)

    def _scale(self, order: Scaling, now_s: float) -> None:
        while True:
            match next_scaling(order, self._steward.standings(order.names[0]), now_s):
                case StartOne(name, next_order):
                    problem = self._act(name, Goal.UP, order.asked_by)
                    if problem:
                        return self._end(order.id, Ended(OutcomeKind.FAILED, f"{name}: {problem}"))
                    self._orders[order.id] = order = next_order
                case Wait():
                    return None
                case Ended() as ended:
                    return self._end(order.id, ended)

    def _advance(self, order: Order, programs: Mapping[str, Program], now_s: float) -> None:
        while True:
            program = programs.get(order.name)
            if program is None:
                return self._end(order.id, Ended(OutcomeKind.FAILED, f"{order.name} was removed from supervisord"))
            row = program.row(now_s)
            match next_move(order, program.state, program.due_s is not None, row.reason, now_s):
                case Act(goal, next_order):
                    problem = self._act(order.name, goal, order.asked_by)
                    if problem:
                        return self._end(order.id, Ended(OutcomeKind.FAILED, problem))
                    self._orders[order.id] = order = next_order
                case Wait():
                    return None
                case Ended() as ended:
                    return self._end(order.id, ended)

    def _end(self, id_: str, ended: Ended) -> None:
        self._orders.pop(id_, None)
        self._memory.end(id_, ended)
        self._answer(id_, ended)

    def _answer(self, id_: str, ended: Ended | None) -> None:
        if ended is None:
            self._link.send(Accepted(id=id_, incarnation=self.incarnation))
        else:
            self._link.send(Outcome(id=id_, kind=ended.kind, reason=ended.reason, incarnation=self.incarnation))


def _goals(body: NodeCommand, program: Program) -> tuple[Goal, ...]:
    """What an order wants of its program. One that has restarted since the order was given is not restarted again."""
    if isinstance(body, RestartProcess) and _is_replaced(body, program):
        return (Goal.UP,)
    return _GOALS[type(body)]


def _is_replaced(body: RestartProcess | SignalProcess, program: Program) -> bool:
    """Whether there is another process than the one that is meant, or has been since."""
    last_pid = program.now.was_pid if program.now is not None else None
    return None not in (body.pid, last_pid) and body.pid != last_pid
