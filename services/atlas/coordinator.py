"""CDNCoordinator: orders in, commands out, each followed to its outcome. Pure: now_s comes in, actions go out.

A restart goes to the service's own daemon, which drains; if that does not accept
within ACCEPT_S, to the warden of its host. Starts and stops go to the warden, as
only supervisord can tell a stopped process from one that ended. What counts as
done is what the fleet then shows, not what was promised; where the fleet shows
nothing of it, the outcome of whoever carried it out (verbs.py has the table).

Every change of a command is an Entry for the journal, and comes before whatever
is sent for it. The next ATLAS takes up from there: it sends again, under the same
id. So a command arrives at least once; it takes effect at most once, as

- who has seen an id answers from memory, and does nothing;
- a daemon refuses what is for another incarnation of it;
- a warden, which restarts with supervisord and forgets, restarts and signals only
  the process whose pid it is told; whatever else it does can be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from bus.messages import (
    Accepted,
    AgentMessage,
    Command,
    CommandView,
    HealthStatus,
    Hello,
    HoldRestarts,
    LifecyclePhase,
    OperatorReply,
    OrderAccepted,
    OrderOutcome,
    OrderProgress,
    OrderRequest,
    Outcome,
    OutcomeKind,
    ProcessState,
    Refusal,
    ServiceView,
    Verb,
)
from services.atlas import rollout
from services.atlas.fleet import Fleet, Happening
from services.atlas.journal import Book, Entry, Stage
from services.atlas.verbs import RULES, for_daemon, for_warden, objection, too_late

ACCEPT_S = 1.0
"""A daemon accepts in a tick; one that has not within ten is not listening."""
RESEND_S = 0.3
ASK_AGAIN_S = 1.0
"""Who has accepted is asked for the outcome that often; it may have been told to an ATLAS that is no more."""
GREETED_S = 5.0
"""Agents greet every other second at least; one that has not for this long is gone."""
SWEEP_S = 1.0
"""How often those that are gone are looked for: with 10,000 connected it takes a millisecond."""
FIRST_GREETING_S = 3.0
"""A new ATLAS gives daemons that long to greet it, before it asks wardens instead."""
LOOK_S = 5.0
"""How long a new ATLAS looks for what has become of commands whose time is over."""
MAX_OPEN = 10_000
MAX_OPERATORS = 16
"""Who may follow one order; the longest there has to make way."""

NOBODY = b""
"""An operator that is told whether the order is taken, and no more: it looks at the list of commands."""

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


@dataclass(frozen=True)
class Record:
    """Write down how a command stands now, before anything after this is done."""

    entry: Entry


Action = Record | ToAgent | ToOperator | Happening


@dataclass(frozen=True)
class Agent:
    """Who greeted, and where it can be reached."""

    hello: Hello
    routing_id: bytes
    heard_s: float


@dataclass
class _Contact:
    """When an open command was given to whom it is for; forgotten with this ATLAS."""

    asked_s: float
    sent_s: float | None = None


class CDNCoordinator:
    """Open commands and connected agents. ``book`` is what the journal holds of commands before."""

    def __init__(self, fleet: Fleet, new_id: Callable[[], str], *, boot_id: str = "", book: Book | None = None) -> None:
        self._fleet = fleet
        self._new_id = new_id
        self._boot_id = boot_id
        self.book = book if book is not None else Book()
        self.journal_problem = ""
        """Why commands are not written down now, to be said in their outcomes; empty if they are."""
        self._agents: dict[str, Agent] = {}
        self._contacts: dict[str, _Contact] = {}
        self._operators: dict[str, list[bytes]] = {}
        self._rollouts = {entry.request.id for entry in self.book.open.values()}
        """Orders some of whose commands may wait for their turn."""
        self._turns_from_s = 0.0
        self._tables_by_s = 0.0
        """Until then an instance that no warden has told of may have one that is not heard yet."""
        self._early: set[str] = set()
        """Orders taken before it was known who there is and what depends on what; none of their commands has begun."""
        self._swept_s = 0.0

    @property
    def open_commands(self) -> int:
        """Commands without an outcome yet."""
        return len(self.book.open)

    @property
    def agents(self) -> int:
        """Daemons and wardens connected."""
        return len(self._agents)

    def commands(self, limit: int, name: str | None = None) -> tuple[CommandView, ...]:
        """The newest commands, of this instance only if it is given, oldest first; the open ones are always there."""
        return tuple(entry.view() for entry in self.book.latest(limit, name))

    def command(self, id_: str) -> CommandView | None:
        """One command; None if it is not known, or no longer."""
        entry = self.book.get(id_)
        return entry.view() if entry is not None else None

    # -- orders -------------------------------------------------------------------------------------

    def order(self, order: OrderRequest, operator: bytes, now_s: float, time_s: float) -> list[Action]:
        """Take an order; those of its commands whose turn it is are under way when this returns."""
        if known := self.book.order(order.id):
            return self._attach(order, known, operator)
        if refusal := self._refusal(order, now_s):
            return [ToOperator(operator, refusal)]
        if operator != NOBODY:
            self._operators[order.id] = [operator]
        names = tuple(dict.fromkeys(order.names))
        after = self._waits(order, names)
        entries = [
            Entry(
                id=self._new_id(),
                request=replace(order, names=(name,)),
                turn=turn,
                after=after[name],
                asked_at_s=time_s,
                boot_id=self._boot_id,
                began_s=now_s,
            )
            for turn, name in enumerate(names)
        ]
        for entry in entries:
            self.book.put(entry)
        self._rollouts.add(order.id)
        if self._is_early(order, names, now_s):
            self._early.add(order.id)
        actions = self._take_turns(order.id, now_s) if order.id not in self._early else []
        # All of it is written down before it is taken, and it is taken before anything is sent.
        written = {entry.id: Record(entry) for entry in entries}
        for action in actions:
            if isinstance(action, Record):
                del written[action.entry.id]
                written[action.entry.id] = action
        accepted = OrderAccepted(id=order.id, commands={entry.name: entry.id for entry in entries})
        rest = [action for action in actions if not isinstance(action, Record)]
        return [*written.values(), ToOperator(operator, accepted), *rest]

    def _waits(self, order: OrderRequest, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        names = tuple(names)
        return rollout.waits(order.verb, order.batch, names, {name: self._needs(name) for name in names})

    def _is_early(self, order: OrderRequest, names: Sequence[str], now_s: float) -> bool:
        """Whether a warden's table is to come that tells of one of these, or what depends on what."""
        if now_s >= self._tables_by_s:
            return False
        rows, members = self._fleet.rows(), self._fleet.members
        if not self._fleet.nodes and not all(name in members for name in names):
            return True  # what is stopped is in the table alone
        has_order = len(names) > 1 and rollout.has_order(order.verb, order.batch)
        return has_order and any(name in members and name not in rows for name in names)

    def _put_in_order(self, order_id: str, now_s: float) -> list[Action]:
        entries = self.book.order(order_id)
        names = [entry.name for entry in entries]
        if entries and self._is_early(entries[0].request, names, now_s):
            return []
        self._early.discard(order_id)
        after = self._waits(entries[0].request, names) if entries else {}
        changed = [replace(entry, after=after[entry.name]) for entry in entries if entry.after != after[entry.name]]
        return [action for entry in changed for action in self._put(entry)]

    def _refusal(self, order: OrderRequest, now_s: float) -> Refusal | None:
        if order.attach:
            return Refusal(id=order.id, reason=f"there is no order {order.id[:40]}")
        if late := too_late(order, now_s):
            return Refusal(id=order.id, reason=late, again=True)
        reason = objection(order)
        if not reason and len(self.book.open) + len(order.names) > MAX_OPEN:
            reason = f"cannot take {len(order.names)} commands: {len(self.book.open)} are open, limit {MAX_OPEN}"
        return Refusal(id=order.id, reason=reason) if reason else None

    def _needs(self, name: str) -> set[str]:
        """What an instance depends on, near and far."""
        rows = self._fleet.rows()
        found: set[str] = set()
        left = [name]
        while left:
            place = rows.get(left.pop())
            for each in place[1].depends_on if place is not None else ():
                instance = each.rpartition(":")[2]
                if instance not in found:
                    found.add(instance)
                    left.append(instance)
        return found - {name}

    def _attach(self, order: OrderRequest, entries: list[Entry], operator: bytes) -> list[Action]:
        """Tell one more operator where an order stands, and what becomes of it."""
        commands = {entry.name: entry.id for entry in entries}
        replies: list[OperatorReply] = [OrderAccepted(id=order.id, commands=commands)]
        if operator == NOBODY:
            return [ToOperator(operator, reply) for reply in replies]
        if self.book.is_open(order.id):
            others = [each for each in self._operators.get(order.id, ()) if each != operator]
            self._operators[order.id] = [*others[1 - MAX_OPERATORS :], operator]
        replies += [_outcome(entry) if entry.kind is not None else _progress(entry) for entry in entries]
        # ATLAS died while it wrote the order down, and so did nothing of it; or it is over, and long ago.
        reason = "ATLAS has no record of it"
        for name in dict.fromkeys(order.names):
            if name not in commands:
                replies.append(OrderOutcome(id=order.id, name=name, kind=OutcomeKind.UNKNOWN, reason=reason))
        return [ToOperator(operator, reply) for reply in replies]

    def _tell(self, reply: OrderProgress | OrderOutcome) -> list[Action]:
        return [ToOperator(operator, reply) for operator in self._operators.get(reply.id, ())]

    # -- turns --------------------------------------------------------------------------------------

    def _take_turns(self, order_id: str, now_s: float) -> list[Action]:
        """Begin what an order has come to, and end what it will not come to."""
        actions: list[Action] = []
        while True:
            entries = self.book.order(order_id)
            begin, refused = rollout.next_turns(entries)
            if not (begin or refused):
                break
            for entry in begin:
                actions += self._begin(entry, now_s)
            for entry, why in refused:
                actions += self._close(entry, OutcomeKind.REJECTED, why, now_s)
        if not any(entry.stage is Stage.WAITING for entry in entries):
            self._rollouts.discard(order_id)
        return actions

    def _begin(self, entry: Entry, now_s: float) -> list[Action]:
        entry = replace(entry, began_s=now_s)
        view = self._fleet.view(entry.name, now_s)
        at_once = self._at_once(entry, view, now_s)
        if at_once is not None:
            return self._close(entry, *at_once, now_s)
        assert view is not None
        host = view.host or "unknown"
        by_daemon = RULES[entry.request.verb].by_daemon
        if entry.request.verb is Verb.RESTART:
            by_daemon = view.state in _UP and view.phase is not None
        entry = replace(
            entry,
            deadline_s=now_s + entry.request.timeout_s,
            asks_daemon=by_daemon,
            target=entry.name if by_daemon else host,
            incarnation=view.incarnation,
            pid=view.pid,
        )
        text = f"{entry.request.verb} asked by {entry.request.asked_by}"
        begun = Happening(entry.name, "command", text, host, view.incarnation, entry.id)
        return [*self._ask(entry, now_s), begun]

    def _at_once(self, entry: Entry, view: ServiceView | None, now_s: float) -> tuple[OutcomeKind, str] | None:
        """How a command ends for which nobody need be asked; None if somebody must."""
        order, name = entry.request, entry.name
        if view is None:
            return OutcomeKind.REJECTED, f"unknown service {name}"
        rule = RULES[order.verb]
        if rule.shown or not rule.by_daemon:
            silent = self._fleet.silent_node(name, now_s)
            if silent is not None:
                why = "nothing would be started again" if rule.shown else "nobody would do it"
                return OutcomeKind.REJECTED, f"{silent}, so {why}; see cdnctl up"
        elif view.state not in _UP:
            return OutcomeKind.REJECTED, f"cannot {order.verb} {name}: it is {view.state}"
        elif view.phase is None:
            return OutcomeKind.REJECTED, f"cannot {order.verb} {name}: it has no daemon that is heard"
        place = self._fleet.rows().get(name)
        program = place[1].program if place is not None else None
        if order.verb is Verb.SCALE and program is not None:
            return OutcomeKind.REJECTED, f"cannot scale {name}: it is an instance of {program}; scale that"
        if order.verb is Verb.START and view.state is ProcessState.RUNNING:
            return OutcomeKind.DONE, "already running"
        if order.verb is Verb.STOP and view.state in _DOWN:
            return OutcomeKind.DONE, f"already {view.state.lower()}"
        return None

    # -- to agents ----------------------------------------------------------------------------------

    def _ask(self, entry: Entry, now_s: float) -> list[Action]:
        """Give a command to whom it is for now."""
        who = "its daemon" if entry.asks_daemon else f"the warden on {entry.target}"
        entry = replace(entry, stage=Stage.ASKED, attempts=(*entry.attempts, who))
        self._contacts[entry.id] = _Contact(asked_s=now_s)
        return [*self._put(entry), *self._tell(_progress(entry)), *self._send(entry, now_s)]

    def _put(self, entry: Entry) -> list[Action]:
        self.book.put(entry)
        return [Record(entry)]

    def _send(self, entry: Entry, now_s: float) -> list[Action]:
        self._contacts[entry.id].sent_s = now_s
        agent = self._agents.get(entry.target)
        if agent is None or entry.deadline_s is None:
            return []
        place = self._fleet.rows().get(entry.name)
        process = place[1].name if place is not None else entry.name
        command = Command(
            id=entry.wire_id,
            target=entry.target,
            incarnation=entry.incarnation if entry.asks_daemon else None,
            timeout_s=max(0.1, entry.deadline_s - now_s),
            asked_by=entry.request.asked_by,
            body=for_daemon(entry.request) if entry.asks_daemon else for_warden(entry.request, process, entry.pid),
        )
        return [ToAgent(agent.routing_id, command)]

    def ordered(self, since_s: float) -> frozenset[str]:
        """Names that a command is about, or has been since then."""
        names = {entry.name for entry in self.book.open.values()}
        for entry in reversed(self.book.ended.values()):
            if entry.began_s + (entry.took_s or 0.0) < since_s:
                break
            names.add(entry.name)
        return frozenset(names)

    def hold(self, name: str, for_s: float, reason: str, *, renewed: bool) -> list[Action]:
        """Have the warden wait before it starts an instance again; 0 ends that. No command: it is sent once."""
        place = self._fleet.rows().get(name)
        agent = self._agents.get(place[0].status.host) if place is not None else None
        if place is None or agent is None:
            return []
        host, process = place[0].status.host, place[1].name
        body = HoldRestarts(name=process, for_s=for_s, reason=reason)
        command = Command(id=self._new_id(), target=host, timeout_s=ASK_AGAIN_S, asked_by="atlas", body=body)
        actions: list[Action] = [ToAgent(agent.routing_id, command)]
        if not renewed:
            what = "restarts are held" if for_s else "restarts are held no longer; the reason was"
            actions.append(Happening(name, "hold", f"{what}: {reason}", host))
        return actions

    # -- from agents --------------------------------------------------------------------------------

    def hear(self, message: AgentMessage, routing_id: bytes, now_s: float) -> list[Action]:
        """Take what a daemon or warden says."""
        match message:
            case Hello():
                self._greeted(message, routing_id, now_s)
                return []
            case Accepted():
                entry = self._find(message.id)
                if entry is None or entry.stage is Stage.ACCEPTED:
                    return []
                return [*self._accept(entry), *self._look_again(entry.id, now_s)]
            case Outcome():
                return self._ended(message, now_s)

    def _greeted(self, hello: Hello, routing_id: bytes, now_s: float) -> None:
        held = self._agents.get(hello.target)
        fresh = held is not None and now_s - held.heard_s <= GREETED_S
        if held is not None and fresh and hello.incarnation < held.hello.incarnation:
            return  # a late word of the process before
        self._agents[hello.target] = Agent(hello, routing_id, now_s)

    def _find(self, wire_id: str) -> Entry | None:
        entry = self.book.open.get(wire_id.removesuffix("w"))
        is_asked = entry is not None and entry.stage in (Stage.ASKED, Stage.ACCEPTED)
        return entry if entry is not None and is_asked and entry.wire_id == wire_id else None

    def _accept(self, entry: Entry) -> list[Action]:
        if entry.stage is Stage.ACCEPTED:
            return []
        entry = replace(entry, stage=Stage.ACCEPTED)
        return [*self._put(entry), *self._tell(_progress(entry))]

    def _ended(self, message: Outcome, now_s: float) -> list[Action]:
        entry = self._find(message.id)
        if entry is None:
            return []
        shown = RULES[entry.request.verb].shown
        is_another = entry.asks_daemon and message.incarnation not in (None, entry.incarnation)
        if is_another and entry.incarnation is not None:
            # "I am #43", to what was for #42: that one is gone, by this command or otherwise.
            if shown:
                return [*self._accept(entry), *self._look_again(entry.id, now_s)]
            reason = f"{entry.name} was replaced meanwhile by #{message.incarnation}; order it again"
            return self._close(entry, OutcomeKind.UNKNOWN, reason, now_s)
        if shown and message.kind is OutcomeKind.DONE and not self._reached(entry, now_s):
            return self._accept(entry)  # the fleet has to show it; its news is on the way
        return self._close(entry, message.kind, message.reason, now_s)

    # -- time ---------------------------------------------------------------------------------------

    def resume(self, now_s: float) -> list[Action]:
        """Take up what an ATLAS before this one has left open."""
        actions: list[Action] = []
        self._tables_by_s = now_s + FIRST_GREETING_S
        if self.book.open:
            self._turns_from_s = now_s + FIRST_GREETING_S  # until then, an unknown service may be one not heard yet
        for entry in list(self.book.open.values()):
            is_another_boot = entry.boot_id != self._boot_id
            if entry.stage is Stage.WAITING:
                if is_another_boot:
                    why = "not tried: the machine was started anew meanwhile"
                    actions += self._close(replace(entry, began_s=now_s), OutcomeKind.REJECTED, why, now_s)
                continue
            self._contacts[entry.id] = _Contact(asked_s=now_s + FIRST_GREETING_S)
            said = "taken up again by a new ATLAS"
            if is_another_boot:
                entry = replace(entry, lapsed="the machine was started anew meanwhile", began_s=now_s)
            elif entry.deadline_s is not None and now_s >= entry.deadline_s:
                over = f"its time of {entry.request.timeout_s:g} s was over"
                entry = replace(entry, lapsed=f"ATLAS was away when {over}")
            if entry.lapsed:
                said = f"{entry.lapsed}; looking what has become of it"
                entry = replace(entry, boot_id=self._boot_id, deadline_s=now_s + LOOK_S)
                actions += self._put(entry)
            text = f"{entry.request.verb} asked by {entry.request.asked_by}: {said}"
            actions.append(Happening(entry.name, "command", text, "unknown", entry.incarnation, entry.id))
        return actions

    def tick(self, now_s: float) -> list[Action]:
        """Look at every open command; call this a few times a second."""
        if now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            self._agents = {name: agent for name, agent in self._agents.items() if now_s - agent.heard_s <= GREETED_S}
        actions: list[Action] = []
        for id_ in list(self.book.open):
            actions += self._look_again(id_, now_s)
        for order_id in list(self._rollouts):
            if order_id in self._early:
                actions += self._put_in_order(order_id, now_s)
            elif now_s >= self._turns_from_s or self._knows_all(order_id, now_s):
                actions += self._take_turns(order_id, now_s)
        return actions

    def _knows_all(self, order_id: str, now_s: float) -> bool:
        return all(self._fleet.view(entry.name, now_s) is not None for entry in self.book.order(order_id))

    def restart_windows(self, late_s: float) -> list[Action]:
        """ATLAS itself was away for late_s: open commands and agents get that time back."""
        actions: list[Action] = []
        for entry in list(self.book.open.values()):
            if entry.deadline_s is not None:
                actions += self._put(replace(entry, deadline_s=entry.deadline_s + late_s))
        for contact in self._contacts.values():
            contact.asked_s += late_s
        self._agents = {
            name: Agent(agent.hello, agent.routing_id, agent.heard_s + late_s) for name, agent in self._agents.items()
        }
        return actions

    def _look_again(self, id_: str, now_s: float) -> list[Action]:
        entry = self.book.open.get(id_)
        if entry is None or entry.deadline_s is None:
            return []
        view = self._fleet.view(entry.name, now_s)
        rule = RULES[entry.request.verb]
        if rule.shown and (entry.stage is Stage.ACCEPTED or entry.asks_daemon or entry.lapsed):
            if self._reached(entry, now_s):
                return self._close(entry, OutcomeKind.DONE, "", now_s)
            if view is not None and view.state in _GIVEN_UP and entry.asks_daemon:  # a warden says so itself
                return self._close(entry, OutcomeKind.FAILED, view.reason or view.state.lower(), now_s)
        if entry.lapsed and view is not None and _shows(entry.request, view):
            return self._close(entry, OutcomeKind.DONE, "", now_s)
        if now_s >= entry.deadline_s:
            return self._close(entry, OutcomeKind.UNKNOWN, _late_reason(entry, view), now_s)
        if entry.lapsed:
            return []
        contact = self._contacts[entry.id]
        is_unheard = entry.stage is Stage.ASKED and entry.asks_daemon and now_s - contact.asked_s >= ACCEPT_S
        if is_unheard and entry.request.verb is Verb.RESTART and view is not None:
            return self._ask(replace(entry, asks_daemon=False, target=view.host or "unknown"), now_s)
        every_s = RESEND_S if entry.stage is Stage.ASKED else ASK_AGAIN_S
        if contact.sent_s is None or now_s - contact.sent_s >= every_s:
            return self._send(entry, now_s)
        return []

    def _reached(self, entry: Entry, now_s: float) -> bool:
        """Whether the fleet shows what was asked for."""
        view = self._fleet.view(entry.name, now_s)
        if view is None:
            return False
        if entry.request.verb is Verb.STOP:
            return view.state in _DOWN
        ready = view.state is ProcessState.RUNNING and view.phase in (None, LifecyclePhase.SERVING)
        if entry.request.verb is Verb.START:
            return ready
        if entry.request.batch is not None and view.health is HealthStatus.UNHEALTHY:
            return False
        is_new = view.pid is not None and view.pid != entry.pid
        has_spoken = entry.incarnation is None or view.incarnation != entry.incarnation
        return ready and is_new and has_spoken

    def _close(self, entry: Entry, kind: OutcomeKind, reason: str, now_s: float) -> list[Action]:
        if self.journal_problem:
            reason = f"{reason}; not journaled: {self.journal_problem}".removeprefix("; ")
        view = self._fleet.view(entry.name, now_s)
        entry = replace(
            entry,
            stage=Stage.ENDED,
            kind=kind,
            reason=reason,
            incarnation=view.incarnation if view is not None else None,
            took_s=now_s - entry.began_s,
        )
        actions = [*self._put(entry), *self._tell(_outcome(entry))]
        self._contacts.pop(entry.id, None)
        text = f"{entry.request.verb} asked by {entry.request.asked_by}: {kind}"
        text += f" after {entry.took_s:.1f} s" if entry.attempts else ""
        text += f", {reason}" if reason else ""
        host = (view.host if view is not None else None) or "unknown"
        actions.append(Happening(entry.name, "command", text, host, entry.incarnation, entry.id))
        if not self.book.is_open(entry.request.id):
            self._operators.pop(entry.request.id, None)
        return actions


