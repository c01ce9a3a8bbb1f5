"""ATLAS's bus thread: the sockets, and around the pure fleet and coordinator the little that is not pure.

Everything that arrives is looked at before it is passed on; what is not a
message, not news, or not under its own topic is counted and dropped.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from functools import partial
from threading import Event as ThreadEvent
from threading import Lock, Thread

from bus.broker import Broker, BusTaken
from bus.codec import MAX_REPLY_BYTES, Decoder, FrameError, encode
from bus.endpoints import RunDir
from bus.ids import new_id
from bus.messages import (
    AgentMessage,
    CommandsReply,
    CommandsRequest,
    CommandView,
    DaemonStatus,
    Event,
    EventsReply,
    EventsRequest,
    FleetReply,
    FleetRequest,
    NodeStatus,
    OperatorReply,
    OperatorRequest,
    OrderAccepted,
    OrderRequest,
    OutcomeKind,
    ProcessRow,
    Refusal,
    ServiceView,
    SnapshotRequest,
    WhyRequest,
)
from bus.topics import topic_of
from services.atlas.chain import answer_chain
from services.atlas.coordinator import NOBODY, Action, CDNCoordinator, Record, ToAgent, ToOperator
from services.atlas.fleet import Fleet, Happening, Said, views
from services.atlas.happened import Happened, Numbering
from services.atlas.hearing import Hearing, in_parts
from services.atlas.history import History
from services.atlas.journal import Entry, Journal, boot_id
from services.atlas.prometheus import Measured
from services.atlas.why import answer_why

log = logging.getLogger(__name__)

TICK_S = 0.1
REBIND_S = 0.5
AWAY_S = 1.0
SOURCES_NAMED = 1000
COMMANDS_TOLD = 20
"""With why a service ended."""


class Switchboard:
    """Runs on a thread of its own from ``start`` to ``stop``; ``failure`` says why, if it ended by itself."""

    def __init__(self, run_dir: RunDir, history: History | None = None) -> None:
        self._run_dir = run_dir
        self._incarnation = 0
        self._lock = Lock()
        self._fleet = Fleet()
        self._journal = Journal(run_dir.state("atlas") / "commands.jsonl")
        self._coordinator = CDNCoordinator(self._fleet, new_id)
        """Another, with what the journal holds, once the bus is ours: before, the file may be another ATLAS's."""
        self.history = history
        self._events = Happened(history)
        self._event_seqs = Numbering()
        self.counts: Counter[str] = Counter()
        self._outcomes: Counter[tuple[str, OutcomeKind]] = Counter()
        self._named: set[tuple[str, bytes]] = set()
        self._hearing = Hearing(self._fleet, self._events, self._dropped)
        self._agent: Decoder[AgentMessage] = Decoder(AgentMessage)
        self._operator: Decoder[OperatorRequest] = Decoder(OperatorRequest)
        self._stop = ThreadEvent()
        self.ended = ThreadEvent()
        self.failure: BaseException | None = None
        self.turned_s = time.monotonic()
        """When it last went round; for the health check."""
        self._broker: Broker | None = None
        self._owed: deque[Action] = deque()
        """What orders of other threads have led to, for the bus thread to do."""
        self._thread = Thread(target=self._run, name="atlas-bus", daemon=True)

    # -- any thread ---------------------------------------------------------------------------------

    def start(self, incarnation: int) -> None:
        """Bind and begin, as this incarnation of ATLAS."""
        self._incarnation = incarnation
        self._thread.start()

    def stop(self) -> None:
        """Unbind and end."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    @property
    def is_bound(self) -> bool:
        """Whether the bus is this ATLAS's, and what the journal holds is taken up."""
        return self._broker is not None

    def views(self) -> tuple[ServiceView, ...]:
        """The fleet as it is now."""
        with self._lock:  # for the copying only: 10,000 views take longer than the bus may wait
            now_s, members, rows = time.monotonic(), self._fleet.copy_members(), self._fleet.rows()
        return views(members, rows, now_s)

    def measured(self, counts: Mapping[str, int]) -> Measured:
        """The fleet as Prometheus is to see it; these counts are told beside the switchboard's own."""
        with self._lock:
            now_s, members, rows = time.monotonic(), self._fleet.copy_members(), self._fleet.rows()
            nodes, outcomes = dict(self._fleet.nodes), dict(self._outcomes)
        return Measured(
            now_s=now_s,
            views=views(members, rows, now_s),
            statuses={name: member.status for name, member in members.items()},
            nodes=nodes,
            counts={**self.all_counts(), **counts},
            outcomes=outcomes,
        )

    def events(self, limit: int) -> tuple[Event, ...]:
        """The newest events, oldest first."""
        with self._lock:
            return self._events.newest(limit)

    def restore(self, events: list[Event]) -> None:
        """These had happened before this ATLAS began."""
        with self._lock:
            self._events.restore(events)

    def said(self) -> list[Said]:
        """What each instance said last."""
        with self._lock:
            return self._fleet.said()

    def status(self, name: str) -> DaemonStatus | None:
        """The last status of that instance; None if there was none."""
        with self._lock:
            member = self._fleet.members.get(name)
            return None if member is None else member.status

    def process(self, name: str) -> tuple[str, ProcessRow] | None:
        """The host and row of that instance's process; None if no warden told of one."""
        with self._lock:
            place = self._fleet.rows().get(name)
            return None if place is None else (place[0].status.host, place[1])

    def view(self, name: str) -> ServiceView | None:
        """One instance as it is now; None if it is unknown."""
        with self._lock:
            return self._fleet.view(name, time.monotonic())

    def names(self) -> list[str]:
        """Every instance known, in no order."""
        with self._lock:
            return self._names()

    def answer(self, routing_id: bytes, reply: OperatorReply) -> None:
        """Send a reply that took its time."""
        with self._lock:
            self._owed.append(ToOperator(routing_id, reply))
            if self._broker is not None:
                self._broker.wake()

    def notes(self) -> tuple[str, ...]:
        """What is wrong with the hosts themselves, in words."""
        with self._lock:
            return self._notes(time.monotonic())

    def order(self, request: OrderRequest) -> OrderAccepted | Refusal:
        """Give an order, as cdnctl would; what becomes of it is in ``command`` and ``commands``."""
        with self._lock:
            if self._broker is None:
                return Refusal(id=request.id, reason="ATLAS's bus does not run")
            answer: OrderAccepted | Refusal | None = None
            for action in self._coordinator.order(request, NOBODY, time.monotonic(), time.time()):
                match action:
                    case Record(entry):
                        self._write_down(entry)
                    case ToOperator(_, OrderAccepted() | Refusal() as reply):
                        answer = reply
                    case _:
                        self._owed.append(action)
            self._broker.wake()
        assert answer is not None
        return answer

    def command(self, id_: str) -> CommandView | None:
        """One command; None if it is not known, or no longer."""
        with self._lock:
            return self._coordinator.command(id_)

    def commands(self, limit: int = 100, name: str | None = None) -> tuple[CommandView, ...]:
        """The newest commands, of this instance only if it is given, oldest first; the open ones are always there."""
        with self._lock:
            return self._coordinator.commands(limit, name)

    def tables(self) -> tuple[NodeStatus, ...]:
        """The process tables of all wardens that are heard."""
        with self._lock:
            return tuple(node.status for node in self._fleet.nodes.values() if node.reachable)

    def ordered(self, within_s: float) -> frozenset[str]:
        """Instances that a command is about, or was that lately."""
        with self._lock:
            return self._coordinator.ordered(time.monotonic() - within_s)

    def hold(self, name: str, for_s: float, reason: str, *, renewed: bool) -> None:
        """Have the warden wait before it starts an instance again; 0 ends that."""
        with self._lock:
            self._owed.extend(self._coordinator.hold(name, for_s, reason, renewed=renewed))
            if self._broker is not None:
                self._broker.wake()

    def all_counts(self) -> dict[str, int]:
        """What was dropped and why, and what is connected."""
        with self._lock:
            broker = self._broker.all_counts() if self._broker is not None else {}
            return {
                **self.counts,
                **broker,
                "agents": self._coordinator.agents,
                "open_commands": self._coordinator.open_commands,
                "commands_not_journaled": self._journal.lost,
                "journal_lines_damaged": self._journal.corrupt,
                "subscribers": self._broker.subscribers if self._broker is not None else 0,
                "members": len(self._fleet.members),
                "events_dropped": self._events.dropped,
                "events_repeated": self._events.repeated,
            }

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            broker = Broker(self._run_dir)
            with self._lock:
                now_s = time.monotonic()
                book = self._journal.open(now_s)
                self._coordinator = CDNCoordinator(self._fleet, new_id, boot_id=boot_id(), book=book)
                self._perform(broker, self._coordinator.resume(now_s))
                self._broker = broker
            if self.history is not None:
                self.history.start(self)
            self._turn_until_stopped(broker)
            with self._lock:
                self._broker = None
                self._journal.close()
            broker.close()
        except BusTaken as error:  # which is no fault of the thread, and whoever waits for it says it
            self.failure = error
        except BaseException as error:
            log.critical("the bus thread died", exc_info=True)
            self.failure = error
        finally:
            self.ended.set()

    def _turn_until_stopped(self, broker: Broker) -> None:
        ticked_s = rebound_s = time.monotonic()
        while not self._stop.is_set():
            arrivals = broker.turn(max(0.0, ticked_s + TICK_S - time.monotonic()))
            now_s = self.turned_s = time.monotonic()
            with self._lock:
                if now_s - ticked_s > AWAY_S:
                    self._back_after(broker, now_s - ticked_s)
                while self._owed:
                    self._perform(broker, [self._owed.popleft()])
                self.counts["telemetry"] += len(arrivals.telemetry)
                self._perform(broker, self._hearing.hear(broker, arrivals.telemetry, now_s))
                for routing_id, frame in arrivals.agents:
                    self._take_agent(broker, routing_id, frame, now_s)
                for routing_id, frame in arrivals.operators:
                    self._take_operator(broker, routing_id, frame, now_s)
                if now_s - ticked_s >= TICK_S:
                    ticked_s = now_s
                    self._perform(broker, self._hearing.tick(broker, now_s))
                    self._perform(broker, self._coordinator.tick(now_s))
                    self._journal.tick(self._coordinator.book, now_s)
                    self._coordinator.journal_problem = self._journal.problem
                    broker.replay()
            if now_s - rebound_s >= REBIND_S:
                rebound_s = now_s
                for endpoint in broker.rebind_missing():
                    log.warning("%s was unlinked: bound it again", endpoint)
                    self.counts["rebound"] += 1
                broker.look_at_subscribers(now_s)

    def _back_after(self, broker: Broker, late_s: float) -> None:
        log.warning("was away for %.1f s: silence meanwhile proves nothing", late_s)
        self._fleet.restart_windows(late_s)
        broker.restart_windows(late_s)
        self._perform(broker, self._coordinator.restart_windows(late_s))

    def _dropped(self, cause: str, source: bytes, error: Exception) -> None:
        """Count it; log the first from each source, as one that sends nonsense sends it every second."""
        self.counts[cause] += 1
        if cause != "old" and (cause, source) not in self._named and len(self._named) < SOURCES_NAMED:
            self._named.add((cause, source))
            log.warning("dropped what came as %.200r: %s; further ones of it are only counted", source, error)

    def _take_agent(self, broker: Broker, routing_id: bytes, frame: bytes, now_s: float) -> None:
        try:
            message = self._agent.decode(frame)
        except FrameError as error:
            self._dropped(f"agent_{error.cause}", routing_id, error)
            return
        self._perform(broker, self._coordinator.hear(message, routing_id, now_s))

    def _take_operator(self, broker: Broker, routing_id: bytes, frame: bytes, now_s: float) -> None:
        try:
            request = self._operator.decode(frame)
        except FrameError as error:
            self._dropped(f"operator_{error.cause}", routing_id, error)
            self._reply(broker, routing_id, Refusal(id="", reason=f"cannot understand the request: {error}"))
            return
        match request:
            case FleetRequest():
                reply = FleetReply(
                    id=request.id,
                    services=self._fleet.views(now_s),
                    counts=dict(self.counts),
                    notes=self._notes(now_s),
                    nodes=self._fleet.node_views(now_s),
                )
                self._reply(broker, routing_id, reply)
            case EventsRequest(chain=None):
                events = self._events.newest(request.limit, request.kinds)
                self._reply(broker, routing_id, EventsReply(id=request.id, events=events))
            case EventsRequest():
                self._take_chain(broker, request, routing_id)
            case SnapshotRequest():
                for part in in_parts(request.id, broker.last_frames()):
                    self._reply(broker, routing_id, part)
            case WhyRequest():
                self._take_why(broker, request, routing_id, now_s)
            case CommandsRequest():
                commands = self._coordinator.commands(request.limit, request.name)
                self._reply(broker, routing_id, CommandsReply(id=request.id, commands=commands))
            case OrderRequest():
                self._perform(broker, self._coordinator.order(request, routing_id, now_s, time.time()))

    def _take_why(self, broker: Broker, request: WhyRequest, routing_id: bytes, now_s: float) -> None:
        answer: OperatorReply | None = Refusal(id=request.id, reason="this ATLAS keeps no history")
        if self.history is not None:
            answer = answer_why(
                request,
                self.history,
                self._fleet.view(request.name, now_s),
                self._coordinator.commands(COMMANDS_TOLD, request.name),
                self._names(),
                partial(self.answer, routing_id),
            )
        if answer is not None:
            self._reply(broker, routing_id, answer)

    def _take_chain(self, broker: Broker, request: EventsRequest, routing_id: bytes) -> None:
        answer: OperatorReply | None = Refusal(id=request.id, reason="this ATLAS keeps no history")
        if self.history is not None:
            answer = answer_chain(request, self.history, partial(self.answer, routing_id))
        if answer is not None:
            self._reply(broker, routing_id, answer)

    def _reply(self, broker: Broker, routing_id: bytes, reply: OperatorReply) -> None:
        try:
            broker.to_operator(routing_id, encode(reply, max_bytes=MAX_REPLY_BYTES))
        except FrameError as error:
            broker.to_operator(routing_id, encode(Refusal(id=reply.id, reason=f"cannot answer: {error}")))

    def _perform(self, broker: Broker, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Record():
                    self._write_down(action.entry)
                case ToAgent():
                    broker.to_agent(action.routing_id, encode(action.command))
                case ToOperator():
                    self._reply(broker, action.routing_id, action.reply)
                case Happening():
                    self._announce(broker, action)

    def _names(self) -> list[str]:
        return list(self._fleet.members.keys() | self._fleet.rows().keys())

    def _notes(self, now_s: float) -> tuple[str, ...]:
        notes = self._fleet.notes(now_s)
        if self._journal.problem:
            notes += (f"ATLAS's commands are not written down: {self._journal.problem} ({self._journal.path})",)
        return notes

    def _write_down(self, entry: Entry) -> None:
        if entry.kind is not None:
            self._outcomes[entry.request.verb, entry.kind] += 1
        self._journal.append(entry)
        self._coordinator.journal_problem = self._journal.problem

    def _announce(self, broker: Broker, happening: Happening) -> None:
        event = Event(
            id=new_id(),
            source="atlas",
            incarnation=self._incarnation,
            seq=self._event_seqs.next(happening.instance),
            time_s=time.time(),
            host=happening.host,
            instance=happening.instance,
            subject_incarnation=happening.incarnation,
            kind=happening.kind,
            text=happening.text,
            cause=happening.cause,
        )
        kept = self._events.append(event)  # its text is whoever's word, and may be as long as a frame: cut there
        if kept is not None:
            log.info("%s %s: %s", kept.instance, kept.kind, kept.text)
            broker.publish(topic_of(kept).encode(), encode(kept), keep=False)