def _outcome(entry: Entry) -> OrderOutcome:
    return OrderOutcome(
        id=entry.request.id,
        name=entry.name,
        kind=entry.kind or OutcomeKind.UNKNOWN,
        reason=entry.reason,
        incarnation=entry.incarnation,
        took_s=entry.took_s or 0.0,
    )


def _progress(entry: Entry) -> OrderProgress:
    text = "waiting for its turn"
    if entry.lapsed:
        text = f"{entry.lapsed}; looking what has become of it"
    elif entry.stage is Stage.ACCEPTED:
        text = "draining" if entry.asks_daemon and entry.request.verb is Verb.RESTART else "accepted"
    elif entry.stage is Stage.ASKED:
        text = f"asking {entry.attempts[-1]}"
    return OrderProgress(id=entry.request.id, name=entry.name, text=text)


def _shows(order: OrderRequest, view: ServiceView) -> bool:
    """Whether the fleet shows what only an outcome would say, had ATLAS been there to hear it."""
    match order.verb:
        case Verb.SHED:
            return view.shedding
        case Verb.RESUME:
            return view.phase is not None and not view.shedding
        case Verb.LOOP_MODE:
            return view.ooda_mode is order.mode
        case Verb.ENABLE:
            return view.enabled
        case Verb.DISABLE:
            return not view.enabled and view.state in _DOWN
        case Verb.MAINTENANCE:
            return view.maintenance is order.on
        case _:
            return False


def _late_reason(entry: Entry, view: ServiceView | None) -> str:
    waited = f"within {entry.request.timeout_s:g} s"
    if entry.stage is Stage.ASKED and not entry.lapsed:
        return f"no answer {waited} from {' or '.join(entry.attempts)}"
    state = "unknown"
    if view is not None:
        health = f" and {view.health}" if view.health is HealthStatus.UNHEALTHY else ""
        state = f"{view.state}{health}{', ' + view.reason if view.reason else ''}"
    past = RULES[entry.request.verb].past
    return f"{entry.lapsed}; it is {state}" if entry.lapsed else f"not {past} {waited}: it is {state}"
